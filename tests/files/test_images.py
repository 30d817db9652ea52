"""Pictures: inspected, refused early, and streamed from the disk."""

import asyncio
import errno
import hashlib
import io
import os
import struct
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import anyio
import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from perfect_async._api.tasks import FileFacts
from perfect_async._files import images
from perfect_async._files.images import PIECE, ImageFile, Kind, inspect, sniff
from perfect_async.errors import JobRefused, PictureRefused
from perfect_async.models import Avatar, Feature, FileId, Job, Smile, Source
from tests.support.virtual_time import hanging, run

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are files on POSIX")


def drawn(kind: str, width: int = 40, height: int = 30, **options: object) -> bytes:
    """Make a picture with Pillow."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, {"jpg": "jpeg"}.get(kind, kind), **options)
    return file.getvalue()


def box(name: bytes, *content: bytes) -> bytes:
    """Make a box of an ISO media file."""
    payload = b"".join(content)
    return struct.pack(">L4s", 8 + len(payload), name) + payload


def size_box(width: int, height: int) -> bytes:
    """Make the box that holds the size of an item."""
    return box(b"ispe", struct.pack(">LLL", 0, width, height))


def heic(
    width: int = 40, height: int = 30, brands: bytes = b"heic\0\0\0\0mif1heic", before: bytes = b""
) -> bytes:
    """Make a HEIC like phones do: a tile, the picture, a rotation, a thumbnail, and no pixels."""
    primary = box(b"pitm", struct.pack(">LH", 0, 7))
    items = (size_box(1, 1), size_box(width, height), box(b"irot", b"\x01"), size_box(1, 1))
    # Item 7 has the properties 2 and 3: its size and a rotation.
    owners = box(b"ipma", struct.pack(">LLHBBB", 0, 1, 7, 2, 2, 3))
    meta = box(b"meta", bytes(4), primary, box(b"iprp", box(b"ipco", *items), owners))
    return box(b"ftyp", brands) + before + meta + box(b"mdat", bytes(100))


JPG, PNG, HEIC = drawn("jpg"), drawn("png"), heic()


async def gathered(picture: ImageFile | None) -> bytes:
    """Read all chunks of a picture."""
    assert picture is not None
    return b"".join([piece async for piece in picture.chunks()])


def opened() -> set[Path]:
    """Return the files that this process has open, if the system shows them."""
    handles = Path("/proc/self/fd")
    return (
        {each.readlink() for each in handles.iterdir() if each.is_symlink()}
        if handles.exists()
        else set()
    )


async def inspected(source: Source, job_type: type[Job] = Smile) -> ImageFile:
    """Inspect a source that must be accepted as a picture."""
    picture = await inspect(source, job_type)
    assert picture is not None
    return picture


async def refusal(source: Source, job_type: type[Job] = Smile) -> str:
    """Inspect a source that must be refused, and return the message."""
    with pytest.raises(PictureRefused) as caught:
        await inspect(source, job_type)
    return caught.value.message


class TestInspecting:
    """Accepted pictures and their facts."""

    @pytest.mark.parametrize(
        ("data", "kind", "content_type"),
        [(JPG, "jpg", "image/jpeg"), (PNG, "png", "image/png"), (HEIC, "heic", "image/heic")],
    )
    async def test_a_picture_is_known_by_its_bytes(
        self, tmp_path: Path, data: bytes, kind: str, content_type: str
    ) -> None:
        """Type, size, digest and dimensions come from the bytes, not from the name."""
        path = tmp_path / "Zoë.gif"
        path.write_bytes(data)

        picture = await inspected(path)

        assert FileFacts(content_type, f"Zoe.{kind}", len(data)) == picture.facts
        assert (kind, 40, 30) == (picture.kind, picture.width, picture.height)
        assert hashlib.sha256(data).hexdigest() == picture.digest
        assert data == await gathered(picture)

    @pytest.mark.parametrize("data", [JPG, PNG, HEIC])
    async def test_bytes_are_inspected_like_a_file(self, tmp_path: Path, data: bytes) -> None:
        """The same picture as bytes differs only in its name."""
        path = tmp_path / "me.x"
        path.write_bytes(data)

        from_bytes, from_file = await inspected(data), await inspected(str(path))

        assert f"picture.{from_bytes.kind}" == from_bytes.facts.file_name
        assert attrs.evolve(from_file, facts=from_bytes.facts) == from_bytes
        assert data == await gathered(from_bytes)

    async def test_the_repr_shows_no_bytes(self) -> None:
        """The repr of a picture shows its facts, but neither bytes nor path."""
        assert "_source" not in repr(await inspected(JPG))
        assert len(repr(await inspected(JPG))) < 400

    @pytest.mark.parametrize(
        ("expected", "name"),
        [
            ("a.jpg", "a.jpg"),
            ("hidden.jpg", ".hidden"),
            ("_con.jpg", "con.png"),
            ("picture.jpg", "人.jpg"),
            ("a-b-c.jpg", "a b\n\x1bc.jpg"),
            ("x" * 75 + ".jpg", "x" * 200 + ".jpg"),
        ],
    )
    async def test_a_cleaned_name_is_sent(self, tmp_path: Path, expected: str, name: str) -> None:
        """The sent name is ASCII, at most 80 characters, with the true suffix."""
        (tmp_path / name).write_bytes(JPG)

        assert expected == (await inspected(tmp_path / name)).facts.file_name

    async def test_a_progressive_jpeg_with_large_metadata_is_understood(self) -> None:
        """The dimensions may come after 60 kB of EXIF and 900 kB of colour profile."""
        exif = Image.Exif()
        exif[0x010E] = "d" * 60_000
        data = drawn(
            "jpg", 123, 45, progressive=True, exif=exif.tobytes(), icc_profile=bytes(900_000)
        )

        picture = await inspected(data)

        assert data.index(b"\xff\xc2") > 950_000
        assert (123, 45) == (picture.width, picture.height)

    async def test_the_orientation_does_not_matter(self) -> None:
        """A picture on its side has its stored width and height; the long side is the same."""
        exif = Image.Exif()
        exif[0x0112] = 6

        picture = await inspected(drawn("jpg", 400, 30, exif=exif.tobytes()))

        assert (400, 30) == (picture.width, picture.height)

    @pytest.mark.parametrize("before", [b"", box(b"free", bytes(70_000)), box(b"mdat", bytes(9))])
    async def test_a_heic_has_the_size_of_its_largest_item(self, before: bytes) -> None:
        """Tiles and thumbnails do not count, and neither does the order of the boxes."""
        picture = await inspected(heic(4032, 3024, before=before))

        assert (4032, 3024) == (picture.width, picture.height)

    async def test_the_boxes_of_a_real_encoder_are_understood(self) -> None:
        """A rotated picture of another encoder is understood, with HEIC's brands put in."""
        exif = Image.Exif()
        exif[0x0112] = 6
        try:
            data = drawn("avif", 64, 48, exif=exif.tobytes())
        except (KeyError, OSError):
            pytest.skip("this Pillow writes no avif")
        end = int.from_bytes(data[:4], "big")
        assert b"irot" in data

        picture = await inspected(data[:end].replace(b"avif", b"heic") + data[end:])

        assert (64, 48) == (picture.width, picture.height)

    async def test_a_relative_path_is_kept_absolute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path is relative to the working directory of the inspection."""
        (tmp_path / "me.jpg").write_bytes(JPG)
        monkeypatch.chdir(tmp_path)
        picture = await inspected("me.jpg")

        monkeypatch.chdir("/")

        assert JPG == await gathered(picture)

    async def test_path_objects_of_any_kind_are_paths(self, tmp_path: Path) -> None:
        """A link is followed, and any object with `__fspath__` is a path, also of bytes."""
        (tmp_path / "me.jpg").write_bytes(JPG)
        (tmp_path / "link").symlink_to("me.jpg")

        class Entry:
            def __fspath__(self) -> bytes:
                return os.fsencode(tmp_path / "link")

        assert "link.jpg" == (await inspected(Entry())).facts.file_name  # type: ignore[arg-type]

    async def test_urls_and_file_ids_are_not_inspected(self) -> None:
        """A URL and a file id have no picture to inspect."""
        assert None is await inspect("https://example.com/me.jpg", Smile)
        assert None is await inspect(FileId("abc"), Smile)

    async def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        """Inspecting and streaming 9 MiB holds a few blocks at a time."""
        path = tmp_path / "large.jpg"
        path.write_bytes(JPG + bytes(9 * 1024 * 1024))
        tracemalloc.start()
        try:
            picture = await inspected(path)
            async for _ in picture.chunks():
                pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert peak < 4 * 1024 * 1024


class TestRefusing:
    """Pictures that are refused before anything is sent."""

    @pytest.mark.parametrize(
        ("found", "data"),
        [
            ("gif", drawn("gif")),
            ("webp", drawn("webp")),
            ("tiff", drawn("tiff")),
            ("bmp", drawn("bmp")),
            ("avif", heic(brands=b"avif\0\0\0\0avifmif1miaf")),
            ("avif", heic(brands=b"mif1\0\0\0\0mif1avif")),
            ("pdf", b"%PDF-1.7 ..."),
            ("of an unknown type", b"<html>not a picture</html>"),
            ("of an unknown type", b"\0"),
            ("of an unknown type", b"\xff\xd8"),
            ("mp4", box(b"ftyp", b"isom\0\0\0\0isommp42")),
            ("of an unknown type", heic(brands=b"mif1\0\0\0\0mif1vvic")),
        ],
    )
    async def test_a_format_is_refused_by_its_first_bytes(
        self, tmp_path: Path, found: str, data: bytes
    ) -> None:
        """The bytes decide, not the name, and the message names their type."""
        path = tmp_path / "me.jpg"
        path.write_bytes(data)

        expected = f"is {found} by its first bytes; ai-smile takes jpg, png, heic."
        assert (await refusal(path)).endswith(expected)
        assert (await refusal(data)).endswith(expected)

    async def test_features_differ_in_their_formats(self) -> None:
        """An avatar does not accept HEIC."""
        assert "takes jpg, png." in await refusal(HEIC, Avatar)
        assert "png" == (await inspected(PNG, Avatar)).kind

    async def test_a_format_without_a_content_type_is_refused(self) -> None:
        """A feature cannot accept a format without a known content type."""

        class Document(Smile):
            formats = ("pdf", "jpg", "png")

        assert "is pdf" in await refusal(b"%PDF-1.7", Document)

    async def test_ten_mebibytes_are_refused(self, tmp_path: Path) -> None:
        """One byte less is accepted, from a file and from bytes."""
        path = tmp_path / "me.jpg"
        limit = 10 * 1024 * 1024
        path.write_bytes(JPG.ljust(limit, b"\0"))
        expected = "has 10.0 MiB; ai-smile takes less than 10.0 MiB."
        assert (await refusal(path)).endswith(expected)
        assert (await refusal(path.read_bytes())).endswith(expected)

        os.truncate(path, limit - 1)
        assert limit - 1 == (await inspected(path)).facts.file_size

    async def test_a_huge_file_is_refused_unread(self, tmp_path: Path) -> None:
        """A sparse file of a terabyte is refused by its size alone."""
        path = tmp_path / "me.jpg"
        path.touch()
        try:
            os.truncate(path, 1024**4)
        except OSError:
            pytest.skip("this file system knows no such files")

        assert "has 1,048,576.0 MiB" in await refusal(path)

    @pytest.mark.parametrize("kind", ["jpg", "png", "heic"])
    async def test_the_long_side_is_limited(self, kind: str) -> None:
        """4096 px are accepted, 4097 are not, in both orientations."""
        make: Callable[[int, int], bytes] = (
            heic if kind == "heic" else lambda width, height: drawn(kind, width, height)
        )

        assert 4096 == (await inspected(make(4096, 205))).width
        assert 4096 == (await inspected(make(205, 4096))).height
        for width, height in ((4097, 1), (1, 4097)):
            message = await refusal(make(width, height))
            assert f"is {width} x {height} px; the long side may have 4096 px" in message

    @pytest.mark.parametrize("kind", ["jpg", "png", "heic"])
    async def test_a_smile_needs_room_for_a_face(self, kind: str) -> None:
        """A smile's picture may be 20 times as long as wide; an avatar's may have any shape."""
        make: Callable[[int, int], bytes] = (
            heic if kind == "heic" else lambda width, height: drawn(kind, width, height)
        )

        assert 2000 == (await inspected(make(2000, 100))).width
        assert 100 == (await inspected(make(100, 2000))).width
        for width, height in ((2000, 99), (99, 2000), (2001, 100)):
            message = await refusal(make(width, height))
            assert f"is {width} x {height} px, too narrow for a face" in message
            least = 101 if width == 2001 else 100
            assert message.endswith(f"its short side must have at least {least} px.")
        if kind != "heic":
            assert 99 == (await inspected(make(99, 2000), Avatar)).width

    @pytest.mark.parametrize(("width", "height"), [(0, 30), (40, 0), (0, 0)])
    async def test_a_picture_without_extent_is_refused(self, width: int, height: int) -> None:
        """A header with a width or height of 0 is refused."""
        png = bytearray(PNG)
        png[16:24] = struct.pack(">LL", width, height)

        no_size = (
            heic()
            .replace(size_box(40, 30), size_box(width, height))
            .replace(size_box(1, 1), size_box(width, height))
        )
        for data in (bytes(png), no_size):
            assert "has no width and height" in await refusal(data)

    @pytest.mark.parametrize(
        "meta",
        [
            b"",
            box(b"meta"),
            box(b"meta", bytes(4)),
            box(b"meta", bytes(4), box(b"iprp")),
            box(b"meta", bytes(4), box(b"iprp", box(b"ipco", box(b"ispe")))),
            box(b"meta", bytes(4), box(b"iprp", box(b"ipco", box(b"ispe", bytes(11))))),
        ],
    )
    async def test_a_heic_without_a_size_is_refused(self, meta: bytes) -> None:
        """Each of its boxes may be missing or too short."""
        message = await refusal(box(b"ftyp", b"heic\0\0\0\0heic") + meta)

        assert "has no width and height" in message

    async def test_boxes_may_have_long_sizes_or_none(self) -> None:
        """A size of eight bytes is read, and a box without a size ends with the file."""
        meta = heic()[24:]
        meta = meta[: int.from_bytes(meta[:4], "big")]
        ftyp = box(b"ftyp", b"heic\0\0\0\0mif1heic")
        large = struct.pack(">L4sQ", 1, b"mdat", 16 + 5) + bytes(5)
        endless = bytes(4) + meta[4:]

        for data in (ftyp + large + meta, ftyp + endless, ftyp + large + endless):
            picture = await inspected(data)
            assert (40, 30) == (picture.width, picture.height)

    @pytest.mark.parametrize("data", [JPG, PNG, HEIC])
    async def test_a_header_cut_short_is_refused(self, data: bytes) -> None:
        """Any beginning of a picture is refused or has the right size, and raises nothing else."""
        sizes = set[tuple[int, int]]()
        for length in range(1, min(len(data), 700)):
            try:
                picture = await inspected(data[:length])
            except PictureRefused:
                assert not sizes
            else:
                sizes.add((picture.width, picture.height))

        assert {(40, 30)} == sizes

    async def test_empty_sources_are_refused(self, tmp_path: Path) -> None:
        """An empty file, no bytes and an empty path are each named as such."""
        (tmp_path / "me.jpg").touch()

        assert (await refusal(tmp_path / "me.jpg")).endswith("me.jpg' is empty.")
        assert "<0 bytes> is empty." == await refusal(b"")
        assert "the path of the picture is empty." == await refusal("")

    @pytest.mark.parametrize(
        ("name", "data", "reason"),
        [
            ("empty.jpg", b"", "0 bytes"),
            ("other.jpg", drawn("webp"), "webp"),
            ("text.jpg", b"hello", "no picture"),
            ("wide.png", drawn("png", 5000, 2500), "too many pixels"),
            ("line.png", drawn("png", 640, 10), "too narrow"),
            ("large.jpg", drawn("jpg") + bytes(10 * 1024 * 1024), "too large"),
            ("gone.jpg", None, "missing"),
        ],
    )
    async def test_the_reason_is_one_or_two_words(
        self, tmp_path: Path, name: str, data: bytes | None, reason: str
    ) -> None:
        """Refusals are counted by their short reason."""
        if data is not None:
            (tmp_path / name).write_bytes(data)

        with pytest.raises(PictureRefused) as caught:
            await inspect(tmp_path / name, Smile)
        assert reason == caught.value.reason

    async def test_a_video_has_its_own_limit(self, tmp_path: Path) -> None:
        """A video of 100 MiB is too large for a feature that accepts videos."""
        path = tmp_path / "film.mp4"
        path.write_bytes(box(b"ftyp", b"isom\0\0\0\0mp41"))
        os.truncate(path, 100 * 1024 * 1024)

        with pytest.raises(PictureRefused, match=r"has 100\.0 MiB") as caught:
            await inspect(path, Feature("video-sr", src=path))
        assert ("too large", False) == (caught.value.reason, caught.value.fittable)

    async def test_a_path_without_a_file_is_refused(self, tmp_path: Path) -> None:
        """A folder, a missing name, a name below a file and an impossible name are refused."""
        (tmp_path / "me.jpg").write_bytes(JPG)

        assert "is a folder." in await refusal(tmp_path)
        assert "No such file" in await refusal(tmp_path / "you.jpg")
        assert "Not a directory" in await refusal(tmp_path / "me.jpg" / "x")
        assert "too long" in await refusal("x" * 5000)
        assert "is not a valid path" in await refusal("a\0b.jpg")
        assert "is not a valid path" in await refusal("a\ud800b.jpg")
        assert "No such file" in await refusal("~/me.jpg")

    async def test_messages_stay_on_one_short_line(self) -> None:
        """A hostile path can neither forge a log line nor fill the log."""
        message = await refusal("\x1b[31m\nERROR: " + "x" * 1000)

        assert message.isprintable()
        assert len(message) < 400

    @POSIX
    @pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/tty"])
    async def test_devices_are_refused(self, path: str) -> None:
        """A device is never opened."""
        assert f"'{path}' is not a regular file." == await refusal(path)

    @POSIX
    async def test_a_pipe_does_not_hang(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pipe is refused, also if it replaced a file between the check and the opening."""
        pipe = tmp_path / "pipe.jpg"
        os.mkfifo(pipe)
        assert "is not a regular file" in await refusal(pipe)

        monkeypatch.setattr(Path, "stat", lambda self: SimpleNamespace(st_mode=0o100644))
        assert "is not a regular file" in await refusal(pipe)

    async def test_an_unreadable_file_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message has the system's text without the errno."""
        (tmp_path / "me.jpg").write_bytes(JPG)

        def refuse(*args: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)

        assert (await refusal(tmp_path / "me.jpg")).endswith("cannot be read: Permission denied.")

    async def test_a_file_that_changes_while_it_is_read_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file whose size changes while it is read is still being written."""
        path = tmp_path / "me.jpg"
        path.write_bytes(JPG)
        for size in (len(JPG) - 1, len(JPG) + 1):
            monkeypatch.setattr(
                os, "fstat", lambda _, size=size: SimpleNamespace(st_mode=0o100644, st_size=size)
            )
            with pytest.raises(PictureRefused, match=r"changed while it was read\..*try again"):
                await inspect(path, Smile)

    @pytest.mark.parametrize(
        "source",
        [None, 7, [JPG], {"a": JPG}, object()],
    )
    async def test_other_types_are_refused(self, source: object) -> None:
        """The message names the type of the source and the accepted types."""
        with pytest.raises(PictureRefused) as caught:
            await inspect(source, Smile)  # type: ignore[arg-type]

        assert f"'{type(source).__name__}'" in caught.value.message
        assert "pass a path, bytes" in caught.value.hint

    @pytest.mark.parametrize(
        "url", ["ftp://example.com/a", "file:///etc/passwd", "https://u:p@example.com/", "data:,x"]
    )
    async def test_only_plain_web_urls_are_sent(self, url: str) -> None:
        """Other schemes and credentials are refused, and the message shows no password."""
        assert "u:p" not in await refusal(url)

    def test_a_refused_picture_is_a_refused_job(self) -> None:
        """`except JobRefused` also catches `PictureRefused`."""
        assert issubclass(PictureRefused, JobRefused)


class TestSniffing:
    """Types by the first bytes."""

    @pytest.mark.parametrize(
        ("expected", "brands"),
        [
            ("heic", b"heic\0\0\0\0mif1heic"),
            ("heic", b"heix\0\0\0\0mif1heix"),
            ("heic", b"hevc\0\0\0\0msf1hevc"),
            ("heic", b"heim\0\0\0\0"),
            ("heic", b"mif1\0\0\0\0mif1heic"),
            ("heic", b"msf1\0\0\0\0hevc"),
            ("heic", b"mif1\0\0\0\0mif1miaf"),
            ("heic", b"MiHE\0\0\0\0mif1heic"),
            ("avif", b"avif\0\0\0\0mif1miafMA1B"),
            ("avif", b"avis\0\0\0\0avifmsf1"),
            ("avif", b"mif1\0\0\0\0avifmiaf"),
            ("avif", b"MA1B\0\0\0\0mif1avif"),
            (None, b"mif1\0\0\0\0mif1avci"),
            ("mp4", b"isom\0\0\0\0mp41"),
            ("mov", b"qt  \0\0\0\0qt  "),
            (None, b"3gp4\0\0\0\x003gp4"),
            (None, b"crx \0\0\0\1crx isom"),
            (None, b""),
        ],
    )
    def test_brands_decide_the_codec(self, expected: str | None, brands: bytes) -> None:
        """HEIC and AVIF share their boxes and `mif1`; the other brands decide."""
        assert expected == sniff(box(b"ftyp", brands))

    def test_brands_end_with_their_box(self) -> None:
        """Bytes after the box and a brand that is cut in half do not count."""
        ftyp = box(b"ftyp", b"mif1\0\0\0\0mif1")

        assert "heic" == sniff(ftyp + b"avif")
        assert "heic" == sniff(struct.pack(">L", 2**31) + ftyp[4:] + b"avi")

    @pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp", "tiff", "bmp", "avif"])
    def test_files_of_pillow_are_recognised(self, kind: str) -> None:
        """Real files of each type are recognised."""
        try:
            data = drawn(kind)
        except (KeyError, OSError):
            pytest.skip(f"this Pillow writes no {kind}")

        assert kind == sniff(data[: images.HEAD])

    @given(st.binary(max_size=80))
    @example(b"\0\0\0\x0cftyp")
    @example(b"RIFF")
    @example(b"PK\x05\x06")
    def test_any_bytes_have_an_answer(self, head: bytes) -> None:
        """Sniffing never raises."""
        assert sniff(head) in {
            "jpg",
            "png",
            "heic",
            "gif",
            "webp",
            "avif",
            "tiff",
            "bmp",
            "pdf",
            "zip",
            None,
        }


def inspect_bytes(data: bytes, job_type: type[Job] = Smile) -> ImageFile | None:
    """Inspect hostile bytes without a thread; return None if they are refused."""
    try:
        return images._look_at_bytes(data, job_type)
    except PictureRefused:
        return None


class Counting(io.BytesIO):
    """Bytes that count how many of them are read."""

    reads = 0
    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.reads += 1
        self.taken += len(data)
        return data


names = st.sampled_from([b"meta", b"iprp", b"ipco", b"ipma", b"pitm", b"ispe", b"iloc", b"free"])
sizes = st.sampled_from([0, 1, 7, 8, 9, 16, 2**31, 2**32 - 1]) | st.integers(0, 200)
hostile_boxes = st.lists(
    st.tuples(sizes, names, st.binary(max_size=40)).map(
        lambda parts: struct.pack(">L4s", *parts[:2]) + parts[2]
    ),
    max_size=12,
).map(b"".join)


class TestHostilePictures:
    """Bytes that are meant to harm the program."""

    @given(
        st.sampled_from(
            [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"]
        ),
        st.binary(max_size=300),
    )
    def test_noise_after_the_magic_is_refused_or_accepted(self, magic: bytes, rest: bytes) -> None:
        """Any bytes after the first ones give a picture within the limits or a refusal."""
        picture = inspect_bytes(magic + rest)

        assert picture is None or 1 <= max(picture.width, picture.height) <= 4096

    @given(
        st.sampled_from([JPG, PNG, HEIC]),
        st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    )
    def test_a_picture_with_changed_bytes_is_refused_or_accepted(
        self, data: bytes, changes: list[tuple[int, int]]
    ) -> None:
        """A picture with changed bytes raises nothing but a refusal."""
        broken = bytearray(data)
        for at, value in changes:
            broken[at % len(broken)] = value

        picture = inspect_bytes(bytes(broken))

        assert picture is None or min(picture.width, picture.height) >= 1

    @given(hostile_boxes)
    def test_the_search_in_boxes_ends(self, boxes: bytes) -> None:
        """Boxes that contain themselves, end beyond the file or have no size do not loop."""
        ftyp = box(b"ftyp", b"heic\0\0\0\0mif1heic")
        meta = struct.pack(">L4sL", 12 + len(boxes), b"meta", 0) + boxes

        for data in (ftyp + boxes, ftyp + meta, ftyp + meta + boxes):
            inspect_bytes(data)

    @pytest.mark.parametrize(
        "data",
        [
            # Garbage instead of a marker, which the library reads byte by byte.
            b"\xff\xd8\xff\xe0\0\x10" + bytes(9_000_000),
            # Fill bytes without an end.
            b"\xff\xd8" + b"\xff" * 9_000_000,
            # A million segments of two bytes.
            b"\xff\xd8" + b"\xff\xfe\0\x02" * 2_000_000,
            # A million empty boxes, on top and as properties.
            box(b"ftyp", b"heic\0\0\0\0heic") + box(b"free") * 1_000_000,
            box(b"ftyp", b"heic\0\0\0\0heic")
            + box(b"meta", bytes(4), box(b"iprp", box(b"ipco", box(b"free") * 1_000_000))),
            # A table of nine megabytes.
            box(b"ftyp", b"heic\0\0\0\0heic")
            + box(
                b"meta", bytes(4), box(b"iprp", box(b"ipma", b"\0\0\0\0\xff" + bytes(9_000_000)))
            ),
        ],
        ids=["garbage", "fill", "segments", "boxes", "properties", "table"],
    )
    def test_reading_a_hostile_header_is_bounded(self, data: bytes) -> None:
        """Of a header without an end only a bounded part is read."""
        file = Counting(data)

        kind: Kind = "jpg" if data.startswith(b"\xff\xd8") else "heic"
        assert max(images._dimensions(file, kind, len(data))) <= 0
        assert file.reads <= 10_000
        assert file.taken <= 1024 * 1024
        assert inspect_bytes(data) is None

    def test_a_png_of_a_billion_pixels_is_refused_unpacked(self) -> None:
        """The header alone decides, and no pixel is decoded."""
        png = PNG[:16] + struct.pack(">LL", 2**31 - 1, 2**31 - 1) + PNG[24:]

        with pytest.raises(PictureRefused, match="2147483647 x 2147483647 px"):
            images._look_at_bytes(png, Smile)


class TestStreaming:
    """The bytes for the upload."""

    @pytest.mark.parametrize("length", [PIECE - 1, PIECE, PIECE + 1, 8 * PIECE, 19 * PIECE + 5])
    @pytest.mark.parametrize("from_file", [True, False])
    async def test_the_pieces_are_the_picture(
        self, tmp_path: Path, length: int, from_file: bool
    ) -> None:
        """All pieces but the last have 64 KiB, and together they are the picture, each time."""
        data = (JPG + os.urandom(length))[:length]
        path = tmp_path / "me.jpg"
        path.write_bytes(data)
        picture = await inspected(path if from_file else data)

        for _ in range(2):
            pieces = [piece async for piece in picture.chunks()]
            assert data == b"".join(pieces)
            assert {PIECE} >= {len(piece) for piece in pieces[:-1]}
            assert 0 < len(pieces[-1]) <= PIECE

    @pytest.mark.parametrize(
        "change",
        [
            lambda path: path.write_bytes(path.read_bytes() + b"!"),
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(
                path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
            ),
            lambda path: path.write_bytes(
                bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
            ),
        ],
        ids=["grown", "shrunk", "emptied", "last byte", "first byte"],
    )
    @pytest.mark.parametrize("length", [1000, 9 * PIECE])
    async def test_a_changed_file_is_never_sent_whole(
        self, tmp_path: Path, change: Callable[[Path], object], length: int
    ) -> None:
        """A changed size is refused at once, changed bytes before the last of them."""
        path = tmp_path / "me.jpg"
        path.write_bytes((JPG + os.urandom(length))[:length])
        picture = await inspected(path)
        change(path)
        sent = 0

        async def send() -> None:
            nonlocal sent
            async for piece in picture.chunks():
                sent += len(piece)

        with pytest.raises(PictureRefused, match="changed after it was inspected"):
            await send()

        assert sent < length
        assert sent == 0 or path.stat().st_size == length

    async def test_a_file_that_is_truncated_meanwhile_is_refused(self, tmp_path: Path) -> None:
        """A file that was truncated between two blocks is refused."""
        path = tmp_path / "me.jpg"
        path.write_bytes(JPG + os.urandom(20 * PIECE))
        pieces = (await inspected(path)).chunks()
        await anext(pieces)
        os.truncate(path, 10 * PIECE)

        with pytest.raises(PictureRefused, match="changed after"):
            async for _ in pieces:
                pass

    async def test_a_file_that_is_gone_is_refused(self, tmp_path: Path) -> None:
        """A file that was deleted, or replaced by a folder, is refused."""
        path = tmp_path / "me.jpg"
        path.write_bytes(JPG)
        picture = await inspected(path)

        path.unlink()
        with pytest.raises(PictureRefused, match="No such file"):
            await gathered(picture)
        path.mkdir()
        with pytest.raises(PictureRefused, match="is a folder"):
            await gathered(picture)

    async def test_no_file_is_open_between_two_pieces(self, tmp_path: Path) -> None:
        """A stream that is left early holds no file, since an upload may end at any time."""
        path = tmp_path / "me.jpg"
        path.write_bytes(JPG + bytes(PIECE))
        pieces = (await inspected(path)).chunks()
        await anext(pieces)

        assert path not in opened()


class TestThreads:
    """Slow disks do not block the event loop."""

    async def test_four_threads_inspect_many_pictures(self) -> None:
        """Forty inspections share four threads, and other threads stay free."""
        lock, barrier = threading.Lock(), threading.Barrier(4)
        now, most = 0, 0

        def look() -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            barrier.wait()
            with lock:
                now -= 1

        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(images._in_thread, look)

        assert 4 == most

    async def test_a_hanging_disk_blocks_no_cancelled_caller(self) -> None:
        """A cancelled caller returns although its thread hangs."""
        begun, over = threading.Event(), threading.Event()

        def look() -> None:
            with hanging():
                begun.set()
                over.wait()

        task = asyncio.create_task(images._in_thread(look))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        over.set()

    async def test_too_many_open_files_are_not_blamed_on_the_job(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After all retries the error advises to try again, not to correct the job."""

        async def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(images, "in_thread", fail)

        with pytest.raises(JobRefused) as caught:
            await inspect(JPG.ljust(images._SMALL + 1, b"\0"), Smile)

        assert (
            "the picture cannot be read now: Too many open files. "
            "Nothing was bought; try again later."
        ) == str(caught.value)

    def test_every_loop_has_its_own_threads(self) -> None:
        """A second event loop in the same process works like the first."""
        for _ in range(2):
            assert "jpg" == run(lambda: inspected(JPG)).kind


async def test_small_pictures_in_memory_need_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a few kilobytes is inspected in the event loop, a larger one in a thread."""
    await inspected(JPG)  # loads the library that reads headers
    small, large = JPG.ljust(images._SMALL, b"\0"), JPG.ljust(images._SMALL + 1, b"\0")
    visits: list[str] = []

    async def visited(*_: object) -> None:
        visits.append("thread")

    monkeypatch.setattr(images, "_in_thread", visited)

    found = await inspect(small, Smile)

    assert found is not None
    assert ((40, 30), hashlib.sha256(small).hexdigest()) == (
        (found.width, found.height),
        found.digest,
    )
    assert [] == visits
    await inspect(large, Smile)
    assert ["thread"] == visits
    with pytest.raises(PictureRefused, match="jpg"):
        await inspect(b"GIF89a", Smile)


async def test_the_library_for_headers_is_not_loaded_in_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first picture goes to a worker thread, however small it is: an import reads files."""
    images._imagesize.cache_clear()
    visits: list[str] = []

    async def visited(*_: object) -> None:
        visits.append("thread")

    monkeypatch.setattr(images, "_in_thread", visited)
    await inspect(JPG, Smile)

    assert ["thread"] == visits


@pytest.mark.parametrize(
    ("source", "mend"),
    [
        ("none.jpg", "correct the path, which starts from the working folder"),
        ("/nowhere/none.jpg", "correct the path."),
        ("~/none.jpg", "pass Path(path).expanduser()"),
        ("/nowhere/*.jpg", "patterns are not expanded"),
        ("/nowhere/[ab].jpg", "patterns are not expanded"),
        ("", "pass the path of a picture"),
        ("a\0b", "correct the path"),
        ("/", "make one job for each picture in it"),
        (os.devnull, "pass the path of a file"),
        (None, "pass a path, bytes, a binary file"),
        (5, "pass a path, bytes, a binary file"),
        (["a.jpg"], "client.batch([Smile(path) for path in paths])"),
        (io.StringIO("text"), 'open(path, "rb")'),
        (io.BytesIO(), "pass its path or its bytes"),
        ("ftp://a.example/b.jpg", "correct the URL"),
    ],
    # The repr of a file has its address, which differs between the processes that share the tests.
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_each_reason_has_a_hint_of_its_own(source: object, mend: str) -> None:
    """Converting a picture does not help against a wrong path or a wrong type."""
    with pytest.raises(PictureRefused) as caught:
        await inspect(cast("Source", source), Smile)
    assert caught.value.hint.startswith("Nothing was sent; ")
    assert mend in caught.value.hint
    assert "convert" not in caught.value.hint


@pytest.mark.usefixtures("no_working_folder")
async def test_a_removed_working_folder_has_a_hint_of_its_own() -> None:
    """Trying again does not help, so the hint names what does."""
    with pytest.raises(PictureRefused, match=r"'me\.jpg' cannot be read: No such file") as caught:
        await inspect("me.jpg", Smile)
    assert "the working folder, which was removed: pass an absolute path" in caught.value.hint
    assert "later" not in caught.value.hint


async def test_a_closed_file_has_a_hint_of_its_own() -> None:
    """A closed file must stay open until it is read."""
    file = io.BytesIO(b"x")
    file.close()
    with pytest.raises(PictureRefused) as caught:
        await inspect(file, Smile)
    assert "keep the file open" in caught.value.hint
