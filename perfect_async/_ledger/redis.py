"""The ledger of the processes of several machines: some keys on a Redis server.

A step is two scripts. `take` locks the ledger with a token that lives for two seconds and returns
what is new; `publish` writes and unlocks, and is refused once the token is lost. So a member that
was stopped between the two writes nothing, and sends nothing.

There is no lock of the system here that shows who lives. Every script renews the member that calls
it; one that is silent for 15 seconds counts as dead, and whoever comes next notes that.

Redis may forget: it is restarted without its data, flushed, or replaced by a replica that had not
received everything. Each member counts its takes and Redis keeps the last number. A number that is
too low, or a ledger with another marker, tells the member that something of it may be lost, so it
reads everything and writes everything again. In a ledger that lost everything it also puts back
what it knows of the others: until they notice, their requests would count for nobody.

All members share the time of the Redis server, each by its own monotonic clock and a distance that
is measured at opening and again when the clocks have drifted apart. The distance is a whole number
of slots, so that slots begin together in the scheduler and in the ledger.
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
"""Newer versions of redis-py look up their own version on the disk for each connection, to tell it
to the server; this keeps them from it. Older ones have no such module and look it up once.
"""
_LIFE: Final = 2 * SECOND
"""How long the ledger stays locked for a member that writes nothing."""
_DEAD_AFTER: Final = 15 * SECOND
_RENEWED_EVERY: Final = 5 * SECOND
_DRIFT: Final = 2 * SLOT
"""A clock that has drifted by more is followed: at six slots others would poll for its member."""
_STEP: Final = SECOND
"""A clock that is off by more was set."""
_KEPT: Final = 25 * 3600 * SECOND
"""An abandoned ledger vanishes; every row but the plan and durations is dropped after a day."""
_JOBS: Final = ("intent ", "done ")
"""How the keys of intents and done jobs begin (`rows.key`)."""
_KEPT_JOB: Final = 24 * 3600 * SECOND
_PRUNED_EVERY: Final = 30 * SECOND
_MOST_GONE: Final = 4096
_MIRROR_PRUNED_EVERY: Final = 10 * SECOND
_MOST_MIRRORED: Final = 20_000

_OPENS_WITHIN: Final = 3.0
_PORT: Final = 6379
_SOCKET: Final = 2.0
"""Seconds; every call has a shorter limit of its own."""
_CALL: Final = 1.0
"""Seconds for one call; a server that needs longer is no help."""
_LEAVES_WITHIN: Final = 0.3
_LOST_AFTER: Final = 1.0
_RETRIED_AFTER: Final = 0.5
_WAITS: Final = (0.002, 0.003, 0.005, 0.008, 0.012, 0.02)
"""Seconds between two tries for the lock; the last one again and again."""
_TRIPS: Final = 7
"""Round trips to measure the distance of the clocks; the fastest one counts."""

_DIGITS: Final = 16
_NONE: Final = "-" * _DIGITS
_HEAD: Final = 4 * (_DIGITS + 1)
"""Before the text of a row stand its writer and, as digests, its series, its job and its task."""
_MEND: Final = 'Write share="redis://host:6379", or "rediss://user:password@host:6379/0".'


class _Script(Protocol):
    """A script that redis-py loads into the server when it is not there yet."""

    def __call__(self, keys: Sequence[str], args: Sequence[str | int]) -> Awaitable[object]: ...


class _Server(Protocol):
    """What is used of redis-py's client. Its own types leave much open."""

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
    """A call was not answered: whether it was executed is not known."""


@attrs.frozen
class _Entry:
    """A row as it stands in Redis, with its `body` there, and after when it is dropped.

    `row` is None for an intent or a done job of another member, which is asked for by its job.
    """

    row: LedgerRow | None
    body: str
    until: int

    @property
    def writer(self) -> str:
        return self.body[:_DIGITS]


@attrs.frozen
class _Taken:
    """The step that is under way, and what was read by it.

    `lost` is what is known of others and is no longer in the ledger, to be put back.
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
    """Join the ledger of a key on the Redis server at `url` and return this member's way into it.

    `url` is "redis://" or "rediss://" (TLS) with "user:password@host:port/db", and options of
    redis-py as its query. `host` and `key_digest` as `rows.host_digest` and `rows.key_digest` make
    them. `clock` counts nanoseconds. Raises `ConfigurationError` where the server cannot be used,
    after three seconds at most; the error names neither user nor password.
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
            f"scripts ({type_name(exc)}). Correct them in the URL; quote special characters in "
            "percent, as urllib.parse.quote does."
        )
    except ResponseError as exc:
        # Redis without a password answers so where one is wanted.
        wanted = " It wants a password: redis://user:password@..." if "NOAUTH" in str(exc) else ""
        error = ConfigurationError(
            f"Redis at {place} cannot hold the ledger of `share`: {_reason(exc)}.{wanted}"
        )
    except (RedisError, OSError) as exc:
        # OSError includes the TimeoutError of the limit.
        error = ConfigurationError(
            f"Redis at {place}, which `share` names, cannot be reached ({_reason(exc)}). Start it, "
            "or correct host, port and scheme (rediss for TLS)."
        )
    except TypeError:
        # redis-py meets an option that it does not know when it makes its first connection.
        error = ConfigurationError(f"The URL of `share` has an option that is not known. {_MEND}")
    except BaseException:
        await _closed(client)
        raise
    await _closed(client)
    # Not chained: redis-py's own errors may hold parts of the URL.
    raise error from None


def _client_of(url: str) -> tuple[str, _Server]:
    """Return where `url` leads, for people, and a client that has not connected yet."""
    try:
        parts = urlsplit(url)
        host, port, database = parts.hostname, parts.port or _PORT, parts.path.strip("/") or "0"
        readable = parts.scheme in {"redis", "rediss"} and database.isdigit()
        client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            # The second version of the protocol is spoken everywhere.
            protocol=2,
            decode_responses=True,
            # What is not UTF-8 is not ours, and `decode` drops it.
            encoding_errors="replace",
            socket_timeout=_SOCKET,
            socket_connect_timeout=_SOCKET,
            # A call that has failed is not repeated: its time is over.
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            **_QUIET,
        )
    except (ValueError, TypeError, RedisError):
        readable, host, port, client = False, "", 0, None
    if not readable or not host:
        # The error of redis-py is not chained: it may quote the URL.
        raise ConfigurationError(f"The URL of `share` cannot be read. {_MEND}")
    return quoted(f"{host}:{port}"), cast("_Server", client)


async def _closed(client: _Server) -> None:
    with anyio.move_on_after(_LEAVES_WITHIN, shield=True):
        try:
            await client.aclose()
        except (RedisError, OSError) as exc:
            LOG.debug("the connection to Redis did not close: %s", type_name(exc))


def _reason(exc: BaseException) -> str:
    """Return why Redis did not do it, without a secret."""
    if isinstance(exc, ResponseError):
        # The word that Redis begins with; what follows may name a user.
        code = re.match(r"[A-Z]{3,}", str(exc))
        return code[0] if code else type_name(exc)
    return type_name(exc)


class RedisLedger:
    """A member of a ledger on a Redis server. Its methods are those of `rows.LedgerStore`.

    While the server does not answer `take` returns None and `publish` False; the log tells when
    that begins and ends. Only the questions raise `LedgerUnavailable` then. It is used from the
    event loop that opened it, and cannot be used in a forked child.
    """

    def __init__(self, client: _Server, place: str, tag: str, clock: Callable[[], int]) -> None:
        self._client = client
        self._place = place
        self._clock = clock
        self._member = secrets.token_hex(_DIGITS // 2)
        self._process = os.getpid()
        self._left = False
        # All keys in one slot of a cluster: what stands in braces decides.
        self._keys = [f"{tag}:{name}" for name in KEYS]
        self._key_of = dict(zip(KEYS, self._keys, strict=True))
        self._take = client.register_script(TAKE)
        self._publish = client.register_script(PUBLISH)
        self._leave = client.register_script(LEAVE)
        # The server's time less the local one, as exact as known and as it is used.
        self._exact = self._shift = 0
        self._trip = 0
        # The step under way, and whether Redis may hold the lock for this member.
        self._taken: _Taken | None = None
        self._locked = False
        # The last publication.
        self._marker = ""
        self._version = self._read_at = 0
        # Takes are counted, and `confirmed` is the last one whose answer arrived.
        self._takes = self._heard = 0
        self._everything = True
        self._wiped = ""
        self._doubtful: dict[str, LedgerRow] = {}
        self._period = PERIOD
        self._mirror = _Mirror()
        self._silent_since: float | None = None
        self._lost = False
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
        """Measure the clock of the server and check that it can hold a ledger."""
        self._trip = NEVER
        for _ in range(_TRIPS):
            sent = self._local()
            seconds, rest = await self._client.time()
            received = self._local()
            if received - sent < self._trip:
                self._trip = received - sent
                self._exact = seconds * SECOND + rest - (sent + received) // 2
        self._shift = _in_slots(self._exact)
        # A server that only copies another one refuses this, a user without rights both.
        await self._client.delete(self._key_of["lock"] + ":probe")
        await self._leave(self._keys, [self._member])
        policy = await self._policy()
        if policy is None:
            LOG.info(
                "Redis at %s does not tell its maxmemory-policy: it must be noeviction", self._place
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
        """Lock the ledger and read it; None where the lock cannot be had `within` seconds.

        After a server has been silent for a second it is asked once in half a second: in between
        None comes at once.
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
            # All rows are read and written again, by the time as it is now.
            self._shift = _in_slots(self._exact)
            self._everything = True
        self._takes += 1
        unused = secrets.token_hex(_DIGITS // 2)
        # A take that the server sees too late for its answer to arrive must not lock the ledger.
        patience = sent + self._exact + int(within * SECOND) - self._trip // 2
        self._locked = True
        try:
            found = await self._call(
                self._take,
                [
                    *(self._member, self._takes, self._heard),
                    *("" if self._everything else self._marker, self._version, patience),
                    *(unused, self._wiped, _LIFE // 1000, _DEAD_AFTER, _STEP, _KEPT),
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
            LOG.warning("the clock of Redis at %s was set; the ledger begins anew", self._place)
            # Its times are of the clock as it was. Whoever is the first to see that empties it.
            self._wiped = self._marker
            self._mirror = _Mirror()
            return None
        if not self._locked:
            return None
        self._heard, self._wiped = self._takes, ""
        return self._read(answer)

    def _clock_was_set(self, server: int, sent: int, received: int) -> bool:
        """Follow the drift of the two clocks, and return whether one of them was set."""
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
                # There may be tens of thousands, those of a day: to decode them all would stop the
                # loop for seconds. Put back, they are kept for a day from now.
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
            lost = self._mirror.without(entries, now)
            found += self._of_others(lost)
            gone += tuple(each for each in self._mirror.gone if each not in gone)
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
        """Write `rows` and unlock the ledger. False: nothing of the step counts."""
        taken = self._taken
        if taken is None:
            raise RuntimeError("the ledger is not locked by this member")
        self._check_usable()
        self._taken = None
        self._period = longest_period(rows, self._period)
        mine = {key(row): self._entry(row, taken.now) for row in rows}
        undone = {
            name: self._entry(_undone(row), taken.now)
            for name, row in self._doubtful.items()
            if name in taken.entries and name not in mine
        }
        members = self._mirror.members(taken.lost.values())
        try:
            answer = await self._call(
                self._publish,
                [
                    *(taken.token, self._member, MOST_DURATIONS),
                    *(_PRUNED_EVERY, _MOST_GONE, _KEPT),
                    *_arguments("=", mine),
                    *_arguments("=", undone),
                    *_arguments("+", taken.lost, unless=mine),
                    *(text for how, name in members for text in (how, name, "", "")),
                ],
                _CALL,
            )
        except BaseException as exc:
            # It may have been written although nothing of it counts.
            self._doubtful.update((key(row), row) for row in rows)
            self._everything = True
            if isinstance(exc, _Unanswered):
                return False
            raise
        self._locked = False
        version = cast("int", answer)
        if version < 0:
            return False
        if taken.afresh and not taken.lost:
            self._mirror = _Mirror()
        self._mirror.add({**taken.lost, **taken.entries, **undone, **mine}, taken.now)
        self._mirror.note_gone(taken.gone, kept_when_gone(taken.now, period=self._period))
        self._marker, self._version, self._read_at = taken.marker, version, self._local()
        self._everything = False
        self._doubtful.clear()
        return True

    async def release(self) -> None:
        """Unlock the ledger, if it is locked, without writing. The same rows are read again."""
        self._taken = None
        if self._locked and not self._left and self._process == os.getpid():
            await self._unlock()

    async def _unlock(self) -> None:
        """Unlock; where the server does not answer the lock ends by itself."""
        with anyio.move_on_after(_LEAVES_WITHIN, shield=True):
            try:
                await self._call(self._leave, [self._member], _LEAVES_WITHIN)
            except _Unanswered:
                return
            self._locked = False

    async def aclose(self) -> None:
        """Leave the ledger: the others read at once that this member is gone. Raises nothing."""
        if self._left:
            return
        self._left, self._taken = True, None
        if self._process != os.getpid():
            # The connections are the parent's.
            return
        kept = kept_when_gone(0, period=self._period)
        with anyio.move_on_after(_LEAVES_WITHIN, shield=True):
            try:
                await self._leave(self._keys, [self._member, kept, _KEPT])
            except (RedisError, OSError) as exc:
                LOG.debug("the ledger at %s was left without a word: %s", self._place, _reason(exc))
        await _closed(self._client)

    # Questions.

    async def members(self) -> tuple[MemberStatus, ...]:
        """Return all living members of the ledger, this one too, without a lock."""
        names = await self._ask(self._client.zrange(self._key_of["seen"], 0, -1))
        rows = await self._rows([f"member {name}" for name in names])
        now = self._local() + self._shift
        return tuple(status(row, now) for row in rows if isinstance(row, MemberRow))

    async def find_intents(self, identity: str, digest: str) -> tuple[IntentRow | DoneRow, ...]:
        """Return what all members, this one too, wrote of one job, the oldest first."""
        name = job_name(identity, digest)
        rows = await self._rows(await self._indexed(_digest("job", name)))
        found = [row for row in rows if isinstance(row, IntentRow | DoneRow) and job(row) == name]
        return tuple(sorted(found, key=_written))

    async def known_task(self, task_id: str) -> bool:
        """Return whether `task_id` is a task of any member."""
        return bool(await self._indexed(_digest("task", task_id)))

    async def _indexed(self, name: str) -> list[str]:
        """Return the keys of the rows that the index has under `name`."""
        # "!" comes after the space.
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
            self._note_silence(began, reason)
            raise _Unanswered(reason) from None
        if self._lost:
            LOG.info("the shared ledger at %s answers again", self._place)
        self._silent_since, self._lost, self._retried_at = None, False, 0.0
        return answer

    def _note_silence(self, began: float, reason: str) -> None:
        now = anyio.current_time()
        if self._silent_since is None:
            self._silent_since = began
        if now - self._silent_since < _LOST_AFTER:
            return
        self._retried_at = now + _RETRIED_AFTER
        if not self._lost:
            LOG.warning(
                "the shared ledger at %s does not answer (%s): no task is created until it does; "
                "running tasks are polled",
                *(self._place, reason),
            )
        self._lost = True


class _Mirror:
    """What a member knows of the ledger, to put it back where the ledger has lost it."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self.gone: dict[str, None] = {}
        self._pruned_at = -NEVER

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entries: Mapping[str, _Entry], now: int) -> None:
        """Add what was read or written, in place of what has the same key."""
        for name, entry in entries.items():
            # The newest stand last.
            self._entries.pop(name, None)
            self._entries[name] = entry
            if isinstance(entry.row, MemberRow):
                self.gone.pop(entry.row.member, None)
        if now - self._pruned_at >= _MIRROR_PRUNED_EVERY:
            self._prune(now)
            self._pruned_at = now

    def note_gone(self, members: Iterable[str], until: int) -> None:
        """Note that `members` are gone: requests of theirs without an answer count `until`."""
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
        """Return what still counts `now` and is not among `entries`."""
        return {
            name: entry
            for name, entry in self._entries.items()
            if entry.until > now and name not in entries
        }

    def members(self, lost: Iterable[_Entry]) -> list[tuple[str, str]]:
        """Return which members of `lost` rows live ("seen") and which are "gone"."""
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
            if len(kept) == _MOST_MIRRORED:
                break
        self._entries = dict(reversed(kept.items()))
        writers = {entry.writer for entry in kept.values()}
        self.gone = {name: None for name in self.gone if name in writers}


def _arguments(
    how: str, entries: Mapping[str, _Entry], unless: Mapping[str, _Entry] | None = None
) -> list[str]:
    """Return `entries` as arguments of `publish`, without those that are among `unless`."""
    return [
        text
        for name, entry in entries.items()
        if unless is None or name not in unless
        for text in (how, name, entry.body, "" if entry.until == NEVER else str(entry.until))
    ]


def _undone(row: LedgerRow) -> LedgerRow:
    """Return what is true of `row` where it may have been written and its step does not count."""
    match row:
        case RequestRow(answered=None):
            # It never left. As a failed one it ends with the period, and counts until then.
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
