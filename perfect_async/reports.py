"""Frozen reports: events and states of jobs, templates, estimates, spending, and statistics.

They hold seconds, units and counts; none of them shows a signed URL.
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
    """Something that was done for a job: what `Task.events` gives.

        async for event in task.events():
            print(event.at, event.kind, event.task_id)

    `kind`: "queued" (the client has taken the job), "uploaded" (the vendor has its pictures),
    "submitted" (the vendor has accepted the task, which is charged), "polled" (an answer about the
    task came), "finished" (the outcome is there, and saved where that was asked for). A job whose
    engine failed may be submitted again. `job` is None where only the task's id is known. `task_id`
    is the task's, None before it is submitted. `at` is in UTC.
    """

    kind: JobEventKind
    job: Job | None
    task_id: str | None
    at: datetime


@attrs.frozen(eq=False, repr=False)
class TaskStatus(Value):
    """What the vendor says of a task: what `Client.status` gives.

    `status`: "running", "success" or "error". `results` is the vendor's decoded `results` of a
    success, with signed URLs, so the repr leaves it out; else None. `error` is the error that
    waiting for the task would raise, None where it runs or has succeeded.
    """

    task_id: str
    status: Literal["running", "success", "error"]
    results: object = attrs.field(default=None, eq=False, repr=False)
    error: TaskError | None = None


@attrs.frozen(eq=False, repr=False)
class Template(Value):
    """A style for `Avatar`: `id` goes into `template_id`; `thumb` is a safe https URL or None.

    (contract: Templates)
    """

    id: str
    title: str
    category: str
    thumb: str | None


@attrs.frozen(eq=False, repr=False)
class LeaseBracket(Value):
    """What `Client.measure_lease` knows after a gap; times in seconds.

    `survived`: the longest gap through which the task ran, 0.0 before one. `lost`: the gap that
    lost it, at most, None where none did. `lease`: what `Polling(lease="measured")` would use.
    `ended`: the task ended during the last gap, which therefore shows nothing.
    """

    task_id: str
    survived: float
    lost: float | None
    lease: float
    ended: bool = False


@attrs.frozen(eq=False, repr=False)
class Estimate(Value):
    """The expected cost of `jobs`: `units` in all and `by_feature`, and `seconds` until all end.

        estimate = await client.estimate(jobs)
        print(f"{estimate.units:g} units, {estimate.seconds:.0f} s")

    `documented` is True if the vendor's price list did not name every feature, and the documented
    prices were used for the others (contract: Expiry and charging). `seconds` is the scheduler's
    reckoning by the request window as it is now, behind the client's other jobs, and no promise.
    `measured` is True if tasks of each kind were seen to end on this key; where it is False the
    documented durations, or an assumption, stand in.
    """

    jobs: int
    units: float
    by_feature: Mapping[str, float]
    documented: bool
    seconds: float
    measured: bool


@attrs.frozen(eq=False, repr=False)
class HistoryEntry(Value):
    """One entry of the account's unit history: what `Client.history` gives.

        async for entry in client.history():
            print(entry.at, entry.action, entry.units)

    `at` is in UTC, None where the vendor gave no time that can be read. `action` is the vendor's
    name for what was paid, such as "api_hair_style". `units` is the change of the balance as the
    vendor states it, None where it states none; a charge is negative by its documents, which was
    not seen (contract: History). `target_id` is the task of a charge or the order of a purchase.
    """

    at: datetime | None
    action: str
    units: float | None
    target_id: str | None


@attrs.frozen(eq=False, repr=False)
class Spending(Value):
    """Units since the client opened, by the prices of the features.

    `charged`: for tasks that were created, or taken over from a journal. `returned`: after failures
    of the engine. `at_stake`: charged, or perhaps charged, without a result (lost, abandoned, in
    doubt). `charged - returned - at_stake` is the price of the delivered pictures when nothing runs
    and no creation is in doubt.
    """

    charged: float
    returned: float
    at_stake: float


@attrs.frozen(eq=False, repr=False)
class Statistics(Value):
    """The state of a client: counts since it opened unless said otherwise, times in seconds.

    `waiting`, `preparing` (registering or uploading), `ready`, `running`: jobs now.
    `requests_in_window`: requests that occupy the limit's window now; `window_limit`: the number
    assumed to be allowed in it (below `Limits.requests` after signs of foreign use). `requests`:
    sent, by kind; `refused`: 429s; `tries`: polls sent again inside a lease; `late`: polls that
    left after their slot, however little. `cycle`: seconds between two polls of one task;
    `patience`: seconds until a second poll is sent beside a silent one. `units`: the spending.
    `blocked`: how often the event loop woke more than half a second late, with or without a poll to
    send, because other code had blocked it; `Client(isolated=True)` makes that harmless.

    `members`: processes (and event loops) that share the key by a ledger now, this one included; 1
    where it is alone. `requests_by_others`: how many of `requests_in_window` the others sent.
    `window_wait`: seconds until the first job can be sent, where others have used the window; else
    0.

    `limits` and `lease` (seconds): those in force, the strictest of all members. `longest_gap`: the
    longest time without a poll that a running task was seen to survive, in seconds; it is shown,
    and nothing is planned by it. `connect`: what making the first connection took; `round_trip`:
    the last answered API call; `clock_skew`: how far the vendor's clock is ahead of ours by the
    `Date` of its answer (negative: behind), to about a second. All three in seconds, and None
    before they are known. `reached`: the vendor has answered a request. `last_failure`: why the
    last request got no usable answer, None where it got one.
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
    # Of one client's connections: clients that share all else differ in these.
    connect: float | None = attrs.field(default=None, eq=False)
    round_trip: float | None = attrs.field(default=None, eq=False)
    clock_skew: float | None = attrs.field(default=None, eq=False)
    reached: bool = False
    last_failure: PerfectError | None = None
