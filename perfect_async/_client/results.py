"""The outcomes of jobs: `Done` or `Failed`, and results whose pictures can be saved."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Protocol, TypeAlias, TypeVar

import anyio
import attrs

from perfect_async._api.tasks import FEATURES, says_more
from perfect_async._files import names
from perfect_async._files.endings import has_end
from perfect_async._files.images import HEAD, sniff
from perfect_async._files.saving import AtomicFile, SaveTarget
from perfect_async._files.sets import PictureSet, Put, complete_set, save_set
from perfect_async._files.threads import in_thread
from perfect_async._value import Value
from perfect_async.errors import (
    BadAnswer,
    ConfigurationError,
    PerfectError,
    RequestRefused,
    ServiceUnavailable,
    quoted,
    redacted,
)
from perfect_async.models import Job

if TYPE_CHECKING:
    from perfect_async._client.session import ClientSession

T = TypeVar("T")
P = TypeVar("P", bound="_Part")

_MARGIN: Final = timedelta(minutes=1)
"""A URL that expires this soon may expire on the way (contract: Download the result)."""
_GONE: Final = {400, 403, 404, 410}
"""The storage's answers to a URL that has expired or lost its object, or to an expired session."""
_PAUSES: Final = (0.5, 2.0)
"""Seconds before the second and third try of a download that broke off."""
_CLEANUP: Final = 5.0
"""Seconds that a cancelled save may take to remove its temporary file."""


class _Part(Protocol):
    """Where a download goes while it comes. Every method may block."""

    def write(self, data: bytes) -> None:
        """Append `data`."""
        ...

    def is_whole(self, kind: str) -> bool:
        """Return whether what was written is a whole picture of the type `kind`."""
        ...

    def discard(self) -> None:
        """Forget what was written, unless it was put somewhere."""
        ...


class _Memory:
    """A part in memory."""

    def __init__(self) -> None:
        self._data = io.BytesIO()

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._data.write(data)

    def is_whole(self, kind: str) -> bool:
        """Return whether what was written is a whole picture of the type `kind`."""
        return has_end(self._data, kind)

    def read(self, _: str) -> bytes:
        """Return all that was written."""
        return self._data.getvalue()

    def discard(self) -> None:
        """Do nothing: memory is freed by itself."""


@attrs.frozen
class ImagePlace:
    """Where a picture is: the one of this `index` among the `count` of a task."""

    session: ClientSession
    feature: str
    task_id: str
    index: int
    count: int


@attrs.frozen(eq=False, repr=False)
class ResultImage(Value):
    """One file of a result: a signed URL, which can be downloaded until `expires_at` (UTC).

    It is a picture, or what else a `Feature` gives: a video, a zip.

        data = await result.images[0].read()

    The repr shows the URL without its query, which holds the signature.
    """

    url: str = attrs.field(repr=lambda url: repr(redacted(url)))
    expires_at: datetime
    _place: ImagePlace | None = attrs.field(
        default=None, alias="place", kw_only=True, repr=False, eq=False
    )

    async def read(self) -> bytes:
        """Download the picture into memory and return its bytes, without touching the disk.

        They are a whole jpg, png or webp, as the vendor made it; of a `Feature` also a video or a
        zip. Reading again is always possible
        and never charged; a URL that has expired is asked for again (one request). Raises as
        `Result.save` does, but for the disk's errors, and `ConfigurationError` for an image that
        came from no result.
        """
        place = self._place
        if place is None:
            raise ConfigurationError("This image came from no result, so it cannot be downloaded.")
        downloads = _Downloads(place.session, place.feature, place.task_id, place.count)
        work = partial(downloads.get, place.index, self, _Memory, _Memory.read)
        return await place.session.executor.call(work)


class _Downloads:
    """Downloads the pictures of one task, and asks for fresh URLs where they have expired."""

    def __init__(self, session: ClientSession, feature: str, task_id: str, count: int) -> None:
        self._session = session
        self._feature = feature
        self._task_id = task_id
        self._count = count
        self._fresh: tuple[ResultImage, ...] = ()

    async def get(
        self, index: int, image: ResultImage, part: Callable[[], P], put: Callable[[P, str], T]
    ) -> T:
        """Download the picture of this `index` into a new `part`, and return what `put` gives.

        `put` gets the part and the picture's type, once the picture is whole.
        """
        if self._fresh:
            image = self._fresh[index]
        expired = image.expires_at <= self._session.now() + _MARGIN
        if expired:
            image = await self._refresh(index)
        try:
            return await self._try(image, part, put)
        except RequestRefused as exc:
            if expired or exc.status not in _GONE:
                raise
            return await self._try(await self._refresh(index), part, put)

    async def _refresh(self, index: int) -> ResultImage:
        images = await self._session.refresh(self._feature, self._task_id)
        if len(images) != self._count:
            raise BadAnswer(
                f"task {quoted(self._task_id)} had {self._count} pictures, "
                f"and has {len(images)} when asked again."
            )
        self._fresh = images
        return images[index]

    async def _try(
        self, image: ResultImage, part: Callable[[], P], put: Callable[[P, str], T]
    ) -> T:
        for pause in _PAUSES:
            try:
                return await self._fetch(image.url, part(), put)
            except ServiceUnavailable:
                await anyio.sleep(pause)
        return await self._fetch(image.url, part(), put)

    async def _fetch(self, url: str, part: P, put: Callable[[P, str], T]) -> T:
        head = b""
        try:
            # What a feature without a class gives may be a video.
            large = self._feature not in FEATURES
            async with self._session.download(url, large=large) as pieces:
                async for piece in pieces:
                    if len(head) < HEAD:
                        head += piece[:HEAD]
                        if len(head) >= HEAD:
                            _picture_type(head)  # an error page is not downloaded to its end
                    await in_thread(part.write, piece)
            kind = _picture_type(head)
            if not await in_thread(part.is_whole, kind):
                raise ServiceUnavailable(
                    "the download of the vendor's result ended early; nothing was written."
                )
            return await in_thread(put, part, kind)
        finally:
            with anyio.move_on_after(_CLEANUP, shield=True):
                await in_thread(part.discard)


@attrs.frozen(eq=False, repr=False)
class Result(Value):
    """The pictures of one finished task, in the vendor's order.

        result = await client.run(Smile("selfie.jpg"))
        await result.save("smiling.jpg")        # or: [data] = await result.read()

    `task_id` is the vendor's. `job` is the job that asked for it, None where only the task's id is
    known (`attach`). `units` were charged for it, including repeated tries; 0.0 where an equal job
    or somebody else paid for the task. `duration` is the seconds from its creation to its end, None
    where the creation was not seen. `files` are the paths of its files, if the job was to be saved
    (`save_to`). `changes` says what was changed in the pictures to make them fit
    (`Client(fit=True)`). `raw` is the vendor's whole answer, decoded: the scores and colours of a
    `Feature` are there and nowhere else. It holds signed URLs, so it shows in no repr; it is None
    where the vendor was not asked, since the files of a former run are there.

    The URLs expire after 2 h; `save` and `read` ask for fresh ones, which the vendor gives for a
    day at least, unless its copy was deleted. (contract: Download the result)
    """

    task_id: str
    images: tuple[ResultImage, ...]
    job: Job | None = attrs.field(default=None, kw_only=True, repr=False, eq=False)
    units: float = attrs.field(default=0.0, kw_only=True, repr=False, eq=False)
    duration: float | None = attrs.field(default=None, kw_only=True, repr=False, eq=False)
    files: tuple[Path, ...] = attrs.field(default=(), kw_only=True, repr=False, eq=False)
    changes: tuple[str, ...] = attrs.field(default=(), kw_only=True, repr=False, eq=False)
    _feature: str = attrs.field(alias="feature", kw_only=True, repr=False, eq=False)
    _stem: str = attrs.field(alias="stem", kw_only=True, repr=False, eq=False)
    _identity: str = attrs.field(alias="identity", kw_only=True, repr=False, eq=False)
    _session: ClientSession = attrs.field(alias="session", kw_only=True, repr=False, eq=False)
    raw: object = attrs.field(default=None, kw_only=True, repr=False, eq=False)

    @property
    def outputs(self) -> tuple[ResultImage, ...]:
        """The files of the result, whatever they are; the same as `images`.

        There are none where the answer holds no URL.
        """
        return self.images

    @property
    def file_count(self) -> int:
        """How many files `save` writes, the one with the answer itself included."""
        more = self._feature not in FEATURES and says_more(self.raw)
        return len(self.images) + (more or not self.images)

    async def read(self) -> list[bytes]:
        """Download the pictures into memory and return their bytes, in the order of `images`.

            [data] = await result.read()

        Nothing is written to the disk. Each is a whole file as the vendor made it: a jpg, png or
        webp, of a `Feature` also a video or a zip. There are none where its answer is all (`raw`).
        200 avatars may be some hundred megabytes, so `result.images[i].read()` gives one. Raises
        as `save` does, but for the disk's errors.
        """
        return await self._session.executor.call(self._read_all)

    async def save(self, target: str | os.PathLike[str]) -> list[Path]:
        """Write the pictures to `target` and give their paths, in the order of `images`.

        `target` is a folder if one is there or if it has no picture's suffix; a missing folder is
        made. A file in it is called `<source's stem, cleaned>-<16 hex of the job's
        identity>[-<i>].<type>`, the same at each saving and different for each job. Any other
        `target` is the path of a file, whose suffix becomes that of the bytes; several pictures
        become `<stem>-1<suffix>`, `<stem>-2<suffix>`, ...

        What a `Feature` answers beside URLs is written too: `raw`, as a last file of JSON. A file
        appears whole or not at all: it replaces a former one at the end (a link itself, not
        the link's target), and nothing else is left behind. Pictures saved before one that fails
        stay. Saving again is always possible and never charged.

        A URL that has expired is asked for again (one request). Raises `BadAnswer` where the
        download is no picture, `RequestRefused` and `ServiceUnavailable` (after three tries) where
        it fails or ends early, `ConfigurationError` for an empty `target` or a NUL in it, and
        `OSError` as the disk does.
        """
        return await self._session.executor.call(partial(self._save_all, os.fspath(target)))

    async def _save_all(self, path: str) -> list[Path]:
        target = await in_thread(SaveTarget.of, path)

        def put(index: int, part: AtomicFile, kind: str) -> Path:
            number = index + 1 if self.file_count > 1 else None
            if target.name is None:
                name = names.in_folder(self._stem, self._identity, kind, number)
            else:
                name = names.as_file(Path(target.name), kind, number).name
            part.replace(target.folder / name)
            return target.folder / name

        return await self._write(target.folder, range(self.file_count), put)

    async def _write(self, folder: Path, wanted: Sequence[int], put: Put) -> list[Path]:
        """Download the pictures of the indices `wanted`; a `Write` of `_files.sets`."""
        await self._session.retention.clean_folder(folder)
        downloads = self._downloads()
        saved: list[Path] = []
        for index in wanted:
            named = partial(put, index)
            if index == len(self.images):
                saved.append(await self._write_answer(folder, named))
            else:
                part = partial(AtomicFile, folder)
                saved.append(await downloads.get(index, self.images[index], part, named))
        return saved

    async def _write_answer(self, folder: Path, put: Callable[[AtomicFile, str], Path]) -> Path:
        """Write the answer itself."""
        raw = self.raw
        if raw is None:
            raw = await self._session.answer(self._feature, self.task_id)
        part = AtomicFile(folder)
        try:
            await in_thread(part.write, json.dumps(raw, indent=2).encode())
            return await in_thread(put, part, "json")
        finally:
            with anyio.move_on_after(_CLEANUP, shield=True):
                await in_thread(part.discard)

    async def _read_all(self) -> list[bytes]:
        downloads = self._downloads()
        return [
            await downloads.get(index, image, _Memory, _Memory.read)
            for index, image in enumerate(self.images)
        ]

    def _downloads(self) -> _Downloads:
        return _Downloads(self._session, self._feature, self.task_id, len(self.images))


async def save_beside(
    result: Result, pictures: PictureSet, former: Sequence[Path]
) -> Sequence[Path]:
    """Save the `pictures` of `result`, as `Result.save` does, and replace no file.

    `former` are the files of all pictures of this task, if it was saved before: those that are
    there stay as they are, and the others are written again.
    """
    count = pictures.count
    if former and not any(image.url for image in result.images):
        whole = await in_thread(lambda: all(path.is_file() for path in former))
        if whole:
            # The number of its files is not known before it is asked for again.
            return former
    # Not for users, and so no public method.
    write = partial(result._write, pictures.folder)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if len(former) != count:
        return await save_set(pictures, result.task_id, write)

    def put(index: int, part: AtomicFile, _: str) -> Path:
        part.put(former[index])
        return former[index]

    there = await in_thread(lambda: [path.is_file() for path in former])
    kept = {index: former[index] for index in range(count) if there[index]}
    return await complete_set(kept, count, put, write)


@attrs.frozen(eq=False, repr=False)
class Done(Value):
    """A job that is done: `result` has its pictures.

    `units` were charged for it, including repeated tries; 0.0 where an equal job paid for the task.
    `duration` is the seconds from its creation to its end, None where the creation was not seen.
    `files` are the paths of its pictures, if the batch was to save them (`save_to`). `changes` says
    what was changed in the picture to make it fit (`Client(fit=True)`).
    """

    job: Job
    result: Result
    task_id: str
    units: float
    duration: float | None
    files: tuple[Path, ...] = attrs.field(default=(), kw_only=True)
    changes: tuple[str, ...] = attrs.field(default=(), kw_only=True, repr=False)
    ok: Literal[True] = attrs.field(default=True, init=False, repr=False)
    error: None = attrs.field(default=None, init=False, repr=False)

    def unwrap(self) -> Result:
        """Return the result."""
        return self.result


@attrs.frozen(eq=False, repr=False)
class Failed(Value):
    """A job that failed: `error` says why and what to do next.

    `task_id` is None where no task was created or its id never came. `units` were charged and not
    given back. `duration` is the seconds from creation to end, None where there is none. `changes`
    as in `Done`.
    """

    job: Job
    error: PerfectError
    task_id: str | None
    units: float
    duration: float | None
    files: tuple[Path, ...] = attrs.field(default=(), init=False, repr=False)
    changes: tuple[str, ...] = attrs.field(default=(), kw_only=True, repr=False)
    ok: Literal[False] = attrs.field(default=False, init=False, repr=False)
    result: None = attrs.field(default=None, init=False, repr=False)

    def unwrap(self) -> NoReturn:
        """Raise `error`."""
        raise self.error


Outcome: TypeAlias = Done | Failed


def _picture_type(head: bytes) -> str:
    """Return the type of a picture that begins with `head`; raises `BadAnswer` for other data."""
    if not head:
        raise BadAnswer("the vendor's result is empty; nothing was written.")
    kind = sniff(head)
    if kind not in names.RESULT_KINDS:
        beginning = quoted(head[:16].decode("latin-1"))
        raise BadAnswer(
            f"the vendor's result is no picture but begins with {beginning}; nothing was written."
        )
    return kind
