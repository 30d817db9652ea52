"""The errors of jobs that are given up."""

from __future__ import annotations

from perfect_async._log import LOG, type_name
from perfect_async._runtime.handle import JobHandle
from perfect_async.errors import (
    ClientClosed,
    PerfectError,
    SubmissionInDoubt,
    TaskAbandoned,
    quoted,
)


def closed(cause: BaseException | None) -> ClientClosed:
    """The error for what was not sent before the driver ended, of `cause` if it was a failure."""
    why = (
        "The client is closed."
        if cause is None
        else f"The client's driver ended: {type_name(cause)}."
    )
    error = ClientClosed(why)
    error.__cause__ = cause
    return error


def given_up(handle: JobHandle, cause: BaseException | None) -> PerfectError:
    """The error for a job that is looked after no longer."""
    error: PerfectError = closed(cause)
    why, units = error.message, handle.at_stake
    if handle.task_id is not None:
        error = TaskAbandoned(why, task_id=handle.task_id, units_at_stake=units)
    elif handle.submitting:
        error = SubmissionInDoubt(f"{why} The creation was under way.", units_at_stake=units)
    error.__cause__ = cause
    return error


def warn_of(left: list[JobHandle], drain: float) -> None:
    """Say which tasks of a client that closes still run after `drain` seconds, if any do."""
    left = [handle for handle in left if handle.at_stake]
    if not left:
        return
    most = 20
    named = ", ".join(quoted(handle.task_id or "(creation under way)") for handle in left[:most])
    LOG.warning(
        "Closing after %g s of draining: %d tasks still run and are no longer kept alive, "
        "%g units are at stake: %s%s",
        drain,
        len(left),
        sum(handle.at_stake for handle in left),
        named,
        f" and {len(left) - most} more" if len(left) > most else "",
    )
