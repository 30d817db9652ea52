"""Detects pictures, videos and zips that were cut short, by their missing end."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import BinaryIO, Final

_BLOCK: Final = 64 * 1024
_MOST_SEGMENTS: Final = 100_000
"""A bound on the segments of a file; no picture has as many."""

# Markers of a JPEG (ISO/IEC 10918-1, table B.1) without a length, and two others.
_BARE: Final = {0x01, *range(0xD0, 0xD9)}
_FILL: Final = 0xFF
_END_OF_IMAGE: Final = 0xD9
_START_OF_SCAN: Final = 0xDA
_TWO: Final = 2
"""Bytes of a JPEG's marker, and of the length after it, which includes itself."""
_CRC: Final = 4
"""Bytes of the checksum after a PNG's chunk."""
_BOX: Final = 8
"""The fewest bytes of the head of a video's box."""
_DIRECTORY_END: Final = 22
"""Bytes of the record at the end of a zip (APPNOTE.TXT, 4.3.16), without its comment."""
_LONGEST_COMMENT: Final = 65_535
# A scan ends at a marker; stuffed zeros and restart markers are part of the scan.
_SCAN_END: Final = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_CHUNK: Final = re.compile(rb"[A-Za-z]{4}")


def has_end(file: BinaryIO, kind: str) -> bool:
    """Return whether the picture in `file` is whole, as far as its format marks its end.

    `kind` is the type as a suffix. JPEG and PNG have an end marker, WebP has a length, a zip has a
    directory at its end, and the boxes of a video fill the file. The segments of a JPEG are walked,
    since a thumbnail in one of them has an end marker, too. If a file does not follow its standard,
    its last bytes decide. Files of other formats count as whole.
    """
    ends: dict[str, Callable[[BinaryIO], bool]] = {
        "jpg": _jpeg_has_end,
        "png": _png_has_end,
        "webp": _webp_has_end,
        "zip": _zip_has_end,
        "mp4": _video_has_end,
        "mov": _video_has_end,
    }
    return kind not in ends or ends[kind](file)


def _jpeg_has_end(file: BinaryIO) -> bool:
    file.seek(2)
    for _ in range(_MOST_SEGMENTS):
        marker = file.read(_TWO)
        if len(marker) < _TWO and not marker.strip(b"\xff"):
            return False
        if marker[0] != _FILL:
            break
        code = marker[1]
        if code == _END_OF_IMAGE:
            return True
        if code == _FILL:
            file.seek(-1, os.SEEK_CUR)
        elif code not in _BARE:
            length = int.from_bytes(file.read(_TWO), "big")
            if length < _TWO:
                break
            file.seek(length - _TWO, os.SEEK_CUR)
            if code == _START_OF_SCAN and not _skip_scan(file):
                return False
    return _tail(file).rstrip(b"\0").endswith(b"\xff\xd9")


def _skip_scan(file: BinaryIO) -> bool:
    """Seek to the marker after a scan, and return whether there is one."""
    kept = b""
    while block := file.read(_BLOCK):
        data = kept + block
        if found := _SCAN_END.search(data):
            file.seek(found.end() - _TWO - len(data), os.SEEK_CUR)
            return True
        kept = b"\xff" if data.endswith(b"\xff") else b""
    return False


def _png_has_end(file: BinaryIO) -> bool:
    file.seek(8)
    for _ in range(_MOST_SEGMENTS):
        length, name = int.from_bytes(file.read(4), "big"), file.read(4)
        if not _CHUNK.fullmatch(name):
            if not name:
                return False
            break
        if name == b"IEND":
            return len(file.read(_CRC)) == _CRC
        file.seek(length + _CRC, os.SEEK_CUR)
    return _tail(file)[-8:-4] == b"IEND"


def _webp_has_end(file: BinaryIO) -> bool:
    file.seek(4)
    length = int.from_bytes(file.read(4), "little")
    return file.seek(0, os.SEEK_END) >= length + 8


def _zip_has_end(file: BinaryIO) -> bool:
    """Return whether the end of the central directory is there, with its whole comment."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_COMMENT - _DIRECTORY_END))
    last = file.read()
    at = last.rfind(b"PK\x05\x06")
    comment = int.from_bytes(last[at + 20 : at + 22], "little")
    return at >= 0 and len(last) >= at + _DIRECTORY_END + comment


def _video_has_end(file: BinaryIO) -> bool:
    """Return whether the boxes (ISO/IEC 14496-12, 4.2) end at the end of the file."""
    size, at = file.seek(0, os.SEEK_END), 0
    for _ in range(_MOST_SEGMENTS):
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            # The last box may have no length and extend to the end of the file.
            return len(head) >= _BOX
        if length < _BOX:
            return False
        at += length
        if at >= size:
            return at == size
    return True


def _tail(file: BinaryIO) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
    return file.read()
