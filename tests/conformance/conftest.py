"""Fixtures of the conformance suite."""

import os
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from perfect_async.sandbox import Dialect, Durations, Faults, Sandbox, portrait
from tests.conformance.vendor import BASE_URL, REAL, Vendor

# Variants of the contract that a client must tolerate; each is a conforming vendor.
READINGS: dict[str, Callable[[], Sandbox]] = {
    "default": lambda: Sandbox(api_keys=["conformance"]),
    "old": lambda: Sandbox(
        api_keys=["conformance"], header_style="list", task_ids="base64", window="fixed"
    ),
    "terse": lambda: Sandbox(
        api_keys=["conformance"], header_style="numbers", polling_interval=1000, latency=0.2
    ),
    "documents": lambda: Sandbox(
        api_keys=["conformance"],
        charging="success",
        polling_interval=1000,
        retention=30 * 86_400,
        dialect=Dialect(
            invalid_task_id="text",
            missing_file="not_found",
            history_sign="positive",
            polling_interval_in="both",
            proc_unit=False,
        ),
    ),
}


@pytest.fixture(params=["real"] if REAL else sorted(READINGS))
async def vendor(request: pytest.FixtureRequest) -> AsyncIterator[Vendor]:
    """An account with a key, units, and a picture of a face."""
    if REAL:
        async with httpx.AsyncClient(base_url=BASE_URL, timeout=30) as http:
            yield Vendor(http, os.environ["YOUCAM_API_KEY"], portrait(1), pace=1.3)
        return
    sandbox = READINGS[request.param]()
    async with httpx.AsyncClient(transport=sandbox.transport(), base_url=BASE_URL) as http:
        # The suite respects the limits, here in virtual seconds.
        yield Vendor(http, "conformance", portrait(1), pace=0.25)


@pytest.fixture
async def failing_vendor() -> AsyncIterator[Vendor]:
    """A sandbox whose engine finds no face."""
    sandbox = Sandbox(
        faults=Faults(engine_errors=1.0, engine_error_codes=("error_no_face",)),
        durations={"ai-smile": Durations.fixed(3.0)},
    )
    async with httpx.AsyncClient(transport=sandbox.transport(), base_url=BASE_URL) as http:
        yield Vendor(http, "conformance", portrait(1), pace=0.25)
