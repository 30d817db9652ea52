"""Read the EXIF orientation of a JPEG, without Pillow, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

_HEAD: Final = 256 * 1024
"""Bytes that are read; EXIF data is in one of the first segments, of 64 KiB at most."""
_START: Final = b"\xff\xd8"
_APP1: Final = 0xE1
_SCAN: Final = frozenset({0xDA, 0xD9})
"""Markers of the pixels and of the end (ITU T.81, B.1.1.3)."""
_EXIF: Final = b"Exif\0\0"
_FILL: Final = 0xFF
_ORIENTATION: Final = 0x0112
_TURNED: Final = range(2, 9)
"""The orientations that are not upright (CIPA DC-008, 4.6.4)."""


def is_turned(path: Path) -> bool:
    """Return whether a file is a JPEG that its EXIF orientation turns or mirrors.

    False for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return False
    return orientation(head) in _TURNED


def orientation(head: bytes) -> int:
    """Return the EXIF orientation of the JPEG that begins with `head`; 1 if it has none."""
    at = len(_START)
    if not head.startswith(_START):
        return 1
    while at + 4 <= len(head) and head[at] == _FILL:
        marker = head[at + 1]
        if marker == _FILL:
            at += 1
            continue
        if marker in _SCAN:
            break
        length = int.from_bytes(head[at + 2 : at + 4], "big")
        body = head[at + 4 : at + 2 + length]
        if marker == _APP1 and body.startswith(_EXIF):
            return _of_tiff(body.removeprefix(_EXIF))
        at += 2 + length
    return 1


def _of_tiff(data: bytes) -> int:
    """Return the orientation in the first directory of EXIF data (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    start = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[start : start + 2], order)
    for number in range(count):
        at = start + 2 + 12 * number
        entry = data[at : at + 12]
        if len(entry) < 12:  # noqa: PLR2004 - the length of an entry
            break
        if int.from_bytes(entry[:2], order) == _ORIENTATION:
            return int.from_bytes(entry[8:10], order)
    return 1
