"""The sandbox as an httpx transport: no socket, but everything that can happen on one."""

from __future__ import annotations

import asyncio

import httpx

from ._clock import waits
from ._http import Answer, Call
from ._router import Vendor


class SandboxTransport(httpx.AsyncBaseTransport):
    """Carries requests into a sandbox and turns its faults into what a client sees.

    Raises `httpx.ConnectError` for a refused connection (certainly not executed) and
    `httpx.RemoteProtocolError` for a lost answer (executed or not). It has no timeouts of its
    own: a hanging answer takes as long as the fault says.
    """

    def __init__(self, vendor: Vendor, *, latency: float, jitter: float) -> None:
        self._vendor = vendor
        self._latency = latency
        self._jitter = jitter
        self._rng = vendor.chance.stream("latency")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; it arrives at any time between leaving and answer."""
        before, after = waits(self._latency, self._jitter, self._rng)
        call = await _read(request)
        prepared = self._vendor.leave(call)
        # Even with no latency another task gets its turn, as on a socket.
        await asyncio.sleep(before)
        if prepared == "refuse":
            msg = "the sandbox refused the connection"
            raise httpx.ConnectError(msg, request=request)
        answer = self._vendor.arrive(call, prepared)
        if after + answer.delay > 0:
            await asyncio.sleep(after + answer.delay)
        if answer.lost:
            msg = "Server disconnected without sending a response."
            raise httpx.RemoteProtocolError(msg, request=request)
        return _respond(answer)


async def _read(request: httpx.Request) -> Call:
    path, _, query = request.url.raw_path.partition(b"?")
    return Call(
        method=request.method,
        host=request.headers.get("host", request.url.host),
        path=path.decode("ascii"),
        query=query.decode("ascii"),
        headers=dict(request.headers.items()),
        body=await request.aread(),
    )


def _respond(answer: Answer) -> httpx.Response:
    headers = {"content-type": answer.content_type, **answer.headers}
    return httpx.Response(answer.status, headers=headers, content=answer.body)
