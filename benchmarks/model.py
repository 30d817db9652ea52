"""A model of the vendor for measuring the scheduler alone: no loop, no HTTP, hours in seconds.

A perfect network with a round trip of 0.15 s, both limits on a sliding window, a lease of 10 s that
only an accepted poll renews. Arrival is at a random point of the round trip.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence

import attrs

from perfect_async import events as ev
from perfect_async.errors import RateLimited, TaskExpired
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import NEVER, Scheduler

SECOND = 1_000_000
ROUND_TRIP = 150_000
LEASE = 10 * SECOND


@attrs.frozen
class Slowdown:
    """From `at` seconds on every task lasts `lasts` seconds, those that run included."""

    at: float
    lasts: float


@attrs.frozen
class Load:
    """Jobs by the duration of each in seconds; `slowdown` draws when everything slows down."""

    name: str
    durations: Callable[[random.Random], Sequence[float]]
    slowdown: Callable[[random.Random], Slowdown] | None = None


@attrs.frozen
class Outcome:
    """What a run came to: seconds, requests, and what went wrong."""

    makespan: float
    bound: float
    requests: int
    kinds: dict[str, int]
    done: int
    lost: int
    refused: int

    @property
    def ratio(self) -> float:
        """Time over the clairvoyant lower bound."""
        return self.makespan / self.bound


def lognormal(count: int, median: float, sigma: float) -> Callable[[random.Random], list[float]]:
    """`count` durations around `median` seconds."""
    return lambda rng: [rng.lognormvariate(math.log(median), sigma) for _ in range(count)]


def mixed(count: int, *parts: tuple[float, float, float]) -> Callable[[random.Random], list[float]]:
    """`count` durations, a share of them uniform in each (share, low, high) of `parts`."""

    def draw(rng: random.Random) -> list[float]:
        shares = [share for share, _, _ in parts]
        return [rng.uniform(*rng.choices(parts, shares)[0][1:]) for _ in range(count)]

    return draw


def stuck(
    count: int, median: float, sigma: float, share: float, lasts: float
) -> Callable[[random.Random], list[float]]:
    """Lognormal durations, a `share` of them `lasts` seconds instead."""

    def draw(rng: random.Random) -> list[float]:
        return [
            lasts if rng.random() < share else rng.lognormvariate(math.log(median), sigma)
            for _ in range(count)
        ]

    return draw


LOADS: tuple[Load, ...] = (
    Load("50 smiles", lognormal(50, 8, 0.35)),
    Load("200 smiles", lognormal(200, 8, 0.35)),
    Load("1000 smiles", lognormal(1000, 8, 0.35)),
    Load("200 avatars", lognormal(200, 60, 0.4)),
    Load("1000 avatars", lognormal(1000, 60, 0.4)),
    Load("200 of 15-40 s", mixed(200, (1, 15, 40))),
    Load("200, 5 % of 240 s", mixed(200, (0.95, 15, 40), (0.05, 240, 240))),
    Load("200, 20 % of 60-90 s", mixed(200, (0.8, 5, 8), (0.2, 60, 90))),
    Load("200 smiles, 2 % stuck", stuck(200, 8, 0.35, 0.02, 600)),
)


def drifting(
    count: int, median: float, sigma: float, factor: float
) -> Callable[[random.Random], list[float]]:
    """Lognormal durations whose median grows to `factor` times itself, evenly over the jobs."""

    def draw(rng: random.Random) -> list[float]:
        steps = [math.log(median) + math.log(factor) * k / count for k in range(count)]
        return [rng.lognormvariate(step, sigma) for step in steps]

    return draw


def first_long(
    count: int, long: int, lasts: tuple[float, float], median: float, sigma: float
) -> Callable[[random.Random], list[float]]:
    """`long` jobs of `lasts` (from, to) seconds, then lognormal ones."""

    def draw(rng: random.Random) -> list[float]:
        head = [rng.uniform(*lasts) for _ in range(long)]
        return head + [rng.lognormvariate(math.log(median), sigma) for _ in range(count - long)]

    return draw


def slowing(latest: float, lasts: float) -> Callable[[random.Random], Slowdown]:
    """Everything slows down at a random moment up to `latest` seconds."""
    return lambda rng: Slowdown(rng.uniform(0, latest), lasts)


FOOLING: tuple[Load, ...] = (
    Load("400 smiles, 5 x slower", drifting(400, 8, 0.35, 5)),
    Load("200, the first 30 of 90-120 s", first_long(200, 30, (90, 120), 8, 0.35)),
    Load("100 smiles, all at once 120 s", lognormal(100, 8, 0.35), slowing(90, 120)),
    Load("200 of 15-40 s, at once 120 s", mixed(200, (1, 15, 40)), slowing(400, 120)),
    Load("100 avatars, at once 120 s", lognormal(100, 60, 0.2), slowing(400, 120)),
)
"""Meant to fool who believes the durations seen so far."""


def bound(durations: Sequence[float]) -> float:
    """The clairvoyant lower bound on the time, polls at exactly 10 s (design: the scheduling
    problem).
    """
    requests = len(durations) + math.ceil(len(durations) / 20)
    requests += sum(max(1, math.ceil(duration / 10)) for duration in durations)
    windows = (requests - 1) // 250
    longest = max(durations)
    return max(longest, requests / 5, windows * 300 + (requests - windows * 250) / 5)


class Vendor:
    """Both limits and the lease, and nothing else."""

    def __init__(self, limits: Limits, rng: random.Random) -> None:
        self.limits, self.rng = limits, rng
        self.arrivals: deque[int] = deque()
        self.tasks: dict[int, tuple[int, int]] = {}
        self.slowdown: Slowdown | None = None
        self.seen: dict[int, int] = {}
        self.lost: set[int] = set()
        self.refused = 0

    def ends(self, ref: int) -> int:
        """When the task of `ref` ends."""
        began, end = self.tasks[ref]
        if self.slowdown is not None and end > self.slowdown.at * SECOND:
            end = began + round(self.slowdown.lasts * SECOND)
        return end

    def admits(self, at: int) -> bool:
        """Whether one more request may arrive `at`; refused ones count."""
        period = round(self.limits.period * SECOND)
        while self.arrivals and self.arrivals[0] <= at - period:
            self.arrivals.popleft()
        second = sum(1 for other in self.arrivals if other > at - SECOND)
        fits = len(self.arrivals) < self.limits.requests and second < self.limits.per_second
        self.arrivals.append(at)
        self.refused += not fits
        return fits


def simulate(
    durations: Sequence[float],
    *,
    seed: int = 0,
    limits: Limits | None = None,
    polling: Polling | None = None,
    known: Sequence[float] = (),
    slowdown: Slowdown | None = None,
) -> Outcome:
    """Run one load through a fresh scheduler.

    It has seen tasks of the durations `known` before, in a batch that ended a window earlier; what
    they took does not count, but what was lost of them does.
    """
    durations, measured = [*known, *durations], durations
    limits, polling = limits or Limits(), polling or Polling()
    scheduler, rng = Scheduler(limits, polling), random.Random(seed)
    vendor = Vendor(limits, rng)
    vendor.slowdown = None if known else slowdown
    queue: list[tuple[int, int, str, ev.Request | ev.Upload]] = []
    order, now, requests, done, fed = 0, 0, 0, 0, 0
    began, spent = 0, 0
    answers: dict[int, ev.Answer] = {}
    while done < len(durations):
        statistics = scheduler.statistics()
        if known and done == len(known) and not queue:
            # A window later nothing of the first batch is left but what was learned.
            known, now = (), now + round(limits.period + LEASE / SECOND) * SECOND
            began, spent = now, requests
            if slowdown is not None:
                vendor.slowdown = attrs.evolve(slowdown, at=slowdown.at + now / SECOND)
        while fed < len(known or durations) and (
            statistics.waiting + statistics.preparing + statistics.ready < scheduler.appetite()
        ):
            scheduler.receive(ev.Wanted(fed, "ai-smile", 1, uploads=True), now)
            fed += 1
            statistics = scheduler.statistics()
        while (command := scheduler.due(now)) is not None:
            scheduler.receive(ev.Issued(command), now)
            if isinstance(command, ev.Settle):
                done += 1
                break
            order += 1
            takes = ROUND_TRIP if not isinstance(command, ev.Upload) else 2 * ROUND_TRIP
            arrives = rng.randint(0, takes)
            heapq.heappush(queue, (now + arrives, 2 * order, "arrives", command))
            heapq.heappush(queue, (now + takes, 2 * order + 1, "answered", command))
            requests += not isinstance(command, ev.Upload)
        if command is not None:
            continue  # a job ended: feed the next before waiting
        wake = scheduler.wakes_at(now)
        if not queue and wake == NEVER:
            raise AssertionError(f"nothing will ever happen again: {scheduler!r}")
        if queue and queue[0][0] <= wake:
            now, _, what, request = heapq.heappop(queue)
            if what == "arrives":
                answers[request.number] = _answer(vendor, request, durations, now)
            else:
                scheduler.receive(answers.pop(request.number), now)
        else:
            now = wake
    return Outcome(
        (now - began) / SECOND,
        bound(measured),
        requests - spent,
        dict(scheduler.statistics().requests),
        done - len(vendor.lost),
        len(vendor.lost),
        vendor.refused,
    )


def _answer(
    vendor: Vendor, request: ev.Request | ev.Upload, durations: Sequence[float], at: int
) -> ev.Answer:
    if isinstance(request, ev.Upload):
        return ev.Uploaded(request)
    if not vendor.admits(at):
        return ev.Limited(request, RateLimited("Too many requests"))
    match request:
        case ev.Register():
            return ev.Registered(
                request, tuple(ev.FileGrant("f", "PUT", "u", ()) for _ in request.refs)
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
                return ev.Succeeded(request, ("https://results.example/1",))
            return ev.Running(request)
