"""The sandbox on a real port, for any client in any language."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import anyio
import uvicorn

from ._app import Sandbox
from ._durations import Durations
from ._faults import Faults


async def serve(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 8787) -> None:
    """Serve until cancelled (or interrupted); the sandbox should have been given this `origin`.

    uvicorn's warnings go to stderr; requests, keys and URLs are logged nowhere.
    """
    # Its log configuration would take over the root of the embedding program's logging.
    config = uvicorn.Config(
        sandbox,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        log_level="warning",
        # Opened below: a server that is cancelled leaves its lifespan where it is.
        lifespan="off",
    )
    server = uvicorn.Server(config)
    async with sandbox:
        try:
            await server.serve()
        finally:
            # Cancelled, uvicorn leaves its sockets open; after an orderly end this does nothing.
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
    lease: float = 10.0,
    engine_errors: float = 0.0,
    speed: float = 1.0,
    webhook_url: str | None = None,
    webhook_secret: str | Sequence[str] | None = None,
) -> None:
    """Serve a sandbox until Ctrl-C; the entry point of a command line.

    `speed` divides the engine's durations, `engine_errors` is the share of tasks that fail.
    The origin of presigned URLs is the address served. `webhook_url` and `webhook_secret` as in
    `Sandbox`: notifications go there from the moment at which the engine is done.
    """
    origin = f"http://{host}:{port}"
    sandbox = Sandbox(
        seed=seed,
        units=units,
        lease=lease,
        origin=origin,
        faults=Faults(engine_errors=engine_errors),
        durations={
            "ai-smile": Durations(8.0 / speed, 0.35),
            "ai-avatar": Durations(60.0 / speed, 0.4),
        },
        webhook_url=webhook_url,
        webhook_secret=webhook_secret,
    )
    print(f"sandbox on {origin} (any Bearer key; Ctrl-C to stop)", file=sys.stderr)  # noqa: T201
    try:
        asyncio.run(serve(sandbox, host, port))
    except KeyboardInterrupt:
        # uvicorn has shut down in order and raises the signal again.
        print(repr(sandbox), file=sys.stderr)  # noqa: T201
