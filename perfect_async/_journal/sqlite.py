"""The journal's file: words on a disk that survive a crash. The only place that knows sqlite3.

One transaction at a time, each on the disk when it returns (WAL, synchronous=FULL). Words about
jobs that are over leave with the word that ends them; of each task one line stays, so that it is
known as ours, with its job's identity if it may be fetched again. So opening reads what is alive
and nothing else. Everything here blocks and runs in a
worker thread. All times are UTC microseconds since 1970.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar, cast

import attrs

from perfect_async._journal.model import (
    Created,
    Damaged,
    IllegalEntry,
    JobSnapshot,
    JournalEntry,
    JournalState,
    decode,
    encode,
)
from perfect_async.errors import JournalError, quoted

_K = TypeVar("_K")
_SECOND: Final = 1_000_000
_APPLICATION: Final = 0x70666173  # "pfas", the mark of our files
_FORMAT: Final = 1
_KEPT: Final = 30 * 24 * 3600 * _SECOND
"""How long a finished job can be fetched at most (contract: Download the result)."""
_REMEMBERED: Final = 3600
"""Seconds of requests that are remembered: longer than any period that is sold."""
_UNSEEN: Final = 3
_MOST: Final = 5
"""Requests are written down every two seconds at least: a process that ended without a word may
have sent so many more, in so many seconds each (contract: Limits).
"""

_EFFECTIVE_IDS: Final = os.access in os.supports_effective_ids

_SCHEMA: Final = """
CREATE TABLE words (
    seq INTEGER PRIMARY KEY, job INTEGER NOT NULL, at INTEGER NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX words_of_job ON words (job);
CREATE TABLE tasks (
    identity BLOB NOT NULL, task_id TEXT NOT NULL, created INTEGER NOT NULL
);
CREATE INDEX tasks_as ON tasks (identity, created);
CREATE INDEX tasks_at ON tasks (created);
CREATE TABLE window (second INTEGER PRIMARY KEY, requests INTEGER NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO facts VALUES ('seq', 0), ('job', 0), ('wrote', 0), ('clean', 1);
"""


@attrs.frozen
class Entry:
    """A word to be written, by its place in the journal, and what its job has come to."""

    seq: int
    word: JournalEntry
    known: JobSnapshot

    @property
    def finished(self) -> bool:
        """Whether its job is over and can be fetched again."""
        known = self.known
        return known.over and known.how == "done" and known.order.sure and not known.deleted


class SqliteJournal:
    """An open journal: nobody else has it. Raises `JournalError` for all that is wrong with one.

    `memory` is what its words come to, `seq` the place of the last one, `job` the last number of a
    job, `past` the requests of the former process as (age in microseconds, number), oldest first.
    """

    def __init__(self, path: str | os.PathLike[str], now: int, *, make: bool = True) -> None:
        self._lock = threading.Lock()
        self._clean = True
        self.path = _path(path)
        with _telling(self.path):
            if not os.path.lexists(self.path):
                if not make:
                    raise JournalError(f"There is no journal {quoted(self.path)}.")
                _make(self.path)
            _private(self.path)
            self._db = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
            try:
                self._begin(now)
            except BaseException:
                self._db.close()
                raise

    def _begin(self, now: int) -> None:
        _claim(self._db, self.path)
        problem = self._one("PRAGMA quick_check(1)")
        if problem != "ok":
            raise JournalError(f"The journal {quoted(self.path)} is damaged: {quoted(problem)}.")
        self.memory = self._remembered()
        facts = self._numbers("SELECT name, value FROM facts", str)
        if not facts.keys() >= {"seq", "job", "wrote", "clean"}:
            raise JournalError(f"The journal {quoted(self.path)} is damaged: facts are missing.")
        self.seq, self.job = facts["seq"], max(facts["job"], self.memory.last)
        self.past = tuple(self._window(now, facts))
        with self._transaction():
            self._db.execute("DELETE FROM tasks WHERE created < ?", (now - _KEPT,))
            # Whoever is killed before the first commit leaves behind what is known now.
            self._remember(self.past, now)
            self._fact("clean", 0)

    def _remembered(self) -> JournalState:
        memory, seq = JournalState(), cast("object", 0)
        try:
            for row in self._all("SELECT seq, job, at, kind, text FROM words ORDER BY seq"):
                seq = row[0]
                memory.receive(decode(*row[1:]))
        except (Damaged, IllegalEntry) as exc:
            raise JournalError(
                f"The journal {quoted(self.path)} is damaged at word {seq}: {exc}."
            ) from None
        return memory

    def _window(self, now: int, facts: dict[str, int]) -> Iterator[tuple[int, int]]:
        rows = self._numbers("SELECT second, requests FROM window ORDER BY second", int)
        # By the end of its second: nothing is taken for older than it is.
        ages = [(max(0, now - (at + 1) * _SECOND + 1), count) for at, count in rows.items()]
        if not facts["clean"]:
            since = max(0, now - facts["wrote"])
            ages += [(max(0, since - after * _SECOND), _MOST) for after in range(_UNSEEN)]
        yield from ((age, requests) for age, requests in ages if age < _REMEMBERED * _SECOND)

    def _numbers(self, query: str, kind: type[_K]) -> dict[_K, int]:
        rows = self._all(query)
        if not all(type(key) is kind and type(value) is int and value >= 0 for key, value in rows):
            raise JournalError(f"The journal {quoted(self.path)} is damaged: a number is none.")
        return dict(cast("list[tuple[_K, int]]", rows))

    # What is written.

    def commit(self, entries: Iterable[Entry], window: Iterable[tuple[int, int]], now: int) -> None:
        """Write `entries` in order, and the `window` as of `now`: all of it is on the disk then.

        Writing an entry again changes nothing: who was cancelled need not know how far it came.
        """
        with self._lock, _telling(self.path), self._written(), self._transaction():
            last = cast("int", self._one("SELECT value FROM facts WHERE name = 'seq'"))
            for entry in entries:
                if entry.seq > last:
                    self._write(entry)
                    last = entry.seq
                    self._fact("job", entry.word.job, at_least=True)
            self._fact("seq", last)
            self._remember(window, now)

    def _remember(self, window: Iterable[tuple[int, int]], now: int) -> None:
        seconds: Counter[int] = Counter()
        for age, requests in window:
            seconds[(now - age) // _SECOND] += requests
        self._db.execute("DELETE FROM window")
        self._db.executemany("INSERT INTO window VALUES (?, ?)", seconds.items())
        self._fact("wrote", now)

    def _write(self, entry: Entry) -> None:
        known, word = entry.known, (entry.seq, *encode(entry.word))
        if isinstance(entry.word, Created):
            self._db.execute(
                "INSERT INTO tasks VALUES (x'', ?, ?)", (entry.word.task_id, known.since)
            )
        if not known.over:
            self._db.execute("INSERT INTO words VALUES (?, ?, ?, ?, ?)", word)
            return
        self._db.execute("DELETE FROM words WHERE job = ?", (known.job,))
        if entry.finished:
            row = bytes.fromhex(known.order.identity), known.task_id, known.since
            self._db.execute(
                "UPDATE tasks SET identity = ?1 "
                "WHERE identity = x'' AND task_id = ?2 AND created = ?3",
                row,
            )
        elif known.how == "doubt":
            # A task that nobody knows may be this one's.
            self._db.execute("INSERT INTO tasks VALUES (x'', '', ?)", (known.since,))

    def _fact(self, name: str, value: int, *, at_least: bool = False) -> None:
        kept = "max(value, ?)" if at_least else "?"
        self._db.execute(f"UPDATE facts SET value = {kept} WHERE name = ?", (value, name))  # noqa: S608

    # What is asked.

    def lookup(self, identity: str, since: int) -> str | None:
        """The task of the latest finished job of that identity created at `since` or later."""
        with self._lock, _telling(self.path):
            found = self._one(
                "SELECT task_id FROM tasks WHERE identity = ? AND created >= ? "
                "ORDER BY created DESC LIMIT 1",
                bytes.fromhex(identity),
                since,
            )
        return None if found is None else str(found)

    def ids(self, since: int) -> frozenset[str]:
        """All tasks that were created at `since` or later, whatever became of them.

        "" is among them if a creation stayed in doubt.
        """
        with self._lock, _telling(self.path):
            rows = self._all("SELECT task_id FROM tasks WHERE created >= ?", since)
        return frozenset(str(task_id) for (task_id,) in rows)

    def drop(self, task_id: str) -> None:
        """The pictures of this task can no longer be fetched."""
        with self._lock, _telling(self.path), self._transaction():
            self._db.execute("UPDATE tasks SET identity = x'' WHERE task_id = ?", (task_id,))

    def forget(self) -> int:
        """Purge what is known of finished jobs, also from the file's free pages; tells how many
        could have been fetched again.
        """
        with self._lock, _telling(self.path):
            with self._transaction():
                gone = cast("int", self._one("SELECT count(*) FROM tasks WHERE identity != x''"))
                self._db.execute("DELETE FROM tasks")
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def close(self) -> None:
        """Let go of it: from now on somebody else may have it."""
        with self._lock, _telling(self.path):
            try:
                self._fact("clean", int(self._clean))
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self._db.close()

    # Inside.

    @contextmanager
    def _written(self) -> Generator[None]:
        """What fails here leaves a window on the disk that is not all of it."""
        self._clean = False
        yield
        self._clean = True

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _all(self, query: str, *values: object) -> list[tuple[object, ...]]:
        return self._db.execute(query, values).fetchall()

    def _one(self, query: str, *values: object) -> object:
        row = cast("tuple[object, ...] | None", self._db.execute(query, values).fetchone())
        return None if row is None else row[0]


# Opening.


def _path(path: object) -> str:
    """`path` as an absolute one: sqlite would read meaning into ":memory:" and "file:..."."""
    given, shown = cast("object", None), quoted(path)
    if isinstance(path, str | os.PathLike):
        given = os.fspath(cast("str | os.PathLike[str]", path))
    if not isinstance(given, str) or not given or "\0" in given:
        raise JournalError(f"The journal's path is {shown}; it must name a file.")
    return str(Path(given).absolute())


def _make(path: str) -> None:
    """A new journal at `path`, there whole or not at all: it may be killed in between."""
    for left in (f"{path}-wal", f"{path}-journal"):
        if os.path.lexists(left):
            # sqlite would take it for the new file's, and write what is in it into that.
            raise JournalError(
                f"{quoted(left)} is what is left of a journal whose file is gone. Put "
                f"{quoted(path)} back, or remove this as well to begin a new one."
            )
    part = f"{path}.{secrets.token_hex(4)}.new"
    # Before sqlite sees it, so that it is private from its first byte.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        db = sqlite3.connect(part, isolation_level=None)
        try:
            db.executescript(
                f"PRAGMA synchronous = FULL; BEGIN; PRAGMA application_id = {_APPLICATION}; "
                f"PRAGMA user_version = {_FORMAT}; {_SCHEMA} COMMIT;"
            )
        finally:
            db.close()
        # Not over a file that somebody else has made meanwhile. The folder's entry is on the disk
        # with the first thing that sqlite writes, since it makes a file of its own for that.
        with contextlib.suppress(FileExistsError):
            _name(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _name(part: str, path: str) -> None:
    """Call `part` `path`. Raises `FileExistsError` where that is somebody else's name."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (FAT, some shares): whoever makes an empty file first may replace it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        Path(part).replace(path)


def _private(path: str) -> None:
    """See that `path` is a file that nobody else may read. Raises `JournalError` and `OSError`."""
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"The journal {quoted(path)} is no regular file.")
    if found.st_size == 0:
        raise JournalError(
            f"The journal {quoted(path)} is empty: it was truncated, or never was a journal. "
            "Remove it, and what else begins with its name, to begin a new one."
        )
    # Asked, not opened: closing it again would drop the locks of another client in this process.
    if not os.access(path, os.W_OK, effective_ids=_EFFECTIVE_IDS):
        raise JournalError(f"The journal {quoted(path)} cannot be written: it is read-only.")
    for part in (path, f"{path}-wal"):
        if os.path.lexists(part) and Path(part).stat().st_mode & 0o077:
            try:
                Path(part).chmod(0o600)
            except OSError as exc:
                raise JournalError(
                    f"The journal {quoted(part)} is somebody else's, and others may read it."
                ) from exc


def _claim(db: sqlite3.Connection, path: str) -> None:
    """See that the file is a journal of ours and of nobody else's, before anything is changed."""
    # In this mode the first read takes the lock and keeps it until the file is closed.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise JournalError(f"{quoted(path)} is no journal of perfect_async.")
    if version != _FORMAT:
        raise JournalError(
            f"The journal {quoted(path)} has format {version}; this version reads {_FORMAT}. "
            "Use the version of perfect_async that wrote it, or a newer one."
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")
    db.execute("BEGIN IMMEDIATE")
    db.execute("COMMIT")


@contextmanager
def _telling(path: str) -> Generator[None]:
    """Raise `JournalError` for what sqlite and the system say about the file."""
    try:
        yield
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        raise JournalError(f"The journal {quoted(path)} cannot be opened: {why}.") from exc
    except UnicodeError as exc:
        raise JournalError(f"The journal {quoted(path)} is damaged: it holds no text.") from exc
    except sqlite3.Error as exc:
        name = getattr(exc, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise JournalError(
                f"The journal {quoted(path)} is in use by another client or process."
            ) from exc
        if name.startswith("SQLITE_NOTADB"):
            raise JournalError(f"{quoted(path)} is no journal of perfect_async.") from exc
        # A table that is missing, and text that is none, which Python finds and sqlite does not.
        torn = isinstance(exc, sqlite3.OperationalError) and name in {"", "SQLITE_ERROR"}
        if torn or name.startswith("SQLITE_CORRUPT"):
            raise JournalError(f"The journal {quoted(path)} is damaged: {exc}.") from exc
        raise JournalError(f"The journal {quoted(path)} cannot be written: {exc}.") from exc
