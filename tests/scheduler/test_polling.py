"""How running tasks are polled: reserved polls, notifications, retries and early polls."""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from perfect_async import events as ev
from perfect_async._time import NEVER, SLOT
from perfect_async.errors import (
    ConfigurationError,
    RateLimited,
    ServiceUnavailable,
    TaskExpired,
    TaskFailed,
)
from perfect_async.events import TaskKind
from perfect_async.models import Completion, Limits, Polling
from perfect_async.scheduler import Scheduler
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._pacer import Pacer
from perfect_async.scheduler._polling import (
    ExtraPolls,
    LeasePolling,
    PollQueue,
    WebhookPolling,
    strategies,
)
from tests.scheduler import test_scheduler
from tests.scheduler.test_scheduler import SECOND, Flight, World, dump
from tests.support.scheduler_harness import SchedulerHarness
from tests.support.searching import examples

SMILE = TaskKind("ai-smile")
WEBHOOK = Polling(completion="webhook")
BOTH = Polling(completion="both")
DOWN = ServiceUnavailable("down")


class NotifyingWorld(World):
    """A world whose vendor sends notifications at `offsets(end)`, in microseconds.

    With completion="webhook" a lease is no matter.
    """

    def __init__(self, *given: Limits | Polling | None, **more: object) -> None:
        super().__init__(*given, **more)  # type: ignore[arg-type]
        self.offsets: Callable[[random.Random], Iterable[int]] = lambda _: (0,)
        self.lifted = self.polling.completion == "webhook"
        self.notified: list[tuple[int, int]] = []

    def vendor(self, command: ev.Request | ev.Upload) -> ev.Answer:
        if self.lifted and isinstance(command, ev.Poll):
            self.tasks[command.ref].seen = self.now
        answer = super().vendor(command)
        if isinstance(command, ev.Submit) and isinstance(answer, ev.Accepted):
            for offset in self.offsets(self.rng):
                at = max(self.now, self.tasks[command.ref].ends + offset)
                self.order += 1
                note = Flight(command, self.now, 0, 0)
                heapq.heappush(self.queue, (at, self.order, "notify", note, None))
        return answer

    def happen(self) -> None:
        if self.queue[0][2] == "notify":
            command = heapq.heappop(self.queue)[3].command
            assert isinstance(command, ev.Submit)
            self.notify(command.ref)
        else:
            super().happen()

    def notify(self, ref: int) -> None:
        self.notified.append((self.now, ref))
        self.tell(ev.Notified(ref))

    def polls(self, ref: int = 1) -> list[float]:
        """Return when the task was polled, in seconds after the answer to its creation."""
        created = next(
            at for at, each in self.sent if isinstance(each, ev.Submit) and each.ref == ref
        )
        return [
            round((at - created) / SECOND, 1)
            for at, each in self.sent
            if isinstance(each, ev.Poll) and each.ref == ref
        ]


def one_task(
    polling: Polling = WEBHOOK, lasts: float = 30.0, offsets: Iterable[float] = (0.0,)
) -> NotifyingWorld:
    """Return a world of one task of `lasts` seconds, announced at these offsets from its end."""
    world = NotifyingWorld(None, polling)
    given = [round(each * SECOND) for each in offsets]
    world.offsets, world.duration = lambda _: given, lambda _: lasts
    world.round_trip = lambda _: 100_000
    world.want(uploads=False)
    return world


# One task.


def test_two_requests_with_webhooks() -> None:
    """A task is not polled between its creation and its notification, however long that takes."""
    world = one_task(lasts=200)
    world.finish()

    assert Counter(Submit=1, Poll=1, Settle=1) == world.kinds()
    assert [200.1] == pytest.approx(world.polls(), abs=0.2)


def test_a_notification_ends_the_wait() -> None:
    """With both, polls keep the task alive, and a notification ends the wait."""
    world = one_task(BOTH, lasts=20)
    world.finish()

    assert 20.1 == pytest.approx(world.polls()[-1], abs=0.2)
    assert world.polls()[0] < 10
    assert ev.Succeeded is type(world.settled[1].ending)


@pytest.mark.parametrize("polling", [WEBHOOK, BOTH])
def test_an_early_notification(polling: Polling) -> None:
    """A task that still runs after its notification is polled again with growing pauses."""
    world = one_task(polling, lasts=60, offsets=[-40.0])
    world.finish()
    asked = [at for at in world.polls() if at > 19.9]

    assert ev.Succeeded is type(world.settled[1].ending)
    if polling is WEBHOOK:
        assert [20.1, 22.2, 26.3, 34.4, 50.5, 82.6] == pytest.approx(asked, abs=0.6)


@pytest.mark.parametrize("polling", [WEBHOOK, BOTH])
@pytest.mark.parametrize("offsets", [(0, 0), (0, 0.05), (0, 5, 500), (0,) * 30])
def test_double_and_late(polling: Polling, offsets: tuple[float, ...]) -> None:
    """Repeated notifications cost a poll or two at most, and none after the end."""
    world = one_task(polling, offsets=offsets)
    world.finish()
    polls = [at for at in world.polls() if at > 29]
    world.run(world.now + 1000 * SECOND)

    assert 1 <= len(polls) <= 2 + (polling is BOTH)
    assert len(polls) == len([at for at in world.polls() if at > 29])


def test_a_notification_without_a_task_changes_nothing() -> None:
    """A notification of a job that has ended, is unknown or was not created changes nothing."""
    world = one_task()
    world.finish()
    world.tell(ev.JobAdded(7, SMILE, 1.0, uploads=True))
    world.perform()
    world.scheduler.due(world.now)
    before = dump(world.scheduler)
    for ref in (1, 7, 99):
        world.tell(ev.Notified(ref))
        world.scheduler.due(world.now)
        assert before == dump(world.scheduler)


@pytest.mark.parametrize(
    ("usual", "lasts", "expected"),
    [(20.0, 10.0, [40.1]), (20.0, 300.0, [40.1, 160, 280, 420]), (None, 10.0, [240.1])],
)
def test_a_lost_notification(usual: float | None, lasts: float, expected: list[float]) -> None:
    """A task that is long overdue is polled, at growing intervals."""
    world = one_task(lasts=lasts, offsets=())
    job = world.scheduler._state.jobs[1]
    job.kind = TaskKind("ai-smile", usual=None if usual is None else (0, round(usual * SECOND)))
    world.finish()

    assert expected == pytest.approx(world.polls(), abs=1.5)
    assert ev.Succeeded is type(world.settled[1].ending)


@pytest.mark.parametrize("give_up", [10, 60, 120, 600])
def test_once_more_before_it_is_given_up(give_up: int) -> None:
    """A task without a notification is polled while there is time for a retry."""
    polling = Polling(completion="webhook", give_up_after=give_up)
    world = one_task(polling, lasts=give_up / 3, offsets=())
    world.finish()
    stuck = one_task(polling, lasts=10_000, offsets=())
    stuck.finish()

    assert ev.Succeeded is type(world.settled[1].ending)
    assert ["TaskAbandoned"] == list(stuck.endings())
    assert give_up - 10 <= stuck.polls()[-2] < stuck.polls()[-1] < give_up
    assert len(stuck.polls()) < 10


def test_failed_polls_are_retried_at_growing_intervals() -> None:
    """With webhooks an outage of ten minutes costs a dozen polls, and not the window."""
    world = one_task(Polling(completion="webhook", give_up_after=1200), lasts=20)
    world.fate = lambda command: (
        ev.NoAnswer(command, DOWN)
        if isinstance(command, ev.Poll) and world.now < 600 * SECOND
        else None
    )
    world.finish()
    polls = world.polls()

    assert ev.Succeeded is type(world.settled[1].ending)
    assert [20.1, 25.2, 35.3, 55.4, 95.5, 155.6] == pytest.approx(polls[:6], abs=1)
    assert len(polls) < 15


def test_a_refused_poll_is_retried() -> None:
    """A 429 to the poll after a notification delays the result by seconds."""
    world = one_task(lasts=20)
    full = RateLimited("Too many requests", status=429)
    refused = iter([True])
    world.fate = lambda command: (
        ev.Limited(command, full) if isinstance(command, ev.Poll) and next(refused, None) else None
    )
    world.finish()

    assert [20.1, 26.2] == pytest.approx(world.polls(), abs=0.6)


def test_an_announced_poll_that_fails_is_retried_before_the_next_reserved_one() -> None:
    """With both, the result comes seconds after the notification, though the first poll failed."""
    world = one_task(BOTH, lasts=20)
    world.fate = lambda command: (
        ev.NoAnswer(command, DOWN)
        if isinstance(command, ev.Poll) and 20 * SECOND <= world.now <= 20.2 * SECOND
        else None
    )
    world.finish()

    assert world.settled_at[1] < 24.5 * SECOND


def test_an_answer_that_never_comes() -> None:
    """A hanging poll is followed by another one; its late answer changes nothing."""
    world = one_task(lasts=20)
    slow = iter([40_000_000])
    world.round_trip = lambda command: (
        next(slow, 100_000) if isinstance(command, ev.Poll) else 100_000
    )
    world.finish()
    ended = world.settled_at[1]
    world.run(world.now + 100 * SECOND)

    assert [20.1, 30.2] == pytest.approx(world.polls(), abs=0.6)
    assert ended < 31 * SECOND


def test_an_unknown_task_is_polled_once_more() -> None:
    """With webhooks "unknown" is final only the second time."""
    world = one_task(lasts=60)
    world.fate = lambda command: (
        ev.TaskUnknown(command, TaskExpired("unknown")) if isinstance(command, ev.Poll) else None
    )
    world.finish()

    assert {"TaskExpired": 1} == world.endings()
    assert [60.1, 65.2] == pytest.approx(world.polls(), abs=0.6)


def test_a_failure_of_the_engine_is_tried_again() -> None:
    """An announced failure that may pass creates a new task with its own notification."""
    world = one_task(lasts=30)
    failures = iter([True])
    failed = TaskFailed("x", code="error_inference", passing=True)
    world.fate = lambda command: (
        ev.EngineFailed(command, failed, True)
        if isinstance(command, ev.Poll) and next(failures, None)
        else None
    )
    world.finish()

    assert Counter(Submit=2, Poll=2, Settle=1) == world.kinds()
    assert {"Succeeded": 1} == world.endings()
    assert 61 * SECOND > world.now


@pytest.mark.parametrize("completion", ["webhook", "both"])
def test_an_adopted_task(completion: Completion) -> None:
    """An adopted task is polled at once, and soon again if it was announced before."""
    world = one_task(Polling(completion=completion))
    world.tasks[5] = test_scheduler.Task(3 * SECOND, 0)
    world.jobs[5] = 1.0
    world.tell(ev.TaskAdopted(5, SMILE, 1.0, "task-5", age=60 * SECOND))
    world.tell(ev.Notified(5))
    world.finish()

    assert ev.Succeeded is type(world.settled[5].ending)
    assert world.settled_at[5] < 7 * SECOND


def test_an_old_adopted_task_is_polled_again() -> None:
    """An adopted task that is about to be given up is polled a second time."""
    world = one_task()
    world.tasks[5] = test_scheduler.Task(8 * SECOND, 0)
    world.jobs[5] = 1.0
    world.tell(ev.TaskAdopted(5, SMILE, 1.0, "task-5", age=3600 * SECOND))
    world.finish()

    assert ev.Succeeded is type(world.settled[5].ending)


def test_closing_polls_running_tasks_at_once() -> None:
    """Running tasks of a client that closes are polled at once, since it does not wait."""
    world = one_task(lasts=12, offsets=[60])
    world.run(5 * SECOND)
    world.tell(ev.ChannelClosed(0))
    world.finish()

    assert [5.0, 7.1, 11.2, 19.3] == pytest.approx(world.polls(), abs=0.6)


def test_abandoned_tasks_are_not_polled() -> None:
    """After a client was aborted, a notification of its tasks causes no poll."""
    world = one_task(lasts=12)
    world.run(5 * SECOND)
    world.tell(ev.ChannelAborted(0))
    world.run(100 * SECOND)

    assert {"TaskAbandoned": 1} == world.endings()
    assert [] == world.polls()


# Many tasks.


@pytest.mark.parametrize("early", [0.0, 0.3])
@pytest.mark.parametrize("lasts", [8.0, 60.0])
def test_results_do_not_wait_for_a_period(lasts: float, early: float) -> None:
    """Creations never fill the window, also if notifications come too early."""
    world = NotifyingWorld(None, WEBHOOK, seed=3)
    world.duration = lambda rng: lasts * rng.lognormvariate(0, 0.35)
    world.offsets = lambda rng: (-3 * SECOND if rng.random() < early else 0,)
    for _ in range(300):
        world.want()
    world.finish()
    waits = sorted(at - world.tasks[ref].ends for ref, at in world.settled_at.items())

    assert {"Succeeded": 300} == world.endings()
    assert waits[284] < 6 * SECOND
    assert early or waits[-1] < 3 * SECOND
    assert early or world.kinds()["Poll"] <= 303
    # Two for each, 250 in 300 s.
    assert early or world.now < (700 if lasts == 8 else 830) * SECOND


def test_queries_leave_the_requests_for_results() -> None:
    """Announced tasks are polled however many queries there are."""
    world = NotifyingWorld(None, WEBHOOK)
    world.duration = lambda _: 40.0
    for _ in range(60):
        world.want()
    for number in range(400):
        world.tell(ev.QueryAdded(1_000_000 + number))
    world.finish(100)
    waits = [
        at - world.tasks[ref].ends for ref, at in world.settled_at.items() if ref in world.tasks
    ]

    assert 60 == len(waits)
    assert max(waits) < 15 * SECOND


@pytest.mark.parametrize("lost", [0.1, 1.0])
def test_ends_found_late_do_not_count_as_durations(lost: float) -> None:
    """Ends that were found late do not count as durations, so no task is given up for them."""
    world = NotifyingWorld(None, WEBHOOK, seed=5)
    world.duration = lambda _: 60.0
    world.offsets = lambda rng: () if rng.random() < lost else (0,)
    for _ in range(200):
        world.want(uploads=False)
    world.finish()
    waits = [at - world.tasks[ref].ends for ref, at in world.settled_at.items()]

    assert {"Succeeded": 200} == world.endings()
    assert max(waits) < 200 * SECOND


def test_the_overdue_time_is_learned() -> None:
    """After many announced ends a lost one is found sooner than by the documented duration."""
    world = NotifyingWorld(None, WEBHOOK)
    world.duration = lambda _: 8.0
    for _ in range(400):
        world.want(uploads=False)
    world.finish()
    world.offsets = lambda _: ()
    last = world.want(uploads=False)
    world.finish()

    # Nothing is documented of these: 240 s.
    assert [16.5] == pytest.approx(world.polls(last), abs=1)


@pytest.mark.parametrize("requests", [1, 2])
def test_limits_without_room_for_a_task_are_refused(requests: int) -> None:
    """A task needs three requests of a window; with fewer the first one would wait for ever."""
    with pytest.raises(ConfigurationError, match="it needs 3 requests"):
        Scheduler(Limits(requests), WEBHOOK)


def test_three_requests_are_enough_with_webhooks() -> None:
    """With three requests of a window all tasks are created and end."""
    world = NotifyingWorld(Limits(3), WEBHOOK)
    for _ in range(3):
        world.want()
    world.finish()
    assert Counter(Succeeded=3) == world.endings()


def test_the_estimate_with_webhooks() -> None:
    """With webhooks the estimate counts two requests for each job, and no polls."""
    world = NotifyingWorld(None, WEBHOOK)
    world.duration = lambda _: 60.0
    for _ in range(60):
        world.want(uploads=False)
    world.finish()
    eta = world.scheduler.eta(1000, 0, world.now)

    assert eta is not None
    assert 2000 < eta < 3000
    assert 0.0 == world.scheduler.eta(0, 0, world.now)
    assert None is Scheduler(Limits(), WEBHOOK).eta(1, 0, 0)


def test_the_estimate_of_a_few_jobs() -> None:
    """Jobs that fit into the window together take as long as one of them."""
    world = one_task(lasts=60)
    world.finish()
    world.run(world.now + 400 * SECOND)
    eta = world.scheduler.eta(50, 0, world.now)

    assert eta is not None
    assert 30 < eta < 70


# The keepers by themselves.


class WebhookHarness:
    """A `WebhookPolling` and jobs for it."""

    def __init__(self) -> None:
        self.pacer = Pacer(Limits(), lease=10 * SECOND, horizon=600 * SECOND)
        self.poll_queue = PollQueue()
        self.waking = WebhookPolling(self.pacer, self.poll_queue, interval=2 * SECOND)

    def job(self, ref: int, now: int = 0) -> ScheduledJob:
        job = ScheduledJob(ref, SMILE, 1.0, uploads=False, channel=0, state=JobState.RUNNING)
        job.given_up = now + 600 * SECOND
        self.waking.created(job, now)
        self.waking.accepted(job, now)
        return job


def test_held_requests() -> None:
    """A task holds a request, another until wasted polls are known, and a margin."""
    bench = WebhookHarness()
    assert 0 == bench.waking.held
    jobs = [bench.job(ref) for ref in range(100)]
    assert 100 + 100 + 20 == bench.waking.held
    for job in jobs[:95]:
        job.announced = 1
        bench.waking.release(job, ended=SECOND, lost=False)
    assert 5 + 1 + 2 == bench.waking.held


def test_at_most_three_wasted_polls_are_held() -> None:
    """A task does not hold the window, however many polls failed in an outage."""
    bench = WebhookHarness()
    jobs = [bench.job(ref) for ref in range(9)]
    for _ in range(100):
        bench.waking.failed(jobs[0], 0)
    assert 9 + 27 + 10 == bench.waking.held


def test_wasted_polls_are_forgotten() -> None:
    """After some hundred tasks with one poll each, few more requests are held."""
    bench = WebhookHarness()
    jobs = [bench.job(ref) for ref in range(1000)]
    for _ in range(300):
        bench.waking.failed(jobs[0], 0)
    for job in jobs[:900]:
        bench.waking.release(job, ended=None, lost=False)
    assert bench.waking.held < 100 + 30 + 12


def test_polls_are_ordered_by_time() -> None:
    """The last time for a job counts, and a job that no longer runs is dropped."""
    bench, asks = WebhookHarness(), PollQueue()
    first, second = bench.job(1), bench.job(2)
    assert NEVER == asks.wakes()
    asks.put(first, 30)
    asks.put(second, 20)
    asks.put(first, 10)
    asks.put(first, 40)
    asks.tidy()
    assert (20, 2) == (asks.wakes(), asks.first())
    second.state = JobState.ENDED
    asks.tidy()
    assert (40, 1) == (asks.wakes(), asks.first())


@pytest.mark.parametrize(
    ("completion", "kept"), [(None, True), ("poll", True), ("both", True), ("webhook", False)]
)
def test_which_strategy(completion: Completion | None, kept: bool) -> None:
    """Tasks are polled only after notifications if `completion` is "webhook"."""
    pacer = Pacer(Limits(), lease=10 * SECOND, horizon=600 * SECOND)
    keeping, strategy = strategies(pacer, PollQueue(), Polling(completion=completion))

    assert isinstance(keeping, LeasePolling)
    assert kept is (strategy is keeping)
    assert 0 == keeping.held
    assert kept is not isinstance(strategy, WebhookPolling)


def test_limits_that_could_keep_nothing_alive() -> None:
    """With webhooks ten requests per period are enough."""
    limits = Limits(10, 300.0, 1)
    world = NotifyingWorld(limits, WEBHOOK)
    world.round_trip = lambda _: 100_000
    for _ in range(8):
        world.want(uploads=False)
    world.finish()

    assert {"Succeeded": 8} == world.endings()


# Anything in any order.


SETTINGS = tuple(
    (limits, Polling(lease=lease, give_up_after=give_up, completion=completion))
    for limits, lease, give_up in (
        (Limits(), 10, 120),
        (Limits(60, 30.0, 2), 6, 30),
        (Limits(300, 60.0, 7), 5, 20),
    )
    for completion in ("webhook", "both")
)


class Notifying(test_scheduler.Machine):
    """The machine without webhooks, where any notification may come at any time."""

    @initialize(
        setting=st.sampled_from(SETTINGS),
        seed=st.integers(0, 2**32),
        faults=st.sampled_from(["none", "network", "all"]),
        notes=st.sampled_from(["all", "none", "wild"]),
    )
    def begin(self, setting: tuple[Limits, Polling], seed: int, faults: str, notes: str) -> None:
        self.world = world = NotifyingWorld(*setting, seed=seed)
        self.faults, self.rng = faults, world.rng
        self.channels, self.asked = set(), 0
        if faults != "none":
            world.round_trip, world.fate = self.round_trip, self.fate
        insured = setting[1].insured
        world.duration = lambda rng: min(rng.lognormvariate(2, 0.6), insured)
        if notes != "all":
            world.offsets = lambda rng: [
                round(rng.uniform(-20, 60) * SECOND)
                for _ in range(rng.randrange(4) * (notes == "wild"))
            ]

    @rule(data=st.data())
    def notified(self, data: st.DataObject) -> None:
        """Notify for a job in any state, or for none."""
        ref = data.draw(st.integers(1, len(self.world.jobs) + 3))
        self.world.tell(ev.Notified(ref))
        self.world.perform()

    @invariant()
    def asks_hold(self) -> None:
        """Check that each running task with webhooks has a poll before it is given up."""
        if not hasattr(self, "world"):
            return
        state = self.world.scheduler._state
        if not state.keeps_alive:
            for job in state.jobs.values():
                if job.state is JobState.RUNNING:
                    assert job.ask_at is not None
                    assert job.ask_at < max(job.given_up, self.world.now) + 4 * SECOND


TestNotifying = Notifying.TestCase
TestNotifying.settings = settings(max_examples=examples(12), stateful_step_count=20)
TestNotifying.pytestmark = [pytest.mark.timeout(900)]  # type: ignore[attr-defined]


@settings(max_examples=examples(10))
@given(
    seed=st.integers(0, 2**32),
    lost=st.sampled_from([0.0, 0.5, 1.0]),
    completion=st.sampled_from(["webhook", "both"]),
    count=st.integers(1, 60),
)
def test_nothing_hangs(seed: int, lost: float, completion: Completion, count: int) -> None:
    """Each task is found before it is given up, whichever notifications come."""
    world = NotifyingWorld(None, Polling(completion=completion), seed=seed)
    world.offsets = lambda rng: (
        () if rng.random() < lost else (round(rng.uniform(-10, 30) * SECOND),)
    )
    world.duration = lambda rng: min(rng.lognormvariate(3, 0.7), 110)
    for _ in range(count):
        world.want()
    world.finish()

    assert {"Succeeded": count} == world.endings()
    assert NEVER > world.now


# Polls beside the reserved ones.


class ExtraPollsHarness:
    def __init__(self) -> None:
        self.pacer = Pacer(Limits(), lease=10 * SECOND, horizon=120 * SECOND)
        self.extra_polls = ExtraPolls(self.pacer, lease=10 * SECOND, interval=2 * SECOND)
        self.job = ScheduledJob(
            1, TaskKind("ai-smile"), 1.0, uploads=False, channel=0, state=JobState.RUNNING
        )
        self.pacer.table.reserve(1, 0, 120 * SECOND // SLOT)
        self.pacer.table.arm(1)
        self.extra_polls.created(self.job)
        self.cycle = self.pacer.table.cycle * SLOT
        self.patience = self.pacer.network.patience


def wakes(extra: ExtraPolls) -> list[int]:
    """Return when each queue that is not empty wakes."""
    return [at for at in (extra.try_at(), extra.early_at(), extra.likely_at()) if at != NEVER]


def first(queue: list[tuple[int, int, ScheduledJob]]) -> tuple[int, int] | None:
    """Return the ref and time of the first task of a queue, or None."""
    at, ref, _ = queue[0]
    return None if at == NEVER else (at, ref)


def test_an_early_poll_after_the_interval() -> None:
    """The first early poll may leave an interval after the creation."""
    harness = ExtraPollsHarness()
    assert (2 * SECOND, 1) == first(harness.extra_polls.early)
    assert None is first(harness.extra_polls.tries)


def test_a_reserved_poll_without_an_answer_is_retried() -> None:
    """A reserved poll without an answer is retried inside the lease; an early one is not."""
    harness = ExtraPollsHarness()
    harness.extra_polls.left(harness.job, 3 * SECOND)
    assert None is harness.job.try_at
    harness.pacer.table.keep(1, harness.cycle)
    harness.extra_polls.left(harness.job, harness.cycle)
    assert (harness.cycle + harness.patience, 1) == first(harness.extra_polls.tries)


def test_a_failed_reserved_poll_is_retried_in_a_short_cycle() -> None:
    """A failed reserved poll is retried at once, even if the next one is inside the lease."""
    harness = ExtraPollsHarness()
    pacer = Pacer(Limits(), lease=30 * SECOND, horizon=120 * SECOND)
    harness.extra_polls = ExtraPolls(pacer, lease=30 * SECOND, interval=2 * SECOND)
    pacer.table.recut(80, pacer.table.guard, 0, 250)
    pacer.table.reserve(1, 0, 120 * SECOND // SLOT)
    pacer.table.arm(1)
    pacer.table.keep(1, 4 * SECOND)
    assert pacer.table.next_poll(1) < 30 * SECOND
    harness.extra_polls.failed(harness.job, 4 * SECOND + 100_000)
    assert 4 * SECOND + 100_000 == harness.job.try_at


def test_retries_end() -> None:
    """After six tries, and after the lease, there is no other retry."""
    harness = ExtraPollsHarness()
    harness.pacer.table.keep(1, harness.cycle)
    harness.job.tries = 6
    harness.extra_polls.failed(harness.job, harness.cycle)
    assert None is harness.job.try_at
    harness.job.tries = 0
    harness.extra_polls.failed(harness.job, 10 * SECOND)
    assert None is harness.job.try_at


def tries(harness: ExtraPollsHarness, takes: int | None) -> list[int]:
    """When a reserved poll is tried again; each try fails after `takes` µs, or is silent (None)."""
    harness.pacer.table.keep(1, harness.cycle)
    left: list[int] = []
    at = harness.cycle
    while True:
        harness.extra_polls.left(harness.job, at)
        if takes is not None:
            harness.extra_polls.failed(harness.job, at + takes)
        harness.extra_polls.tidy()
        found = first(harness.extra_polls.tries)
        if found is None:
            return left
        at = found[0]
        left.append(at)
        harness.job.tries += 1


def test_tries_are_spread_over_the_lease() -> None:
    """Polls that fail at once share the rest of the lease: the first leaves at once, the last late.

    Each later one leaves after an equal part of what is left, 1.6 s in six parts here.
    """
    harness = ExtraPollsHarness()

    assert [8_400_000, 8_666_666, 8_933_332, 9_199_999, 9_466_666, 9_733_333] == tries(harness, 0)


def test_silent_tries_leave_after_the_patience() -> None:
    """Without an answer, and none to expect after 0.3 s, another try leaves every 0.3 s."""
    harness = ExtraPollsHarness()
    for number in range(40):
        harness.pacer.on_response(ev.Running(ev.Poll(100 + number, 1)), SECOND // 10, 0)
    # The polls of tasks that run keep their places until the plan is made anew.
    assert (8_400_000, 300_000) == (harness.cycle, harness.pacer.network.patience)

    assert [8_700_000, 9_000_000, 9_300_000, 9_600_000, 9_900_000] == tries(harness, None)


def test_silent_tries_on_an_unknown_network() -> None:
    """Before round trips are known, two more polls fit between a reserved one and the end."""
    assert [9_000_000, 9_600_000] == tries(ExtraPollsHarness(), None)


def test_three_tries_fit_when_failures_take_long() -> None:
    """Failures after 400 ms leave time for three tries, each as soon as the one before failed."""
    assert [8_800_000, 9_200_000, 9_600_000] == tries(ExtraPollsHarness(), 400_000)


def test_an_answer_ends_the_retries() -> None:
    """A renewed lease that reaches the next reserved poll needs no retry."""
    harness = ExtraPollsHarness()
    harness.pacer.table.keep(1, harness.cycle)
    harness.extra_polls.left(harness.job, harness.cycle)
    harness.extra_polls.renewed(
        harness.job, harness.cycle, None, harness.cycle, harness.cycle + 100_000
    )
    harness.extra_polls.tidy()
    assert None is first(harness.extra_polls.tries)
    assert harness.cycle == harness.job.accepted


def test_an_old_answer_keeps_the_retry() -> None:
    """An answer to an older poll renews the lease only from when that poll left."""
    harness = ExtraPollsHarness()
    harness.pacer.table.keep(1, harness.cycle)
    harness.extra_polls.left(harness.job, harness.cycle)
    harness.extra_polls.renewed(
        harness.job, 2 * SECOND, None, harness.cycle, harness.cycle + 100_000
    )
    harness.extra_polls.tidy()
    assert 2 * SECOND == harness.job.accepted
    assert (harness.cycle + harness.patience, 1) == first(harness.extra_polls.tries)


@pytest.mark.parametrize(
    ("said", "kept"), [(None, 2 * SECOND), (0, SECOND // 2), (3 * SECOND, 3 * SECOND)]
)
def test_the_vendors_interval(said: int | None, kept: int) -> None:
    """The vendor's interval applies to the next early poll, from half a second up."""
    harness = ExtraPollsHarness()
    harness.extra_polls.left(harness.job, 3 * SECOND)
    harness.extra_polls.renewed(harness.job, 3 * SECOND, said, 3 * SECOND, 3 * SECOND)
    harness.extra_polls.tidy()
    assert (3 * SECOND + kept, 1) == first(harness.extra_polls.early)


def test_no_early_poll_with_the_reserved_one() -> None:
    """An early poll that would leave with the reserved poll is left out."""
    harness = ExtraPollsHarness()
    harness.extra_polls.renewed(harness.job, 3 * SECOND, 10**15, 3 * SECOND, 3 * SECOND)
    assert None is harness.job.early_at
    harness.extra_polls.tidy()
    assert None is first(harness.extra_polls.early)


def test_thrift() -> None:
    """If requests are scarce, a seventh of the task's age passes before an early poll."""
    harness = ExtraPollsHarness()
    for number in range(220):
        harness.pacer.table.leave(number, 0, SECOND)
    harness.extra_polls.left(harness.job, SECOND)
    harness.extra_polls.renewed(harness.job, SECOND, None, 28 * SECOND, SECOND)
    assert 5 * SECOND == harness.job.early_at


def test_contended() -> None:
    """While others use the key, a poll is due in mid-lease."""
    harness = ExtraPollsHarness()
    harness.pacer.allowance.contended_until = 120 * SECOND
    harness.extra_polls.renewed(harness.job, 0, 8 * SECOND, 0, 0)
    assert 6 * SECOND == harness.job.early_at


# Tasks that have rather ended than not.


def test_a_poll_at_the_likely_end() -> None:
    """A task is polled when it has probably ended, and not before the interval."""
    harness = ExtraPollsHarness()
    assert None is first(harness.extra_polls.likely)
    harness.extra_polls.expect_end(harness.job, 5 * SECOND)
    assert (5 * SECOND, 1) == first(harness.extra_polls.likely)
    harness.extra_polls.expect_end(harness.job, SECOND)
    harness.extra_polls.tidy()
    assert (2 * SECOND, 1) == first(harness.extra_polls.likely)


@pytest.mark.parametrize("before", [0, SECOND - 1])
def test_no_early_poll_shortly_before_the_reserved_one(before: int) -> None:
    """A reserved poll within a second of the likely end needs no early one."""
    harness = ExtraPollsHarness()
    reserved = harness.pacer.table.next_poll(1)
    harness.extra_polls.expect_end(harness.job, reserved - before)
    assert None is harness.job.likely_at
    assert None is first(harness.extra_polls.likely)
    harness.extra_polls.expect_end(harness.job, reserved - SECOND)
    assert (reserved - SECOND, 1) == first(harness.extra_polls.likely)


def test_a_poll_or_an_unknown_end_cancels_the_likely_poll() -> None:
    """A poll that leaves, and a likely end that becomes unknown, cancel the likely poll."""
    for polled in (True, False):
        harness = ExtraPollsHarness()
        harness.extra_polls.expect_end(harness.job, 5 * SECOND)
        if polled:
            harness.extra_polls.left(harness.job, 3 * SECOND)
        else:
            harness.extra_polls.scout(harness.job, 0)
        harness.extra_polls.tidy()
        assert None is harness.job.likely_at
        assert None is first(harness.extra_polls.likely)


def test_when_extra_polls_are_due() -> None:
    """The first of the retries, early polls and likely polls is due."""
    harness = ExtraPollsHarness()
    assert [2 * SECOND] == wakes(harness.extra_polls)
    harness.extra_polls.expect_end(harness.job, 5 * SECOND)
    assert [2 * SECOND, 5 * SECOND] == wakes(harness.extra_polls)
    harness.pacer.table.keep(1, harness.cycle)
    harness.extra_polls.failed(harness.job, harness.cycle)
    assert [harness.cycle, 2 * SECOND, 5 * SECOND] == wakes(harness.extra_polls)
    harness.extra_polls.left(harness.job, harness.cycle)
    harness.job.try_at = None
    harness.extra_polls.tidy()
    assert [] == wakes(harness.extra_polls)


# Tasks that nothing is reserved any longer.


def test_a_task_without_reserved_polls_is_polled_as_a_retry() -> None:
    """Its next poll is a retry a cycle after the last one, inside the lease."""
    harness = ExtraPollsHarness()
    harness.pacer.table.extend(1, 100, 0, 250)
    harness.job.tries = 3
    harness.extra_polls.left(harness.job, 4 * SECOND)
    harness.extra_polls.renewed(harness.job, 4 * SECOND, None, 4 * SECOND, 4 * SECOND + 100_000)
    harness.extra_polls.tidy()
    assert (4 * SECOND + harness.cycle, 1) == first(harness.extra_polls.tries)
    assert 0 == harness.job.tries


def test_a_late_answer_without_a_reserved_poll() -> None:
    """If the answer comes after the time of the next poll, that poll leaves at once."""
    harness = ExtraPollsHarness()
    harness.pacer.table.extend(1, 100, 0, 250)
    harness.extra_polls.left(harness.job, SECOND)
    late = SECOND + harness.cycle + SECOND // 2
    harness.extra_polls.renewed(harness.job, SECOND, None, SECOND, late)
    harness.extra_polls.tidy()
    assert (late, 1) == first(harness.extra_polls.tries)


def test_the_upload_of_a_cancelled_job_delays_no_early_poll() -> None:
    """No job waits any more, so the running task is polled at its interval."""
    harness = SchedulerHarness()
    harness.running()
    harness.tell(ev.JobAdded(2, SMILE, 1.0, uploads=True))
    assert isinstance(harness.take(), ev.Register)
    harness.tell(ev.JobCancelled(2))
    assert 2 == harness.settle().ref
    assert 1 == harness.poll().ref
    assert 2 * SECOND == harness.now


# Tasks of which nobody knows when they end, where reserved polls are rare.


def refs(jobs: list[ScheduledJob]) -> list[int]:
    """Return the refs of the jobs in order."""
    return sorted(job.ref for job in jobs)


class ScoutingHarness:
    """Running tasks of an unknown kind, by their refs, under a lease of so many seconds."""

    def __init__(self, lease: int, count: int = 3) -> None:
        self.pacer = Pacer(Limits(), lease=lease * SECOND, horizon=600 * SECOND)
        self.extra_polls = ExtraPolls(self.pacer, lease=lease * SECOND, interval=2 * SECOND)
        self.jobs = [
            ScheduledJob(ref, SMILE, 1.0, uploads=False, channel=0, state=JobState.RUNNING)
            for ref in range(count)
        ]
        for job in self.jobs:
            self.pacer.table.reserve(job.ref, 0, 600 * SECOND // SLOT)
            self.pacer.table.arm(job.ref)
            self.extra_polls.created(job)

    def scout(self, age: int = 0) -> list[int | None]:
        """Let each take turns that was polled last at `age` seconds; when it may be polled."""
        for job in self.jobs:
            job.last_left = age * SECOND
            self.extra_polls.scout(job, age * SECOND)
        return [None if job.scout_at is None else job.scout_at // SECOND for job in self.jobs]

    def pause(self, age: int) -> int:
        """Seconds until another task may be polled after one of this age."""
        self.extra_polls.scouted(age * SECOND, 1000 * SECOND)
        return self.extra_polls.scout_at() // SECOND - 1000


@pytest.mark.parametrize(("age", "at"), [(0, 5), (35, 40), (70, 80)])
def test_tasks_that_end_nobody_knows_when_are_polled(age: int, at: int) -> None:
    """Each is polled 5 s after its last poll at least, and a seventh of its age if that is more."""
    harness = ScoutingHarness(120)
    assert [at] * 3 == harness.scout(age)
    assert [0, 1, 2] == refs(harness.extra_polls.unknown())
    assert at * SECOND == harness.extra_polls.scout_at()


@pytest.mark.parametrize(("count", "age", "pause"), [(8, 160, 1), (9, 8, 1), (9, 160, 10)])
def test_many_of_them_take_turns(count: int, age: int, pause: int) -> None:
    """One is polled each 1.2 s, and where they are many and old, fewer are."""
    harness = ScoutingHarness(600, count - 1)
    harness.scout()
    assert pause == harness.pause(age)


def test_a_small_window_lasts_for_its_whole_length() -> None:
    """Of 40 requests in 300 s one is sent each 7.5 s, so that ends are also found later."""
    harness = ScoutingHarness(600)
    harness.pacer.set_limits(ev.SharedLimits(40, 300 * SECOND, 5, 600 * SECOND))
    harness.scout()
    assert 7 == harness.pause(5)


def test_a_failed_early_poll_is_followed_by_another_one() -> None:
    """Under a long lease no reserved poll would find the end soon, and no retry is needed."""
    smiles = UnknownSmiles(120, 1)
    assert 1 == smiles.create()
    smiles.tell(ev.NoAnswer(smiles.poll(), ServiceUnavailable("502")))
    failed = smiles.now
    smiles.poll()
    assert failed + 5 * SECOND <= smiles.now < failed + 6 * SECOND


def test_no_end_is_looked_for_where_polls_are_frequent() -> None:
    """The reserved polls of the assumed lease find it; a poll that was planned is not sent."""
    harness = ScoutingHarness(10)
    harness.jobs[0].likely_at = 5 * SECOND
    assert [None] * 3 == harness.scout()
    harness.extra_polls.tidy()
    assert NEVER == harness.extra_polls.likely_at()
    assert [] == harness.extra_polls.unknown()


def test_no_end_is_looked_for_while_the_vendor_announces_ends() -> None:
    """A notification tells it, so no request is spent."""
    harness = ScoutingHarness(120)
    harness.extra_polls.eager = False
    assert [None] * 3 == harness.scout()


def test_a_reserved_poll_that_follows_soon_takes_no_turn() -> None:
    """It finds the end as well."""
    harness = ScoutingHarness(30, 1)
    [job] = harness.jobs
    job.last_left = harness.pacer.table.next_poll(0) - 5 * SECOND
    harness.extra_polls.scout(job, 0)
    assert None is job.scout_at


def test_a_task_that_ended_takes_no_turn() -> None:
    """It is forgotten; the others still wait for their turn."""
    harness = ScoutingHarness(120)
    harness.scout()
    harness.jobs[0].scout_at = None
    harness.extra_polls.tidy()
    assert [1, 2] == refs(harness.extra_polls.unknown())
    assert 1 == harness.extra_polls.scouts[0][1]


class UnknownSmiles(SchedulerHarness):
    """Smiles that wait for their creation, of which no end was seen, under a lease in seconds."""

    def __init__(self, lease: float, count: int, window: int = 250) -> None:
        super().__init__()
        self.scheduler = Scheduler(Limits(window, per_second=1000), Polling(lease=lease))
        for ref in range(count):
            self.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=False))

    def create(self) -> int:
        """Create what fits now, and count it."""
        created = 0
        while isinstance(command := self.scheduler.due(self.now), ev.Submit):
            self.tell(ev.Issued(command))
            self.tell(ev.Accepted(command, f"task-{command.ref}"))
            created += 1
        return created


@pytest.mark.parametrize(("lease", "first"), [(10, (7.5, 8.8)), (30, (5, 5.1)), (120, (5, 5.1))])
def test_a_first_end_is_looked_for_under_a_long_lease(
    lease: int, first: tuple[float, float]
) -> None:
    """While other tasks wait, an early poll leaves at 5 s, and none under the assumed lease."""
    smiles = UnknownSmiles(lease, 100)
    created = smiles.create()
    assert 0 < created < 100
    poll = smiles.poll()
    assert first[0] * SECOND <= smiles.now <= first[1] * SECOND
    assert poll.ref < created


def test_creations_leave_requests_to_early_polls() -> None:
    """8 requests of a window under a lease of 120 s, so that the window is not full of them."""
    smiles = UnknownSmiles(120, 100)
    smiles.create()
    state = smiles.scheduler._state
    job, limit = state.creation(), state.pacer.limit(smiles.now)
    assert job is not None
    assert not state.strategy.admits(job, smiles.now, limit - 8)
    state.admission.created(job, smiles.now)
    state.strategy.release(job, ended=None, lost=False)
    assert state.strategy.admits(job, smiles.now, limit)


def test_a_first_end_tells_when_to_poll_the_others() -> None:
    """Tasks that took turns are polled when they have probably ended by what was learned."""
    smiles = UnknownSmiles(120, 10)
    assert 10 == smiles.create()
    poll = smiles.poll()
    state = smiles.scheduler._state
    others = [ref for ref in state.jobs if ref != poll.ref]
    assert others == refs(state.extra_polls.unknown())
    smiles.tell(ev.Succeeded(poll, ("u",)))
    assert [] == state.extra_polls.unknown()
    [end] = {state.admission.likely_end(ref) for ref in others}
    assert end is not None
    assert {max(end, 2 * SECOND)} == {state.jobs[ref].likely_at for ref in others}


def test_a_first_end_changes_no_turn_of_another_kind() -> None:
    """Avatars are still polled for a first end, each at its time, after a first smile has ended."""
    smiles = UnknownSmiles(120, 2)
    for ref in (7, 8, 9):
        smiles.tell(ev.JobAdded(ref, TaskKind("ai-avatar"), 1.0, uploads=False))
    assert 5 == smiles.create()
    poll = smiles.poll()
    assert poll.ref < 2
    state = smiles.scheduler._state
    turns = [state.jobs[ref].scout_at for ref in (7, 8, 9)]
    smiles.tell(ev.Succeeded(poll, ("u",)))
    assert [7, 8, 9] == refs(state.extra_polls.unknown())
    assert turns == [state.jobs[ref].scout_at for ref in (7, 8, 9)]


def test_an_end_is_looked_for_until_it_is_known_when_tasks_end() -> None:
    """While four of five that were polled still ran, the others keep their turns."""
    smiles = UnknownSmiles(120, 10)
    assert 10 == smiles.create()
    state = smiles.scheduler._state
    for _ in range(4):
        smiles.tell(ev.Running(smiles.poll()))
    smiles.tell(ev.Succeeded(smiles.poll(), ("u",)))
    assert 5 <= len(state.extra_polls.unknown())
    assert {None} == {job.likely_at for job in state.jobs.values()}


def test_a_task_that_has_probably_ended_is_polled_although_much_work_waits() -> None:
    """Under a long lease no other poll would find its end soon."""
    smiles = UnknownSmiles(120, 300)
    created = smiles.create()
    smiles.tell(ev.Succeeded(smiles.poll(), ("u",)))
    later = smiles.now + 3 * SECOND
    polls = 0
    while smiles.now < later:
        match command := smiles.take():
            case ev.Poll():
                polls += 1
                smiles.tell(ev.Succeeded(command, ("u",)))
            case ev.Submit():
                smiles.tell(ev.Accepted(command, "t"))
            case _:
                assert isinstance(command, ev.Settle)
    assert polls >= created - 1


def test_a_creation_leaves_a_request_for_each_end_under_a_very_long_lease() -> None:
    """No poll is reserved within the window, so half of its requests are kept for early polls."""
    smiles = UnknownSmiles(600, 300)
    assert 123 == smiles.create()


def test_few_tasks_are_polled_at_their_interval_under_a_long_lease() -> None:
    """A poll of each running task is left for when it has probably ended."""
    few, many = ScoutingHarness(600, 10), ScoutingHarness(600, 100)
    for harness, plenty in ((few, True), (many, False)):
        for number in range(60):
            harness.pacer.table.leave(number, 0, SECOND)
        assert plenty == harness.pacer.plenty(0)
