"""Runs a batch on several machines: orders in a queue, and workers that buy each order once.

An order is plain JSON, so any queue that delivers a message until it is acknowledged can hold it:

    performer = Performer(client, folders=["/shared"])   # Client(share="redis://...", reuse=True)
    answer = await performer.perform(make_order(Smile("/shared/in/a.jpg"), "/shared/out"))

Performing an order twice is safe: the ledger of the key knows whether its job was bought, so the
second delivery takes over the running task or fetches the existing result. `Worker` and `enqueue`
are such a queue on Redis, based on streaq (extra `fleet`); in the terminal they are
`perfect-async worker` and `perfect-async enqueue`.
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
from perfect_async._api.tasks import FEATURES
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
from perfect_async.models import Job

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
_FIELDS: Final = frozenset({"feature", "source", "parameters", "key", "save_to", "digest"})
_LONGEST: Final = 4096
"""The most characters of a text in an order."""
_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_BLOCK: Final = 1 << 20

_LATER: Final = (
    *(ClientClosed, ConfigurationError, Unauthorized, UnitsExhausted),
    *(RateLimited, ServiceUnavailable),
)
"""Errors that do not come from the order: a later delivery may succeed."""
_FATAL: Final = (ConfigurationError, Unauthorized)
"""Errors that every order of this worker would have."""

CONCURRENCY: Final = 64
"""Orders that a worker performs at a time: more tasks than a key can run at first."""
_IDLE: Final = 6.0
"""Seconds without a heartbeat after which another worker takes over an order."""
_PAUSE: Final = 30
"""Seconds before an order that failed for the moment is delivered again."""
_KEPT: Final = 24 * 3600
"""Seconds for which Redis keeps an answer, as long as the vendor keeps the result."""
_RECONNECT: Final = 1.0


# Orders and answers.


def make_order(job: Job, save_to: str | os.PathLike[str], *, digest: str | None = None) -> Order:
    """Return the order for `job`, whose result is saved in the folder `save_to`, as plain JSON.

        order = make_order(Smile("/shared/in/a.jpg"), "/shared/out")

    The job's source is an absolute path that is the same on all machines, or an http(s) URL.
    `digest` is the SHA-256 of the picture's file in hexadecimal digits; with it, a file that has
    changed meanwhile is refused. Raises `JobRefused` for a `Feature`, whose fields a worker
    cannot check, and for a source that other machines cannot read (bytes, an open file, a relative
    path).
    """
    if not isinstance(job, tuple(FEATURES.values())):
        names = ", ".join(kind.__name__ for kind in FEATURES.values())
        raise JobRefused(
            f"an order cannot be for a {type(job).__name__}; it must be one of {names}."
        )
    source = job.source
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str) or not (_URL.match(source) or Path(source).is_absolute()):
        raise JobRefused("an order's source is an absolute path or an http(s) URL.")
    fields = _parameter_names(type(job))
    order: Order = {
        "feature": job.feature,
        "source": source,
        "parameters": {
            name: value for name in sorted(fields) if (value := getattr(job, name)) is not None
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
    """A checked order. `path` is None if the source is a URL."""

    make: Callable[[str], Job]
    source: str
    path: str | None
    save_to: str
    digest: str | None


def _read(order: object) -> _Read:
    """Check `order` as far as possible without a disk. Raises `JobRefused`."""
    if not isinstance(order, Mapping):
        raise JobRefused("an order is a JSON object.")
    fields = cast("Mapping[object, object]", order)
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise JobRefused(f"an order has no field {quoted(unknown[0])}.")
    feature = _text(fields, "feature")
    kind = FEATURES.get(feature)
    if kind is None:
        raise JobRefused(
            f"an order cannot be for the feature {quoted(feature)}; it must be one of "
            f"{', '.join(FEATURES)}."
        )
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
                f"{quoted(place)} is neither an absolute path nor an http(s) URL; workers run in "
                "other folders."
            )
    digest = _text(fields, "digest") if fields.get("digest") is not None else None
    if digest is not None and (path is None or not _DIGEST.fullmatch(digest)):
        raise JobRefused(
            "an order's digest must be the SHA-256 of its file in 64 lower-case hexadecimal digits."
        )
    return _Read(make, source, path, save_to, digest)


def _text(fields: Mapping[object, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or "\0" in value:
        raise JobRefused(f"an order's {name} must be text of 1 to {_LONGEST:,} characters.")
    return value


def _parameter_names(kind: type[Job]) -> set[str]:
    fields = attrs.fields(cast("type[attrs.AttrsInstance]", kind))
    return {field.name for field in fields} - {"source", "key"}


def _parameters(given: object, kind: type[Job]) -> dict[str, str | int]:
    known = _parameter_names(kind)
    if not isinstance(given, Mapping):
        raise JobRefused("an order's parameters must be a JSON object.")
    parameters: dict[str, str | int] = {}
    for name, value in cast("Mapping[object, object]", given).items():
        if name not in known:
            raise JobRefused(f"{kind.feature} has no parameter {quoted(name)}.")
        if type(value) not in {str, int} or len(str(value)) > _LONGEST:
            raise JobRefused(f"the parameter {name} must be text or a whole number.")
        parameters[str(name)] = cast("str | int", value)
    return parameters


def _refusal(error: PerfectError, task_id: str | None = None, units: float = 0.0) -> Answer:
    """Return the answer to an order that failed permanently."""
    task_id = task_id or getattr(error, "task_id", None)
    details: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "units_at_stake": error.units_at_stake,
        "candidates": list(getattr(error, "candidates", ())),
        "code": getattr(error, "code", None),
    }
    return {"ok": False, "task_id": task_id, "files": [], "units": units, "error": details}


# Performing.


class Performer:
    """Performs orders on `client`, which must share its key and have `reuse=True`.

    Pictures are read and results are written only below `folders`, after following links, since
    anybody who reaches the queue may send an order. Raises `ConfigurationError` without a folder.
    """

    def __init__(self, client: Client, folders: Iterable[str | os.PathLike[str]]) -> None:
        self._client = client
        self._folders = tuple(os.fspath(each) for each in folders)
        if not self._folders:
            raise ConfigurationError(
                "folders is empty; name the folders that orders may read from and save to."
            )
        self._batches: set[Batch] = set()
        self._stopped = False

    async def perform(self, order: Order) -> Answer:
        """Run the order's job unless it was bought before, save the result, and return the answer.

        Acknowledge the order once there is an answer. The answer is JSON: `ok`, `task_id`, `files`
        (paths), `units` (the price of the task, also if an earlier delivery paid it) and `error`,
        which is None or has `kind` (a class of `perfect_async.errors`), `message`, `hint`,
        `units_at_stake`, `candidates` (of a `SubmissionInDoubt`) and `code` (of a `TaskFailed`).

        Raises errors that do not come from the order, which must then be delivered again:
        `ClientClosed`, `ConfigurationError`, `Unauthorized`, `UnitsExhausted`, `RateLimited`,
        `ServiceUnavailable`, and `NotSaved` for a result that could not be written. The next
        delivery does not pay for that result again.
        """
        try:
            job, folder = await anyio.to_thread.run_sync(partial(self._prepare, order))
        except JobRefused as exc:
            return _refusal(exc)
        if self._stopped:
            raise ClientClosed("The worker stopped before it began this order.")
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
            # The name is always the same: a second delivery replaces the file by the same picture.
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
        """Begin no more orders; orders with a running task are performed to their end.

        The other orders raise `ClientClosed`; deliver them to another worker.
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
                f"the folder {quoted(read.save_to)} cannot be created: {exc.strerror}."
            ) from exc
        if not os.access(folder, os.W_OK | os.X_OK):
            raise JobRefused(f"the folder {quoted(read.save_to)} cannot be written.")
        return read.make(source), folder

    def _allowed(self, path: str) -> str:
        """Return `path` with its links resolved. Raises `JobRefused` outside of the folders."""
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
    """Performs the orders of a queue on the Redis server `redis`, with streaq.

        await Worker("redis://localhost", ["/shared"]).run()

    `folders` has the meaning as in `Performer`. `make_client` creates the client, by default
    `Client(share=redis, reuse=True)`. `on_answer` is called with each order and its answer. An
    order is acknowledged once its result is saved. Other workers take over the orders of a killed
    worker within seconds; a living worker keeps its orders as long as they last. An order that
    fails for the moment is delivered again after 30 s, without end.

    Raises `ConfigurationError` if streaq is not installed.
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
        """Perform orders until `stop` is called. Raises `ConfigurationError` and `Unauthorized`.

        While Redis cannot be reached, it is tried again every second, and no job is bought.
        """
        async with self._make_client() as client:
            self._performer = Performer(client, self._folders)
            while not self._stopped.is_set():
                try:
                    await self._run()
                except Exception as exc:
                    if not _is_unreachable(exc):
                        raise
                    where = redacted(self._redis)
                    _LOG.warning(
                        "Redis at %s cannot be reached (%s); it is tried again every second.",
                        where,
                        _reason(exc),
                    )
                    with anyio.move_on_after(_RECONNECT):
                        await self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Begin no more orders; orders with a running task are finished, others are returned."""
        if self._performer is not None:
            self._performer.stop()
        self._stopped.set()

    async def _run(self) -> None:
        engine = _engine_of(self._redis, self._queue, self._concurrency, self._stopped)
        # Without a limit of tries: an order that no worker can perform gets an answer instead.
        register = engine.task(name=_TASK, max_tries=None, silent=True, ttl=_KEPT)
        register(self._perform)

        async def run(*, task_status: TaskStatus[None]) -> None:
            await engine.run_async(task_status=task_status)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            await group.start(run)
            # streaq sends a heartbeat every 0.9 of the idle time. A second series, half a period
            # later, keeps the orders of an event loop that is late by a second.
            await anyio.sleep(_IDLE * 0.45)
            await engine.renew_idle_timeouts(anyio.CancelScope())

    async def _perform(self, order: Order) -> Answer:
        from streaq import StreaqRetry  # noqa: PLC0415 - an extra, loaded when it is used

        if self._performer is None:
            raise AssertionError(self)
        try:
            answer = await self._performer.perform(order)
        except ClientClosed:
            raise StreaqRetry(delay=0) from None
        except (NotSaved, *_LATER) as exc:
            _LOG.warning("An order will be delivered again in %d s: %s", _PAUSE, exc)
            if isinstance(exc, _FATAL):
                self._failure = exc
                self.stop()
            raise StreaqRetry(delay=_PAUSE) from None
        if self._on_answer is not None:
            self._on_answer(order, answer)
        return answer


async def enqueue(redis: str, orders: Iterable[Order], *, queue: str = QUEUE) -> int:
    """Put `orders` into the queue on the Redis server `redis`, and return their number.

        await enqueue("redis://localhost", [make_order(Smile("/shared/in/a.jpg"), "/shared/out")])

    An order that is in the queue already is not added again. Raises `ConfigurationError` if the
    server cannot be reached or streaq is not installed.
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
        if not _is_unreachable(exc):
            raise
        raise ConfigurationError(
            f"Redis at {redacted(redis)} cannot be used: {_reason(exc)}."
        ) from None
    return len(tasks)


def _engine_of(
    redis: str, queue: str, concurrency: int, stopped: anyio.Event | None = None
) -> streaq.Worker[Any]:
    """Return a streaq worker that takes no new orders once `stopped` is set, and ends its own.

    Raises `ConfigurationError` if streaq is not installed.
    """
    try:
        import streaq  # noqa: PLC0415 - an extra, loaded when it is used
    except ImportError:
        raise ConfigurationError(
            'a queue of orders needs streaq: pip install "perfect_async[fleet]".'
        ) from None

    class Engine(streaq.Worker[Any]):
        async def signal_handler(self, scope: anyio.CancelScope) -> None:
            # The program handles signals. streaq's handler would cancel the running orders.
            if stopped is not None:
                await stopped.wait()
                scope.cancel()

    return Engine(
        redis_url=redis,
        queue_name=queue,
        concurrency=concurrency,
        # Orders wait in Redis, where every worker can take them.
        prefetch=1,
        # JSON, since a pickle from the queue could run any code. streaq's errors become text.
        serializer=partial(json.dumps, default=str),
        deserializer=json.loads,
        idle_timeout=_IDLE,
    )


def _is_unreachable(error: BaseException) -> bool:
    """Return whether `error` means that Redis cannot be reached or refuses."""
    from coredis.exceptions import RedisError  # noqa: PLC0415 - comes with streaq

    if isinstance(error, BaseExceptionGroup):
        return all(
            map(_is_unreachable, cast("BaseExceptionGroup[BaseException]", error).exceptions)
        )
    return isinstance(error, RedisError | OSError)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return type(error).__name__
