"""Small pictures for a page: JPEG in `data:` URLs, within a budget of bytes."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import attrs
from PIL import Image, ImageOps

from perfect_async._value import Value

BUDGET: Final = 24_000_000
"""Bytes of all pictures in a page, as they stand in it."""
LEAST: Final = 1_500
"""Bytes below which a picture shows nothing; where there are too many, the last are left out."""

_LARGEST_FILE: Final = 64 * 1024 * 1024
_SIZES: Final = ((480, 82), (400, 78), (320, 74), (256, 68), (192, 60), (144, 50), (96, 40))
"""The longest side in pixels and the quality, from the best to what fits anywhere."""
_TYPICAL: Final = 0.07
"""Bytes of a thumbnail for each pixel of a square around it; noise has more."""
_PAPER: Final = "#ffffff"


@attrs.frozen(eq=False, repr=False)
class Thumbnail(Value):
    """A picture in a `data:` URL, with its size in pixels."""

    url: str = attrs.field(repr=lambda url: f"<{len(url)} characters>")
    width: int
    height: int


def thumbnails(paths: Iterable[Path]) -> dict[Path, Thumbnail]:
    """Return a small picture for each of `paths` that can be read and has room in the page.

    Only pixels are kept: a phone writes its place into the metadata of a picture.
    """
    wanted = list(dict.fromkeys(paths))[: BUDGET // LEAST]
    if not wanted:
        return {}
    # Base64 adds a third.
    each = BUDGET // len(wanted) * 3 // 4
    # Threads help, because Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        made = pool.map(partial(_thumbnail, most=each), wanted)
        return {path: one for path, one in zip(wanted, made, strict=True) if one is not None}


def _thumbnail(path: Path, *, most: int) -> Thumbnail | None:
    try:
        # A pipe would block, and no result of the vendor is that large.
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return None
        # A quality that is likely to be too large would only take time.
        sizes = [size for size in _SIZES[:-1] if size[0] ** 2 * _TYPICAL <= most] + [_SIZES[-1]]
        largest = (sizes[0][0], sizes[0][0])
        with Image.open(path) as image:
            image.draft("RGB", largest)
            image.thumbnail(largest, reducing_gap=2.0)
            picture = _flat(ImageOps.exif_transpose(image))
        return _fitted(picture, sizes, most)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # Pillow cannot read HEIC without a plugin, and the file may not be a picture.
        return None


def _flat(image: Image.Image) -> Image.Image:
    """Return the picture on white paper where it is transparent: JPEG knows no transparency."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    paper = Image.new("RGB", layer.size, _PAPER)
    paper.paste(layer, mask=layer.getchannel("A"))
    return paper


def _fitted(picture: Image.Image, sizes: Iterable[tuple[int, int]], most: int) -> Thumbnail | None:
    """Return the best thumbnail of at most `most` bytes, None where none is that small."""
    for side, quality in sizes:
        picture.thumbnail((side, side))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=quality)
        data = out.getvalue()
        if len(data) <= most:
            text = base64.b64encode(data).decode("ascii")
            return Thumbnail(f"data:image/jpeg;base64,{text}", *picture.size)
    return None
