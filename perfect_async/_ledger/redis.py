"""The ledger of the processes of several machines: some keys on a Redis server.

A step is two scripts. `take` locks the ledger with a token that lives for two seconds, and returns
the new rows. `publish` writes and unlocks, and is refused after the token is lost. So a member that
is stopped between the two writes nothing, and sends nothing.

No lock of the operating system shows here which members live. Every script renews the member that
calls it. A member that is silent for 15 seconds counts as dead, and the next caller records that.

Redis may lose data: it is restarted without its data, flushed, or replaced by a replica that had
not received everything. Each member counts its takes, and Redis keeps the last number. A number
that is too low, or a ledger with another marker, shows the member that rows may be lost, so it
reads all rows and writes all of its own again. In a ledger that lost everything it also puts back
the rows that it knows of others, since otherwise their requests would not count until they notice.

All members share the time of the Redis server: each adds an offset to its own monotonic clock. The
offset is measured at opening, and again when the clocks have drifted apart. It is a whole number of
slots, so that slots begin at the same time in the scheduler and in the ledger.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import anyio
import attrs

from perfect_async._ledger.rows import (
    AWAY,
    FORMAT,
    MOST_DURATIONS,
    PERIOD,
    LedgerUnavailable,
    MemberStatus,
    Snapshot,
    decode,
    encode,
    job,
    job_name,
    kept_until,
    kept_when_gone,
    key,
    longest_period,
    series,
    status,
    task_id,
)
from perfect_async._ledger.scripts import KEYS, LEAVE, PUBLISH, TAKE
from perfect_async._log import LOG, type_name
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.errors import ConfigurationError, quoted
from perfect_async.events import (
    DoneRow,
    DurationRow,
    IntentRow,
    LedgerRow,
    MemberRow,
    RequestRow,
    TaskRow,
)

_T = TypeVar("_T")
_INSTALLED: Final = find_spec("redis") is not None
if TYPE_CHECKING or _INSTALLED:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        NoPermissionError,
        RedisError,
        ResponseError,
    )

_QUIET: Final[Mapping[str, Any]] = (
    {"driver_info": None} if _INSTALLED and find_spec("redis.driver_info") else {}
)
"""Keeps newer versions of redis-py from reading their own version from the disk at each connection;
older ones have no such module and read it once.
"""
_LIFE: Final = 2 * SECOND
"""How long the ledger stays locked for a member that does not publish."""
_DEAD_AFTER: Final = 15 * SECOND
_RENEWED_EVERY: Final = 5 * SECOND
_DRIFT: Final = 2 * SLOT
"""The offset is corrected after a larger drift; at six slots others would poll for this member."""
_STEP: Final = SECOND
"""A clock that is off by more than this was set."""
_KEPT: Final = 25 * 3600 * SECOND
"""How long an abandoned ledger is kept; all rows but the plan and durations last for a day."""
_JOBS: Final = ("intent ", "done ")
"""The beginnings of the keys of intents and done jobs (`rows.key`)."""
_KEPT_JOB: Final = 24 * 3600 * SECOND
_PRUNED_EVERY: Final = 30 * SECOND
_MOST_GONE: Final = 4096
_COPIES_PRUNED_EVERY: Final = 10 * SECOND
_MOST_COPIES: Final = 20_000

_OPENS_WITHIN: Final = 3.0
_PORT: Final = 6379
_SOCKET: Final = 2.0
"""Seconds; every call has a shorter limit of its own."""
_CALL: Final = 1.0
"""Seconds for one call; a slower server counts as unreachable."""
_LEAVES_WITHIN: Final = 0.3
_LOST_AFTER: Final = 1.0
_RETRIED_AFTER: Final = 0.5
_WAITS: Final = (0.002, 0.003, 0.005, 0.008, 0.012, 0.02)
"""Seconds between two tries for the lock; the last one is repeated."""
_TRIPS: Final = 7
"""How many round trips measure the clocks' offset; the fastest one counts."""

_DIGITS: Final = 16
_NONE: Final = "-" * _DIGITS
_HEAD: Final = 4 * (_DIGITS + 1)
"""The length of the text before a row: its writer and, as digests, its series, job and task."""
_EXAMPLE: Final = 'Write share="redis://host:6379", or "rediss://user:password@host:6379/0".'


class _Script(Protocol):
    """A script that redis-py loads into the server if it is not there yet."""

    def __call__(self, keys: Sequence[str], args: Sequence[str | int]) -> Awaitable[object]: ...


class _Server(Protocol):
    """The part of redis-py's client that is used, since its own types are incomplete."""

    def register_script(self, script: str, /) -> _Script: ...
    def aclose(self) -> Awaitable[None]: ...
    def time(self) -> Awaitable[tuple[int, int]]: ...
    def delete(self, name: str, /) -> Awaitable[int]: ...
    def config_get(self, pattern: str, /) -> Awaitable[Mapping[str, str]]: ...
    def info(self, section: str, /) -> Awaitable[Mapping[str, object]]: ...
    def zrange(self, name: str, start: int, end: int, /) -> Awaitable[list[str]]: ...
    def zrangebylex(self, name: str, least: str, most: str, /) -> Awaitable[list[str]]: ...
    def hmget(self, name: str, keys: list[str], /) -> Awaitable[list[str | None]]: ...


class _Unanswered(Exception):
    """A call was not answered, so it is unknown whether it was executed."""


@attrs.frozen
class _Entry:
    """A row in Redis, its `body` there, and the time `until` which it is kept.

    `row` is None for an intent or a done job of another member, which is read by its job.
    """

    row: LedgerRow | None
    body: str
    until: int

    @property
    def writer(self) -> str:
        return self.body[:_DIGITS]


@attrs.frozen
class _Taken:
    """The step that is under way, and the rows that it read.

    `lost` has known rows of others that the ledger no longer has, to be put back.
    """

    token: str
    marker: str
    version: int
    now: int
    afresh: bool
    entries: Mapping[str, _Entry]
    lost: Mapping[str, _Entry]
    gone: tuple[str, ...]


async def open_redis(
    url: str,
    host: str,
    key_digest: str,
    *,
    clock: Callable[[], int] = time.monotonic_ns,
) -> RedisLedger:
    """Join the ledger of a key on the Redis server at `url`, and return this member's access to it.

    `url` is "redis://" or "rediss://" (TLS) with "user:password@host:port/db", and options of
    redis-py as its query. `host` and `key_digest` are those of `rows.host_digest` and
    `rows.key_digest`. `clock` counts nanoseconds. Raises `ConfigurationError` if the server cannot
    be used, after three seconds at most; the error names neither user nor password.
    """
    if not _INSTALLED:
        raise ConfigurationError(
            'share="redis://..." needs the library redis: pip install "perfect_async[redis]".'
        )
    place, client = _client_of(url)
    ledger = RedisLedger(client, place, f"{{perfect_async:{FORMAT}:{host}:{key_digest}}}", clock)
    try:
        with anyio.fail_after(_OPENS_WITHIN):
            await ledger.begin()
            return ledger
    except (AuthenticationError, NoPermissionError) as exc:
        error = ConfigurationError(
            f"Redis at {place} refuses the user or password of `share`, or that user may not run "
            f"scripts ({type_name(exc)}). Correct them in the URL; write special characters as "
            "urllib.parse.quote does."
        )
    except ResponseError as exc:
        # Redis answers NOAUTH if it needs a password and none was given.
        wanted = " It needs a password: redis://user:password@..." if "NOAUTH" in str(exc) else ""
        error = ConfigurationError(
            f"Redis at {place} cannot hold the ledger of `share`: {_reason(exc)}.{wanted}"
        )
    except (RedisError, OSError) as exc:
        # OSError includes the TimeoutError of the limit.
        error = ConfigurationError(
            f"Redis at {place}, the server of `share`, cannot be reached ({_reason(exc)}). Start "
            "it, or correct host, port and scheme (rediss for TLS)."
        )
    except TypeError:
        # redis-py finds an unknown option when it makes its first connection.
        error = ConfigurationError(f"The URL of `share` has an unknown option. {_EXAMPLE}")
    except BaseException:
        await _closed(client)
        raise
    await _closed(client)
    # Not chained, since redis-py's own errors may hold parts of the URL.
    raise error from None


def _client_of(url: str) -> tuple[str, _Server]:
    """Return the host and port of `url`, for messages, and a client that has not connected yet."""
    try:
        parts = urlsplit(url)
        host, port, database = parts.hostname, parts.port or _PORT, parts.path.strip("/") or "0"
        readable = parts.scheme in {"redis", "rediss"} and database.isdigit()
        client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            # All servers know the second version of the protocol.
            protocol=2,
            decode_responses=True,
            # Rows that are not UTF-8 are not from this package, and `decode` drops them.
            encoding_errors="replace",
            socket_timeout=_SOCKET,
            socket_connect_timeout=_SOCKET,
            # A failed call is not repeated, since its time is over.
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            **_QUIET,
        )
    except (ValueError, TypeError, RedisError):
        readable, host, port, client = False, "", 0, None
    if not readable or not host:
        # Not chained, since redis-py's error may quote the URL.
        raise ConfigurationError(f"The URL of `share` cannot be read. {_EXAMPLE}")
    return quoted(f"{host}:{port}"), cast("_Server", client)


async def _closed(client: _Server) -> None:
    with anyio.move_on_after(_LEAVES_WITHIN, shield=True):
        try:
            await client.aclose()
        except (RedisError, OSError) as exc:
            LOG.debug("The connection to Redis could not be closed: %s.", type_name(exc))


def _reason(exc: BaseException) -> str:
    """Return the reason of a failed call, without secrets."""
    if isinstance(exc, ResponseError):
        # The first word of Redis's answer; the rest may name a user.
        code = re.match(r"[A-Z]{3,}", str(exc))
        return code[0] if code else type_name(exc)
    return type_name(exc)


class RedisLedger:
    """A member of a ledger on a Redis server, with the methods of `rows.LedgerStore`.

    While the server does not answer, `take` returns None and `publish` returns False; the log says
    when that begins and ends. Only the questions raise `LedgerUnavailable` then. Use it in the
    event loop that opened it, and not in a forked child.
    """

    def __init__(self, client: _Server, place: str, tag: str, clock: Callable[[], int]) -> None:
        self._client = client
        self._place = place
        self._clock = clock
        self._member = secrets.token_hex(_DIGITS // 2)
        self._process = os.getpid()
        self._left = False
        # The text in braces puts all keys into one slot of a cluster.
        self._keys = [f"{tag}:{name}" for name in KEYS]
        self._key_of = dict(zip(KEYS, self._keys, strict=True))
        self._take = client.register_script(TAKE)
        self._publish = client.register_script(PUBLISH)
        self._leave = client.register_script(LEAVE)
        # The server's time minus the local one: as measured, and in whole slots as it is used.
        self._exact = self._shift = 0
        self._trip = 0
        # The step under way, and whether Redis may hold the lock for this member.
        self._taken: _Taken | None = None
        self._locked = False
        # The last publication.
        self._marker = ""
        self._version = self._read_at = 0
        # The number of takes, and the number of the last one whose answer arrived.
        self._takes = self._confirmed = 0
        self._everything = True
        self._emptied_marker = ""
        self._unconfirmed: dict[str, LedgerRow] = {}
        self._period = PERIOD
        self._copies = _RowCopies()
        self._unanswered_since: float | None = None
        self._unreachable = False
        self._retried_at = 0.0

    def __repr__(self) -> str:
        return f"<RedisLedger {self._member} at {self._place}>"

    @property
    def member(self) -> str:
        """The name of this member: 16 random hexadecimal digits."""
        return self._member

    @property
    def renewed_every(self) -> int:
        """How often, in microseconds, an idle member takes a step, so that it counts as living."""
        return _RENEWED_EVERY

    # Opening.

    async def begin(self) -> None:
        """Measure the server's clock, and check that the server can hold a ledger."""
        self._trip = NEVER
        for _ in range(_TRIPS):
            sent = self._local()
            seconds, rest = await self._client.time()
            received = self._local()
            if received - sent < self._trip:
                self._trip = received - sent
                self._exact = seconds * SECOND + rest - (sent + received) // 2
        self._shift = _in_slots(self._exact)
        # A replica refuses the first call; a user without rights fails at either.
        await self._client.delete(self._key_of["lock"] + ":probe")
        await self._leave(self._keys, [self._member])
        policy = await self._policy()
        if policy is None:
            LOG.info(
                "Redis at %s does not show its maxmemory-policy, which must be noeviction.",
                self._place,
            )
        elif policy != "noeviction":
            raise ConfigurationError(
                f"Redis at {self._place} may drop rows of the ledger when its memory is full: its "
                f"maxmemory-policy is {quoted(policy)}. Set it to noeviction, or name another "
                "server in `share`."
            )

    async def _policy(self) -> object:
        try:
            found: Mapping[str, object] = await self._client.config_get("maxmemory-policy")
        except ResponseError:
            found = {}
        if "maxmemory-policy" in found:
            return found["maxmemory-policy"]
        # Managed servers forbid CONFIG.
        try:
            return (await self._client.info("memory")).get("maxmemory_policy")
        except ResponseError:
            return None

    # A step.

    async def take(self, within: float) -> Snapshot | None:
        """Lock the ledger and read it; return None if that takes longer than `within` seconds.

        A server that has not answered for a second is called once every half second; in between the
        method returns None at once.
        """
        if self._taken is not None:
            raise RuntimeError("the ledger is locked by this member already")
        deadline = anyio.current_time() + within
        tries = 0
        while True:
            self._check_usable()
            now = anyio.current_time()
            if self._retried_at > now:
                if self._retried_at >= deadline:
                    return None
                await anyio.sleep(self._retried_at - now)
            elif (deadline - now) * SECOND <= self._trip:
                return None
            else:
                snapshot = await self._try_to_take(min(deadline - now, _CALL))
                if snapshot is not None:
                    return snapshot
                left = deadline - anyio.current_time()
                await anyio.sleep(max(0.0, min(left, _WAITS[min(tries, len(_WAITS) - 1)])))
                tries += 1

    async def _try_to_take(self, within: float) -> Snapshot | None:
        sent = self._local()
        if sent - self._read_at > AWAY:
            self._everything = True
        if abs(self._exact - self._shift) > _DRIFT:
            # All rows are read and written again with the corrected offset.
            self._shift = _in_slots(self._exact)
            self._everything = True
        self._takes += 1
        unused = secrets.token_hex(_DIGITS // 2)
        # A take must not lock the ledger if the server gets it too late to answer in time.
        patience = sent + self._exact + int(within * SECOND) - self._trip // 2
        self._locked = True
        try:
            found = await self._call(
                self._take,
                [
                    *(self._member, self._takes, self._confirmed),
                    *("" if self._everything else self._marker, self._version, patience),
                    *(unused, self._emptied_marker, _LIFE // 1000, _DEAD_AFTER, _STEP, _KEPT),
                    kept_when_gone(0, period=self._period),
                ],
                within,
            )
        except _Unanswered:
            return None
        except BaseException:
            await self._unlock()
            raise
        answer = cast("Sequence[Any]", found)
        self._locked = answer[0] == 1
        if self._clock_was_set(answer[1], sent, self._local()):
            LOG.warning(
                "The clock of Redis at %s was set, so the ledger is emptied and written again.",
                self._place,
            )
            # Its times are those of the former clock. The first member to notice empties it.
            self._emptied_marker = self._marker
            self._copies = _RowCopies()
            return None
        if not self._locked:
            return None
        self._confirmed, self._emptied_marker = self._takes, ""
        return self._read(answer)

    def _clock_was_set(self, server: int, sent: int, received: int) -> bool:
        """Correct the offset for the clocks' drift, and return whether a clock was set."""
        self._exact = min(max(self._exact, server - received), server - sent)
        if abs(self._exact - self._shift) <= _STEP:
            return False
        self._exact = server - (sent + received) // 2
        self._shift = _in_slots(self._exact)
        return True

    def _read(self, answer: Sequence[Any]) -> Snapshot:
        now = self._local() + self._shift
        marker, version, gone = answer[3], int(answer[4]), tuple(answer[5])
        self._everything = self._everything or answer[2] == 1
        entries: dict[str, _Entry] = {}
        for name, body in zip(answer[6][::2], answer[6][1::2], strict=True):
            if name.startswith(_JOBS):
                # A day may have tens of thousands of them, and decoding them would block the loop
                # for seconds. Rows that are put back are kept for a day from now.
                entries[name] = _Entry(None, body, now + _KEPT_JOB)
                continue
            row = decode(body[_HEAD:])
            if row is not None:
                until = kept_until(row, now, period=self._period)
                entries[name] = _Entry(row, body, until)
        found = self._of_others(entries)
        self._period = longest_period(found, self._period)
        lost: dict[str, _Entry] = {}
        if self._marker and (marker != self._marker or version < self._version):
            lost = self._copies.without(entries, now)
            found += self._of_others(lost)
            gone += tuple(each for each in self._copies.gone if each not in gone)
        token = f"{self._member} {self._takes}"
        self._taken = _Taken(token, marker, version, now, self._everything, entries, lost, gone)
        return Snapshot(tuple(found), gone, self._everything, now)

    def _of_others(self, entries: Mapping[str, _Entry]) -> list[LedgerRow]:
        return [
            each.row
            for each in entries.values()
            if each.row is not None and each.writer != self._member
        ]

    async def publish(self, rows: Sequence[LedgerRow]) -> bool:
        """Write `rows` and unlock the ledger; return False if the step does not count."""
        taken = self._taken
        if taken is None:
            raise RuntimeError("the ledger is not locked by this member")
        self._check_usable()
        self._taken = None
        self._period = longest_period(rows, self._period)
        mine = {key(row): self._entry(row, taken.now) for row in rows}
        taken_back = {
            name: self._entry(_taken_back(row), taken.now)
            for name, row in self._unconfirmed.items()
            if name in taken.entries and name not in mine
        }
        members = self._copies.members(taken.lost.values())
        try:
            answer = await self._call(
                self._publish,
                [
                    *(taken.token, self._member, MOST_DURATIONS),
                    *(_PRUNED_EVERY, _MOST_GONE, _KEPT),
                    *_arguments("=", mine),
                    *_arguments("=", taken_back),
                    *_arguments("+", taken.lost, unless=mine),
                    *(text for how, name in members for text in (how, name, "", "")),
                ],
                _CALL,
            )
        except BaseException as exc:
            # The rows may have been written, although the step does not count.
            self._unconfirmed.update((key(row), row) for row in rows)
            self._everything = True
            if isinstance(exc, _Unanswered):
                return False
            raise
        self._locked = False
        version = cast("int", answer)
        if version < 0:
            return False
        if taken.afresh and not taken.lost:
            self._copies = _RowCopies()
        self._copies.add({**taken.lost, **taken.entries, **taken_back, **mine}, taken.now)
        self._copies.note_gone(taken.gone, kept_when_gone(taken.now, period=self._period))
        self._marker, self._version, self._read_at = taken.marker, version, self._local()
        self._everything = False
        self._unconfirmed.clear()
        return True

    async def release(self) -> None:
        """Unlock the ledger without writing; the next `take` reads the same rows again."""
        self._taken = None
        if self._locked and not self._left and self._process == os.getpid():
            await self._unlock()

    async def _unlock(self) -> None:
        """Unlock the ledger; if the server does not answer, the lock expires by itself."""
        with anyio.move_on_after(_LEAVES_WITHIN, shield=True):
            try:
                await self._call(self._leave, [self._member], _LEAVES_WITHIN)
            except _Unanswered:
                return
            self._locked = False

    async def aclose(self) -> None:
        """Leave the ledger; the others read at once that this member is gone. Raises nothing."""
        if self._left:
            return
        self._left, self._taken = True, None
        if self._process != os.getpid():
            # The connections belong to the parent process.
            return
        kept = kept_when_gone(0, period=self._period)
        with anyio.move_on_after(_LEAVES_WITHIN, shield=True):
            try:
                await self._leave(self._keys, [self._member, kept, _KEPT])
            except (RedisError, OSError) as exc:
                LOG.debug("Leaving the ledger at %s failed: %s.", self._place, _reason(exc))
        await _closed(self._client)

    # Questions.

    async def has_news(self) -> bool:
        """Return False: an idle member takes a step every `renewed_every` anyway."""
        return False

    async def members(self) -> tuple[MemberStatus, ...]:
        """Return all living members of the ledger, this one included, without a lock."""
        names = await self._ask(self._client.zrange(self._key_of["seen"], 0, -1))
        rows = await self._rows([f"member {name}" for name in names])
        now = self._local() + self._shift
        return tuple(status(row, now) for row in rows if isinstance(row, MemberRow))

    async def find_intents(self, identity: str, digest: str) -> tuple[IntentRow | DoneRow, ...]:
        """Return all rows of one job, this member's included, the oldest first."""
        name = job_name(identity, digest)
        rows = await self._rows(await self._indexed(_digest("job", name)))
        found = [row for row in rows if isinstance(row, IntentRow | DoneRow) and job(row) == name]
        return tuple(sorted(found, key=_written))

    async def known_task(self, task_id: str) -> bool:
        """Return whether `task_id` is a task of any member."""
        return bool(await self._indexed(_digest("task", task_id)))

    async def _indexed(self, name: str) -> list[str]:
        """Return the keys of the rows that the index has under `name`."""
        # "!" is the character after the space.
        found = await self._ask(
            self._client.zrangebylex(self._key_of["index"], f"[{name} ", f"({name}!")
        )
        return [each[len(name) + 1 :] for each in found]

    async def _rows(self, names: Sequence[str]) -> list[LedgerRow]:
        if not names:
            return []
        bodies = await self._ask(self._client.hmget(self._key_of["rows"], list(names)))
        found = [decode(body[_HEAD:]) for body in bodies if body is not None]
        return [row for row in found if row is not None]

    async def _ask(self, question: Awaitable[_T]) -> _T:
        try:
            return await self._bounded(question, _CALL)
        except _Unanswered as exc:
            raise LedgerUnavailable(f"Redis at {self._place} does not answer ({exc})") from None

    # Calls.

    def _local(self) -> int:
        return self._clock() // 1000

    def _check_usable(self) -> None:
        if self._left:
            raise LedgerUnavailable("this member has left the ledger")
        if self._process != os.getpid():
            raise LedgerUnavailable("the ledger was opened before a fork; a child opens its own")

    def _entry(self, row: LedgerRow, now: int) -> _Entry:
        about = job(row) if isinstance(row, IntentRow | DoneRow) else ""
        head = f"{_digest('series', series(row))} {_digest('job', about)}"
        body = f"{self._member} {head} {_digest('task', task_id(row))} {encode(row)}"
        return _Entry(row, body, kept_until(row, now, period=self._period))

    async def _call(self, script: _Script, arguments: Sequence[str | int], within: float) -> object:
        return await self._bounded(script(self._keys, arguments), within)

    async def _bounded(self, call: Awaitable[_T], within: float) -> _T:
        """Await `call`, for `within` seconds at most. Raises `_Unanswered`."""
        began = anyio.current_time()
        try:
            with anyio.fail_after(within):
                answer = await call
        except (RedisError, OSError) as exc:
            reason = _reason(exc)
            self._record_failure(began, reason)
            raise _Unanswered(reason) from None
        if self._unreachable:
            LOG.info("The shared ledger at %s answers again.", self._place)
        self._unanswered_since, self._unreachable, self._retried_at = None, False, 0.0
        return answer

    def _record_failure(self, began: float, reason: str) -> None:
        now = anyio.current_time()
        if self._unanswered_since is None:
            self._unanswered_since = began
        if now - self._unanswered_since < _LOST_AFTER:
            return
        self._retried_at = now + _RETRIED_AFTER
        if not self._unreachable:
            LOG.warning(
                "The shared ledger at %s does not answer (%s). No task is created until it does; "
                "running tasks are kept alive.",
                *(self._place, reason),
            )
        self._unreachable = True


class _RowCopies:
    """A member's copy of the ledger's rows, to put back those that the ledger has lost."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self.gone: dict[str, None] = {}
        self._pruned_at = -NEVER

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entries: Mapping[str, _Entry], now: int) -> None:
        """Add rows that were read or written, in place of those with the same keys."""
        for name, entry in entries.items():
            # The newest come last.
            self._entries.pop(name, None)
            self._entries[name] = entry
            if isinstance(entry.row, MemberRow):
                self.gone.pop(entry.row.member, None)
        if now - self._pruned_at >= _COPIES_PRUNED_EVERY:
            self._prune(now)
            self._pruned_at = now

    def note_gone(self, members: Iterable[str], until: int) -> None:
        """Record that `members` are gone; their unanswered requests count until `until`."""
        gone = dict.fromkeys(members)
        if not gone:
            return
        self.gone.update(gone)
        for name, entry in list(self._entries.items()):
            row = entry.row
            if isinstance(row, MemberRow) and row.member in gone:
                del self._entries[name]
            elif isinstance(row, RequestRow) and row.member in gone and entry.until == NEVER:
                self._entries[name] = attrs.evolve(entry, until=until)

    def without(self, entries: Mapping[str, _Entry], now: int) -> dict[str, _Entry]:
        """Return the rows that still count at `now` and are not among `entries`."""
        return {
            name: entry
            for name, entry in self._entries.items()
            if entry.until > now and name not in entries
        }

    def members(self, lost: Iterable[_Entry]) -> list[tuple[str, str]]:
        """Return the writers of `lost` rows, each with "seen" if it lives, or with "gone"."""
        writers = {entry.writer: None for entry in lost}
        return [("gone" if writer in self.gone else "seen", writer) for writer in writers]

    def _prune(self, now: int) -> None:
        kept: dict[str, _Entry] = {}
        durations: dict[str, int] = {}
        for name, entry in reversed(self._entries.items()):
            if isinstance(entry.row, DurationRow):
                kind = series(entry.row)
                durations[kind] = durations.get(kind, 0) + 1
                if durations[kind] > MOST_DURATIONS:
                    continue
            if entry.until > now:
                kept[name] = entry
            if len(kept) == _MOST_COPIES:
                break
        self._entries = dict(reversed(kept.items()))
        writers = {entry.writer for entry in kept.values()}
        self.gone = {name: None for name in self.gone if name in writers}


def _arguments(
    how: str, entries: Mapping[str, _Entry], unless: Mapping[str, _Entry] | None = None
) -> list[str]:
    """Return `entries`, without those in `unless`, as arguments of `publish`."""
    return [
        text
        for name, entry in entries.items()
        if unless is None or name not in unless
        for text in (how, name, entry.body, "" if entry.until == NEVER else str(entry.until))
    ]


def _taken_back(row: LedgerRow) -> LedgerRow:
    """Return the row to write in place of `row`, which may be written but does not count."""
    match row:
        case RequestRow(answered=None):
            # It was never sent. As a failed request it counts until the end of the period.
            return attrs.evolve(row, answered=row.left, outcome="failed")
        case TaskRow():
            return attrs.evolve(row, ended=True)
        case IntentRow(state="sent"):
            return attrs.evolve(row, state="refused")
        case _:
            return row


def _written(row: IntentRow | DoneRow) -> int:
    return row.sent if isinstance(row, IntentRow) else row.at


def _digest(about: str, text: str) -> str:
    if not text:
        return _NONE
    return hashlib.sha256(f"{about} {text}".encode(errors="surrogatepass")).hexdigest()[:_DIGITS]


def _in_slots(distance: int) -> int:
    """Return `distance` rounded to whole slots."""
    return (distance + SLOT // 2) // SLOT * SLOT
