"""The pace of requests: the cycle, the guard, the reserve, and pauses."""

import pytest

from perfect_async import events as ev
from perfect_async._ratelimit.timetable import RESCUE_AFTER
from perfect_async._time import SLOT
from perfect_async.errors import PerfectError
from perfect_async.models import Limits
from perfect_async.scheduler._pacer import Pacer

SECOND = 1_000_000
NO = PerfectError("no")
POLL = ev.Poll(1, 1)


def pacer(limits: Limits | None = None) -> Pacer:
    return Pacer(limits or Limits(), lease=10 * SECOND, horizon=120 * SECOND)


def polled(pacer: Pacer, count: int, took: int = 100_000) -> None:
    for _ in range(count):
        pacer.on_response(ev.Running(POLL), took, 0)


def test_the_cycle_follows_the_network() -> None:
    """The cycle is long on a good network, and so short on a bad one that the tries fit."""
    good = pacer()
    polled(good, 300)
    good.replan(60 * SECOND)
    assert 8_800_000 == good.table.cycle * SLOT
    assert 150_000 == good.table.guard
    for _ in range(200):
        good.on_response(ev.NoAnswer(POLL, NO), 100_000, 0)
    good.replan(61 * SECOND)
    assert 8_200_000 >= good.table.cycle * SLOT
    polled(good, 300, 5 * SECOND)
    good.replan(62 * SECOND)
    assert 4_000_000 == good.table.cycle * SLOT
    assert 1_000_000 == good.table.guard


def test_a_long_cycle_for_much_work() -> None:
    """The cycle is longer while more work waits than a window holds, until no task runs."""
    here = pacer()
    polled(here, 300)
    for waiting, cycle in ((251, 9_300_000), (250, 8_800_000), (251, 9_300_000)):
        here.expect(waiting)
        here.replan(60 * SECOND)
        assert cycle == here.table.cycle * SLOT
    here.table.reserve(1, 0, 2400)
    here.expect(0)
    here.replan(100 * SECOND)
    assert 9_300_000 == here.table.cycle * SLOT
    here.table.release(1)
    here.expect(0)
    here.replan(140 * SECOND)
    assert 8_800_000 == here.table.cycle * SLOT


def test_no_long_cycle_where_polls_leave_late() -> None:
    """A process that stands still at times keeps more of the lease, until it is punctual."""
    here = pacer()
    polled(here, 300)
    here.expect(1000)
    here.polled(4)
    here.replan(60 * SECOND)
    assert 8_800_000 == here.table.cycle * SLOT
    for _ in range(399):
        here.polled(1)
    here.replan(100 * SECOND)
    assert 8_800_000 == here.table.cycle * SLOT
    here.polled(0)
    here.polled(0)
    here.replan(140 * SECOND)
    assert 9_300_000 == here.table.cycle * SLOT


def test_the_rest_of_a_lease_holds_a_rescue() -> None:
    """A poll that another member sends 0.3 s late arrives inside the lease."""
    for took in range(10_000, 600_000, 10_000):
        here = pacer()
        here.expect(1000)
        polled(here, 300, took)
        here.replan(60 * SECOND)
        jitter = here.network.jitter
        assert 10 * SECOND >= (here.table.cycle + RESCUE_AFTER) * SLOT + 2 * jitter


def test_one_request_a_second() -> None:
    """If retries must leave a second apart, more of the lease is kept for them."""
    assert pacer(Limits(per_second=1)).table.cycle < pacer().table.cycle


def test_nothing_new_on_a_plan_for_a_better_network() -> None:
    """While the plan cannot be adapted to a worse network, no task is created."""
    here = pacer(Limits(25, 30.0, 5))
    polled(here, 100)
    here.replan(60 * SECOND)
    slot, ref = 60 * SECOND // SLOT, 0
    while here.table.admits(slot, slot, slot + 2400, here.limit(0)):
        if here.table.free(slot):
            ref += 1
            here.table.reserve(ref, slot, slot + 2400)
        slot += 1
    assert here.may_create(0)
    polled(here, 300, 5 * SECOND)
    here.replan(100 * SECOND)
    assert here.overcommitted
    assert not here.may_create(0)
    for each in range(1, ref + 1):
        here.table.release(each)
    here.replan(100 * SECOND)
    here.replan(100 * SECOND)
    assert here.may_create(0)


def test_the_reserve_follows_the_failures() -> None:
    """A few requests of a window are never reserved, more on a bad network, a quarter at most."""
    here = pacer()
    assert 4 == here.reserve()
    for _ in range(400):
        here.on_response(ev.Refused(POLL, NO, 502), 100_000, 0)
    assert 62 == here.reserve()
    assert 188 == here.limit(0)


def test_pauses_grow_in_an_outage() -> None:
    """A request other than a poll without an answer causes a pause, longer each time."""
    here, ask, holds = pacer(), ev.Ask(1, 1), []
    for _ in range(9):
        here.on_response(ev.NotSent(ask, NO), 1000, 0)
        holds.append(here.paused_until())
    assert [SECOND // 2, SECOND, 2 * SECOND] == holds[:3]
    assert 30 * SECOND == holds[-1]
    here.on_response(ev.Answered(ask), 1000, 0)
    here.on_response(ev.NoAnswer(ask, NO), 1000, 100 * SECOND)
    assert 100 * SECOND + SECOND // 2 == here.paused_until()
    here.on_response(ev.NoAnswer(POLL, NO), 1000, 200 * SECOND)
    assert 100 * SECOND + SECOND // 2 == here.paused_until()


def test_creations_after_a_doubt() -> None:
    """After a creation in doubt the next one waits and is alone, until one is answered."""
    here, now = pacer(), 0
    for number, wait in enumerate((2, 6, 18, 54, 120, 120)):
        command = ev.Submit(number, 1)
        here.created(number, now)
        here.on_response(ev.NoAnswer(command, NO), 1000, now)
        assert not here.may_create(now + wait * SECOND - 1)
        now += wait * SECOND
        assert here.may_create(now)
    here.created(9, now)
    assert not here.may_create(now)
    here.on_response(ev.NotSent(ev.Submit(9, 1), NO), 1000, now)
    assert here.may_create(now)
    here.created(10, now)
    here.on_response(ev.Accepted(ev.Submit(10, 1), "task"), 1000, now)
    here.created(11, now)
    assert here.may_create(now)


def test_unanswered_creations() -> None:
    """While three creations have no answer for longer than the patience no fourth is sent."""
    here = pacer()
    for number in range(3):
        here.created(number, 0)
    assert here.may_create(here.network.patience)
    assert not here.may_create(here.network.patience + 1)


def test_refusals_are_counted() -> None:
    """429s count in the allowance and the statistics."""
    here = pacer()
    for now in (0, 2 * SECOND):
        here.table.leave(now, now, SECOND)
        here.on_response(ev.Limited(POLL, NO), 1000, now)
    assert 2 == here.refused
    assert 1 == here.allowance.limit(2 * SECOND)
    assert here.plenty(2 * SECOND)


def test_refusals_are_no_bad_network() -> None:
    """A 429 neither shortens the cycle nor enlarges the reserve, since that would cause more."""
    here = pacer()
    polled(here, 300)
    for second in range(100):
        here.on_response(ev.Limited(POLL, NO), 1000, second * SECOND)
    here.replan(200 * SECOND)
    assert 8_800_000 == here.table.cycle * SLOT
    assert 4 == here.reserve()


def refused(pacer: Pacer, own: int) -> None:
    """Fill the window with `own` requests of ours, the last of them refused now."""
    for number in range(own):
        now = 300 * SECOND * number // own
        pacer.table.leave(number, now, SECOND)
        pacer.table.answered(number, now)
    for now in (298 * SECOND, 300 * SECOND):
        pacer.on_response(ev.Limited(POLL, NO), 1000, now)


def test_one_task_is_tried_under_a_low_limit() -> None:
    """After a quiet time, with half of the limit free, the plan may hold one task."""
    here = pacer(Limits(requests=40, period=300.0))
    here.replan(0)
    refused(here, 10)
    assert 8 == here.allowance.limit(300 * SECOND)
    assert 9 - 1 == here.limit(329 * SECOND)
    # Quiet, but ours are still in the window.
    assert 9 - 1 == here.limit(331 * SECOND)
    assert 4 == here.table.occupied(480 * SECOND)
    assert here.alone() == here.limit(480 * SECOND)


def test_silence() -> None:
    """In a full window one request at a time is sent after the silence."""
    here = pacer()
    assert not here.silent(0, asking=True)
    refused(here, 200)
    assert here.silent(300 * SECOND, asking=False)
    assert not here.silent(301 * SECOND, asking=False)
    assert here.silent(301 * SECOND, asking=True)
    here.on_response(ev.Running(POLL), 1000, 302 * SECOND)
    assert not here.silent(302 * SECOND, asking=True)


def test_polls_are_sooner_while_more_is_tried() -> None:
    """While a higher limit is being tried, polls leave in mid-lease."""
    here = pacer()
    refused(here, 200)
    here.on_response(ev.Running(POLL), 1000, 301 * SECOND)
    here.replan(700 * SECOND)
    assert 420 * SECOND == here.allowance.contended_until
    here.replan(1000 * SECOND)
    assert 1030 * SECOND == here.allowance.contended_until


@pytest.mark.parametrize("took", [150_000, 300_000, 700_000, 5 * SECOND])
def test_a_jittery_network_keeps_the_guard(took: int) -> None:
    """The guard is never below the jitter and does not change for small changes."""
    here = pacer()
    polled(here, 400, took)
    here.replan(60 * SECOND)
    guard = here.table.guard
    assert guard >= here.network.jitter
    polled(here, 400, took * 9 // 10)
    here.replan(100 * SECOND)
    assert guard == here.table.guard


def test_the_plan_does_not_change_again_at_once() -> None:
    """While tasks run a longer cycle waits for half a minute."""
    here = pacer()
    polled(here, 300)
    here.table.reserve(1, 0, 2400)
    here.replan(0)
    good = here.table.cycle
    for _ in range(20):
        here.on_response(ev.NoAnswer(POLL, NO), 100_000, 0)
    here.replan(20 * SECOND)
    assert good == here.table.cycle
    assert not here.overcommitted
    here.replan(30 * SECOND)
    assert good > here.table.cycle


def test_the_last_request_of_a_second_is_used_if_retries_come_in_time() -> None:
    """At one request per second it is used in mid-cycle on a good network, and not on a bad one,
    whose retries need the rest of the lease.
    """
    here = pacer(Limits(per_second=1))
    polled(here, 300)
    here.replan(0)
    here.table.reserve(1, 0, 2400)
    cycle = here.table.cycle * SLOT
    assert not here.table.room(cycle // 2, kept=1)
    assert here.lends(cycle // 2)
    lent = [slot for slot in range(here.table.cycle) if here.lends(slot * SLOT)]
    for _ in range(40):
        here.on_response(ev.NoAnswer(POLL, NO), 100_000, 0)
    polled(here, 40, 2 * SECOND)
    assert here.network.tries > 2
    left = [slot for slot in range(here.table.cycle) if here.lends(slot * SLOT)]
    assert set(left) < set(lent)
    here.table.leave(1, cycle // 2, SECOND)
    assert not here.lends(cycle // 2 + 2 * SECOND)


def test_requests_that_may_be_reserved() -> None:
    """All but the reserve may be reserved; under foreign use creations have fewer."""
    here = pacer()
    assert (246, 246) == (here.reservable, here.limit(0))
    for now in (0, 2 * SECOND):
        here.on_response(ev.Limited(ev.Ask(1, 1), NO), 1000, now)
    assert 246 == here.reservable
    assert here.limit(2 * SECOND) < 10


def is_current(here: Pacer) -> bool:
    """Return `plan_is_current` by a call, since mypy does not know that `cut` changes it."""
    return here.plan_is_current


def test_the_plan_is_current_while_nothing_changes() -> None:
    """The plan is current until the network changes or a request is refused, and never while others
    use the key.
    """
    here = pacer()
    assert not is_current(here)
    here.replan(0)
    assert is_current(here)
    polled(here, 1, 9 * SECOND)
    assert not is_current(here)
    # The first cuts, the second finds that all is as it should be.
    here.replan(SECOND)
    here.replan(SECOND)
    assert is_current(here)
    for now in (2 * SECOND, 9 * SECOND):
        here.on_response(ev.Limited(POLL, NO), 100_000, now)
        assert not is_current(here)
        here.replan(now)
    assert here.allowance.met
    assert not is_current(here)


@pytest.mark.parametrize(
    ("lease", "rare", "kept"),
    [(10, False, 0), (22, False, 0), (30, True, 4), (120, True, 8), (600, True, 50)],
)
def test_polls_are_rare_under_long_leases(lease: int, rare: bool, kept: int) -> None:
    """From a cycle of 20 s on, creations leave 4 requests to early polls, and 8 from 40 s on. Where
    no poll is reserved within a window, they leave one for each running task.
    """
    here = Pacer(Limits(), lease=lease * SECOND, horizon=600 * SECOND)
    for ref in range(50):
        here.table.reserve(ref, 0, 100)
    assert (rare, kept) == (here.rare, here.kept_for_ends)


def test_the_first_creation_leaves_nothing_to_early_polls() -> None:
    """While nothing is reserved there is no end to look for, and a small window needs it all."""
    here = Pacer(Limits(12), lease=60 * SECOND, horizon=600 * SECOND)
    assert (True, 0) == (here.rare, here.kept_for_ends)
