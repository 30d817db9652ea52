"""A model of the vendor for measuring the scheduler alone: no loop, no HTTP, hours in seconds.

A perfect network with a round trip of 0.15 s, both limits on a sliding window, a lease of 10 s that
only an accepted poll renews. Arrival is at a random point of the round trip. Somebody else may use
the same key (`Foreign`); what is refused counts in the window, whoever sent it.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence

import attrs

from benchmarks.loads import SMILE, Slowdown, bound
from perfect_async import events as ev
from perfect_async.errors import RateLimited, ServiceUnavailable, TaskExpired
from perfect_async.models import Job, Limits, Polling
from perfect_async.scheduler import NEVER, Scheduler

SECOND = 1_000_000
ROUND_TRIP = 150_000
LEASE = 10 * SECOND
HANGING = 30 * SECOND


@attrs.frozen
class Foreign:
    """Another client on the same key, which tells us nothing. Times in seconds.

    It takes `share` of the window from `start` (before 0: it was there first) to `stop`, evenly or
    with `poisson` gaps. What is refused is tried again `retries` times, each `pause` later.
    """

    share: float
    start: float = -300.0
    stop: float = math.inf
    poisson: bool = False
    retries: int = 0
    pause: float = 2.0

    def times(self, limits: Limits, rng: random.Random) -> Iterator[int]:
        """When it sends something new."""
        rate = self.share * limits.requests / limits.period
        at = self.start + rng.random() / rate
        while at < self.stop:
            yield round(at * SECOND)
            at += rng.expovariate(rate) if self.poisson else 1 / rate


@attrs.frozen
class Sent:
    """A request of ours as the vendor saw it; `at` in seconds.

    `full` is whether the window had no room; what was refused without that met the second's limit.
    """

    at: float
    kind: str
    refused: bool
    full: bool


@attrs.frozen
class Outcome:
    """What a run came to: seconds, requests, and what went wrong.

    `refused` are our requests. `losses` has when each lost task was created, `created` when each
    job was, `sent` our requests as they arrived, `others` when foreign ones did, `assumed` each
    change of `Statistics.window_limit`, all in seconds. `at_stake` is what the scheduler says was
    lost, of one unit a task. `ended` is False where it was stopped.
    """

    makespan: float
    bound: float
    requests: int
    kinds: dict[str, int]
    done: int
    lost: int
    refused: int
    losses: tuple[float, ...] = ()
    created: tuple[float, ...] = ()
    sent: tuple[Sent, ...] = ()
    others: tuple[float, ...] = ()
    assumed: tuple[tuple[float, int], ...] = ()
    at_stake: float = 0.0
    ended: bool = True

    @property
    def ratio(self) -> float:
        """Time over the clairvoyant lower bound."""
        return self.makespan / self.bound


class Failures:
    """Polls that fail as soon as they arrive: a `share` of them, and with each the next polls of
    its task until `row` have failed.

    Rows show in a few thousand tasks what would take millions to happen by chance. Another share of
    the polls is `hanging`: they arrive, renew nothing, and are answered after 30 s, by an error.
    """

    def __init__(self, share: float, *, row: int = 1, hanging: float = 0.0, seed: int = 0) -> None:
        self._share = share
        self._row = row
        self._hanging = hanging
        # A stream of its own: without failures nothing else changes.
        self._rng = random.Random(f"failures {seed}")
        self._left: dict[int, int] = {}

    def hit(self, ref: int) -> bool:
        """Whether the poll of task `ref` that leaves now fails."""
        if self._left.get(ref):
            self._left[ref] -= 1
            return True
        hits = self._rng.random() < self._share
        if hits:
            self._left[ref] = self._row - 1
        return hits

    def strike(self, command: ev.Command, arrives: int, takes: int) -> tuple[bool, int]:
        """Whether `command` fails, and after how long it is answered, usually after it `takes`."""
        if not isinstance(command, ev.Poll):
            return False, takes
        hangs = self._hanging > 0 and self._rng.random() < self._hanging
        fails = self.hit(command.ref) or hangs
        return fails, HANGING if hangs else arrives if fails else takes


class Vendor:
    """Both limits and the lease, and whoever else uses the key."""

    def __init__(self, limits: Limits, rng: random.Random, foreign: Sequence[Foreign] = ()) -> None:
        self.limits, self.rng = limits, rng
        self.arrivals: deque[int] = deque()
        self.tasks: dict[int, tuple[int, int]] = {}
        self.slowdown: Slowdown | None = None
        self.seen: dict[int, int] = {}
        self.lost: set[int] = set()
        self.unsent: set[int] = set()
        self.sent: list[Sent] = []
        self.others: list[float] = []
        self.assumed = [(0.0, limits.requests)]
        # What others send next: when, in which order, how many tries are left, who, and what they
        # send after it.
        self._others: list[tuple[int, int, int, Foreign, Iterator[int]]] = []
        self._order = 0
        for other in foreign:
            # A stream of its own: what we do must not change what they do.
            self._next(other, other.times(limits, random.Random(rng.random())))

    def ends(self, ref: int) -> int:
        """When the task of `ref` ends."""
        began, end = self.tasks[ref]
        if self.slowdown is not None and end > self.slowdown.at * SECOND:
            end = began + round(self.slowdown.lasts * SECOND)
        return end

    @property
    def refused(self) -> int:
        """Requests of ours that were refused."""
        return sum(sent.refused for sent in self.sent)

    def admits(self, at: int, kind: str) -> bool:
        """Whether one more request of ours may arrive `at`; refused ones count."""
        self._catch_up(at)
        fits, full = self._admits(at)
        self.sent.append(Sent(at / SECOND, kind, refused=not fits, full=full))
        return fits

    def settled(self, command: ev.Settle, at: int) -> None:
        """We ask no longer: what was not created cost nothing, what has no lease is lost."""
        if command.ref not in self.tasks:
            self.unsent.add(command.ref)
        elif not isinstance(command.ending, ev.Succeeded) and at - self.seen[command.ref] > LEASE:
            self.lost.add(command.ref)

    def note(self, limit: int, now: int) -> None:
        """Write down what we assume that a window holds for us."""
        if limit != self.assumed[-1][1]:
            self.assumed.append((now / SECOND, limit))

    def _catch_up(self, now: int) -> None:
        """Let all that others send before `now` arrive."""
        while self._others and self._others[0][0] <= now:
            at, _, tries, other, times = heapq.heappop(self._others)
            if tries == other.retries:
                self._next(other, times)
            self.others.append(at / SECOND)
            if not self._admits(at)[0] and tries:
                self._push(at + round(other.pause * SECOND), tries - 1, other, times)

    def _next(self, other: Foreign, times: Iterator[int]) -> None:
        if (at := next(times, None)) is not None:
            self._push(at, other.retries, other, times)

    def _push(self, at: int, tries: int, other: Foreign, times: Iterator[int]) -> None:
        self._order += 1
        heapq.heappush(self._others, (at, self._order, tries, other, times))

    def _admits(self, at: int) -> tuple[bool, bool]:
        """Whether a request may arrive `at`, and whether the window is full."""
        period = round(self.limits.period * SECOND)
        while self.arrivals and self.arrivals[0] <= at - period:
            self.arrivals.popleft()
        second = 0
        for other in reversed(self.arrivals):
            if other <= at - SECOND:
                break
            second += 1
        full = len(self.arrivals) >= self.limits.requests
        self.arrivals.append(at)
        return not full and second < self.limits.per_second, full


def simulate(
    durations: Sequence[float],
    *,
    seed: int = 0,
    limits: Limits | None = None,
    polling: Polling | None = None,
    job: Job = SMILE,
    known: Sequence[float] = (),
    slowdown: Slowdown | None = None,
    foreign: Sequence[Foreign] = (),
    failures: Failures | None = None,
    spread: float = 0.0,
    until: float = math.inf,
) -> Outcome:
    """Run one load, each task of which is a `job`, through a fresh scheduler, beside `foreign`
    clients, for `until` seconds at most. Polls fail as `failures` says. Round trips are lognormal,
    with 0.15 s as their median and `spread` as their deviation.

    It has seen tasks of the durations `known` before, in a batch that ended a window earlier; what
    they took does not count, but what was lost of them does.
    """
    durations, measured = [*known, *durations], durations
    limits, polling = limits or Limits(), polling or Polling()
    scheduler, rng = Scheduler(limits, polling), random.Random(seed)
    vendor = Vendor(limits, rng, foreign)
    failures = failures or Failures(0.0)
    wanted = ev.JobAdded(0, kind_of(job), job.units, uploads=True)
    vendor.slowdown = None if known else slowdown
    queue: list[tuple[int, int, str, ev.Request | ev.Upload]] = []
    order, now, requests, done, fed, began, spent = 0, 0, 0, 0, 0, 0, 0
    answers: dict[int, ev.Answer] = {}
    while done < len(durations) and now < until * SECOND:
        statistics = scheduler.statistics()
        vendor.note(statistics.window_limit, now)
        if known and done == len(known) and not queue:
            # A window later nothing of the first batch is left but what was learned.
            known, now = (), now + round(limits.period + LEASE / SECOND) * SECOND
            began, spent = now, requests
            if slowdown is not None:
                vendor.slowdown = attrs.evolve(slowdown, at=slowdown.at + now / SECOND)
        while fed < len(known or durations) and (
            statistics.waiting + statistics.preparing + statistics.ready < scheduler.lookahead()
        ):
            scheduler.receive(attrs.evolve(wanted, ref=fed), now)
            fed += 1
            statistics = scheduler.statistics()
        while (command := scheduler.due(now)) is not None:
            scheduler.receive(ev.Issued(command), now)
            if isinstance(command, ev.Settle):
                done += 1
                vendor.settled(command, now)
                break
            order += 1
            arrives, takes = times(command, rng, spread)
            fails, takes = failures.strike(command, arrives, takes)
            what = "fails" if fails else "arrives"
            heapq.heappush(queue, (now + arrives, 2 * order, what, command))
            heapq.heappush(queue, (now + takes, 2 * order + 1, "answered", command))
            requests += not isinstance(command, ev.Upload)
        if command is not None:
            continue  # a job ended: feed the next before waiting
        wake = scheduler.wakes_at(now)
        if not queue and wake == NEVER:
            raise AssertionError(f"nothing will ever happen again: {scheduler!r}")
        if queue and queue[0][0] <= wake:
            now, _, what, request = heapq.heappop(queue)
            if what == "answered":
                scheduler.receive(answers.pop(request.number), now)
            else:
                fails = what == "fails"
                answers[request.number] = answer(vendor, request, durations, now, fails=fails)
        else:
            now = wake
    return Outcome(
        (now - began) / SECOND,
        bound(measured),
        requests - spent,
        dict(scheduler.statistics().requests),
        done - len(vendor.lost) - len(vendor.unsent),
        len(vendor.lost),
        vendor.refused,
        tuple(vendor.tasks[ref][0] / SECOND for ref in sorted(vendor.lost)),
        tuple(
            vendor.tasks[ref][0] / SECOND if ref in vendor.tasks else math.inf
            for ref in range(len(durations))
        ),
        tuple(vendor.sent),
        tuple(vendor.others),
        tuple(vendor.assumed),
        scheduler.statistics().units.at_stake,
        done == len(durations),
    )


def kind_of(job: Job) -> ev.TaskKind:
    """Which tasks last like that of `job`."""
    usual = job.usual and (round(job.usual[0] * SECOND), round(job.usual[1] * SECOND))
    return ev.TaskKind(job.feature, job.outputs, usual)


def times(
    request: ev.Request | ev.Upload, rng: random.Random, spread: float = 0.0
) -> tuple[int, int]:
    """After how long `request` arrives, and is answered."""
    takes = ROUND_TRIP if not isinstance(request, ev.Upload) else 2 * ROUND_TRIP
    if spread:
        takes = round(takes * rng.lognormvariate(0, spread))
    return rng.randint(0, takes), takes


def answer(
    vendor: Vendor,
    request: ev.Request | ev.Upload,
    durations: Sequence[float],
    at: int,
    *,
    fails: bool,
) -> ev.Answer:
    if isinstance(request, ev.Upload):
        return ev.Uploaded(request)
    if not vendor.admits(at, type(request).__name__):
        return ev.Limited(request, RateLimited("Too many requests"))
    if fails:
        return ev.NoAnswer(request, ServiceUnavailable("502"))
    match request:
        case ev.Register():
            return ev.Registered(
                request, tuple(ev.FileGrant(f"file-{ref}", "PUT", "u", ()) for ref in request.refs)
            )
        case ev.Submit():
            vendor.tasks[request.ref] = at, at + round(durations[request.ref] * SECOND)
            vendor.seen[request.ref] = at
            return ev.Accepted(request, f"task-{request.ref}")
        case ev.Ask():
            return ev.Answered(request)
        case ev.Poll():
            # What ended inside its lease and was not asked for in it is lost too.
            if request.ref in vendor.lost or at - vendor.seen[request.ref] > LEASE:
                vendor.lost.add(request.ref)
                return ev.TaskUnknown(request, TaskExpired("lost"))
            vendor.seen[request.ref] = at
            if at >= vendor.ends(request.ref):
                return ev.Succeeded(request, (f"https://results.example/{request.ref}",))
            return ev.Running(request)
