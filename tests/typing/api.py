"""The types of the public API; mypy and pyright check this file, and it is never run.

Lines that must be errors are marked, and both checkers report an unneeded mark, so a type that
becomes looser fails the check.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import io
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal, assert_never, assert_type

import httpx
import PIL.Image
from starlette.applications import Starlette
from starlette.types import ASGIApp

from perfect_async import (
    ApiError,
    Avatar,
    BadAnswer,
    Batch,
    Client,
    ClientClosed,
    ConfigurationError,
    Done,
    Estimate,
    Failed,
    Feature,
    FileId,
    Grant,
    HistoryEntry,
    Job,
    JobEvent,
    JobInput,
    JobRefused,
    Limits,
    Outcome,
    PerfectError,
    PictureRefused,
    Placeholder,
    Polling,
    Progress,
    RateLimited,
    RequestRefused,
    Result,
    ResultImage,
    ResultUnreadable,
    ServiceUnavailable,
    Smile,
    Statistics,
    Studio,
    SubmissionInDoubt,
    Task,
    TaskAbandoned,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskStatus,
    TaskTimedOut,
    Template,
    Timeouts,
    Unauthorized,
    Units,
    UnitsExhausted,
    WaitTimeout,
    WebhookRejected,
    telemetry,
)
from perfect_async.fleet import Answer, Order, Performer, Worker, enqueue, make_order
from perfect_async.report import Report
from perfect_async.sandbox import (
    Durations,
    Faults,
    Ledger,
    Sandbox,
    WebhookFaults,
    WebhookRecord,
    portrait,
)
from perfect_async.webhooks import Headers, Notification, Secrets, WebhookApp, verify


async def _on_event(event: JobEvent) -> None:
    assert_type(event.task_id, str | None)


def _on_text(text: str) -> None:
    del text


def clients(transport: httpx.AsyncBaseTransport, sandbox: Sandbox) -> None:
    """Every argument has a default, and all but the key are keyword-only."""
    assert_type(Client(), Client)
    assert_type(Client("key"), Client)
    Client(
        api_key="key",
        base_url="https://vendor.example",
        limits=Limits(requests=250, period=300.0, per_second=5),
        polling=Polling(lease=10.0, interval=2.0, give_up_after=600.0),
        timeouts=Timeouts(connect=10.0, request=30.0, upload=120.0, download=120.0),
        transport=transport,
        drain=30.0,
        engine_retries=1,
    )
    Client(api_key=None, base_url=None, transport=None, drain=30)
    Client(transport=sandbox.transport())
    Client(transport=httpx.AsyncHTTPTransport(proxy="http://proxy.example:3128"))

    Client("key", "https://vendor.example")  # type: ignore[call-arg]
    Client(api_key=b"key")  # type: ignore[arg-type]
    Client(limits=250)  # type: ignore[arg-type]
    Client(transport=httpx.HTTPTransport())  # type: ignore[arg-type]
    Client(max_units=10, journal="jobs.db", reuse=True)
    Client(sole_user=True)
    Client(sole_user="yes")  # type: ignore[arg-type]
    Client(fit=True)
    Client(fit="yes")  # type: ignore[arg-type]
    Client(on_event=print)
    assert_type(telemetry.instrument(Client()), Client)
    telemetry.instrument("client")  # type: ignore[arg-type]
    Client(on_event=_on_event)
    Client(on_event=_on_text)  # type: ignore[arg-type]
    Client(max_unit=10)  # type: ignore[call-arg]


def settings(limits: Limits, polling: Polling) -> None:
    """Settings are frozen."""
    assert_type(limits.split(4), Limits)
    assert_type(limits.requests, int)
    assert_type(limits.period, float)
    assert_type(limits.per_second, int)
    assert_type(polling.lease, float)
    assert_type(polling.interval, float)
    assert_type(polling.give_up_after, float)
    assert_type(Timeouts().upload, float)

    limits.requests = 1000  # type: ignore[misc]
    Limits(requests=0.83)  # type: ignore[arg-type]


def jobs(path: Path, data: bytes) -> None:
    """A source is a path, bytes, a URL or a file id; parameters are typed."""
    assert_type(Smile("selfie.jpg"), Smile)
    Smile(path, "closed_mouth_smile", key="customer 7")
    Smile(data, expression="smile_with_teeth_visible")
    Smile(FileId("file"))
    assert_type(Avatar("selfie.jpg", "male_studio_00"), Avatar)
    Avatar(path, template_id="male_studio_00", output_count=8, key="customer 7")
    job: Job = Smile(path)
    assert_type(job.units, int)
    assert_type(job.outputs, int)
    assert_type(job.key, str | None)
    assert_type(Smile(path).expression, Literal["smile_with_teeth_visible", "closed_mouth_smile"])
    assert_type(Avatar(path, "x").output_count, int)

    Smile()  # type: ignore[call-arg]
    Smile(path, "grin")  # type: ignore[arg-type]
    Smile(path, "closed_mouth_smile", 7)  # type: ignore[arg-type]
    Smile(path.open("rb"))
    Smile(io.BytesIO(data))
    Smile(bytearray(data))
    Avatar(memoryview(data), "x")
    Smile(PIL.Image.new("RGB", (1, 1)))
    Smile(path.open())  # type: ignore[arg-type]
    Smile(7)  # type: ignore[arg-type]
    Avatar(path)  # type: ignore[call-arg]
    Avatar(path, "x", "8")  # type: ignore[arg-type]


def any_feature(path: Path, data: bytes) -> None:
    """Any feature has a path, parameters of JSON and inputs by name."""
    job = Feature("skin-analysis", {"dst_actions": ["acne"]}, src=path, version="v2.1", units=9)
    assert_type(job, Feature)
    assert_type(job.params, dict[str, object])
    assert_type(job.inputs, tuple[JobInput, ...])
    assert_type(job.units, int)
    assert_type(job.feature, str)
    Feature("2d-vto/ring", {"a": Placeholder("ref", 1)}, ref=[path, data], mask=FileId("m"))
    Feature("a", srcmsk="m.png", refmsk=["n.png"])
    Feature("text-to-image/youcam")
    Feature("a", src=path.open("rb"), ref=[data, memoryview(data)])
    assert_type(Studio(path, "style").output_count, int)

    Feature()  # type: ignore[call-arg]
    Feature("a", "b")  # type: ignore[arg-type]
    Feature("a", src=path.open())  # type: ignore[arg-type]


async def features(client: Client) -> None:
    """A task of any feature has a path and a version, and its answer has any type."""
    result = await client.attach("skin-analysis", "id", version="v2.1")
    assert_type(result.raw, object)
    assert_type(result.outputs, tuple[ResultImage, ...])
    _ = assert_type(client.task("skin-analysis", "id", version="v2.1"), Task)
    assert_type(await client.status("skin-analysis", "id", version="v2.1"), TaskStatus)
    assert_type([each async for each in client.templates("hair-bang")], list[Template])


async def one_picture(client: Client, path: Path) -> None:
    """`run` returns a `Result`, and `save` returns paths."""
    result = await client.run(Smile(path), timeout=60)
    assert_type(result, Result)
    assert_type(await client.run(Avatar(path, "x")), Result)
    assert_type(result.task_id, str)
    assert_type(result.images, tuple[ResultImage, ...])
    assert_type(result.images[0].url, str)
    assert_type(result.images[0].expires_at, datetime)
    assert_type(await result.save("out/"), list[Path])
    assert_type(await result.save(path), list[Path])

    assert_type(await client.run(Smile(path), 60, save_to="out/", delete=True), Result)
    await client.run(Smile(path), give_up_after=60, engine_retries=0)
    assert_type(result.job, Job | None)
    assert_type(result.units, float)
    assert_type(result.duration, float | None)
    assert_type(result.files, tuple[Path, ...])
    assert_type(result.raw, object)
    assert_type(await result.read(), list[bytes])
    assert_type(await result.images[0].read(), bytes)

    assert_type(result.changes, tuple[str, ...])
    assert_type(await client.upload(path), FileId)
    assert_type(await client.upload(io.BytesIO()), FileId)

    await client.run(path)  # type: ignore[arg-type]
    await client.run([Smile(path)])  # type: ignore[arg-type]
    await client.run(Smile(path), timeout="60")  # type: ignore[arg-type]
    assert_type(await client.run(Smile(path), buy_in_doubt=True), Result)
    await client.run(Smile(path), 60, True)  # type: ignore[call-arg, arg-type]
    await result.save(b"out")  # type: ignore[arg-type]
    client.run(Smile(path))  # type: ignore[unused-coroutine]


async def handles(client: Client, path: Path) -> None:
    """`submit` returns a `Task`, and awaiting that returns a `Result`."""
    task = await client.submit(Smile(path), 5, save_to=path, delete=True, give_up_after=60)
    _ = assert_type(task, Task)
    _ = assert_type(
        await client.submit(Avatar(path, "x"), engine_retries=0, buy_in_doubt=True), Task
    )
    assert_type(task.id, str)
    assert_type(task.job, Job | None)
    assert_type(task.state, Literal["queued", "preparing", "running", "done", "failed"])
    assert_type(await task, Result)
    assert_type(await task.result(timeout=60), Result)
    async for event in task.events():
        assert_type(event, JobEvent)
        assert_type(event.kind, Literal["queued", "uploaded", "submitted", "polled", "finished"])
        assert_type(event.job, Job | None)
        assert_type(event.task_id, str | None)
        assert_type(event.at, datetime)
    _ = assert_type(client.task(Smile, "id"), Task)
    status = await client.status(Avatar, "id")
    assert_type(status, TaskStatus)
    assert_type(status.task_id, str)
    assert_type(status.status, Literal["running", "success", "error"])
    assert_type(status.results, object)
    assert_type(status.error, TaskError | None)

    _ = await client.submit(path)  # type: ignore[arg-type]
    _ = await client.submit(Smile(path), save_to=7)  # type: ignore[arg-type]
    await client.task(Smile(path), "id")  # type: ignore[arg-type]
    await client.status(Smile(path), "id")  # type: ignore[arg-type]
    task.state = "done"  # type: ignore[misc]


async def open_and_close(client: Client) -> None:
    """`open` and `async with` return the client itself."""
    assert_type(await client.open(), Client)
    await client.close()
    async with client as entered:
        assert_type(entered, Client)
    with client:  # type: ignore[attr-defined]
        pass


def lazily(path: Path) -> Iterator[Smile]:
    """Yield jobs of one kind."""
    yield Smile(path)


async def lazily_async(path: Path) -> AsyncIterator[Smile | Avatar]:
    """Yield jobs of both kinds."""
    yield Smile(path)
    yield Avatar(path, "x")


async def many_pictures(client: Client, photos: list[Path], path: Path) -> None:
    """`batch` takes any iterable of jobs, and its outcomes narrow in a `match`."""
    assert_type(client.batch([Smile(path), Avatar(path, "x")]), Batch)
    assert_type(client.batch(lazily(path), ordered=True), Batch)
    assert_type(client.batch([Smile(path)], buy_in_doubt=True), Batch)
    assert_type(client.batch([Smile(path)], resume=True, give_up_after=60), Batch)
    assert_type(client.batch(lazily_async(path)), Batch)

    async with client.batch(Smile(photo) for photo in photos) as batch:
        assert_type(batch, Batch)
        assert_type(await batch.report(), Report)
        assert_type(await batch.report(Path("report.html")), Report)
        async for outcome in batch:
            assert_type(outcome, Done | Failed)
            match outcome:
                case Done():
                    assert_type(outcome, Done)
                    assert_type(await outcome.result.save("out/"), list[Path])
                case Failed():
                    assert_type(outcome, Failed)
                    assert_type(outcome.error, PerfectError)
                    print(outcome.job, outcome.error)
                case _:
                    assert_never(outcome)
        assert_type(batch.progress, Progress)

    client.batch(photos)  # type: ignore[arg-type]
    client.batch(Smile(path))  # type: ignore[arg-type]
    client.batch([], True)  # type: ignore[call-arg]
    with client.batch([]):  # type: ignore[attr-defined]
        pass


def outcomes(outcome: Outcome) -> None:
    """`ok` narrows the two types."""
    assert_type(outcome.job, Job)
    assert_type(outcome.ok, bool)
    assert_type(outcome.result, Result | None)
    assert_type(outcome.error, PerfectError | None)
    assert_type(outcome.task_id, str | None)
    assert_type(outcome.units, float)
    assert_type(outcome.duration, float | None)
    assert_type(outcome.changes, tuple[str, ...])
    assert_type(outcome.unwrap(), Result)
    if outcome.ok is True:
        assert_type(outcome, Done)
        assert_type(outcome.result, Result)
        assert_type(outcome.error, None)
        assert_type(outcome.task_id, str)
    else:
        assert_type(outcome, Failed)
        assert_type(outcome.result, None)
        assert_type(outcome.error, PerfectError)


def outcomes_by_truth(outcome: Outcome) -> None:
    """A plain `if outcome.ok` narrows for mypy; pyright narrows by `is` and `==` only."""
    if outcome.ok:
        assert_type(outcome, Done)  # pyright: ignore[reportAssertTypeFailure]
    else:
        assert_type(outcome, Failed)  # pyright: ignore[reportAssertTypeFailure]


def outcomes_unchecked(outcome: Outcome) -> None:
    """The result of an outcome that may have failed cannot be used unchecked."""
    outcome.result.images  # type: ignore[union-attr]  # noqa: B018
    outcome.error.hint  # type: ignore[union-attr]  # noqa: B018


def positions(outcome: Outcome) -> None:
    """A `match` may capture the first two fields by position."""
    match outcome:
        case Done(job, result):
            assert_type(job, Job)
            assert_type(result, Result)
        case Failed(job, error):
            assert_type(job, Job)
            assert_type(error, PerfectError)


async def other_calls(client: Client) -> None:
    """Templates, units, prices, deletion, statistics."""
    assert_type(client.templates(), AsyncIterator[Template])
    client.templates(Avatar)
    async for template in client.templates():
        assert_type(template, Template)
        assert_type(template.id, str)
        assert_type(template.title, str)
        assert_type(template.category, str)
        assert_type(template.thumb, str | None)

    units = await client.units()
    assert_type(units, Units)
    assert_type(units.balance, float | None)
    assert_type(units.grants, tuple[Grant, ...])
    assert_type(units.grants[0].id, int | None)
    assert_type(units.grants[0].kind, str)
    assert_type(units.grants[0].amount, float)
    assert_type(units.grants[0].expires_at, datetime | None)

    estimate = await client.estimate([Smile("a.jpg"), Avatar("b.jpg", "x")])
    assert_type(estimate, Estimate)
    assert_type(estimate.jobs, int)
    assert_type(estimate.units, float)
    assert_type(estimate.by_feature, Mapping[str, float])
    assert_type(estimate.documented, bool)
    assert_type(estimate.seconds, float)
    assert_type(estimate.measured, bool)

    async for entry in client.history():
        assert_type(entry, HistoryEntry)
        assert_type(entry.at, datetime | None)
        assert_type(entry.units, float | None)
        assert_type(entry.target_id, str | None)

    await client.delete("task")
    assert_type(client.statistics(), Statistics)
    assert_type(client.statistics().running, int)
    assert_type(client.statistics().requests, Mapping[str, int])
    assert_type(client.statistics().units.at_stake, float)

    await client.templates()  # type: ignore[misc]
    await client.delete(7)  # type: ignore[arg-type]
    estimate.units = 0.0  # type: ignore[misc]


def progress(now: Progress) -> None:
    """Fields that may be unknown have None in their types."""
    assert_type(now.total, int | None)
    assert_type(now.done, int)
    assert_type(now.failed, int)
    assert_type(now.running, int)
    assert_type(now.waiting, int)
    assert_type(now.units, float)
    assert_type(now.eta, float | None)


async def errors(client: Client, path: Path) -> None:
    """Every error is a `PerfectError` and has typed attributes."""
    try:
        await client.run(Smile(path))
    except WaitTimeout as error:
        timeout: TimeoutError = error
        assert_type(error.task_id, str | None)
        print(timeout)
    except TaskFailed as error:
        assert_type(error.code, str)
        assert_type(error.passing, bool)
        assert_type(error.task_id, str | None)
    except (TaskExpired, TaskTimedOut, TaskAbandoned, SubmissionInDoubt) as error:
        assert_type(error.task_id, str | None)
        assert_type(error.request_id, str | None)
        assert_type(error.units_at_stake, float)
        if isinstance(error, SubmissionInDoubt):
            assert_type(error.candidates, tuple[str, ...])
    except ResultUnreadable as error:
        assert_type(error.task_id, str | None)
        assert_type(error.raw, object)
    except ServiceUnavailable as error:
        assert_type(error.never_sent, bool)
    except (Unauthorized, RequestRefused, RateLimited, BadAnswer) as error:
        assert_type(error.status, int | None)
        assert_type(error.code, str | None)
        assert_type(error.request_id, str | None)
    except UnitsExhausted as error:
        assert_type(error.request_id, str | None)
    except PerfectError as error:
        assert_type(error.message, str)
        assert_type(error.hint, str)
        assert_type(error.units_at_stake, float)


def tree() -> None:
    """The classes of errors have the documented bases."""
    api: list[type[ApiError]] = [
        Unauthorized,
        RequestRefused,
        RateLimited,
        ServiceUnavailable,
        BadAnswer,
    ]
    task: list[type[TaskError]] = [
        TaskFailed,
        TaskExpired,
        TaskTimedOut,
        TaskAbandoned,
        ResultUnreadable,
        WaitTimeout,
        SubmissionInDoubt,
    ]
    refused: type[JobRefused] = PictureRefused
    top: list[type[PerfectError]] = [
        *api,
        *task,
        refused,
        ConfigurationError,
        ClientClosed,
        UnitsExhausted,
        WebhookRejected,
    ]
    print(top)


async def sandboxes() -> None:
    """The sandbox has types too."""
    sandbox = Sandbox(
        seed=1,
        durations={"ai-smile": Durations(8.0, 0.35), "ai-avatar": Durations.uniform(15, 40)},
        faults=Faults(engine_errors=0.05),
    )
    assert_type(sandbox.ledger, Ledger)
    assert_type(sandbox.ledger.units_wasted, int)
    assert_type(sandbox.ledger.violations, list[str])
    assert_type(portrait(1), bytes)
    transport: httpx.AsyncBaseTransport = sandbox.transport()
    await transport.aclose()

    Sandbox(1)  # type: ignore[call-arg]
    Faults(0.05)  # type: ignore[call-arg]


async def webhooks(headers: httpx.Headers, scope: list[tuple[bytes, bytes]]) -> None:
    """Webhooks accept the headers of any framework, and any receiver."""
    secrets = Secrets(["whsec_c2VjcmV0", "bmV3"])
    found = verify(b"{}", headers, secrets, time.time())
    verify(b"{}", scope, "whsec_c2VjcmV0", 1761112848)
    verify(b"{}", {"webhook-id": "msg_1"}, ["whsec_c2VjcmV0"], 1761112848)
    assert_type(found, Notification)
    assert_type(found.task_id, str | None)
    assert_type(found.status, Literal["success", "error"] | None)
    assert_type(found.created_at, datetime | None)

    class Receiver:
        async def deliver(self, body: bytes, headers: Headers) -> None:
            verify(body, headers, secrets, time.time())

    app: ASGIApp = WebhookApp(Receiver())
    async with Sandbox(
        webhook_url="http://127.0.0.1:8000/webhooks/youcam",
        webhook_transport=httpx.ASGITransport(app),
        webhook_secret="whsec_c2VjcmV0",
        webhook_faults=WebhookFaults(lost=0.1),
    ) as sandbox:
        assert_type(sandbox, Sandbox)
        assert_type(sandbox.ledger.webhooks, list[WebhookRecord])

    verify("{}", headers, secrets, time.time())  # type: ignore[arg-type]
    WebhookApp(Receiver()).add_to(Starlette(), "/hook")
    WebhookApp(object())  # type: ignore[arg-type]
    try:
        pass
    except WebhookRejected as error:
        assert_type(error.reason, str)


async def orders(client: Client) -> None:
    """An order and its answer are plain JSON objects."""
    order = make_order(Smile("/in/a.jpg"), Path("/out"), digest=None)
    assert_type(order, Order)
    assert_type(await Performer(client, ["/shared", Path("/more")]).perform(order), Answer)
    assert_type(await enqueue("redis://host", [order]), int)

    def told(order: Order, answer: Answer) -> None: ...

    worker = Worker("redis://host", ["/shared"], make_client=Client, on_answer=told)
    await worker.run()
    worker.stop()
    Performer(client)  # type: ignore[call-arg]
