"""The bodies of uploads and downloads: counts, bounds and decodes them without an HTTP library.

`zlib` decodes in small steps here. httpx would inflate a whole chunk at once, and as many times as
the header says: 64 KB that are compressed twice can become 64 GB.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from http import HTTPStatus
from types import TracebackType
from typing import Final

from perfect_async.errors import (
    ApiError,
    BadAnswer,
    PictureRefused,
    RequestRefused,
    ServiceUnavailable,
    quoted,
)

# Decoded bytes between two checks of the limit.
_STEP: Final = 64 * 1024


class UploadBody:
    """The bytes of an upload; each call of `chunks` yields them from the first byte.

    `failure` is the error of reading them, if there was one; errors of the network are not kept.
    """

    def __init__(self, chunks: Callable[[], AsyncIterator[bytes]]) -> None:
        self._chunks = chunks
        self.failure: Exception | None = None

    async def count(self) -> int:
        """Return the number of bytes."""
        total = 0
        async with aclosing(self._each()) as chunks:
            async for chunk in chunks:
                total += len(chunk)
        return total

    async def read(self, length: int) -> AsyncGenerator[bytes]:
        """Yield exactly `length` bytes. Raises `PictureRefused` if there are fewer or more."""
        sent = 0
        async with aclosing(self._each()) as chunks:
            async for chunk in chunks:
                sent += len(chunk)
                if sent > length:
                    break
                yield chunk
        if sent != length:
            self.failure = PictureRefused(
                f"the picture no longer has the {length:,} bytes that were registered: it changed "
                "meanwhile.",
                passing=True,
            )
            raise self.failure

    async def _each(self) -> AsyncGenerator[bytes]:
        async with closing(self._chunks()) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
            except Exception as error:
                self.failure = error
                raise


def upload_headers(headers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return the headers of a grant, with names in lower case.

    Only headers that describe the content, and those of the storage, are allowed; others raise
    `BadAnswer`. With them (`Authorization`, `Host`, a chunked encoding), the vendor's answer would
    decide what is sent and to which host.
    """
    granted: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        fits = re.fullmatch(r"(content|x-amz)-[a-z0-9-]{1,100}", key) and key not in granted
        if not (fits and value.isascii() and value.isprintable()):
            raise BadAnswer(
                f"the vendor asks for the upload header {quoted(name, 60)}, which is not allowed."
            )
        granted[key] = value.strip()
    if not re.fullmatch(r"[0-9]{1,12}", granted.get("content-length", "0")):
        raise BadAnswer("the vendor asks for a content-length that is not a number.")
    return granted


async def decoded(
    raw: AsyncIterator[bytes], encoding: str, limit: int, announced: int | None = None
) -> AsyncGenerator[bytes]:
    """Yield the bytes of `raw` without their `Content-Encoding`, inflated in small steps.

    Raises `ServiceUnavailable` if the number of bytes in `raw` differs from `announced`. Raises
    `BadAnswer` beyond `limit` decoded bytes, for data that end early or do not have the `encoding`,
    and for any encoding but a single gzip or deflate.
    """
    total = 0
    whole = raw if announced is None else _counted(raw, announced)
    async with closing(raw), closing(whole), closing(_decoder(whole, encoding)) as pieces:
        async for piece in pieces:
            total += len(piece)
            if total > limit:
                raise too_large(limit)
            if piece:
                yield piece


def too_large(limit: int) -> BadAnswer:
    """Return the error for an answer of more than `limit` bytes."""
    return BadAnswer(f"an answer of the vendor is larger than {limit:,} bytes.")


async def _counted(raw: AsyncIterator[bytes], announced: int) -> AsyncGenerator[bytes]:
    """Yield the bytes of `raw`. Raises `ServiceUnavailable` unless there are `announced` bytes."""
    received = 0
    async for chunk in raw:
        received += len(chunk)
        if received > announced:
            break
        yield chunk
    if received != announced:
        few = "fewer" if received < announced else "more"
        raise ServiceUnavailable(
            f"the vendor's storage sent {few} bytes than it announced ({announced:,}); "
            "they were not used."
        )


def _decoder(raw: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    if encoding in {"", "identity"}:
        return raw
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return _inflated(raw)
    raise BadAnswer(
        f"an answer of the vendor has the encoding {quoted(encoding, 40)}, which is not supported."
    )


async def _inflated(raw: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    # 32 + 15: zlib detects a gzip or a zlib header.
    inflater = zlib.decompressobj(47)
    async for chunk in raw:
        rest = chunk
        while not inflater.eof:
            piece = _step(inflater.decompress, rest)
            if piece is None:
                raise BadAnswer("an answer of the vendor is not compressed as its header says.")
            rest = inflater.unconsumed_tail
            yield piece
            if not rest and len(piece) < _STEP:
                break
    if not inflater.eof:
        raise BadAnswer("an answer of the vendor ends early.")


def _step(decompress: Callable[[bytes, int], bytes], data: bytes) -> bytes | None:
    try:
        return decompress(data, _STEP)
    except zlib.error:
        return None


class closing:  # noqa: N801 - used as `contextlib.aclosing` is
    """Works like `aclosing`, but accepts an iterator that is no generator."""

    def __init__(self, it: AsyncIterator[bytes]) -> None:
        self._it = it

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._it

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        it = self._it
        if isinstance(it, AsyncGenerator):
            await it.aclose()


def storage_error(what: str, status: int) -> ApiError:
    """Return the error for a failed status of the storage; its XML is not read."""
    passing = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
    if status in passing or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ServiceUnavailable(f"the vendor's storage did not serve the {what}.", status=status)
    if status >= HTTPStatus.BAD_REQUEST:
        return RequestRefused(f"the vendor's storage refused the {what}.", status=status)
    return BadAnswer(
        f"the vendor's storage answered the {what} neither with success nor with an error; "
        "redirects are not followed.",
        status=status,
    )
