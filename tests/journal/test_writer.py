"""The journal's writer: awaited entries, other entries, and a disk that fails or hangs."""

import asyncio
import logging
import random
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfect_async import Client
from perfect_async._journal import writer
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
    Saved,
    Uploaded,
)
from perfect_async._journal.sqlite import Row, SqliteJournal
from perfect_async._journal.writer import JournalWriter
from perfect_async.errors import JournalError
from tests.journal.test_model import STORED, stored
from tests.journal.test_sqlite import NOW, SECOND, tempfile
from tests.support import virtual_time
from tests.support.journals import fold
from tests.support.sandboxed import client, vendor
from tests.support.searching import examples
from tests.support.virtual_time import hanging


def clock() -> float:
    return asyncio.get_running_loop().time()


def now() -> int:
    return NOW + round((clock() - virtual_time.START) * SECOND)


class Disk:
    """Stands in for a `SqliteJournal`: a disk that fails or hangs on demand."""

    def __init__(self) -> None:
        self.state = JournalState()
        self.past = ((SECOND, 3),)
        self.known_tasks = array("q", [hash("former")])
        self.last_doubt = 5
        self.seq = self.job = 7
        self.entries: list[JournalEntry] = []
        self.windows: list[list[tuple[int, int]]] = []
        self.commits: list[int] = []
        self.finished: dict[str, tuple[str, int]] = {}
        self.tasks: dict[str, int] = {}
        self.failing: str | None = None
        self.free = threading.Event()
        self.free.set()
        self.closed = False
        self.lock = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # The clock may move only while another thread hangs: it would otherwise jump ahead of a
        # thread that is not waiting but has not run on yet.
        if not self.lock.acquire(blocking=False):
            with hanging():
                self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()

    async def resume(self) -> None:
        """Stop hanging, and wait until the pending work is done."""
        self.free.set()

        def through() -> None:
            with self.lock:
                pass

        await anyio.to_thread.run_sync(through)
        await idle()

    def _wait(self) -> None:
        if not self.free.is_set():
            with hanging():
                self.free.wait()
        if self.failing is not None:
            raise JournalError(self.failing)

    def commit(self, rows: Iterable[Row], window: Iterable[tuple[int, int]], _: int) -> None:
        with self._alone():
            self._wait()
            fresh = [row for row in rows if row.seq > self.seq]
            for row in fresh:
                self.seq = row.seq
                self.entries.append(row.entry)
                if isinstance(row.entry, Created):
                    self.tasks[row.entry.task_id] = row.snapshot.since
                if row.finished:
                    stored = row.snapshot.stored
                    self.finished[stored.identity] = str(row.snapshot.task_id), row.snapshot.since
            self.commits.append(len(fresh))
            self.windows.append(list(window))

    def lookup(self, identity: str, since: int) -> str | None:
        with self._alone():
            self._wait()
            task_id, created = self.finished.get(identity, (None, 0))
            return task_id if created >= since else None

    def drop(self, task_id: str) -> None:
        with self._alone():
            self._wait()
            self.finished = {k: v for k, v in self.finished.items() if v[0] != task_id}

    def close(self) -> None:
        with self._alone():
            self._wait()
            self.closed = True

    def disk(self) -> JournalState:
        """Return the state that the entries on it add up to."""
        return fold(self.entries)


@asynccontextmanager
async def running_writer(disk: Disk | SqliteJournal) -> AsyncIterator[JournalWriter]:
    """Run a writer on `disk`."""
    journal = JournalWriter(disk, now)  # type: ignore[arg-type]
    async with anyio.create_task_group() as group:
        group.start_soon(journal.run)
        try:
            yield journal
        finally:
            group.cancel_scope.cancel()


async def idle() -> None:
    """Wait until nothing happens without time passing."""
    await asyncio.sleep(0.001)


def enter(journal: JournalWriter) -> int:
    number = journal.next_number()
    journal.append(Entered(number, now(), STORED))
    return number


async def create(journal: JournalWriter, number: int) -> None:
    await journal.write(Creating(number, now()))
    journal.append(Created(number, now(), f"task-{number}"))


def finish(journal: JournalWriter, number: int) -> None:
    journal.append(Ended(number, now(), "done"))
    journal.append(Reported(number, now()))


# Awaited entries and other entries.


async def test_a_durable_entry_is_awaited() -> None:
    """`write` returns when its entry and all before it are on the disk; then it is applied."""
    disk = Disk()
    async with running_writer(disk) as journal:
        number = enter(journal)
        writing = asyncio.ensure_future(journal.write(Creating(number, now())))
        await asyncio.sleep(0)
        assert Phase.ENTERED is journal.state.live[number].phase
        await writing

        assert [Entered, Creating] == [type(entry) for entry in disk.entries]
        assert Phase.CREATING is journal.state.live[number].phase
        assert journal.state == disk.disk()


async def test_other_entries_are_written_soon() -> None:
    """`append` applies at once without waiting; one transaction writes all entries."""
    disk = Disk()
    async with running_writer(disk) as journal:
        numbers = [enter(journal) for _ in range(5)]
        assert [8, 9, 10, 11, 12] == numbers == list(journal.state.live)
        assert [] == disk.entries
        await idle()

    assert [5] == disk.commits
    assert journal.state == disk.disk()


async def test_an_illegal_entry_is_not_written() -> None:
    """An illegal entry raises at once and is not written."""
    disk = Disk()
    async with running_writer(disk) as journal:
        number = enter(journal)
        with pytest.raises(IllegalEntry):
            journal.append(Reported(number, now()))
        with pytest.raises(IllegalEntry):
            await journal.write(Saved(number, now()))
        await create(journal, number)
        await idle()

    assert journal.state == disk.disk()
    assert [Entered, Creating, Created] == [type(entry) for entry in disk.entries]


async def test_requests_are_written_within_two_seconds() -> None:
    """The window is written within two seconds, not at every request."""
    disk = Disk()
    async with running_writer(disk) as journal:
        journal.window = lambda: [(0, 4)]
        began = clock()
        for _ in range(20):
            journal.request_sent()
            await asyncio.sleep(0.2)
        await asyncio.sleep(3)

    assert began + 7 == pytest.approx(clock())
    assert 2 <= len(disk.windows) <= 3
    assert all([(0, 4)] == window for window in disk.windows)
    assert [] == disk.entries


async def test_an_entry_does_not_wait_for_requests() -> None:
    """An entry is written at once, while the request window may wait."""
    disk = Disk()
    async with running_writer(disk) as journal:
        journal.request_sent()
        await asyncio.sleep(0.5)
        began = clock()
        number = enter(journal)
        await create(journal, number)
        assert began == clock()


async def test_the_window_of_the_former_process_is_known() -> None:
    """The window and the last number come from the file."""
    journal = JournalWriter(Disk(), now)  # type: ignore[arg-type]

    assert ((SECOND, 3),) == journal.past
    assert 8 == journal.next_number()
    assert [] == list(journal.window())


# Finished jobs.


async def test_a_finished_job_is_known_before_it_is_written() -> None:
    """`lookup` finds the task of a finished job before and after it is written."""
    disk = Disk()
    disk.free.clear()
    async with running_writer(disk) as journal:
        number = enter(journal)
        since = now()
        creating = asyncio.ensure_future(create(journal, number))
        await idle()
        disk.free.set()
        await creating
        await idle()
        disk.free.clear()
        finish(journal, number)
        assert "task-8" == await journal.lookup(STORED.identity, since)
        other = asyncio.ensure_future(journal.lookup("ab", since))
        await idle()
        disk.free.set()
        assert await other is None
        assert journal.knows("task-8")
        await idle()

        assert "task-8" == await journal.lookup(STORED.identity, since)
        assert await journal.lookup(STORED.identity, since + 60 * SECOND) is None
        assert {} == journal._finished


async def test_all_tasks_are_known_from_their_creation_on() -> None:
    """Tasks of the former process, running tasks and finished ones are known."""
    disk = Disk()
    async with running_writer(disk) as journal:
        one, two = enter(journal), enter(journal)
        await create(journal, one)
        assert [True, True, False] == [journal.knows(t) for t in ("former", "task-8", "task-9")]
        await create(journal, two)
        finish(journal, one)
        assert [True, True] == [journal.knows(task) for task in ("task-8", "task-9")]
        assert [True, False] == [journal.in_doubt(since) for since in (5, 6)]


async def test_a_known_task_takes_eight_bytes() -> None:
    """All tasks of a journal are known, and each of them takes little and is held once."""
    disk = Disk()
    disk.known_tasks = array("q", sorted(hash(f"old-{number}") for number in range(500)))
    async with running_writer(disk) as journal:
        number = enter(journal)
        await create(journal, number)
        assert all(journal.knows(f"old-{number}") for number in range(500))
        assert journal.knows("task-8")
        assert not any(journal.knows(f"new-{number}") for number in range(500))
        assert sys.getsizeof(journal._known_tasks) < 10 * 501
        assert journal._known_tasks is disk.known_tasks


async def test_a_dropped_task_is_not_found() -> None:
    """A dropped task is not found, also one that has just ended."""
    disk = Disk()
    async with running_writer(disk) as journal:
        number = enter(journal)
        await create(journal, number)
        finish(journal, number)
        await journal.drop("task-8")

        assert await journal.lookup(STORED.identity, 0) is None
        assert journal.knows("task-8")


async def test_a_deleted_result_is_not_found() -> None:
    """A job whose copies at the vendor are deleted is not found."""
    disk = Disk()
    async with running_writer(disk) as journal:
        number = journal.next_number()
        journal.append(Entered(number, now(), stored(delete=True)))
        await create(journal, number)
        for entry in (Ended(number, now(), "done"), Saved(number, now()), Deleted(number, now())):
            journal.append(entry)
        journal.append(Reported(number, now()))

        assert await journal.lookup(STORED.identity, 0) is None
        assert {} == journal.state.live


# A disk that hangs.


async def test_a_hanging_disk_blocks_only_durable_entries() -> None:
    """While the disk hangs, a creation waits and other entries are applied at once."""
    disk = Disk()
    async with running_writer(disk) as journal:
        number, other = enter(journal), enter(journal)
        await create(journal, number)
        disk.free.clear()
        began = clock()
        waits = asyncio.ensure_future(journal.write(Creating(other, now())))
        for _ in range(60):
            await asyncio.sleep(1)
            journal.request_sent()
            assert not waits.done()
        # The other job ends meanwhile, without delay.
        journal.append(Ended(number, now(), "done"))
        assert began + 60 == clock()
        await disk.resume()
        await waits
        await idle()

    assert journal.state == disk.disk()
    assert [Ended, Creating] == sorted(
        {type(entry) for entry in disk.entries[-2:]}, key=lambda kind: kind.__name__, reverse=True
    )


async def test_a_cancelled_write_is_still_written() -> None:
    """The entry of a cancelled `write` is written and applied, since the thread may have it."""
    disk = Disk()
    async with running_writer(disk) as journal:
        number = enter(journal)
        await idle()
        disk.free.clear()
        with anyio.move_on_after(5):
            await journal.write(Creating(number, now()))
        assert Phase.ENTERED is journal.state.live[number].phase
        await disk.resume()

        assert Phase.CREATING is journal.state.live[number].phase
        assert journal.state == disk.disk()


@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize("fails", [True, False])
async def test_a_job_may_end_while_its_creation_is_written(reported: bool, fails: bool) -> None:
    """Entries after an abandoned write follow it, on the disk and in the state."""
    disk = Disk()
    async with running_writer(disk) as journal:
        number = enter(journal)
        await idle()
        disk.free.clear()
        if fails:
            disk.failing = "The disk is full."
        with anyio.move_on_after(5):
            await journal.write(Creating(number, now()))
        journal.append(Ended(number, now(), "unsent"))
        if reported:
            journal.append(Reported(number, now()))
        await disk.resume()
        disk.failing = None
        await asyncio.sleep(10)

        assert journal.state == disk.disk()
        assert reported == (number not in journal.state.live)
        other = enter(journal)
        await create(journal, other)


async def test_closing_waits_at_most_five_seconds() -> None:
    """Closing gives up on a hanging disk after five seconds; then waiting callers fail."""
    disk = Disk()
    async with running_writer(disk) as journal:
        number = enter(journal)
        await idle()
        disk.free.clear()
        waits = asyncio.ensure_future(journal.write(Creating(number, now())))
        await asyncio.sleep(1)
    began = clock()

    await journal.aclose()

    assert began + 5 == clock()
    with pytest.raises(JournalError, match="closed before"):
        await waits
    await disk.resume()


async def test_closing_waits_although_it_is_cancelled() -> None:
    """Pending entries are written also if closing is cancelled."""
    disk = Disk()
    journal = JournalWriter(disk, now)  # type: ignore[arg-type]
    async with anyio.create_task_group() as group:
        enter(journal)
        group.cancel_scope.cancel()
        await journal.aclose()

    assert disk.closed
    assert journal.state == disk.disk()


async def test_entries_of_a_cancelled_writer_are_written_once() -> None:
    """Closing repeats the transaction of a cancelled writer, without duplicates."""
    disk = Disk()
    disk.free.clear()
    async with running_writer(disk) as journal:
        enter(journal)
        await asyncio.sleep(1)
    enter(journal)
    disk.free.set()
    await journal.aclose()

    assert [8, 9] == [entry.job for entry in disk.entries]
    assert 2 == sum(disk.commits)
    assert disk.closed


# A disk that fails.


async def test_a_failing_disk_refuses_durable_entries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`write` raises and drops its entry; applied entries are kept and written later."""
    disk = Disk()
    caplog.set_level(logging.ERROR)
    async with running_writer(disk) as journal:
        number, other = enter(journal), enter(journal)
        await create(journal, number)
        disk.failing = "The disk is full."
        for _ in range(3):
            with pytest.raises(JournalError, match="The disk is full"):
                await journal.write(Creating(other, now()))
            assert Phase.ENTERED is journal.state.live[other].phase
        journal.append(Ended(number, now(), "done"))
        assert 1 == len(caplog.records)
        disk.failing = None
        await asyncio.sleep(5.1)
        assert journal.state == disk.disk()

        await create(journal, other)
        await idle()
        assert journal.state == disk.disk()
        disk.failing = "The disk is full again."
        with pytest.raises(JournalError, match="full again"):
            await journal.write(Creating(enter(journal), now()))
    assert 2 == len(caplog.records)


async def test_every_caller_gets_its_own_error() -> None:
    """Two waiting callers get the same message, but not the same exception."""
    disk = Disk()
    disk.failing = "The disk is full."
    async with running_writer(disk) as journal:
        numbers = [enter(journal), enter(journal)]
        waits = [asyncio.ensure_future(journal.write(Creating(n, now()))) for n in numbers]
        errors = await asyncio.gather(*waits, return_exceptions=True)

    assert [JournalError, JournalError] == [type(error) for error in errors]
    assert errors[0] is not errors[1]


async def test_a_failing_disk_is_tried_every_five_seconds() -> None:
    """Pending entries are tried again every five seconds."""
    disk = Disk()
    tries: list[float] = []
    commit = disk.commit

    def counted(*args: object) -> None:
        tries.append(clock_of.time())
        commit(*args)  # type: ignore[arg-type]

    disk.commit = counted  # type: ignore[method-assign,assignment]
    clock_of = asyncio.get_running_loop()
    disk.failing = "The disk is full."
    async with running_writer(disk) as journal:
        enter(journal)
        for _ in range(120):
            await asyncio.sleep(0.5)
            journal.request_sent()

    assert 10 <= len(tries) <= 16


async def test_a_failure_refuses_only_its_own_entries() -> None:
    """Transactions never overlap: the failure of one does not fail the entries of another."""
    disk = Disk()
    async with running_writer(disk) as journal:
        one, two = enter(journal), enter(journal)
        await idle()
        disk.free.clear()
        disk.failing = "The disk is full."
        first = asyncio.ensure_future(journal.write(Creating(one, now())))
        await idle()
        second = asyncio.ensure_future(journal.write(Creating(two, now())))
        dropping = asyncio.ensure_future(journal.drop("task-1"))
        await idle()
        await disk.resume()
        disk.failing = None
        await asyncio.gather(first, second, dropping, return_exceptions=True)
        await asyncio.sleep(10)

        assert journal.state == disk.disk()


async def test_closing_on_a_full_disk_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Closing on a full disk raises nothing, and logs how many entries were lost."""
    disk = Disk()
    caplog.set_level(logging.ERROR)
    async with running_writer(disk) as journal:
        number = enter(journal)
        await idle()
    disk.failing = "The disk is full."
    journal.append(Ended(number, now(), "unsent"))
    journal.append(Reported(number, now()))

    await journal.aclose()

    assert "2 entries were not written" in caplog.text


# On a file.


async def test_a_journal_is_opened_once(tmp_path: Path) -> None:
    """A second writer on the same file is refused, and the first goes on."""
    journal = await JournalWriter.open(tmp_path / "jobs.db", now=now)
    number = enter(journal)

    for path in (tmp_path / "jobs.db", str(tmp_path / "jobs.db")):
        with pytest.raises(JournalError, match="in use by another client"):
            await JournalWriter.open(path, now=now)
    with pytest.raises(JournalError, match="in use by another client"):
        await JournalWriter.forget(tmp_path / "jobs.db")

    await journal.aclose()
    again = await JournalWriter.open(tmp_path / "jobs.db", now=now)
    assert [number] == list(again.state.live)
    assert number + 1 == again.next_number()
    await again.aclose()


async def test_other_journals_that_cannot_be_opened_are_not_in_use(tmp_path: Path) -> None:
    """A program that waits for another process's journal does not wait for this one."""
    path = tmp_path / "jobs.db"
    path.write_text("notes")

    with pytest.raises(JournalError) as caught:
        await JournalWriter.open(path, now=now)

    assert not caught.value.in_use


async def test_two_clients_in_one_process_do_not_share_a_journal(tmp_path: Path) -> None:
    """A second client with the same journal is refused, also with the same key."""
    sandbox = vendor()
    async with client(sandbox, journal=tmp_path / "jobs.db") as first:
        with pytest.raises(JournalError, match="in use by another client") as caught:
            async with client(sandbox, journal=str(tmp_path / "jobs.db")):
                pytest.fail("opened")
        assert caught.value.in_use
        await first.units()
    async with client(sandbox, journal=tmp_path / "jobs.db") as second:
        assert isinstance(second, Client)
        await second.units()


async def test_forgetting_returns_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgetting returns the number of finished jobs, and creates no journal."""
    path = tmp_path / "jobs.db"
    monkeypatch.setattr(writer, "time", SimpleNamespace(time_ns=lambda: NOW * 1000))
    journal = await JournalWriter.open(path, now=now)
    async with anyio.create_task_group() as group:
        group.start_soon(journal.run)
        for _ in range(3):
            number = enter(journal)
            await create(journal, number)
            finish(journal, number)
        group.cancel_scope.cancel()
    await journal.aclose()

    assert 3 == await JournalWriter.forget(path)
    assert 0 == await JournalWriter.forget(str(path))
    with pytest.raises(JournalError, match="There is no journal"):
        await JournalWriter.forget(tmp_path / "none.db")
    assert not await anyio.Path(tmp_path / "none.db").exists()


@pytest.mark.parametrize("path", [7, None, b"jobs.db", "", "a\0b"], ids=repr)
async def test_forgetting_refuses_a_wrong_path(path: object) -> None:
    """A value that names no file raises `JournalError`."""
    with pytest.raises(JournalError):
        await JournalWriter.forget(path)  # type: ignore[arg-type]


async def test_forgetting_keeps_the_window(tmp_path: Path) -> None:
    """Forgetting finished jobs keeps the window of requests."""
    path = tmp_path / "jobs.db"
    moment = time.time_ns() // 1000

    def sent() -> None:
        file = SqliteJournal(path, moment)
        file.commit((), [(10 * SECOND, 9)], moment)
        file.close()

    def found() -> tuple[tuple[int, int], ...]:
        file = SqliteJournal(path, moment + SECOND)
        file.close()
        return file.past

    await anyio.to_thread.run_sync(sent)
    await JournalWriter.forget(path)
    past = await anyio.to_thread.run_sync(found)

    assert 9 == sum(count for _, count in past)
    assert all(9 * SECOND <= age <= 12 * SECOND for age, _ in past)


# Random jobs.


async def random_jobs(seed: int, disk: Disk, steps: int) -> JournalWriter:
    """Run random jobs, some of them cancelled, on a disk that at times hangs or fails."""
    chance = random.Random(seed)
    async with running_writer(disk) as journal:

        async def job() -> None:
            await asyncio.sleep(chance.random() * 10)
            number = enter(journal)
            try:
                if chance.random() < 0.5:
                    journal.append(Uploaded(number, now(), "file"))
                with anyio.fail_after(chance.choice([0.5, 5, 100])):
                    await journal.write(Creating(number, now()))
                await asyncio.sleep(chance.random() * 5)
                journal.append(Created(number, now(), f"task-{number}"))
                await asyncio.sleep(chance.random() * 5)
                end = chance.choice(["done", "failed", "lost"])
                journal.append(Ended(number, now(), end))  # type: ignore[arg-type]
            except (JournalError, TimeoutError):
                journal.append(Ended(number, now(), "unsent"))
            if chance.random() < 0.7:
                journal.append(Reported(number, now()))

        async def random_faults() -> None:
            for _ in range(6):
                await asyncio.sleep(chance.random() * 4)
                match chance.randrange(4):
                    case 0:
                        disk.free.clear()
                    case 1:
                        disk.failing = "The disk is full."
                    case _:
                        disk.failing = None
                        await disk.resume()
                if chance.random() < 0.3:
                    journal.request_sent()

        async with anyio.create_task_group() as group:
            group.start_soon(random_faults)
            for _ in range(steps):
                group.start_soon(job)
            await asyncio.sleep(40)
            disk.failing = None
            await disk.resume()
        await asyncio.sleep(10)
        await disk.resume()
    return journal


@given(st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=examples(40))
def test_the_disk_folds_to_the_live_state(seed: int, steps: int) -> None:
    """After any failures, hangs and cancellations the disk folds to the live state."""
    disk = Disk()

    journal = virtual_time.run(random_jobs, seed, disk, steps)

    assert journal.state == disk.disk()
    assert [] == journal._pending
    assert {} == journal._finished


async def test_a_reopened_file_folds_to_the_live_state() -> None:
    """A file that is opened again folds to the state that was written."""
    with tempfile() as folder:
        journal = await JournalWriter.open(folder / "jobs.db", now=now)
        async with anyio.create_task_group() as group:
            group.start_soon(journal.run)
            for place in range(12):
                number = enter(journal)
                if place % 2:
                    await create(journal, number)
                if place % 3 == 0 and place % 2:
                    finish(journal, number)
            group.cancel_scope.cancel()
        await journal.aclose()
        again = await JournalWriter.open(folder / "jobs.db", now=now)
        await again.aclose()

    assert journal.state == again.state
