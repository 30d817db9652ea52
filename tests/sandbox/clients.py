"""The requests of other HTTP clients: the headers that they add, and their bytes."""

import asyncio
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit

import attrs

# Recorded from requests on cleartext HTTP/1.1.
CLIENTS: Mapping[str, Mapping[str, str]] = {
    "node": {
        "accept": "*/*",
        "accept-language": "*",
        "sec-fetch-mode": "cors",
        "user-agent": "node",
        "accept-encoding": "gzip, deflate",
        "connection": "keep-alive",
    },
    "java": {
        "Connection": "Upgrade, HTTP2-Settings",
        "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        "Upgrade": "h2c",
        "User-Agent": "Java-http-client/17.0.15",
    },
    "curl": {"User-Agent": "curl/8.5.0", "Accept": "*/*", "Expect": "100-continue"},
    "curl --http2": {
        "User-Agent": "curl/8.5.0",
        "Accept": "*/*",
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA",
    },
    "urlsession": {
        "Accept": "*/*",
        "Accept-Language": "en-GB,en;q=0.9",
        "Accept-Encoding": "gzip, deflate",
        "User-Agent": "App/1 CFNetwork/1485 Darwin/23.1.0",
        "Priority": "u=3, i",
        "Connection": "keep-alive",
    },
    "go": {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"},
    "aiohttp": {
        "Accept": "*/*",
        "Accept-Encoding": "gzip, deflate",
        "User-Agent": "Python/3.11 aiohttp/3.13.2",
    },
    "requests": {
        "User-Agent": "python-requests/2.32.5",
        "Accept-Encoding": "gzip, deflate",
        "Accept": "*/*",
        "Connection": "keep-alive",
    },
    "urllib": {
        "Accept-Encoding": "identity",
        "User-Agent": "Python-urllib/3.11",
        "Connection": "close",
    },
    "browser": {
        "Connection": "keep-alive",
        "Sec-CH-UA": '"Chromium";v="142"',
        "Sec-Fetch-Site": "cross-site",
        "Origin": "https://shop.example",
        "Referer": "https://shop.example/",
        "DNT": "1",
        "Cache-Control": "no-cache",
        "Pragma": "no-cache",
        "Upgrade-Insecure-Requests": "1",
    },
}


@attrs.frozen
class Answer:
    """A response as it was received from the socket."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@attrs.define
class RawClient:
    """Speaks HTTP/1.1 on plain sockets, with the headers of one of the clients.

    Like the clients, it keeps its connection as long as the server does.
    """

    headers: Mapping[str, str]
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def send(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Send one request and read its response."""
        parts = urlsplit(url)
        if self._reader is None or self._writer is None:
            streams = await asyncio.open_connection(parts.hostname, parts.port)
            self._reader, self._writer = streams
        head = {"Host": parts.netloc, **self.headers, **(headers or {})}
        if body and "content-length" not in {name.lower() for name in head}:
            head["Content-Length"] = str(len(body))
        if not body:
            head.pop("Expect", None)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {head[name]}" for name in head)]
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        if "Expect" in head:
            assert 100 == (await self._read_head(self._reader))[0]
        self._writer.write(body)
        status, fields = await self._read_head(self._reader)
        answer = Answer(
            status, fields, await self._reader.readexactly(int(fields["content-length"]))
        )
        if fields.get("connection") == "close" or head.get("Connection") == "close":
            await self._close()
        return answer

    @staticmethod
    async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    async def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()
        self._reader = self._writer = None
