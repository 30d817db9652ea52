"""What a failure becomes: news for the scheduler, and an error for whoever waits."""

from __future__ import annotations

from perfect_async import events as ev
from perfect_async._log import LOG, type_name
from perfect_async._runtime.handle import JobHandle
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    JobRefused,
    PerfectError,
    RequestRefused,
    ServiceUnavailable,
    SubmissionInDoubt,
    TaskAbandoned,
    quoted,
)


def failure_event(command: ev.Request | ev.Upload, error: Exception) -> ev.Answer:
    """The news that `error` is for `command`.

    It goes on without its traceback, whose frames hold pictures. What is no error of ours came out
    of a transport that the user made: its mistakes may not cost the other tasks.
    """
    error = error.with_traceback(None)
    match error:
        case ServiceUnavailable(never_sent=True):
            return ev.NotSent(command, error)
        case ServiceUnavailable() | BadAnswer():
            return ev.NoAnswer(command, error)
        case RequestRefused():
            return ev.Refused(command, error, error.status or 0)
        case JobRefused():
            return ev.Refused(command, error, 0)
        case _:
            LOG.error("The transport failed in a way of its own: %s.", type_name(error))
            return ev.NoAnswer(
                command, ServiceUnavailable(f"the transport failed: {type_name(error)}.")
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
