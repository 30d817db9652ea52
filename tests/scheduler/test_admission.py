"""Which tasks may be created beside running ones, and until when polls are reserved for each."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfect_async._time import SLOT
from perfect_async.events import TaskKind
from perfect_async.models import Limits
from perfect_async.scheduler._admission import AdmissionController
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._pacer import Pacer
from tests.support.scheduler_harness import head
from tests.support.searching import examples

SECOND = 1_000_000
GIVE_UP = 600 * SECOND
INSURED = 120 * SECOND


class AdmissionHarness:
    """Admission at the vendor's limits on a good network; creations are answered at once."""

    def __init__(self, *, insured: int = INSURED, give_up: int = GIVE_UP) -> None:
        self.pacer = Pacer(Limits(), lease=10 * SECOND, horizon=give_up)
        self.table = self.pacer.table
        for _ in range(300):
            self.pacer.network.answered(100_000)
            self.pacer.network.polled(failed=False)
        self.pacer.replan(0)
        self.admission = AdmissionController(self.pacer, insured=insured, give_up=give_up)
        self.cycle = self.table.cycle * SLOT
        self.now = self.ref = 0
        self.give_up = give_up

    def job(self, feature: str = "ai-smile", outputs: int = 1) -> ScheduledJob:
        self.ref += 1
        return ScheduledJob(
            self.ref,
            TaskKind(feature, outputs),
            1.0,
            uploads=False,
            channel=0,
            state=JobState.READY,
            given_up=self.now + self.give_up,
        )

    def create(self, feature: str = "ai-smile", outputs: int = 1) -> int:
        job = self.job(feature, outputs)
        self.table.leave(job.ref, self.now, SECOND, creates=True)
        self.admission.created(job, self.now)
        self.table.answered(job.ref, self.now)
        self.admission.accepted(job.ref, self.now)
        self.table.arm(job.ref)
        self.admission.review(self.now)
        return job.ref

    def admits(self, feature: str = "ai-smile", outputs: int = 1) -> bool:
        limit = self.pacer.limit(self.now)
        return self.admission.admits(self.job(feature, outputs), self.now, limit)

    def fill(self, feature: str = "ai-smile", slots: int = 200) -> list[int]:
        """Create as many tasks as are admitted in so many slots from now on."""
        made = []
        for _ in range(slots):
            if self.admits(feature):
                made.append(self.create(feature))
            self.now += SLOT
        return made

    def end(self, ref: int) -> None:
        self.admission.release(ref, ended=self.now)
        self.admission.review(self.now)

    def lose(self, ref: int) -> None:
        self.admission.release(ref, lost=True)
        self.admission.review(self.now)

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
        self.admission.review(self.now)

    def learn(self, count: int, lasts: float = 8.0, feature: str = "ai-smile") -> None:
        """Run so many tasks one after another, then empty the window."""
        for _ in range(count):
            ref = self.create(feature)
            self.wait(lasts)
            self.end(ref)
        self.wait(310)

    def reserved(self, ref: int, created: int) -> int:
        """Return how long after its creation the last reserved poll of `ref` may leave."""
        return self.table._tasks[ref].last * SLOT - created

    def poll(self) -> None:
        """Send every reserved poll up to now; each finds its task running."""
        while (first := head(self.table.queue)) is not None and first[0] * SLOT <= self.now:
            self.table.keep(first[1], first[0] * SLOT)
            self.admission.runs(first[1], first[0] * SLOT, self.now)
            self.admission.review(self.now)


def horizon(ends: int, lasts: float, cycle: int) -> int:
    return round((1.2 + 1 / math.sqrt(ends)) * lasts * SECOND) + cycle // 4


# What a task is reserved.


def test_a_task_that_is_given_up_sooner_is_reserved_less() -> None:
    """Polls are reserved and admitted until the task's own `give_up`, and no longer."""
    strict = AdmissionHarness(insured=GIVE_UP)
    job = strict.job()
    job.give_up, job.given_up = 60 * SECOND, 60 * SECOND

    strict.admission.created(job, 0)

    assert 60 * SECOND - strict.cycle <= strict.reserved(job.ref, 0) <= 60 * SECOND
    assert 60 * SECOND == job.gives_up_after(GIVE_UP)
    assert 30 * SECOND == job.gives_up_after(30 * SECOND)
    assert GIVE_UP == strict.job().gives_up_after(GIVE_UP)


def test_more_tasks_fit_that_are_given_up_sooner() -> None:
    """Tasks that are given up after 20 s make room for others much sooner."""

    def admitted(give_up: int | None) -> int:
        strict, count = AdmissionHarness(insured=GIVE_UP), 0
        for _ in range(200):
            job = strict.job()
            job.give_up = give_up
            job.given_up = strict.now + job.gives_up_after(GIVE_UP)
            if strict.admission.admits(job, strict.now, strict.pacer.limit(strict.now)):
                strict.admission.created(job, strict.now)
                count += 1
            strict.now += SLOT
        return count

    assert admitted(None) < 10 < admitted(20 * SECOND)


def test_strict_before_the_first_end() -> None:
    """Without known durations a task has reserved polls until it is given up."""
    harness = AdmissionHarness()
    assert harness.admits()
    ref = harness.create()
    assert GIVE_UP == harness.reserved(ref, 0)
    harness.wait(300)
    assert GIVE_UP == harness.reserved(ref, 0)


@pytest.mark.parametrize("count", [1, 4, 25])
def test_a_young_task_is_insured(count: int) -> None:
    """A task of a known kind has reserved polls for 120 s, and one more."""
    harness = AdmissionHarness()
    harness.learn(count)
    created = harness.now // SLOT * SLOT
    assert INSURED + harness.cycle == harness.reserved(harness.create(), created)


def test_a_horizon_beyond_insured() -> None:
    """If tasks last longer than `insured`, polls are reserved until the horizon."""
    harness = AdmissionHarness(insured=10 * SECOND)
    harness.learn(4)
    created = harness.now // SLOT * SLOT
    expected = horizon(4, 8, harness.cycle) + harness.cycle
    assert expected // SLOT * SLOT == harness.reserved(harness.create(), created)


def test_no_reservation_beyond_give_up() -> None:
    """If the horizon is behind the time when a task is given up, polls end at that time."""
    harness = AdmissionHarness()
    harness.learn(1, lasts=300)
    created = harness.now // SLOT * SLOT
    assert GIVE_UP == harness.reserved(harness.create(), created)


def test_an_old_task_has_all_polls_reserved() -> None:
    """From the horizon on a task has reserved polls until it is given up."""
    harness = AdmissionHarness()
    harness.learn(4)
    created = harness.now // SLOT * SLOT
    ref = harness.create()
    harness.wait(horizon(4, 8, harness.cycle) / SECOND - 0.1)
    assert INSURED + harness.cycle == harness.reserved(ref, created)
    harness.wait(0.2)
    assert GIVE_UP == harness.reserved(ref, created)


def test_young_again() -> None:
    """The first ends shorten the reservations of running tasks to 120 s."""
    harness = AdmissionHarness()
    running = harness.create()
    ended = harness.create()
    harness.wait(8)
    assert GIVE_UP == harness.reserved(running, 0)
    harness.end(ended)
    assert INSURED + harness.cycle == harness.reserved(running, 0)


def test_insured_until_give_up_is_strict() -> None:
    """If `insured` is as long as `give_up`, admission is strict with any durations."""
    harness = AdmissionHarness(insured=GIVE_UP)
    harness.learn(20)
    created = harness.now // SLOT * SLOT
    assert GIVE_UP == harness.reserved(harness.create(), created)
    assert 7 == 1 + len(harness.fill())


def test_strict_after_a_loss() -> None:
    """After a loss admission is strict until 30 more tasks have ended."""
    harness = AdmissionHarness()
    harness.learn(4)
    running, lost = harness.create(), harness.create()
    created = harness.now // SLOT * SLOT
    harness.wait(8)
    harness.lose(lost)
    assert GIVE_UP == harness.reserved(running, created)
    harness.end(running)
    for left in range(29, 0, -1):
        created, ref = harness.now // SLOT * SLOT, harness.create()
        assert GIVE_UP == harness.reserved(ref, created), left
        harness.wait(8)
        harness.end(ref)
    created = harness.now // SLOT * SLOT
    assert INSURED + harness.cycle == harness.reserved(harness.create(), created)


def test_strict_under_foreign_use() -> None:
    """While others seem to use the key, admission is strict."""
    harness = AdmissionHarness()
    harness.learn(4)
    created, ref = harness.now // SLOT * SLOT, harness.create()
    harness.pacer.allowance.contended_until = harness.now + 5 * SECOND
    harness.wait(1)
    assert GIVE_UP == harness.reserved(ref, created)
    harness.wait(4)
    assert INSURED + harness.cycle == harness.reserved(ref, created)


# What fits.


def test_how_many_fit() -> None:
    """Seven tasks fit without durations, twice as many at 120 s, three times at less."""
    strict, insured, bold = (
        AdmissionHarness(),
        AdmissionHarness(),
        AdmissionHarness(insured=20 * SECOND),
    )
    for harness in (insured, bold):
        harness.learn(100)
    counts = [len(harness.fill()) for harness in (strict, insured, bold)]
    assert 7 == counts[0]
    assert 13 <= counts[1] <= 17
    assert 20 < counts[2]


def test_a_refused_admission_is_remembered_until_an_event_or_a_bucket() -> None:
    """A job that did not fit is checked again after an event or in the next bucket."""
    harness = AdmissionHarness()
    running = harness.fill()
    assert not harness.admits()
    assert not harness.admits()
    harness.now += SECOND
    assert not harness.admits()
    harness.end(running[0])
    assert harness.admits()


@pytest.mark.parametrize("later", [0, 3 * SLOT])
def test_a_creation_reserves_what_its_admission_found(later: int) -> None:
    """A creation reserves the same polls as one without a check, also if it leaves later."""
    reserved: list[list[range]] = []
    for asks in (False, True):
        harness = AdmissionHarness()
        harness.learn(5)
        for feature in ("ai-smile", "ai-smile", "avatar"):
            job = harness.job(feature)
            if asks:
                limit = harness.pacer.limit(harness.now)
                assert harness.admission.admits(job, harness.now, limit)
            harness.now += later
            job.given_up = harness.now + GIVE_UP
            harness.admission.created(job, harness.now)
            harness.admission.accepted(job.ref, harness.now)
            harness.admission.review(harness.now)
            harness.now += SLOT
        reserved.append([*harness.table.account._plans.values()])
    assert 3 == len(reserved[0])
    assert reserved[0] == reserved[1]


def test_no_free_phase() -> None:
    """If all near phases are taken no task is admitted, and a second later one is."""
    harness = AdmissionHarness()
    slot = harness.now // SLOT
    for at in range(slot - harness.table.cycle // 4 - 40, slot + 40):
        if harness.table.free(at):
            harness.table._phases.take(at)
    assert None is harness.table.origin(slot)
    assert not harness.admits()
    harness.now += 5 * SECOND
    assert harness.admits()


def test_fewer_tasks_fit_beside_older_ones() -> None:
    """The older running tasks are, the fewer fit beside them."""
    seen: list[int] = []
    for low in (0.0, 7.5):
        harness = AdmissionHarness(insured=20 * SECOND)
        harness.learn(100)
        for _ in range(5):
            ref = harness.create()
            harness.now += 6 * SLOT
            harness.admission.runs(ref, harness.now + round(low * SECOND), harness.now)
        seen.append(len(harness.fill()))
    assert seen[0] > seen[1] + 3


def test_an_old_task_that_does_not_fit() -> None:
    """While an old task lacks reserved polls, no task is created."""
    harness = AdmissionHarness()
    harness.learn(100)
    running = harness.fill()
    created = harness.now
    harness.wait(14)
    assert 10 < len(running)
    seen: list[list[bool]] = []
    while not harness.admits():
        seen.append([harness.reserved(ref, created) > 500 * SECOND for ref in running])
        # The oldest come first.
        assert sorted(seen[-1], reverse=True) == seen[-1]
        # Nobody sees how long it lasted: nothing else changes.
        harness.admission.release(running.pop())
        harness.wait(1)
    assert not any(seen[0])
    assert any(any(some) for some in seen)
    assert all(harness.reserved(ref, created) > 500 * SECOND for ref in running)
    assert 5 <= len(running) <= 7


def test_room_goes_to_old_tasks_first() -> None:
    """New room goes to the reservations of old tasks before new ones."""
    harness = AdmissionHarness()
    harness.learn(100)
    running, created = [], harness.now
    for _ in range(6):
        created = harness.now
        running.append(harness.create())
        harness.now += 10 * SLOT
    for number in range(1000, 1120):
        harness.table.leave(number, harness.now, SECOND)
        harness.table.answered(number, harness.now)
    harness.wait(14)
    assert harness.reserved(running[-1], created) < 200 * SECOND
    harness.now += 300 * SECOND
    assert not harness.admits()
    harness.wait(0)
    assert GIVE_UP == harness.reserved(running[-1], created)
    assert harness.admits()


def test_lapsed_tasks_get_one_more_poll() -> None:
    """A task without reserved polls gets its next one, also from those kept for retries."""
    harness = AdmissionHarness()
    harness.learn(100)
    running = harness.fill()
    lapsed: set[int] = set()
    for _ in range(250):
        harness.wait(1)
        before = {ref: harness.table._tasks[ref].last for ref in running}
        harness.poll()
        for ref in running:
            task = harness.table._tasks[ref]
            if ref in harness.admission._short and before[ref] < task.last:
                assert task.last <= before[ref] + harness.table.cycle
                lapsed.add(ref)
    assert lapsed
    # Those that can be kept for the whole time were never among them.
    assert running[0] not in lapsed


def test_beside_a_kind_without_an_end() -> None:
    """Tasks of a kind without an end count until they are given up."""
    bold, beside = AdmissionHarness(insured=20 * SECOND), AdmissionHarness(insured=20 * SECOND)
    for harness in (bold, beside):
        harness.learn(100)
    for _ in range(4):
        beside.create("ai-avatar")
        beside.now += 10 * SLOT
    assert len(bold.fill()) > len(beside.fill()) + 4
    assert 3 >= len(beside.fill("ai-avatar"))


def test_a_kind_without_an_end_is_admitted_strictly() -> None:
    """A kind without an end is admitted strictly, however well another is known."""
    harness = AdmissionHarness()
    harness.learn(100)
    assert 7 == len(harness.fill("ai-avatar"))


# Kinds.


@pytest.mark.parametrize(("feature", "outputs"), [("ai-avatar", 1), ("ai-smile", 4)])
def test_kinds_share_no_durations(feature: str, outputs: int) -> None:
    """Another feature or number of outputs has its own durations."""
    harness = AdmissionHarness()
    harness.learn(10)
    created = harness.now // SLOT * SLOT
    known, other = harness.create(), harness.create(feature, outputs)
    assert INSURED + harness.cycle == harness.reserved(known, created)
    assert GIVE_UP == harness.reserved(other, created)


def test_sixty_four_kinds_are_remembered() -> None:
    """The kind that was used longest ago is forgotten first, unless it has running tasks."""
    harness = AdmissionHarness()
    running = harness.create("first")
    for number in range(100):
        ref = harness.create(f"feature {number}")
        harness.wait(1)
        harness.end(ref)
        assert 64 >= len(harness.admission._kinds)
    names = {kind.feature for kind in harness.admission._kinds}
    assert {"first", *(f"feature {number}" for number in range(37, 100))} == names
    harness.end(running)


def test_documented_durations_count() -> None:
    """The documented duration of a kind counts beside its first ends."""
    ends = []
    for usual in (None, (40 * SECOND, 60 * SECOND)):
        harness = AdmissionHarness()
        for ref in (1, 2):
            job = ScheduledJob(ref, TaskKind("ai-smile", 1, usual), 1.0, False, 0, JobState.READY)
            job.given_up = 600 * SECOND
            harness.admission.created(job, 0)
        harness.now = 8 * SECOND
        harness.end(1)
        ends.append(harness.admission.likely_end(2))
    assert [4 * SECOND, 50 * SECOND] == ends


# What is asked of it.


def test_the_likely_end() -> None:
    """It is unknown before the first end, and then the time when most tasks have ended."""
    harness = AdmissionHarness()
    first, second, third = harness.create(), harness.create(), harness.create()
    assert None is harness.admission.likely_end(second)
    harness.now = 4 * SECOND
    harness.admission.runs(first, 4 * SECOND, harness.now)
    harness.now = 8 * SECOND
    harness.end(first)
    assert 6 * SECOND == harness.admission.likely_end(second)
    harness.admission.runs(second, 7 * SECOND, harness.now)
    assert 7 * SECOND + harness.cycle // 2 == harness.admission.likely_end(second)
    assert 6 * SECOND == harness.admission.likely_end(third)


def test_an_age_counts_from_the_answer() -> None:
    """A task has certainly run only since the answer to its creation."""
    harness = AdmissionHarness()
    job = harness.job()
    harness.admission.created(job, 0)
    harness.admission.accepted(job.ref, 2 * SECOND)
    harness.admission.runs(job.ref, 5 * SECOND, 5 * SECOND)
    harness.admission.runs(job.ref, 4 * SECOND, 6 * SECOND)
    assert 3 * SECOND == harness.admission._tasks[job.ref].low


def test_requests_reserved_for_each_task() -> None:
    """A task needs its reserved polls and one more request, fewer with known durations."""
    harness = AdmissionHarness()
    cycle = harness.table.cycle
    assert GIVE_UP // SLOT // cycle + 1 == harness.admission.reserved_each(0)
    harness.create()
    assert GIVE_UP // SLOT // cycle + 1 == harness.admission.reserved_each(0)
    harness = AdmissionHarness()
    harness.learn(4)
    assert (INSURED + harness.cycle) // SLOT // cycle + 1 == harness.admission.reserved_each(
        harness.now
    )


def test_a_task_without_an_end_counts_if_it_was_seen_running() -> None:
    """A task that is given up counts with its age; one never seen running does not count."""
    harness = AdmissionHarness()
    harness.learn(20)
    kind = next(iter(harness.admission._kinds.values()))
    before = len(kind.durations)
    unseen, seen = harness.create(), harness.create()
    harness.admission.release(unseen)
    assert before == len(kind.durations)
    harness.admission.runs(seen, harness.now + 500 * SECOND, harness.now)
    harness.admission.release(seen)
    assert before + 1 == len(kind.durations)


def test_a_lease_renewed_between_two_reserved_polls() -> None:
    """A poll 2.5 s or more after the last one moves the next reserved poll a cycle behind it."""
    harness = AdmissionHarness()
    ref = harness.create()
    first = harness.table.next_poll(ref)
    apart = 5 * SECOND // 2
    early = first - harness.cycle + apart - SLOT
    harness.admission.runs(ref, early, early)
    assert first == harness.table.next_poll(ref)
    harness.admission.runs(ref, early + SLOT, early + SLOT)
    assert first + apart == harness.table.next_poll(ref)
    # An older answer moves nothing back.
    harness.admission.runs(ref, early, early + SLOT)
    assert first + apart == harness.table.next_poll(ref)


def test_ended_tasks_leave_no_trace() -> None:
    """When all tasks have ended no poll is reserved, and no task is short, young or old."""
    harness = AdmissionHarness()
    harness.learn(30)
    running = harness.fill()
    harness.wait(20)
    for ref in running:
        harness.end(ref)
    kind = next(iter(harness.admission._kinds.values()))
    harness.table.account._settle()
    assert (0, 0, 0, 0) == (
        sum(harness.table.account._reserved),
        len(harness.admission._short),
        len(kind.young),
        len(kind.old),
    )


@settings(max_examples=examples(40))
@given(st.integers(0, 2**32), st.sampled_from([20, 60, 120]), st.floats(2, 60))
def test_every_task_is_insured_whatever_happens(seed: int, insured: int, median: float) -> None:
    """Whatever ends or is lost, each task keeps its reserved polls while it is insured."""
    rng = random.Random(seed)
    harness = AdmissionHarness(insured=insured * SECOND)
    ends: dict[int, float] = {}
    created: dict[int, int] = {}
    for _ in range(120):
        harness.now += rng.choice([SLOT, 4 * SLOT, SECOND, 5 * SECOND])
        harness.poll()
        for ref in [ref for ref, end in ends.items() if end <= harness.now]:
            (harness.lose if rng.random() < 0.02 else harness.end)(ref)
            del ends[ref], created[ref]
        harness.admission.review(harness.now)
        if harness.admits():
            at, ref = harness.now, harness.create()
            lasts = rng.choice([rng.lognormvariate(0, 0.4) * median, rng.uniform(1, 200)])
            ends[ref], created[ref] = at + lasts * SECOND, at
        for ref, at in created.items():
            assert insured * SECOND <= harness.reserved(ref, at) + SLOT
            task = harness.admission._tasks[ref]
            assert task.last == harness.table._tasks[ref].last
            # An old task that is not reserved all is known to be short.
            young = ref in task.kind.young
            assert young or task.last == task.cap or ref in harness.admission._short


def test_after_a_long_stall() -> None:
    """After a stall in which all tasks became too old, the scheduler goes on."""
    harness = AdmissionHarness()
    harness.learn(100)
    running = harness.fill()
    harness.now += 1000 * SECOND
    harness.table.leave(1000, harness.now, SECOND)
    harness.admission.review(harness.now)
    for ref in running:
        harness.admission.release(ref)
    assert harness.admits()


def test_a_horizon_that_grows_slowly() -> None:
    """Polls of young tasks are reserved up to the horizon, however slowly it grows."""
    harness = AdmissionHarness(insured=20 * SECOND)
    harness.learn(20, lasts=60)
    began, running = harness.now, harness.fill()
    last = running.pop()
    task = harness.admission._tasks[last]
    for number, ref in enumerate(running):
        harness.now = max(harness.now, began + round((60 + 1.3 * number) * SECOND))
        harness.end(ref)
        reserved = harness.reserved(last, task.created)
        assert task.kind.outlook is not None
        assert task.kind.outlook.horizon <= reserved or last in harness.admission._short


def test_an_early_poll_leaves_room_for_long_tasks() -> None:
    """An early poll leaves while all tasks that may run long fit, and never while an old task lacks
    polls.
    """
    harness = AdmissionHarness()
    harness.learn(100)
    assert harness.admission.leaves_room(harness.now, 246)
    harness.fill()
    assert harness.admission.leaves_room(harness.now, 246)
    assert not harness.admission.leaves_room(harness.now, 60)
    ref = next(iter(harness.admission._tasks))
    harness.admission._short[ref] = harness.admission._tasks[ref]
    assert not harness.admission.leaves_room(harness.now, 100_000)
