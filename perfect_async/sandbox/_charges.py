"""What the vendor knows afterwards: units, tasks, requests, and what no client should do."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import attrs

TaskState = Literal["running", "success", "error", "expired", "timed_out", "deleted"]

# Traffic of the storage hosts is not limited (contract: Limits).
UNLIMITED = frozenset({"upload", "result", "thumb"})


class LogEntry(NamedTuple):
    """One arrival: the loop's time in seconds, the kind of call, the HTTP status.

    `status` is 0 when no answer was sent.
    """

    time: float
    kind: str
    status: int


@attrs.frozen
class TaskRecord:
    """One task as the vendor sees it now; times are the loop's, in seconds.

    `state` stays `"running"` until the end was *reported* to a poll, because an end that nobody
    asked for is worth nothing. `ended_at` is that report, or the moment the lease ran out.
    `duration` is what the engine needs (infinite when `stuck`), `polls` the accepted ones.
    """

    task_id: str = attrs.field(repr=lambda text: f"{text[:8]!r}...")
    feature: str
    state: TaskState
    stuck: bool
    units: int
    created_at: float
    ended_at: float | None
    duration: float
    polls: int
    source: str = attrs.field(repr=False)
    file_name: str | None
    params: Mapping[str, object] = attrs.field(repr=False)
    error: str | None = None


@attrs.frozen
class WebhookRecord:
    """One attempt to send a notification; `time` is the loop's, in seconds, at its leaving.

    `webhook_id` is the same for a duplicate and at every `attempt`, which counts from 1. `answer`
    is the HTTP status: 0 if none came in time, 204 and 500 for a receiver inside the process that
    returns and raises. `error` is what it or the way to it raised, as text.
    """

    time: float
    webhook_id: str
    task_id: str = attrs.field(repr=lambda text: f"{text[:8]!r}...")
    task_status: str
    attempt: int
    answer: int
    error: str | None = None


@attrs.define(eq=False, repr=False)
class Ledger:
    """Live: every reading is as of now (outside a running loop, as of the last arrival).

    - `requests`, `refused`: calls that arrived, and those answered 429, by kind.
    - `violations`: one sentence for everything that a correct client never does.
    - `log`: every arrival in order, for checks of windows.
    - `webhooks`: every attempt to send a notification, in the order in which they ended.
    """

    _tasks: Callable[[], tuple[TaskRecord, ...]]
    _balance: Callable[[], float]
    requests: Counter[str] = attrs.field(factory=Counter[str])
    refused: Counter[str] = attrs.field(factory=Counter[str])
    violations: list[str] = attrs.field(factory=list[str])
    log: list[LogEntry] = attrs.field(factory=list[LogEntry])
    webhooks: list[WebhookRecord] = attrs.field(factory=list[WebhookRecord])

    @property
    def tasks(self) -> tuple[TaskRecord, ...]:
        """Every task ever created, in order of creation."""
        return self._tasks()

    @property
    def tasks_by_state(self) -> Counter[str]:
        """How many tasks are in each state."""
        return Counter(task.state for task in self._tasks())

    @property
    def units_charged(self) -> int:
        """Units debited at creation, whatever became of the tasks."""
        return sum(task.units for task in self._tasks())

    @property
    def units_returned(self) -> int:
        """Units given back, which is done when an engine failure is reported."""
        return sum(task.units for task in self._tasks() if task.state == "error")

    @property
    def units_wasted(self) -> int:
        """Units kept for tasks that gave nothing: the lease ran out, or the vendor timed out.

        A creation whose answer was lost belongs here once its lease is over, and so does a
        stuck task that the client gave up.
        """
        return sum(t.units for t in self._tasks() if t.state in {"expired", "timed_out"})

    @property
    def balance(self) -> float:
        """Units left: what there was, less charged, plus returned."""
        return self._balance()

    def max_in_window(self, period: float) -> int:
        """The most limited calls, refused ones included, that arrived within `period` seconds."""
        times = [entry.time for entry in self.log if entry.kind not in UNLIMITED]
        # Half open, as the sliding window is; the tolerance is below the clock's microsecond.
        return max(
            (i + 1 - bisect_right(times, t - period + 1e-7) for i, t in enumerate(times)),
            default=0,
        )

    def __repr__(self) -> str:
        """For a person, and for the message of a failed assertion."""
        states = ", ".join(f"{n} {state}" for state, n in sorted(self.tasks_by_state.items()))
        refused = sum(self.refused.values())
        return (
            f"<Ledger: {self.units_charged} units charged, {self.units_returned} returned, "
            f"{self.units_wasted} wasted, {self.balance:g} left; tasks: {states or 'none'}; "
            f"{sum(self.requests.values())} requests, {refused} refused, "
            f"{len(self.violations)} violations>"
        )
