"""The engine: its checks, its pictures, and its durations."""

import io
import random
import statistics

import pytest
from PIL import Image, ImageChops

from perfect_async.sandbox import Durations, portrait
from perfect_async.sandbox._engine import Picture, input_error, picture_format, render, thumb
from perfect_async.sandbox._portraits import draw_portrait

SMILE_FORMATS = frozenset({"jpeg", "png", "heic"})
TEETH = {"expression_type": "smile_with_teeth_visible"}
CLOSED = {"expression_type": "closed_mouth_smile"}
HEIC = b"\0\0\0\x18ftypheic" + bytes(40)


def saved(width: int, height: int, kind: str = "JPEG", colour: str = "navy") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, kind)
    return out.getvalue()


def picture(data: bytes | None, name: str = "a.jpg") -> Picture:
    return Picture("https://pictures.example.org/a.jpg", None if data is None else name, data)


def rendered(
    data: bytes | None, params: dict[str, str], feature: str = "ai-smile", index: int = 0
) -> Image.Image:
    return Image.open(io.BytesIO(render(feature, params, picture(data), index, png=True)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (saved(4, 4), "jpeg"),
        (saved(4, 4, "PNG"), "png"),
        (HEIC, "heic"),
        (HEIC.replace(b"heic", b"mif1"), "heic"),
        (HEIC.replace(b"heic", b"avif"), None),
        (saved(4, 4, "GIF"), None),
        (saved(4, 4, "WEBP"), None),
        (b"", None),
    ],
)
def test_formats_by_the_first_bytes(data: bytes, expected: str | None) -> None:
    """The format is recognised by the first bytes, not by names and types."""
    assert expected == picture_format(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, None),
        (saved(4096, 10), None),
        (saved(10, 4097), "error_exceed_max_image_size"),
        (saved(4097, 10, "PNG"), "error_exceed_max_image_size"),
        (saved(4, 4) + bytes(10 * 2**20), "exceed_max_filesize"),
        (saved(4, 4, "GIF"), "error_decode_image"),
        (HEIC, None),
        (b"\xff\xd8\xff", None),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR", None),
    ],
)
def test_wrong_inputs_have_engine_errors(data: bytes | None, expected: str | None) -> None:
    """Size, format and dimensions are checked, as far as they can be read."""
    assert expected == input_error(picture(data), SMILE_FORMATS)


def test_a_bomb_is_too_large() -> None:
    """A header with a billion pixels is refused without decoding them."""
    header = saved(4, 4, "PNG")
    # Width and height have fixed places; the checksum of the header follows them.
    huge = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]

    assert input_error(picture(huge), SMILE_FORMATS) in {None, "error_exceed_max_image_size"}
    assert 320 == rendered(huge, TEETH).width


@pytest.mark.parametrize(("params", "mouth"), [(TEETH, "teeth"), (CLOSED, "closed")])
def test_a_drawn_face_gets_the_requested_mouth(params: dict[str, str], mouth: str) -> None:
    """The result is the face with the same number and another mouth."""
    expected = draw_portrait(12, "teeth" if mouth == "teeth" else "closed")

    assert ImageChops.difference(expected, rendered(portrait(12), params)).getbbox() is None


def test_a_smile_may_be_an_input() -> None:
    """A result is a drawn face, too."""
    once = render("ai-smile", TEETH, picture(portrait(12)), 0, png=False)

    assert render("ai-smile", CLOSED, picture(portrait(12)), 0, png=False) == render(
        "ai-smile", CLOSED, picture(once), 0, png=False
    )


@pytest.mark.parametrize(("width", "height"), [(900, 500), (300, 1200), (40, 40), (3, 200), (1, 1)])
def test_any_other_picture_gets_a_stamp(width: int, height: int) -> None:
    """Another picture is scaled down and gets a band along its lower edge."""
    image = rendered(saved(width, height), TEETH)
    band = image.convert("RGB").getpixel((0, image.height - 1))

    assert max(image.size) <= 320
    if image.height > 20:
        assert (0xC2, 0x18, 0x5B) == band
        assert (0, 0, 128) == pytest.approx(image.convert("RGB").getpixel((0, 0)), abs=6)


def test_a_picture_by_url_is_a_card() -> None:
    """A URL is never fetched; the card is the same for each host."""
    first, second = rendered(None, TEETH), rendered(None, TEETH)

    assert (320, 320) == first.size
    assert ImageChops.difference(first, second).getbbox() is None


@pytest.mark.parametrize("data", [HEIC, b"\xff\xd8\xff", saved(50, 50)[:200]])
def test_an_unreadable_picture_is_a_card(data: bytes) -> None:
    """HEIC and broken pictures get a placeholder."""
    assert (320, 320) == rendered(data, CLOSED).size


@pytest.mark.parametrize("data", [None, portrait(3), saved(500, 400)])
def test_avatars_differ(data: bytes | None) -> None:
    """Each output of an avatar is another picture, with its template as a label."""
    images = [
        rendered(data, {"template_id": "male_studio_00"}, "ai-avatar", index) for index in range(6)
    ]

    assert 6 == len({image.tobytes() for image in images})


def test_avatars_of_different_templates_differ() -> None:
    """The template changes the picture."""
    one, two = (
        rendered(portrait(3), {"template_id": name}, "ai-avatar") for name in ("male_a", "male_b")
    )

    assert ImageChops.difference(one, two).getbbox() is not None


@pytest.mark.parametrize(("png", "expected"), [(True, "png"), (False, "jpeg")])
def test_a_result_is_a_jpeg_or_a_png(png: bool, expected: str) -> None:
    """Both formats are possible."""
    assert expected == picture_format(render("ai-smile", TEETH, picture(None), 0, png=png))


def test_results_are_small() -> None:
    """A result has few bytes, so that a thousand fit into memory."""
    assert len(render("ai-smile", TEETH, picture(saved(4000, 3000)), 0, png=False)) < 40_000


def test_thumbs_are_cached() -> None:
    """The thumbnail of each template is drawn once."""
    assert thumb(3) is thumb(3)
    assert thumb(3) != thumb(4)


def draws(durations: Durations, count: int = 4000) -> list[float]:
    rng = random.Random(1)
    return [durations.draw(rng) for _ in range(count)]


def test_the_median_is_the_median() -> None:
    """Half of the lognormal durations are below the median."""
    assert statistics.median(draws(Durations(8.0, 0.35))) == pytest.approx(8.0, rel=0.03)


def test_sigma_is_that_of_the_logarithm() -> None:
    """84 % are below the median times e to the sigma."""
    found = sorted(draws(Durations(60.0, 0.4)))

    assert found[int(0.8413 * len(found))] == pytest.approx(60 * 1.4918, rel=0.05)


def test_low_and_high_clip() -> None:
    """No duration is shorter than `low` or longer than `high`."""
    found = draws(Durations(8.0, 2.0, low=5.0, high=20.0))

    assert (5.0, 20.0) == (min(found), max(found))


def test_fixed_is_always_the_same() -> None:
    """A fixed duration has one value."""
    assert {3.5} == set(draws(Durations.fixed(3.5), 10))


def test_uniform_fills_its_interval() -> None:
    """Uniform durations reach both ends and stay between them."""
    found = draws(Durations.uniform(15.0, 40.0))

    assert min(found) >= 15.0
    assert max(found) <= 40.0
    assert statistics.mean(found) == pytest.approx(27.5, rel=0.03)


def test_of_draws_by_the_function() -> None:
    """Any function of a generator can draw."""
    found = draws(Durations.of(lambda rng: rng.choice([1.0, 240.0])), 50)

    assert {1.0, 240.0} == set(found)


@pytest.mark.parametrize(
    "numbers",
    [
        (-1.0, 0.0, 0.0, 9.0),
        (1.0, -0.1, 0.0, 9.0),
        (1.0, 0.0, 3.0, 2.0),
        (1.0, 0.0, -3.0, 9.0),
    ],
)
def test_impossible_durations_are_refused(numbers: tuple[float, float, float, float]) -> None:
    """Impossible settings raise at construction."""
    with pytest.raises(ValueError, match="urations"):
        Durations(*numbers)


def test_durations_are_values() -> None:
    """Equal settings are equal."""
    assert Durations(8.0, 0.35) == Durations(8.0, 0.35)
    assert "Durations(median=8.0, sigma=0.35, low=0.0, high=inf)" == repr(Durations(8.0, 0.35))
