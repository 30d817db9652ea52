"""The ledger of one machine: the rows that its members read, and damage to its files."""

import contextlib
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import pytest

from perfect_async._ledger import folder as ledger_folder
from perfect_async._ledger import local
from perfect_async._ledger.folder import (
    STATE_VARIABLE,
    KeyFolder,
    boot_id,
    default_folder,
    forget,
    network_file_system,
)
from perfect_async._ledger.local import LocalLedger, look, open_local
from perfect_async._ledger.rows import (
    AWAY,
    MOST_DURATIONS,
    LedgerStore,
    LedgerUnavailable,
    MemberStatus,
    Snapshot,
)
from perfect_async._time import SECOND
from perfect_async.events import (
    DoneRow,
    DurationRow,
    IntentRow,
    LedgerRow,
    MemberRow,
    PlanRow,
    RequestRow,
    SharedLimits,
    TaskKind,
    TaskRow,
)
from tests.support.ledgers import Member, members

LIMITS = SharedLimits(250, 300 * SECOND, 5, 10 * SECOND)
SMILE = TaskKind("ai-smile")
REAL_BOOT = sys.platform == "linux"


class Clock:
    """Shared time that a test sets, in microseconds."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND

    def __call__(self) -> int:
        return self.now * 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def join(tmp_path: Path, clock: Clock) -> AsyncIterator[Callable[..., LocalLedger]]:
    """Return a function that opens the ledger of a test; all are closed after it."""
    opened: list[LocalLedger] = []

    def opening(boot: str = "boot") -> LocalLedger:
        opened.append(open_local(tmp_path, "host", "key", clock=clock, boot=boot))
        return opened[-1]

    yield opening
    for ledger in opened:
        await ledger.aclose()


Join = Callable[..., LocalLedger]


async def take(ledger: LocalLedger) -> Snapshot:
    """Take the lock, which is free."""
    snapshot = await ledger.take(0)
    assert snapshot is not None
    return snapshot


async def step(ledger: LocalLedger, *rows: LedgerRow) -> Snapshot:
    """Do a step that writes `rows`, and return what it read."""
    snapshot = await take(ledger)
    assert await ledger.publish(rows)
    return snapshot


def standing(ledger: LocalLedger, clock: Clock, **changes: int) -> MemberRow:
    row = MemberRow(ledger.member, 7, LIMITS, clock.now)
    return attrs.evolve(row, **changes)  # type: ignore[arg-type] # numbers only


def dies(ledger: LocalLedger) -> None:
    """End a member as the system does when its process ends."""
    ledger._close("it is dead")


def ledger_file(tmp_path: Path, boot: str = "boot") -> Path:
    return KeyFolder(tmp_path, "host", "key", boot).ledger


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Keep this process from opening any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def entries(tmp_path: Path, query: str = "SELECT key FROM rows ORDER BY key") -> list[object]:
    """Read a ledger without a member."""
    with contextlib.closing(sqlite3.connect(ledger_file(tmp_path))) as db:
        return [each for (each,) in db.execute(query)]


def change(tmp_path: Path, statement: str) -> None:
    """Change a ledger without a member."""
    with contextlib.closing(sqlite3.connect(ledger_file(tmp_path))) as db, db:
        db.execute(statement)


# Steps.


def test_it_is_a_store(tmp_path: Path) -> None:
    """A local ledger is a `LedgerStore`."""
    store: LedgerStore = open_local(tmp_path, "host", "key", boot="boot")

    assert 16 == len(store.member)
    assert store.member in repr(store)
    anyio.run(store.aclose)


async def test_a_member_reads_the_new_rows_of_others(join: Join, clock: Clock) -> None:
    """The first read has all rows of others, later ones the new rows, and none its own."""
    one, two = join(), join()

    first = await step(one, standing(one, clock), RequestRow(one.member, 1, 5))
    second = await step(two, standing(two, clock))
    third = await step(one, RequestRow(one.member, 2, 6))
    fourth = await step(two)
    fifth = await step(two)

    assert Snapshot((), (), afresh=True, now=clock.now) == first
    assert (standing(one, clock), RequestRow(one.member, 1, 5)) == second.rows
    assert ((standing(two, clock),), False) == (third.rows, third.afresh)
    assert ((RequestRow(one.member, 2, 6),), False) == (fourth.rows, fourth.afresh)
    assert () == fifth.rows


async def test_a_row_replaces_the_one_with_its_key(join: Join) -> None:
    """Of two rows with one key only the later one is read, whoever wrote it."""
    one, two, three = join(), join(), join()

    await step(one, RequestRow("m", 1, 5), PlanRow(1, 176, 3))
    await step(two, RequestRow("m", 1, 5, answered=1000 * SECOND, outcome="accepted"))

    assert [PlanRow(1, 176, 3), RequestRow("m", 1, 5, False, 1000 * SECOND, "accepted")] == list(
        (await step(three)).rows
    )
    assert (RequestRow("m", 1, 5, False, 1000 * SECOND, "accepted"),) == (await step(one)).rows


async def test_a_released_step_is_read_again(join: Join) -> None:
    """A member that releases the lock without writing reads the same rows again."""
    one, two = join(), join()
    await step(one, PlanRow(1, 176, 3))
    await step(two)
    await step(one, PlanRow(2, 176, 3))

    first = await take(two)
    await two.release()
    await two.release()
    second = await take(two)

    assert ((PlanRow(2, 176, 3),), False) == (first.rows, first.afresh)
    assert first == second
    assert await two.publish([])
    assert () == (await step(two)).rows


async def test_a_released_first_read_is_still_the_first(join: Join) -> None:
    """A member that wrote nothing yet reads everything, also after it released the lock."""
    one = join()

    assert (await take(one)).afresh
    await one.release()

    assert (await step(one)).afresh
    assert not (await step(one)).afresh


async def test_only_one_member_is_within_a_step(join: Join) -> None:
    """Another member waits for the lock, but no longer than it asked for."""
    one, two = join(), join()
    await take(one)
    began = anyio.current_time()

    assert await two.take(0) is None
    assert began == anyio.current_time()
    assert await two.take(0.05) is None
    assert 0.05 == pytest.approx(anyio.current_time() - began)


async def test_a_waiting_member_gets_the_lock_when_it_is_free(join: Join) -> None:
    """It goes on as soon as the other one has published."""
    one, two = join(), join()
    await take(one)
    found: list[Snapshot | None] = []

    async def wait() -> None:
        found.append(await two.take(5.0))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(1.0)
        assert await one.publish([PlanRow(1, 176, 3)])

    assert [(PlanRow(1, 176, 3),)] == [each.rows for each in found if each is not None]


async def test_a_cancelled_wait_leaves_nothing_locked(join: Join) -> None:
    """A member whose wait was cancelled holds no lock, and can be used again."""
    one, two = join(), join()
    await take(one)

    with anyio.move_on_after(0.1):
        await two.take(5.0)
    await one.release()

    await step(one)
    await step(two)


async def test_a_step_is_taken_once(join: Join) -> None:
    """Taking twice, and publishing without a step, are errors of the caller."""
    ledger = join()

    with pytest.raises(RuntimeError):
        await ledger.publish([])
    await take(ledger)
    with pytest.raises(RuntimeError):
        await ledger.take(0)


async def test_a_row_that_cannot_be_read_is_left_out(join: Join, tmp_path: Path) -> None:
    """A damaged row does not affect the others."""
    one, two = join(), join()
    await step(one, PlanRow(1, 176, 3), RequestRow("m", 1, 5))
    change(tmp_path, "UPDATE rows SET body = '[9]' WHERE key = 'plan'")

    assert (RequestRow("m", 1, 5),) == (await step(two)).rows


# Members.


async def test_a_process_that_is_out_of_files_goes_on_sharing(join: Join, clock: Clock) -> None:
    """It checks whether the others live once it can open files again."""
    one, other = join(), join()
    await step(one, standing(one, clock))
    await step(other, standing(other, clock))
    clock.now += SECOND

    with no_more_files():
        during = await step(one)
    dies(other)
    clock.now += SECOND
    after = await step(one)

    assert ((), (other.member,)) == (during.gone, after.gone)


async def test_a_member_that_leaves_is_gone_at_once(join: Join, clock: Clock) -> None:
    """The others read with their next step, once, that a member left."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    await step(two, standing(two, clock))

    await one.aclose()
    await one.aclose()

    assert [(one.member,), ()] == [(await step(two)).gone, (await step(two)).gone]
    with pytest.raises(LedgerUnavailable, match="has left"):
        await one.take(0)


async def test_a_dead_member_is_gone_within_half_a_second(join: Join, clock: Clock) -> None:
    """A member whose process ended is gone for all others, and leaves no file."""
    one, two, three = join(), join(), join()
    for ledger in (one, two, three):
        await step(ledger, standing(ledger, clock))
    dies(one)

    clock.now += SECOND // 2
    found = [(await step(two)).gone, (await step(three)).gone, (await step(two)).gone]

    assert [(one.member,), (one.member,), ()] == found
    assert {two.member, three.member} == {each.member for each in await two.members()}


async def test_news_is_seen_without_the_lock(join: Join, clock: Clock, tmp_path: Path) -> None:
    """What others write, their end, and the loss of the ledger are news, but own rows are not."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    alone = await one.has_news()
    await take(two)
    locked = await one.has_news()
    await two.publish([standing(two, clock)])
    wrote = await one.has_news()
    await step(one)
    read = await one.has_news()
    dies(two)
    died = await one.has_news()
    clock.now += SECOND // 2
    await step(one)
    buried = await one.has_news()
    forget(tmp_path, "host")

    assert [False, False, True, False, True, False] == [alone, locked, wrote, read, died, buried]
    assert await one.has_news()


async def test_a_death_that_was_found_in_a_released_step_is_read_again(
    join: Join, clock: Clock
) -> None:
    """A member that released the lock reads again who is gone, as the others do."""
    one, two, three = join(), join(), join()
    for ledger in (one, two, three):
        await step(ledger, standing(ledger, clock))
    dies(one)
    clock.now += SECOND

    first = await take(two)
    await two.release()

    assert [(one.member,)] * 3 == [first.gone, (await step(two)).gone, (await step(three)).gone]


async def test_rows_of_a_dead_member_are_kept(join: Join, clock: Clock, tmp_path: Path) -> None:
    """Its tasks can be rescued, and its open requests count until they cannot arrive."""
    one, two = join(), join()
    task = TaskRow(one.member, 1, SMILE, 1, 2, clock.now + 300 * SECOND, 4, 5)
    await step(one, standing(one, clock), task, RequestRow(one.member, 1, clock.now))
    dies(one)

    found = await step(two, standing(two, clock))

    assert (task, RequestRow(one.member, 1, clock.now)) == found.rows
    assert (one.member,) == found.gone
    clock.now += 361 * SECOND
    await step(two, standing(two, clock))
    assert [f"member {two.member}", f"task {one.member} 1"] == entries(tmp_path)


async def test_a_new_member_reads_who_is_gone(join: Join, clock: Clock) -> None:
    """A first read tells living members from dead ones."""
    one = join()
    await step(one, standing(one, clock), RequestRow(one.member, 1, 5))
    await one.aclose()

    found = await step(join())

    assert ((RequestRow(one.member, 1, 5),), (one.member,)) == (found.rows, found.gone)


async def test_a_member_that_was_taken_for_dead_joins_again(join: Join, clock: Clock) -> None:
    """A member whose file was deleted makes a new one, and writes all its rows again."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    await step(two, standing(two, clock))
    one._place.member(one.member).unlink()
    clock.now += SECOND
    assert (one.member,) == (await step(two)).gone

    # The news of a released step come again.
    assert (await take(one)).afresh
    await one.release()
    again = await step(one, standing(one, clock))

    assert ((standing(two, clock, stepped_at=clock.now - SECOND),), True) == (
        again.rows,
        again.afresh,
    )
    clock.now += SECOND
    found = await step(two)
    assert ((standing(one, clock, stepped_at=clock.now - SECOND),), ()) == (found.rows, found.gone)


async def test_a_member_that_was_away_reads_everything(join: Join, clock: Clock) -> None:
    """Rows may have been written and dropped during a long silence."""
    one, two = join(), join()
    await step(one, PlanRow(1, 176, 3))
    await step(two)

    clock.now += AWAY
    assert not (await step(two)).afresh
    clock.now += AWAY + 1

    again = await step(two)
    assert ((PlanRow(1, 176, 3),), True) == (again.rows, again.afresh)


async def test_members_are_shown_to_people(join: Join, clock: Clock, tmp_path: Path) -> None:
    """Each living member has its process, its work and the time since it wrote."""
    one, two = join(), join()
    await step(one, standing(one, clock, work=3, running=2))
    await step(two, standing(two, clock))
    clock.now += SECOND
    dies(two)

    found = await one.members()

    assert (MemberStatus(one.member, 7, 3, 2, SECOND),) == found
    assert found == look(tmp_path, "host", "key", clock=clock, boot="boot")


def test_looking_makes_no_ledger(tmp_path: Path) -> None:
    """Looking at a missing ledger finds no members and makes no file."""
    assert () == look(tmp_path / "state", "host", "key", boot="boot")
    assert [] == list(tmp_path.iterdir())


async def test_looking_at_a_damaged_ledger_says_so(join: Join, tmp_path: Path) -> None:
    """It raises an error and repairs nothing."""
    await join().aclose()
    ledger_file(tmp_path).write_bytes(b"garbage" * 1000)

    with pytest.raises(LedgerUnavailable, match="damaged"):
        look(tmp_path, "host", "key", boot="boot")


# Jobs.


async def test_intents_and_done_jobs_are_found_by_their_job(join: Join, clock: Clock) -> None:
    """All rows of a job are found, with the lock and without."""
    one, two = join(), join()
    intent = IntentRow(one.member, 1, "i", "d", "ai-smile", clock.now)
    done = DoneRow("i", "d", "ai-smile", "t", clock.now)
    await step(one, intent, attrs.evolve(intent, ref=2, digest="other"))
    await step(two, done)

    assert () == (await step(two)).rows
    assert (intent, done) == await one.find_intents("i", "d")
    await take(two)
    assert (intent, done) == await two.find_intents("i", "d")
    assert () == await one.find_intents("i", "x")


async def test_tasks_of_all_members_are_known(join: Join, clock: Clock) -> None:
    """A task is known by its row, its intent and its result."""
    one, two = join(), join()
    await step(
        one,
        TaskRow(one.member, 1, SMILE, 1, 2, clock.now, 4, 5, task_id="a"),
        IntentRow(one.member, 1, "i", "d", "f", clock.now, "accepted", "b"),
        DoneRow("i", "d", "f", "c", clock.now),
    )

    assert [True, True, True, False, False] == [await two.known_task(each) for each in "abcd "]


# How long rows are kept.


async def test_rows_are_dropped_when_nobody_needs_them(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """Requests go a period after their answer, ended tasks after two minutes, jobs after a day."""
    ledger = join()
    task = TaskRow("m", 1, SMILE, 1, 2, clock.now, 4, 5)
    await step(
        *(ledger, standing(ledger, clock), RequestRow("m", 1, 5), RequestRow("m", 2, 5, False, 6)),
        *(task, attrs.evolve(task, ref=2, ended=True), PlanRow(1, 176, 3)),
        *(IntentRow("m", 1, "i", "d", "f", clock.now), DoneRow("i", "d", "f", "t", clock.now)),
    )
    left: list[list[str]] = []

    for seconds in (11, 110, 800, 86_400):
        clock.now += seconds * SECOND
        await step(ledger, standing(ledger, clock))
        keys = entries(tmp_path) + entries(tmp_path, "SELECT key FROM jobs ORDER BY key")
        left.append([str(key) for key in keys if "member" not in str(key)])

    assert ["plan", "request m 1", "task m 1", "task m 2", "done 1 i d", "intent m 1"] == left[0]
    assert ["plan", "request m 1", "task m 1", "done 1 i d", "intent m 1"] == left[1]
    assert ["plan", "request m 1", "done 1 i d", "intent m 1"] == left[2]
    assert ["plan", "request m 1"] == left[3]


async def test_a_longer_period_of_another_member_counts(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """A request is kept for the longest period of all members."""
    one, two = join(), join()
    longer = attrs.evolve(LIMITS, period=3600 * SECOND)
    await step(one, standing(one, clock), MemberRow(one.member, 7, longer, clock.now))
    await step(two, RequestRow(two.member, 1, 5, answered=clock.now))

    clock.now += 3600 * SECOND
    await step(two)

    assert f"request {two.member} 1" in entries(tmp_path)


async def test_the_newest_durations_of_each_kind_are_kept(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """Of many durations the oldest are dropped; those of another kind stay."""
    ledger = join()
    avatar = DurationRow("m", 10_000, TaskKind("ai-avatar", 4), 1, 2)
    await step(ledger, avatar)
    for first in (0, 300):
        rows = [DurationRow("m", n, SMILE, 1, 2) for n in range(first, first + 300)]
        await step(ledger, *rows)
    clock.now += 10 * SECOND
    await step(ledger)

    durations = (await step(join())).rows
    assert [10_000, *range(600 - MOST_DURATIONS, 600)] == [
        row.number for row in durations if isinstance(row, DurationRow)
    ]


# Damage to the files.


async def test_a_ledger_deleted_while_in_use_is_made_again(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """All members use the new ledger with their next step, and write their rows again."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    await step(two, standing(two, clock))
    shutil.rmtree(tmp_path / "host")

    first = await step(one, standing(one, clock))
    second = await step(two, standing(two, clock))
    third = await step(one)

    assert ((), (), True) == (first.rows, first.gone, first.afresh)
    assert ((standing(one, clock),), (), True) == (second.rows, second.gone, second.afresh)
    assert ((standing(two, clock),), (), False) == (third.rows, third.gone, third.afresh)
    assert {one.member, two.member} == {each.member for each in await one.members()}


async def test_a_step_in_a_deleted_ledger_does_not_count(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """A publication to a deleted ledger is refused."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    await take(one)
    shutil.rmtree(tmp_path / "host")
    await step(two, standing(two, clock))

    assert not await one.publish([PlanRow(1, 176, 3)])

    found = await step(one)
    assert ((standing(two, clock),), True) == (found.rows, found.afresh)


async def test_closing_a_deleted_ledger_does_not_affect_the_new_one(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """A connection to a deleted ledger leaves the files of the new one alone when it ends."""
    one, two, three = join(), join(), join()
    for ledger in (one, two):
        await step(ledger, standing(ledger, clock))
    shutil.rmtree(tmp_path / "host")
    await step(three, standing(three, clock))
    files = three._place.files()

    await one.aclose()
    dies(two)

    assert files == three._place.files()
    assert not (await step(three)).afresh


@pytest.mark.parametrize("ending", ["-wal", "-shm"])
async def test_a_ledger_without_its_log_is_made_again(
    join: Join, clock: Clock, tmp_path: Path, ending: str
) -> None:
    """Deleting some of the files has the effect of deleting all of them."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    await step(two, standing(two, clock))
    os.unlink(f"{ledger_file(tmp_path)}{ending}")  # noqa: PTH108 - a file of a test

    for ledger in (one, two):
        await step(ledger, standing(ledger, clock))
    await step(one)

    found = await step(two)
    assert not found.afresh
    assert {one.member, two.member} == {each.member for each in await two.members()}


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE rows (other TEXT)")


def without_facts(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM facts")


def with_text(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE facts SET version = 'seven'")


def without_table(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE members")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [garbage, empty, another, without_facts, with_text, without_table]
damages = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@damages
async def test_a_damaged_ledger_is_made_again_at_opening(
    join: Join, clock: Clock, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Any file in place of the ledger is replaced."""
    one = join()
    await step(one, standing(one, clock))
    await one.aclose()
    damage(ledger_file(tmp_path))

    two, three = join(), join()

    await step(two, standing(two, clock))
    assert (standing(two, clock),) == (await step(three)).rows


@damages
async def test_a_damaged_ledger_is_made_again_while_in_use(
    join: Join, clock: Clock, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Members go on in a new ledger, and no step fails with another error."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    await step(two, standing(two, clock))
    damage(ledger_file(tmp_path))

    for _ in range(3):
        for ledger in (one, two):
            await take(ledger)
            await ledger.publish([standing(ledger, clock)])

    assert {one.member, two.member} == {each.member for each in await one.members()}
    assert not (await step(two)).afresh


async def take_without_jobs(join: Join, clock: Clock, tmp_path: Path) -> LocalLedger:
    """Begin a step in a ledger that can be read, and whose table of jobs is gone."""
    one = join()
    await step(one, standing(one, clock))
    change(tmp_path, "DROP TABLE jobs")
    await take(one)
    return one


async def test_damage_that_a_question_inside_a_step_finds_is_repaired(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """The step is given up, and the next one has a new ledger."""
    one = await take_without_jobs(join, clock, tmp_path)

    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="damaged or deleted"):
            await one.find_intents("i", "d")
    await one.release()

    assert (await step(one, standing(one, clock))).afresh
    await take(one)
    assert () == await one.find_intents("i", "d")
    await one.release()


async def test_damage_that_only_writing_finds_is_repaired(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """A ledger that can be read but not written is made again."""
    one = await take_without_jobs(join, clock, tmp_path)

    assert not await one.publish([IntentRow("m", 1, "i", "d", "f", 1)])

    assert (await step(one, IntentRow("m", 1, "i", "d", "f", clock.now))).afresh


async def test_a_ledger_that_cannot_be_replaced_is_not_used(join: Join, tmp_path: Path) -> None:
    """With a folder in place of the ledger the member gives up."""
    await join().aclose()
    a_folder(ledger_file(tmp_path))

    with pytest.raises(LedgerUnavailable):
        join()


async def test_a_ledger_that_was_put_back_from_a_copy_is_read_again(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """An older state is noticed, and newer rows are written again."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    await step(two, standing(two, clock))
    await step(one, PlanRow(1, 176, 3))
    change(tmp_path, "UPDATE facts SET version = 1")

    assert [True, True] == [(await step(each)).afresh for each in (one, two)]


async def test_an_emptied_ledger_is_written_again(join: Join, clock: Clock, tmp_path: Path) -> None:
    """A member that is no longer in the ledger writes all its rows again."""
    one = join()
    await step(one, standing(one, clock))
    for table in ("rows", "jobs", "members"):
        change(tmp_path, f"DELETE FROM {table}")

    assert (await step(one, standing(one, clock))).afresh
    assert not (await step(one)).afresh


async def test_a_stopped_holder_of_the_lock_is_left_behind(
    join: Join, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """After two seconds the others go on with a copy, and the stopped member's step fails."""
    caplog.set_level("INFO")
    one, two = join(), join()
    intent = IntentRow(one.member, 1, "i", "d", "f", clock.now)
    await step(one, standing(one, clock), PlanRow(1, 176, 3), intent)
    await step(two, standing(two, clock))
    await take(one)
    found = None

    for _ in range(60):
        clock.now += SECOND // 20
        found = await two.take(0)
        if found is not None:
            break

    assert found is not None
    assert (True, ()) == (found.afresh, found.gone)
    assert {standing(one, clock, stepped_at=1000 * SECOND), PlanRow(1, 176, 3)} == set(found.rows)
    assert await two.publish([standing(two, clock)])
    assert not await one.publish([PlanRow(2, 176, 3)])
    assert (await step(one, standing(one, clock))).afresh
    assert (intent,) == await two.find_intents("i", "d")
    assert 1 == sum("stopped process" in each.message for each in caplog.records)


async def test_a_busy_ledger_is_not_replaced(join: Join, clock: Clock) -> None:
    """Members that find the lock taken by working members replace nothing."""
    one, two = join(), join()
    await step(one, standing(one, clock))
    await step(two, standing(two, clock))

    for number in range(10):
        await take(one)
        clock.now += SECOND // 2
        assert await two.take(0) is None
        assert await one.publish([RequestRow(one.member, number, clock.now)])
    await take(one)
    for _ in range(4):
        assert await two.take(0) is None
        clock.now += 2 * SECOND

    assert await one.publish([])


async def test_a_ledger_that_is_just_being_made_is_waited_for(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """Opening does not wait for it, but the first step does."""
    place = KeyFolder(tmp_path, "host", "key", "boot")
    place.make()
    with place.guard() as ours:
        assert ours
        ledger = join()
        assert await ledger.take(0.1) is None
        with pytest.raises(LedgerUnavailable, match="locked"):
            await ledger.members()

    await step(ledger, standing(ledger, clock))


async def test_files_are_private(join: Join, clock: Clock, tmp_path: Path) -> None:
    """Only the user can read a ledger, whatever the umask and the folder's former mode."""
    (tmp_path / "host" / "key").mkdir(parents=True)
    (tmp_path / "host").chmod(0o755)
    before = os.umask(0)
    try:
        ledger = join()
        await step(ledger, standing(ledger, clock))
        await take(ledger)
    finally:
        os.umask(before)

    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "host").rglob("*")}

    assert 0o700 == stat.S_IMODE((tmp_path / "host").stat().st_mode)
    assert {0o600, 0o700} == set(found.values())
    assert [tmp_path / "host" / "key"] == [path for path, mode in found.items() if mode == 0o700]


async def test_a_ledger_of_another_boot_is_not_read(
    join: Join, clock: Clock, tmp_path: Path
) -> None:
    """It is removed when all its members are dead, since times of another boot mean nothing."""
    before = join("boot 1")
    await step(before, standing(before, clock), PlanRow(1, 176, 3))

    after = join("boot 2")

    assert () == (await step(after)).rows
    assert ledger_file(tmp_path, "boot 1").exists()
    dies(before)
    join("boot 2")
    left = [path.name for path in (tmp_path / "host" / "key").iterdir()]
    assert [] == [name for name in left if name.startswith(ledger_file(tmp_path, "boot 1").name)]


async def test_a_ledger_of_another_version_is_not_read(
    join: Join, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two versions of the package side by side have two ledgers."""
    one = join()
    await step(one, standing(one, clock))
    monkeypatch.setattr(ledger_folder, "FORMAT", 2)

    two = join()

    assert () == (await step(two)).rows
    assert () == (await step(one)).rows


async def test_files_of_dead_members_are_swept(join: Join, tmp_path: Path) -> None:
    """The next process that opens the ledger removes the files of killed ones."""
    place = join()._place
    left = [
        place.member("0123456789abcdef"),
        place.path / "ledger-00000000.0123456789abcdef",
        place.path / "ledger-00000000",
        place.path / "ledger-00000000-wal",
        place.path / "old.new",
    ]
    for path in (*left, place.path / "young.new", place.path / "notes"):
        path.touch()
    os.utime(left[-1], (0, 0))

    join()

    assert [] == [path for path in left if path.exists()]
    assert [True, True] == [(place.path / name).exists() for name in ("young.new", "notes")]


async def test_forgotten_ledgers_are_made_again(join: Join, clock: Clock, tmp_path: Path) -> None:
    """Ledgers of one host can be deleted, and their members go on."""
    one = join()
    await step(one, standing(one, clock), PlanRow(1, 176, 3))
    (tmp_path / "other").mkdir()

    forget(tmp_path, "host")
    forget(tmp_path, "missing")

    assert ["other"] == names(tmp_path)
    assert () == (await step(join())).rows
    assert (await step(one)).afresh


async def test_leaving_a_deleted_ledger_makes_none(join: Join, tmp_path: Path) -> None:
    """A program that deletes the state folder at its end does not find it again."""
    one = join()
    await step(one, PlanRow(1, 176, 3))
    forget(tmp_path, "host")

    await one.aclose()

    assert [] == names(tmp_path)


async def test_leaving_gives_up_on_a_locked_ledger(join: Join, clock: Clock) -> None:
    """A member that cannot write that it leaves is found dead."""
    one, two = join(), join()
    for ledger in (one, two):
        await step(ledger, standing(ledger, clock))
    await take(two)
    began = anyio.current_time()

    await one.aclose()

    assert 0.2 == pytest.approx(anyio.current_time() - began)
    assert await two.publish([])
    clock.now += SECOND
    assert (one.member,) == (await step(two)).gone


# Places without a ledger.


def test_a_folder_that_cannot_be_made_is_an_ordinary_reason(tmp_path: Path) -> None:
    """A home that is not a folder, or is read-only, may be so on purpose."""
    (tmp_path / "file").touch()

    with pytest.raises(LedgerUnavailable, match="File exists") as caught:
        open_local(tmp_path / "file", "host", "key", boot="boot")

    assert caught.value.ordinary


def test_a_read_only_folder_is_an_ordinary_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process on a read-only home goes on alone without a warning."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(LedgerUnavailable, match="Read-only") as caught:
        open_local(tmp_path, "host", "key", boot="boot")

    assert caught.value.ordinary


def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that runs as root leaves no file that the user cannot open later."""
    (tmp_path / "host").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    with pytest.raises(LedgerUnavailable, match="another user"):
        open_local(tmp_path, "host", "key", boot="boot")


def mount(*arguments: str) -> bool:
    """Mount something, which only root may do."""
    if shutil.which("mount") is None:
        return False
    return not subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)):
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_full_disk_is_a_reason(small_disk: Path, clock: Clock) -> None:
    """Publishing raises an error and writes nothing; with free space it works again."""
    one = open_local(small_disk, "host", "key", clock=clock, boot="boot")
    two = open_local(small_disk, "host", "key", clock=clock, boot="boot")
    await step(one, standing(one, clock))
    await step(two, standing(two, clock))
    filler = small_disk / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(b"x" * 300_000)

    await take(one)
    with pytest.raises(LedgerUnavailable, match="full") as caught:
        await one.publish([RequestRow(one.member, n, 5) for n in range(1000)])
    filler.unlink()

    assert not caught.value.ordinary
    assert () == (await step(two)).rows
    await step(one, RequestRow(one.member, 1, 5))
    assert (RequestRow(one.member, 1, 5),) == (await step(two)).rows
    await one.aclose()
    await two.aclose()


def test_a_full_disk_is_a_reason_at_opening(small_disk: Path) -> None:
    """Opening raises an error if there is no space for a ledger."""
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(b"x" * 300_000)

    with pytest.raises(LedgerUnavailable, match=r"full|No space") as caught:
        open_local(small_disk, "host", "key", boot="boot")

    assert not caught.value.ordinary


async def test_a_disk_that_becomes_read_only_is_a_reason(small_disk: Path, clock: Clock) -> None:
    """A disk that the system stops writing to leaves nothing locked."""
    ledger = open_local(small_disk, "host", "key", clock=clock, boot="boot")
    await step(ledger, standing(ledger, clock))
    await ledger.aclose()
    assert mount("-o", "remount,ro", str(small_disk))

    with pytest.raises(LedgerUnavailable) as caught:
        open_local(small_disk, "host", "key", clock=clock, boot="boot")

    assert caught.value.ordinary


async def test_a_ledger_that_grows_too_large_is_a_reason(join: Join) -> None:
    """If sqlite has no space, publishing raises an error and writes nothing, on any system."""
    one, two = join(), join()
    await step(one, PlanRow(1, 176, 3))
    assert one._db is not None
    one._db.execute("PRAGMA max_page_count = 30")

    await take(one)
    with pytest.raises(LedgerUnavailable, match="full"):
        await one.publish([RequestRow(one.member, n, 5) for n in range(5000)])

    assert (PlanRow(1, 176, 3),) == (await step(two)).rows


MOUNTS = r"""
22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /home rw - nfs4 server:/home rw,vers=4.2
31 30 0:41 / /home/ann\040lee rw shared:2 master:1 - btrfs /dev/vdb rw
32 22 0:42 / /mnt rw - tmpfs tmpfs rw
33 22 0:43 / /mnt rw - cifs //server/share rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *(("/", ""), ("/var/lib", ""), ("/homes", ""), ("/mnt/x", "cifs"), ("/mnt", "cifs")),
        *(("/home", "nfs4"), ("/home/ann", "nfs4"), ("/home/ann lee/x", "")),
    ],
)
def test_network_file_systems_are_known_by_their_mount(path: str, kind: str) -> None:
    """The nearest mount that is not hidden decides."""
    assert kind == network_file_system(path, MOUNTS)


def test_a_network_file_system_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share a folder do not share a clock."""
    mounts = tmp_path / "mounts"
    mounts.write_text("22 1 252:0 / / rw,relatime shared:1 - nfs server:/ rw\n")
    monkeypatch.setattr(ledger_folder, "_MOUNTS", mounts)

    with pytest.raises(LedgerUnavailable, match=r"network file system \(nfs\)"):
        open_local(tmp_path, "host", "key", boot="boot")


def test_a_system_without_a_list_of_mounts_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is used if its file system is unknown."""
    monkeypatch.setattr(ledger_folder, "_MOUNTS", tmp_path / "missing")

    anyio.run(open_local(tmp_path, "host", "key", boot="boot").aclose)


def test_the_state_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable names the folder; otherwise it is the system's place for a user's state."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    assert tmp_path == default_folder()

    monkeypatch.delenv(STATE_VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert "perfect_async" == default_folder().name


@pytest.mark.usefixtures("no_working_folder")
def test_a_relative_state_folder_needs_a_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the working folder was removed, there is no ledger, and the reason is given."""
    monkeypatch.setenv(STATE_VARIABLE, "state")

    with pytest.raises(LedgerUnavailable, match="'state', and the working folder was removed"):
        default_folder()


def test_no_test_uses_the_state_of_the_user() -> None:
    """Tests have a state folder of their own."""
    assert "pytest" in str(default_folder())


def test_a_user_without_a_home_has_no_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder with the name "~" is made."""
    monkeypatch.delenv(STATE_VARIABLE)
    monkeypatch.setattr("platformdirs.user_state_path", lambda *args, **kwargs: Path("~/.local"))

    with pytest.raises(LedgerUnavailable, match="no home") as caught:
        default_folder()

    assert caught.value.ordinary


@pytest.mark.skipif(not REAL_BOOT, reason="the system's boot id is Linux's here")
def test_a_boot_has_an_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The boot id stays the same, except for another monotonic clock."""
    assert boot_id() == boot_id()

    found = {boot_id()}
    for offsets in ("monotonic 0 0\n", "monotonic 500 0\n"):
        (tmp_path / "offsets").write_text(offsets)
        monkeypatch.setattr(ledger_folder, "_TIME_OFFSETS", tmp_path / "offsets")
        found.add(boot_id())
    monkeypatch.setattr(ledger_folder, "_TIME_OFFSETS", tmp_path / "missing")
    found.add(boot_id())

    assert 3 <= len(found)


@pytest.mark.skipif(not REAL_BOOT, reason="the system's boot id is Linux's here")
@pytest.mark.parametrize("text", [None, "", "\xff"])
def test_a_system_without_a_boot_id_has_no_ledger(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    """Times that cannot be compared are not shared."""
    if text is not None:
        (tmp_path / "boot").write_text(text)
    monkeypatch.setattr(ledger_folder, "_BOOT_ID", tmp_path / "boot")

    with pytest.raises(LedgerUnavailable, match="boot id"):
        open_local(tmp_path, "host", "key")


# Threads and processes.


def test_ledgers_opened_at_the_same_moment_are_one(tmp_path: Path) -> None:
    """Many members that find no ledger make one together."""
    barrier = threading.Barrier(8)
    found: list[LocalLedger] = []

    def opening() -> None:
        barrier.wait()
        found.append(open_local(tmp_path, "host", "key", boot="boot"))

    async def meet() -> int:
        for ledger in found:
            assert await ledger.take(5.0) is not None
            assert await ledger.publish([RequestRow(ledger.member, 1, 5)])
        last = await found[0].take(5.0)
        for ledger in found:
            await ledger.aclose()
        return 0 if last is None else len(last.rows)

    threads = [threading.Thread(target=opening) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 7 == anyio.run(meet)


@asynccontextmanager
async def real(tmp_path: Path) -> AsyncIterator[LocalLedger]:
    """Join the ledger of other processes."""
    ledger = open_local(tmp_path, "host", "key")
    yield ledger
    await ledger.aclose()


async def taken(ledger: LocalLedger) -> Snapshot:
    snapshot = await ledger.take(10.0)
    assert snapshot is not None
    return snapshot


@pytest.mark.real_time
async def test_processes_that_open_a_ledger_together_exclude_each_other(tmp_path: Path) -> None:
    """Concurrent steps of several processes lose no rows."""
    with members(tmp_path, 3) as others:
        for other in others:
            other.send("count 50")
        epochs = [other.answer() for other in others]

    assert 150 == max(int(str(epoch)) for epoch in epochs)


@pytest.mark.real_time
async def test_a_process_killed_within_a_step_leaves_nothing_of_it(tmp_path: Path) -> None:
    """Its lock is free at once, and its unpublished rows are not there."""
    with members(tmp_path, 1) as [other]:
        other.do("take")
        other.do("publish 1")
        other.do("take")
        async with real(tmp_path) as ledger:
            assert await ledger.take(0) is None
            other.kill()

            found = await taken(ledger)

    assert [1] == [row.number for row in found.rows if isinstance(row, RequestRow)]
    assert (other.name,) == found.gone


@pytest.mark.real_time
async def test_a_fork_keeps_no_lock_of_its_parent(tmp_path: Path) -> None:
    """A child is a member of its own, and its parent's death is noticed while it lives."""
    with members(tmp_path, 1) as [other]:
        other.do("take")
        other.do("publish 1")
        found = other.do("fork")
        assert isinstance(found, list)
        child, reason, pid = found
        try:
            assert "forked" in reason
            assert {"members": [other.name], "requests": [1], "gone": [], "afresh": True} == (
                other.do("take")
            )
            assert other.do("publish 2")
            other.kill()
            async with real(tmp_path) as ledger:
                first = await taken(ledger)
                assert await ledger.publish([PlanRow(1, 176, 3)])
                other.do("take")
                assert other.do("publish 3")
                second = await taken(ledger)
        finally:
            os.kill(pid, 9)

    assert (other.name,) == first.gone
    assert [child] == [row.member for row in first.rows if isinstance(row, MemberRow)]
    assert [3] == [row.number for row in second.rows if isinstance(row, RequestRow)]


@pytest.mark.real_time
async def test_a_parent_goes_on_after_a_fork(tmp_path: Path) -> None:
    """A process that forks stays a member of the ledger."""
    async with real(tmp_path) as ledger:
        await taken(ledger)
        await ledger.publish([PlanRow(1, 176, 3)])
        local._before_fork()
        assert ledger._db is None
        assert await ledger.take(0) is None
        local._after_fork_in_parent()

        assert not (await taken(ledger)).afresh

        # The connection stays open within a step.
        local._before_fork()
        local._after_fork_in_parent()
        assert await ledger.publish([])


@pytest.mark.long
@pytest.mark.real_time
async def test_a_stopped_process_blocks_no_other(tmp_path: Path) -> None:
    """The others go on without a process that is stopped within a step; it joins again."""
    with members(tmp_path, 2) as [stopped, other]:
        for each in (stopped, other):
            each.do("take")
            each.do("publish 1")
        stopped.do("take")
        stopped.stop()
        began = time.monotonic()
        found = other.do("take 10000")
        assert 1.9 < time.monotonic() - began < 8
        assert isinstance(found, dict)
        assert (True, [], [1]) == (found["afresh"], found["gone"], found["requests"])
        assert other.do("publish 2")

        stopped.go_on()

        assert stopped.do("publish 5") is False
        again = stopped.do("take")
        assert isinstance(again, dict)
        assert (True, [1, 2]) == (again["afresh"], sorted(again["requests"]))
        assert stopped.do("publish 1 6")
        assert {"members": [stopped.name], "requests": [1, 6], "gone": [], "afresh": False} == (
            other.do("take")
        )


@pytest.mark.long
@pytest.mark.real_time
def test_kills_at_any_moment_damage_nothing(tmp_path: Path) -> None:
    """Processes that are killed at work leave a usable ledger."""
    with members(tmp_path, 1) as [steady]:
        for number in range(20):
            with contextlib.closing(Member(tmp_path)) as victim:
                victim.send("count 100000")
                steady.do("count 20")
                time.sleep(number / 200)
                victim.kill()
        assert isinstance(steady.do("take"), dict)
        assert steady.do("publish 1")

    assert ["ok"] == _check(tmp_path)


def _check(tmp_path: Path) -> list[object]:
    place = KeyFolder(tmp_path, "host", "key", boot_id())
    with contextlib.closing(sqlite3.connect(place.ledger)) as db:
        return [each for (each,) in db.execute("PRAGMA integrity_check")]


@pytest.mark.long
@pytest.mark.real_time
async def test_a_ledger_deleted_repeatedly_stops_no_process(tmp_path: Path) -> None:
    """Processes whose ledger is deleted during steps go on in a new one."""
    with members(tmp_path, 3) as others:
        for other in others:
            other.send("churn 1500")
        for number in range(100):
            time.sleep(0.005 + number % 7 / 500)  # noqa: ASYNC251 - the others are processes
            forget(tmp_path, "host")
        refused = [other.answer() for other in others]
        for other in [*others, *others]:
            other.do("churn 1")

        async with real(tmp_path) as ledger:
            found = await taken(ledger)

    assert {other.name for other in others} == {
        row.member for row in found.rows if isinstance(row, MemberRow)
    }
    assert all(isinstance(count, int) and count < 300 for count in refused)
