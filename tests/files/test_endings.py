"""Whole pictures, videos and zips are distinguished from those that were cut short."""

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perfect_async._files.endings import has_end
from perfect_async.sandbox import portrait


def encode(kind: str, size: int = 64, **options: object) -> bytes:
    """Draw a portrait in the format `kind`."""
    picture = Image.open(io.BytesIO(portrait(3, size=size)))
    out = io.BytesIO()
    picture.save(out, {"jpg": "jpeg"}.get(kind, kind), **options)
    return out.getvalue()


THUMBNAIL = encode("jpg", 16)
JPEG = encode("jpg")
PICTURES = {
    "jpg": JPEG,
    "png": encode("png"),
    "webp": encode("webp"),
}


def with_thumbnail(data: bytes) -> bytes:
    """Add a JPEG with an end marker of its own to the first segment."""
    length = len(THUMBNAIL) + 2
    return data[:2] + b"\xff\xe1" + length.to_bytes(2, "big") + THUMBNAIL + data[2:]


@pytest.mark.parametrize("kind", PICTURES)
def test_a_whole_picture_has_its_end(kind: str) -> None:
    """A file of an encoder is whole, also with padding after it."""
    assert has_end(io.BytesIO(PICTURES[kind]), kind)
    assert has_end(io.BytesIO(PICTURES[kind] + bytes(7)), kind)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100}]
)
def test_jpegs_of_all_kinds_are_whole(options: dict[str, object]) -> None:
    """JPEGs with several scans, restart markers and long scans are whole."""
    data = encode("jpg", 512, **options)

    assert has_end(io.BytesIO(data), "jpg")
    assert not has_end(io.BytesIO(data[:-2]), "jpg")


@pytest.mark.parametrize("kind", PICTURES)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_picture_has_no_end(kind: str, share: float) -> None:
    """A picture that was cut anywhere after its first bytes is not whole."""
    data = PICTURES[kind]
    cut = 12 + int(share * (len(data) - 12))

    assert not has_end(io.BytesIO(data[:cut]), kind)


def test_the_end_of_a_thumbnail_does_not_count() -> None:
    """A picture that was cut just after the end marker of its thumbnail is not whole."""
    data = with_thumbnail(JPEG)

    assert has_end(io.BytesIO(data), "jpg")
    assert not has_end(io.BytesIO(data[: len(THUMBNAIL) + 6]), "jpg")


def test_a_marker_between_two_blocks_is_found() -> None:
    """The two bytes of a marker may be in two blocks of a long scan."""
    header = b"\xff\xd8\xff\xda\x00\x02"
    for filler in range(64 * 1024 - 2, 64 * 1024 + 2):
        scan = bytes(filler)
        assert has_end(io.BytesIO(header + scan + b"\xff\xd9"), "jpg")
        assert not has_end(io.BytesIO(header + scan + b"\xff"), "jpg")
        assert not has_end(io.BytesIO(header + scan + b"\xff\x00\xff\xd0"), "jpg")


@pytest.mark.parametrize("fill", [b"\xff", b"\xff" * 9])
def test_fill_bytes_before_a_marker_are_skipped(fill: bytes) -> None:
    """Any number of 0xFF may come before a marker."""
    assert has_end(io.BytesIO(b"\xff\xd8" + fill + b"\xff\xd9"), "jpg")
    assert not has_end(io.BytesIO(b"\xff\xd8" + fill), "jpg")


@pytest.mark.parametrize(
    ("kind", "head", "end"),
    [
        ("jpg", b"\xff\xd8\xff\xe0" + bytes(200), b"\xff\xd9"),
        ("jpg", b"\xff\xd8\xff\xe0\x00\x02nonsense", b"\xff\xd9\0\0"),
        ("png", b"\x89PNG\r\n\x1a\n" + bytes(200), b"IEND\xaeB`\x82"),
    ],
)
def test_the_last_bytes_of_a_nonstandard_file_decide(kind: str, head: bytes, end: bytes) -> None:
    """A file that does not follow its standard is whole if it ends with the end marker."""
    assert has_end(io.BytesIO(head + end), kind)
    assert not has_end(io.BytesIO(head), kind)


def test_the_walk_over_segments_is_bounded() -> None:
    """The last bytes decide for a hostile file of a million segments."""
    assert not has_end(io.BytesIO(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 200_000), "jpg")


@pytest.mark.parametrize("kind", ["gif", "heic"])
def test_formats_without_a_known_end_count_as_whole(kind: str) -> None:
    """A file whose end is unknown is not refused."""
    assert has_end(io.BytesIO(b"anything"), kind)


@given(st.binary(max_size=200), st.sampled_from(["jpg", "png", "webp", "zip", "mp4", "mov"]))
def test_any_bytes_have_an_answer(data: bytes, kind: str) -> None:
    """No bytes raise an exception."""
    assert has_end(io.BytesIO(data), kind) in {True, False}


def archive(comment: bytes = b"") -> bytes:
    """Return a zip with one entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.json", "{}")
        file.comment = comment
    return out.getvalue()


@pytest.mark.parametrize("comment", [b"", b"made by hand"])
def test_a_zip_has_its_directory_at_the_end(comment: bytes) -> None:
    """A zip without its last byte is not whole, also with a comment."""
    whole = archive(comment)

    assert has_end(io.BytesIO(whole), "zip")
    assert not any(has_end(io.BytesIO(whole[:size]), "zip") for size in range(len(whole)))


def box(name: bytes, size: int, *, large: bool = False) -> bytes:
    """Return a box of a video with `size` bytes in it."""
    if large:
        return (1).to_bytes(4, "big") + name + (16 + size).to_bytes(8, "big") + bytes(size)
    return (8 + size).to_bytes(4, "big") + name + bytes(size)


@pytest.mark.parametrize("large", [False, True])
def test_the_boxes_of_a_video_fill_it(large: bool) -> None:
    """A video whose last box is longer than the file was cut short."""
    whole = box(b"ftyp", 16) + box(b"mdat", 200, large=large) + box(b"moov", 30)
    begun = len(box(b"ftyp", 16))
    sound = {begun, begun + len(box(b"mdat", 200, large=large)), len(whole)}

    for kind in ("mp4", "mov"):
        found = {n for n in range(len(whole) + 1) if has_end(io.BytesIO(whole[:n]), kind)}
        assert sound == found


def test_a_last_box_without_a_length() -> None:
    """The last box may have no length and then ends with the file."""
    assert has_end(io.BytesIO(box(b"ftyp", 16) + bytes(4) + b"mdat" + b"abc"), "mp4")


def test_the_walk_over_boxes_is_bounded() -> None:
    """A hostile file of many boxes does not take forever."""
    assert has_end(io.BytesIO(box(b"free", 0) * 150_000), "mp4")
