"""The public names, signatures and fields that programs outside of this repository use."""

import inspect
from inspect import Parameter

import attrs
import pytest

import perfect_async
from perfect_async import (
    Avatar,
    Batch,
    Client,
    Done,
    Estimate,
    Failed,
    Feature,
    HistoryEntry,
    JobEvent,
    JobInput,
    Limits,
    Placeholder,
    Polling,
    Progress,
    Result,
    ResultImage,
    Smile,
    Studio,
    Task,
    TaskStatus,
    Units,
    fleet,
    telemetry,
)


def signature_of(function: object) -> str:
    """Return a signature as it is written, without types."""
    assert callable(function)
    shown: list[str] = []
    star = False
    for name, each in inspect.signature(function).parameters.items():
        if each.kind is Parameter.KEYWORD_ONLY and not star:
            star = True
            shown.append("*")
        shown.append(name if each.default is Parameter.empty else f"{name}={each.default!r}")
    return ", ".join(shown)


def test_the_names_are_sorted_and_are_there() -> None:
    """The list of names is sorted, names nothing twice, and each is an attribute."""
    assert sorted(set(perfect_async.__all__)) == perfect_async.__all__
    assert [] == [name for name in perfect_async.__all__ if not hasattr(perfect_async, name)]


@pytest.mark.parametrize("name", [n for n in perfect_async.__all__ if n != "Outcome"])
def test_public_things_say_where_they_are_from(name: str) -> None:
    """A class is printed as `perfect_async.X` and has a docstring, as have its public methods."""
    thing = getattr(perfect_async, name)
    undocumented = [
        method
        for method, value in vars(thing).items()
        if not method.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property))
        and not value.__doc__
    ]

    assert "perfect_async" == thing.__module__
    assert thing.__doc__
    assert [] == undocumented


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            Client,
            (
                "api_key=None, *, base_url=None, "
                "limits=Limits(requests=250, period=300.0, per_second=5), "
                "polling=Polling(lease=10.0, interval=2.0, insured=120.0, give_up_after=600.0, "
                "completion=None), "
                "timeouts=Timeouts(connect=10.0, request=30.0, upload=120.0, download=120.0, "
                "video=900.0), "
                "transport=None, drain=30.0, engine_retries=1, max_units=None, journal=None, "
                "reuse=None, webhook_secret=None, isolated=False, sole_user=False, share=<unset>, "
                "fit=False, on_event=None"
            ),
        ),
        (
            Client.run,
            (
                "self, job, timeout=None, *, save_to=None, delete=False, give_up_after=None, "
                "engine_retries=None, buy_in_doubt=False"
            ),
        ),
        (
            Client.submit,
            (
                "self, job, timeout=None, *, save_to=None, delete=False, give_up_after=None, "
                "engine_retries=None, buy_in_doubt=False"
            ),
        ),
        (Client.task, "self, feature, task_id, *, version='v2.0'"),
        (Client.upload, "self, source"),
        (Client.status, "self, feature, task_id, *, version='v2.0'"),
        (Task.result, "self, timeout=None"),
        (Task.events, "self"),
        (
            Client.batch,
            (
                "self, jobs, *, max_units=None, ordered=False, save_to=None, delete=False, "
                "give_up_after=None, engine_retries=None, buy_in_doubt=False, resume=False"
            ),
        ),
        (Client.resume, "self"),
        (Client.attach, "self, feature, task_id, timeout=None, *, version='v2.0'"),
        (Client.templates, "self, feature=<class 'perfect_async.Avatar'>, *, version='v2.0'"),
        (Client.estimate, "self, jobs"),
        (Client.history, "self"),
        (Client.delete, "self, task_id"),
        (Client.units, "self"),
        (Client.observe, "self, observer"),
        (
            telemetry.instrument,
            "client, *, tracer_provider=None, meter_provider=None, lease=10.0",
        ),
        (Client.statistics, "self"),
        (Client.open, "self"),
        (Client.close, "self"),
        (Limits, "requests=250, period=300.0, per_second=5"),
        (Limits.split, "self, parts"),
        (Polling, "lease=10.0, interval=2.0, insured=120.0, give_up_after=600.0, completion=None"),
        (Smile, "source, expression='smile_with_teeth_visible', key=None"),
        (Avatar, "source, template_id, output_count=4, key=None"),
        (Studio, "source, template_id, output_count=4, key=None"),
        (
            Feature,
            (
                "path, params=None, *, src=None, ref=None, mask=None, version='v2.0', "
                "units=None, key=None, others"
            ),
        ),
        (Placeholder, "name, index=0"),
        (JobInput, "name, source, index=None"),
        (Result.save, "self, target"),
        (fleet.Performer, "client, folders"),
        (fleet.Performer.perform, "self, order"),
        (
            fleet.Worker,
            (
                "redis, folders, *, make_client=None, on_answer=None, concurrency=64, "
                "queue='perfect_async'"
            ),
        ),
        (fleet.enqueue, "redis, orders, *, queue='perfect_async'"),
        (fleet.make_order, "job, save_to, *, digest=None"),
        (Result.read, "self"),
        (ResultImage.read, "self"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures_are_promises(function: object, expected: str) -> None:
    """What callers may write does not change by accident."""
    assert expected == signature_of(function)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Progress, ["total", "done", "failed", "running", "waiting", "units", "eta"]),
        (Units, ["balance", "grants"]),
        (ResultImage, ["url", "expires_at", "_place"]),
        (HistoryEntry, ["at", "action", "units", "target_id"]),
        (Estimate, ["jobs", "units", "by_feature", "documented", "seconds", "measured"]),
        (JobEvent, ["kind", "job", "task_id", "at"]),
        (TaskStatus, ["task_id", "status", "results", "error"]),
        (
            Done,
            ["job", "result", "task_id", "units", "duration", "files", "changes", "ok", "error"],
        ),
        (
            Failed,
            ["job", "error", "task_id", "units", "duration", "files", "changes", "ok", "result"],
        ),
    ],
)
def test_fields_are_promises(kind: type[attrs.AttrsInstance], fields: list[str]) -> None:
    """What outcomes and progress hold does not change by accident."""
    assert fields == [field.name for field in attrs.fields(kind)]


def test_outcomes_have_the_same_fields() -> None:
    """Either kind of outcome answers the same questions."""
    assert {each.name for each in attrs.fields(Done)} == {f.name for f in attrs.fields(Failed)}
    assert Done.unwrap.__doc__
    assert Failed.unwrap.__doc__


def test_a_batch_is_a_context_manager_and_an_iterator() -> None:
    """`async with` and `async for` are how a batch is used."""
    for name in ("__aenter__", "__aexit__", "__aiter__", "__anext__", "progress"):
        assert hasattr(Batch, name)
    assert "self, path=None" == signature_of(Batch.report)


def test_the_names_of_a_report() -> None:
    """A report can be looked at by a program, and written again."""
    from perfect_async import report

    names = ["JobOutcome", "Report", "ReportFailure", "ReportJob", "ReportRequest"]
    assert [*names, "check_path", "write"] == report.__all__
