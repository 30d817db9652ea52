"""Converted pictures: only what is needed is changed, and each change is listed."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from perfect_async._files import fitting
from perfect_async._files.fitting import Fitted, encode, fit
from perfect_async._files.images import ImageFile, inspect
from perfect_async.errors import PictureRefused
from perfect_async.models import Avatar, Feature, Job, PillowImage, Smile

Make = Callable[..., bytes]


class SmallFeature(Feature):
    """Any feature, with a smaller limit of bytes."""

    largest = 20_000


class Small(Smile):
    """A feature with small limits, so that tests need no large pictures."""

    longest_side = 256
    largest = 20_000


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return a picture that compresses badly, the same each time."""
    count = width * height * len(mode)
    blocks = (hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(count // 32 + 1))
    return Image.frombytes(mode, (width, height), b"".join(blocks)[:count])


def plain(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), "teal" if mode != "LA" else 100)


def turned(orientation: int, width: int = 40, height: int = 30) -> bytes:
    """Return a JPEG whose left half is red, with an EXIF orientation and a place."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "camera"
    return saved(image, "JPEG", exif=exif, quality=95)


def fitted(data: bytes, kind: Job | type[Job] = Smile) -> Fitted:
    found = fit(io.BytesIO(data), kind)
    assert found is not None
    return found


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    "data",
    [
        saved(plain(), "JPEG"),
        saved(plain(mode="L"), "JPEG"),
        saved(plain(), "PNG"),
        saved(plain(mode="RGBA"), "PNG"),
        saved(plain().convert("P"), "PNG"),
        saved(plain(mode="LA"), "PNG"),
        turned(1),
        turned(9),
    ],
)
def test_an_accepted_picture_stays_unchanged(data: bytes) -> None:
    """A picture that the vendor accepts is not converted."""
    assert fit(io.BytesIO(data), Smile) is None


@pytest.mark.parametrize("data", [b"", b"text", saved(plain(), "PNG")[:30], b"\xff\xd8\xff\xe0"])
def test_an_unreadable_picture_is_not_converted(data: bytes) -> None:
    """The usual checks name its problem."""
    assert fit(io.BytesIO(data), Smile) is None


@pytest.mark.parametrize("kind", ["webp", "gif", "bmp", "tiff"])
def test_other_types_become_png(kind: str) -> None:
    """A PNG keeps each decoded pixel."""
    data = saved(plain(), kind, **({"lossless": True} if kind == "webp" else {}))
    found = fitted(data)
    assert (f"{kind} made png",) == found.changes
    assert opened(data).convert("RGB").tobytes() == opened(found.data).convert("RGB").tobytes()


def test_an_animation_becomes_its_first_frame() -> None:
    """Only the first frame is kept, and the changes say so."""
    frames = [plain(), Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    found = fitted(data)
    assert ("gif made png", "only the first of 3 frames") == found.changes


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_is_turned_upright(orientation: int) -> None:
    """The pixels are turned like in a viewer, and the EXIF orientation is removed."""
    found = fitted(turned(orientation))
    assert ("turned upright",) == found.changes
    image = opened(found.data)
    assert "JPEG" == image.format
    assert {} == dict(image.getexif())
    sideways = orientation >= 5
    assert ((30, 40) if sideways else (40, 30)) == image.size
    at = {2: (30, 15), 3: (30, 15), 4: (10, 15), 5: (15, 5), 6: (15, 5), 7: (15, 35), 8: (15, 35)}
    pixel = image.getpixel(at[orientation])
    assert isinstance(pixel, tuple)
    assert pixel[0] > 200
    assert pixel[2] < 60


def test_cmyk_becomes_rgb() -> None:
    """A JPEG for printing becomes an RGB JPEG."""
    found = fitted(saved(plain().convert("CMYK"), "JPEG"))
    assert ("CMYK made RGB",) == found.changes
    assert ("JPEG", "RGB") == (opened(found.data).format, opened(found.data).mode)


def test_grey_of_16_bits_is_scaled_to_8() -> None:
    """Grey values of 16 bits are scaled, not clipped."""
    grey = Image.new("I;16", (40, 30), 0x8000)
    found = fitted(saved(grey, "PNG"))
    assert ("16 bits for a colour made 8",) == found.changes
    image = opened(found.data)
    assert ("L", 128) == (image.mode, image.getpixel((0, 0)))


def test_colours_of_16_bits_become_8() -> None:
    """Pillow reads these as 8 bits, so the header decides."""
    found = fitted(deep_png())
    assert ("16 bits for a colour made 8",) == found.changes
    assert 8 == found.data[24]


def deep_png() -> bytes:
    """Return an RGB PNG with 16 bits a sample, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + b"\x80\0\x40\0\x20\0" * 4 for _ in range(3))
    header = struct.pack(">LLBBBBB", 4, 3, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_large_pictures_are_scaled_down() -> None:
    """The long side is scaled to the limit of the feature, and the shape is kept."""
    found = fitted(saved(plain(512, 384), "PNG"), Small)
    assert ("512 x 384 px made 256 x 192 px",) == found.changes
    assert ("PNG", (256, 192)) == (opened(found.data).format, opened(found.data).size)
    found = fitted(saved(plain(480, 640), "JPEG"), Small)
    assert ("480 x 640 px made 192 x 256 px",) == found.changes
    assert ("JPEG", (192, 256)) == (opened(found.data).format, opened(found.data).size)
    found = fitted(turned(6, 1280, 640), Small)
    assert ("turned upright", "640 x 1280 px made 128 x 256 px") == found.changes


def test_heavy_pictures_are_compressed() -> None:
    """A lower JPEG quality is tried first; pixels are reduced only if that is not enough."""
    data = saved(noise(100, 100), "PNG")
    assert len(data) > Small.largest
    found = fitted(data, Small)
    assert len(found.data) < Small.largest
    assert found.changes[0] == "png made jpg"
    assert found.changes[-1].startswith("0.0 MiB made")
    found = fitted(saved(noise(200, 200), "JPEG", quality=95), Small)
    assert len(found.data) < Small.largest
    assert any(change.startswith("200 x 200 px made") for change in found.changes)


def test_scaling_down_is_bounded() -> None:
    """A picture is not scaled below 64 pixels."""
    tiny = type("Tiny", (Small,), {"largest": 10})
    assert len(fitted(saved(plain(), "PNG"), tiny).data) >= 10


def test_colours_keep_their_profile() -> None:
    """A colour profile is kept if the colours are, and dropped if they are converted."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = fitted(saved(plain(), "TIFF", icc_profile=profile))
    assert profile == opened(found.data).info["icc_profile"]
    found = fitted(saved(plain().convert("CMYK"), "JPEG", icc_profile=profile))
    assert "icc_profile" not in opened(found.data).info


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1", "L"])
def test_transparency_is_kept_in_a_png_and_white_in_a_jpeg(mode: str) -> None:
    """A PNG keeps transparency, and a JPEG shows it as white."""
    image = plain(mode="RGBA")
    image.putalpha(0)
    if mode == "P":
        found = fitted(saved(Image.new("P", (40, 30), 0), "GIF", transparency=0))
    else:
        found = fitted(saved(image.convert(mode), "TIFF"))
    sees_through = mode in {"P", "LA", "RGBA"}
    assert sees_through == (opened(found.data).mode in {"LA", "RGBA"})
    if sees_through:
        page = opened(fitting._jpeg(opened(found.data), 95)).getpixel((5, 5))
        assert page == (255, 255, 255)


def test_a_conversion_is_deterministic() -> None:
    """The same picture gives the same bytes, whose digest is part of the job's identity."""
    for data in (turned(6), saved(noise(100, 80), "TIFF"), saved(plain(), "GIF")):
        assert fitted(data, Small) == fitted(data, Small)


def test_the_repr_shows_no_bytes() -> None:
    """The repr has the number of bytes."""
    assert "Fitted(data=<3 bytes>, changes=('x',))" == repr(Fitted(b"abc", ("x",)))


# Pillow images.


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "YCbCr", "I;16", "F"])
def test_an_image_is_encoded_as_png(mode: str) -> None:
    """An image of any mode becomes a PNG of 8 bits."""
    data = encode(plain().convert("L" if mode == "I;16" else mode).convert(mode), Smile)
    assert "PNG" == opened(data).format
    assert fit(io.BytesIO(data), Smile) is None


def test_an_image_too_large_for_png_becomes_jpeg() -> None:
    """An image whose PNG would be too large becomes a JPEG of quality 95."""
    assert "JPEG" == opened(encode(noise(100, 100), Small)).format


def test_an_image_is_turned_upright_without_its_exif() -> None:
    """The EXIF orientation is applied, and EXIF data are not sent."""
    image = opened(turned(6))
    assert (30, 40) == opened(encode(image, Smile)).size
    assert b"camera" not in encode(image, Smile)
    assert (40, 30) == image.size  # the program's image is unchanged


def test_an_object_like_an_image_is_refused() -> None:
    """An image of another library is refused."""

    class Other:
        mode, size = "RGB", (1, 1)

        def getbands(self) -> tuple[str, ...]:
            return ("R", "G", "B")

    assert isinstance(Other(), PillowImage)
    with pytest.raises(PictureRefused, match="Other"):
        encode(Other(), Smile)


# Pictures of a client.


async def gathered(picture: ImageFile | None) -> bytes:
    assert picture is not None
    return b"".join([piece async for piece in picture.chunks()])


async def test_a_file_is_fitted_again_for_its_upload(tmp_path: Path) -> None:
    """The uploaded picture has the inspected digest, and no picture waits in memory."""
    path = tmp_path / "me.webp"
    path.write_bytes(saved(plain(), "WEBP"))
    picture = await inspect(path, Smile, fit=True)
    assert picture is not None
    assert ("webp made png",) == picture.changes
    assert ("image/png", "me.png") == (picture.facts.content_type, picture.facts.file_name)
    assert path == picture.path
    data = await gathered(picture)
    assert data == await gathered(picture)
    assert (picture.digest, picture.facts.file_size) == (
        hashlib.sha256(data).hexdigest(),
        len(data),
    )
    path.write_bytes(saved(plain(50, 50), "WEBP"))
    with pytest.raises(PictureRefused, match="changed after it was inspected"):
        await gathered(picture)
    path.write_bytes(saved(plain(), "PNG"))
    with pytest.raises(PictureRefused, match="changed after it was inspected"):
        await gathered(picture)


async def test_bytes_are_converted_too(tmp_path: Path) -> None:
    """Bytes are converted like files, and accepted pictures are sent unchanged."""
    picture = await inspect(saved(plain(), "BMP"), Smile, fit=True)
    assert picture is not None
    assert ("bmp made png",) == picture.changes
    assert "PNG" == opened(await gathered(picture)).format
    path, data = tmp_path / "me.jpg", saved(plain(), "JPEG")
    path.write_bytes(data)
    picture = await inspect(path, Smile, fit=True)
    assert picture is not None
    assert ((), data) == (picture.changes, await gathered(picture))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (saved(plain(), "WEBP"), Smile),
        (saved(plain(), "TIFF"), Avatar),
        (saved(plain(512, 80), "PNG"), Small),
        (saved(noise(100, 100), "PNG"), Small),
    ],
)
async def test_a_convertible_picture_is_refused_with_a_hint(data: bytes, kind: type[Smile]) -> None:
    """The refusal of a picture that `fit` could convert names `Client(fit=True)`."""
    with pytest.raises(PictureRefused) as caught:
        await inspect(data, kind)
    assert "Client(fit=True)" in caught.value.hint
    assert "fit=True" in str(caught.value)
    assert await inspect(data, kind, fit=True) is not None


@pytest.mark.parametrize("data", [b"text", b"\x89PNG\r\n\x1a\n", saved(plain(40, 1), "PNG")])
@pytest.mark.parametrize("on", [True, False])
async def test_an_unconvertible_picture_is_refused_without_the_hint(data: bytes, on: bool) -> None:
    """The refusal of a broken or too narrow picture does not name `fit`."""
    with pytest.raises(PictureRefused) as caught:
        await inspect(data, Smile, fit=on)
    assert "fit" not in caught.value.hint


# Any feature: it has no limit of pixels, and may accept more types.

ANY = Feature("skin-tone-analysis", src=b"")


TAKEN = {
    "large": saved(plain(5000, 10), "JPEG"),
    "webp": saved(plain(), "WEBP"),
    "webp, transparent": saved(Image.new("RGBA", (40, 30), (9, 9, 9, 9)), "WEBP"),
    "gif": saved(plain(), "GIF"),
    "animation": saved(plain(), "GIF", save_all=True, append_images=[noise(40, 30)]),
    "bmp": saved(plain(), "BMP"),
    "bmp, indexed": saved(plain().convert("P"), "BMP"),
    "bmp, black and white": saved(plain().convert("1"), "BMP"),
    "tiff": saved(plain(), "TIFF"),
    "tiff, grey": saved(plain(mode="L"), "TIFF"),
    "tiff, indexed": saved(plain().convert("P"), "TIFF"),
}


@pytest.mark.parametrize("name", TAKEN)
async def test_a_picture_for_any_feature_stays_unchanged(name: str) -> None:
    """Any type, size and number of frames is left to the feature."""
    data = TAKEN[name]
    picture = await inspect(data, ANY, fit=True)

    assert picture is not None
    assert ((), hashlib.sha256(data).hexdigest()) == (picture.changes, picture.digest)


def test_a_picture_that_no_feature_accepts_is_converted() -> None:
    """A turned picture, unusual colours and too many bytes are converted for any feature."""
    assert ("turned upright",) == fitted(turned(6), ANY).changes
    assert ("CMYK made RGB",) == fitted(saved(plain(mode="CMYK"), "JPEG"), ANY).changes
    found = fitted(saved(noise(200, 200), "BMP"), SmallFeature("a", src=b""))
    assert len(found.data) < 20_000
    assert "bmp made jpg" == found.changes[0]


def test_lost_frames_are_listed() -> None:
    """An animation with too many bytes becomes its first frame, and the changes say so."""
    data = saved(noise(100, 100), "GIF", save_all=True, append_images=[noise(99, 100)])
    assert len(data) > 20_000
    assert "only the first of 2 frames" in fitted(data, SmallFeature("a", src=b"")).changes
