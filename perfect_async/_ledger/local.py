"""The ledger of the processes of one machine: an sqlite file, without a server.

One step takes some 50 microseconds, so it runs in the event loop itself. Only `take` waits for
other processes, and lets the loop run while it waits. The ledger may be deleted, damaged or put
back from a copy at any time, since its members can write all of it again. For the same reason it is
not synced to the disk (after a crash of the system it belongs to another boot).

A step is one transaction of sqlite (WAL), and the locks are the operating system's. So a member
that is killed at any point leaves no half-written rows and no lock. A member that is stopped in the
middle of a step would block all others; after two seconds they go on with a copy of the ledger, and
the stopped member's publication is refused.

sqlite's connections do not survive a fork, so they are closed before it and made again when needed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar, cast
from weakref import WeakSet

import anyio
import attrs

from perfect_async._ledger.folder import (
    KeyFolder,
    MemberFile,
    boot_id,
    errors_mapped,
    file_id,
)
from perfect_async._ledger.rows import (
    AWAY,
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
from perfect_async._log import LOG
from perfect_async._time import NEVER, SECOND
from perfect_async.errors import quoted
from perfect_async.events import DoneRow, IntentRow, LedgerRow, MemberRow

_T = TypeVar("_T")
_CHECKED_EVERY: Final = SECOND // 2
"""How often a member checks whether the others live."""
_PRUNED_EVERY: Final = 10 * SECOND
_GONE_KEPT: Final = 24 * 3600 * SECOND
"""How long a member is recorded as gone: as long as any row of it is kept."""
_STUCK: Final = 2 * SECOND
"""A member that holds the lock for longer without writing counts as stopped."""
_SEEN_AGAIN: Final = SECOND
"""A lock that is seen again after a longer time may belong to another step."""
_WAITS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005)
"""Seconds between two tries for the lock; the last one is repeated."""
_LEAVE_TRIES: Final = 40
"""How often a leaving member tries to take the lock; after that it leaves without writing."""
_FORK_TIMEOUT: Final = 0.2
_MOST_TRIES: Final = 6
"""How often a ledger is opened again that others delete or replace at the same time."""
_CHECKPOINT: Final = 200
"""After how many pages the log is copied into the ledger, which takes part of a millisecond."""

_SCHEMA: Final = """
PRAGMA synchronous = OFF;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE facts (marker TEXT NOT NULL, version INTEGER NOT NULL);
CREATE TABLE members (
    member TEXT PRIMARY KEY, gone INTEGER NOT NULL, at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE rows (
    key TEXT NOT NULL UNIQUE, until INTEGER NOT NULL, task TEXT, body TEXT NOT NULL,
    version INTEGER NOT NULL, writer TEXT NOT NULL, series TEXT
);
CREATE INDEX rows_by_version ON rows (version);
CREATE INDEX rows_by_end ON rows (until);
CREATE INDEX rows_of_task ON rows (task) WHERE task IS NOT NULL;
CREATE INDEX rows_of_series ON rows (series, version) WHERE series IS NOT NULL;
CREATE TABLE jobs (
    key TEXT NOT NULL UNIQUE, until INTEGER NOT NULL, task TEXT, body TEXT NOT NULL,
    job TEXT NOT NULL
);
CREATE INDEX jobs_by_end ON jobs (until);
CREATE INDEX jobs_of_task ON jobs (task) WHERE task IS NOT NULL;
CREATE INDEX jobs_by_name ON jobs (job);
COMMIT;
"""
_TABLES: Final = {
    "rows": "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)",
    "jobs": "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?)",
    "members": "INSERT OR REPLACE INTO members VALUES (?, ?, ?)",
}
"""The statement that writes a row of each table. `jobs` holds intents and done jobs, which are many
and are read one by one.
"""
_BUSY: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_DAMAGED: Final = (
    *("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH"),
    *("SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_DELETE_NOENT", "SQLITE_IOERR_FSTAT"),
    "SQLITE_READONLY_DBMOVED",
)
"""Names of errors for a file that is not a ledger, or was deleted. A missing table has the name
SQLITE_ERROR, and malformed text has none.
"""


class _Busy(Exception):
    """Another process or thread has the lock."""


class _Damaged(Exception):
    """The file is not a ledger, or not the one that was opened."""


@attrs.frozen
class _Taken:
    """The step that is under way: the ledger that it read, up to which version, and when.

    `joined`: this member is among the living members of that ledger.
    """

    marker: str
    version: int
    now: int
    joined: bool


def open_local(
    folder: Path,
    host: str,
    key_digest: str,
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    boot: str | None = None,
) -> LocalLedger:
    """Join the ledger of a key in the state `folder`, and return this member's access to it.

    `host` and `key_digest` are those of `rows.host_digest` and `rows.key_digest`. `clock` counts
    nanoseconds from the same moment for all processes of one `boot`. The call takes a few
    milliseconds and waits for no other process. Raises `LedgerUnavailable`.
    """
    place = KeyFolder(folder.absolute(), host, key_digest, boot_id() if boot is None else boot)
    return LocalLedger(place, secrets.token_hex(8), clock)


def look(
    folder: Path,
    host: str,
    key_digest: str,
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    boot: str | None = None,
) -> tuple[MemberStatus, ...]:
    """Return the members of a ledger without joining it; empty if there is no ledger."""
    place = KeyFolder(folder.absolute(), host, key_digest, boot_id() if boot is None else boot)
    with errors_mapped(place.path):
        if file_id(place.ledger) is None:
            return ()
    try:
        with _errors_classified(place), contextlib.closing(_connect(place)) as db:
            return _members(db, place, clock() // 1000)
    except (_Busy, _Damaged):
        raise LedgerUnavailable(
            f"the ledger {quoted(place.ledger)} is damaged, or is being made just now"
        ) from None


class LocalLedger:
    """A member of a ledger on this machine, with the methods of `rows.LedgerStore`.

    It may be used from one thread at a time, and not in a forked child.
    """

    def __init__(self, place: KeyFolder, member: str, clock: Callable[[], int]) -> None:
        self._place = place
        self._member = member
        self._clock = clock
        self._left = ""
        self._db: sqlite3.Connection | None = None
        self._files: tuple[tuple[int, int] | None, ...] = ()
        self._step = threading.Lock()
        self._taken: _Taken | None = None
        self._joined = False
        self._marker = ""
        self._read_version = 0
        self._read_at = 0
        self._checked_at = self._pruned_at = -NEVER
        self._period = PERIOD
        # While another member has the lock: the marker and version of the ledger, since when it is
        # so, and when it was last seen.
        self._lock_seen: tuple[str, int, int, int] | None = None
        self._file = MemberFile(place.member(member))
        try:
            with contextlib.suppress(_Busy):
                self._retried(self._open)
        except BaseException:
            self._close("the ledger could not be opened")
            raise
        with _OPEN_LOCK:
            _OPEN.add(self)

    def __repr__(self) -> str:
        return f"<LocalLedger {self._member} in {quoted(self._place.ledger)}>"

    @property
    def member(self) -> str:
        """The name of this member: 16 random hexadecimal digits."""
        return self._member

    @property
    def renewed_every(self) -> int:
        """NEVER, since each member holds a lock of the system, which shows that it lives."""
        return NEVER

    # A step.

    async def take(self, within: float) -> Snapshot | None:
        """Lock the ledger and read it; return None if that takes longer than `within` seconds."""
        if self._taken is not None:
            raise RuntimeError("the ledger is locked by this member already")
        if self._left:
            raise LedgerUnavailable(self._left)
        deadline = anyio.current_time() + within
        tries = 0
        while True:
            with contextlib.suppress(_Busy):
                return self._take()
            left = deadline - anyio.current_time()
            if left <= 0:
                return None
            await anyio.sleep(min(left, _WAITS[min(tries, len(_WAITS) - 1)]))
            tries += 1

    async def publish(self, rows: Sequence[LedgerRow]) -> bool:
        """Write `rows` and unlock the ledger; return False if the lock was lost."""
        taken = self._taken
        if taken is None:
            raise RuntimeError("the ledger is not locked by this member")
        try:
            with _errors_classified(self._place):
                return self._publish(rows, taken)
        except _Busy:
            self._disconnect()
            return False
        except _Damaged:
            self._discard()
            return False
        except BaseException:
            self._disconnect()
            raise
        finally:
            self._unlock()

    async def release(self) -> None:
        """Unlock the ledger without writing; the next `take` reads the same rows again."""
        if self._taken is None:
            return
        try:
            # Committed, so that the members which were found dead stay recorded.
            if self._db is not None:
                self._db.execute("COMMIT")
        except sqlite3.Error:
            self._disconnect()
        finally:
            self._unlock()

    async def aclose(self) -> None:
        """Leave the ledger; the others read at once that this member is gone. Raises nothing."""
        if self._left:
            return
        await self.release()
        try:
            with contextlib.suppress(LedgerUnavailable), anyio.CancelScope(shield=True):
                for _ in range(_LEAVE_TRIES):
                    if self._leave():
                        break
                    await anyio.sleep(_WAITS[-1])
        finally:
            self._file.remove()
            self._close("this member has left the ledger")

    # Questions.

    async def has_news(self) -> bool:
        """Return whether others wrote, left or died since this member's last publication."""
        return await self._ask(self._differs)

    async def members(self) -> tuple[MemberStatus, ...]:
        """Return all living members of the ledger, this one included, without a lock."""
        now = self._clock() // 1000
        return await self._ask(lambda db: _members(db, self._place, now))

    async def find_intents(self, identity: str, digest: str) -> tuple[IntentRow | DoneRow, ...]:
        """Return all rows of one job, this member's included, the oldest first."""
        query = "SELECT body FROM jobs WHERE job = ? ORDER BY rowid"
        bodies = await self._ask(lambda db: _all(db, query, job_name(identity, digest)))
        found = [decode(body) for (body,) in bodies]
        return tuple(row for row in found if isinstance(row, IntentRow | DoneRow))

    async def known_task(self, task_id: str) -> bool:
        """Return whether `task_id` is a task of any member."""
        query = "SELECT 1 FROM {} WHERE task = ?"
        query = f"{query.format('rows')} UNION ALL {query.format('jobs')} LIMIT 1"
        return bool(await self._ask(lambda db: _all(db, query, task_id, task_id)))

    def _differs(self, db: sqlite3.Connection) -> bool:
        if _facts(db) != (self._marker, self._read_version):
            return True
        others = _others(db, self._member)
        return not all(self._place.lives(each) for each in others)

    async def _ask(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        for wait in (*_WAITS, *_WAITS):
            with contextlib.suppress(_Busy):
                if self._taken is not None:
                    return self._ask_inside(question)
                with _errors_classified(self._place), self._stepping():
                    return self._retried(lambda: question(self._connection()))
            await anyio.sleep(wait)
        raise LedgerUnavailable("another process keeps the ledger locked")

    def _ask_inside(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        """Ask inside a step. It fails where the file is damaged, which is then made again."""
        cause: Exception | None = None
        if self._db is not None:
            try:
                with _errors_classified(self._place):
                    return question(self._db)
            except _Damaged as exc:
                cause = exc
                self._discard()
        raise LedgerUnavailable(
            f"the ledger {quoted(self._place.ledger)} was damaged or deleted"
        ) from cause

    @contextmanager
    def _stepping(self) -> Generator[None]:
        """Keep a fork in another thread from closing the connection, to the end of the step."""
        if not self._step.acquire(blocking=False):
            raise _Busy
        try:
            yield
        finally:
            if self._taken is None:
                self._step.release()

    # Inside a step: no method waits.

    def _take(self) -> Snapshot:
        """Begin a step. Raises `_Busy`."""
        with self._stepping():
            return self._retried(self._begin)

    def _begin(self) -> Snapshot:
        db = self._connection()
        self._file.keep()
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as exc:
            if _is_busy(exc):
                self._check_lock_holder(db)
            raise
        self._lock_seen = None
        try:
            return self._read(db)
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _read(self, db: sqlite3.Connection) -> Snapshot:
        now = self._clock() // 1000
        marker, version = _facts(db)
        standing = _all(db, "SELECT gone FROM members WHERE member = ?", self._member)
        known = standing == [(0,)]
        afresh = (
            marker != self._marker
            or version < self._read_version
            or now - self._read_at > AWAY
            or (self._joined and not known)
        )
        since = -1 if afresh else self._read_version
        if afresh or now - self._checked_at >= _CHECKED_EVERY:
            version = self._check_others(db, version, now)
            self._checked_at = now
        bodies = _all(
            db,
            "SELECT body FROM rows WHERE version > ? AND writer <> ? AND until >= ? "
            "ORDER BY version, rowid",
            since,
            self._member,
            now,
        )
        rows = tuple(row for (body,) in bodies if (row := decode(body)) is not None)
        gone = _all(
            db,
            "SELECT member FROM members WHERE gone > ? AND member <> ? ORDER BY gone",
            max(0, since),
            self._member,
        )
        self._period = longest_period(rows, self._period)
        self._taken = _Taken(marker, version, now, joined=known)
        return Snapshot(rows, tuple(str(name) for (name,) in gone), afresh, now)

    def _check_others(self, db: sqlite3.Connection, version: int, now: int) -> int:
        """Record which members are dead, and return the resulting version."""
        for member in _others(db, self._member):
            if not self._place.lives(member):
                version += 1
                self._record_gone(db, member, version, now)
        return version

    def _record_gone(self, db: sqlite3.Connection, member: str, version: int, now: int) -> None:
        db.execute(
            "UPDATE members SET gone = ?, at = ? WHERE member = ?",
            (version, now, member),
        )
        db.execute("DELETE FROM rows WHERE key = ?", (f"member {member}",))
        # All requests of the member: the keys that begin with its name.
        db.execute(
            "UPDATE rows SET until = ? WHERE until = ? AND key > ? AND key < ?",
            (
                kept_when_gone(now, period=self._period),
                NEVER,
                f"request {member} ",
                f"request {member}!",
            ),
        )
        db.execute("UPDATE facts SET version = ?", (version,))

    def _publish(self, rows: Sequence[LedgerRow], taken: _Taken) -> bool:
        db = self._db
        if db is None or not self._in_place():
            self._disconnect()
            return False
        version, now = taken.version, taken.now
        if rows:
            version += 1
            self._period = longest_period(rows, self._period)
            if not taken.joined:
                db.execute(_TABLES["members"], (self._member, 0, now))
            for row in rows:
                self._write(db, row, version, now)
            db.execute("UPDATE facts SET version = ?", (version,))
        if now - self._pruned_at >= _PRUNED_EVERY:
            _prune(db, now)
            self._pruned_at = now
        db.execute("COMMIT")
        self._marker, self._read_version, self._read_at = taken.marker, version, now
        self._joined = taken.joined or bool(rows)
        return True

    def _write(self, db: sqlite3.Connection, row: LedgerRow, version: int, now: int) -> None:
        until = kept_until(row, now, period=self._period)
        values = key(row), until, task_id(row) or None, encode(row)
        if isinstance(row, IntentRow | DoneRow):
            db.execute(_TABLES["jobs"], (*values, job(row)))
        else:
            db.execute(_TABLES["rows"], (*values, version, self._member, series(row) or None))

    def _leave(self) -> bool:
        """Record that this member is gone; return False if another member has the lock."""
        if file_id(self._place.ledger) is None:
            return True
        try:
            self._take()
        except _Busy:
            return False
        taken, db = self._taken, self._db
        try:
            if taken is not None and db is not None:
                if taken.joined:
                    self._record_gone(db, self._member, taken.version + 1, taken.now)
                db.execute("COMMIT")
        except sqlite3.Error:
            self._disconnect()
        finally:
            self._unlock()
        return True

    def _unlock(self) -> None:
        self._taken = None
        self._step.release()

    # The file.

    def _open(self) -> None:
        self._place.make()
        self._file.keep()
        self._place.sweep()
        self._connection()

    def _retried(self, work: Callable[[], _T]) -> _T:
        """Do `work`, and repeat it with a new ledger if the file is damaged."""
        damaged, removed = None, 0
        for _ in range(_MOST_TRIES):
            try:
                with _errors_classified(self._place):
                    return work()
            except _Damaged:
                self._disconnect()
                found = file_id(self._place.ledger)
                # A file that is damaged once may be one that another process is replacing.
                if damaged is not None and found == damaged:
                    self._remove(damaged)
                    removed += 1
                damaged = found
            except LedgerUnavailable:
                self._disconnect()
                raise
        if removed <= 1:
            # Another process deletes the file again and again.
            raise _Busy
        raise LedgerUnavailable(f"the ledger {quoted(self._place.ledger)} cannot be made again")

    def _connection(self) -> sqlite3.Connection:
        """Return the connection to the ledger; connect again if the file was replaced."""
        if self._left:
            raise LedgerUnavailable(self._left)
        if self._db is not None and not self._in_place():
            self._disconnect()
        if self._db is None:
            found = file_id(self._place.ledger)
            if found is None:
                self._make()
                found = file_id(self._place.ledger)
            with _deletion_checked(self._place.ledger, found):
                db = _connect(self._place)
                try:
                    # The first read makes the log, so that its id is known.
                    _facts(db)
                    files = self._place.files()
                except BaseException:
                    db.close()
                    raise
            if files[0] != found:
                db.close()
                raise _Damaged
            self._db, self._files = db, files
        return self._db

    def _in_place(self) -> bool:
        return self._files == self._place.files()

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def _make(self, source: sqlite3.Connection | None = None) -> None:
        """Make the ledger if it is missing, or replace `source` by a copy of it."""
        place = self._place
        place.make()
        with place.guard() as ours:
            if not ours:
                raise _Busy
            if source is None and file_id(place.ledger) is not None:
                return
            part = place.ledger.with_name(f"{place.ledger.name}.{secrets.token_hex(4)}.new")
            try:
                # The file is made before sqlite opens it, so that only its user can ever read it.
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
                with _deletion_checked(part, file_id(part)):
                    version = _fill(part, source)
                if source is not None and not (self._in_place() and _facts(source)[1] == version):
                    # It was replaced already, or its holder has gone on.
                    return
                # Removed with its log, which would otherwise count as that of the new ledger.
                place.remove_ledger()
                part.rename(place.ledger)
            finally:
                part.unlink(missing_ok=True)

    def _discard(self) -> None:
        """Remove the ledger, which was found damaged inside a step; the next one makes it again."""
        damaged = file_id(self._place.ledger)
        self._disconnect()
        with contextlib.suppress(_Busy):
            self._remove(damaged)

    def _remove(self, damaged: tuple[int, int] | None) -> None:
        """Remove a damaged ledger, unless another process has removed it. Raises `_Busy`."""
        with _errors_classified(self._place), self._place.guard() as ours:
            if not ours:
                raise _Busy
            if file_id(self._place.ledger) == damaged:
                LOG.info(
                    "The ledger %s is damaged, so it is made again.", quoted(self._place.ledger)
                )
                self._place.remove_ledger()

    def _check_lock_holder(self, db: sqlite3.Connection) -> None:
        """Replace the ledger by a copy if a member holds its lock for too long.

        Such a member is stopped, since a step takes a millisecond. Reading needs no lock.
        """
        now = self._clock() // 1000
        marker, version = _facts(db)
        before, since = self._lock_seen, now
        if before is not None and before[:2] == (marker, version) and now - before[3] < _SEEN_AGAIN:
            since = before[2]
        self._lock_seen = marker, version, since, now
        if now - since > _STUCK:
            self._lock_seen = None
            LOG.info(
                "A stopped process holds the lock of the ledger %s; the others go on with a copy.",
                quoted(self._place.ledger),
            )
            self._make(db)

    def _close(self, reason: str) -> None:
        self._left = reason
        self._disconnect()
        self._file.close()
        with _OPEN_LOCK:
            _OPEN.discard(self)

    # Forks.

    def before_fork(self) -> None:
        """Close the connection, and block new steps until the fork is over."""
        if self._step.acquire(timeout=_FORK_TIMEOUT):
            self._disconnect()
            _FORKING.append(self)

    def after_fork_in_parent(self) -> None:
        """Allow steps again."""
        self._step.release()

    def after_fork_in_child(self) -> None:
        """Close the file whose lock shows that the parent lives, and refuse further use."""
        self._left = "it was opened before this process was forked"
        self._taken = None
        self._file.close()
        if self._db is not None:
            # The fork could not wait for the step to end. The connection stays open, since closing
            # it might end the parent's transaction.
            _INHERITED.append(self._db)
            self._db = None


_OPEN: Final[WeakSet[LocalLedger]] = WeakSet()
_OPEN_LOCK: Final = threading.Lock()
_FORKING: Final[list[LocalLedger]] = []
_INHERITED: Final[list[sqlite3.Connection]] = []


def _before_fork() -> None:
    _OPEN_LOCK.acquire()
    for ledger in _OPEN:
        ledger.before_fork()


def _after_fork_in_parent() -> None:
    for ledger in _FORKING:
        ledger.after_fork_in_parent()
    _FORKING.clear()
    _OPEN_LOCK.release()


def _after_fork_in_child() -> None:
    for ledger in _OPEN:
        ledger.after_fork_in_child()
    _OPEN.clear()
    _FORKING.clear()
    _OPEN_LOCK.release()


if sys.platform != "win32":
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


# sqlite.


def _connect(place: KeyFolder) -> sqlite3.Connection:
    # sqlite must not make the file, which would be empty and readable for others.
    db = sqlite3.connect(
        f"{place.ledger.as_uri()}?mode=rw",
        uri=True,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
    except BaseException:
        db.close()
        raise
    return db


def _fill(path: Path, source: sqlite3.Connection | None) -> int:
    """Fill an empty file with a ledger and the rows of `source`, and return its version."""
    db = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        db.executescript(_SCHEMA)
        version = 0
        if source is not None:
            _, version = _facts(source)
            db.execute("BEGIN")
            for table, statement in _TABLES.items():
                db.executemany(statement, _all(source, f"SELECT * FROM {table}"))  # noqa: S608 - our names
            db.execute("COMMIT")
        db.execute("INSERT INTO facts VALUES (?, ?)", (secrets.token_hex(8), version))
    finally:
        db.close()
    return version


def _facts(db: sqlite3.Connection) -> tuple[str, int]:
    """Return the marker of a ledger and the version of its last change. Raises `_Damaged`."""
    facts = _all(db, "SELECT marker, version FROM facts")
    if len(facts) == 1:
        marker, version = facts[0]
        if isinstance(marker, str) and isinstance(version, int):
            return marker, version
    raise _Damaged


def _others(db: sqlite3.Connection, member: str) -> list[str]:
    """Return the members beside `member` that have neither left nor were found dead."""
    found = _all(db, "SELECT member FROM members WHERE gone = 0 AND member <> ?", member)
    return [str(name) for (name,) in found]


def _members(db: sqlite3.Connection, place: KeyFolder, now: int) -> tuple[MemberStatus, ...]:
    bodies = _all(db, "SELECT body FROM rows WHERE key > 'member ' AND key < 'member!'")
    rows = [decode(body) for (body,) in bodies]
    return tuple(
        status(row, now) for row in rows if isinstance(row, MemberRow) and place.lives(row.member)
    )


def _prune(db: sqlite3.Connection, now: int) -> None:
    db.execute("DELETE FROM rows WHERE until < ?", (now,))
    db.execute("DELETE FROM jobs WHERE until < ?", (now,))
    db.execute("DELETE FROM members WHERE gone > 0 AND at < ?", (now - _GONE_KEPT,))
    full = _all(
        db,
        "SELECT series FROM rows WHERE series IS NOT NULL GROUP BY series HAVING count(*) > ?",
        MOST_DURATIONS,
    )
    for (name,) in full:
        db.execute(
            "DELETE FROM rows WHERE rowid IN (SELECT rowid FROM rows WHERE series = ? "
            "ORDER BY version DESC, rowid DESC LIMIT -1 OFFSET ?)",
            (name, MOST_DURATIONS),
        )


def _all(db: sqlite3.Connection, query: str, *values: object) -> list[tuple[object, ...]]:
    return cast("list[tuple[object, ...]]", db.execute(query, values).fetchall())


def _is_busy(exc: sqlite3.Error) -> bool:
    return getattr(exc, "sqlite_errorname", "").startswith(_BUSY)


@contextmanager
def _deletion_checked(path: Path, found: tuple[int, int] | None) -> Generator[None]:
    """Turn errors of sqlite into `_Damaged` if the file at `path` was deleted or replaced."""
    try:
        yield
    except sqlite3.Error as exc:
        if found is None or file_id(path) != found:
            raise _Damaged from exc
        raise


@contextmanager
def _errors_classified(place: KeyFolder) -> Generator[None]:
    """Turn errors of sqlite and of the system into `_Busy`, `_Damaged` or `LedgerUnavailable`."""
    try:
        with errors_mapped(place.path):
            try:
                yield
            except FileNotFoundError as exc:
                # The file was deleted between two calls.
                raise _Damaged from exc
    except sqlite3.Error as exc:
        name = getattr(exc, "sqlite_errorname", "")
        if name.startswith(_BUSY):
            raise _Busy from exc
        if name in {"", "SQLITE_ERROR"} or name.startswith(_DAMAGED):
            raise _Damaged from exc
        if name.startswith("SQLITE_CANTOPEN") and place.can_be_opened():
            # It was deleted a moment ago, and made again since.
            raise _Busy from exc
        raise LedgerUnavailable(
            f"the ledger {quoted(place.ledger)} cannot be written: {exc} ({name})",
            ordinary=name.startswith("SQLITE_READONLY"),
        ) from exc
