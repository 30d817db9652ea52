"""One request out, one value or error back. Never retries, never redirects, keeps no cookies.

The only file that knows httpx. Whatever goes wrong below becomes one of `errors.ApiError` here
(`_mapped`), and nothing that leaves this file holds the key or a signed URL. httpx's exceptions
carry the request, so an error of ours is raised after theirs is gone, with neither cause nor
context, and from a frame that never held the request; the type's name and the operating system's
reason are in the message instead. What httpx would log about it all, `_quiet` silences.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from functools import cache, lru_cache
from http import HTTPStatus
from http.cookiejar import CookieJar
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast
from urllib.parse import quote, urlencode

import anyio
import httpx

from perfect_async._api.tasks import Request, Response
from perfect_async._api.urls import followed, redacted
from perfect_async._transport.bodies import UploadBody, decoded, refused, upload_headers
from perfect_async._transport.quiet import keep_quiet, quiet
from perfect_async.errors import (
    ApiError,
    BadAnswer,
    ConfigurationError,
    ServiceUnavailable,
    quoted,
)
from perfect_async.events import FileGrant
from perfect_async.models import Timeouts

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib import request as urllib_request

_T = TypeVar("_T")

HttpTransport: TypeAlias = httpx.AsyncBaseTransport
NetworkTransport: TypeAlias = httpx.AsyncHTTPTransport

# A page of 20 templates is some 10 KB; more than this is no answer to any question of ours.
_LONGEST_ANSWER: Final = 5_000_000
# Uploads and downloads at once, on pools of ours and on a given transport, which may be small.
_PLACES: Final = 24
_FEW_PLACES: Final = 6
# What storage writes into a refusal is some 1 KB of XML.
_LONGEST_REFUSAL: Final = 64 * 1024
_LARGEST_PICTURE: Final = 64 * 1024 * 1024
# How long the closing of a connection may take, shielded from cancellation.
_GRACE: Final = 2.0

_STORE: Final = "the vendor's storage"

# Something came back, and it is not to be believed.
_NOT_BELIEVED: Final = (
    httpx.DecodingError,
    httpx.TooManyRedirects,
    httpx.InvalidURL,
    httpx.CookieConflict,
    # From httpx's reading of hosts that begin with "xn--", in a URL to follow or a `Location`.
    UnicodeError,
)
_Errors: TypeAlias = tuple[type[Exception], ...]


@cache
def _foreign() -> tuple[_Errors, _Errors]:
    """What says that the vendor has not seen a request, and all that a network can do to us.

    httpcore's errors appear where httpx does not map them (closing), anyio's and the system's where
    a transport is somebody else's. What is in neither is a programming error and goes through.
    """
    # httpx leaves this for the first pool of connections too; it would be a tenth of our import.
    import httpcore  # noqa: PLC0415

    # The connection to send the request on never came about.
    never_sent = (
        *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout),
        *(httpx.ProxyError, httpx.UnsupportedProtocol),
        *(httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout),
        *(httpcore.ProxyError, httpcore.UnsupportedProtocol, httpcore.ConnectionNotAvailable),
    )
    return never_sent, (
        *(*never_sent, *_NOT_BELIEVED, httpx.HTTPError, httpx.StreamError),
        *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
        *(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream),
        *(anyio.IncompleteRead, anyio.DelimiterNotFound),
        OSError,
    )


class VendorTransport:
    """The way to the vendor: API calls, uploads and downloads, each sent once.

    `base_url` as from `_urls.normalised_base`. The key goes into the `Authorization` header of API
    calls and nowhere else. `transport` carries everything and is closed with this object, as with
    httpx; uploads and downloads together are at most `bulk` at a time (6 on a given transport, 24
    without one), so that an API call finds a connection. Without it, both kinds have pools of their
    own, and proxies and certificates come from the environment. Raises `ConfigurationError` where
    that environment cannot be used. `aclose` must be called at the end.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeouts: Timeouts,
        transport: HttpTransport | None = None,
        bulk: int | None = None,
    ) -> None:
        self._base_url = ""
        # Made once and copied for each call; their repr hides the key.
        self._asking = httpx.Headers(
            {
                "Authorization": f"Bearer {api_key}",
                "User-Agent": _USER_AGENT,
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            }
        )
        del api_key  # whatever shows the locals of this frame must not show it
        self._telling = self._asking.copy()
        self._telling["Content-Type"] = "application/json"
        self._base_url = _known(base_url).rstrip("/")
        self._timeouts = timeouts
        self._slots = anyio.Semaphore(bulk or (_PLACES if transport is None else _FEW_PLACES))
        keep_quiet()
        _foreign()
        self._api, self._bulk = _clients(timeouts, transport)

    def __repr__(self) -> str:
        return f"<Transport to {self._base_url}>"

    async def aclose(self) -> None:
        """Close all connections; what is under way on them fails."""
        for client in {self._api, self._bulk}:
            await _let_go(client)

    async def call(self, call: Request, *, within: float) -> Response:
        """Send `call` to the API and read its answer, whatever its status, in `within` seconds.

        Raises `ServiceUnavailable` where none came (`never_sent` tells whether the vendor can have
        seen the request), and `BadAnswer` for more than 5 MB and for what cannot be decoded.
        """
        outcome = await _guarded(within, "the vendor's API", self._exchange(call))
        if isinstance(outcome, ApiError):
            raise outcome
        return outcome

    async def upload(self, grant: FileGrant, chunks: Callable[[], AsyncIterator[bytes]]) -> None:
        """Put the bytes of `chunks()` where `grant` says, with its headers, in `timeouts.upload`.

        The time runs from when one of the `bulk` places is free. `chunks` is called once more
        beforehand where the grant does not tell the length. Raises `BadAnswer` for a grant that is
        not to be followed and for a redirect, `PictureRefused` where the bytes are not as many as
        granted, `RequestRefused` for 4xx, `ServiceUnavailable` for 5xx, 408, 429 and no answer, and
        what `chunks` raises.
        """
        source = UploadBody(chunks)
        async with self._slots:
            status = await _guarded(self._timeouts.upload, _STORE, self._put(grant, source))
        if source.failure is not None:
            raise source.failure
        if isinstance(status, ApiError):
            raise status
        if not 200 <= status < 300:  # noqa: PLR2004 -- the 2xx class
            raise refused("upload", status)

    def download(
        self, url: str, *, limit: int = _LARGEST_PICTURE
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes behind `url`, at most `limit` of them decoded, in `timeouts.download` in all.

        Entering raises `BadAnswer` for a URL that is not to be followed, a redirect and a success
        that is not 200, `RequestRefused` for 4xx (403 once a URL has expired), `ServiceUnavailable`
        for 5xx, 408, 429 and no answer; iterating raises `ServiceUnavailable` and `BadAnswer`. The
        time runs from when one of the `bulk` places is free; leaving the block frees the place.
        """
        # The signed URL stays out of the frame that raises.
        return self._download(lambda: self._get(url), limit)

    @asynccontextmanager
    async def _download(
        self, get: Callable[[], Awaitable[httpx.Response]], limit: int
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        async with self._slots:
            deadline = anyio.current_time() + self._timeouts.download
            response = await _guarded(self._timeouts.download, _STORE, get())
            if isinstance(response, ApiError):
                raise response
            try:
                if response.status_code != HTTPStatus.OK:
                    raise refused("download", response.status_code)
                async with aclosing(_pieces(response, limit, deadline)) as pieces:
                    yield pieces
            finally:
                await _let_go(response)

    async def _exchange(self, call: Request) -> Response:
        url = self._base_url + call.path
        if call.query:
            url += "?" + urlencode(call.query, quote_via=quote, safe="")
        headers = self._asking if call.content is None else self._telling
        request = httpx.Request(call.method, _parsed(url), headers=headers, content=call.content)
        response = await self._api.send(request, stream=True)
        try:
            async with aclosing(_decoded(response, _LONGEST_ANSWER)) as pieces:
                content = b"".join([piece async for piece in pieces])
        finally:
            await _let_go(response)
        return Response(
            response.status_code,
            content,
            response.headers.get("x-request-id"),
            response.headers.get("retry-after"),
        )

    async def _put(self, grant: FileGrant, source: UploadBody) -> int:
        if grant.method.upper() != "PUT":
            method = quoted(grant.method, 20)
            raise BadAnswer(f"the vendor asks for an upload by {method} instead of PUT.")
        headers = upload_headers(grant.headers)
        url = followed(grant.url, base_url=self._base_url)
        if "content-length" not in headers:
            # Storage takes no chunked encoding, so what the vendor does not say is counted.
            headers["content-length"] = str(await source.count())
        async with aclosing(source.read(int(headers["content-length"]))) as content:
            request = httpx.Request("PUT", url, headers=headers, content=content)
            response = await self._bulk.send(request, stream=True)
            await _drained(response)
        return response.status_code

    async def _get(self, url: str) -> httpx.Response:
        # Pictures do not compress, and what is not compressed cannot explode.
        headers = {"Accept-Encoding": "identity"}
        request = httpx.Request("GET", followed(url, base_url=self._base_url), headers=headers)
        return await self._bulk.send(request, stream=True)


def _user_agent() -> str:
    try:
        return f"perfect_async/{version('perfect_async')}"
    except PackageNotFoundError:
        # A checkout on the path that was never installed.
        return "perfect_async/0"


# For the API's URLs, which come again and hold nothing secret; never for signed ones.
_parsed: Final = lru_cache(maxsize=256)(httpx.URL)

# At import, since reading metadata is a blocking call that has no place in the loop.
_USER_AGENT: Final = _user_agent()


def _known(base_url: str) -> str:
    """`base_url`, if httpx takes it too: a host in punycode may be none."""
    try:
        httpx.Request("GET", base_url)
    except (httpx.InvalidURL, UnicodeError):
        pass
    else:
        return base_url
    raise ConfigurationError(f"the host of base_url {quoted(redacted(base_url))} is no host name.")


def _clients(
    timeouts: Timeouts, transport: HttpTransport | None
) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
    """The client for the API and the one for pictures: the same, if there is one transport."""
    # Total times are ours: a transport may ignore httpx's timeouts (`ASGITransport` does).
    timeout = httpx.Timeout(None, connect=timeouts.connect)
    if transport is not None:
        client = httpx.AsyncClient(transport=transport, timeout=timeout, cookies=_NoCookies())
        return client, client
    try:
        verify = httpx.create_ssl_context()
        # No bound on connections: the API's is the request limit, the other's the places (`bulk`).
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=10)
        first, second = (
            httpx.AsyncClient(verify=verify, timeout=timeout, limits=limits, cookies=_NoCookies())
            for _ in range(2)
        )
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        problem = type(error).__name__
    else:
        return first, second
    # The settings are not quoted, and nothing is chained: a proxy's URL may hold a password.
    raise ConfigurationError(
        f"the proxy or certificate settings in the environment cannot be used ({problem})."
    )


class _NoCookies(CookieJar):
    """A jar that takes none: a gateway's cookies would otherwise go along with later calls."""

    def extract_cookies(self, response: HTTPResponse, request: urllib_request.Request) -> None:
        """Take none. A policy that allows none costs more than reading the answer does."""


async def _guarded(within: float, whom: str, work: Awaitable[_T]) -> _T | ApiError:
    """`work`'s value, or the error of ours that its failing is, after at most `within` seconds.

    The one place where foreign errors are mapped. The error is handed back for the caller to raise,
    so that neither the foreign one nor a frame with its request hangs on it. Cancellation passes.
    """
    try:
        with anyio.move_on_after(within), quiet():
            return await work
    except ApiError as error:
        return error.with_traceback(None)
    except _foreign()[1] as error:
        return _mapped(error, whom)
    return _mapped(TimeoutError(), whom)


def _mapped(error: Exception, whom: str) -> ApiError:
    """The error of ours that `error` is; its type and, where it is safe, its reason are told."""
    reason = f"{type(error).__name__}{_reason(error)}"
    if isinstance(error, _NOT_BELIEVED):
        return BadAnswer(f"what {whom} answered cannot be read ({reason}).")
    if isinstance(error, _foreign()[0]):
        return ServiceUnavailable(f"{whom} could not be reached ({reason}).", never_sent=True)
    return ServiceUnavailable(f"no answer came from {whom} ({reason}).")


def _reason(error: BaseException) -> str:
    """Why, by error numbers alone: a message of whoever made the transport may hold anything."""
    seen: BaseException | None = error
    for _ in range(10):
        match seen:
            case None:
                break
            case ssl.SSLCertVerificationError():
                return f": certificate refused, {quoted(seen.verify_message, 100)}"
            case ssl.SSLError():
                return f": TLS, {quoted(seen.reason, 60)}"
            case socket.gaierror():
                return ": the name was not found"
            case OSError(errno=int(number)):
                return f": {os.strerror(number)}"
            case BaseExceptionGroup():
                seen = seen.exceptions[0]
            case _:
                seen = seen.__cause__ or seen.__context__
    return ""


async def _let_go(it: httpx.Response | httpx.AsyncClient) -> None:
    """Close `it`, in bounded time and also when cancelled; what goes wrong now changes nothing."""
    with anyio.move_on_after(_GRACE, shield=True), quiet(), suppress(*_foreign()[1]):
        await it.aclose()


async def _drained(response: httpx.Response) -> None:
    """Read the little that follows an upload, so that its connection serves the next, and close.

    The status is known: an end that is late, long or broken costs the connection and nothing else.
    """
    try:
        with anyio.move_on_after(_GRACE), suppress(*_foreign()[1], BadAnswer):
            async with aclosing(_decoded(response, _LONGEST_REFUSAL)) as pieces:
                async for _ in pieces:
                    pass
    finally:
        await _let_go(response)


async def _pieces(response: httpx.Response, limit: int, deadline: float) -> AsyncGenerator[bytes]:
    """`response`'s bytes until `deadline`; each is fetched in a scope that no `yield` crosses."""
    async with aclosing(_decoded(response, limit)) as pieces:
        while True:
            within = deadline - anyio.current_time()
            piece = await _guarded(within, _STORE, anext(pieces, None))
            if piece is None:
                return
            if isinstance(piece, ApiError):
                raise piece
            yield piece


def _decoded(response: httpx.Response, limit: int) -> AsyncGenerator[bytes]:
    # Not `aiter_raw`, which refuses the responses of `httpx.MockTransport`: those are read already.
    stream = cast("httpx.AsyncByteStream", response.stream)
    encoding = response.headers.get("content-encoding", "").strip().lower()
    return decoded(aiter(stream), encoding, limit)
