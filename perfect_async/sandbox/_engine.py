"""The simulated engine: its durations, its checks of inputs, and the pictures that it draws."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import attrs
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ._portraits import SIDE, Mouth, draw_portrait, encode, seed_of

MOST_BYTES = 10 * 1024 * 1024
MOST_VIDEO_BYTES = 100 * 1024 * 1024
MOST_SIDE = 4096

_MOUTHS: Mapping[str, Mouth] = {"smile_with_teeth_visible": "teeth", "closed_mouth_smile": "closed"}
_WORDS = {"smile_with_teeth_visible": "smile: teeth visible", "closed_mouth_smile": "smile: closed"}
_TINTS = ("#c2185b", "#00796b", "#303f9f", "#e65100", "#5d4037", "#455a64")


@attrs.frozen
class Durations:
    """A distribution of the engine's processing times in seconds, from the creation of a task.

        Sandbox(durations={"ai-smile": Durations.fixed(2.0)})

    `Durations(8.0, 0.35)` is lognormal with this median and this sigma of the logarithm, clipped to
    `low` and `high`. The class methods make other distributions.
    """

    median: float
    sigma: float = 0.0
    low: float = 0.0
    high: float = math.inf
    sampler: Callable[[random.Random], float] | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        """Raise `ValueError` for impossible values at construction instead of at the first task."""
        if not 0.0 <= self.low <= self.high:
            raise ValueError(f"Durations need 0 <= low <= high, not {self.low} and {self.high}")
        if self.median < 0.0 or self.sigma < 0.0:
            raise ValueError(
                f"Durations cannot be negative: median={self.median}, sigma={self.sigma}"
            )

    @classmethod
    def uniform(cls, low: float, high: float) -> Durations:
        """Draw uniformly between `low` and `high` seconds."""
        return cls((low + high) / 2, low=low, high=high, sampler=lambda rng: rng.uniform(low, high))

    @classmethod
    def fixed(cls, seconds: float) -> Durations:
        """Take `seconds` every time."""
        return cls(seconds)

    @classmethod
    def of(cls, sampler: Callable[[random.Random], float]) -> Durations:
        """Draw by `sampler`, which receives a seeded `random.Random` and returns seconds."""
        return cls(0.0, sampler=sampler)

    def draw(self, rng: random.Random) -> float:
        """Draw one duration in seconds."""
        if self.sampler is not None:
            seconds = self.sampler(rng)
        else:
            # Draw also if sigma is 0, so that the stream advances equally for every setting.
            seconds = self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0))
        return min(max(seconds, self.low), self.high)


# contract: Durations seen. Not recorded, but assumed: 5 to 20 s for a smile, an avatar's time for a
# studio, a try-on's time for an image from text, and a minute for a video.
DEFAULT_DURATIONS = {
    "ai-smile": Durations(8.0, 0.35),
    "ai-avatar": Durations(60.0, 0.4),
    "ai-studio": Durations(60.0, 0.4),
    "skin-analysis": Durations.uniform(4.0, 6.0),
    "skin-analysis@v2.1": Durations.uniform(4.0, 6.0),
    "skin-tone-analysis": Durations.uniform(4.0, 6.0),
    "cloth-v4": Durations.uniform(8.0, 30.0),
    "2d-vto/ring": Durations.uniform(8.0, 30.0),
    "generative-fill": Durations.uniform(8.0, 30.0),
    "text-to-image/youcam": Durations.uniform(8.0, 30.0),
    "video-sr": Durations(60.0, 0.4),
}


@attrs.frozen
class Picture:
    """A task's input: `source` is a file id or a URL; a URL is never fetched (`data` is None)."""

    source: str
    name: str | None
    data: bytes | None = attrs.field(repr=False)


def picture_format(data: bytes) -> str | None:
    """Return the format by the first bytes: `jpeg`, `png`, `heic`, `mp4`, `mov`, or `None`."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if re.match(rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", data, re.DOTALL):
        return "heic"
    if re.match(rb"....ftyp(isom|iso[2-9]|mp4[12]|avc1|M4V )", data, re.DOTALL):
        return "mp4"
    if re.match(rb"....(ftypqt  |moov|mdat|wide|free)", data, re.DOTALL):
        return "mov"
    return None


def input_error(picture: Picture, formats: frozenset[str]) -> str | None:
    """Return the engine's error code for rejected bytes, or None (contract: Input pictures).

    The first bytes, the size and, if Pillow can read the header, the dimensions are checked. The
    picture is not decoded: a truncated one with a valid header passes.
    """
    if picture.data is None:
        return None
    video = picture_format(picture.data) in {"mp4", "mov"}
    if len(picture.data) >= (MOST_VIDEO_BYTES if video else MOST_BYTES):
        return "exceed_max_filesize"
    if picture_format(picture.data) not in formats:
        return "error_decode_video" if "mp4" in formats else "error_decode_image"
    try:
        with Image.open(io.BytesIO(picture.data)) as image:
            return "error_exceed_max_image_size" if max(image.size) > MOST_SIDE else None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None


def render(
    feature: str,
    params: Mapping[str, object],
    picture: Picture,
    index: int,
    *,
    png: bool,
    kind: str = "jpg",
) -> bytes:
    """Make one output of the type `kind` that shows the parameters of the task.

    A picture has at most 512 px per side. A video has the boxes of a video, but does not play.
    """
    if kind == "zip":
        return _archive(params)
    if kind == "mp4":
        return _video(picture)
    if feature not in {"ai-smile", "ai-avatar", "ai-studio"}:
        return encode(_stamped(picture, f"{feature} #{index + 1}", _TINTS[2]), png=png)
    if feature == "ai-smile":
        expression = str(params["expression_type"])
        seed = None if picture.data is None else seed_of(picture.data)
        if seed is not None:
            return encode(draw_portrait(seed, _MOUTHS[expression]), seed=seed, png=png)
        image = _stamped(picture, _WORDS[expression], _TINTS[0])
        return encode(image, png=png)
    return encode(_avatar(picture, str(params["template_id"]), index), png=png)


def _archive(params: Mapping[str, object]) -> bytes:
    """Return a zip with the scores of an analysis, the same bytes each time."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        scores = json.dumps({"asked_for": params["dst_actions"], "all": {"score": 71}})
        archive.writestr(zipfile.ZipInfo("skinanalysisResult/score_info.json"), scores)
    return out.getvalue()


def _video(picture: Picture) -> bytes:
    """Return the boxes of a video, with the digest of the input."""
    digest = hashlib.sha256(picture.data or picture.source.encode()).digest()
    boxes = ((b"ftyp", b"isom\0\0\2\0isommp41"), (b"mdat", digest * 32))
    return b"".join((8 + len(body)).to_bytes(4, "big") + name + body for name, body in boxes)


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
    """Return the picture scaled down, or, without readable bytes, a card with its name or host."""
    if picture.data is not None:
        try:
            with Image.open(io.BytesIO(picture.data)) as image:
                image.draft("RGB", (SIDE, SIDE))
                small = image.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            # Pillow reads HEIC only with a plugin, and tests may upload only a header.
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
    """Write a label along the lower edge, readable at any size."""
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
    """Draw the thumbnail of a template: a JPEG of 96 px per side, cached."""
    image = draw_portrait(1000 + index, "closed", 96)
    return encode(Image.blend(image, Image.new("RGB", image.size, _TINTS[index % 6]), 0.3))
