"""A batch over machines: orders in a queue, and workers that perform each of them once.

An order is plain JSON, so any queue that delivers a message until it is acknowledged can carry it:

    performer = Performer(client, folders=["/shared"])   # Client(share="redis://...", reuse=True)
    answer = await performer.perform(make_order(Smile("/shared/in/a.jpg"), "/shared/out"))

Performing an order again is safe: the ledger of the key says whether its job was bought, so a
second delivery takes over the task that runs, or fetches the result that is there. `Worker` and
`enqueue` are such a queue on Redis, by streaq (extra `fleet`): `perfect-async worker` and
`perfect-async enqueue` in the terminal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import anyio
import attrs
from anyio.abc import TaskStatus

from perfect_async import Client, Failed
from perfect_async.errors import (
    ClientClosed,
    ConfigurationError,
    JobRefused,
    NotSaved,
    PerfectError,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    UnitsExhausted,
    quoted,
    redacted,
)
from perfect_async.models import Avatar, Job, Smile

if TYPE_CHECKING:
    import streaq

    from perfect_async import Batch

__all__ = ["Answer", "Order", "Performer", "Worker", "enqueue", "make_order"]

_LOG: Final = logging.getLogger("perfect_async")

Order: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]

QUEUE: Final = "perfect_async"
"""The name of the queue in Redis."""
_TASK: Final = "perform"
_FEATURES: Final[Mapping[str, type[Job]]] = {kind.feature: kind for kind in (Smile, Avatar)}
_FIELDS: Final = frozenset({"feature", "source", "parameters", "key", "save_to", "digest"})
_LONGEST: Final = 4096
"""Characters of a text in an order."""
_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_BLOCK: Final = 1 << 20

_LATER: Final = (
    *(ClientClosed, ConfigurationError, Unauthorized, UnitsExhausted),
    *(RateLimited, ServiceUnavailable),
)
"""Errors that are nothing of the order's: another delivery, later, may do it."""
_FATAL: Final = (ConfigurationError, Unauthorized)
"""Errors that every order of this worker would meet."""

CONCURRENCY: Final = 64
"""Orders that a worker has at hand: more than a key can have running tasks at first."""
_IDLE: Final = 6.0
"""Seconds without a sign of life after which another worker takes over an order."""
_PAUSE: Final = 30
"""Seconds until an order is delivered again that could not be performed just now."""
_KEPT: Final = 24 * 3600
"""Seconds for which an answer is kept in Redis, as long as the vendor keeps the result."""
_RECONNECT: Final = 1.0


# Orders and answers.


def make_order(job: Job, save_to: str | os.PathLike[str], *, digest: str | None = None) -> Order:
    """Return the order for `job`, to be saved in the folder `save_to`: plain JSON.

    Its source is an absolute path that all machines see, or an http(s) URL. `digest` is the SHA-256
    of the picture's file in hexadecimal digits: a file that has changed since is refused. Raises
    `JobRefused` for another job than a `Smile` or an `Avatar`, and for a source that cannot travel
    (bytes, an open file, a relative path).
    """
    if not isinstance(job, tuple(_FEATURES.values())):
        raise JobRefused("an order is for a Smile or an Avatar.")
    source = job.source
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str) or not (_URL.match(source) or Path(source).is_absolute()):
        raise JobRefused("an order's source is an absolute path or an http(s) URL.")
    names = _parameter_names(type(job))
    order: Order = {
        "feature": job.feature,
        "source": source,
        "parameters": {
            name: value for name in sorted(names) if (value := getattr(job, name)) is not None
        },
        "save_to": os.fspath(save_to),
    }
    if job.key is not None:
        order["key"] = job.key
    if digest is not None:
        order["digest"] = digest
    _read(order)
    return order


@attrs.frozen
class _Read:
    """An order whose fields are of the right kind. `path` is None where the source is a URL."""

    make: Callable[[str], Job]
    source: str
    path: str | None
    save_to: str
    digest: str | None


def _read(order: object) -> _Read:
    """Check everything of `order` that can be checked without a disk. Raises `JobRefused`."""
    if not isinstance(order, Mapping):
        raise JobRefused("an order is a JSON object.")
    fields = cast("Mapping[object, object]", order)
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise JobRefused(f"an order has no field {quoted(unknown[0])}.")
    feature = _text(fields, "feature")
    kind = _FEATURES.get(feature)
    if kind is None:
        raise JobRefused(f"no order is for the feature {quoted(feature)}.")
    key = _text(fields, "key") if fields.get("key") is not None else None
    parameters = _parameters(fields.get("parameters", {}), kind)

    def make(source: str) -> Job:
        try:
            return cast("Callable[..., Job]", kind)(source=source, key=key, **parameters)
        except TypeError:
            raise JobRefused(f"an order for {feature} lacks a parameter.") from None

    source, save_to = _text(fields, "source"), _text(fields, "save_to")
    make(source)
    path = None if _URL.match(source) else source
    for place in (path, save_to):
        if place is not None and not os.path.isabs(place):  # noqa: PTH117 - text of any system
            raise JobRefused(
                f"{quoted(place)} is no absolute path, and no http(s) URL: workers have other "
                "folders."
            )
    digest = _text(fields, "digest") if fields.get("digest") is not None else None
    if digest is not None and (path is None or not _DIGEST.fullmatch(digest)):
        raise JobRefused("an order's digest is the SHA-256 of its file in hexadecimal digits.")
    return _Read(make, source, path, save_to, digest)


def _text(fields: Mapping[object, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or "\0" in value:
        raise JobRefused(f"an order's {name} is text of 1 to {_LONGEST} characters.")
    return value


def _parameter_names(kind: type[Job]) -> set[str]:
    fields = attrs.fields(cast("type[attrs.AttrsInstance]", kind))
    return {field.name for field in fields} - {"source", "key"}


def _parameters(given: object, kind: type[Job]) -> dict[str, str | int]:
    known = _parameter_names(kind)
    if not isinstance(given, Mapping):
        raise JobRefused("an order's parameters are a JSON object.")
    parameters: dict[str, str | int] = {}
    for name, value in cast("Mapping[object, object]", given).items():
        if name not in known:
            raise JobRefused(f"{kind.feature} has no parameter {quoted(name)}.")
        if type(value) not in {str, int} or len(str(value)) > _LONGEST:
            raise JobRefused(f"the parameter {name} is text or a whole number.")
        parameters[str(name)] = cast("str | int", value)
    return parameters


def _refusal(error: PerfectError, task_id: str | None = None, units: float = 0.0) -> Answer:
    """Return the answer to an order that failed for good."""
    task_id = task_id or getattr(error, "task_id", None)
    told: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "units_at_stake": error.units_at_stake,
        "candidates": list(getattr(error, "candidates", ())),
        "code": getattr(error, "code", None),
    }
    return {"ok": False, "task_id": task_id, "files": [], "units": units, "error": told}


# Performing.


class Performer:
    """Performs orders on `client`, which shares its key and has `reuse=True`.

    Pictures are read, and results are written, below `folders` only, links followed: an order may
    come from anybody who reaches the queue. Raises `ConfigurationError` for no folder.
    """

    def __init__(self, client: Client, folders: Iterable[str | os.PathLike[str]]) -> None:
        self._client = client
        self._folders = tuple(os.fspath(each) for each in folders)
        if not self._folders:
            raise ConfigurationError("folders names no folder: orders could neither read nor save.")
        self._batches: set[Batch] = set()
        self._stopped = False

    async def perform(self, order: Order) -> Answer:
        """Buy the order's job, or take what was bought for it, save the result, and say so.

        The answer is JSON: `ok`, `task_id`, `files` (paths), `units` (what the task cost, whichever
        delivery paid for it) and `error`, which is None or has `kind` (a class of
        `perfect_async.errors`), `message`, `hint`, `units_at_stake`, `candidates` (of a
        `SubmissionInDoubt`) and `code` (of a `TaskFailed`). Acknowledge the order once there is an
        answer.

        Raises what says nothing of the order, so that it is to be delivered again: `ClientClosed`,
        `ConfigurationError`, `Unauthorized`, `UnitsExhausted`, `RateLimited`, `ServiceUnavailable`,
        and `NotSaved` for a result that could not be written; it is paid for, and not paid again.
        """
        try:
            job, folder = await anyio.to_thread.run_sync(partial(self._prepare, order))
        except JobRefused as exc:
            return _refusal(exc)
        if self._stopped:
            raise ClientClosed("The worker stops before this order was begun.")
        async with self._client.batch([job]) as batch:
            self._batches.add(batch)
            try:
                [outcome] = [each async for each in batch]
            finally:
                self._batches.discard(batch)
        if isinstance(outcome, Failed):
            if isinstance(outcome.error, _LATER) and not outcome.error.units_at_stake:
                raise outcome.error
            return _refusal(outcome.error, outcome.task_id, outcome.units)
        try:
            # Always by the same name: a second delivery replaces the file with the same picture.
            files = await outcome.result.save(folder)
        except (OSError, PerfectError) as exc:
            reason = getattr(exc, "message", None) or getattr(exc, "strerror", None)
            reason = reason or type(exc).__name__
            raise NotSaved(
                f"The result could not be saved in {quoted(folder)}: {reason}",
                task_id=outcome.task_id,
                units_at_stake=float(job.units),
            ) from exc
        return {
            "ok": True,
            "task_id": outcome.task_id,
            "files": [str(file) for file in files],
            "units": float(job.units),
            "error": None,
        }

    def stop(self) -> None:
        """Begin no more orders: those whose task runs are performed to their end.

        The others raise `ClientClosed`, and are to be delivered to another worker.
        """
        self._stopped = True
        for batch in list(self._batches):
            batch.stop()

    def _prepare(self, order: object) -> tuple[Job, str]:
        """Return the job of `order` and the folder for its result; blocks on the disk."""
        read = _read(order)
        source = read.source
        if read.path is not None:
            source = self._allowed(read.path)
            if read.digest is not None and _digest_of(source) != read.digest:
                raise JobRefused(f"{quoted(read.path)} has changed since it was ordered.")
        folder = self._allowed(read.save_to)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise JobRefused(
                f"the folder {quoted(read.save_to)} cannot be made: {exc.strerror}."
            ) from exc
        if not os.access(folder, os.W_OK | os.X_OK):
            raise JobRefused(f"the folder {quoted(read.save_to)} cannot be written.")
        return read.make(source), folder

    def _allowed(self, path: str) -> str:
        """Return `path` without links. Raises `JobRefused` where it leads out of the folders."""
        real = Path(os.path.realpath(path))
        allowed = map(os.path.realpath, self._folders)
        if not any(real.is_relative_to(folder) for folder in allowed):
            raise JobRefused(f"{quoted(path)} is in no folder that this worker may use.")
        return str(real)


def _digest_of(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as exc:
        raise JobRefused(f"{quoted(path)} cannot be read: {exc.strerror}.") from exc
    return digest.hexdigest()


# The queue on Redis.


class Worker:
    """Performs the orders of the queue on the Redis server `redis`, by streaq.

    `folders` as in `Performer`. `make_client` makes the client, by default
    `Client(share=redis, reuse=True)`; `on_answer` is called with each order and its answer. An
    order is acknowledged once its result is saved. The orders of a worker that was killed are taken
    over within seconds; one that lives keeps its orders however long they last. An order that
    cannot be performed just now is delivered again later, without end.

    Raises `ConfigurationError` where streaq is not installed.
    """

    def __init__(
        self,
        redis: str,
        folders: Iterable[str | os.PathLike[str]],
        *,
        make_client: Callable[[], Client] | None = None,
        on_answer: Callable[[Order, Answer], object] | None = None,
        concurrency: int = CONCURRENCY,
        queue: str = QUEUE,
    ) -> None:
        _engine_of(redis, queue, concurrency)
        self._redis = redis
        self._folders = [os.fspath(each) for each in folders]
        self._make_client = make_client or partial(Client, share=redis, reuse=True)
        self._on_answer = on_answer
        self._concurrency = concurrency
        self._queue = queue
        self._stopped = anyio.Event()
        self._performer: Performer | None = None
        self._failure: PerfectError | None = None

    async def run(self) -> None:
        """Perform orders until `stop`. Raises `ConfigurationError` and `Unauthorized`.

        Where Redis goes away it is tried again every second; nothing is bought meanwhile.
        """
        async with self._make_client() as client:
            self._performer = Performer(client, self._folders)
            while not self._stopped.is_set():
                try:
                    await self._run()
                except Exception as exc:
                    if not _is_away(exc):
                        raise
                    where = redacted(self._redis)
                    _LOG.warning("Redis at %s is away (%s).", where, _reason(exc))
                    with anyio.move_on_after(_RECONNECT):
                        await self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Begin no more orders: those whose task runs are performed, the others given back."""
        if self._performer is not None:
            self._performer.stop()
        self._stopped.set()

    async def _run(self) -> None:
        engine = _engine_of(self._redis, self._queue, self._concurrency, self._stopped)
        # Never dropped: an order that can be performed by nobody gets an answer that says so.
        register = engine.task(name=_TASK, max_tries=None, silent=True, ttl=_KEPT)
        register(self._perform)

        async def run(*, task_status: TaskStatus[None]) -> None:
            await engine.run_async(task_status=task_status)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            await group.start(run)
            # streaq says every 0.9 of the idle time that it lives. Half a time later once more, so
            # that a loop that is late by a second keeps its orders.
            await anyio.sleep(_IDLE * 0.45)
            await engine.renew_idle_timeouts(anyio.CancelScope())

    async def _perform(self, order: Order) -> Answer:
        from streaq import StreaqRetry  # noqa: PLC0415 - loaded when it is used

        if self._performer is None:
            raise AssertionError(self)
        try:
            answer = await self._performer.perform(order)
        except ClientClosed:
            raise StreaqRetry(delay=0) from None
        except (NotSaved, *_LATER) as exc:
            _LOG.warning("An order is performed later: %s", exc)
            if isinstance(exc, _FATAL):
                self._failure = exc
                self.stop()
            raise StreaqRetry(delay=_PAUSE) from None
        if self._on_answer is not None:
            self._on_answer(order, answer)
        return answer


async def enqueue(redis: str, orders: Iterable[Order], *, queue: str = QUEUE) -> int:
    """Put `orders` into the queue on the Redis server `redis`; returns how many they are.

    An order that is in the queue already is not put there twice. Raises `ConfigurationError` where
    the server cannot be reached, or streaq is not installed.
    """
    engine = _engine_of(redis, queue, 1)
    tasks: list[streaq.task.Task[Any, Any]] = []
    for order in orders:
        task = engine.enqueue_unsafe(_TASK, order)
        task.id = hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()[:32]
        tasks.append(task)
    try:
        async with engine:
            await engine.enqueue_many(tasks)
    except Exception as exc:
        if not _is_away(exc):
            raise
        raise ConfigurationError(
            f"Redis at {redacted(redis)} cannot be used: {_reason(exc)}."
        ) from None
    return len(tasks)


def _engine_of(
    redis: str, queue: str, concurrency: int, stopped: anyio.Event | None = None
) -> streaq.Worker[Any]:
    """Return a worker of streaq's; once `stopped` is set it takes no orders and ends those at hand.

    Raises `ConfigurationError` where streaq is not installed.
    """
    try:
        import streaq  # noqa: PLC0415 - an extra, loaded when it is used
    except ImportError:
        raise ConfigurationError(
            'a queue of orders needs streaq: pip install "perfect_async[fleet]".'
        ) from None

    class Engine(streaq.Worker[Any]):
        async def signal_handler(self, scope: anyio.CancelScope) -> None:
            # Signals are the program's. streaq's own handler would cut off the orders at hand.
            if stopped is not None:
                await stopped.wait()
                scope.cancel()

    return Engine(
        redis_url=redis,
        queue_name=queue,
        concurrency=concurrency,
        # Orders wait in Redis, where every worker gets at them.
        prefetch=1,
        # JSON, since a pickle from the queue could run any code. Errors of streaq become text.
        serializer=partial(json.dumps, default=str),
        deserializer=json.loads,
        idle_timeout=_IDLE,
    )


def _is_away(error: BaseException) -> bool:
    """Whether `error` says that Redis cannot be reached, or refuses."""
    from coredis.exceptions import RedisError  # noqa: PLC0415 - comes with streaq

    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_away, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, RedisError | OSError)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return type(error).__name__
