"""The account of a run: the bound, percentiles, causes of failures and the timeline."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.loads import bound as benchmark_bound
from perfect_async.models import FILES_PER_CALL
from perfect_async.report import Report, ReportJob, ReportRequest
from perfect_async.report._account import account, bound, causes, margin, percentile, timeline
from tests.report.made import failure, request, smile_run

NOTHING = Report(())


@given(st.lists(st.floats(0.5, 600.0), min_size=1, max_size=400))
def test_the_bound_is_that_of_the_benchmarks(durations: list[float]) -> None:
    """The time that no schedule can beat is computed as the benchmarks compute it."""
    least = bound(NOTHING, durations, len(durations))

    assert least is not None
    assert benchmark_bound(durations, FILES_PER_CALL) == pytest.approx(least.seconds)


def test_the_bound_counts_creations_registrations_and_polls() -> None:
    """Two pictures of 8 and 25 s cost a registration, two creations, and one and three polls."""
    least = bound(NOTHING, [8.0, 25.0], 2)

    assert least is not None
    assert (7, 25.0) == (least.requests, least.seconds)
    assert bound(NOTHING, [], 0) is None


@given(st.lists(st.floats(0, 1000), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_one_of_the_values(values: list[float], share: float) -> None:
    """At least the share does not exceed it, and fewer do not exceed any smaller value."""
    found = percentile(values, share)

    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_nothing_has_no_percentile() -> None:
    """Without values there is none."""
    assert percentile([], 0.5) is None


def test_failures_are_grouped_by_their_solution() -> None:
    """One cause holds all of its jobs, the most frequent cause is first, unsent jobs are none."""
    jobs = (
        ReportJob(1, "a", "failed", failure=failure("one", "error_pose")),
        ReportJob(2, "b", "failed", failure=failure("two")),
        ReportJob(3, "c", "failed", failure=failure("three")),
        ReportJob(4, "d", "not sent", failure=failure("stopped", None)),
        ReportJob(5, "e", "done"),
    )

    found = causes(jobs)

    assert [("two", [2, 3]), ("one", [1])] == [
        (cause.failure.message, [job.number for job in cause.jobs]) for cause in found
    ]


def test_a_line_has_its_runs_polls_and_leases() -> None:
    """The lease lasts until 10 s after the last poll that saw the task running."""
    first, second = timeline(smile_run())

    assert (1, ((0.0, 9.05),), ((8.8, True),), ((0.0, 10.0),)) == (
        first.job.number,
        first.runs,
        first.polls,
        first.leases,
    )
    assert (((1.0, 18.85),), ((1.0, 19.8),)) == (second.runs, second.leases)
    assert (0.0,) == first.lasted
    assert [pytest.approx(8.55)] == list(second.lasted)
    assert (0.0, 10.0) == (first.began, first.until)


def test_a_lease_that_ended_leaves_a_gap() -> None:
    """Where no poll came in time the band has a hole, which is the loss."""
    report = Report(
        (ReportJob(1, "a", "failed", ended=25.1),),
        requests=(
            request("create", 1, 0.0, "Accepted"),
            ReportRequest("poll", (1,), 8.0, 9.0, "NoAnswer", 2),
            request("poll", 1, 15.0),
            request("poll", 1, 25.0, "TaskUnknown"),
        ),
    )

    [line] = timeline(report)

    assert ((0.0, 10.0), (15.0, 25.0)) == line.leases
    assert ((8.0, False), (15.0, True), (25.0, True)) == line.polls


def test_a_second_try_is_a_second_run() -> None:
    """A task that the engine failed and the one after it are two runs on one line."""
    report = Report(
        (ReportJob(1, "a", "done", ended=20.25),),
        requests=(
            request("create", 1, 0.0, "Accepted"),
            request("poll", 1, 5.0, "EngineFailed"),
            request("create", 1, 9.0, "Limited"),
            request("create", 1, 12.0, "Accepted"),
            request("poll", 1, 20.0, "Succeeded"),
        ),
    )

    [line] = timeline(report)

    assert ((0.0, 5.25), (12.0, 20.25)) == line.runs


def test_jobs_without_a_task_have_no_line() -> None:
    """A job without a task, and one of which only a refused creation is known, are not drawn."""
    report = Report(
        (ReportJob(1, "a", "failed"), ReportJob(2, "b", "failed")),
        requests=(request("create", 1, 0.0, "OutOfUnits"),),
    )

    assert () == timeline(report)
    assert timeline(
        Report((ReportJob(1, "a", "running"),), requests=(request("create", 1, 0, ""),))
    )


def test_a_task_that_was_taken_over_begins_with_its_first_poll() -> None:
    """Its creation was another process's, so nothing is known of it before."""
    report = Report(
        (ReportJob(1, "a", "done"),),
        requests=(request("poll", 1, 3.0), request("poll", 1, 9.0, "Succeeded")),
    )

    [line] = timeline(report)

    assert (((3.0, 9.25),), ((3.0, 13.0),)) == (line.runs, line.leases)


def test_the_account_counts_what_was_sent_for_the_jobs() -> None:
    """Requests of others are left out; the bound is about the tasks that ran."""
    report = smile_run()

    found = account(report, timeline(report))

    assert (1, 1, 0, 0, 0) == (
        found.done,
        found.failed,
        found.running,
        found.unsent,
        found.already_there,
    )
    assert (6, (("register", 1), ("create", 2), ("poll", 3)), 0) == (
        found.requests,
        found.by_kind,
        found.refused,
    )
    assert (6.0, 5.0) == (found.per_picture, found.bound_per_picture)
    assert (9.05, 17.85) == (found.median, found.slow)
    assert found.margin == pytest.approx(0.95)


def test_a_part_has_no_bound() -> None:
    """While jobs run, or where earlier ones were left out, nothing is compared with the bound."""
    report = attrs.evolve(smile_run(), left_out=3)

    assert account(report, timeline(report)).bound is None


def test_without_polls_there_is_no_margin() -> None:
    """A report of saved files knows of no lease."""
    assert margin((), NOTHING) is None
    found = account(NOTHING, ())
    assert (None, None, None) == (found.per_picture, found.bound, found.median)
