"""Pictures that are Python objects: bytes-like objects, binary files and Pillow images.

Each is read to bytes when its job is submitted, so that later changes have no effect.
"""

from __future__ import annotations

from inspect import iscoroutine
from pathlib import PurePath
from typing import Final, cast

from perfect_async._files.names import file_name
from perfect_async.errors import PictureRefused, quoted
from perfect_async.models import BinaryFile, PillowImage, Source

_PIECE: Final = 1024 * 1024


def name_of(source: Source) -> str:
    """Return the name of a source for messages."""
    match source:
        case PillowImage():
            return f"the image of {source.size[0]} x {source.size[1]} px"
        case BinaryFile():
            found = file_name(source)
            if found is None:
                return "the file object"
            return f"the file object {quoted(PurePath(found).name)}"
        case _:
            return "the picture"


def read_file(source: BinaryFile, most: int) -> bytes:
    """Read `source` to its end, or to one byte more than `most`, which shows that it is too large.

    Raises `PictureRefused` for a file that is closed, at its end, or not binary.
    """
    name = name_of(source)
    data = bytearray()
    while len(data) <= most:
        try:
            piece = cast("object", source.read(min(_PIECE, most + 1 - len(data))))
        except ValueError as exc:
            raise PictureRefused(
                f"{name} cannot be read: it is closed.",
                reason="closed file",
                advice="keep the file open until the job has started, or pass its path",
            ) from exc
        if not isinstance(piece, bytes):
            what = "text" if isinstance(piece, str) else type(piece).__name__
            if iscoroutine(piece):
                # An unclosed coroutine would warn that it was never awaited.
                piece.close()
            raise PictureRefused(
                f"{name} returns {quoted(what)} instead of bytes.",
                reason="text file" if isinstance(piece, str) else "unusable",
                advice=(
                    'open it in binary mode: open(path, "rb")'
                    if isinstance(piece, str)
                    else "pass its path or its bytes; asynchronous files are not supported"
                ),
            )
        if not piece:
            break
        data += piece
    if not data:
        raise PictureRefused(
            f"{name} has nothing left to read: it is read once, from its current position.",
            reason="read already",
            advice="pass its path or its bytes to use it again",
        )
    return bytes(data)
