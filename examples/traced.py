"""One picture, with its trace and the state of the key on the terminal.

    YOUCAM_API_KEY=... python examples/traced.py selfie.jpg smiling.jpg

Needs `opentelemetry-sdk` and the extra `otel`. In a service, give the SDK an exporter of yours
(OTLP, for example) in place of those for the console; the line that matters is `instrument`.
"""

import asyncio
import sys

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from perfect_async import Client, Smile, telemetry


async def main(source: str, target: str) -> None:
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    reader = PeriodicExportingMetricReader(ConsoleMetricExporter(), export_interval_millis=5000)
    meters = MeterProvider([reader])
    client = telemetry.instrument(Client(), tracer_provider=tracers, meter_provider=meters)
    async with client:
        result = await client.run(Smile(source))
        await result.save(target)
        # The exporter writes from the loop's thread here; in a service it has one of its own.
        meters.force_flush()
    meters.shutdown()
    tracers.shutdown()


if __name__ == "__main__":
    if len(sys.argv) != 3:  # noqa: PLR2004 - the program, a picture and a path
        sys.exit("usage: traced.py PICTURE TARGET")
    asyncio.run(main(sys.argv[1], sys.argv[2]))
