"""Frozen reports: events and states of jobs, templates, estimates, spending, and statistics.

They hold seconds, units and counts. No repr of them shows a signed URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, TypeAlias

import attrs

from perfect_async._value import Value
from perfect_async.errors import PerfectError, TaskError
from perfect_async.models import Job, Limits

JobEventKind: TypeAlias = Literal["queued", "uploaded", "submitted", "polled", "finished"]
TaskState: TypeAlias = Literal["queued", "preparing", "running", "done", "failed"]


@attrs.frozen(eq=False, repr=False)
class JobEvent(Value):
    """One step of a job's life: `Task.events` yields them, and `on_event` is called with them.

        async for event in task.events():
            print(event.at, event.kind, event.task_id)

    - `kind`: "queued" (the client has taken the job), "uploaded" (the vendor has its pictures),
      "submitted" (the vendor has accepted the task and charged it), "polled" (the vendor answered a
      poll), or "finished" (the outcome is known, and saved if that was asked for). A job on which
      the vendor's engine failed may be submitted again.
    - `job`: the job; None if only the task's id is known.
    - `task_id`: the vendor's id; None before the job is submitted.
    - `at`: the time, in UTC.
    """

    kind: JobEventKind
    job: Job | None
    task_id: str | None
    at: datetime


@attrs.frozen(eq=False, repr=False)
class TaskStatus(Value):
    """The state of a task at the vendor: the answer of `Client.status`.

    - `task_id`: the vendor's id.
    - `status`: "running", "success" or "error".
    - `results`: the vendor's decoded `results` of a success, else None. It holds signed URLs, so
      the repr leaves it out.
    - `error`: the error that waiting for the task would raise; None if the task runs or has
      succeeded.
    """

    task_id: str
    status: Literal["running", "success", "error"]
    results: object = attrs.field(default=None, eq=False, repr=False)
    error: TaskError | None = None


@attrs.frozen(eq=False, repr=False)
class Template(Value):
    """A style for `Avatar` or `Studio`: `Client.templates` yields them.

    - `id`: the value for `template_id`.
    - `title`, `category`: the vendor's texts for people.
    - `thumb`: the https URL of an example picture, or None.

    (contract: Templates)
    """

    id: str
    title: str
    category: str
    thumb: str | None


@attrs.frozen(eq=False, repr=False)
class LeaseBracket(Value):
    """The lease as far as `Client.measure_lease` has measured it; times in seconds.

    - `task_id`: the task that is polled for the measurement.
    - `survived`: the longest time without a poll that the task survived; 0.0 at first.
    - `lost`: the longest that the gap can have been that lost the task; None if none did.
    - `lease`: the lease that `Polling(lease="measured")` would use.
    - `ended`: whether the task ended during the last gap, which then shows nothing.
    """

    task_id: str
    survived: float
    lost: float | None
    lease: float
    ended: bool = False


@attrs.frozen(eq=False, repr=False)
class Estimate(Value):
    """The expected cost and duration of jobs: the answer of `Client.estimate`.

        estimate = await client.estimate(jobs)
        print(f"{estimate.units:g} units, {estimate.seconds:.0f} s")

    - `jobs`: the number of jobs.
    - `units`, `by_feature`: the units of all jobs, and of each feature.
    - `documented`: True if documented prices were used for features that the vendor's price list
      does not name.
    - `seconds`: the time until all jobs end, if they were started now behind the client's other
      jobs; an estimate, not a promise.
    - `measured`: True if tasks of each kind have been seen to end on this key; else `seconds`
      counts on documented or assumed durations.

    (contract: Expiry and charging)
    """

    jobs: int
    units: float
    by_feature: Mapping[str, float]
    documented: bool
    seconds: float
    measured: bool


@attrs.frozen(eq=False, repr=False)
class HistoryEntry(Value):
    """One entry of the account's unit history: `Client.history` yields them.

        async for entry in client.history():
            print(entry.at, entry.action, entry.units)

    - `at`: the time in UTC; None if the vendor's time cannot be read.
    - `action`: the vendor's name for the charge or credit, such as "api_hair_style".
    - `units`: the change of the balance as the vendor states it, or None. A charge is negative by
      the vendor's documents; no real one was recorded.
    - `target_id`: the id of the task that was charged, or of the order of a purchase.

    (contract: History)
    """

    at: datetime | None
    action: str
    units: float | None
    target_id: str | None


@attrs.frozen(eq=False, repr=False)
class Spending(Value):
    """Units since the client opened, by the prices of the features: `Statistics.units`.

    A task of a `Feature` without `units=` has no known price and counts as 1 unit, the least that
    it can cost.

    - `charged`: units of the tasks that were created, or taken over from a journal.
    - `returned`: units that the vendor returned after its engine failed.
    - `at_stake`: units that were charged, or may have been, without a result: the task was lost or
      abandoned, or its creation is in doubt.

    If no task runs and no creation is in doubt, `charged - returned - at_stake` is the price of the
    delivered pictures.
    """

    charged: float
    returned: float
    at_stake: float


@attrs.frozen(eq=False, repr=False)
class Statistics(Value):
    """The state of a client: the answer of `Client.statistics`. All times are in seconds.

        statistics = client.statistics()
        print(statistics.running, statistics.requests_in_window, statistics.units.charged)

    Jobs now: `waiting`, `preparing` (their pictures are registered or uploaded), `ready` (to be
    created), `running` (the vendor has the task).

    Since the client opened:

    - `done`, `failed`: jobs that ended.
    - `requests`: requests that were sent, by kind; `refused`: how many got a 429.
    - `tries`: polls that were sent again within a lease.
    - `late`: polls that left after their time slot, however little.
    - `blocked`: how often other code blocked the event loop for more than half a second;
      `Client(isolated=True)` makes that harmless.
    - `units`: the units that were charged, returned and lost.

    The request window of the key:

    - `requests_in_window`: requests that count against the limit now.
    - `window_limit`: the limit that the client assumes; below `Limits.requests` after signs that
      another program uses the key.
    - `members`: processes and event loops that share the key by a ledger, this one included.
    - `requests_by_others`: how many of `requests_in_window` the other members sent.
    - `window_wait`: the time until the first job can be sent if jobs wait, no task runs, and the
      window is full, by requests of this client or of others; else 0.
    - `limits`, `lease`: the settings in force, the strictest of all members.

    Polls and connections:

    - `cycle`: the time between two polls of one task.
    - `patience`: how long a poll may be without an answer before a second one is sent.
    - `longest_gap`: the longest time without a poll that a running task was seen to survive. It is
      only shown; no plan uses it.
    - `connect`: how long the first connection took; `round_trip`: how long the last API call took;
      `clock_skew`: how far the vendor's clock is ahead of this machine's, to about a second,
      negative if it is behind. Each is None before it is known.
    - `reached`: whether the vendor has answered a request.
    - `last_failure`: the error of the last request; None if that one got a usable answer.
    """

    waiting: int
    preparing: int
    ready: int
    running: int
    done: int
    failed: int
    requests_in_window: int
    window_limit: int
    requests: Mapping[str, int]
    refused: int
    tries: int
    late: int
    cycle: float
    patience: float
    units: Spending
    blocked: int = 0
    members: int = 1
    requests_by_others: int = 0
    window_wait: float = 0.0
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    lease: float = 10.0
    longest_gap: float = 0.0
    # These are of one client's own connections; clients that share the rest differ in them.
    connect: float | None = attrs.field(default=None, eq=False)
    round_trip: float | None = attrs.field(default=None, eq=False)
    clock_skew: float | None = attrs.field(default=None, eq=False)
    reached: bool = False
    last_failure: PerfectError | None = None
