"""Who may be created beside those that run, and until when each of them is promised polls."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfect_async._admission import Admission
from perfect_async._jobs import Job, State
from perfect_async._pace import Pace
from perfect_async._second import SLOT
from perfect_async.models import Limits
from tests.support.searching import examples

SECOND = 1_000_000
GIVE_UP = 600 * SECOND
INSURED = 120 * SECOND


class Desk:
    """Admission at the vendor's limits and a good network; what is created is answered at once."""

    def __init__(self, *, insured: int = INSURED, give_up: int = GIVE_UP) -> None:
        self.pace = Pace(Limits(), lease=10 * SECOND, horizon=give_up)
        self.table = self.pace.table
        for _ in range(300):
            self.pace.network.answered(100_000)
            self.pace.network.polled(failed=False)
        self.pace.cut(0)
        self.admission = Admission(self.pace, insured=insured, give_up=give_up)
        self.cycle = self.table.cycle * SLOT
        self.now = self.ref = 0
        self.give_up = give_up

    def job(self, feature: str = "ai-smile", outputs: int = 1) -> Job:
        self.ref += 1
        return Job(
            self.ref,
            feature,
            1.0,
            uploads=False,
            lane=0,
            state=State.READY,
            outputs=outputs,
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
        limit = self.pace.limit(self.now)
        return self.admission.admits(self.job(feature, outputs), self.now, limit)

    def fill(self, feature: str = "ai-smile", slots: int = 200) -> list[int]:
        """Create as many as are admitted in so many slots from now on."""
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
        """So many tasks ran, one after another; then the window is empty again."""
        for _ in range(count):
            ref = self.create(feature)
            self.wait(lasts)
            self.end(ref)
        self.wait(310)

    def promised(self, ref: int, created: int) -> int:
        """How long after its creation the last promise of `ref` may leave."""
        return self.table._tasks[ref].last * SLOT - created

    def poll(self) -> None:
        """Every promise up to now leaves, and finds its task running."""
        while (first := self.table.first()) is not None and first[0] * SLOT <= self.now:
            self.table.keep(first[1], first[0] * SLOT)
            self.admission.runs(first[1], first[0] * SLOT, self.now)
            self.admission.review(self.now)


def horizon(ends: int, lasts: float, cycle: int) -> int:
    return round((1.2 + 1 / math.sqrt(ends)) * lasts * SECOND) + cycle // 4


# What a task is promised.


def test_strict_before_the_first_end() -> None:
    """Where no durations are known a task is promised polls until it is given up."""
    desk = Desk()
    assert desk.admits()
    ref = desk.create()
    assert GIVE_UP == desk.promised(ref, 0)
    desk.wait(300)
    assert GIVE_UP == desk.promised(ref, 0)


@pytest.mark.parametrize("count", [1, 4, 25])
def test_a_young_task_is_insured(count: int) -> None:
    """A task of a kind that is known is promised polls for 120 s, and one more."""
    desk = Desk()
    desk.learn(count)
    created = desk.now // SLOT * SLOT
    assert INSURED + desk.cycle == desk.promised(desk.create(), created)


def test_a_horizon_beyond_what_is_insured() -> None:
    """Where tasks last longer than they are insured they are promised the horizon."""
    desk = Desk(insured=10 * SECOND)
    desk.learn(4)
    created = desk.now // SLOT * SLOT
    expected = horizon(4, 8, desk.cycle) + desk.cycle
    assert expected // SLOT * SLOT == desk.promised(desk.create(), created)


def test_no_promise_beyond_the_end() -> None:
    """Where the horizon lies behind the time when a task is given up that is the last promise."""
    desk = Desk()
    desk.learn(1, lasts=300)
    created = desk.now // SLOT * SLOT
    assert GIVE_UP == desk.promised(desk.create(), created)


def test_an_old_task_is_promised_all() -> None:
    """From the horizon on a task is promised polls until it is given up."""
    desk = Desk()
    desk.learn(4)
    created = desk.now // SLOT * SLOT
    ref = desk.create()
    desk.wait(horizon(4, 8, desk.cycle) / SECOND - 0.1)
    assert INSURED + desk.cycle == desk.promised(ref, created)
    desk.wait(0.2)
    assert GIVE_UP == desk.promised(ref, created)


def test_young_again() -> None:
    """When the first ends are seen those that run get their promises beyond 120 s taken back."""
    desk = Desk()
    running = desk.create()
    ended = desk.create()
    desk.wait(8)
    assert GIVE_UP == desk.promised(running, 0)
    desk.end(ended)
    assert INSURED + desk.cycle == desk.promised(running, 0)


def test_the_whole_time_insured() -> None:
    """Who is insured until tasks are given up is strict whatever is known."""
    desk = Desk(insured=GIVE_UP)
    desk.learn(20)
    created = desk.now // SLOT * SLOT
    assert GIVE_UP == desk.promised(desk.create(), created)
    assert 7 == 1 + len(desk.fill())


def test_strict_after_a_loss() -> None:
    """After a loss nothing is believed until 30 more have ended."""
    desk = Desk()
    desk.learn(4)
    running, lost = desk.create(), desk.create()
    created = desk.now // SLOT * SLOT
    desk.wait(8)
    desk.lose(lost)
    assert GIVE_UP == desk.promised(running, created)
    desk.end(running)
    for left in range(29, 0, -1):
        created, ref = desk.now // SLOT * SLOT, desk.create()
        assert GIVE_UP == desk.promised(ref, created), left
        desk.wait(8)
        desk.end(ref)
    created = desk.now // SLOT * SLOT
    assert INSURED + desk.cycle == desk.promised(desk.create(), created)


def test_strict_under_foreign_use() -> None:
    """While the key seems to be used elsewhere nothing is believed."""
    desk = Desk()
    desk.learn(4)
    created, ref = desk.now // SLOT * SLOT, desk.create()
    desk.pace.allowance.wary_until = desk.now + 5 * SECOND
    desk.wait(1)
    assert GIVE_UP == desk.promised(ref, created)
    desk.wait(4)
    assert INSURED + desk.cycle == desk.promised(ref, created)


# What fits.


def test_how_many_fit() -> None:
    """Seven where nothing is known, twice as many insured for 120 s, three times with less."""
    strict, insured, bold = Desk(), Desk(), Desk(insured=20 * SECOND)
    for desk in (insured, bold):
        desk.learn(100)
    counts = [len(desk.fill()) for desk in (strict, insured, bold)]
    assert 7 == counts[0]
    assert 13 <= counts[1] <= 17
    assert 20 < counts[2]


def test_full_is_full_until_news_or_the_next_bucket() -> None:
    """What did not fit is not asked again before something happens; then it may fit."""
    desk = Desk()
    running = desk.fill()
    assert not desk.admits()
    assert not desk.admits()
    desk.now += SECOND
    assert not desk.admits()
    desk.end(running[0])
    assert desk.admits()


def test_no_free_phase() -> None:
    """Where every phase near is taken nothing is admitted, and a second later again."""
    desk = Desk()
    slot = desk.now // SLOT
    for at in range(slot - desk.table.cycle // 4 - 40, slot + 40):
        if desk.table.free(at):
            desk.table._phases.take(at)
    assert None is desk.table.origin(slot)
    assert not desk.admits()
    desk.now += 5 * SECOND
    assert desk.admits()


def test_those_that_run_long_are_in_the_way() -> None:
    """The longer those that run have been seen to, the fewer fit beside them."""
    seen: list[int] = []
    for low in (0.0, 7.5):
        desk = Desk(insured=20 * SECOND)
        desk.learn(100)
        for _ in range(5):
            ref = desk.create()
            desk.now += 6 * SLOT
            desk.admission.runs(ref, desk.now + round(low * SECOND), desk.now)
        seen.append(len(desk.fill()))
    assert seen[0] > seen[1] + 3


def test_an_old_task_that_does_not_fit() -> None:
    """Where old tasks have no promise to their ends nothing is created, until there is room."""
    desk = Desk()
    desk.learn(100)
    running = desk.fill()
    created = desk.now
    desk.wait(14)
    assert 10 < len(running)
    seen: list[list[bool]] = []
    while not desk.admits():
        seen.append([desk.promised(ref, created) > 500 * SECOND for ref in running])
        # The oldest come first.
        assert sorted(seen[-1], reverse=True) == seen[-1]
        # Nobody sees how long it lasted: nothing else changes.
        desk.admission.release(running.pop())
        desk.wait(1)
    assert not any(seen[0])
    assert any(any(some) for some in seen)
    assert all(desk.promised(ref, created) > 500 * SECOND for ref in running)
    assert 5 <= len(running) <= 7


def test_room_belongs_to_the_old_first() -> None:
    """Room that comes as time goes by is not for new tasks before old ones have their promises."""
    desk = Desk()
    desk.learn(100)
    running, created = [], desk.now
    for _ in range(6):
        created = desk.now
        running.append(desk.create())
        desk.now += 10 * SLOT
    for number in range(1000, 1120):
        desk.table.leave(number, desk.now, SECOND)
        desk.table.answered(number, desk.now)
    desk.wait(14)
    assert desk.promised(running[-1], created) < 200 * SECOND
    desk.now += 300 * SECOND
    assert not desk.admits()
    desk.wait(0)
    assert GIVE_UP == desk.promised(running[-1], created)
    assert desk.admits()


def test_short_ones_get_one_more_poll() -> None:
    """A task whose promises are used up is promised its next poll, of those kept for tries if need
    be.
    """
    desk = Desk()
    desk.learn(100)
    running = desk.fill()
    lapsed: set[int] = set()
    for _ in range(250):
        desk.wait(1)
        before = {ref: desk.table._tasks[ref].last for ref in running}
        desk.poll()
        for ref in running:
            task = desk.table._tasks[ref]
            if ref in desk.admission._short and before[ref] < task.last:
                assert task.last <= before[ref] + desk.table.cycle
                lapsed.add(ref)
    assert lapsed
    # Those that can be kept for the whole time were never among them.
    assert running[0] not in lapsed


def test_beside_a_kind_that_nobody_knows() -> None:
    """Tasks of a kind without an end stand in the way until they are given up."""
    bold, beside = Desk(insured=20 * SECOND), Desk(insured=20 * SECOND)
    for desk in (bold, beside):
        desk.learn(100)
    for _ in range(4):
        beside.create("ai-avatar")
        beside.now += 10 * SLOT
    assert len(bold.fill()) > len(beside.fill()) + 4
    assert 3 >= len(beside.fill("ai-avatar"))


def test_what_is_not_known_is_admitted_strictly() -> None:
    """A kind without an end gets no more than strict, however well another is known."""
    desk = Desk()
    desk.learn(100)
    assert 7 == len(desk.fill("ai-avatar"))


# Kinds.


@pytest.mark.parametrize(("feature", "outputs"), [("ai-avatar", 1), ("ai-smile", 4)])
def test_kinds_share_no_evidence(feature: str, outputs: int) -> None:
    """Of another feature, or with another number of outputs, tasks last as long as they like."""
    desk = Desk()
    desk.learn(10)
    created = desk.now // SLOT * SLOT
    known, other = desk.create(), desk.create(feature, outputs)
    assert INSURED + desk.cycle == desk.promised(known, created)
    assert GIVE_UP == desk.promised(other, created)


def test_sixty_four_kinds_are_remembered() -> None:
    """The kind that was used longest ago is forgotten first, and none that runs."""
    desk = Desk()
    running = desk.create("first")
    for number in range(100):
        ref = desk.create(f"feature {number}")
        desk.wait(1)
        desk.end(ref)
        assert 64 >= len(desk.admission._kinds)
    names = {name for name, _ in desk.admission._kinds}
    assert {"first", *(f"feature {number}" for number in range(37, 100))} == names
    desk.end(running)


def test_what_a_job_says_of_its_kind() -> None:
    """What is documented of a kind counts beside its first ends."""
    ends = []
    for usual in (None, (40 * SECOND, 60 * SECOND)):
        desk = Desk()
        for ref in (1, 2):
            job = Job(ref, "ai-smile", 1.0, uploads=False, lane=0, state=State.READY, usual=usual)
            job.given_up = 600 * SECOND
            desk.admission.created(job, 0)
        desk.now = 8 * SECOND
        desk.end(1)
        ends.append(desk.admission.likely_end(2))
    assert [4 * SECOND, 50 * SECOND] == ends


# What is asked of it.


def test_the_likely_end() -> None:
    """Nobody knows before the first end; then what most have ended by, from its creation."""
    desk = Desk()
    first, second, third = desk.create(), desk.create(), desk.create()
    assert None is desk.admission.likely_end(second)
    desk.now = 4 * SECOND
    desk.admission.runs(first, 4 * SECOND, desk.now)
    desk.now = 8 * SECOND
    desk.end(first)
    assert 6 * SECOND == desk.admission.likely_end(second)
    desk.admission.runs(second, 7 * SECOND, desk.now)
    assert 7 * SECOND + desk.cycle // 2 == desk.admission.likely_end(second)
    assert 6 * SECOND == desk.admission.likely_end(third)


def test_an_age_counts_from_the_answer() -> None:
    """A task has run for sure only since the answer to its creation."""
    desk = Desk()
    job = desk.job()
    desk.admission.created(job, 0)
    desk.admission.accepted(job.ref, 2 * SECOND)
    desk.admission.runs(job.ref, 5 * SECOND, 5 * SECOND)
    desk.admission.runs(job.ref, 4 * SECOND, 6 * SECOND)
    assert 3 * SECOND == desk.admission._tasks[job.ref].low


def test_what_a_task_keeps_to_itself() -> None:
    """As many requests as promises and one: fewer once durations are known."""
    desk = Desk()
    cycle = desk.table.cycle
    assert GIVE_UP // SLOT // cycle + 1 == desk.admission.promised(0)
    desk.create()
    assert GIVE_UP // SLOT // cycle + 1 == desk.admission.promised(0)
    desk = Desk()
    desk.learn(4)
    assert (INSURED + desk.cycle) // SLOT // cycle + 1 == desk.admission.promised(desk.now)


def test_what_did_not_end_is_evidence_where_it_was_seen_to_run() -> None:
    """A task that is given up tells how long it ran; one never seen to run tells nothing."""
    desk = Desk()
    desk.learn(20)
    kind = next(iter(desk.admission._kinds.values()))
    before = len(kind.durations)
    unseen, seen = desk.create(), desk.create()
    desk.admission.release(unseen)
    assert before == len(kind.durations)
    desk.admission.runs(seen, desk.now + 500 * SECOND, desk.now)
    desk.admission.release(seen)
    assert before + 1 == len(kind.durations)


def test_a_lease_renewed_between_two_promises() -> None:
    """The next promise moves a cycle behind a poll that came 2.5 s after the last, not sooner."""
    desk = Desk()
    ref = desk.create()
    first = desk.table.next_poll(ref)
    apart = 5 * SECOND // 2
    early = first - desk.cycle + apart - SLOT
    desk.admission.runs(ref, early, early)
    assert first == desk.table.next_poll(ref)
    desk.admission.runs(ref, early + SLOT, early + SLOT)
    assert first + apart == desk.table.next_poll(ref)
    # An older answer moves nothing back.
    desk.admission.runs(ref, early, early + SLOT)
    assert first + apart == desk.table.next_poll(ref)


def test_it_ends_without_a_trace() -> None:
    """When all have ended nothing is promised, short, young or old."""
    desk = Desk()
    desk.learn(30)
    running = desk.fill()
    desk.wait(20)
    for ref in running:
        desk.end(ref)
    kind = next(iter(desk.admission._kinds.values()))
    desk.table.account._settle()
    assert (0, 0, 0, 0) == (
        sum(desk.table.account._promised),
        len(desk.admission._short),
        len(kind.young),
        len(kind.old),
    )


@settings(max_examples=examples(40))
@given(st.integers(0, 2**32), st.sampled_from([20, 60, 120]), st.floats(2, 60))
def test_every_task_is_insured_whatever_happens(seed: int, insured: int, median: float) -> None:
    """Whatever ends, is lost or stays, each task keeps its promises for as long as is insured."""
    rng = random.Random(seed)
    desk = Desk(insured=insured * SECOND)
    ends: dict[int, float] = {}
    created: dict[int, int] = {}
    for _ in range(120):
        desk.now += rng.choice([SLOT, 4 * SLOT, SECOND, 5 * SECOND])
        desk.poll()
        for ref in [ref for ref, end in ends.items() if end <= desk.now]:
            (desk.lose if rng.random() < 0.02 else desk.end)(ref)
            del ends[ref], created[ref]
        desk.admission.review(desk.now)
        if desk.admits():
            at, ref = desk.now, desk.create()
            lasts = rng.choice([rng.lognormvariate(0, 0.4) * median, rng.uniform(1, 200)])
            ends[ref], created[ref] = at + lasts * SECOND, at
        for ref, at in created.items():
            assert insured * SECOND <= desk.promised(ref, at) + SLOT
            task = desk.admission._tasks[ref]
            assert task.last == desk.table._tasks[ref].last
            # An old task that is not promised all is known to be short.
            young = ref in task.kind.young
            assert young or task.last == task.cap or ref in desk.admission._short


def test_after_oversleeping() -> None:
    """Who wakes up when all that ran is too old long since goes on."""
    desk = Desk()
    desk.learn(100)
    running = desk.fill()
    desk.now += 1000 * SECOND
    desk.table.leave(1000, desk.now, SECOND)
    desk.admission.review(desk.now)
    for ref in running:
        desk.admission.release(ref)
    assert desk.admits()


def test_a_horizon_that_creeps() -> None:
    """However slowly the horizon moves, a young task is promised polls up to it."""
    desk = Desk(insured=20 * SECOND)
    desk.learn(20, lasts=60)
    began, running = desk.now, desk.fill()
    last = running.pop()
    task = desk.admission._tasks[last]
    for number, ref in enumerate(running):
        desk.now = max(desk.now, began + round((60 + 1.3 * number) * SECOND))
        desk.end(ref)
        promised = desk.promised(last, task.created)
        assert task.kind.outlook is not None
        assert task.kind.outlook.horizon <= promised or last in desk.admission._short


def test_an_early_poll_takes_nothing_from_a_suspect() -> None:
    """What nobody was promised leaves while there is room for all that may run long, and never
    beside an old task that has no promise to its end.
    """
    desk = Desk()
    desk.learn(100)
    assert desk.admission.spares(desk.now, 246)
    desk.fill()
    assert desk.admission.spares(desk.now, 246)
    assert not desk.admission.spares(desk.now, 60)
    ref = next(iter(desk.admission._tasks))
    desk.admission._short[ref] = desk.admission._tasks[ref]
    assert not desk.admission.spares(desk.now, 100_000)
