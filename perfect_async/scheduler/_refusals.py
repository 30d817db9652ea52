"""Why a job is not sent, or is let go: what ended for the client ends its jobs too.

All times are integer microseconds.
"""

from __future__ import annotations

from typing import Final

from perfect_async._time import SECOND
from perfect_async.errors import ClientClosed, PerfectError, SubmissionInDoubt, TaskAbandoned
from perfect_async.scheduler._job import ScheduledJob

_POOR: Final = 60 * SECOND
"""How long a refused balance is believed; then one job asks again."""


class Refusals:
    """What speaks against creating anything: `closed` lanes, a `dead` key, too low a balance."""

    def __init__(self) -> None:
        self.closed: set[int] = set()
        self.dead: PerfectError | None = None
        self._poor: tuple[int, float, PerfectError] | None = None

    def out_of_units(self, job: ScheduledJob, error: PerfectError, now: int) -> None:
        """The balance was too low for `job`, so it is for what costs as much."""
        least = job.units
        if self._poor is not None and now < self._poor[0]:
            least = min(least, self._poor[1])
        self._poor = now + _POOR, least, error

    def refusal(self, job: ScheduledJob, now: int) -> PerfectError | None:
        """Why the job need not even be sent."""
        if job.channel in self.closed:
            return ClientClosed("The client is closing.")
        if self.dead is not None:
            return self.dead
        if self._poor is not None and now < self._poor[0] and job.units >= self._poor[1]:
            return self._poor[2]
        return None


def abandoned(job: ScheduledJob, give_up: int, *, closed: bool) -> PerfectError:
    """Why a task that still runs is asked for no longer; `give_up` as in `Polling`."""
    message = f"The task had not ended after {give_up / SECOND:g} s and is abandoned."
    if closed:
        message = "The client closed while the task was still running."
    if job.trouble is not None:
        message = f"{message} Last seen: {job.trouble.message}"
    return TaskAbandoned(
        message,
        task_id=job.task_id,
        request_id=getattr(job.trouble, "request_id", None),
        units_at_stake=job.charged,
    )


def in_doubt(job: ScheduledJob, error: PerfectError | None) -> PerfectError:
    """Why nobody knows whether the job has a task; `error` None: the client closed first.

    An `error` that says so itself has looked into the unit history, and knows what is at stake.
    """
    if isinstance(error, SubmissionInDoubt):
        return error
    why = "the client closed first." if error is None else error.message
    message = f"The task's creation went out and no usable answer came back: {why}"
    request_id = getattr(error, "request_id", None)
    return SubmissionInDoubt(message, request_id=request_id, units_at_stake=job.units)
