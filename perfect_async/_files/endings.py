"""Whether a picture, a video or a zip has its end: one that was cut short does not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import BinaryIO, Final

_BLOCK: Final = 64 * 1024
_MOST_SEGMENTS: Final = 100_000
"""More segments than any picture has."""

# Markers of a JPEG (ISO/IEC 10918-1, table B.1) that have no length, and the two that matter here.
_BARE: Final = {0x01, *range(0xD0, 0xD9)}
_FILL: Final = 0xFF
_END_OF_IMAGE: Final = 0xD9
_START_OF_SCAN: Final = 0xDA
_TWO: Final = 2
"""Bytes of a JPEG's marker, and of the length behind it, which counts itself."""
_CRC: Final = 4
"""Bytes behind a PNG's chunk."""
_BOX: Final = 8
"""Bytes of the head of a video's box, at least."""
_DIRECTORY_END: Final = 22
"""Bytes of the record at the end of a zip (APPNOTE.TXT, 4.3.16), without its comment."""
_LONGEST_COMMENT: Final = 65_535
# A scan ends at a marker; a stuffed zero and restart markers are part of it.
_SCAN_END: Final = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_CHUNK: Final = re.compile(rb"[A-Za-z]{4}")


def has_end(file: BinaryIO, kind: str) -> bool:
    """Return whether the picture in `file` is whole, as far as its format says where it ends.

    `kind` is its type, as a suffix. JPEG and PNG have an end marker, WebP a length, a zip a
    directory at its end; the boxes of a video fill it. A JPEG's segments are walked, since a
    thumbnail in one of them has an end marker too. A file that is not built as its standard says is
    judged by its last bytes. Other formats count as whole.
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
    """Go to the marker after a scan; False if the file ends before it."""
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
    """Look for the end of the central directory, and for the comment that it announces."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_COMMENT - _DIRECTORY_END))
    last = file.read()
    at = last.rfind(b"PK\x05\x06")
    comment = int.from_bytes(last[at + 20 : at + 22], "little")
    return at >= 0 and len(last) >= at + _DIRECTORY_END + comment


def _video_has_end(file: BinaryIO) -> bool:
    """Walk the boxes (ISO/IEC 14496-12, 4.2), which must end where the file does."""
    size, at = file.seek(0, os.SEEK_END), 0
    for _ in range(_MOST_SEGMENTS):
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            # The last box reaches to the end, wherever that is.
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
