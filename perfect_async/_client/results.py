"""The outcomes of jobs, `Done` and `Failed`, and results whose pictures can be saved."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Protocol, TypeAlias, TypeVar, cast

import anyio
import attrs

from perfect_async._api.tasks import pictures_only, says_more
from perfect_async._client.settings import attach_call
from perfect_async._files import names
from perfect_async._files.endings import has_end
from perfect_async._files.images import HEAD, sniff
from perfect_async._files.saving import AtomicFile, SaveTarget
from perfect_async._files.sets import PictureSet, Put, complete_set, save_set
from perfect_async._files.threads import in_thread
from perfect_async._value import Value
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    ConfigurationError,
    NotSaved,
    PerfectError,
    RequestRefused,
    ServiceUnavailable,
    quoted,
    redacted,
    shown_value,
)
from perfect_async.models import Job

if TYPE_CHECKING:
    from perfect_async._client.session import ClientSession

T = TypeVar("T")
P = TypeVar("P", bound="_Part")

_MARGIN: Final = timedelta(minutes=1)
"""A URL that expires this soon counts as expired (contract: Download the result)."""
_GONE: Final = {400, 403, 404, 410}
"""The storage's statuses for a URL or session that has expired, or a file that is gone."""
_PAUSES: Final = (0.5, 2.0)
"""Seconds before the second and third try of a download that failed."""
_CLEANUP: Final = 5.0
"""Seconds that a cancelled save may take to remove its temporary file."""


class _Part(Protocol):
    """The place to which a file is downloaded. Every method may block."""

    def write(self, data: bytes) -> None:
        """Append `data`."""
        ...

    def is_whole(self, kind: str) -> bool:
        """Return whether the data so far is a whole picture of the type `kind`."""
        ...

    def discard(self) -> None:
        """Drop the data, unless it was put somewhere."""
        ...


class _Memory:
    """A download into memory."""

    def __init__(self) -> None:
        self._data = io.BytesIO()

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._data.write(data)

    def is_whole(self, kind: str) -> bool:
        """Return whether the data so far is a whole picture of the type `kind`."""
        return has_end(self._data, kind)

    def read(self, _: str) -> bytes:
        """Return the data."""
        return self._data.getvalue()

    def discard(self) -> None:
        """Do nothing, since memory is freed by itself."""


@attrs.frozen
class ImagePlace:
    """The task that a picture belongs to, and the picture's `index` among its `count` pictures.

    `pictures_only` as in `Job`: otherwise the file may be anything.
    """

    session: ClientSession
    feature: str
    task_id: str
    index: int
    count: int
    pictures_only: bool


@attrs.frozen(eq=False, repr=False)
class ResultImage(Value):
    """One file of a result: a picture, or a video or zip of a `Feature`.

        data = await result.images[0].read()         # while the client is open

    - `url`: a signed URL; anybody who has it can download the file. The repr shows it without its
      query, which holds the signature.
    - `expires_at`: until when the URL works, in UTC. `read` asks for a new one after that.
    """

    url: str = attrs.field(repr=lambda url: repr(redacted(url)))
    expires_at: datetime
    _place: ImagePlace | None = attrs.field(
        default=None, alias="place", kw_only=True, repr=False, eq=False
    )

    async def read(self) -> bytes:
        """Download the file into memory and return its bytes.

            data = await result.images[0].read()

        The bytes are a whole jpg, png or webp, unchanged; of a `Feature` also a video or a zip.
        Reading again is never charged; if the URL has expired, a new one costs one request. Raises
        as `Result.save` does, except errors of the disk, and `ConfigurationError` for an image that
        does not come from a result.
        """
        place = self._place
        if place is None:
            raise ConfigurationError(
                "This image does not come from a result, so it cannot be downloaded."
            )
        downloads = _Downloads(
            place.session,
            place.feature,
            place.task_id,
            place.count,
            pictures_only=place.pictures_only,
        )
        work = partial(downloads.get, place.index, self, _Memory, _Memory.read)
        return await _call(place.session, place.feature, place.task_id, work)


async def _call(
    session: ClientSession, feature: str, task_id: str, work: Callable[[], Awaitable[T]]
) -> T:
    """Await the `work` for the result of a task. Raises `ClientClosed` that names the task."""
    try:
        return await session.executor.call(work)
    except ClientClosed as exc:
        error = ClientClosed(
            f"The client is closed, so the result of task {quoted(task_id)} was not downloaded; "
            "the vendor keeps it for a day at least, unless it was deleted."
        )
        error.hint = (
            "Nothing needs to be bought again: read or save results inside `async with`, or open a "
            f"client and call `{attach_call(feature, task_id)}`."
        )
        raise error from exc


class _Downloads:
    """Downloads the pictures of one task, and asks for new URLs when they have expired."""

    def __init__(
        self,
        session: ClientSession,
        feature: str,
        task_id: str,
        count: int,
        *,
        pictures_only: bool,
    ) -> None:
        self._pictures_only = pictures_only
        self._session = session
        self._feature = feature
        self._task_id = task_id
        self._count = count
        self._fresh: tuple[ResultImage, ...] = ()

    async def get(
        self, index: int, image: ResultImage, part: Callable[[], P], put: Callable[[P, str], T]
    ) -> T:
        """Download the picture of this `index` into a new `part`, and return the result of `put`.

        `put` is called with the part and the picture's type once the picture is whole.
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
        images = await self._session.refresh(
            self._feature, self._task_id, pictures_only=self._pictures_only
        )
        if len(images) != self._count:
            raise BadAnswer(
                f"task {quoted(self._task_id)} had {self._count} pictures before, and the vendor "
                f"now names {len(images)}."
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
            # Anything else than a picture may be a video.
            large = not self._pictures_only
            async with self._session.download(url, large=large) as pieces:
                async for piece in pieces:
                    if len(head) < HEAD:
                        head += piece[:HEAD]
                        if len(head) >= HEAD:
                            _picture_type(head)  # raises early for an error page
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


class Answer:
    """The files and the answer of a finished task, once the vendor was asked for them again."""

    __slots__ = ("_found", "_lock")

    def __init__(self) -> None:
        self._found: tuple[tuple[ResultImage, ...], object] | None = None
        self._lock: anyio.Lock | None = None

    async def get(
        self, ask: Callable[[], Awaitable[tuple[tuple[ResultImage, ...], object]]]
    ) -> tuple[tuple[ResultImage, ...], object]:
        """Return the answer of the first `ask` that succeeds."""
        # Made in the loop that uses it; few results need it.
        self._lock = self._lock or anyio.Lock()
        async with self._lock:
            if self._found is None:
                self._found = await ask()
            return self._found


@attrs.frozen(eq=False, repr=False)
class Result(Value):
    """The pictures of one finished task, in the vendor's order.

        result = await client.run(Smile("selfie.jpg"))
        await result.save("smiling.jpg")        # or: [data] = await result.read()

    Save or read it while the client is open. After that, `Client.attach` of another client fetches
    the result again at no charge.

    - `task_id`: the vendor's id.
    - `images`: the pictures, see `ResultImage`.
    - `job`: the job; None if only the task's id is known, as after `attach`.
    - `units`: the units that were charged for it, all tries included; 0.0 if an equal job, another
      process or a former run paid for the task. It is counted by the price of the job. If `priced`
      is False, nobody gave that price, and each task counts as 1 unit, the least that it can cost.
    - `duration`: the seconds from the creation of the task to its end; None if the client did not
      create it.
    - `files`: the paths of the saved files, if the job had `save_to`.
    - `changes`: what `Client(fit=True)` changed in the pictures that were sent.
    - `raw`: the vendor's whole answer, decoded; the scores and colours of a `Feature` are only
      here. It holds signed URLs, so the repr leaves it out. It is None if the files of a former run
      were found, so that the vendor was not asked.

    URLs expire after 2 h; `save` and `read` then ask for new ones, which the vendor gives for a day
    at least, unless its copy was deleted. (contract: Download the result)
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
    # Copies of a result share it, so that none of them asks again.
    _answer: Answer = attrs.field(
        factory=Answer, alias="answer", kw_only=True, repr=False, eq=False
    )

    @property
    def priced(self) -> bool:
        """Whether `units` is what was charged; False for a `Feature` without `units=`.

        `Client.history` lists what the vendor has charged.
        """
        return self.job is None or self.job.priced or not self.units

    @property
    def outputs(self) -> tuple[ResultImage, ...]:
        """The files of a `Feature`'s result: pictures, videos or zips; the same as `images`.

        It is empty if the vendor's answer has no URL; then `raw` is the whole result.
        """
        return self.images

    @property
    def file_count(self) -> int:
        """The number of files that `save` writes, a file with `raw` included."""
        more = not self._pictures_only and says_more(self.raw)
        return len(self.images) + (more or not self.images)

    @property
    def _pictures_only(self) -> bool:
        return pictures_only(self._feature, self.job)

    async def read(self) -> list[bytes]:
        """Download the pictures into memory and return their bytes, in the order of `images`.

            [data] = await result.read()

        Each is a whole file, unchanged: a jpg, png or webp, of a `Feature` also a video or a zip.
        The list is empty if `raw` is the whole result. 200 avatars may take some hundred megabytes;
        `result.images[i].read()` returns one picture. Call it while the client is open. Raises as
        `save` does, except errors of the disk.
        """
        return await self._call(self._read_all)

    async def save(self, target: str | os.PathLike[str]) -> list[Path]:
        """Download the pictures to `target` and return their paths, in the order of `images`.

            await result.save("smiling.jpg")       # one file; its suffix becomes that of the bytes
            await result.save("out/")              # a folder, made if it is missing

        `target` is a folder if it exists as one or has no suffix of a picture; otherwise it is the
        path of a file. Files in a folder are named `<stem of the source>-<16 hex digits of the
        job's identity>[-<i>].<type>`: the same at each saving, and different for each job. Several
        pictures with a file's path are named `<stem>-1<suffix>`, `<stem>-2<suffix>` and so on. If
        the answer of a `Feature` has more than URLs, a last file holds `raw` as JSON.

        A file appears only when it is whole, and replaces a file of the same name (a link itself,
        not its target). Two files are never replaced: a source of the job, and another file whose
        name you did not give, since `target` had another suffix. If one picture fails, those before
        it stay. Saving again is never charged; if a URL has expired, a new one costs one request.
        Call it while the client is open.

        Raises `NotSaved` instead of replacing such a file; pass another `target` then. Raises
        `ClientClosed` if the client is closed, `TaskExpired` if the vendor no longer has the
        result, `BadAnswer` if the download is not a picture, `RequestRefused` or
        `ServiceUnavailable` if it fails (after three tries) or ends early, `ConfigurationError` for
        an empty `target` or one with a NUL, and `OSError` for errors of the disk.
        """
        path = cast("object", target)
        if not isinstance(path, str | os.PathLike):
            raise ConfigurationError(
                f"save cannot write to {shown_value(path)}: pass the path of a folder or a file."
            )
        return await self._call(partial(self._save_all, os.fspath(target)))

    async def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        return await _call(self._session, self._feature, self.task_id, work)

    async def _known(self) -> Result:
        """Return the result with the vendor's answer, if that is needed to know its files.

        The answer is missing if a former process saved the files; it costs one request, once.
        """
        if self._pictures_only or self.raw is not None:
            return self
        ask = partial(self._session.answer, self._feature, self.task_id)
        images, raw = await self._answer.get(ask)
        return attrs.evolve(self, images=images, raw=raw)

    async def _save_all(self, path: str) -> list[Path]:
        target = await in_thread(SaveTarget.of, path)
        known = await self._known()
        count = known.file_count

        def put(index: int, part: AtomicFile, kind: str) -> Path:
            number = index + 1 if count > 1 else None
            if target.name is None:
                name = names.in_folder(self._stem, self._identity, kind, number)
            else:
                name = names.as_file(Path(target.name), kind, number).name
            path = target.folder / name
            if self._is_source(path):
                raise self._not_replaced(path, "is the job's own source")
            if target.name is None or path.suffix == Path(target.name).suffix:
                part.replace(path)
                return path
            part.put(path)
            if not part.is_at(path):
                raise self._not_replaced(
                    path,
                    f"exists already; the result is a {kind}, so {quoted(target.name)} cannot be "
                    "its name",
                )
            return path

        return await known._write(target.folder, range(count), put)  # noqa: SLF001 - as `self`

    def _is_source(self, path: Path) -> bool:
        """Return whether `path` is the file of an input of the job."""
        return any(
            _is_same_file(path, name)
            for each in (() if self.job is None else self.job.inputs)
            if (name := names.file_name(each.source)) is not None
        )

    def _not_replaced(self, path: Path, why: str) -> NotSaved:
        error = NotSaved(
            f"{quoted(path)} {why}, and was not replaced.",
            task_id=self.task_id,
            units_at_stake=self.units,
        )
        error.hint = (
            "The vendor keeps the result for a day at least: call `save` again with another name, "
            "or with a folder."
        )
        return error

    async def _write(self, folder: Path, wanted: Sequence[int], put: Put) -> list[Path]:
        """Download the pictures with the indices `wanted`; this is a `Write` of `_files.sets`."""
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
        """Write `raw` as a file of JSON."""
        part = AtomicFile(folder)
        try:
            await in_thread(part.write, json.dumps(self.raw, indent=2).encode())
            return await in_thread(put, part, "json")
        finally:
            with anyio.move_on_after(_CLEANUP, shield=True):
                await in_thread(part.discard)

    async def _read_all(self) -> list[bytes]:
        # Without files there is nothing to ask for.
        known = await self._known() if self.images else self
        downloads = known._downloads()  # noqa: SLF001 - as `self`
        return [
            await downloads.get(index, image, _Memory, _Memory.read)
            for index, image in enumerate(known.images)
        ]

    def _downloads(self) -> _Downloads:
        return _Downloads(
            self._session,
            self._feature,
            self.task_id,
            len(self.images),
            pictures_only=self._pictures_only,
        )


async def with_answer(result: Result) -> Result:
    """Return `result` with the vendor's answer, if that is needed to know its files."""
    return await result._known()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


async def save_beside(
    result: Result, pictures: PictureSet, former: Sequence[Path]
) -> Sequence[Path]:
    """Save the `pictures` of `result`, as `Result.save` does, without replacing a file.

    `former` are the files of all pictures of this task, if it was saved before. Those that still
    exist are kept, and the others are written again.
    """
    if former and not any(image.url for image in result.images):
        whole = await in_thread(lambda: all(path.is_file() for path in former))
        if whole:
            # The number of files is unknown until the vendor is asked again.
            return former
    known = await with_answer(result)
    # Not a public method, since it is not for users.
    write = partial(known._write, pictures.folder)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    count = known.file_count
    pictures = attrs.evolve(pictures, count=count)
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
    """The outcome of a job that succeeded.

        async for outcome in batch:
            if outcome.ok:
                await outcome.result.save("out/")

    - `job`: the job; `result`: its pictures; `task_id`: the vendor's id.
    - `units`: as in `Result`: the least that was charged if `result.priced` is False.
    - `duration`: the seconds from the creation of the task to its end; None if the client did not
      create it.
    - `files`: the paths of the saved files, if the batch had `save_to`.
    - `changes`: what `Client(fit=True)` changed in the picture that was sent.
    - `ok` is True and `error` is None, see `Failed`.
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
        """Return `result`; the same call on a `Failed` raises its error."""
        return self.result


@attrs.frozen(eq=False, repr=False)
class Failed(Value):
    """The outcome of a job that failed.

        async for outcome in batch:
            if not outcome.ok:
                print(outcome.job, outcome.error)     # why, and what to do next

    - `job`: the job.
    - `error`: the reason, with `message`, `hint` and `units_at_stake`, see `PerfectError`.
    - `task_id`: the vendor's id; None if no task was created or its id is unknown.
    - `units`: the units that were charged and not returned; each task counts as 1 unit if the price
      of the job is unknown (`job.priced` is False).
    - `duration`: the seconds from the creation of the task to its end, or None.
    - `changes`: as in `Done`.
    - `ok` is False, `result` is None and `files` is empty.
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
"""The outcome of one job of a batch: `outcome.ok` is True for `Done` and False for `Failed`."""


def _is_same_file(path: Path, name: str) -> bool:
    try:
        return path.samefile(name)
    except (OSError, ValueError):
        return False


def _picture_type(head: bytes) -> str:
    """Return the type of a picture that begins with `head`. Raises `BadAnswer` for other data."""
    if not head:
        raise BadAnswer("the vendor's result is empty; nothing was written.")
    kind = sniff(head)
    if kind not in names.RESULT_KINDS:
        beginning = quoted(head[:16].decode("latin-1"))
        raise BadAnswer(
            f"the vendor's result is not a picture: it begins with {beginning}; nothing was "
            "written."
        )
    return kind
