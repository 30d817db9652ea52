"""OpenTelemetry: a span for each job with its requests as children, and gauges of the key."""

import asyncio
import logging
from collections.abc import Iterator, Mapping

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from perfect_async import Client, ConfigurationError, Smile, TaskFailed, telemetry
from perfect_async.sandbox import Faults, Sandbox
from tests.support.sandboxed import FACE, KEY, client, smile, smiles, vendor


class Watch:
    """Providers that keep the spans and metrics."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    def client(self, sandbox: Sandbox, **settings: object) -> Client:
        """Return an instrumented client."""
        return telemetry.instrument(
            client(sandbox, **settings), tracer_provider=self.tracers, meter_provider=self.meters
        )

    def spans(self, name: str) -> list[ReadableSpan]:
        """Return the spans with that name, in the order of their ends."""
        spans = self.exporter.get_finished_spans()
        return [each for each in spans if each.name == f"perfect_async {name}"]

    def gauges(self) -> dict[str, float]:
        """Return the current values of the gauges; units by their kind."""
        found: dict[str, float] = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        assert isinstance(point, NumberDataPoint)
                        kind = (point.attributes or {}).get("kind")
                        found[metric.name if kind is None else f"{metric.name} {kind}"] = (
                            point.value
                        )
        return found


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Watch one test, and shut the providers down."""
    made = Watch()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


def attributes(span: ReadableSpan) -> Mapping[str, object]:
    return span.attributes or {}


async def test_a_job_is_a_span_with_its_requests_as_children(watch: Watch) -> None:
    """Each request is a child of its job and has the vendor's request id and status."""
    sandbox = vendor()
    async with watch.client(sandbox) as c:
        result = await c.run(Smile(FACE))
    [job] = watch.spans("job")
    assert {
        "perfect_async.feature": "ai-smile",
        "perfect_async.task_id": result.task_id,
        "perfect_async.ending": "done",
        "perfect_async.units": 1.0,
    } == attributes(job)
    requests = [
        *(watch.spans("register"), watch.spans("upload")),
        *(watch.spans("submit"), watch.spans("poll")),
    ]
    assert [1, 1, 1, sandbox.ledger.tasks[0].polls] == [len(each) for each in requests]
    for span in [each for found in requests for each in found]:
        assert span.parent is not None
        assert job.context is not None
        assert job.context.span_id == span.parent.span_id
        assert 200 == attributes(span)["http.response.status_code"]
        assert span.name.endswith("upload") or attributes(span)["perfect_async.request_id"]
    assert "Succeeded" == attributes(watch.spans("poll")[-1])["perfect_async.outcome"]
    assert job.start_time is not None
    assert job.end_time is not None
    assert 8 <= (job.end_time - job.start_time) / 1e9 < 12


async def test_a_job_is_in_the_trace_of_its_caller(watch: Watch) -> None:
    """The current span of the caller is the parent of the job's span."""
    tracer = trace.get_tracer("test", tracer_provider=watch.tracers)
    async with watch.client(vendor()) as c:
        with tracer.start_as_current_span("theirs") as theirs:
            await c.run(smile())
    [job] = watch.spans("job")
    assert job.parent is not None
    assert theirs.get_span_context().span_id == job.parent.span_id


async def test_a_failure_is_an_error_of_its_spans(watch: Watch) -> None:
    """The span of the job has the type of its error, and so does the span of its poll."""
    sandbox = vendor(faults=Faults(by_picture={"https://pictures.example/0.jpg": "error_pose"}))
    async with watch.client(sandbox) as c:
        with pytest.raises(TaskFailed):
            await c.run(smile())
    [job], poll = watch.spans("job"), watch.spans("poll")[-1]
    assert ("TaskFailed", "TaskFailed") == (job.status.description, poll.status.description)
    assert trace.StatusCode.ERROR is job.status.status_code
    assert 0.0 == attributes(job)["perfect_async.units"]


async def test_one_registration_is_linked_to_all_its_jobs(watch: Watch) -> None:
    """The registration is a child of the first job."""
    async with watch.client(vendor()) as c, c.batch([Smile(FACE, key=k) for k in "abc"]) as batch:
        [_ async for _ in batch]
    registrations = watch.spans("register")
    assert 3 == len(registrations) + sum(len(each.links) for each in registrations)


async def test_requests_without_a_job_are_spans_too(watch: Watch) -> None:
    """A query of the user has its own span."""
    async with watch.client(vendor()) as c:
        await c.units()
    [span] = watch.spans("ask")
    assert None is span.parent
    assert "Answered" == attributes(span)["perfect_async.outcome"]


async def test_gauges_show_the_state_of_the_key(watch: Watch) -> None:
    """The gauges are the window, the tasks in flight, the smallest lease and the units."""
    async with watch.client(vendor()) as c:
        assert {} == watch.gauges()
        async with c.batch(smiles(3)) as batch:
            await asyncio.sleep(4)
            during, statistics = watch.gauges(), c.statistics()
            [_ async for _ in batch]
        after = watch.gauges()
    assert 3 == during["perfect_async.tasks"]
    assert 0 < during["perfect_async.lease.smallest"] <= 10
    assert statistics.requests_in_window == during["perfect_async.window.requests"] > 0
    assert statistics.window_limit == during["perfect_async.window.limit"]
    assert 0 == after["perfect_async.tasks"]
    assert "perfect_async.lease.smallest" not in after
    assert 3.0 == after["perfect_async.units charged"]


async def test_closing_ends_open_spans(watch: Watch) -> None:
    """A client that closes without draining leaves no span open."""
    async with watch.client(vendor(), drain=0.0) as c:
        task = await c.submit(smile())
    [job] = watch.spans("job")
    assert "TaskAbandoned" == attributes(job)["perfect_async.ending"]
    assert task.id == attributes(job)["perfect_async.task_id"]


async def test_spans_hold_no_secrets(watch: Watch) -> None:
    """A span has no URL, no key and no file name."""
    async with watch.client(vendor()) as c:
        await c.run(Smile("https://pictures.example/anna.jpg?sig=secret"))
    exported = "".join(each.to_json() for each in watch.exporter.get_finished_spans())
    for secret in (KEY, "http:", "https:", "anna", "sig=", "secret"):
        assert secret not in exported


async def test_an_observer_of_a_shared_key_sees_each_event_once() -> None:
    """Two clients with one key report each event once to an observer."""
    sandbox, watch = vendor(), Watch()
    first = watch.client(sandbox)
    async with first, client(sandbox, transport=sandbox.transport()) as second:
        await second.run(smile())
        with pytest.raises(ConfigurationError, match="before"):
            telemetry.instrument(first)
    assert 1 == len(watch.spans("job"))


async def test_a_failing_observer_does_not_stop_the_job(caplog: pytest.LogCaptureFixture) -> None:
    """The observer's error is logged, and the job goes on."""

    class Broken:
        def observe(self, observed: object, statistics: object) -> None:
            raise ZeroDivisionError

        def leave(self) -> None:
            """Nothing is left."""

    c = client(vendor())
    c.observe(Broken())
    with caplog.at_level(logging.ERROR):
        async with c:
            await c.run(smile())
    assert "An observer failed: 'ZeroDivisionError'" in caplog.text
