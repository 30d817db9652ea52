"""Traces and metrics of a client with OpenTelemetry (extra `otel`).

    from perfect_async import Client, telemetry

    client = telemetry.instrument(Client())
    async with client: ...

The span `perfect_async job` covers one job from its submission to its end, in the trace of the
caller. Its children are the requests for the job (`register`, `upload`, `submit`, `poll`), each
with the vendor's request id, which the vendor's support asks for. Requests without a job (`ask`)
are spans without a parent. No span holds a URL, a file name or the key.

Attributes of a job: `perfect_async.feature`, `.units`, `.task_id`, `.ending` ("done", or the type
of the error). Attributes of a request: `perfect_async.request_id`, `.outcome` (the kind of the
answer), and `http.response.status_code`.

Gauges, with the values after the last event of the key: `perfect_async.window.requests` and
`perfect_async.window.limit`, `perfect_async.tasks` (in flight), `perfect_async.lease.smallest`
(seconds until the first task is lost unless it is polled), `perfect_async.units` (by `kind`:
charged, returned, at_stake).

Clients with the same key in the same event loop share one scheduler, and therefore these spans and
gauges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

try:
    from opentelemetry import metrics, trace
except ImportError as error:
    raise ImportError(
        "perfect_async.telemetry needs opentelemetry-api, which is not installed: "
        "pip install 'perfect_async[otel]'",
        name=error.name,
    ) from error

from perfect_async import Client, PerfectError, Statistics
from perfect_async import events as ev

__all__ = ["instrument"]

_NAME: Final = "perfect_async"


def instrument(
    client: Client,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
    lease: float = 10.0,
) -> Client:
    """Trace and measure an unopened `client`, and return it.

        client = telemetry.instrument(Client())

    Without arguments, the global providers are used. `lease` is the client's `Polling.lease` in
    seconds. Raises `ConfigurationError` if the client is open already.
    """
    tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
    meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
    client.observe(_Telemetry(tracer, meter, lease))
    return client


class _Telemetry:
    """Spans and gauges of one driver. Any thread that exports metrics may read the gauges."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter, lease: float) -> None:
        self._tracer = tracer
        self._lease = lease
        self._jobs: dict[int, trace.Span] = {}
        self._requests: dict[int, trace.Span] = {}
        self._renewed: dict[int, datetime] = {}
        self._left: dict[int, datetime] = {}
        self._numbers: dict[str, float] = {}
        self._units: dict[str, float] = {}
        for name, unit, what in (
            ("window.requests", "{request}", "Requests that occupy the key's window."),
            ("window.limit", "{request}", "Requests that the window is assumed to hold."),
            ("tasks", "{task}", "Tasks in flight, which must be polled."),
            ("lease.smallest", "s", "Seconds until the first task is lost unless it is polled."),
        ):
            meter.create_observable_gauge(
                f"{_NAME}.{name}", [self._reader(name)], unit=unit, description=what
            )
        meter.create_observable_gauge(
            f"{_NAME}.units", [self._read_units], unit="{unit}", description="Units since opening."
        )

    # Events, in the driver's loop.

    def observe(self, observed: ev.Observed, statistics: Callable[[], Statistics]) -> None:
        """Begin or end the spans of one event, and keep the numbers for the gauges."""
        at, event = observed.at, observed.event
        match event:
            case ev.JobAdded() | ev.TaskAdopted():
                self._begin_job(event, at)
            case ev.Issued(command=ev.Settle() as settle):
                self._end_job(settle, at)
            case ev.Issued(command=command) if not isinstance(command, ev.Settle):
                self._begin_request(command, at)
            case _:
                self._end_request(observed)
        self._measure(statistics(), at)

    def leave(self) -> None:
        """End the open spans, of jobs that a closing client has abandoned."""
        for span in (*self._requests.values(), *self._jobs.values()):
            span.end()
        for kept in (self._requests, self._jobs, self._renewed, self._left, self._numbers):
            kept.clear()

    def _begin_job(self, event: ev.JobAdded | ev.TaskAdopted, at: datetime) -> None:
        span = self._tracer.start_span("perfect_async job", start_time=_nanoseconds(at))
        span.set_attribute("perfect_async.feature", event.kind.feature)
        if isinstance(event, ev.TaskAdopted):
            span.set_attribute("perfect_async.task_id", event.task_id)
        self._jobs[event.ref] = span

    def _end_job(self, settle: ev.Settle, at: datetime) -> None:
        self._renewed.pop(settle.ref, None)
        span = self._jobs.pop(settle.ref, None)
        if span is None:
            # A query, or a job that was submitted before the instrumentation.
            return
        ending, failed = "done", isinstance(settle.ending, PerfectError)
        if failed:
            ending = type(settle.ending).__name__
            span.set_status(trace.StatusCode.ERROR, ending)
        span.set_attribute("perfect_async.ending", ending)
        span.set_attribute("perfect_async.units", settle.units)
        span.end(_nanoseconds(at))

    def _begin_request(self, command: ev.Request | ev.Upload, at: datetime) -> None:
        refs = command.refs if isinstance(command, ev.Register) else (command.ref,)
        jobs = [self._jobs[ref] for ref in refs if ref in self._jobs]
        # A registration of several pictures is a child of the first job, linked to the others.
        parent = trace.set_span_in_context(jobs[0]) if jobs else None
        self._requests[command.number] = self._tracer.start_span(
            f"perfect_async {type(command).__name__.lower()}",
            parent,
            kind=trace.SpanKind.CLIENT,
            links=[trace.Link(job.get_span_context()) for job in jobs[1:]],
            start_time=_nanoseconds(at),
        )
        self._left[command.number] = at

    def _end_request(self, observed: ev.Observed) -> None:
        event = observed.event
        command: object = getattr(event, "command", None)
        if not isinstance(command, ev.Request | ev.Upload):
            return
        left, span = self._left.pop(command.number, None), self._requests.pop(command.number, None)
        if isinstance(event, ev.Accepted):
            if (job := self._jobs.get(event.command.ref)) is not None:
                job.set_attribute("perfect_async.task_id", event.task_id)
            self._renewed[event.command.ref] = left or observed.at
        elif isinstance(event, ev.Running):
            # The vendor's lease begins with the arrival of the request, after it was sent.
            self._renewed[event.command.ref] = left or observed.at
        elif isinstance(event, ev.EngineFailed):
            self._renewed.pop(event.command.ref, None)
        if span is None:
            return
        span.set_attribute("perfect_async.outcome", type(event).__name__)
        if observed.request_id is not None:
            span.set_attribute("perfect_async.request_id", observed.request_id)
        if observed.status is not None:
            span.set_attribute("http.response.status_code", observed.status)
        error: object = getattr(event, "error", None)
        if isinstance(error, PerfectError):
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
        span.end(_nanoseconds(observed.at))

    # Gauges.

    def _measure(self, statistics: Statistics, at: datetime) -> None:
        numbers: dict[str, float] = {
            "window.requests": statistics.requests_in_window,
            "window.limit": statistics.window_limit,
            "tasks": statistics.running,
        }
        if self._renewed:
            oldest = min(self._renewed.values())
            numbers["lease.smallest"] = self._lease - (at - oldest).total_seconds()
        units = statistics.units
        # The dicts are replaced, not changed, since another thread may be reading them.
        self._numbers = numbers
        self._units = {
            "charged": units.charged,
            "returned": units.returned,
            "at_stake": units.at_stake,
        }

    def _reader(
        self, name: str
    ) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        def read(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            number = self._numbers.get(name)
            return [] if number is None else [metrics.Observation(number)]

        return read

    def _read_units(self, _: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        return [metrics.Observation(units, {"kind": kind}) for kind, units in self._units.items()]


def _nanoseconds(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000) * 1000
