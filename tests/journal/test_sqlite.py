"""The journal's file: its contents, and failures of disks and processes."""

import hashlib
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from perfect_async._journal import sqlite as journal_sqlite
from perfect_async._journal.model import (
    Created,
    Creating,
    Deleted,
    Ended,
    Entered,
    IllegalEntry,
    JournalEntry,
    JournalState,
    Phase,
    Reported,
    Returned,
    Saved,
    StoredJob,
    Uploaded,
)
from perfect_async._journal.sqlite import Row, SavedResult, SqliteJournal
from perfect_async.errors import JournalError, SubmissionInDoubt
from tests.journal.test_model import STORED, entries, stored
from tests.support.journals import fold, task_ids
from tests.support.searching import examples

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000
NOW = 1_790_000_000 * SECOND
DAY = 24 * 3600 * SECOND


class Writer:
    """Writes entries into a journal's file, and keeps the state that they fold to."""

    def __init__(self, path: Path, now: int = NOW) -> None:
        self.file = SqliteJournal(path, now)
        self.state = fold(())
        for snapshot in self.file.state.live.values():
            self.state._live[snapshot.job] = snapshot
        self.seq = self.file.seq
        self.number = self.file.job

    def rows(self, appended: Iterable[JournalEntry]) -> list[Row]:
        rows: list[Row] = []
        for entry in appended:
            self.seq += 1
            rows.append(Row(self.seq, entry, self.state.receive(entry)))
        return rows

    def write(
        self, *appended: JournalEntry, now: int = NOW, window: Iterable[tuple[int, int]] = ()
    ) -> list[Row]:
        rows = self.rows(appended)
        self.file.commit(rows, window, now)
        return rows

    def close(self) -> None:
        self.file.close()


def lifetime(
    job: int, given: StoredJob = STORED, at: int = NOW, task_id: str = "", *, end: bool = True
) -> list[JournalEntry]:
    """Return the entries of a successful job, up to its end or up to its task."""
    begins: list[JournalEntry] = [
        Entered(job, at, given),
        Uploaded(job, at, "file"),
        Creating(job, at),
        Created(job, at, task_id or f"task-{job}"),
    ]
    return [*begins, Ended(job, at, "done"), Saved(job, at), Reported(job, at)] if end else begins


@contextmanager
def opened(path: Path, now: int = NOW) -> Iterator[SqliteJournal]:
    file = SqliteJournal(path, now)
    try:
        yield file
    finally:
        file.close()


def killed(path: Path, to: Path) -> Path:
    """Return a copy of the journal as a process leaves it that is killed now."""
    to.mkdir()
    for part in (path, Path(f"{path}-wal")):
        if part.exists():
            shutil.copy(part, to / part.name)
    return to / path.name


def refused(path: Path | str, now: int = NOW) -> str:
    """Return the error of a journal that cannot be opened."""
    with pytest.raises(JournalError) as caught:
        SqliteJournal(path, now)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


# Durability.


def test_a_new_journal_is_empty_and_private(path: Path) -> None:
    """A new journal is readable by its owner only, and leaves no other file in the folder."""
    with opened(path) as file:
        assert ({}, 0, 0, ()) == (file.state.live, file.seq, file.job, file.past)
        assert {"jobs.db", "jobs.db-wal"} == {found.name for found in path.parent.iterdir()}
        modes = [stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()]
        assert [0o600, 0o600] == modes

    assert [path] == list(path.parent.iterdir())
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_journal_that_others_could_read_is_made_private(path: Path) -> None:
    """The file and its log become private, for example after a copy by hand."""
    writer = Writer(path)
    writer.write(*lifetime(1, end=False))
    copy = killed(path, path.parent / "copy")
    writer.close()
    for part in copy.parent.iterdir():
        part.chmod(0o644)

    with opened(copy) as file:
        assert [1] == list(file.state.live)
        modes = {stat.S_IMODE(found.stat().st_mode) for found in copy.parent.iterdir()}
        assert {0o600} == modes


def test_live_jobs_are_remembered(path: Path) -> None:
    """Live jobs are restored; jobs that are over are not."""
    writer = Writer(path)
    writer.write(
        *lifetime(1, end=False), *lifetime(2), Entered(3, NOW, stored(place="/a/\udcff.jpg"))
    )
    writer.close()

    with opened(path) as file:
        assert writer.state == file.state
        assert [1, 3] == list(file.state.live)
        assert (writer.seq, 3) == (file.seq, file.job)


def test_a_commit_survives_a_kill(path: Path) -> None:
    """Entries are on the disk when the commit returns, not when the file is closed."""
    writer = Writer(path)
    writer.write(*lifetime(1, end=False))
    copy = killed(path, path.parent / "copy")
    writer.close()

    with opened(copy) as file:
        assert writer.state == file.state


def test_writing_twice_changes_nothing(path: Path) -> None:
    """A caller may repeat a commit, also as part of a larger one."""
    writer = Writer(path)
    first = writer.write(*lifetime(1))
    second = writer.rows(lifetime(2, end=False))
    writer.file.commit(first, (), NOW)
    writer.file.commit(first + second, (), NOW)
    writer.file.commit(second, (), NOW)
    writer.file.commit(first, (), NOW)
    writer.close()

    with opened(path) as file:
        assert writer.state == file.state
        assert writer.seq == file.seq
        assert frozenset({"task-1", "task-2"}) == task_ids(file, 0)


def test_a_jobs_number_is_never_used_again(path: Path) -> None:
    """A number is not reused, even if nothing else is left of its job."""
    writer = Writer(path)
    writer.write(*lifetime(1, stored(sure=False)), *lifetime(7, stored(sure=False)), *lifetime(2))
    writer.close()

    for _ in range(2):
        with opened(path) as file:
            assert ({}, 7) == (file.state.live, file.job)
            file.forget(NOW)


# Finished jobs.


def test_a_finished_job_is_found_by_its_identity(path: Path) -> None:
    """`lookup` returns the latest task of a surely equal job that is not deleted."""
    other = "cd" * 32
    writer = Writer(path)
    writer.write(*lifetime(1, at=NOW), *lifetime(2, at=NOW + 5), *lifetime(3, at=NOW + 3))
    writer.write(*lifetime(4, stored(identity=other, sure=False)))
    gone = stored(identity=other, delete=True)
    writer.write(*lifetime(5, gone)[:-1], Deleted(5, NOW), Reported(5, NOW))
    writer.write(Entered(6, NOW, stored(identity=other)), Ended(6, NOW, "failed"), Reported(6, NOW))
    file = writer.file

    assert "task-2" == file.lookup(STORED.identity, NOW)
    assert "task-2" == file.lookup(STORED.identity, NOW + 5)
    assert file.lookup(STORED.identity, NOW + 6) is None
    assert file.lookup(other, 0) is None
    assert frozenset({"task-1", "task-2", "task-3", "task-4", "task-5"}) == task_ids(file, NOW)
    assert frozenset({"task-2"}) == task_ids(file, NOW + 4)
    file.drop("task-2")
    file.drop("unknown")
    assert "task-3" == file.lookup(STORED.identity, 0)
    writer.close()


@pytest.mark.parametrize(
    "ends",
    [
        [],
        [Ended(1, NOW, "lost"), Reported(1, NOW)],
        [Ended(1, NOW, "failed"), Reported(1, NOW)],
        [Ended(1, NOW, "done"), Reported(1, NOW)],
        [Ended(1, NOW, "done"), Saved(1, NOW), Deleted(1, NOW), Reported(1, NOW)],
        [Returned(1, NOW), Ended(1, NOW, "failed"), Reported(1, NOW)],
        [Returned(1, NOW), Creating(1, NOW), Created(1, NOW, "another")],
    ],
    ids=repr,
)
@pytest.mark.parametrize("sure", [True, False])
def test_every_task_stays_known(ends: list[JournalEntry], sure: bool, path: Path) -> None:
    """After any end, a known task is never picked for a creation in doubt, which may be of another
    person.
    """
    writer = Writer(path)
    writer.write(*lifetime(1, stored(sure=sure), end=False))
    writer.write(*ends)
    writer.file.drop("task-1")
    copy = killed(path, path.parent / "copy")
    writer.close()

    with opened(copy) as file:
        assert "task-1" in task_ids(file, NOW)
        assert file.lookup(STORED.identity, 0) is None


def test_a_finished_job_is_forgotten_after_30_days(path: Path) -> None:
    """The vendor deletes a task after 30 days, so the journal forgets it."""
    writer = Writer(path)
    writer.write(*lifetime(1, at=NOW), *lifetime(2, at=NOW + DAY))
    writer.close()

    with opened(path, NOW + 30 * DAY) as file:
        assert frozenset({"task-1", "task-2"}) == task_ids(file, 0)
    with opened(path, NOW + 30 * DAY + 1) as file:
        assert frozenset({"task-2"}) == task_ids(file, 0)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize(
    ("end", "reported"),
    [([], False), ([Ended(1, NOW, "doubt")], False), ([Ended(1, NOW, "doubt")], True)],
    ids=["creating", "ended", "reported"],
)
def test_a_doubt_is_not_forgotten_before_it_was_reported(
    path: Path, end: list[JournalEntry], reported: bool, after: int
) -> None:
    """A creation of the last day in doubt keeps the journal from being forgotten."""
    writer = Writer(path)
    writer.write(Entered(1, NOW, STORED), Creating(1, NOW), *end, *[Reported(1, NOW)] * reported)
    file = writer.file
    file.state = writer.state
    if reported or after:
        assert 0 == file.forget(NOW + DAY * after)
        assert {} == file.state.live
    else:
        with pytest.raises(SubmissionInDoubt, match="not reported yet") as caught:
            file.forget(NOW + DAY - 1)
        assert 1.0 == caught.value.units_at_stake
        assert [1] == list(file.state.live)
    writer.close()
    with opened(path) as file:
        assert (not reported and not after) == bool(file.state.live)


SECRETS = ("/photos/anna-miller.jpg", "order-4711", "anna-miller", "task-of-anna", "file-of-anna")


def anna(job: int) -> list[JournalEntry]:
    place, key, stem, task_id, file_id = SECRETS
    given = stored(identity="5e" * 32, place=place, key=key, stem=stem)
    return [
        attrs.evolve(entry, file_id=file_id) if isinstance(entry, Uploaded) else entry
        for entry in lifetime(job, given, task_id=task_id)
    ]


def traces(folder: Path) -> set[str]:
    """Return the secrets of the job that are in the bytes of any file."""
    held = b"".join(part.read_bytes() for part in folder.iterdir())
    looked = {secret: secret.encode() for secret in SECRETS} | {"identity": b"\x5e" * 32}
    return {name for name, secret in looked.items() if secret in held}


def test_forgetting_leaves_no_trace(path: Path) -> None:
    """Paths and names of finished jobs leave the files at once, task ids after a day."""
    writer = Writer(path)
    writer.write(*lifetime(1, end=False))
    for entry in anna(2):
        writer.write(entry)
    assert set(SECRETS) | {"identity"} == traces(path.parent)

    writer.file.save_result("5e" * 32, "/photos/anna-miller", "task-of-anna", ["anna-miller.jpg"])
    assert 1 == writer.file.forget(NOW)

    assert {"task-of-anna"} == traces(path.parent)
    assert {"task-1", "task-of-anna"} == task_ids(writer.file, 0)
    assert 0 == writer.file.forget(NOW + DAY)
    assert {"task-of-anna"} == traces(path.parent)
    assert 0 == writer.file.forget(NOW + DAY + 1)
    assert set() == traces(path.parent)
    writer.close()
    assert set() == traces(path.parent)
    with opened(path) as file:
        assert writer.state == file.state
        assert 0 == file.forget(NOW)


def test_forgetting_after_a_kill_leaves_no_trace(path: Path) -> None:
    """Forgetting also purges the log of a killed process."""
    writer = Writer(path)
    writer.write(*anna(1))
    copy = killed(path, path.parent / "copy")
    writer.close()

    with opened(copy) as file:
        assert 1 == file.forget(NOW)

    assert {"task-of-anna"} == traces(copy.parent)


def test_a_job_that_is_over_is_zeroed(path: Path) -> None:
    """The paths and names of a job that is over leave the file, even without forgetting."""
    writer = Writer(path)
    writer.write(*anna(1))
    writer.close()

    assert {"task-of-anna", "identity"} == traces(path.parent)


@pytest.mark.parametrize("jobs", [1_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_finished_jobs_are_small(jobs: int, path: Path) -> None:
    """A finished job with an id as long as the vendor's takes under 600 bytes of the file."""
    writer = Writer(path)
    for start in range(0, jobs, 500):
        appended: list[JournalEntry] = []
        for job in range(start + 1, start + 501):
            identity = random.Random(job).randbytes(32).hex()
            appended += lifetime(job, stored(identity=identity), task_id=f"{job:0107d}")
        writer.write(*appended)
    writer.close()

    assert path.stat().st_size < 600 * jobs
    with opened(path) as file:
        assert jobs == len(task_ids(file, 0))


# Results and keys.


def test_a_saved_result_is_remembered(path: Path) -> None:
    """The files of a job are known by identity and folder; the last ones replace earlier ones."""
    with opened(path) as file:
        file.save_result(STORED.identity, "/out", "t", ["me-1.png", "me-2.png"])
        file.save_result(STORED.identity, "/out", "t2", ["me.jpg"])
        file.save_result(STORED.identity, "/other", "t", ["me.png"])

    with opened(path, NOW + 300 * DAY) as file:
        there = {
            "/out": SavedResult("t2", (Path("/out/me.jpg"),)),
            "/other": SavedResult("t", (Path("/other/me.png"),)),
        }
        assert there == file.saved_results(STORED.identity)
        assert {} == file.saved_results("cd" * 32)
        file.drop("t2")
        there["/out"] = SavedResult("t2", (Path("/out/me.jpg"),), deleted=True)
        assert there == file.saved_results(STORED.identity)
        file.forget(NOW)
        assert {} == file.saved_results(STORED.identity)


def test_a_copy_of_a_deleted_result_stays_deleted(path: Path) -> None:
    """A result that is copied to another folder is still deleted at the vendor."""
    with opened(path) as file:
        file.save_result(STORED.identity, "/out", "t", ["me.png"])
        file.drop("t")
        for folder in ("/copy", "/copy"):
            file.save_result(STORED.identity, folder, "t", ["me.png"])
        file.save_result(STORED.identity, "/out", "t2", ["me.png"])

        found = file.saved_results(STORED.identity)

    assert {"/copy": True, "/out": False} == {key: one.deleted for key, one in found.items()}


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "7", "[" * 100_000])
def test_a_damaged_result_is_ignored(path: Path, text: str) -> None:
    """A result whose files cannot be read is not returned."""
    with opened(path) as file:
        file.save_result(STORED.identity, "/out", "t", ["me.png"])
    changed(path, f"UPDATE results SET files = '{text}'")

    with opened(path) as file:
        assert {} == file.saved_results(STORED.identity)


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("cd" * 32, {"key": "k"}),
        ("cd" * 32, {"key": "k", "kind": "bytes", "place": None}),
        (None, {"key": None}),
        (None, {"key": "k", "digest": None, "place": None}),
        (
            hashlib.sha256(b"https://a.example").hexdigest(),
            {"key": "k", "digest": None, "kind": "url", "place": "https://a.example"},
        ),
    ],
)
@pytest.mark.parametrize("end", ["done", "failed"])
def test_the_picture_of_a_key_is_remembered(
    path: Path, expected: object, changes: dict[str, object], end: str
) -> None:
    """The picture of a finished job with a key is known after the job is over."""
    writer = Writer(path)
    writer.write(*running(stored(**changes)), Ended(1, NOW, end), Reported(1, NOW))  # type: ignore[arg-type] # one of two
    writer.close()

    with opened(path) as file:
        assert (expected if end == "done" else None) == file.key_picture(STORED.identity)


# Task ids.


def reopened(path: Path, *appended: JournalEntry, at_once: bool) -> SqliteJournal:
    """Return a journal with these entries, written in one transaction or several."""
    writer = Writer(path)
    for part in [appended] if at_once else [(entry,) for entry in appended]:
        writer.write(*part)
    writer.close()
    return SqliteJournal(path, NOW)


def running(given: StoredJob = STORED) -> list[JournalEntry]:
    return [Entered(1, NOW + 1, given), Creating(1, NOW + 2), Created(1, NOW + 3, "t")]


REPORTED = Reported(1, NOW + 9)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "rest",
    [
        pytest.param([], id="running"),
        pytest.param([Ended(1, NOW + 4, "failed"), REPORTED], id="failed"),
        pytest.param([Ended(1, NOW + 4, "lost"), REPORTED], id="lost"),
        pytest.param([Returned(1, NOW + 4)], id="returned"),
        pytest.param([Returned(1, NOW + 4), Ended(1, NOW + 5, "unsent"), REPORTED], id="unsent"),
        pytest.param([Ended(1, NOW + 4, "done"), REPORTED], id="done"),
    ],
)
def test_every_task_id_is_known_from_its_creation_on(
    path: Path, rest: list[JournalEntry], at_once: bool
) -> None:
    """A task id stays known after any end of the task, by the time of its creation."""
    file = reopened(path, *running(), *rest, at_once=at_once)

    assert {"t"} == task_ids(file, 0)
    assert {"t"} == task_ids(file, NOW + 2)
    assert set() == task_ids(file, NOW + 4)
    file.close()


def test_the_tasks_of_both_tries_are_known(path: Path) -> None:
    """A failed task and the task after it are both known, each by its own time."""
    file = reopened(
        path,
        *(*running(), Returned(1, NOW + 4), Creating(1, NOW + 5), Created(1, NOW + 6, "second")),
        *(Ended(1, NOW + 7, "done"), REPORTED),
        at_once=True,
    )

    assert {"t", "second"} == task_ids(file, 0)
    assert {"second"} == task_ids(file, NOW + 5)
    assert "second" == file.lookup(STORED.identity, 0)
    assert 1 == file.forget(NOW)
    assert {"t", "second"} == task_ids(file, 0)
    file.close()


@pytest.mark.parametrize("sure", [True, False])
def test_a_task_whose_result_cannot_be_fetched_is_known(path: Path, sure: bool) -> None:
    """Tasks of signed URLs and of deleted copies are known, but not offered again."""
    file = reopened(
        path,
        *running(stored(sure=sure, delete=sure)),
        *(Ended(1, NOW + 4, "done"), Saved(1, NOW + 5), REPORTED),
        *[Deleted(1, NOW + 10)] * sure,
        at_once=False,
    )

    assert {"t"} == task_ids(file, 0)
    assert None is file.lookup(STORED.identity, 0)
    assert 0 == file.forget(NOW)
    file.close()


def test_a_dropped_task_is_known(path: Path) -> None:
    """A task that was deleted at the vendor is not offered again, and its id stays known."""
    file = reopened(path, *running(), Ended(1, NOW + 4, "done"), REPORTED, at_once=True)

    file.drop("t")

    assert None is file.lookup(STORED.identity, 0)
    assert {"t"} == task_ids(file, 0)
    file.close()


# The window.


def test_the_window_is_remembered(path: Path) -> None:
    """Requests are restored with their ages by the second, and never older than they are."""
    writer = Writer(path)
    window = [(250 * SECOND, 3), (1_500_000, 2), (900_000, 4), (0, 1)]
    writer.write(now=NOW + 400_000, window=window)
    writer.close()

    later = NOW + 10 * SECOND + 400_000
    with opened(path, later) as file:
        past = file.past

    assert 10 == sum(count for _, count in past)
    assert [age for age, _ in past] == sorted((age for age, _ in past), reverse=True)
    for (age, count), (was, expected) in zip(past, [(250, 3), (2, 2), (1, 4), (0, 1)], strict=True):
        assert expected == count
        assert (was + 9) * SECOND < age <= (was + 10) * SECOND + 400_000


@given(
    st.lists(st.tuples(st.integers(0, 900 * SECOND), st.integers(1, 9)), max_size=20),
    st.integers(0, SECOND),
    st.integers(0, 900 * SECOND),
)
@settings(max_examples=examples(25))
def test_no_request_of_the_window_gets_older(
    window: list[tuple[int, int]], part: int, pause: int
) -> None:
    """Restored requests are at most a second younger than they are, and never older."""
    now, later = NOW + part, NOW + part + pause
    with tempfile() as folder:
        writer = Writer(folder / "jobs.db")
        writer.write(now=now, window=window)
        writer.close()
        with opened(folder / "jobs.db", later) as file:
            past = file.past
    for bound in {age + pause for age, _ in window}:
        was = sum(count for age, count in window if age + pause <= bound)
        assert was <= sum(count for age, count in past if age <= bound)
        assert was >= sum(count for age, count in past if age <= bound - SECOND)


@contextmanager
def tempfile() -> Iterator[Path]:
    import tempfile as temporary

    with temporary.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_window_replaces_the_former_one(path: Path) -> None:
    """Requests that are not in the new window are removed from the disk."""
    writer = Writer(path)
    writer.write(window=[(5 * SECOND, 7)])
    writer.write(window=[(0, 2)])
    writer.close()

    with opened(path) as file:
        assert [2] == [count for _, count in file.past]


def test_requests_older_than_an_hour_are_dropped(path: Path) -> None:
    """Requests older than an hour limit no process."""
    writer = Writer(path)
    writer.write(window=[(0, 7)])
    writer.close()

    with opened(path, NOW + 3599 * SECOND) as file:
        assert 7 == sum(count for _, count in file.past)
    with opened(path, NOW + 3602 * SECOND) as file:
        assert () == file.past


def test_a_clock_that_was_set_back_makes_requests_young(path: Path) -> None:
    """Requests from the future count as sent now."""
    writer = Writer(path)
    writer.write(window=[(0, 7), (10 * SECOND, 1)])
    writer.close()

    with opened(path, NOW - DAY) as file:
        assert 8 == sum(count for _, count in file.past)
        assert {0} == {age for age, _ in file.past}


def test_a_killed_process_may_have_sent_more(path: Path) -> None:
    """Unrecorded requests of a killed process are counted by the limit per second."""
    writer = Writer(path)
    writer.write(window=[(0, 7)], now=NOW)
    copy = killed(path, path.parent / "copy")
    writer.close()

    with opened(copy, NOW + 60 * SECOND) as file:
        assert 7 + 15 == sum(count for _, count in file.past)
        assert all(57 * SECOND <= age <= 60 * SECOND for age, _ in file.past)
    with opened(path, NOW + 60 * SECOND) as file:
        assert 7 == sum(count for _, count in file.past)


def test_a_process_killed_at_once_may_have_sent_some(path: Path) -> None:
    """Without a recorded window, requests count from the opening of the journal."""
    writer = Writer(path, NOW)
    copy = killed(path, path.parent / "copy")
    writer.close()

    with opened(copy, NOW + 4 * SECOND) as file:
        assert 15 == sum(count for _, count in file.past)
        assert all(SECOND <= age <= 4 * SECOND for age, _ in file.past)


def test_forgetting_keeps_the_window_of_a_killed_process(path: Path) -> None:
    """Opening and closing the journal without a request keeps its unclean window unclean."""
    writer = Writer(path)
    writer.write(window=[(0, 7)], now=NOW)
    copy = killed(path, path.parent / "copy")
    writer.close()

    with opened(copy, NOW + SECOND) as file:
        file.forget(NOW)

    with opened(copy, NOW + 2 * SECOND) as file:
        assert 7 + 15 == sum(count for _, count in file.past)


def test_a_failed_window_is_not_clean(path: Path) -> None:
    """Closing marks the window as complete only if it was written."""
    writer = Writer(path)
    writer.write(window=[(0, 7)], now=NOW)
    with full(writer.file), pytest.raises(JournalError):
        writer.write(*(big(job) for job in range(1, 60)), now=NOW + SECOND, window=[(0, 9)])
    writer.close()

    with opened(path, NOW + 2 * SECOND) as file:
        assert 7 + 15 == sum(count for _, count in file.past)


# Disks.


def big(job: int) -> Entered:
    return Entered(job, NOW, stored(place="/photos/" + "x" * 4_000))


@contextmanager
def full(file: SqliteJournal) -> Iterator[None]:
    """Keep the file from growing, like a full disk."""
    (pages,) = file._db.execute("PRAGMA page_count").fetchone()
    file._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    try:
        yield
    finally:
        file._db.execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_loses_nothing(path: Path) -> None:
    """A failed commit leaves nothing on the disk, and succeeds once there is room."""
    writer = Writer(path)
    writer.write(*lifetime(1, end=False))
    before = fold(lifetime(1, end=False))
    rows = writer.rows(big(job) for job in range(2, 60))
    with full(writer.file):
        for _ in range(2):
            with pytest.raises(JournalError, match="cannot be written: database or disk is full"):
                writer.file.commit(rows, (), NOW)
        copy = killed(path, path.parent / "copy")
        with opened(copy) as file:
            assert before == file.state
            assert (4, 1) == (file.seq, file.job)
        assert writer.file.lookup(STORED.identity, 0) is None
    writer.file.commit(rows, (), NOW)
    writer.close()

    with opened(path) as file:
        assert writer.state == file.state


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start another process that runs `code` with the names of this module."""
    begins = "import sys; from pathlib import Path; from tests.journal.test_sqlite import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", begins + textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=100)
    assert 0 == process.returncode, err
    return out.strip()


def test_a_limit_of_the_system_loses_nothing(path: Path) -> None:
    """If the system refuses to let the files grow, the error says so, and the rest is kept."""
    out = output_of(
        python(
            """
            import resource
            writer = Writer(Path(sys.argv[1]))
            writer.write(*lifetime(1, end=False))
            resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, resource.RLIM_INFINITY))
            messages = []
            for job in range(2, 60):
                try:
                    writer.write(big(job))
                except JournalError as exc:
                    messages.append(str(exc))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            print(len(messages), messages[-1])
            writer.file._db.close()
            """,
            path,
        )
    )

    count, _, message = out.partition(" ")
    assert "cannot be written" in message
    assert 10 < int(count) < 58
    with opened(path) as file:
        assert list(range(1, 60 - int(count))) == list(file.state.live)


def test_a_second_process_is_refused(path: Path) -> None:
    """A second process is refused until the first one has closed the file or is gone."""
    other = python(
        """
        writer = Writer(Path(sys.argv[1]))
        writer.write(*lifetime(1, end=False))
        print("open", flush=True)
        sys.stdin.read()
        time.sleep(60)
        """.replace("sys.stdin.read()\n", "import time\n"),
        path,
    )
    with other:
        assert other.stdout is not None
        assert "open\n" == other.stdout.readline()

        message = refused(path)

        other.kill()
    assert "in use by another client or process" in message
    assert "jobs.db" in message
    with opened(path) as file:
        assert [1] == list(file.state.live)


def test_a_second_client_in_this_process_is_refused(path: Path) -> None:
    """A second client is refused by any name of the file, and the first one goes on."""
    writer = Writer(path)
    link = path.with_name("link.db")
    link.symlink_to(path)

    for name in (path, link, path.parent / "." / "jobs.db"):
        assert "in use by another client or process" in refused(name)

    writer.write(*lifetime(1, end=False))
    writer.close()
    with opened(link) as file:
        assert [1] == list(file.state.live)


def test_a_read_only_journal_is_refused() -> None:
    """A journal that cannot be written is refused at the opening, before anything is bought."""
    with tempfile() as folder:
        with opened(folder / "jobs.db"):
            pass
        (folder / "jobs.db").chmod(0o400)
        if os.geteuid() == 0:
            # Root may write to any file, so another user tries.
            os.chown(folder / "jobs.db", 65534, -1)
            folder.chmod(0o777)
            os.seteuid(65534)
            try:
                message = refused(folder / "jobs.db")
            finally:
                os.seteuid(0)
        else:
            message = refused(folder / "jobs.db")

    assert "cannot be written" in message
    assert "read-only" in message


def test_a_file_that_cannot_be_made_private_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of another user that others may read is refused."""
    with opened(path):
        pass
    path.chmod(0o666)

    def chmod(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", chmod)

    assert "can be read by other users" in refused(path)


# Other files.


@pytest.mark.parametrize(
    ("expected", "content"),
    [
        ("is not a journal of perfect_async", b"GIF89a" * 100),
        ("is not a journal of perfect_async", b"x"),
        ("is not a journal of perfect_async", b"\0" * 4096),
        ("is empty", b""),
    ],
    ids=["a picture", "a byte", "zeros", "nothing"],
)
def test_another_file_is_refused_and_kept(expected: str, content: bytes, path: Path) -> None:
    """A file that is no journal is neither overwritten nor opened."""
    path.write_bytes(content)

    assert expected in refused(path)

    assert content == path.read_bytes()
    assert [path] == list(path.parent.iterdir())


def test_another_programs_database_is_refused_and_kept(path: Path) -> None:
    """A database with a table of the same name is not a journal."""
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE words (seq INTEGER); INSERT INTO words VALUES (1)")
    db.close()
    before = path.read_bytes()

    assert "is not a journal of perfect_async" in refused(path)

    assert before == path.read_bytes()


@pytest.mark.parametrize("version", [0, journal_sqlite._FORMAT + 1, 2**31 - 1])
def test_another_format_is_refused_and_kept(version: int, path: Path) -> None:
    """A journal of another format is refused and not changed."""
    with opened(path):
        pass
    changed(path, f"PRAGMA user_version = {version}")
    before = path.read_bytes()

    message = refused(path)

    assert f"has format {version}" in message
    assert "newer" in message
    assert before == path.read_bytes()


def changed(path: Path, *statements: str) -> None:
    """Write into the file as another program would."""
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM facts",
        "UPDATE facts SET name = 7 WHERE name = 'job'",
        "DELETE FROM facts WHERE name = 'wrote'",
        "UPDATE facts SET value = 'x' WHERE name = 'job'",
        "UPDATE facts SET value = -1 WHERE name = 'seq'",
        "UPDATE facts SET value = NULL",
        "UPDATE window SET requests = 'x'",
        "UPDATE window SET requests = -5",
        f"UPDATE facts SET value = {2**63 - 1} WHERE name = 'seq'",
        f"UPDATE facts SET value = {2**63 - 1} WHERE name = 'job'",
        f"UPDATE facts SET value = {2**63 - 1} WHERE name = 'wrote'",
        f"UPDATE window SET second = {2**63 - 1}",
        f"UPDATE words SET job = {2**63 - 1}",
        f"UPDATE words SET at = {2**63 - 1}",
        f"UPDATE words SET at = -{2**62}",
        "UPDATE words SET text = '{}' WHERE kind = 'Created'",
        "UPDATE words SET text = '{\"task_id\":' WHERE kind = 'Created'",
        "UPDATE words SET text = CAST(x'ff' AS TEXT) WHERE kind = 'Created'",
        "UPDATE words SET kind = 'Gone' WHERE kind = 'Created'",
        "UPDATE words SET job = 'x'",
        "UPDATE words SET at = 1.5",
        "DELETE FROM words WHERE kind = 'Creating'",
        "DELETE FROM words WHERE kind = 'Entered'",
        "DROP TABLE words",
        "DROP TABLE facts",
        "DROP TABLE window",
        "DROP TABLE tasks",
    ],
)
def test_a_damaged_record_is_refused(statement: str, path: Path) -> None:
    """A journal with wrong values is refused as a whole and not changed."""
    writer = Writer(path)
    writer.write(*lifetime(1, end=False), window=[(0, 7)])
    writer.close()
    if "NULL" in statement:
        changed(path, "ALTER TABLE facts RENAME TO old", "CREATE TABLE facts (name, value)")
        changed(path, "INSERT INTO facts SELECT * FROM old", "DROP TABLE old")
    changed(path, statement)
    before = path.read_bytes()

    message = refused(path)

    assert "is damaged" in message
    assert "jobs.db" in message
    assert "/photos" not in message
    assert before == path.read_bytes()


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("must name a file", ""),
        ("must name a file", "a\0b"),
        ("must name a file", 7),
        ("must name a file", None),
        ("must name a file", b"jobs.db"),
    ],
    ids=repr,
)
def test_a_path_that_names_no_file_is_refused(expected: str, given: object) -> None:
    """A journal's path must be text or a path."""
    assert expected in refused(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", [":memory:", "file:x?mode=memory", "file::memory:", "a b.db", "ä.db", "a'b.db", "a%41"]
)
def test_any_name_is_the_name_of_a_file(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is special to SQLite is an ordinary file name."""
    monkeypatch.chdir(path.parent)
    writer = Writer(Path(name))
    writer.write(*lifetime(1, end=False))
    writer.close()

    assert [path.with_name(name)] == list(path.parent.iterdir())
    file = SqliteJournal(name, NOW)
    assert [1] == list(file.state.live)
    monkeypatch.chdir("/")
    # The place of the file does not depend on the working directory.
    file.forget(NOW)
    file.close()
    assert [path.with_name(name)] == list(path.parent.iterdir())


def test_an_unusable_place_is_refused(path: Path) -> None:
    """A folder, a missing folder, a loop of links, a dangling link and a pipe are refused."""
    folder, loop, nowhere = (path.with_name(name) for name in ("folder", "loop", "nowhere"))
    folder.mkdir()
    loop.symlink_to(loop)
    nowhere.symlink_to("/nowhere/at/all")
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)

    assert "is not a regular file" in refused(folder)
    assert "is not a regular file" in refused(pipe)
    assert "cannot be opened: No such file or directory" in refused(folder / "sub" / "jobs.db")
    assert "cannot be opened: Not a directory" in refused(pipe / "jobs.db")
    assert "cannot be opened: Too many levels" in refused(loop)
    assert "cannot be opened: No such file" in refused(nowhere)
    assert "cannot be opened: File name too long" in refused(path.with_name("x" * 300))
    assert [] == list(folder.iterdir())


@pytest.mark.usefixtures("no_working_folder")
def test_a_relative_path_needs_a_working_folder(path: Path) -> None:
    """If the working folder was removed, the error says so; an absolute path still works."""
    assert "starts from the working folder, which was removed" in refused("jobs.db")
    SqliteJournal(path, NOW).close()


# Damaged files.


def journal_of(path: Path, commits: int = 13) -> list[JournalState]:
    """Make a journal as a kill leaves it, with several commits in its log; return the states before
    the first and after each of them.
    """
    source = path.with_name("source.db")
    writer = Writer(source)
    states = [JournalState()]
    for job in range(1, commits + 1):
        writer.write(*lifetime(job, end=job % 3 == 0))
        states.append(fold(entry for n in range(1, job + 1) for entry in kept(n)))
    for part in ("", "-wal"):
        shutil.copy(f"{source}{part}", f"{path}{part}")
    writer.close()
    source.unlink()
    return states


def kept(job: int) -> list[JournalEntry]:
    return [] if job % 3 == 0 else lifetime(job, end=False)


@pytest.mark.parametrize("ended", [0, 3, 39], ids=repr)
def test_a_main_file_that_was_cut_off_is_damaged(ended: int, path: Path) -> None:
    """A main file of any other length is refused and not changed, unless only a free last page is
    missing.
    """
    writer = Writer(path)
    over = [job for job in range(1, 40) if ended and job % ended == 0]
    for job in range(1, 40):
        writer.write(*lifetime(job, end=job in over))
    writer.close()
    whole = path.read_bytes()
    pages = len(whole) - 4096
    lengths = {0, 1, 15, 16, 50, 99, 100, 101, 511, 512, 1024, *range(4096, pages, 1013)}

    for length in sorted(lengths | {*range(pages, len(whole), 97)}):
        path.write_bytes(whole[:length])
        try:
            file = SqliteJournal(path, NOW)
        except JournalError as exc:
            message = str(exc)
            assert any(each in message for each in ("is damaged", "is not a journal", "is empty"))
            assert whole[:length] == path.read_bytes()
        else:
            assert length > pages
            assert writer.state == file.state
            assert frozenset(f"task-{job}" for job in range(1, 40)) == task_ids(file, 0)
            file.close()
    path.write_bytes(whole)
    with opened(path) as file:
        assert writer.state == file.state


def test_a_damaged_log_gives_a_prefix(path: Path) -> None:
    """A damaged log gives the state after the commits before the damage."""
    states = journal_of(path)
    log = Path(f"{path}-wal")
    main, whole = path.read_bytes(), log.read_bytes()
    chance = random.Random(4)
    cuts = {32, 33, len(whole) - 1, *chance.sample(range(len(whole)), 40)}
    places = [*sorted(cuts), len(whole)]
    seen: list[int] = []

    for place in places:
        for torn in (whole[:place], whole[:place] + b"\xa5" * 100 + whole[place + 100 :]):
            path.write_bytes(main)
            log.write_bytes(torn[: len(whole)])
            with opened(path) as file:
                assert file.state in states
                seen.append(states.index(file.state))

    assert max(seen) == len(states) - 1
    assert len(set(seen)) > 5
    assert seen[::2] == sorted(seen[::2])


@pytest.mark.parametrize("left", [None, b"", b"x", 31, "garbled"], ids=repr)
def test_a_journal_without_its_log_is_refused(path: Path, left: object) -> None:
    """A copy without the log does not count as a closed journal."""
    states = journal_of(path)
    log = Path(f"{path}-wal")
    main, whole = path.read_bytes(), log.read_bytes()
    match left:
        case None:
            log.unlink()
        case bytes():
            log.write_bytes(left)
        case int():
            log.write_bytes(whole[:left])
        case _:
            log.write_bytes(b"\0" * 40 + whole[40:])

    message = refused(path)

    assert "jobs.db-wal" in message
    assert main == path.read_bytes()
    log.write_bytes(whole)
    with opened(path) as file:
        assert states[-1] == file.state


def test_a_journal_is_marked_as_in_use_from_its_opening_on(path: Path) -> None:
    """The mark is set at the opening, also after an earlier opening and after forgetting."""
    for step in range(3):
        writer = Writer(path)
        if step == 1:
            writer.write(*lifetime(1))
        if step == 2:
            writer.file.forget(NOW)
        copy = path.with_name(f"copy{step}.db")
        shutil.copy(path, copy)
        writer.close()
        assert f"copy{step}.db-wal" in refused(copy)
        with opened(path):
            pass


def test_a_journal_of_version_0_1_opens(path: Path) -> None:
    """A file without the later tables and marks is opened, and gets them."""
    with opened(path):
        pass
    changed(
        path, "DROP TABLE results", "DROP TABLE keys", "DELETE FROM facts WHERE name = 'in_use'"
    )
    changed(path, "UPDATE facts SET value = 0 WHERE name = 'clean'")

    with opened(path) as file:
        file.save_result("ab" * 32, "/out", "t", ["a.jpg"])
        assert {"/out": SavedResult("t", (Path("/out/a.jpg"),))} == file.saved_results("ab" * 32)


@pytest.mark.parametrize("commits", [1, 299, 300, 301, 650])
def test_a_long_log_is_copied_with_its_mark(path: Path, commits: int) -> None:
    """After any number of commits, a copy without the log is refused, and one with it is whole."""
    writer = Writer(path)
    for number in range(commits // 2):
        writer.write(*lifetime(number + 1, end=number % 50 > 0)[:1])
    copy = killed(path, path.parent / "copy")
    alone = path.with_name("alone.db")
    shutil.copy(path, alone)
    writer.close()

    assert "alone.db-wal" in refused(alone)
    with opened(copy) as file:
        assert writer.state == file.state
    with opened(path) as file:
        assert writer.state == file.state


def test_a_client_that_was_never_closed_leaves_a_journal(path: Path) -> None:
    """A process that ends without closing the journal leaves a complete one."""
    output_of(
        python(
            """
            writer = Writer(Path(sys.argv[1]))
            writer.write(*lifetime(1, end=False))
            """,
            path,
        )
    )

    with opened(path) as file:
        assert [1] == list(file.state.live)


# A file that changes under an open journal.


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_deleted_or_replaced_file_is_noticed(path: Path, how: str, suffix: str) -> None:
    """Nothing is committed to a file that was deleted or replaced."""
    writer = Writer(path)
    writer.write(*lifetime(1, end=False))
    part = Path(f"{path}{suffix}")
    away = path.with_name("away")
    part.rename(away)
    if how == "replaced":
        shutil.copy(away, part)

    for _ in range(2):
        with pytest.raises(JournalError, match=f"was {how} while it was open"):
            writer.file.commit(writer.rows(lifetime(2 + _, end=False)), (), NOW)
    with pytest.raises(JournalError, match=f"was {how}"):
        writer.file.save_result("ab" * 32, "/out", "t", ["a.jpg"])
    with pytest.raises(JournalError, match=f"was {how}"):
        writer.file.forget(NOW)

    away.replace(part)
    writer.write(*lifetime(9, end=False))
    writer.close()


def test_a_second_hard_link_is_refused(path: Path) -> None:
    """A file with two hard links is refused by both names, since its log has only one."""
    with opened(path):
        pass
    other = path.with_name("other.db")
    os.link(path, other)

    for name in (path, other):
        assert "second hard link" in refused(name)

    other.unlink()
    with opened(path):
        pass


def test_the_link_of_a_killed_creator_is_removed(path: Path) -> None:
    """A process that is killed while it creates a journal leaves a link that is removed later."""
    with opened(path):
        pass
    part = path.with_name("jobs.db.0123abcd.new")
    os.link(path, part)

    with opened(path):
        assert not part.exists()


# Foreign contents.


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW mine AS SELECT 1",
        "CREATE TRIGGER mine AFTER INSERT ON words BEGIN DELETE FROM words; END",
        "CREATE TABLE mine (x)",
        "CREATE VIRTUAL TABLE mine USING fts5(x)",
        "CREATE INDEX mine ON words (at)",
    ],
)
def test_a_foreign_schema_is_refused(path: Path, statement: str) -> None:
    """A view, trigger or table of another program is never used."""
    with opened(path):
        pass
    changed(path, statement)
    before = path.read_bytes()

    assert "does not belong to a journal" in refused(path)
    assert before == path.read_bytes()


def test_a_view_that_never_ends_does_not_hang_the_opening(path: Path) -> None:
    """A recursive view in place of a table is refused before it is read."""
    with opened(path):
        pass
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)"
    columns = "'seq' || n AS name, n AS value"
    changed(path, "DROP TABLE facts", f"CREATE VIEW facts AS {endless} SELECT {columns} FROM c")

    assert "is damaged" in refused(path)


def test_a_log_without_its_file_is_refused(path: Path) -> None:
    """A log without its main file is an error, since SQLite would apply it to a new file."""
    states = journal_of(path)
    main = path.read_bytes()
    path.unlink()

    message = refused(path)

    assert "jobs.db-wal" in message
    assert [Path(f"{path}-wal")] == list(path.parent.iterdir())
    path.write_bytes(main)
    with opened(path) as file:
        assert states[-1] == file.state


@pytest.mark.parametrize("garbage", [b"\x80", b"X", b"\0"])
@pytest.mark.parametrize("what", [b"CREATE TABLE words", b"tasks", b"facts"])
def test_a_damaged_schema_is_refused(what: bytes, garbage: bytes, path: Path) -> None:
    """A schema that is not even text is an error."""
    assert what in SAMPLE
    path.write_bytes(SAMPLE.replace(what, garbage + what[1:]))

    message = refused(path)

    assert "is damaged" in message
    assert "jobs.db" in message


@given(st.integers(0, 2**30), st.binary(min_size=1, max_size=64))
@settings(max_examples=examples(150))
def test_any_damage_is_refused_or_harmless(place: int, garbage: bytes) -> None:
    """Overwritten bytes raise no other error than `JournalError`."""
    with tempfile() as folder:
        path = folder / "jobs.db"
        path.write_bytes(SAMPLE)
        with path.open("r+b") as file:
            file.seek(place % (len(SAMPLE) - len(garbage)))
            file.write(garbage)
        try:
            with opened(path) as found:
                found.lookup(STORED.identity, 0)
        except JournalError as exc:
            assert "jobs.db" in str(exc)  # noqa: PT017 -- it may also not raise


def sample() -> bytes:
    with tempfile() as folder:
        writer = Writer(folder / "jobs.db")
        appended = [entry for job in range(1, 12) for entry in lifetime(job, end=job % 3 == 0)]
        writer.write(*appended, window=[(0, 7)])
        writer.close()
        return (folder / "jobs.db").read_bytes()


SAMPLE = sample()


# Creating a journal.


def test_a_journal_is_created_without_hard_links(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT and some shares have no hard links, and a journal is created there, too."""

    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)

    writer = Writer(path)
    writer.write(*lifetime(1, end=False))
    writer.close()

    assert [path] == list(path.parent.iterdir())
    with opened(path) as file:
        assert [1] == list(file.state.live)


@pytest.mark.parametrize("links", [True, False])
def test_two_creators_do_not_overwrite_each_other(
    links: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process finds the first one's file."""
    first: list[Writer] = []
    link = os.link

    def slow(source: str, target: str) -> None:
        if not first:
            monkeypatch.setattr(os, "link", link)
            first.append(Writer(path))
            first[0].write(*lifetime(1, end=False))
        if not links:
            raise PermissionError(1, "Operation not permitted")
        link(source, target)

    monkeypatch.setattr(os, "link", slow)

    assert "in use" in refused(path)

    first[0].close()
    assert [path] == list(path.parent.iterdir())
    with opened(path) as file:
        assert [1] == list(file.state.live)


def test_a_failed_creation_of_a_journal_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a journal nor a part of one is left."""
    monkeypatch.setattr(journal_sqlite, "_SCHEMA", "CREATE NONSENSE;")

    assert "jobs.db" in refused(path)

    assert [] == list(path.parent.iterdir())


def test_a_failed_closing_unlocks_the_file(path: Path) -> None:
    """A journal whose closing failed can be opened again."""
    writer = Writer(path)
    writer.write(*lifetime(1, end=False))
    writer.file._db.execute("PRAGMA query_only = ON")

    with pytest.raises(JournalError, match="cannot be written"):
        writer.close()

    with opened(path) as file:
        assert writer.state == file.state


# Killed processes.


WRITER = """
    writer = Writer(Path(sys.argv[1]))
    job = writer.number
    while True:
        job += 1
        for entry in lifetime(job, end=job % 3 == 0):
            writer.write(entry)
            print(writer.seq, flush=True)
    """


@pytest.mark.parametrize("times", [2, pytest.param(12, marks=pytest.mark.long)])
def test_a_killed_process_loses_no_finished_commit(times: int, path: Path) -> None:
    """Every commit that returned is on the disk; at most the running one is there, too."""
    chance = random.Random(1)
    expected = 0
    for kills in range(1, times + 1):
        with python(WRITER, path) as process:
            assert process.stdout is not None
            for _ in range(chance.randint(1, 60)):
                expected = int(process.stdout.readline())
            process.kill()
            # The process may have written more after the last line that was read.
            expected = max([expected, *map(int, process.stdout.read().split())])
        with opened(path) as file:
            assert file.seq in {expected, expected + 1}
            # Each kill may have come before its job had a task.
            assert len(task_ids(file, 0)) <= file.job <= len(task_ids(file, 0)) + kills
            for snapshot in file.state.live.values():
                assert snapshot.phase is not Phase.ENDED
        expected = file.seq


class Disks(RuleBasedStateMachine):
    """Any legal history, written in any portions by processes that close or are killed."""

    def __init__(self) -> None:
        super().__init__()
        self.scope = tempfile()
        self.folder = self.scope.__enter__()
        self.copies = 0
        self.at = NOW
        self.waiting: list[Row] = []

    @initialize()
    def begins(self) -> None:
        self.path = self.folder / "jobs.db"
        self.writer = Writer(self.path)
        self.written = JournalState()

    @rule(job=st.integers(0, 2), place=st.integers(0, 99))
    def appends(self, job: int, place: int) -> None:
        """Append one of the legal entries, for a live job or a new one."""
        live = list(self.writer.state.live)
        number = (
            live[job] if job < len(live) else max(self.writer.state.last, self.writer.number) + 1
        )
        self.at += SECOND
        given = stored(delete=place % 2 == 1, sure=place % 3 > 0)
        may = [entry for entry in entries(number, self.at, given) if self._legal(entry)]
        self.waiting += self.writer.rows([may[place % len(may)]])

    def _legal(self, entry: JournalEntry) -> bool:
        try:
            self.writer.state.after(entry)
        except IllegalEntry:
            return False
        return True

    @rule()
    def commits(self) -> None:
        self.writer.file.commit(self.waiting, (), self.at)
        self.waiting = []

    @rule()
    def commits_twice(self) -> None:
        for _ in range(2):
            self.writer.file.commit(self.waiting, (), self.at)
        self.waiting = []

    @rule()
    def fails(self) -> None:
        """Let a whole transaction fail at its end, to be tried again."""
        self.writer.file._db.execute("PRAGMA query_only = ON")
        with pytest.raises(JournalError):
            self.writer.file.commit(self.waiting, (), self.at)
        self.writer.file._db.execute("PRAGMA query_only = OFF")

    @rule()
    def reopens(self) -> None:
        self.commits()
        self._again(close=True)

    @rule()
    def is_killed(self) -> None:
        self.waiting = []
        self._again(close=False)

    def _again(self, *, close: bool) -> None:
        self.copies += 1
        if close:
            self.writer.close()
            self.writer = Writer(self.path)
            return
        there = killed(self.path, self.folder / str(self.copies))
        self.writer.file._db.close()
        self.path = there
        self.writer = Writer(there)

    @invariant()
    def the_disk_folds_to_the_live_memory(self) -> None:
        if not hasattr(self, "writer") or self.waiting:
            return
        with tempfile() as elsewhere:
            copy = killed(self.path, elsewhere / "copy")
            with opened(copy, self.at) as file:
                assert self.writer.state == file.state
                assert list(self.writer.state.live) == list(file.state.live)
                assert self.writer.seq == file.seq
                assert max(self.writer.state.last, self.writer.number) == file.job

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.file._db.close()
        self.scope.__exit__(None, None, None)


TestDisks = Disks.TestCase
TestDisks.settings = settings(max_examples=examples(8), stateful_step_count=20)
