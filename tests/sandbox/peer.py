"""A server on a real port that misbehaves on the connection, with a sandbox behind it.

ASGI servers write one whole answer per request, so this peer writes to the socket itself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import attrs
import httpx

from perfect_async.sandbox import Sandbox

Misbehaviour = Literal["double", "late", "cut", "unannounced"]
"""The misbehaviour of the connection for an answer:

- `"double"`: the answer is sent twice, so that the client's next request reads the second one.
- `"late"`: a 502 is sent first, and then the answer.
- `"cut"`: half of the body is sent, and the connection ends.
- `"unannounced"`: like `"cut"`, but without a Content-Length.
"""

_BAD_GATEWAY = httpx.Response(502, headers={"content-type": "text/html"}, content=b"<html>")


@attrs.define
class Peer:
    """Answers like the sandbox, except for scripted misbehaviours."""

    url: str
    _transport: httpx.AsyncBaseTransport
    _scripts: dict[str, deque[Misbehaviour]] = attrs.field(factory=dict[str, deque[Misbehaviour]])

    def script(self, part: str, *misbehaviours: Misbehaviour) -> None:
        """Use `misbehaviours` for the next answers to requests whose line contains `part`."""
        self._scripts.setdefault(part, deque()).extend(misbehaviours)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        try:
            while await self._exchange(reader, writer):
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        method, target, _ = line.split()
        parts = (field.partition(":") for field in fields)
        headers = httpx.Headers([(name, value.strip()) for name, _, value in parts])
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = httpx.Request(method, self.url + target, headers=headers, content=body)
        response = await self._transport.handle_async_request(request)
        await response.aread()
        match self._next(line):
            case None:
                writer.write(_as_bytes(response))
            case "double":
                writer.write(_as_bytes(response) * 2)
            case "late":
                writer.write(_as_bytes(_BAD_GATEWAY) + _as_bytes(response))
            case "cut" | "unannounced" as how:
                head, _, body = _as_bytes(response, length=how == "cut").partition(b"\r\n\r\n")
                writer.write(head + b"\r\n\r\n" + body[: len(body) // 2])
                return False
        return True

    def _next(self, line: str) -> Misbehaviour | None:
        waiting = next((each for part, each in self._scripts.items() if part in line), None)
        return waiting.popleft() if waiting else None


def _as_bytes(response: httpx.Response, *, length: bool = True) -> bytes:
    fields = {**response.headers, "content-length": str(len(response.content))}
    if not length:
        del fields["content-length"]
    head = [f"HTTP/1.1 {response.status_code} {response.reason_phrase}"]
    head += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*head, "", ""]).encode() + response.content


@asynccontextmanager
async def peer(sandbox: Sandbox, port: int) -> AsyncIterator[Peer]:
    """Serve `sandbox`, whose origin must be this port, with a peer that can misbehave."""
    behind = Peer(f"http://127.0.0.1:{port}", sandbox.transport())
    async with await asyncio.start_server(behind.serve, "127.0.0.1", port):
        yield behind
