"""Pictures that are objects of the program: bytes-like, binary files, and Pillow's images.

All of them become bytes when their job comes in, so that nothing changes them afterwards.
"""

from __future__ import annotations

from inspect import iscoroutine
from pathlib import PurePath
from typing import Final, cast

from perfect_async.errors import PictureRefused, quoted
from perfect_async.models import BinaryFile, PillowImage, Source

_PIECE: Final = 1024 * 1024


def file_name(source: Source) -> str | None:
    """Return the name of a binary file, where it has one."""
    name: object = getattr(source, "name", None) if isinstance(source, BinaryFile) else None
    return PurePath(name).name if isinstance(name, str) else None


def name_of(source: Source) -> str:
    """Return a name for messages."""
    match source:
        case PillowImage():
            return f"the image of {source.size[0]} x {source.size[1]} px"
        case BinaryFile():
            found = file_name(source)
            return "the file object" if found is None else f"the file object {quoted(found)}"
        case _:
            return "the picture"


def read_file(source: BinaryFile, most: int) -> bytes:
    """Read `source` to its end, once, and no more than one byte beyond `most`.

    Raises `PictureRefused` for one that is at its end, or that gives no bytes.
    """
    name = name_of(source)
    data = bytearray()
    while len(data) <= most:
        try:
            piece = cast("object", source.read(min(_PIECE, most + 1 - len(data))))
        except ValueError as exc:
            raise PictureRefused(f"{name} cannot be read: it is closed.") from exc
        if not isinstance(piece, bytes):
            what = "text" if isinstance(piece, str) else type(piece).__name__
            if iscoroutine(piece):
                # It would warn that it was never awaited.
                piece.close()
            raise PictureRefused(
                f"{name} gives {quoted(what)} instead of bytes: open it in binary mode, and pass "
                "no asynchronous file."
            )
        if not piece:
            break
        data += piece
    if not data:
        raise PictureRefused(
            f"{name} has nothing left to read: it is read once, from where it stands. Pass its "
            "bytes to use them again."
        )
    return bytes(data)
