"""The account of a run: requests against the bound, durations, causes of failures, leases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from perfect_async._value import Value
from perfect_async.models import FILES_PER_CALL
from perfect_async.report._values import Report, ReportFailure, ReportJob, ReportRequest

_FINAL: Final = {"Succeeded", "EngineFailed", "TaskUnknown", "TimedOut", "Unreadable"}
"""Answers to a poll after which the task is polled no longer."""


@attrs.frozen(eq=False, repr=False)
class Bound(Value):
    """The least that any schedule needs which knows all durations and polls at the lease's end.

    A task is only known to have lasted until the last poll that saw it running, so this is what is
    certain; the true bound may be a little higher.
    """

    requests: int
    seconds: float


def bound(report: Report, durations: Sequence[float], registered: int) -> Bound | None:
    """Return the bound for tasks of these `durations`, of which `registered` needed an upload."""
    if not durations:
        return None
    requests = len(durations) + -(-registered // FILES_PER_CALL)
    requests += sum(max(1, math.ceil(duration / report.lease)) for duration in durations)
    windows = (requests - 1) // report.requests_limit
    rest = requests - windows * report.requests_limit
    filling = windows * report.period + rest / report.per_second
    return Bound(requests, max(*durations, requests / report.per_second, filling))


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest of `values` that a `share` of them does not exceed, None without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


@attrs.frozen(eq=False, repr=False)
class Cause(Value):
    """One cause of failures: the first of them, and all jobs that failed so."""

    failure: ReportFailure
    jobs: tuple[ReportJob, ...]


def causes(jobs: Iterable[ReportJob]) -> tuple[Cause, ...]:
    """Group failures by kind, code and hint, the largest group first.

    One action solves all failures of a group.
    """
    groups: dict[tuple[str, str | None, str], list[ReportJob]] = {}
    for job in jobs:
        if job.failure is not None and job.outcome != "not sent":
            key = job.failure.kind, job.failure.code, job.failure.hint
            groups.setdefault(key, []).append(job)
    found = [Cause(group[0].failure, tuple(group)) for group in groups.values() if group[0].failure]
    return tuple(sorted(found, key=lambda cause: -len(cause.jobs)))


@attrs.frozen(eq=False, repr=False)
class TaskLine(Value):
    """A job's tasks on the timeline, in seconds.

    `runs` are (creation, end) of its tasks, more than one after repeated tries; an end of None is
    not known. `polls` are (time, whether it was answered). `leases` are (beginning, expiry): each
    creation and each poll that saw it running renews the lease, and overlapping ones are one.
    `lasted` says for each run that ended how long it certainly did.
    """

    job: ReportJob
    runs: tuple[tuple[float, float | None], ...]
    polls: tuple[tuple[float, bool], ...]
    leases: tuple[tuple[float, float], ...]
    lasted: tuple[float, ...]

    @property
    def began(self) -> float:
        """When its first task was created."""
        return self.runs[0][0]

    @property
    def until(self) -> float:
        """The last moment of the line."""
        ends = [end for _, end in self.runs if end is not None]
        return max([*ends, *(expiry for _, expiry in self.leases), *(at for at, _ in self.polls)])


def timeline(report: Report) -> tuple[TaskLine, ...]:
    """Return the jobs whose tasks were seen, by the time of their creation."""
    requests: dict[int, list[ReportRequest]] = {}
    for request in report.requests:
        if request.kind in {"create", "poll"}:
            for number in request.jobs:
                requests.setdefault(number, []).append(request)
    lines = [_line(job, requests.get(job.number, ()), report.lease) for job in report.jobs]
    found = [line for line in lines if line is not None]
    return tuple(sorted(found, key=lambda line: (line.began, line.job.number)))


def _line(job: ReportJob, requests: Sequence[ReportRequest], lease: float) -> TaskLine | None:
    runs: list[tuple[float, float | None]] = []
    polls: list[tuple[float, bool]] = []
    leases: list[tuple[float, float]] = []
    lasted: list[float] = []
    created = running = 0.0
    for request in requests:
        if request.kind == "create":
            if request.answer not in {"Accepted", "NoAnswer", ""}:
                # A job that was refused or not sent has no task.
                continue
            runs.append((request.left, None))
            created = running = request.left if request.answered is None else request.answered
            _renew(leases, request.left, lease)
            continue
        if not runs:
            # This task was taken over, so the lease that its creator left is not known.
            runs.append((request.left, None))
            created = running = request.left
        polls.append((request.left, request.answer not in {"", "NoAnswer", "NotSent"}))
        if request.answer == "Running":
            # The lease is counted from when the poll was sent; the vendor got it later.
            _renew(leases, request.left, lease)
            running = request.left
        elif request.answer in _FINAL and runs[-1][1] is None:
            runs[-1] = runs[-1][0], request.answered
            lasted.append(max(0.0, running - created))
    if not runs:
        return None
    if runs[-1][1] is None:
        runs[-1] = runs[-1][0], job.ended
    return TaskLine(job, tuple(runs), tuple(polls), tuple(leases), tuple(lasted))


def _renew(leases: list[tuple[float, float]], at: float, lease: float) -> None:
    if leases and at <= leases[-1][1]:
        leases[-1] = leases[-1][0], max(leases[-1][1], at + lease)
    else:
        leases.append((at, at + lease))


def margin(lines: Iterable[TaskLine], report: Report) -> float | None:
    """Return the least seconds that were left of a lease when its next poll had its answer."""
    left: list[float] = []
    answered = {
        (number, request.left): request
        for request in report.requests
        if request.kind == "poll" and request.answer
        for number in request.jobs
    }
    for line in lines:
        renewed = line.began
        for at, was_answered in line.polls:
            request = answered.get((line.job.number, at))
            if not was_answered or request is None or request.answered is None:
                continue
            left.append(renewed + report.lease - request.answered)
            renewed = at
    return min(left, default=None)


@attrs.frozen(eq=False, repr=False)
class Account(Value):
    """The numbers at the head of a report; None where nothing is known.

    `requests` were sent for the jobs, `per_picture` is that number for each job that is done, and
    `bound` the least that its tasks could have needed. `refused` requests were answered by 429.
    """

    done: int
    failed: int
    running: int
    unsent: int
    already_there: int
    requests: int
    by_kind: tuple[tuple[str, int], ...]
    refused: int
    per_picture: float | None
    bound: Bound | None
    bound_per_picture: float | None
    median: float | None
    slow: float | None
    margin: float | None


def account(report: Report, lines: Sequence[TaskLine]) -> Account:
    """Return the account of `report`, whose timeline is `lines`."""
    outcomes = [job.outcome for job in report.jobs]
    sent = [request for request in report.requests if request.jobs and request.answer != "NotSent"]
    kinds = ("register", "create", "poll")
    created = {number for request in sent if request.kind == "create" for number in request.jobs}
    registered = {
        number for request in sent if request.kind == "register" for number in request.jobs
    }
    durations = [seconds for line in lines for seconds in line.lasted]
    done = outcomes.count("done")
    pictures = sum(job.outcome == "done" and job.number in created for job in report.jobs)
    # The bound holds for whole runs; a part of the requests says nothing about it.
    whole = not report.left_out and not outcomes.count("running") and bool(pictures)
    least = bound(report, durations, len(registered)) if whole else None
    lasted = [job.duration for job in report.jobs if job.duration is not None]
    return Account(
        done=done,
        failed=outcomes.count("failed"),
        running=outcomes.count("running"),
        unsent=outcomes.count("not sent"),
        already_there=outcomes.count("already there"),
        requests=len(sent),
        by_kind=tuple((kind, sum(one.kind == kind for one in sent)) for kind in kinds),
        refused=sum(request.answer == "Limited" for request in sent),
        per_picture=len(sent) / pictures if whole else None,
        bound=least,
        bound_per_picture=None if least is None else least.requests / pictures,
        median=percentile(lasted, 0.5),
        slow=percentile(lasted, 0.95),
        margin=margin(lines, report),
    )
