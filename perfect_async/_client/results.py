"""What came back: `Done` or `Failed`, and pictures that can be saved."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final, Literal, NoReturn, Protocol, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import attrs

from perfect_async._files import names
from perfect_async._files.images import HEAD, sniff
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

T = TypeVar("T")

_KNOWN: Final = {"jpg", "png", "webp", "gif", "heic"}

# A URL that ends this soon may end on the way (contract: Download the result).
_MARGIN: Final = timedelta(minutes=1)

# What S3 says to a URL that ended or lost its object, or to a session's token that ended.
_GONE: Final = {400, 403, 404, 410}

_SEPARATORS: Final = re.compile("[" + re.escape(os.sep + (os.altsep or "")) + "]")

# Seconds before the second and third try of a download that broke off.
_PAUSES: Final = (0.5, 2.0)

# Seconds that a cancelled save may take to remove its temporary file.
_SWEEP: Final = 5.0


@attrs.frozen
class ResultImage:
    """One picture of a result: a signed URL (not in the repr), good until `expires_at` (UTC)."""

    url: str = attrs.field(repr=lambda url: repr(redacted(url)))
    expires_at: datetime


class Store(Protocol):
    """What a result needs from the client that it came from."""

    async def at_home(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` where the client's connections are; the rest is to be called from there."""
        ...

    async def refresh(self, feature: str, task_id: str) -> tuple[ResultImage, ...]:
        """Ask for the task again: the same pictures in the same order, with fresh URLs."""
        ...

    def download(self, url: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes behind a result URL, in pieces.

        Entering or iterating raises `RequestRefused`, `ServiceUnavailable` or `BadAnswer`.
        """
        ...

    def now(self) -> datetime:
        """The time, in UTC and saying so."""
        ...


@attrs.frozen
class Result:
    """The pictures of one finished task, in the vendor's order.

    `task_id` is the vendor's. The URLs end after 2 h; `save` asks for fresh ones, which the vendor
    gives for a day at least. (contract: Download the result)
    """

    task_id: str
    images: tuple[ResultImage, ...]
    _feature: str = attrs.field(alias="feature", kw_only=True, repr=False, eq=False)
    _stem: str = attrs.field(alias="stem", kw_only=True, repr=False, eq=False)
    _identity: str = attrs.field(alias="identity", kw_only=True, repr=False, eq=False)
    _store: Store = attrs.field(alias="store", kw_only=True, repr=False, eq=False)

    async def save(self, target: str | os.PathLike[str]) -> list[Path]:
        """Write the pictures to `target` and give their paths, in the order of `images`.

        A folder, or a path without a picture's suffix: the folder is made where it is missing, and
        a file in it is called `<source's stem, cleaned>-<8 hex of the job's
        identity>[-<i>].<type>`, the same at each saving and no other job's. Anything else is the
        path of a file, whose suffix becomes the bytes' own; several become `<stem>-1<suffix>`,
        `<stem>-2<suffix>`, ...

        A file appears whole or not at all: what was there before is replaced at the end (a link
        too, not what it leads to), and nothing else is left behind, whatever happens. Pictures
        saved before one that fails stay; saving again is always possible and never charged.

        A URL that ended is asked for again (one request). Raises `BadAnswer` where what comes is no
        picture, `RequestRefused` and `ServiceUnavailable` (after three tries) where nothing comes,
        `ConfigurationError` for an empty `target` or a NUL in it, and `OSError` as the disk does.
        """
        return await self._store.at_home(partial(self._save_all, os.fspath(target)))

    async def _save_all(self, target: str) -> list[Path]:
        place = await _in_thread(SaveTarget.of, target)
        images = self.images
        paths: list[Path] = []
        for index in range(len(images)):
            number = index + 1 if len(images) > 1 else None
            ended = images[index].expires_at <= self._store.now() + _MARGIN
            if ended:
                images = await self._refreshed()
            try:
                path = await self._save(images[index], place, number)
            except RequestRefused as exc:
                if ended or exc.status not in _GONE:
                    raise
                images = await self._refreshed()
                path = await self._save(images[index], place, number)
            paths.append(path)
        return paths

    async def _refreshed(self) -> tuple[ResultImage, ...]:
        images = await self._store.refresh(self._feature, self.task_id)
        if len(images) != len(self.images):
            raise BadAnswer(
                f"task {quoted(self.task_id)} had {len(self.images)} pictures, "
                f"and has {len(images)} when asked again."
            )
        return images

    async def _save(self, image: ResultImage, place: SaveTarget, number: int | None) -> Path:
        for pause in _PAUSES:
            try:
                return await self._fetch(image.url, place, number)
            except ServiceUnavailable:
                await anyio.sleep(pause)
        return await self._fetch(image.url, place, number)

    async def _fetch(self, url: str, place: SaveTarget, number: int | None) -> Path:
        part = AtomicFile(place.folder / f".{secrets.token_hex(8)}.part")
        head = b""
        try:
            async with self._store.download(url) as pieces:
                async for piece in pieces:
                    if len(head) < HEAD:
                        head += piece[:HEAD]
                        if len(head) >= HEAD:
                            _known(head)  # an error page is not worth its download
                    await _in_thread(part.write, piece)
            kind = _known(head)
            if place.name is None:
                name = names.in_folder(self._stem, self._identity, kind, number)
            else:
                name = names.as_file(Path(place.name), kind, number).name
            await _in_thread(part.become, place.folder / name)
        finally:
            with anyio.move_on_after(_SWEEP, shield=True):
                await _in_thread(part.discard)
        return place.folder / name


@attrs.frozen
class Done:
    """A job that is done: `result` has its pictures.

    `units` were charged for it, tries of ours included: 0.0 where an equal job paid for the task;
    `duration` is the seconds from its creation to its end, None where the creation was not seen.
    `files` are where the pictures were saved, if the batch was to save them (`save_to`).
    """

    job: Job
    result: Result
    task_id: str
    units: float
    duration: float | None
    files: tuple[Path, ...] = attrs.field(default=(), kw_only=True)
    ok: Literal[True] = attrs.field(default=True, init=False, repr=False)
    error: None = attrs.field(default=None, init=False, repr=False)

    def unwrap(self) -> Result:
        """The result."""
        return self.result


@attrs.frozen
class Failed:
    """A job that is not done: `error` says why and what to do next.

    `task_id` is None where no task was created or its id never came; `units` are those charged
    and not given back; `duration` is the seconds from creation to end, None where there is none.
    """

    job: Job
    error: PerfectError
    task_id: str | None
    units: float
    duration: float | None
    files: tuple[Path, ...] = attrs.field(default=(), init=False, repr=False)
    ok: Literal[False] = attrs.field(default=False, init=False, repr=False)
    result: None = attrs.field(default=None, init=False, repr=False)

    def unwrap(self) -> NoReturn:
        """Raise `error`."""
        raise self.error


Outcome: TypeAlias = Done | Failed


async def _in_thread(function: Callable[..., T], *args: object) -> T:
    # Abandoned on cancellation: a disk that hangs holds up nobody, and `AtomicFile` allows it.
    return await anyio.to_thread.run_sync(partial(function, *args), abandon_on_cancel=True)


def _known(head: bytes) -> str:
    """The type of a picture that begins with `head`; `BadAnswer` for anything that is none."""
    if not head:
        raise BadAnswer("the vendor's result is empty; nothing was written.")
    kind = sniff(head)
    if kind not in _KNOWN:
        beginning = quoted(head[:16].decode("latin-1"))
        raise BadAnswer(
            f"the vendor's result is no picture but begins with {beginning}; nothing was written."
        )
    return kind


@attrs.frozen
class SaveTarget:
    """Where a result goes: `folder`, and the file's name in it if the user gave one."""

    folder: Path
    name: str | None

    @classmethod
    def of(cls, target: str) -> SaveTarget:
        """Read `target` as the user meant it, and make its folder. Raises what `save` does."""
        if not target or "\0" in target:
            raise ConfigurationError(f"save cannot write to {quoted(target)}.")
        path = Path(target)
        # Path forgets a last separator or dot; a file cannot be called so. A name without the
        # suffix of a picture is a folder's even where there is none yet: else a batch saved to
        # Path("out") would be one file, written again and again.
        end = re.split(_SEPARATORS, target)[-1]
        pictured = path.suffix.lower() in names.SUFFIXES
        if end in {"", os.curdir, os.pardir} or path.is_dir() or not pictured:
            folder, name = path, None
        else:
            folder, name = path.parent, path.name
        # The folder of a file too: the picture is paid for, and not to be lost to a missing folder.
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, name)


class AtomicFile:
    """A file on its way: written beside its target, then put in its place or removed.

    Every method blocks and runs in a worker thread. A cancelled coroutine leaves its thread at
    work, so `discard` may come before the last `write` has even begun: a lock puts them in a row,
    and a part that is gone makes no file any more. Nothing is made before the first byte.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._over = False
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append `data`; raises `OSError`, in whose wake `discard` cleans up."""
        with self._lock:
            if self._over:
                return
            if self._file is None:
                # "x" is O_EXCL: never through a link, never into a file of somebody else.
                self._file = self._path.open("xb", buffering=0)
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def become(self, target: Path) -> None:
        """Replace `target` by what was written, whole and on the disk. Raises `OSError`."""
        with self._lock:
            if self._over or self._file is None:
                return
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.replace(target)
            self._over = True

    def discard(self) -> None:
        """Remove what is there, unless it has become its target; never raises `OSError`."""
        with self._lock:
            if self._over or self._file is None:
                self._over = True
                return
            self._over = True
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._path.unlink()
