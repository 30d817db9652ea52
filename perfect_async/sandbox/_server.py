"""The sandbox on a real port, for any client in any language."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import sys
from collections.abc import Generator, Sequence
from functools import partial
from types import FrameType
from typing import NoReturn

import anyio
import uvicorn

from ._app import Sandbox
from ._billing import Charging
from ._charges import WebhookRecord
from ._dialect import Dialect
from ._engine import DEFAULT_DURATIONS, Durations
from ._faults import Faults
from ._rules import Lease
from ._webhooks import TIMEOUT


async def serve(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 8787) -> None:
    """Serve a sandbox until cancelled or interrupted.

        sandbox = Sandbox(origin="http://127.0.0.1:8787")
        await serve(sandbox)

    The sandbox should have this address as its `origin`. uvicorn logs only errors, so the log has
    no requests, keys or URLs.
    """
    # uvicorn's log configuration would replace that of the program.
    config = uvicorn.Config(
        sandbox,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        # uvicorn warns of clients that offer an upgrade, which Java's HTTP client always does.
        log_level="error",
        # The other HTTP parsers do not read the body of a request with such an offer.
        http="h11",
        # The sandbox's answers have the date of the sandbox's clock.
        date_header=False,
        ws="none",
        # The sandbox is opened below, since a cancelled uvicorn does not end the lifespan.
        lifespan="off",
    )
    server = uvicorn.Server(config)
    async with sandbox:
        try:
            await server.serve()
        finally:
            # A cancelled uvicorn leaves its sockets open; after a normal end this has no effect.
            if server.started:
                server.force_exit = True
                with anyio.CancelScope(shield=True):
                    await server.shutdown()


def run(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    seed: int = 0,
    units: float = 1000.0,
    lease: Lease = 10.0,
    engine_errors: float = 0.0,
    speed: float = 1.0,
    webhook_url: str | None = None,
    webhook_secret: str | Sequence[str] | None = None,
    polling_interval: int | None = None,
    charging: Charging = "creation",
    dialect: Dialect | None = None,
) -> None:
    """Serve a sandbox until Ctrl-C or SIGTERM, for the command line, and print its ledger.

    `speed` divides the engine's durations; `engine_errors` is the share of tasks that fail. The
    origin of presigned URLs is the served address, or the loopback address if all interfaces are
    served (`0.0.0.0`, `::`). The other settings are those of `Sandbox`; `seed` fixes every draw
    except the ids, which differ between two runs.
    """
    origin = f"http://{_url_host(host)}:{port}"
    sandbox = Sandbox(
        seed=seed,
        # A client may outlive the served sandbox, so ids must differ between runs.
        run_id=secrets.token_hex(8),
        units=units,
        lease=lease,
        origin=origin,
        faults=Faults(engine_errors=engine_errors),
        durations={
            feature: Durations.of(partial(_faster, usual, speed))
            for feature, usual in DEFAULT_DURATIONS.items()
        },
        webhook_url=webhook_url,
        webhook_secret=webhook_secret,
        polling_interval=polling_interval,
        charging=charging,
        dialect=dialect,
    )
    if webhook_url is not None:
        sandbox.on_webhook_failure(_print_failure)
    _print_line(f"sandbox on {origin} (any Bearer key; Ctrl-C to stop)")
    _print_line(
        f"In another terminal: YOUCAM_BASE_URL={origin} YOUCAM_API_KEY=anything perfect-async "
        "smile PICTURES"
    )
    try:
        # uvicorn shuts down normally and then raises the signal again.
        with _exit_on_sigterm(), contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(sandbox, host, port))
    finally:
        _print_line(f"The sandbox's ledger: {sandbox.ledger}.")


@contextlib.contextmanager
def _exit_on_sigterm() -> Generator[None]:
    """Let SIGTERM raise `SystemExit`; by default it would end the process before the ledger."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    try:
        former = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # in another thread than the main one
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _print_failure(record: WebhookRecord, wait: float | None) -> None:
    why = f"was answered {record.answer}" if record.answer else f"was not answered in {TIMEOUT:g} s"
    if record.error is not None:
        why = f"failed: {record.error}"
    following = "it is not sent again" if wait is None else f"the next attempt is in {wait:g} s"
    _print_line(
        f"webhook: attempt {record.attempt} for task {record.task_id[:16]}... {why}; {following}"
    )


def _print_line(text: str) -> None:
    """Print one line on stderr at once, without characters that would steer a terminal."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _faster(usual: Durations, speed: float, rng: random.Random) -> float:
    return usual.draw(rng) / speed


def _url_host(host: str) -> str:
    """Return the host for URLs of a server on `host`, as seen from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only compared
    return f"[{host}]" if ":" in host else host
