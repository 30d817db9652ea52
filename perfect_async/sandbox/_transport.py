"""An httpx transport into the sandbox, without sockets but with their failures."""

from __future__ import annotations

import asyncio

import httpx

from ._clock import split_latency
from ._http import Request, Response
from ._router import Router


class SandboxTransport(httpx.AsyncBaseTransport):
    """Passes requests to a sandbox, and raises its faults as httpx errors.

    Raises `httpx.ConnectError` for a refused connection (certainly not executed) and
    `httpx.RemoteProtocolError` for a lost answer (executed or not). It ignores httpx's timeouts: a
    hanging answer takes the time of the fault.
    """

    def __init__(self, router: Router, *, latency: float, jitter: float) -> None:
        self._router = router
        self._latency = latency
        self._jitter = jitter
        self._rng = router.chance.stream("latency")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request, which arrives at a random time within the round trip."""
        before, after = split_latency(self._latency, self._jitter, self._rng)
        incoming = await _read(request)
        prepared = self._router.leave(incoming)
        # Yield to other tasks also without latency, like a socket.
        await asyncio.sleep(before)
        if prepared == "refuse":
            msg = "the sandbox refused the connection"
            raise httpx.ConnectError(msg, request=request)
        answer = self._router.arrive(incoming, prepared)
        if after + answer.delay > 0:
            await asyncio.sleep(after + answer.delay)
        if answer.lost:
            msg = "Server disconnected without sending a response."
            raise httpx.RemoteProtocolError(msg, request=request)
        return _respond(answer, request.method)


async def _read(request: httpx.Request) -> Request:
    path, _, query = request.url.raw_path.partition(b"?")
    return Request(
        method=request.method,
        host=request.headers.get("host", request.url.host),
        path=path.decode("ascii"),
        query=query.decode("ascii"),
        headers=dict(request.headers.items()),
        body=await request.aread(),
    )


def _respond(response: Response, method: str) -> httpx.Response:
    headers = {"content-type": response.content_type, **response.headers}
    content = response.body
    if method == "HEAD":
        headers["content-length"], content = str(len(content)), b""
    return httpx.Response(response.status, headers=headers, content=content)
