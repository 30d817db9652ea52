"""What a decision of the scheduler costs, measured in heapq's push-pop pairs.

The scheduler is driven alone, as in `model.py`, under limits that do not bind: so many tasks are
kept in flight, each living its whole life (half of them with a picture to register and upload), and
only `receive` and `due` are timed. A decision is one piece of news and the question after it, and
the question that the time alone asked before a command counts with that command. The heap has as
many entries as there are tasks; both are timed in turns of some hundred, since machines are noisy.
"""

from __future__ import annotations

import heapq
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from perfect_async import events as ev
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import NEVER, Scheduler

SECOND = 1_000_000
MICRO = 1e6
SMILE = ev.TaskKind("ai-smile")
UNBOUND = Limits(requests=10**9, period=300.0, per_second=10**6)
SETTLING = 12 * SECOND
"""Until then the first tasks are created, spread over the first smile's time, and mixed."""


@attrs.frozen
class Cost:
    """Microseconds: of a decision, of a slow one (the 99th percentile), of a heap's pair.

    `ratio` is the median of the turns' own ratios.
    """

    tasks: int
    decision: float
    slow: float
    pair: float
    ratio: float
    decisions: int


@attrs.frozen
class Turn:
    """Seconds: of each decision of a turn, and of a pair just before."""

    took: list[float]
    pair: float

    @property
    def mean(self) -> float:
        return sum(self.took) / len(self.took)


class Vendor:
    """Answers after 100 to 200 ms; a smile lasts 8 s on the median, as the sandbox's."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.news: list[tuple[int, int, ev.Event]] = []
        self._ends: dict[int, int] = {}
        self._order = 0
        self._refs = 0

    def want(self, at: int) -> None:
        """Another job comes in."""
        self._refs += 1
        uploads = self._refs % 2 == 0
        self._tell(at, ev.JobAdded(self._refs, SMILE, 1, uploads=uploads))

    def perform(self, command: ev.Command, now: int) -> None:
        """Answer in a while; a job that has ended makes room for another."""
        at = now + self.rng.randint(100_000, 200_000)
        match command:
            case ev.Settle():
                del self._ends[command.ref]
                self.want(now)
            case ev.Register():
                grants = (ev.FileGrant(f"file-{ref}", "PUT", "u", ()) for ref in command.refs)
                self._tell(at, ev.Registered(command, tuple(grants)))
            case ev.Upload():
                self._tell(at, ev.Uploaded(command))
            case ev.Submit():
                lasts = self.rng.lognormvariate(math.log(8.0), 0.35)
                self._ends[command.ref] = now + round(lasts * SECOND)
                self._tell(at, ev.Accepted(command, f"task-{command.ref}"))
            case ev.Poll():
                over = now >= self._ends.get(command.ref, 0)
                self._tell(
                    at,
                    ev.Succeeded(command, (f"u/{command.ref}",)) if over else ev.Running(command),
                )
            case ev.Ask():
                raise AssertionError(command)

    def _tell(self, at: int, event: ev.Event) -> None:
        self._order += 1
        heapq.heappush(self.news, (at, self._order, event))


class Drive:
    """A scheduler with `tasks` in flight, and how long its decisions took, in seconds."""

    def __init__(self, tasks: int, seed: int = 0) -> None:
        self.scheduler = Scheduler(UNBOUND, Polling())
        self.vendor = Vendor(seed)
        self.now = 0
        self.took: list[float] = []
        for _ in range(tasks):
            self.vendor.want(self.vendor.rng.randint(0, 8 * SECOND))

    def until(self, time: int) -> None:
        """Go on until `time`, untimed as far as anybody looks."""
        while self.now < time:
            self.took.clear()
            self.step()

    def decide(self, count: int) -> list[float]:
        """How long each of `count` decisions took."""
        self.took.clear()
        while len(self.took) < count:
            self.step()
        return self.took[:count]

    def step(self) -> None:
        """The next news, or a time at which something is due; and all that follows at once."""
        scheduler, vendor = self.scheduler, self.vendor
        wake = scheduler.wakes_at(self.now)
        if vendor.news and vendor.news[0][0] <= wake:
            self.now, _, event = heapq.heappop(vendor.news)
            began = perf_counter()
            scheduler.receive(event, self.now)
            command = scheduler.due(self.now)
            self.took.append(perf_counter() - began)
            unasked = 0.0
        elif wake == NEVER:
            raise AssertionError(f"nothing will ever happen again: {scheduler!r}")
        else:
            self.now = wake
            began = perf_counter()
            command = scheduler.due(self.now)
            unasked = perf_counter() - began
        while command is not None:
            issued = ev.Issued(command)
            vendor.perform(command, self.now)
            began = perf_counter()
            scheduler.receive(issued, self.now)
            command = scheduler.due(self.now)
            # What was asked because of the time belongs to the decision that it led to.
            self.took.append(perf_counter() - began + unasked)
            unasked = 0.0


def pairs(entries: int, count: int, rng: random.Random) -> float:
    """Seconds for `count` pairs of push and pop of a tuple on a heap of `entries`."""
    heap = [(rng.randrange(10**9), number) for number in range(entries)]
    heapq.heapify(heap)
    times = [rng.randrange(10**9) for _ in range(count)]
    push, pop = heapq.heappush, heapq.heappop
    began = perf_counter()
    for number, at in enumerate(times):
        push(heap, (at, number))
        pop(heap)
    return perf_counter() - began


def measure(
    sizes: Sequence[int], *, turns: int = 40, each: int = 500, seeds: Sequence[int] = (0,)
) -> list[Cost]:
    """The cost of a decision with each of `sizes` in flight; all sizes and seeds take turns."""
    drives = [(size, Drive(size, seed), random.Random(seed)) for size in sizes for seed in seeds]
    for _, drive, _ in drives:
        drive.until(SETTLING)
    turned: dict[int, list[Turn]] = {size: [] for size in sizes}
    for _ in range(turns):
        for size, drive, rng in drives:
            heap = pairs(size, each, rng)
            turned[size].append(Turn(drive.decide(each), heap / each))
    return [_cost(size, turned[size]) for size in sizes]


def _cost(size: int, turns: list[Turn]) -> Cost:
    times = sorted(took for turn in turns for took in turn.took)
    return Cost(
        size,
        median(turn.mean for turn in turns) * MICRO,
        times[int(0.99 * len(times))] * MICRO,
        median(turn.pair for turn in turns) * MICRO,
        median(turn.mean / turn.pair for turn in turns),
        len(times),
    )
