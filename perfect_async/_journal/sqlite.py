"""The journal's file: entries that survive a crash. The only module that uses sqlite3.

Each transaction is on the disk when its call returns (WAL, synchronous=FULL). The entries of a job
are deleted with the one that ends it. One row per task stays, so that the task is known as ours;
it holds the job's identity while the result may be fetched again. A result that was saved is kept
by its identity and folder, and the picture of a job with a `key` by its identity.

The main file says that the journal is in use from the opening until it is closed. Its latest
entries are in a file of their own then (`-wal`), and the first of them takes that mark back: so
the mark is read only where the log is missing. Such a copy would look like a journal that was
closed, and paid tasks would be bought again. Everything here blocks and runs in a worker thread.
All times are UTC microseconds since 1970.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import sqlite3
import stat
import struct
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar, cast

import attrs

from perfect_async._journal.model import (
    MOST,
    Created,
    Damaged,
    IllegalEntry,
    JobSnapshot,
    JournalEntry,
    JournalState,
    decode,
    encode,
)
from perfect_async._time import SECOND
from perfect_async._value import Value
from perfect_async.errors import JournalError, SubmissionInDoubt, quoted

_Key = TypeVar("_Key")
_APPLICATION: Final = 0x70666173  # "pfas", the mark of our files
_FORMAT: Final = 1
_KEPT_FOR: Final = 30 * 24 * 3600 * SECOND
"""How long the vendor keeps a finished task at most (contract: Download the result)."""
_WINDOW_KEPT_FOR: Final = 3600
"""Seconds of requests that are kept: longer than any period that is sold."""
_UNSEEN_SECONDS: Final = 3
_UNSEEN_PER_SECOND: Final = 5
"""The window is written every two seconds at least. A process that was killed may have sent so many
requests more, in each of so many seconds (contract: Limits).
"""

_DAY: Final = 24 * 3600 * SECOND
"""How long forgotten tasks are still known by their ids, and how long a doubt stays open."""
_MARKED_AFTER: Final = 300
"""Rows and commits after which the log is copied into the main file, and the mark made again."""
_WAL_HEADER: Final = 32
_WAL_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}
"""The magic numbers of a log, and the byte order of its checksums (sqlite's file format, 4.1)."""

_EFFECTIVE_IDS: Final = os.access in os.supports_effective_ids

# The table "words" holds the entries; format 1 calls it so.
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
# Made in a journal of version 0.1 as well, which does not look at them.
_LATER_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS results (
        identity BLOB NOT NULL, folder TEXT NOT NULL, task_id TEXT NOT NULL, files TEXT NOT NULL,
        deleted INTEGER NOT NULL, PRIMARY KEY (identity, folder)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS keys (
        identity BLOB PRIMARY KEY, picture TEXT NOT NULL
    ) WITHOUT ROWID""",
)
_OBJECTS: Final = {
    *(("table", name) for name in ("words", "tasks", "window", "facts", "results", "keys")),
    *(("index", name) for name in ("words_of_job", "tasks_as", "tasks_at")),
}


@attrs.frozen(eq=False, repr=False)
class Row(Value):
    """An entry to be written, its place in the journal, and the state of its job after it."""

    seq: int
    entry: JournalEntry
    snapshot: JobSnapshot

    @property
    def finished(self) -> bool:
        """Whether its job is over and its result can be fetched again."""
        snapshot = self.snapshot
        return (
            snapshot.over
            and snapshot.end == "done"
            and snapshot.stored.sure
            and not snapshot.deleted
        )


@attrs.frozen
class SavedResult:
    """A result that was saved: its task and the paths of its files.

    `deleted`: the vendor's copies were deleted.
    """

    task_id: str
    files: tuple[Path, ...]
    deleted: bool = False


class SqliteJournal:
    """An open journal, locked against other clients. Raises `JournalError` for whatever is wrong.

    `state` is the fold of its entries, `seq` the place of the last one, `job` the last number of a
    job, `past` the requests of the former process as (age in microseconds, requests), oldest first.
    `known_tasks` are the hashes of all task ids that it knew when it was opened, `last_doubt` is
    when the last creation was sent that stayed in doubt (0: none).
    """

    def __init__(self, path: str | os.PathLike[str], now: int, *, make: bool = True) -> None:
        self._lock = threading.Lock()
        self._clean = True
        self._unmarked = 0
        self.path = _absolute(path)
        with _errors_mapped(self.path):
            if not os.path.lexists(self.path):
                if not make:
                    raise JournalError(f"There is no journal {quoted(self.path)}.")
                _make_file(self.path)
            _check_private(self.path)
            # Where sqlite looks for the log: it follows links.
            self._log = f"{os.path.realpath(self.path)}-wal"
            usable_log = _is_log(self._log)
            self._db = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
            try:
                self._load(now, usable_log=usable_log)
            except BaseException:
                self._db.close()
                raise

    def _load(self, now: int, *, usable_log: bool) -> None:
        _lock_file(self._db, self.path)
        self._check_only_file()
        self._check_schema()
        problem = self._one("PRAGMA quick_check(1)")
        if problem != "ok":
            raise JournalError(f"The journal {quoted(self.path)} is damaged: {quoted(problem)}.")
        self.state = self._read_state()
        facts = self._read_numbers("SELECT name, value FROM facts", str)
        if not facts.keys() >= {"seq", "job", "wrote", "clean"}:
            raise JournalError(f"The journal {quoted(self.path)} is damaged: facts are missing.")
        if facts.get("in_use") and not facts["clean"] and not usable_log:
            raise JournalError(
                f"The journal {quoted(self.path)} was in use and not closed, and its log "
                f"{quoted(self._log)}, which holds the latest entries, is missing or damaged. Put "
                "the log back beside it (both files are copied together); without it, paid tasks "
                f"would be bought again. To begin a new journal, remove {quoted(self.path)}."
            )
        self.seq, self.job = facts["seq"], max(facts["job"], self.state.last)
        self.past = tuple(self._read_window(now, facts))
        tasks = self._all("SELECT task_id, created FROM tasks")
        self.known_tasks = frozenset(hash(task_id) for task_id, _ in tasks if task_id)
        doubts = [at for task_id, at in tasks if not task_id and isinstance(at, int)]
        self.last_doubt = max(doubts, default=0)
        with self._transaction():
            for statement in _LATER_TABLES:
                self._db.execute(statement)
            self._db.execute("DELETE FROM tasks WHERE created < ?", (now - _KEPT_FOR,))
            # A process that is killed before its first commit leaves this behind.
            self._write_window(self.past, now)
            self._set_fact("clean", 0)
        self._mark_in_use()
        self._inodes = [(path, _inode(path)) for path in (self.path, self._log)]

    def _mark_in_use(self) -> None:
        """Copy the log into the main file with the mark "in use", and take that back in the log.

        A process that is killed in between leaves the mark, and a log that can be read.
        """
        self._set_in_use(in_use=True)
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        # It needs no more room than the log has already.
        self._set_in_use(in_use=False)
        self._unmarked = 0

    def _check_only_file(self) -> None:
        """Raise `JournalError` where the file has a second name: its log would be beside another.

        A name that a process left which was killed while it made the journal is removed.
        """
        found = Path(self.path).stat()
        if found.st_nlink < 2:  # noqa: PLR2004 - itself
            return
        target = Path(self.path).resolve()
        for part in target.parent.glob(f"{glob.escape(target.name)}.*.new"):
            if part.samefile(target):
                part.unlink()
        if Path(self.path).stat().st_nlink > 1:
            raise JournalError(
                f"The journal {quoted(self.path)} has a second hard link, under which another "
                "process would miss its latest entries. Remove that, or copy the journal instead."
            )

    def _check_schema(self) -> None:
        """Raise `JournalError` for tables, views and triggers that are not the journal's."""
        self._db.execute("PRAGMA trusted_schema = OFF")
        for kind, name, sql in self._all("SELECT type, name, sql FROM sqlite_master"):
            automatic = kind == "index" and sql is None
            virtual = re.match(r"\s*CREATE\s+VIRTUAL\b", str(sql), re.IGNORECASE)
            if virtual or not (automatic or (kind, name) in _OBJECTS):
                raise JournalError(
                    f"The journal {quoted(self.path)} is damaged: it holds "
                    f"{quoted(f'{kind} {name}')}, which is not a journal's."
                )

    def _check_unmoved(self) -> None:
        """Raise `JournalError` where the file or its log is no longer the one that was opened."""
        for path, inode in self._inodes:
            found = _inode(path)
            if found != inode:
                what = "was deleted" if found is None else "was replaced"
                raise JournalError(
                    f"The journal {quoted(self.path)} cannot be written: {quoted(path)} {what} "
                    "while it was open. Put it back, or close the client and open it again."
                )

    def _read_state(self) -> JournalState:
        state, seq = JournalState(), cast("object", 0)
        try:
            for row in self._all("SELECT seq, job, at, kind, text FROM words ORDER BY seq"):
                seq = row[0]
                state.receive(decode(*row[1:]))
        except (Damaged, IllegalEntry) as exc:
            raise JournalError(
                f"The journal {quoted(self.path)} is damaged at entry {seq}: {exc}."
            ) from None
        return state

    def _read_window(self, now: int, facts: dict[str, int]) -> Iterator[tuple[int, int]]:
        rows = self._read_numbers("SELECT second, requests FROM window ORDER BY second", int)
        # Counted from the end of the second, so that no request seems older than it is.
        ages = [(max(0, now - (at + 1) * SECOND + 1), count) for at, count in rows.items()]
        if not facts["clean"]:
            since = max(0, now - facts["wrote"])
            ages += [
                (max(0, since - after * SECOND), _UNSEEN_PER_SECOND)
                for after in range(_UNSEEN_SECONDS)
            ]
        yield from ((age, requests) for age, requests in ages if age < _WINDOW_KEPT_FOR * SECOND)

    def _read_numbers(self, query: str, kind: type[_Key]) -> dict[_Key, int]:
        rows = self._all(query)
        if not all(
            type(key) is kind
            and type(value) is int
            and 0 <= value <= MOST
            and (not isinstance(key, int) or 0 <= key <= MOST)
            for key, value in rows
        ):
            raise JournalError(f"The journal {quoted(self.path)} is damaged: a number is none.")
        return dict(cast("list[tuple[_Key, int]]", rows))

    # Writing.

    def commit(self, rows: Iterable[Row], window: Iterable[tuple[int, int]], now: int) -> None:
        """Write `rows` in order and the `window` as of `now`, in one durable transaction.

        Writing a row again changes nothing, so a cancelled caller may repeat its call.
        """
        with self._lock, _errors_mapped(self.path), self._marked_unclean(), self._transaction():
            self._check_unmoved()
            last = cast("int", self._one("SELECT value FROM facts WHERE name = 'seq'"))
            for row in rows:
                if row.seq > last:
                    self._write_row(row)
                    last = row.seq
                    self._set_fact("job", row.entry.job, at_least=True)
                self._unmarked += 1
            self._set_fact("seq", last)
            self._write_window(window, now)
        self._unmarked += 1
        if self._unmarked >= _MARKED_AFTER:
            # It is tried again with the next commit.
            with self._lock, contextlib.suppress(sqlite3.Error):
                self._mark_in_use()

    def _write_window(self, window: Iterable[tuple[int, int]], now: int) -> None:
        seconds: Counter[int] = Counter()
        for age, requests in window:
            seconds[(now - age) // SECOND] += requests
        self._db.execute("DELETE FROM window")
        self._db.executemany("INSERT INTO window VALUES (?, ?)", seconds.items())
        self._set_fact("wrote", now)

    def _write_row(self, row: Row) -> None:
        snapshot, entry = row.snapshot, row.entry
        if isinstance(entry, Created):
            task = entry.task_id, snapshot.since
            self._db.execute("INSERT INTO tasks VALUES (x'', ?, ?)", task)
        if not snapshot.over:
            self._db.execute("INSERT INTO words VALUES (?, ?, ?, ?, ?)", (row.seq, *encode(entry)))
            return
        self._db.execute("DELETE FROM words WHERE job = ?", (snapshot.job,))
        stored = snapshot.stored
        if snapshot.end == "done" and stored.key is not None and stored.source_digest is not None:
            picture = bytes.fromhex(stored.identity), stored.source_digest
            self._db.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", picture)
        if row.finished:
            self._db.execute(
                "UPDATE tasks SET identity = ? "
                "WHERE identity = x'' AND task_id = ? AND created = ?",
                (bytes.fromhex(stored.identity), snapshot.task_id, snapshot.since),
            )
        elif snapshot.end == "doubt":
            # A task without a known owner may be this job's.
            self._db.execute("INSERT INTO tasks VALUES (x'', '', ?)", (snapshot.since,))

    def _set_fact(self, name: str, value: int, *, at_least: bool = False) -> None:
        kept = "max(value, ?)" if at_least else "?"
        self._db.execute(f"UPDATE facts SET value = {kept} WHERE name = ?", (value, name))  # noqa: S608

    def _set_in_use(self, *, in_use: bool) -> None:
        # Not in the files of version 0.1.
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('in_use', ?)", (int(in_use),))

    def save_result(self, identity: str, folder: str, task_id: str, files: Iterable[str]) -> None:
        """Record durably which `files` of `folder` hold the result of a job."""
        digest, names = bytes.fromhex(identity), json.dumps(list(files))
        with self._lock, _errors_mapped(self.path), self._transaction():
            self._check_unmoved()
            self._db.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, (SELECT coalesce(max(deleted), "
                "0) FROM results WHERE identity = ? AND task_id = ?))",
                (digest, folder, task_id, names, digest, task_id),
            )

    # Reading.

    def saved_results(self, identity: str) -> dict[str, SavedResult]:
        """Return the files of a job's result by the folders in which it was saved."""
        with self._lock, _errors_mapped(self.path):
            rows = self._all(
                "SELECT folder, task_id, files, deleted FROM results WHERE identity = ?",
                bytes.fromhex(identity),
            )
        found: dict[str, SavedResult] = {}
        for folder, task_id, text, deleted in rows:
            try:
                names = cast("object", json.loads(str(text)))
            except (ValueError, RecursionError):
                continue
            if isinstance(names, list) and names:
                # The last part only: no damaged row names a file outside of the folder.
                files = tuple(
                    Path(str(folder), Path(str(name)).name) for name in cast("list[object]", names)
                )
                found[str(folder)] = SavedResult(str(task_id), files, deleted=bool(deleted))
        return found

    def key_picture(self, identity: str) -> str | None:
        """Return the digest of the picture that a job with a key was done with."""
        with self._lock, _errors_mapped(self.path):
            found = self._one(
                "SELECT picture FROM keys WHERE identity = ?", bytes.fromhex(identity)
            )
        return None if found is None else str(found)

    def lookup(self, identity: str, since: int) -> str | None:
        """Return the task of the latest finished job of `identity` created since `since`."""
        with self._lock, _errors_mapped(self.path):
            found = self._one(
                "SELECT task_id FROM tasks WHERE identity = ? AND created >= ? "
                "ORDER BY created DESC LIMIT 1",
                bytes.fromhex(identity),
                since,
            )
        return None if found is None else str(found)

    def drop(self, task_id: str) -> None:
        """Stop offering this task: its results are gone."""
        with self._lock, _errors_mapped(self.path), self._transaction():
            self._db.execute("UPDATE tasks SET identity = x'' WHERE task_id = ?", (task_id,))
            self._db.execute("UPDATE results SET deleted = 1 WHERE task_id = ?", (task_id,))

    def forget(self, now: int) -> int:
        """Purge the finished jobs, also from the file's free pages.

        Paths and names go at once. Task ids are kept for a day, so that no task of ours is taken
        for another one. Returns how many jobs could have been fetched again. Raises
        `SubmissionInDoubt` where that of a creation of the last day was not reported yet.
        """
        doubts = [each for each in self.state.live.values() if each.in_doubt]
        if recent := [each for each in doubts if each.since > now - _DAY]:
            raise SubmissionInDoubt(
                f"The journal {quoted(self.path)} holds {len(recent)} creations in doubt that were "
                "not reported yet: tasks may exist and be charged. Resume the journal first; a day "
                "after the creation it can be forgotten all the same.",
                units_at_stake=sum(each.stored.units for each in recent),
            )
        with self._lock, _errors_mapped(self.path):
            with self._transaction():
                self._check_unmoved()
                for each in doubts:
                    self._db.execute("DELETE FROM words WHERE job = ?", (each.job,))
                gone = cast("int", self._one("SELECT count(*) FROM tasks WHERE identity != x''"))
                self._db.execute("DELETE FROM tasks WHERE created < ?", (now - _DAY,))
                self._db.execute("UPDATE tasks SET identity = x''")
                self._db.execute("DELETE FROM results")
                self._db.execute("DELETE FROM keys")
            for each in doubts:
                self.state.discard(each.job)
            self._db.execute("VACUUM")
            # Between the two the log is empty, as where the journal is closed.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._mark_in_use()
        return gone

    def close(self) -> None:
        """Close the file, so that another client may open it."""
        with self._lock, _errors_mapped(self.path):
            try:
                self._set_fact("clean", int(self._clean))
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self._db.close()

    # Helpers.

    @contextmanager
    def _marked_unclean(self) -> Generator[None]:
        """Mark the window on the disk as incomplete where the block fails."""
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


def _inode(path: str) -> tuple[int, int] | None:
    """Return the device and inode of the file at `path`, None where there is none."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_log(path: str) -> bool:
    """Return whether there is a log of sqlite's at `path`, by the checksum of its header."""
    try:
        with Path(path).open("rb") as file:
            header = file.read(_WAL_HEADER)
    except FileNotFoundError:
        return False
    if len(header) < _WAL_HEADER:
        return False
    order = _WAL_MAGIC.get(struct.unpack_from(">I", header)[0])
    if order is None:
        return False
    first = second = 0
    values = struct.unpack_from(f"{order}6I", header)
    for one, two in zip(values[::2], values[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return (first, second) == struct.unpack_from(">2I", header, 24)


def _absolute(path: object) -> str:
    """Return `path` as an absolute one: sqlite treats ":memory:" and "file:..." specially."""
    given, shown = cast("object", None), quoted(path)
    if isinstance(path, str | os.PathLike):
        given = os.fspath(cast("str | os.PathLike[str]", path))
    if not isinstance(given, str) or not given or "\0" in given:
        raise JournalError(f"The journal's path is {shown}; it must name a file.")
    return str(Path(given).absolute())


def _make_file(path: str) -> None:
    """Make a new journal at `path`, completely or not at all."""
    for left in (f"{path}-wal", f"{path}-journal"):
        if os.path.lexists(left):
            # sqlite would take it for the new file's log and apply it.
            raise JournalError(
                f"{quoted(left)} is what is left of a journal whose file is gone. Put "
                f"{quoted(path)} back, or remove this as well to begin a new one."
            )
    part = f"{path}.{secrets.token_hex(4)}.new"
    # Made before sqlite opens it, so that it is private from its first byte.
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
        # Never over a file that another process has made meanwhile. The folder is synced with the
        # first transaction, since sqlite makes its log in it then.
        with contextlib.suppress(FileExistsError):
            _link(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _link(part: str, path: str) -> None:
    """Rename `part` to `path`. Raises `FileExistsError` where there is such a file."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (FAT, some shares): the first to make an empty file may replace it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        Path(part).replace(path)


def _check_private(path: str) -> None:
    """Make `path` readable for its owner only. Raises `JournalError` and `OSError`."""
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"The journal {quoted(path)} is no regular file.")
    if found.st_size == 0:
        raise JournalError(
            f"The journal {quoted(path)} is empty: it was truncated, or never was a journal. "
            "Remove it, and what else begins with its name, to begin a new one."
        )
    # `access`, since opening and closing it would drop the locks of another client in this process.
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


def _lock_file(db: sqlite3.Connection, path: str) -> None:
    """Lock the file and check that it is a journal, before anything is changed."""
    # In this mode the first read takes the lock, which is kept until the file is closed.
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
    # Done by hand: it would copy the log without the mark.
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA secure_delete = ON")
    db.execute("BEGIN IMMEDIATE")
    db.execute("COMMIT")


@contextmanager
def _errors_mapped(path: str) -> Generator[None]:
    """Raise `JournalError` for errors of sqlite and of the system."""
    try:
        yield
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        raise JournalError(f"The journal {quoted(path)} cannot be opened: {why}.") from exc
    except UnicodeError as exc:
        raise JournalError(f"The journal {quoted(path)} is damaged: it holds no text.") from exc
    except OverflowError as exc:
        raise JournalError(
            f"The journal {quoted(path)} is damaged: a number is too large."
        ) from exc
    except sqlite3.Error as exc:
        name = getattr(exc, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise JournalError(
                f"The journal {quoted(path)} is in use by another client or process."
            ) from exc
        if name.startswith("SQLITE_NOTADB"):
            raise JournalError(f"{quoted(path)} is no journal of perfect_async.") from exc
        # A missing table, and text that is not UTF-8 (found by Python, not by sqlite).
        torn = isinstance(exc, sqlite3.OperationalError) and name in {"", "SQLITE_ERROR"}
        if torn or name.startswith("SQLITE_CORRUPT"):
            raise JournalError(f"The journal {quoted(path)} is damaged: {exc}.") from exc
        raise JournalError(f"The journal {quoted(path)} cannot be written: {exc}.") from exc
