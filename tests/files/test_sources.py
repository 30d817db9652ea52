"""Pictures that are Python objects: bytes-like objects and files, read once."""

import io
import os
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from perfect_async._files.images import ImageFile, inspect
from perfect_async._files.names import stem
from perfect_async._files.sources import read_file
from perfect_async.errors import PictureRefused
from perfect_async.models import BinaryFile, FileId, Smile, Source
from perfect_async.sandbox import portrait
from tests.support.sources import ReadablePath

FACE = portrait(1, size=48)


async def sent(source: Source) -> bytes:
    """Return the bytes that would be uploaded of a source."""
    picture = await inspect(source, Smile)
    assert isinstance(picture, ImageFile)
    assert picture.path is None
    return b"".join([piece async for piece in picture.chunks()])


async def test_bytes_like_objects_are_copied() -> None:
    """A buffer is copied when the job is submitted, so that the program may reuse it."""
    buffer = bytearray(FACE)
    assert FACE == await sent(memoryview(buffer))
    picture = await inspect(buffer, Smile)
    assert picture is not None
    buffer[:] = bytes(len(buffer))
    assert FACE == b"".join([piece async for piece in picture.chunks()])
    assert FACE == await sent(memoryview(bytes(1) + FACE)[1:])


async def test_binary_files_are_read_from_their_position(tmp_path: Path) -> None:
    """A file is read from its current position to its end, and stays open."""
    path = tmp_path / "me.jpg"
    path.write_bytes(b"header" + FACE)
    with path.open("rb") as file:
        file.seek(6)
        assert FACE == await sent(file)
        assert not file.closed
    assert FACE == await sent(io.BytesIO(FACE))
    with tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(FACE)
        spooled.seek(0)
        assert FACE == await sent(spooled)


class Slow(io.RawIOBase):
    """A file that returns a few bytes at a time, like a socket."""

    def __init__(self) -> None:
        self.rest = FACE

    def read(self, size: int = -1, /) -> bytes:
        piece, self.rest = self.rest[: min(size, 100)], self.rest[min(size, 100) :]
        return piece


async def test_a_short_read_is_not_the_end() -> None:
    """A file that returns a few bytes at a time is read to its end."""
    assert FACE == await sent(Slow())


async def test_a_file_is_read_once() -> None:
    """The second read finds nothing, and the error says why."""
    file = io.BytesIO(FACE)
    await sent(file)
    with pytest.raises(PictureRefused, match="nothing left to read: it is read once"):
        await sent(file)


async def test_reading_is_bounded() -> None:
    """A file without an end is not read forever."""

    class Endless:
        count = 0

        def read(self, size: int = -1, /) -> bytes:
            self.count += size
            return bytes(size)

    endless = Endless()
    with pytest.raises(PictureRefused, match=r"the file object has 10\.0 MiB"):
        await inspect(endless, Smile)
    assert Smile.largest + 1 == endless.count


@pytest.mark.parametrize("kind", ["text", "closed", "async", "nothing"])
async def test_files_that_are_not_binary_are_refused(kind: str, tmp_path: Path) -> None:
    """A text file, a closed file and an asynchronous file are refused with the reason."""

    class Async:
        async def read(self, size: int = -1) -> bytes:
            return FACE[:size]

    class Nothing:
        def read(self, size: int = -1) -> None: ...

    closed = io.BytesIO(FACE)
    closed.close()
    sources = {"text": io.StringIO("x"), "closed": closed, "async": Async(), "nothing": Nothing()}
    expected = {"text": "'text'", "closed": "closed", "async": "coroutine", "nothing": "NoneType"}
    with pytest.raises(PictureRefused, match=expected[kind]):
        await inspect(sources[kind], Smile)  # type: ignore[arg-type]


def test_errors_name_a_file_object(tmp_path: Path) -> None:
    """An error has the name of a file object without its folders."""
    path = tmp_path / "me.jpg"
    path.touch()
    with path.open("rb") as file, pytest.raises(PictureRefused, match=r"file object 'me\.jpg'"):
        read_file(file, 10)


async def test_another_type_of_source_is_refused() -> None:
    """The error lists the types of sources."""
    with pytest.raises(PictureRefused, match="a binary file, a Pillow image"):
        await inspect(7, Smile)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"abc", "<3 bytes>"),
        (bytearray(b"abc"), "<3 bytes>"),
        (memoryview(b"abcd").cast("I"), "<4 bytes>"),
        (io.BytesIO(b"abc"), "<file object>"),
        (Image.new("RGB", (4, 3)), "<4 x 3 px, RGB>"),
        (FileId("f"), "FileId(value='f')"),
        ("https://a.example/me.jpg?sig=s", "'https://a.example/me.jpg'"),
    ],
)
def test_the_repr_of_a_job_shows_its_source(source: Source, expected: str) -> None:
    """The repr of a job shows neither pixels nor signatures."""
    assert f"Smile(source={expected}, " in repr(Smile(source))


async def test_a_path_object_with_read_is_a_path(tmp_path: Path) -> None:
    """It is opened again at each upload, as every path is, and gives its name to its results."""
    path = tmp_path / "me.jpg"
    path.write_bytes(FACE)
    source = ReadablePath(path)
    assert isinstance(source, BinaryFile)

    picture = await inspect(source, Smile)

    assert isinstance(picture, ImageFile)
    assert path == picture.path
    assert "me" == stem(Smile(source))
    assert f"Smile(source={source!r}, " in repr(Smile(source))


def test_results_are_named_like_their_sources(tmp_path: Path) -> None:
    """A file with a name gives it to its results; other results are called "picture"."""
    path = tmp_path / "me.jpg"
    path.touch()
    with path.open("rb") as file:
        assert isinstance(file, BinaryFile)
        assert "me" == stem(Smile(file))
    with io.FileIO(os.fsencode(path)) as file:
        assert "me" == stem(Smile(file))
    with tempfile.TemporaryFile() as unnamed:
        assert "picture" == stem(Smile(unnamed))
    for source in (bytearray(b"a"), memoryview(b"a"), io.BytesIO(), Image.new("L", (1, 1))):
        assert "picture" == stem(Smile(source))
