"""The ledger: units charged, tasks, requests, and violations of the contract."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import attrs

TaskState = Literal["running", "success", "error", "expired", "timed_out", "deleted"]

# The storage hosts have no request limits (contract: Limits).
UNLIMITED = frozenset({"upload", "result", "thumb"})


class LogEntry(NamedTuple):
    """One arrival: the loop's time in seconds, the kind of request, the HTTP status.

    `status` is 0 when no answer was sent.
    """

    time: float
    kind: str
    status: int


@attrs.frozen
class TaskRecord:
    """The present state of one task; times are of the loop's clock, in seconds.

    `state` is `"running"` until a poll reports the end; without such a poll the task is lost with
    its lease. `ended_at` is the time of that poll, or the time when the lease ran out. `duration`
    is the time that the engine needs (infinite if `stuck`); `polls` counts accepted polls.
    `charged` and `refunded` say whether its `units` were taken and returned.
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
    charged: bool = True
    refunded: bool = False


@attrs.frozen
class WebhookRecord:
    """One attempt to send a notification; `time` is the sending by the loop's clock, in seconds.

    `webhook_id` is the same for a duplicate and for every `attempt`, which counts from 1. `answer`
    is the HTTP status, or 0 if none came in time; for a receiver inside the process it is 204 if it
    returned and 500 if it raised. `error` is the exception of the receiver or the transport.
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
    """Live counters of the sandbox; outside of a running loop they are as of the last arrival.

        assert sandbox.ledger.units_wasted == 0
        assert sandbox.ledger.violations == []

    - `requests`, `refused`: requests that arrived, and requests answered 429, by kind.
    - `violations`: a sentence for each act that a correct client never does.
    - `log`: every arrival in order, to check request limits.
    - `webhooks`: every attempt to send a notification, in the order of their ends.
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
        """The number of tasks in each state."""
        return Counter(task.state for task in self._tasks())

    @property
    def units_charged(self) -> int:
        """The units that were charged for all tasks, with any end."""
        return sum(task.units for task in self._tasks() if task.charged)

    @property
    def units_returned(self) -> int:
        """The units that were refunded after polls that reported a failure of the engine."""
        return sum(task.units for task in self._tasks() if task.refunded)

    @property
    def units_wasted(self) -> int:
        """The units of tasks without a result, whose lease ran out or which the vendor timed out.

        They include creations whose answer was lost, and stuck tasks that the client gave up, once
        their lease has run out.
        """
        lost = {"expired", "timed_out"}
        return sum(task.units for task in self._tasks() if task.charged and task.state in lost)

    @property
    def balance(self) -> float:
        """The units that are left: the units at the start, minus charged, plus returned ones."""
        return self._balance()

    def max_in_window(self, period: float) -> int:
        """Return the largest number of limited requests, with refused ones, in `period` seconds."""
        times = [entry.time for entry in self.log if entry.kind not in UNLIMITED]
        # Half open, like the sliding window; the tolerance is below the clock's microsecond.
        return max(
            (i + 1 - bisect_right(times, t - period + 1e-7) for i, t in enumerate(times)),
            default=0,
        )

    def __repr__(self) -> str:
        """Summarise the ledger, for failed assertions."""
        return f"<Ledger: {self}>"

    def __str__(self) -> str:
        """Summarise the ledger, for users."""
        states = ", ".join(f"{n} {state}" for state, n in sorted(self.tasks_by_state.items()))
        refused = sum(self.refused.values())
        return (
            f"{self.units_charged} units charged, {self.units_returned} returned, "
            f"{self.units_wasted} wasted, {self.balance:g} left; tasks: {states or 'none'}; "
            f"{sum(self.requests.values())} requests, {refused} refused, "
            f"{len(self.violations)} violations"
        )
