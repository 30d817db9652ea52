"""The EXIF orientation of JPEGs, read without Pillow."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perfect_async.cli._exif import is_turned, orientation


def jpeg(turned: int | None, **options: object) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x010F] = "camera"
    if turned is not None:
        exif[0x0112] = turned
    Image.new("RGB", (40, 30), "red").save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("turned", [None, *range(1, 10)])
def test_the_orientation_of_a_jpeg(tmp_path: Path, turned: int | None) -> None:
    """Orientations 2 to 8 are turned; 1, none and an unknown one are not."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(turned))

    assert (turned or 1) == orientation(path.read_bytes())
    assert is_turned(path) is (turned in range(2, 9))


def test_the_byte_orders() -> None:
    """Cameras write both byte orders, and a comment or fill bytes may come first."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    big = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry
    segment = b"\xff\xe1" + (len(big) + 2).to_bytes(2, "big") + big

    assert 6 == orientation(b"\xff\xd8" + segment)
    assert 6 == orientation(b"\xff\xd8\xff\xfe\x00\x04hi\xff" + segment)


def test_other_files_are_not_turned(tmp_path: Path) -> None:
    """Other types, and files that are not there, have no orientation."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    assert not is_turned(tmp_path / "a.png")
    assert not is_turned(tmp_path / "gone.jpg")


@given(st.binary(max_size=64))
def test_damaged_data_is_not_turned_or_ends(data: bytes) -> None:
    """Whatever follows, reading ends without an error."""
    orientation(b"\xff\xd8" + data)
    orientation(b"\xff\xd8\xff\xe1\x00\x40Exif\0\0" + data)


@pytest.mark.parametrize("length", range(0, 120, 7))
def test_a_cut_picture(length: int) -> None:
    """A picture that ends early has the orientation that was read by then, or none."""
    assert orientation(jpeg(6)[:length]) in {1, 6}
