"""Converts pictures to what a feature accepts, and encodes Pillow's images (extra `fit`).

A picture that is accepted already stays unchanged, byte for byte. A converted picture loses its
EXIF data, which may include the place where it was taken.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs
from PIL import Image, ImageOps

from perfect_async._value import Value
from perfect_async.errors import PictureRefused, quoted

if TYPE_CHECKING:
    from perfect_async.models import Job, PillowImage

_ORIENTATION: Final = 0x0112
"""The EXIF tag of a picture's orientation (CIPA DC-008, 4.6.4)."""
_TURNED: Final = range(2, 9)
"""The orientations that are not upright; 1 is upright."""
_SIDEWAYS: Final = range(5, 9)
"""The orientations that swap width and height."""
_BOMBS: Final = Image.DecompressionBombError, Image.DecompressionBombWarning
"""The exceptions of Pillow for pictures with over 179 million pixels, or optionally half of it."""
_DEPTH_AT: Final = 24
"""The position of the bits per sample in a PNG (W3C PNG, 11.2.1: its first chunk)."""
_DEEP: Final = 16
_QUALITIES: Final = (95, 90, 80, 70)
"""The JPEG qualities that are tried before a picture is scaled down."""
_SMALLER: Final = 0.8
_LEAST: Final = 64
"""The long side, in pixels, below which a picture is not scaled down further."""
_INDEXED: Final = {"1", "L", "LA", "P", "RGB", "RGBA"}
_PLAIN: Final = {
    "jpg": {"L", "RGB"},
    **dict.fromkeys(("png", "gif", "bmp", "tiff"), _INDEXED),
    "webp": {"RGB", "RGBA"},
}
"""Pillow's modes of pictures that stay unchanged, by type."""
_KEPT: Final = {"L", "LA", "RGB", "RGBA"}
"""Pillow's modes that are encoded without conversion."""
_KINDS: Final = {"jpeg": "jpg", "mpo": "jpg"}
"""Types by Pillow's names, if the two differ. JPEGs of cameras may be MPO."""


@attrs.frozen(eq=False, repr=False)
class Fitted(Value):
    """A converted picture: its bytes, and the changes as texts for the user."""

    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    changes: tuple[str, ...]


def fit(file: BinaryIO, job_type: Job | type[Job]) -> Fitted | None:
    """Return the picture in `file` as `job_type` accepts it, or None if it is accepted already.

    None is also returned for an unreadable picture; the usual checks then name the problem. The
    same bytes give the same picture with the same version of Pillow.
    """
    file.seek(0)
    head = file.read(_DEPTH_AT + 1)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with Image.open(file) as image:
            return _fit(image, head, size, job_type)
    except (OSError, ValueError, SyntaxError, *_BOMBS):
        # Pillow's plugins raise any of these for a broken picture.
        return None
    finally:
        file.seek(0)


def encode(image: PillowImage, job_type: Job | type[Job]) -> bytes:
    """Encode a Pillow image as PNG, without loss.

    If the PNG has `job_type.largest` bytes or more, the result is a JPEG of quality 95. Colours
    that a PNG of 8 bits cannot hold become RGB, and an EXIF orientation is applied. Raises
    `PictureRefused` for an object that only resembles a Pillow image.
    """
    if not isinstance(image, Image.Image):
        raise PictureRefused(
            f"{quoted(type(image).__name__)} is not a Pillow image (PIL.Image.Image)."
        )
    plain = _plain(ImageOps.exif_transpose(image))
    data = _png(plain)
    return data if len(data) < job_type.largest else _jpeg(plain, _QUALITIES[0])


def _fit(image: Image.Image, head: bytes, size: int, job_type: Job | type[Job]) -> Fitted | None:
    name = (image.format or "").lower()
    kind, most = _KINDS.get(name, name), job_type.longest_side
    deep = kind == "png" and head[_DEPTH_AT:] == bytes([_DEEP])
    orientation = image.getexif().get(_ORIENTATION)
    turned = orientation in _TURNED
    odd = deep or image.mode not in _PLAIN.get(kind, _KEPT)
    large = max(image.size) > most
    # A `Feature` has no bound, so the size stays unchanged.
    longest = math.floor(min(most, max(image.size)))
    taken = kind in job_type.formats
    if taken and not (turned or odd or large) and size < job_type.largest:
        return None
    frames: int = getattr(image, "n_frames", 1)
    width, height = image.size
    whole = (height, width) if orientation in _SIDEWAYS else (width, height)
    if large and kind == "jpg":
        # Decode at a half or less if that is enough: pictures of cameras are large.
        image.draft(None, (longest, longest))
    plain = _plain(ImageOps.exif_transpose(image))
    plain.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    found, data, plain = _encoded(plain, kind, job_type)
    changes = {
        f"{kind} made {found}": found != kind,
        f"only the first of {frames} frames": frames > 1 and kind != "jpg",
        "turned upright": turned,
        "16 bits for a colour made 8": deep or image.mode.startswith("I"),
        f"{image.mode} made {plain.mode}": image.mode in {"CMYK", "YCbCr", "LAB", "HSV"},
        f"{_text(whole)} made {_text(plain.size)}": plain.size != whole,
        f"{_mebibytes(size)} made {_mebibytes(len(data))}": size >= job_type.largest,
    }
    return Fitted(data, tuple(change for change, made in changes.items() if made))


def _plain(image: Image.Image) -> Image.Image:
    """Return `image` in a mode of 8 bits for PNG and JPEG, without its metadata."""
    see_through = "transparency" in image.info or image.mode in {"PA", "RGBa", "La"}
    profile: bytes | None = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # Pillow would clip values over 255, so they are scaled first.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in _KEPT:
        if image.mode not in {"P", "PA", "RGBX"}:
            # The profile describes the colours before the conversion.
            profile = None
        image = image.convert("RGBA" if see_through else "RGB")
    elif see_through and image.mode in {"L", "RGB"}:
        image = image.convert("RGBA")
    else:
        image = image.copy()
    image.info = {} if profile is None else {"icc_profile": profile}
    return image


def _encoded(
    image: Image.Image, kind: str, job_type: Job | type[Job]
) -> tuple[str, bytes, Image.Image]:
    """Return the type, bytes and pixels of the best picture under `job_type.largest` bytes."""
    data = b"" if kind == "jpg" else _png(image)
    if data and len(data) < job_type.largest:
        return "png", data, image
    while True:
        for quality in _QUALITIES:
            data = _jpeg(image, quality)
            if len(data) < job_type.largest:
                return "jpg", data, image
        if max(image.size) < _LEAST:
            return "jpg", data, image
        image = image.copy()
        longest = round(max(image.size) * _SMALLER)
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", icc_profile=image.info.get("icc_profile"))
    return file.getvalue()


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file, profile = io.BytesIO(), image.info.get("icc_profile")
    if image.mode in {"LA", "RGBA"}:
        # Transparent parts become white, as on a web page.
        whole = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(whole, mask=whole.getchannel("A"))
    # No subsampling, which would lose colour of the face.
    image.save(file, "JPEG", quality=quality, subsampling=0, icc_profile=profile)
    return file.getvalue()


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:,.1f} MiB"
