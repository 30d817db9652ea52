"""The engine: looks at a picture as the vendor would, and draws what was asked for."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import attrs
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ._portraits import SIDE, Mouth, draw_portrait, encode, seed_of

MOST_BYTES = 10 * 1024 * 1024
MOST_SIDE = 4096

_MOUTHS: Mapping[str, Mouth] = {"smile_with_teeth_visible": "teeth", "closed_mouth_smile": "closed"}
_WORDS = {"smile_with_teeth_visible": "smile: teeth visible", "closed_mouth_smile": "smile: closed"}
_TINTS = ("#c2185b", "#00796b", "#303f9f", "#e65100", "#5d4037", "#455a64")


@attrs.frozen
class Picture:
    """A task's input: `source` is the file id or the URL; a URL's bytes are never fetched."""

    source: str
    name: str | None
    data: bytes | None = attrs.field(repr=False)


def picture_format(data: bytes) -> str | None:
    """The format by the first bytes: `jpeg`, `png`, `heic`, or `None`."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if re.match(rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", data, re.DOTALL):
        return "heic"
    return None


def flaw(picture: Picture, formats: frozenset[str]) -> str | None:
    """The engine code for bytes that no engine would take (contract: Input pictures).

    Looks at first bytes, size and, where Pillow can read the header, dimensions; a picture
    that merely has a valid start passes.
    """
    if picture.data is None:
        return None
    if len(picture.data) >= MOST_BYTES:
        return "exceed_max_filesize"
    if picture_format(picture.data) not in formats:
        return "error_decode_image"
    try:
        with Image.open(io.BytesIO(picture.data)) as image:
            return "error_exceed_max_image_size" if max(image.size) > MOST_SIDE else None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None


def render(
    feature: str, params: Mapping[str, object], picture: Picture, index: int, *, png: bool
) -> bytes:
    """One output, at most 512 px a side, that shows what was asked."""
    if feature == "ai-smile":
        expression = str(params["expression_type"])
        seed = None if picture.data is None else seed_of(picture.data)
        if seed is not None:
            return encode(draw_portrait(seed, _MOUTHS[expression]), seed=seed, png=png)
        image = _stamped(picture, _WORDS[expression], _TINTS[0])
        return encode(image, png=png)
    return encode(_avatar(picture, str(params["template_id"]), index), png=png)


def _avatar(picture: Picture, template: str, index: int) -> Image.Image:
    seed = None if picture.data is None else seed_of(picture.data)
    tint = _TINTS[(index + sum(template.encode())) % len(_TINTS)]
    image = _base(picture) if seed is None else draw_portrait(seed, "closed")
    toned = Image.blend(image, Image.new("RGB", image.size, tint), 0.3)
    _label(toned, f"{template} #{index + 1}", tint)
    return toned


def _stamped(picture: Picture, words: str, tint: str) -> Image.Image:
    image = _base(picture)
    _label(image, words, tint)
    return image


def _base(picture: Picture) -> Image.Image:
    """The picture itself, small; where there are no readable bytes, a card with its origin."""
    if picture.data is not None:
        try:
            with Image.open(io.BytesIO(picture.data)) as image:
                image.draft("RGB", (SIDE, SIDE))
                small = image.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            # HEIC needs a plugin, and a test's bytes may be a header only.
            return _card(picture.name or "picture")
        small.thumbnail((SIDE, SIDE))
        return small
    return _card(urlsplit(picture.source).hostname or "url")


def _card(words: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "#dfe4ea")
    draw = ImageDraw.Draw(image)
    middle = SIDE // 2
    draw.ellipse((middle - 45, 70, middle + 45, 160), fill="#b3bcc7")
    draw.pieslice((middle - 90, 170, middle + 90, 390), 180, 360, fill="#b3bcc7")
    draw.text((middle, 36), words[:40], "#57606f", ImageFont.load_default(16), anchor="mm")
    return image


def _label(image: Image.Image, words: str, tint: str) -> None:
    """A band along the lower edge that is readable at any size."""
    width, height = image.size
    band = min(max(height // 9, 14), height)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height - band, width, height), fill=tint)
    font = ImageFont.load_default(max(band * 0.55, 8))
    while font.getlength(words) > width - 4 and len(words) > 1:
        words = words[:-1]
    draw.text((width / 2, height - band / 2), words, "white", font, anchor="mm")


@functools.cache
def thumb(index: int) -> bytes:
    """A template's thumbnail as JPEG, 96 px a side; there are 71, so they are kept."""
    image = draw_portrait(1000 + index, "closed", 96)
    return encode(Image.blend(image, Image.new("RGB", image.size, _TINTS[index % 6]), 0.3))
