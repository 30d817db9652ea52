"""Faces that are drawn for a number."""

import io

import pytest
from PIL import Image, ImageChops

from perfect_async.sandbox import portrait
from perfect_async.sandbox._portraits import draw_portrait, encode, seed_of


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("size", [32, 64, 480])
def test_a_portrait_is_a_square_jpeg(size: int) -> None:
    """A portrait is a JPEG with the requested size."""
    image = opened(portrait(1, size))

    assert ("JPEG", (size, size), "RGB") == (image.format, image.size, image.mode)


def test_the_same_number_gives_the_same_face() -> None:
    """Portraits are repeatable, and different numbers give different bytes."""
    assert portrait(5, 64) == portrait(5, 64)
    assert 40 == len({portrait(seed, 64) for seed in range(40)})


@pytest.mark.parametrize("png", [True, False])
@pytest.mark.parametrize("seed", [0, 7, 2**63])
def test_the_number_of_a_face_is_read(seed: int, png: bool) -> None:
    """The number of a face is kept in both formats."""
    assert seed == seed_of(encode(draw_portrait(seed, "teeth", 64), seed=seed, png=png))


@pytest.mark.parametrize("png", [True, False])
def test_other_pictures_are_no_faces(png: bool) -> None:
    """A picture without a number is not a drawn face."""
    assert seed_of(encode(Image.new("RGB", (64, 64)), png=png)) is None
    assert seed_of(b"") is None


@pytest.mark.parametrize("seed", range(8))
def test_a_mouth_changes_the_face_below_the_eyebrows(seed: int) -> None:
    """Another mouth changes mouth and cheeks, but not hair, clothes or background."""
    neutral, teeth, closed = (
        draw_portrait(seed, mouth) for mouth in ("neutral", "teeth", "closed")
    )
    for image in (teeth, closed):
        changed = ImageChops.difference(neutral, image).getbbox()
        assert changed is not None
        left, top, right, bottom = (value / 320 for value in changed)
        assert 0.25 < left
        assert 0.4 < top
        assert right < 0.75
        assert bottom < 0.8


@pytest.mark.parametrize("seed", range(8))
def test_teeth_are_white(seed: int) -> None:
    """A mouth with teeth is white in its middle, and a closed one is not."""
    spot = (int(0.515 * 320), int(0.66 * 320))

    assert (255, 255, 255) == draw_portrait(seed, "teeth").getpixel(spot)
    assert (255, 255, 255) != draw_portrait(seed, "closed").getpixel(spot)
