"""The rows that members publish, and when they are forgotten."""

from collections.abc import Iterable

import attrs
import pytest

from perfect_async import events as ev
from perfect_async.errors import RateLimited, ServiceUnavailable
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import IllegalEvent, Scheduler

SECOND = 1_000_000
SMILE = ev.TaskKind("ai-smile")


def member(name: str) -> Scheduler:
    return Scheduler(Limits(), Polling(), member=name, pid=1)


def step(scheduler: Scheduler, now: int, *rows: ev.LedgerRow) -> tuple[ev.LedgerRow, ...]:
    """Read `rows`, issue the due commands, and return the published rows."""
    scheduler.receive(ev.LedgerRead(rows), now)
    while (command := scheduler.due(now)) is not None:
        scheduler.receive(ev.Issued(command), now)
    return scheduler.changes(now)


def submitted(scheduler: Scheduler) -> ev.Submit:
    """Issue one creation."""
    scheduler.receive(ev.JobAdded(1, SMILE, 1.0, uploads=False), 0)
    scheduler.receive(ev.LedgerRead(), 0)
    command = scheduler.due(0)
    assert isinstance(command, ev.Submit)
    scheduler.receive(ev.Issued(command), 0)
    scheduler.changes(0)
    return command


def test_a_ledger_is_read_where_the_key_is_shared_only() -> None:
    """A scheduler that does not share the key refuses the event."""
    with pytest.raises(IllegalEvent, match="not shared"):
        Scheduler(Limits(), Polling()).receive(ev.LedgerRead(), 0)


def test_repr_of_members() -> None:
    """The repr names counts and nothing else."""
    assert "<Members 0 others, 0 of their tasks>" == repr(member("a")._state.members)


def test_a_429_counts_for_all_members() -> None:
    """A 429 to one member counts for all."""
    one, other = member("a"), member("b")
    command = submitted(one)
    one.receive(ev.Limited(command, RateLimited("Too many requests"), SECOND), SECOND)
    published = step(one, SECOND)
    step(other, SECOND, *published)

    [request] = [row for row in published if isinstance(row, ev.RequestRow)]
    assert ("refused", SECOND) == (request.outcome, request.retry_after)
    assert other._state.pacer.allowance.doubted


def running(scheduler: Scheduler) -> ev.TaskRow:
    """Create one task, and return its row."""
    command = submitted(scheduler)
    scheduler.receive(ev.Accepted(command, "task"), SECOND)
    [task] = tasks_of(step(scheduler, SECOND))
    return task


def tasks_of(rows: Iterable[ev.LedgerRow]) -> list[ev.TaskRow]:
    """Return the rows of tasks among `rows`."""
    return [row for row in rows if isinstance(row, ev.TaskRow)]


def test_an_unchanged_task_is_not_published_again() -> None:
    """A step publishes only the tasks that an event or a moved reservation has changed."""
    one = member("a")
    running(one)

    assert [] == tasks_of(step(one, SECOND + 1))


def test_an_announced_end_is_published() -> None:
    """Others leave the poll of a task that a webhook has announced to its owner."""
    one = member("a")
    task = running(one)
    one.receive(ev.Notified(1), 2 * SECOND)
    one.receive(ev.LedgerRead(), 2 * SECOND)

    assert [attrs.evolve(task, announced=True)] == tasks_of(one.changes(2 * SECOND))


def test_an_abandoned_task_is_published_as_ended() -> None:
    """A client that closes ends its tasks before their ends are reported."""
    one = member("a")
    task = running(one)
    one.receive(ev.ChannelAborted(), 2 * SECOND)
    one.receive(ev.LedgerRead(), 2 * SECOND)

    assert [attrs.evolve(task, ended=True)] == tasks_of(one.changes(2 * SECOND))


def test_an_older_row_of_our_task_is_replaced() -> None:
    """Where another member writes what it knew of our task, we publish what is newer."""
    one = member("a")
    task = running(one)

    assert [task] == tasks_of(step(one, 2 * SECOND, attrs.evolve(task, task_id="", renewed=-1)))


def test_a_rescue_that_fails_is_not_tried_for_ever() -> None:
    """After some failures the next reserved poll is awaited; an unknown task changes nothing."""
    one, other = member("a"), member("b")
    command = submitted(one)
    one.receive(ev.Accepted(command, "task"), SECOND)
    step(other, SECOND, *step(one, SECOND))
    members = other._state.members
    [task] = members._tasks.values()
    rescue = ev.Rescue(7, task.ref, "ai-smile", "task")
    failed = ev.NoAnswer(rescue, ServiceUnavailable("502"))
    for _ in range(50):
        members.on_rescued(rescue, failed, SECOND, SECOND)
    tried = task.tries
    members.on_rescued(ev.Rescue(8, -999, "ai-smile", "other"), failed, SECOND, SECOND)

    assert 50 == tried == task.tries


def test_duration_numbers_of_the_oldest_members_are_forgotten() -> None:
    """Counted durations are remembered for the newest members only."""
    scheduler = member("a")
    rows = [ev.DurationRow(f"m{number}", 1, SMILE, 0, SECOND) for number in range(20_000)]
    step(scheduler, SECOND, *rows)

    assert len(scheduler._state.members._learned) < 20_000
