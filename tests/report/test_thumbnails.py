"""Thumbnails: small, within the budget, without what a phone writes into a picture."""

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from perfect_async.report import _thumbnails
from perfect_async.report._thumbnails import Thumbnail, thumbnails
from tests.report.made import picture


def opened(thumbnail: Thumbnail) -> Image.Image:
    head, _, text = thumbnail.url.partition(",")
    assert "data:image/jpeg;base64" == head
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_large_picture_becomes_small(tmp_path: Path) -> None:
    """The longest side is 480 pixels, the shape stays."""
    path = picture(tmp_path / "a.jpg", (2000, 1000))

    small = thumbnails([path, path])[path]

    assert (480, 240) == (small.width, small.height) == opened(small).size


def test_it_is_upright_and_holds_nothing_but_pixels(tmp_path: Path) -> None:
    """The orientation is applied, and the place where the picture was taken is left out."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010E] = "at my home"
    path = tmp_path / "a.jpg"
    Image.new("RGB", (60, 40)).save(path, exif=exif)

    small = opened(thumbnails([path])[path])

    assert (40, 60) == small.size
    assert not small.getexif()
    assert "comment" not in small.info


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "I;16"])
def test_any_kind_of_pixels_can_be_shown(tmp_path: Path, mode: str) -> None:
    """Transparent pixels are white, since JPEG has none."""
    path = tmp_path / ("a.tif" if mode in {"CMYK", "I;16"} else "a.png")
    Image.new(mode, (20, 20)).save(path)

    small = opened(thumbnails([path])[path])

    assert "RGB" == small.mode
    if mode == "RGBA":
        assert (255, 255, 255) == small.getpixel((10, 10))


def test_unreadable_pictures_are_left_out(tmp_path: Path) -> None:
    """No file, a folder, a pipe, a text, a picture that was cut: there is no thumbnail."""
    text, cut, pipe = (tmp_path / name for name in ("a.txt", "cut.jpg", "pipe"))
    text.write_bytes(b"hello")
    cut.write_bytes(picture(tmp_path / "whole.jpg", (300, 300)).read_bytes()[:100])
    os.mkfifo(pipe)

    assert {} == thumbnails([text, cut, pipe, tmp_path, tmp_path / "gone.jpg"])
    assert {} == thumbnails([])


def test_many_pictures_share_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, which is the worst for JPEG, gets smaller until all of it fits."""
    monkeypatch.setattr(_thumbnails, "BUDGET", 40_000)
    paths = [tmp_path / f"{number}.jpg" for number in range(10)]
    Image.effect_noise((600, 400), 90).convert("RGB").save(paths[0])
    for path in paths[1:]:
        os.link(paths[0], path)

    found = thumbnails(paths)

    assert 10 == len(found)
    assert sum(len(small.url) for small in found.values()) <= 40_000 + 10 * 30


def test_pictures_without_room_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what can be shown at all the first pictures come first."""
    monkeypatch.setattr(_thumbnails, "BUDGET", 3 * _thumbnails.LEAST)
    paths = [picture(tmp_path / f"{number}.png") for number in range(5)]

    assert paths[:3] == list(thumbnails(paths))
