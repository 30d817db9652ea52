"""The journal's SQLite file, whose entries survive a crash.

Each transaction is on the disk when its call returns (WAL, synchronous=FULL). Once a job is over,
its entries are deleted. One row per task stays, so that the task is known to be of this journal;
the row holds the job's identity while the result can be fetched again. A saved result is kept by
identity and folder, and the picture of a job with a `key` by identity.

While the journal is open, its main file has the mark "in use", and the latest entries are in the
log beside it (`-wal`). The first entry of the log removes the mark again, so the mark is seen only
if the log is missing. Without the mark, a main file that was copied without its log would look like
a closed journal, and paid tasks would be bought again.

All calls here block and run in a worker thread. All times are UTC microseconds since 1970.
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
from array import array
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
_APPLICATION: Final = 0x70666173  # "pfas", the application id of journals
_FORMAT: Final = 1
_KEPT_FOR: Final = 30 * 24 * 3600 * SECOND
"""The longest time for which the vendor keeps a finished task (contract: Download the result)."""
_WINDOW_KEPT_FOR: Final = 3600
"""Seconds of requests that are kept: longer than the period of any limit."""
_UNSEEN_SECONDS: Final = 3
_UNSEEN_PER_SECOND: Final = 5
"""The window is written at least every two seconds. A killed process may have sent this many more
requests per second in this many seconds (contract: Limits).
"""

_DAY: Final = 24 * 3600 * SECOND
"""The time for which the ids of forgotten tasks are kept, and for which a doubt stays open."""
_MARKED_AFTER: Final = 300
"""Rows and commits after which the log is copied into the main file, with a new mark."""
_WAL_HEADER: Final = 32
_WAL_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}
"""The magic numbers of a log, and the byte order of its checksums (sqlite's file format, 4.1)."""

_EFFECTIVE_IDS: Final = os.access in os.supports_effective_ids

# The table "words" holds the entries; the name is part of format 1.
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
# Also added to a journal of version 0.1, which ignores them.
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
    """An entry to be written, its sequence number, and the state of its job after it."""

    seq: int
    entry: JournalEntry
    snapshot: JobSnapshot

    @property
    def finished(self) -> bool:
        """Whether the job is over and its result can be fetched again."""
        snapshot = self.snapshot
        return (
            snapshot.over
            and snapshot.end == "done"
            and snapshot.stored.sure
            and not snapshot.deleted
        )


@attrs.frozen
class SavedResult:
    """A saved result: its task and the paths of its files.

    `deleted` says whether the vendor's copies were deleted.
    """

    task_id: str
    files: tuple[Path, ...]
    deleted: bool = False


class SqliteJournal:
    """An open journal, locked against other clients. Raises `JournalError` for every problem.

    `state` is the fold of the entries, `seq` the sequence number of the last one, `job` the highest
    number of a job, and `past` the requests of the former process as (age in microseconds,
    requests), oldest first. `known_tasks` holds the hashes of all task ids in order, eight bytes
    for each; the writer adds those of new tasks. `last_doubt` is the time of the last creation that
    stayed in doubt (0: none).
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
            # sqlite follows links to find the log.
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
        self.known_tasks = array("q", sorted(hash(task_id) for task_id, _ in tasks if task_id))
        doubts = [at for task_id, at in tasks if not task_id and isinstance(at, int)]
        self.last_doubt = max(doubts, default=0)
        with self._transaction():
            for statement in _LATER_TABLES:
                self._db.execute(statement)
            self._db.execute("DELETE FROM tasks WHERE created < ?", (now - _KEPT_FOR,))
            # If the process is killed before its first commit, the window is still known.
            self._write_window(self.past, now)
            self._set_fact("clean", 0)
        self._mark_in_use()
        self._inodes = [(path, _inode(path)) for path in (self.path, self._log)]

    def _mark_in_use(self) -> None:
        """Copy the log, with the mark "in use", into the main file; then clear it in the log.

        A process that is killed in between leaves the mark and a readable log.
        """
        self._set_in_use(in_use=True)
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        # This entry needs no more room than the log has already.
        self._set_in_use(in_use=False)
        self._unmarked = 0

    def _check_only_file(self) -> None:
        """Raise `JournalError` if the file has a second hard link, since the log has only one name.

        The link of a process that was killed while it created the journal is removed.
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
                f"The journal {quoted(self.path)} has a second hard link. A process that opened "
                "the journal by that name would miss its latest entries. Remove the link, or copy "
                "the closed journal instead."
            )

    def _check_schema(self) -> None:
        """Raise `JournalError` for tables, views and triggers that do not belong to a journal."""
        self._db.execute("PRAGMA trusted_schema = OFF")
        for kind, name, sql in self._all("SELECT type, name, sql FROM sqlite_master"):
            automatic = kind == "index" and sql is None
            virtual = re.match(r"\s*CREATE\s+VIRTUAL\b", str(sql), re.IGNORECASE)
            if virtual or not (automatic or (kind, name) in _OBJECTS):
                raise JournalError(
                    f"The journal {quoted(self.path)} is damaged: it holds "
                    f"{quoted(f'{kind} {name}')}, which does not belong to a journal."
                )

    def _check_unmoved(self) -> None:
        """Raise `JournalError` if the file or its log was deleted or replaced since the opening."""
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
        # Ages count from the end of the second, so that no request seems older than it is.
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
            raise JournalError(
                f"The journal {quoted(self.path)} is damaged: a value is not a valid number."
            )
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
            # After an error, the next commit tries again.
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
            # A row without a task id records the doubt: an unknown task may belong to this job.
            self._db.execute("INSERT INTO tasks VALUES (x'', '', ?)", (snapshot.since,))

    def _set_fact(self, name: str, value: int, *, at_least: bool = False) -> None:
        kept = "max(value, ?)" if at_least else "?"
        self._db.execute(f"UPDATE facts SET value = {kept} WHERE name = ?", (value, name))  # noqa: S608

    def _set_in_use(self, *, in_use: bool) -> None:
        # Journals of version 0.1 do not have this row.
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('in_use', ?)", (int(in_use),))

    def save_result(self, identity: str, folder: str, task_id: str, files: Iterable[str]) -> None:
        """Record durably that `files` in `folder` are the result of a job."""
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
        """Return the saved results of a job, by folder."""
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
                # Only the last part is used, so that a damaged row cannot leave the folder.
                files = tuple(
                    Path(str(folder), Path(str(name)).name) for name in cast("list[object]", names)
                )
                found[str(folder)] = SavedResult(str(task_id), files, deleted=bool(deleted))
        return found

    def key_picture(self, identity: str) -> str | None:
        """Return the digest of the picture of a finished job with a key, or None."""
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
        """Stop offering this task, since its results are gone."""
        with self._lock, _errors_mapped(self.path), self._transaction():
            self._db.execute("UPDATE tasks SET identity = x'' WHERE task_id = ?", (task_id,))
            self._db.execute("UPDATE results SET deleted = 1 WHERE task_id = ?", (task_id,))

    def forget(self, now: int) -> int:
        """Purge the finished jobs, also from the file's free pages.

        Paths and names are removed at once. Task ids are kept for a day, so that no task of this
        journal counts as unknown. Returns how many results could have been fetched again. Raises
        `SubmissionInDoubt` if a creation of the last day is in doubt and was not reported yet.
        """
        doubts = [each for each in self.state.live.values() if each.in_doubt]
        if recent := [each for each in doubts if each.since > now - _DAY]:
            raise SubmissionInDoubt(
                f"The journal {quoted(self.path)} holds {len(recent)} creations in doubt that were "
                "not reported yet: their tasks may exist and be charged. Resume the journal first, "
                "or forget it a day after the creations.",
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
            # Between the two calls the log is empty, as in a closed journal.
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
        """Mark the window on the disk as incomplete if the block fails."""
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
    """Return the device and inode of the file at `path`, or None if it is missing."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_log(path: str) -> bool:
    """Return whether the file at `path` is a log of SQLite, by the checksum of its header."""
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
    """Return `path` as an absolute path, since SQLite treats ":memory:" and "file:" specially."""
    given, shown = cast("object", None), quoted(path)
    if isinstance(path, str | os.PathLike):
        given = os.fspath(cast("str | os.PathLike[str]", path))
    if not isinstance(given, str) or not given or "\0" in given:
        raise JournalError(f"The journal's path is {shown}; it must name a file.")
    try:
        return str(Path(given).absolute())
    except OSError as exc:
        raise JournalError(
            f"The journal's path is {shown}, which starts from the working folder, which was "
            "removed; pass an absolute path."
        ) from exc


def _make_file(path: str) -> None:
    """Create a new journal at `path`, completely or not at all."""
    for left in (f"{path}-wal", f"{path}-journal"):
        if os.path.lexists(left):
            # SQLite would apply it as the log of the new file.
            raise JournalError(
                f"{quoted(left)} is left of a journal whose file is gone. Put {quoted(path)} back, "
                f"or remove {quoted(left)} as well to begin a new journal."
            )
    part = f"{path}.{secrets.token_hex(4)}.new"
    # Created before SQLite opens it, so that it is private from its first byte.
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
        # A file that another process has created meanwhile is not replaced. The first transaction
        # syncs the folder, since SQLite creates its log in it.
        with contextlib.suppress(FileExistsError):
            _link(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _link(part: str, path: str) -> None:
    """Rename `part` to `path`. Raises `FileExistsError` if that file exists."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # Without hard links (FAT, some shares), the process that created the empty file may
        # replace it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        Path(part).replace(path)


def _check_private(path: str) -> None:
    """Make `path` readable by its owner only. Raises `JournalError` and `OSError`."""
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"The journal {quoted(path)} is not a regular file.")
    if found.st_size == 0:
        raise JournalError(
            f"The journal {quoted(path)} is empty: it was truncated, or it never was a journal. To "
            "begin a new journal, remove it and every file that begins with its name."
        )
    # Opening and closing the file would drop the locks of another client in this process.
    if not os.access(path, os.W_OK, effective_ids=_EFFECTIVE_IDS):
        raise JournalError(f"The journal {quoted(path)} cannot be written: it is read-only.")
    for part in (path, f"{path}-wal"):
        if os.path.lexists(part) and Path(part).stat().st_mode & 0o077:
            try:
                Path(part).chmod(0o600)
            except OSError as exc:
                raise JournalError(
                    f"The journal {quoted(part)} can be read by other users, and its permissions "
                    "cannot be changed, since another user owns it. Let the owner run chmod 600 on "
                    "it, or use another file."
                ) from exc


def _lock_file(db: sqlite3.Connection, path: str) -> None:
    """Lock the file and check that it is a journal, before anything changes in it."""
    # In this mode the first read takes the lock and keeps it until the file is closed.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise JournalError(f"{quoted(path)} is not a journal of perfect_async.")
    if version != _FORMAT:
        raise JournalError(
            f"The journal {quoted(path)} has format {version}; this version of perfect_async reads "
            f"only format {_FORMAT}. Use the version that wrote the journal, or a newer one."
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    # An automatic checkpoint would copy the log without the mark.
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA secure_delete = ON")
    db.execute("BEGIN IMMEDIATE")
    db.execute("COMMIT")


@contextmanager
def _errors_mapped(path: str) -> Generator[None]:
    """Raise `JournalError` for errors of SQLite and of the system."""
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise JournalError(f"The journal {quoted(path)} cannot be opened: {reason}.") from exc
    except UnicodeError as exc:
        raise JournalError(
            f"The journal {quoted(path)} is damaged: a text in it is not UTF-8."
        ) from exc
    except OverflowError as exc:
        raise JournalError(
            f"The journal {quoted(path)} is damaged: a number is too large."
        ) from exc
    except sqlite3.Error as exc:
        name = getattr(exc, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise JournalError(
                f"The journal {quoted(path)} is in use by another client or process.", in_use=True
            ) from exc
        if name.startswith("SQLITE_NOTADB"):
            raise JournalError(f"{quoted(path)} is not a journal of perfect_async.") from exc
        # A missing table, and text that is not UTF-8 (found by Python, not by SQLite).
        torn = isinstance(exc, sqlite3.OperationalError) and name in {"", "SQLITE_ERROR"}
        if torn or name.startswith("SQLITE_CORRUPT"):
            raise JournalError(f"The journal {quoted(path)} is damaged: {exc}.") from exc
        raise JournalError(f"The journal {quoted(path)} cannot be written: {exc}.") from exc
