"""Inspects pictures, refuses unsuitable ones early, and streams their bytes for the upload.

No picture is decoded here: the type comes from the first bytes, width and height from the header,
and the digest from all bytes. While a picture waits for its upload, its file is not open and its
bytes are not in memory. (contract: Input pictures)
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, TypeAlias, TypeVar

import anyio
import attrs
from anyio.lowlevel import RunVar

from perfect_async._api.tasks import FileFacts
from perfect_async._api.urls import picture_url
from perfect_async._files.names import FALLBACK, LONGEST, clean, is_url, means_file
from perfect_async._files.sources import name_of, read_file
from perfect_async._files.threads import in_thread, is_passing
from perfect_async._value import Value
from perfect_async.errors import JobRefused, PictureRefused, quoted, shown_source
from perfect_async.models import BinaryFile, FileId, Job, PillowImage, Source

if TYPE_CHECKING:
    from perfect_async._files.fitting import Fitted

T = TypeVar("T")

Kind: TypeAlias = Literal["jpg", "png", "heic", "webp", "gif", "bmp", "tiff", "mp4", "mov"]
"""The types that the vendor accepts, by the suffix that is sent."""

VIDEOS: Final = frozenset({"mp4", "mov"})

# The vendor also accepts "image/jpg"; the type of HEIC is undocumented (contract: Input pictures).
_CONTENT_TYPES: Final[dict[Kind, str]] = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "heic": "image/heic",
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
}
# Types whose header must have width and height. Other types are accepted only by some features,
# and the vendor checks their size.
_MEASURED: Final = frozenset({"jpg", "png", "heic"})

PIECE: Final = 64 * 1024
"""Bytes of one piece of `ImageFile.chunks`."""

HEAD: Final = 64
"""Bytes that `sniff` needs; no known list of brands is longer."""

_BLOCK: Final = 8 * PIECE  # bytes per call of a worker thread
_SMALL: Final = 32 * 1024
"""A picture in memory of up to so many bytes is inspected in the event loop.

A worker thread takes longer to reach, about 0.1 ms.
"""

# Brands of ISO media files (ISO/IEC 23008-12 annexes): HEVC pictures, pictures of other codecs, and
# two generic brands that do not name the codec.
_HEVC: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF: Final = {b"avif", b"avis"}
_OTHERS: Final = {b"avci", b"avcs", b"jpeg", b"jpgs", b"j2ki", b"j2is", b"vvic", b"vvis", b"evbi"}
_ANY_CODEC: Final = {b"mif1", b"msf1"}
_MP4: Final = re.compile(rb"iso[m2-9a-c]|mp4[12]|avc1|M4V[ HP]|MSNV|dash|mmp4")
# The first atoms of QuickTime files without brands (QuickTime File Format, 2001).
_ATOMS: Final = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}

_MAGIC: Final = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"BM", "bmp"),
    (b"%PDF", "pdf"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)

_PATTERN: Final = re.compile(r"[*?]|\[[^\]]+\]")
"""A sign that a path is meant as a pattern of `glob`."""

_FITTABLE: Final = {"webp", "gif", "bmp", "tiff"}
"""Types that the typed features refuse and that `fit` can convert."""
_MOST_FITTED: Final = 100 * 1024 * 1024
"""Bytes of the largest picture that `fit` reads."""

# Few threads inspect pictures, so that a slow disk leaves the other threads to the journal and to
# the user's program. A limiter belongs to one event loop, so each loop has its own.
_THREADS: Final = 4
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("perfect_async._files.images")


@attrs.frozen(eq=False, repr=False)
class ImageFile(Value):
    """An inspected picture that may be sent.

    `facts` are for its registration; `digest` is the SHA-256 of its bytes in hex. `width` and
    `height` are in pixels as stored (an EXIF orientation may swap them), or 0 if they were not
    read, as for videos. `changes` lists the changes that `fit` made. A converted file is converted
    again for each upload, so that no picture waits in memory.
    """

    facts: FileFacts
    digest: str
    kind: Kind
    width: int
    height: int
    _source: Path | bytes = attrs.field(repr=False, eq=False, alias="source")
    changes: tuple[str, ...] = attrs.field(default=(), repr=False, eq=False)
    _fitted_for: Job | type[Job] | None = attrs.field(
        default=None, repr=False, eq=False, alias="fitted_for"
    )

    @property
    def path(self) -> Path | None:
        """The absolute path of the file, or None if the picture was given as bytes."""
        return None if isinstance(self._source, bytes) else self._source

    @property
    def is_video(self) -> bool:
        """Whether it is a video and not a picture."""
        return self.kind in VIDEOS

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the `facts.file_size` bytes of the picture in pieces of 64 KiB.

        Raises `PictureRefused` if the file is gone or has changed since it was inspected. The last
        block is yielded only after the digest was compared, so that another picture is never sent
        whole. Each call yields the picture from its first byte.
        """
        size, data = self.facts.file_size, self._source
        if not isinstance(data, bytes) and self._fitted_for is not None:
            data = await _in_thread(_fit_again, data, self._fitted_for, self.digest)
        if isinstance(data, bytes):
            for at in range(0, size, PIECE):
                yield data[at : at + PIECE]
            return
        seen = hashlib.sha256()
        for start in range(0, size, _BLOCK):
            # Each block opens the file again: no file stays open while the network is slow, and
            # none leaks if the upload is cancelled while a thread opens it.
            block = await _in_thread(_block, self._source, start, size, seen.update)
            if start + len(block) == size and seen.hexdigest() != self.digest:
                raise _changed(quoted(self._source), "after it was inspected")
            for at in range(0, len(block), PIECE):
                yield block[at : at + PIECE]


def _changed(name: str, when: str) -> PictureRefused:
    """Return the error for a file that another program is writing to."""
    return PictureRefused(f"{name} changed {when}.", passing=True, reason="changing")


async def inspect(
    source: Source, job_type: Job | type[Job], *, fit: bool = False
) -> ImageFile | None:
    """Inspect `source` for a job or a class of jobs; return None for a URL or a `FileId`.

    A worker thread reads the file once, a block at a time. With `fit`, a picture that would be
    refused or shown wrongly is converted to what `job_type` accepts.

    Raises `PictureRefused`, with the value and the limit, for a missing or unreadable file, a
    folder or device, a format that the feature does not accept (by the first bytes),
    `job_type.largest` bytes or more, a long side over `job_type.longest_side` pixels or over
    `job_type.longest_shape` times the short side, an empty picture, a header that ends early, a URL
    that `picture_url` refuses, and a source of another type. (contract: Input pictures)
    """
    match source:
        case FileId():
            return None
        case str() if is_url(source):
            picture_url(source)
            return None
        case bytes():
            look = partial(_look_at_bytes, source)
        case bytearray() | memoryview():
            # Copied at once: the program may reuse its buffer.
            look = partial(_look_at_bytes, bytes(source))
        case _ if means_file(source):
            look = partial(look_at_file, os.fsdecode(source))
        case PillowImage():
            look = partial(_look_at_image, source)
        case BinaryFile():
            look = partial(_look_at_stream, source)
        case _:
            raise PictureRefused(
                f"a picture cannot come from {quoted(type(source).__name__)}.",
                advice=_advice_for(source),
            )
    if isinstance(source, bytes) and len(source) <= _SMALL and not fit and _imagesize_is_loaded():
        return look(job_type, fit=fit)
    return await _in_thread(partial(look, job_type, fit=fit))


def _advice_for(source: object) -> str:
    """Return the advice for a source of a type that is no picture."""
    if isinstance(source, list | tuple | set | frozenset):
        return (
            "pass a path, bytes or another single picture, and make one job for each: "
            "client.batch([Smile(path) for path in paths])"
        )
    return "pass a path, bytes, a binary file, a Pillow image, an http(s) URL or a FileId"


def _imagesize_is_loaded() -> bool:
    """Return whether the first picture has loaded the library: loading blocks on the disk."""
    return _imagesize.cache_info().currsize > 0


def sniff(head: bytes) -> str | None:
    """Return the type of a file by its first `HEAD` bytes, as a suffix without dot, or None.

    The types are jpg, png, heic, gif, webp, avif, tiff, bmp, mp4, mov, zip and pdf.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _codec(head)
    return "mov" if head[4:8] in _ATOMS else None


def _codec(head: bytes) -> str | None:
    """Return the type of an ISO media file: heic, avif, mp4, mov, or None.

    HEIC and AVIF often have only the generic brand `mif1`; the other brands then decide.
    """
    end = min(int.from_bytes(head[:4], "big"), len(head) - len(head) % 4)
    major = head[8:12]
    brands = {major, *(head[at : at + 4] for at in range(16, end, 4))}
    if major in _HEVC:
        return "heic"
    if major in _AVIF:
        return "avif"
    if major == b"qt  ":
        return "mov"
    if major not in _ANY_CODEC and not brands & _ANY_CODEC:
        return "mp4" if _MP4.fullmatch(major) else None
    if brands & _HEVC:
        return "heic"
    if brands & _AVIF:
        return "avif"
    return None if brands & _OTHERS else "heic"


async def _in_thread(function: Callable[..., T], *args: object) -> T:
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_THREADS)
        _limiter.set(limiter)
    try:
        return await in_thread(function, *args, limiter=limiter)
    except OSError as exc:
        # Several retries have failed, and the picture is not the reason.
        refusal = JobRefused(f"the picture cannot be read now: {exc.strerror}.")
        refusal.hint = "Nothing was bought; try again later."
        raise refusal from exc


def _look_at_bytes(
    source: bytes, job_type: Job | type[Job], *, fit: bool = False, name: str | None = None
) -> ImageFile:
    name = f"<{len(source)} bytes>" if name is None else name
    found = fitted(io.BytesIO(source), len(source), job_type) if fit else None
    data, changes = (source, ()) if found is None else (found.data, found.changes)
    picture = _look(io.BytesIO(data), len(data), name, data, job_type, fit=fit)
    return attrs.evolve(picture, changes=changes)


def _look_at_stream(source: BinaryFile, job_type: Job | type[Job], *, fit: bool) -> ImageFile:
    takes_videos = not VIDEOS.isdisjoint(job_type.formats)
    largest = job_type.largest_video if takes_videos else job_type.largest
    data = read_file(source, max(largest, _MOST_FITTED) if fit else largest)
    return _look_at_bytes(data, job_type, fit=fit, name=name_of(source))


def _look_at_image(source: PillowImage, job_type: Job | type[Job], *, fit: bool) -> ImageFile:
    from perfect_async._files import fitting  # noqa: PLC0415 - Pillow is an extra

    data = fitting.encode(source, job_type)
    return _look_at_bytes(data, job_type, fit=fit, name=name_of(source))


def fitted(file: BinaryIO, size: int, job_type: Job | type[Job]) -> Fitted | None:
    """Return the converted picture; None if it is accepted already or cannot be converted."""
    from perfect_async._files import fitting  # noqa: PLC0415 - Pillow is an extra

    return fitting.fit(file, job_type) if size <= _MOST_FITTED else None


def _fit_again(path: Path, job_type: Job | type[Job], digest: str) -> bytes:
    """Convert a file as when it was inspected, and return the bytes."""
    name = quoted(path)
    with _opened(str(path), name) as file:
        found = fitted(file, os.fstat(file.fileno()).st_size, job_type)
    if found is None or hashlib.sha256(found.data).hexdigest() != digest:
        raise _changed(name, "after it was inspected")
    return found.data


def look_at_file(path: str, job_type: Job | type[Job], *, fit: bool = False) -> ImageFile:
    """Inspect the picture at `path` like `inspect`, in this thread.

    Raises `PictureRefused`, and `OSError` if a retry may succeed.
    """
    name = quoted(shown_source(path))
    if not path:
        raise PictureRefused(
            "the path of the picture is empty.",
            reason="no path",
            advice="pass the path of a picture",
        )
    try:
        with _opened(path, name) as file:
            size = os.fstat(file.fileno()).st_size
            # Absolute, since the program may change its working directory before the upload.
            place = Path(path).absolute()
            found = fitted(file, size, job_type) if fit else None
            if found is None:
                return _look(file, size, name, place, job_type, fit=fit)
            data = found.data
            picture = _look(io.BytesIO(data), len(data), name, place, job_type, fit=fit)
            return attrs.evolve(picture, changes=found.changes, fitted_for=job_type)
    except OSError as exc:
        if is_passing(exc):
            raise
        raise _unreadable(path, name, exc) from exc


def _opened(path: str, name: str) -> BinaryIO:
    """Open the regular file at `path` for reading. Raises `PictureRefused` and `OSError`.

    The type of the file is checked before opening, since opening some devices has effects, and
    afterwards, since the name may lead to another file by then.
    """

    def regular(path: str, flags: int) -> int:
        # Opening a pipe without a writer would block forever; the flag has no effect on files.
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        try:
            _regular(os.fstat(handle).st_mode, name)
        except BaseException:
            os.close(handle)
            raise
        return handle

    try:
        _regular(Path(path).stat().st_mode, name)
        return open(path, "rb", opener=regular)
    except ValueError as exc:  # a NUL or a lone surrogate
        raise PictureRefused(
            f"{name} is not a valid path.", reason="no path", advice="correct the path"
        ) from exc


def _regular(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise PictureRefused(
            f"{name} is a folder.",
            reason="folder",
            advice="make one job for each picture in it, such as each path of "
            'Path(folder).glob("*.jpg")',
        )
    if not stat.S_ISREG(mode):
        raise PictureRefused(
            f"{name} is not a regular file.",
            reason="no file",
            advice="pass the path of a file, or the bytes of the picture",
        )


def _unreadable(path: str, name: str, exc: OSError) -> PictureRefused:
    missing = isinstance(exc, FileNotFoundError)
    advice = "correct the path, or the permissions of the file"
    if missing and path.startswith("~"):
        advice = '"~" is not expanded: pass Path(path).expanduser()'
    elif missing and _PATTERN.search(path) is not None:
        advice = 'patterns are not expanded: make one job for each path of Path(".").glob(pattern)'
    elif missing:
        advice = "correct the path"
        if not Path(path).is_absolute():
            advice = _advice_for_relative()
    return PictureRefused(
        f"{name} cannot be read: {exc.strerror or type(exc).__name__}.",
        reason="missing" if missing else "unreadable",
        advice=advice,
    )


def _advice_for_relative() -> str:
    try:
        folder = Path.cwd()
    except OSError:
        return "the path starts from the working folder, which was removed: pass an absolute path"
    return f"correct the path, which starts from the working folder {quoted(folder)}"


def _look(
    file: BinaryIO,
    size: int,
    name: str,
    source: Path | bytes,
    job_type: Job | type[Job],
    *,
    fit: bool,
) -> ImageFile:
    if size == 0:
        raise PictureRefused(f"{name} is empty.", reason="0 bytes")
    found = sniff(file.read(HEAD))
    kind = _taken(found, job_type)
    largest = job_type.largest_video if kind in VIDEOS else job_type.largest
    if size >= largest:
        raise PictureRefused(
            f"{name} has {_mebibytes(size)}; {job_type.feature} takes less than "
            f"{_mebibytes(largest)}.",
            fittable=not fit and found in _CONTENT_TYPES and found not in VIDEOS,
            reason="too large",
        )
    if kind is None:
        raise PictureRefused(
            f"{name} is {found or 'of an unknown type'} by its first bytes; "
            f"{job_type.feature} takes {', '.join(job_type.formats)}.",
            fittable=not fit and found in _FITTABLE,
            reason=found or "no picture",
        )
    digest = _digest(file, size, name)
    width, height = _dimensions(file, kind, size) if kind in _MEASURED else (0, 0)
    if kind in _MEASURED and (width < 1 or height < 1):
        raise PictureRefused(
            f"{name} begins like a {kind}, but its header has no width and height.",
            reason="damaged",
        )
    if max(width, height) > job_type.longest_side:
        raise PictureRefused(
            f"{name} is {width} x {height} px; the long side may have {job_type.longest_side} px "
            f"for {job_type.feature}.",
            fittable=not fit,
            reason="too many pixels",
        )
    if max(width, height) > job_type.longest_shape * min(width, height):
        shortest = math.ceil(max(width, height) / job_type.longest_shape)
        raise PictureRefused(
            f"{name} is {width} x {height} px, too narrow for a face that {job_type.feature} can "
            f"find: its short side must have at least {shortest} px.",
            reason="too narrow",
        )
    # A file's name is personal data, so the vendor's console gets only a short form.
    stem = source.stem if isinstance(source, Path) else FALLBACK
    file_name = f"{clean(stem, LONGEST - len('.heic'))}.{kind}"
    facts = FileFacts(content_type=_CONTENT_TYPES[kind], file_name=file_name, file_size=size)
    return ImageFile(facts, digest, kind, width, height, source)


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:,.1f} MiB"


def _taken(found: str | None, job_type: Job | type[Job]) -> Kind | None:
    kinds = _CONTENT_TYPES
    return next((kind for kind in kinds if kind == found and kind in job_type.formats), None)


def _digest(file: BinaryIO, size: int, name: str) -> str:
    """Return the SHA-256, in hex, of a file that must have `size` bytes; reads it in blocks."""
    file.seek(0)
    digest = hashlib.sha256()
    left = size
    while left and (block := file.read(min(left, _BLOCK))):
        digest.update(block)
        left -= len(block)
    if left or file.read(1):
        raise _changed(name, "while it was read")
    return digest.hexdigest()


def _block(path: Path, start: int, size: int, update: Callable[[bytes], object]) -> bytes:
    """Return the block of `path` that begins at `start`, after passing it to `update`.

    `size` is the size of the whole file.
    """
    name = quoted(path)
    wanted = min(_BLOCK, size - start)
    try:
        with _opened(str(path), name) as file:
            same = os.fstat(file.fileno()).st_size == size
            file.seek(start)
            block = file.read(wanted)
    except OSError as exc:
        if is_passing(exc):
            raise
        raise _unreadable(str(path), name, exc) from exc
    if not same or len(block) != wanted:
        raise _changed(name, "after it was inspected")
    update(block)
    return block


def _dimensions(file: BinaryIO, kind: Kind, size: int) -> tuple[int, int]:
    """Return width and height in pixels as stored; values below 1 mean that the header has none."""
    limited = _LimitedFile(file)
    if kind == "heic":
        return _largest_item(limited, size)
    # Without `exif_rotation`, imagesize does not read EXIF; the long side does not depend on it.
    # imagesize returns (-1, -1) for each of its exceptions.
    return _imagesize()(limited, exif_rotation=False)


@cache
def _imagesize() -> Callable[..., tuple[int, int]]:
    """Import `imagesize.get` with the first picture, since the library imports an XML parser.

    The library has annotations but no py.typed, and an incomplete type for paths.
    """
    import imagesize  # type: ignore[import-untyped] # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs]

    return imagesize.get  # type: ignore[no-any-return] # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class _LimitedFile:
    """A file that ends after a number of bytes or reads, for the parsers of headers.

    imagesize searches a JPEG's segments byte by byte, and a file may have any number of boxes. Real
    headers need some hundred reads; a file that needs more than the limits is hostile.
    """

    _READS: Final = 10_000
    _BYTES: Final = 1024 * 1024

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._reads = self._READS
        self._bytes = self._BYTES

    def read(self, size: int = -1) -> bytes:
        wanted = self._bytes if size < 0 else min(size, self._bytes)
        self._reads -= 1
        data = self._file.read(wanted) if self._reads >= 0 else b""
        self._bytes -= len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)


def _largest_item(file: _LimitedFile, size: int) -> tuple[int, int]:
    """Return width and height of the largest item in a HEIC (ISO/IEC 23008-12), or (0, 0).

    The largest item is the picture; the others are tiles, thumbnail and depth. imagesize 2.0.1
    fails for every HEIC with a rotation, like those of phones: it expects five bytes in `irot`,
    which has one.
    """
    spans = [(0, size)]
    for name, skipped in ((b"meta", 4), (b"iprp", 0), (b"ipco", 0), (b"ispe", 4)):
        spans = [
            (start + skipped, end)
            for span in spans
            for found, start, end in _boxes(file, *span)
            if found == name
        ]
    items = [(0, 0)]
    for start, _ in spans:
        file.seek(start)
        extent = file.read(8)
        if len(extent) == 8:  # noqa: PLR2004 - two numbers of four bytes
            items.append((int.from_bytes(extent[:4], "big"), int.from_bytes(extent[4:], "big")))
    return max(items, key=lambda item: (min(item) > 0, max(item)))


def _boxes(file: _LimitedFile, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the content of each box, up to the first broken box."""
    while True:
        file.seek(start)
        head = file.read(16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        content = start + 8
        if size == 1:  # the length has 64 bits, as in boxes over 4 GiB
            size, content = int.from_bytes(head[8:16], "big"), start + 16
        elif size == 0:  # the last box of a file
            size = end - start
        if not content <= start + size <= end:
            return
        yield name, content, start + size
        start += size
