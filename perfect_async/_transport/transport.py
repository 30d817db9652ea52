"""Sends one request and returns one value or error. No retries, no redirects, no cookies.

This is the only file that uses httpx. Each of its errors becomes an `errors.ApiError` here
(`_mapped`), and nothing that leaves this file holds the key or a signed URL. httpx's exceptions
carry the request. So an error of ours is raised when theirs is gone, without cause or context, from
a frame that never held the request; its message has the type's name and the system's reason.

httpx and its parts also log our requests: "httpx" logs every URL in full at INFO, "httpcore" the
headers of answers at DEBUG, and "hpack" (for HTTP/2, on a transport that the user brings) the
`Authorization` header at DEBUG. Using httpx's transports without its client would silence the first
only, and leave the proxies of the environment to us. So the client stays, and a filter on these
loggers drops records while a request of ours is being sent or read, which a context variable shows.
The application's own use of httpx, in other tasks or between two steps of ours, is logged as usual.

An answer does not name the request that it answers; on a connection that is kept alive, only the
order tells. So an answer too many (a proxy that passes on a late answer after its own 502, or sends
one twice) would be taken for that of the next request: another person's picture. A connection is
therefore closed after an answer other than 2xx, after one that could not be read, and when bytes
follow an answer. httpcore closes one on which bytes arrive while it is idle. An answer that arrives
even later, together with the next request's, is known by an `x-request-id` that came before.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from contextvars import ContextVar, Token
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Final, TypeAlias, TypeVar, cast
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

import anyio
import attrs
import httpx

from perfect_async._api.tasks import Request, Response
from perfect_async._api.urls import followed
from perfect_async._time import SECOND, TtlSet
from perfect_async._transport.bodies import (
    UploadBody,
    closing,
    decoded,
    storage_error,
    too_large,
    upload_headers,
)
from perfect_async._transport.request_log import logged_request
from perfect_async.errors import (
    ApiError,
    BadAnswer,
    ConfigurationError,
    ServiceUnavailable,
    quoted,
    redacted,
)
from perfect_async.events import FileGrant
from perfect_async.models import Timeouts

_T = TypeVar("_T")

HttpTransport: TypeAlias = httpx.AsyncBaseTransport
NetworkTransport: TypeAlias = httpx.AsyncHTTPTransport

# A page of 20 templates is some 10 KB; no answer of the API comes near this.
_LONGEST_ANSWER: Final = 5_000_000
# Uploads and downloads at a time, on our own pools and on a given transport, which may be small.
_PARALLEL: Final = 24
_PARALLEL_GIVEN: Final = 6
# Storage writes some 1 KB of XML into a refusal.
_LONGEST_REFUSAL: Final = 64 * 1024
_LARGEST_PICTURE: Final = 64 * 1024 * 1024
_LARGEST_VIDEO: Final = 2 * 1024 * 1024 * 1024
# Surplus answers come within seconds; ids are remembered for longer than any request may take.
_ANSWER_REMEMBERED: Final = 600 * SECOND
_REQUEST_ID: Final = re.compile(r"[0-9]{12,20}")
# From httpx's response to httpcore's connection there are five steps.
_MOST_WRAPPERS: Final = 10
_WRAPPED: Final = ("_stream", "_httpcore_stream", "_connection")
# How long the closing of a connection may take, shielded from cancellation.
_GRACE: Final = 2.0

_STORAGE: Final = "the vendor's storage"
_LAST_PORT: Final = 65535

# One by one: a filter on "httpcore" would not see the records of its children.
_LOGGERS: Final = (
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "hpack.hpack",
    "hpack.table",
)
_ours: Final = ContextVar("perfect_async_request", default=False)

# An answer came, and cannot be used.
_UNREADABLE: Final = (
    httpx.DecodingError,
    httpx.TooManyRedirects,
    httpx.InvalidURL,
    httpx.CookieConflict,
    # httpx raises it for some hosts that begin with "xn--", in a URL to follow or a `Location`.
    UnicodeError,
)
_Errors: TypeAlias = tuple[type[Exception], ...]


@cache
def _network_errors() -> tuple[_Errors, _Errors]:
    """Return the errors after which the vendor has not seen a request, and all network errors.

    httpcore's errors appear where httpx does not map them (closing), anyio's and the system's on a
    transport that the user brings. Any other error is a programming error and passes.
    """
    # httpx imports it with the first pool of connections too; it would be a tenth of our import.
    import httpcore  # noqa: PLC0415

    # There was no connection to send the request on.
    never_sent = (
        *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout),
        *(httpx.ProxyError, httpx.UnsupportedProtocol),
        *(httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout),
        *(httpcore.ProxyError, httpcore.UnsupportedProtocol, httpcore.ConnectionNotAvailable),
    )
    return never_sent, (
        *(*never_sent, *_UNREADABLE, httpx.HTTPError, httpx.StreamError),
        *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
        *(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream),
        *(anyio.IncompleteRead, anyio.DelimiterNotFound),
        OSError,
    )


@attrs.frozen
class Exchange:
    """How long the last answered API call took, in seconds, and the vendor's clock in it.

    `connect` is what making the first connection took, None where that was not seen. `date` is the
    answer's `Date` in seconds since 1970, None where it has none; it was written between the loop's
    times `sent` and `answered`, and is cut to whole seconds.
    """

    sent: float
    answered: float
    connect: float | None
    date: float | None

    @property
    def round_trip(self) -> float:
        """Seconds from sending the request to the end of its answer."""
        return self.answered - self.sent


class VendorTransport:
    """Sends API calls, uploads and downloads to the vendor, each once.

    `base_url` is normalised. The key goes into the `Authorization` header of API calls and nowhere
    else. `transport` carries everything and is closed with this object, as with httpx; at most
    `bulk` uploads and downloads run at a time (6 on a given transport, 24 without one), so that an
    API call finds a connection. Without a transport both kinds have a pool each, and proxies and
    certificates come from the environment. Raises `ConfigurationError` where that environment
    cannot be used. Call `aclose` at the end. `last` is the last API call that was answered.
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
        self._headers = httpx.Headers(
            {
                "Authorization": f"Bearer {api_key}",
                "User-Agent": _USER_AGENT,
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            }
        )
        del api_key  # a traceback that shows the locals of this frame must not show it
        self._json_headers = self._headers.copy()
        self._json_headers["Content-Type"] = "application/json"
        self._base_url = _accepted_base(base_url).rstrip("/")
        host = quoted(httpx.URL(self._base_url).netloc.decode("ascii"), 100)[1:-1]
        self._whom = f"the vendor's API at {host}"
        self._timeouts = timeouts
        self._slots = anyio.Semaphore(bulk or (_PARALLEL if transport is None else _PARALLEL_GIVEN))
        silence_loggers()
        _network_errors()
        self._api, self._bulk = _clients(timeouts, transport)
        self._answers = _AnswerIds()
        self.last: Exchange | None = None

    def __repr__(self) -> str:
        return f"<Transport to {self._base_url}>"

    async def aclose(self) -> None:
        """Close all connections; requests that are under way on them fail."""
        for client in {self._api, self._bulk}:
            await _close(client)

    async def call(self, call: Request, *, within: float) -> Response:
        """Send `call` to the API and read its answer, whatever its status, in `within` seconds.

        Raises `ServiceUnavailable` where none came (`never_sent`: the vendor has certainly not seen
        the request), and `BadAnswer` for more than 5 MB and for an answer that cannot be decoded.
        """
        outcome = await _guarded(within, self._whom, self._exchange(call))
        if isinstance(outcome, ApiError):
            raise outcome
        return outcome

    async def upload(
        self,
        grant: FileGrant,
        chunks: Callable[[], AsyncIterator[bytes]],
        *,
        within: float | None = None,
    ) -> None:
        """Put the bytes of `chunks()` where `grant` says, with its headers, in `within` seconds.

        That is `timeouts.upload` where it is None. The time starts when one of the `bulk` places is
        free. `chunks` is called once more before where the grant does not name the length. Raises
        `BadAnswer` for a grant that must not be followed and for a redirect, `PictureRefused` where
        the number of bytes is not the granted one, `RequestRefused` for 4xx, `ServiceUnavailable`
        for 5xx, 408, 429 and no answer, and what `chunks` raises.
        """
        body = UploadBody(chunks)
        async with self._slots:
            seconds = self._timeouts.upload if within is None else within
            with logged_request("PUT", "upload") as log:
                status = await _guarded(seconds, _STORAGE, self._put(grant, body))
                log.status = None if isinstance(status, ApiError) else status
        if body.failure is not None:
            raise body.failure
        if isinstance(status, ApiError):
            raise status
        if not 200 <= status < 300:  # noqa: PLR2004 -- the 2xx class
            raise _refusal("upload", status)

    def download(
        self, url: str, *, limit: int | None = None, large: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the bytes of `url`: at most `limit` decoded ones, in `timeouts.download` in all.

        `large`: it may be a video, which has a limit and the time of its own (`timeouts.video`).

        Entering raises `BadAnswer` for a URL that must not be followed, a redirect and a success
        that is not 200, `RequestRefused` for 4xx (403 once a URL has expired), `ServiceUnavailable`
        for 5xx, 408, 429 and no answer; iterating raises `ServiceUnavailable` and `BadAnswer`. The
        time starts when one of the `bulk` places is free; leaving the block frees the place.
        """
        # The signed URL stays out of the frame that raises.
        within = self._timeouts.video if large else self._timeouts.download
        most = _LARGEST_VIDEO if large else _LARGEST_PICTURE
        return self._download(lambda: self._get(url), most if limit is None else limit, within)

    @asynccontextmanager
    async def _download(
        self, get: Callable[[], Awaitable[httpx.Response]], limit: int, within: float
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        async with self._slots:
            deadline = anyio.current_time() + within
            with logged_request("GET", "download") as log:
                response = await _guarded(within, _STORAGE, get())
                if isinstance(response, ApiError):
                    raise response
                log.status = response.status_code
            try:
                if response.status_code != HTTPStatus.OK:
                    raise _refusal("download", response.status_code)
                announced = _announced_length(response)
                async with aclosing(_pieces(response, limit, deadline, announced)) as pieces:
                    yield pieces
            finally:
                await _release(response, reusable=response.is_success)

    async def _exchange(self, call: Request) -> Response:
        url = self._base_url + call.path
        if call.query:
            url += "?" + urlencode(call.query, quote_via=quote, safe="")
        headers = self._headers if call.content is None else self._json_headers
        request = httpx.Request(call.method, _parsed(url), headers=headers, content=call.content)
        stopwatch = _Stopwatch(anyio.current_time())
        if self.last is None:
            # Only the first call is traced: a trace costs some 20 calls a request.
            request.extensions["trace"] = stopwatch.trace
        response = await self._api.send(request, stream=True)
        reusable = False
        try:
            content = await _content(response)
            self.last = stopwatch.read(response.headers.get("date"), self.last)
            request_id = response.headers.get("x-request-id")
            connection = response.extensions.get("network_stream")
            if self._answers.is_repeated(connection, request_id, anyio.current_time()):
                raise ServiceUnavailable(
                    "an answer came a second time, for another request; it was not believed.",
                    request_id=request_id,
                )
            reusable = response.is_success and _is_object(content)
        finally:
            await _release(response, reusable=reusable)
        if response.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            raise _proxy_refuses(response.status_code)
        return Response(
            response.status_code, content, request_id, response.headers.get("retry-after")
        )

    async def _put(self, grant: FileGrant, body: UploadBody) -> int:
        if grant.method.upper() != "PUT":
            method = quoted(grant.method, 20)
            raise BadAnswer(f"the vendor asks for an upload by {method} instead of PUT.")
        headers = upload_headers(grant.headers)
        url = followed(grant.url, base_url=self._base_url)
        if "content-length" not in headers:
            # Storage takes no chunked encoding, so the bytes are counted if the vendor did not.
            headers["content-length"] = str(await body.count())
        async with aclosing(body.read(int(headers["content-length"]))) as content:
            request = httpx.Request("PUT", url, headers=headers, content=content)
            response = await self._bulk.send(request, stream=True)
            await _drain(response)
        return response.status_code

    async def _get(self, url: str) -> httpx.Response:
        # Pictures do not compress, and a body that is not compressed cannot explode.
        headers = {"Accept-Encoding": "identity"}
        request = httpx.Request("GET", followed(url, base_url=self._base_url), headers=headers)
        return await self._bulk.send(request, stream=True)


class _Stopwatch:
    """Times one exchange that begins at `began`; its first part is the connecting, if any."""

    def __init__(self, began: float) -> None:
        self._began = self._sent = began
        self._connects = False

    async def trace(self, event: str, _: Mapping[str, object]) -> None:
        """Take an event of httpcore's ("trace" of its extensions)."""
        self._connects |= event.startswith("connection.")
        # With a proxy this comes twice: the second time once the tunnel to the vendor is there.
        if event.endswith(".send_request_headers.started"):
            self._sent = anyio.current_time()

    def read(self, date: str | None, before: Exchange | None) -> Exchange:
        """Return the exchange that ends now; what connecting took is kept from `before`."""
        connect = None if before is None else before.connect
        if self._connects:
            connect = self._sent - self._began
        return Exchange(self._sent, anyio.current_time(), connect, _seconds(date))


@lru_cache(maxsize=4)
def _seconds(date: str | None) -> float | None:
    """Return an HTTP date in seconds since 1970, None where it is none."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _user_agent() -> str:
    try:
        return f"perfect_async/{version('perfect_async')}"
    except PackageNotFoundError:
        # A checkout on the path that was not installed.
        return "perfect_async/0"


# For the API's URLs, which repeat and hold nothing secret; never for signed ones.
_parsed: Final = lru_cache(maxsize=256)(httpx.URL)

# At import, since reading metadata blocks and must not run in the loop.
_USER_AGENT: Final = _user_agent()


def _accepted_base(base_url: str) -> str:
    """Return `base_url` if httpx accepts it too: it refuses some hosts in punycode."""
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
    """Return the clients for the API and for pictures: the same one on a given transport."""
    # This file bounds total times itself: a transport may ignore httpx's timeouts, as
    # `ASGITransport` does.
    timeout = httpx.Timeout(None, connect=timeouts.connect)
    if transport is not None:
        client = _Client(transport=transport, timeout=timeout)
        return client, client
    _check_proxies()
    try:
        verify = httpx.create_ssl_context()
        # No bound on connections: the request limit bounds the API's, `bulk` the others.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=10)
        first, second = (_Client(verify=verify, timeout=timeout, limits=limits) for _ in range(2))
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        problem = error.with_traceback(None)
    else:
        return first, second
    raise _environment_error(problem)


def _proxy_settings() -> dict[str, str]:
    """Return the variables that name proxies; lower case wins, as everywhere."""
    spelled = (
        next((name for name in (base, base.upper()) if os.environ.get(name)), None)
        for base in ("https_proxy", "http_proxy", "all_proxy")
    )
    return {name: os.environ[name] for name in spelled if name is not None}


def _proxy_url(value: str) -> httpx.URL | None:
    """Return the URL of a proxy, None where it is none."""
    try:
        url = httpx.URL(value if "://" in value else f"http://{value}")
        httpx.Proxy(url)
    except (ValueError, httpx.InvalidURL):
        return None
    return url if url.host and (url.port is None or 1 <= url.port <= _LAST_PORT) else None


def _check_proxies() -> None:
    """Raise `ConfigurationError` for a variable that names no proxy; its value may be secret."""
    for name, value in _proxy_settings().items():
        if _proxy_url(value) is None:
            raise ConfigurationError(
                f"the environment variable {name} is not the URL of a proxy "
                "(scheme, host, and a port from 1 to 65535)."
            )


def _environment_error(error: Exception) -> ConfigurationError:
    """Return the error that names the variable of the environment that httpx could not use.

    Values are not shown, nor is the cause: they may hold a password.
    """
    problem = type(error).__name__
    if isinstance(error, ImportError):
        socks = [name for name, value in _proxy_settings().items() if value.startswith("socks")]
        return ConfigurationError(
            f"the environment variable {', '.join(socks)} names a SOCKS proxy, which needs "
            'more packages: pip install "httpx[socks]".'
        )
    if isinstance(error, OSError):
        found = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        whose = " and ".join(found) or "this system"
        return ConfigurationError(f"the certificates of {whose} cannot be used ({problem}).")
    name = next((name for name in ("no_proxy", "NO_PROXY") if os.environ.get(name)), "NO_PROXY")
    return ConfigurationError(
        f"the environment variable {name} cannot be used ({problem}): it lists names and "
        "addresses, IPv6 ones without brackets, port or length."
    )


def _refusal(what: str, status: int) -> ApiError:
    """Return the error for a status of the storage, or of a proxy in front of it."""
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return _proxy_refuses(status)
    return storage_error(what, status)


def _proxy_refuses(status: int) -> ServiceUnavailable:
    """Return the error for a proxy that forwards nothing, with its host and port."""
    urls = filter(None, (_proxy_url(value) for value in _proxy_settings().values()))
    names = [url.host if url.port is None else f"{url.host}:{url.port}" for url in urls]
    proxy = f"the proxy {quoted(names[0], 100)}" if names else "the proxy"
    wants = (
        " (it wants other credentials)"
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        else ""
    )
    return ServiceUnavailable(
        f"{proxy} did not forward the request: HTTP {status}{wants}.",
        status=status,
        never_sent=True,
    )


class _NoCookies(httpx.Cookies):
    """Cookies that stay empty: a gateway's would otherwise go along with later calls.

    Not a policy of the jar that allows none: to ask it costs as much as reading the answer.
    """

    def extract_cookies(self, response: httpx.Response) -> None:
        """Take none."""


class _Client(httpx.AsyncClient):
    """A client of httpx without cookies."""

    _none: Final = _NoCookies()

    @property  # type: ignore[misc]
    def cookies(self) -> httpx.Cookies:  # pyright: ignore[reportIncompatibleMethodOverride]
        """None, whatever was answered; they cannot be set either."""
        return self._none


async def _guarded(within: float, whom: str, work: Awaitable[_T]) -> _T | ApiError:
    """Return the value of `work`, or our error for its failure, within `within` seconds.

    Foreign errors are mapped here only. The error is returned for the caller to raise, so that
    neither the foreign error nor a frame with its request hangs on it. Cancellation passes.
    """
    try:
        with anyio.move_on_after(within), quiet():
            return await work
    except ApiError as error:
        return error.with_traceback(None)
    except _network_errors()[1] as error:
        return _mapped(error, whom)
    return _mapped(TimeoutError(), whom)


def _mapped(error: Exception, whom: str) -> ApiError:
    """Return our error for `error`, with its type and, where that is safe, its reason."""
    reason = f"{type(error).__name__}{_reason(error)}"
    if isinstance(error, _UNREADABLE):
        return BadAnswer(f"what {whom} answered cannot be read ({reason}).")
    if isinstance(error, httpx.ProxyError) and (found := re.match("[1-5][0-9]{2}", str(error))):
        return _proxy_refuses(int(found[0]))
    if isinstance(error, _network_errors()[0]):
        return ServiceUnavailable(
            f"{whom} could not be reached ({reason}).",
            never_sent=True,
            lasting=any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error)),
        )
    return ServiceUnavailable(f"no answer came from {whom} ({reason}).")


def _reason(error: BaseException) -> str:
    """Return the reason by error numbers alone: the message of a transport may hold anything."""
    for seen in _causes(error):
        match seen:
            case ssl.SSLCertVerificationError():
                return f": certificate refused, {quoted(seen.verify_message, 100)}"
            case ssl.SSLError():
                return f": TLS, {quoted(seen.reason, 60)}"
            case socket.gaierror():
                return ": the name was not found"
            case OSError(errno=int(number)):
                return f": {os.strerror(number)}"
            case _:
                pass
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and what it came from, the nearest first."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        if isinstance(seen, BaseExceptionGroup):
            seen = cast("BaseExceptionGroup[BaseException]", seen).exceptions[0]
        else:
            seen = seen.__cause__ or seen.__context__


def _is_object(content: bytes) -> bool:
    """Return whether the answer looks whole: a JSON object from its first brace to its last."""
    whole = content.strip()
    return whole.startswith(b"{") and whole.endswith(b"}")


class _AnswerIds:
    """The ids of the answers that came on each connection, to know one that comes again.

    The vendor gives every answer an `x-request-id` of its own, a long number (contract: Base URL
    and headers). A server that begins with one id for all answers has no ids.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[object, TtlSet] = WeakKeyDictionary()
        self._are_unique: bool | None = None

    def is_repeated(self, connection: object, request_id: str | None, now: float) -> bool:
        """Return whether `request_id` came before on `connection`, and remember it."""
        if connection is None or not _REQUEST_ID.fullmatch(request_id or ""):
            return False
        seen = self._seen.setdefault(connection, TtlSet(_ANSWER_REMEMBERED))
        key, at = str(request_id), round(now * SECOND)
        repeated = seen.holds(key, at)
        if self._are_unique is None and len(seen):
            self._are_unique = not repeated
        seen.add(key, at)
        return repeated and self._are_unique is True


def _announced_length(response: httpx.Response) -> int | None:
    """Return the announced length of a body, None where another framing tells its end.

    Raises `ServiceUnavailable` if nothing does: an HTTP/1 body without length and chunks ends with
    its connection, and then nobody knows whether it was cut short. Transports without a connection
    (`network_stream`) hand over whole bodies.
    """
    length = response.headers.get("content-length", "")
    if response.headers.get("transfer-encoding") is None and re.fullmatch("[0-9]{1,15}", length):
        return int(length)
    framed = "transfer-encoding" in response.headers or not _is_http1(response)
    if not framed:
        raise ServiceUnavailable(
            "the vendor's storage does not announce where the picture ends (no length, and the "
            "connection was closed): it may be cut short, so it was not used."
        )
    return None


def _is_http1(response: httpx.Response) -> bool:
    """Return whether `response` came over a connection of HTTP/1, which serves one at a time."""
    version = response.extensions.get("http_version")
    return version in {b"HTTP/1.0", b"HTTP/1.1"} and "network_stream" in response.extensions


async def _release(response: httpx.Response, *, reusable: bool) -> None:
    """Close `response`, and its connection unless the next answer on it is the next request's."""
    if _is_http1(response) and not (reusable and not _has_surplus(response)):
        # The pool finds the connection closed, and opens another one. On HTTP/2, which numbers its
        # answers, other requests go on.
        with anyio.move_on_after(_GRACE, shield=True), quiet(), suppress(*_network_errors()[1]):
            await response.extensions["network_stream"].aclose()
    await _close(response)


def _has_surplus(response: httpx.Response) -> bool:
    """Return whether bytes follow the answer on its connection.

    Only h11, inside of httpcore's connection, knows them. Where it is not found in the streams of
    the response, nothing is known, and the other defences remain.
    """
    inner: object = response.stream
    for _ in range(_MOST_WRAPPERS):
        h11_connection = getattr(inner, "_h11_state", None)
        if h11_connection is not None:
            return bool(h11_connection.trailing_data[0])
        inner = next(
            filter(None, (getattr(inner, name, None) for name in _WRAPPED)),
            None,
        )
    return False


async def _close(thing: httpx.Response | httpx.AsyncClient) -> None:
    """Close `thing` in bounded time, also when cancelled; errors of the closing change nothing."""
    with anyio.move_on_after(_GRACE, shield=True), quiet(), suppress(*_network_errors()[1]):
        await thing.aclose()


async def _drain(response: httpx.Response) -> None:
    """Read the short body after an upload, so that its connection can be used again, and close.

    The status is known: a body that is late, long or broken costs only the connection.
    """
    try:
        with anyio.move_on_after(_GRACE), suppress(*_network_errors()[1], BadAnswer):
            async with aclosing(_decoded(response, _LONGEST_REFUSAL)) as pieces:
                async for _ in pieces:
                    pass
    finally:
        await _release(response, reusable=response.is_success)


async def _pieces(
    response: httpx.Response, limit: int, deadline: float, announced: int | None
) -> AsyncGenerator[bytes]:
    """Yield the bytes of `response` until `deadline`; no scope around a step crosses a `yield`."""
    async with aclosing(_decoded(response, limit, announced)) as pieces:
        while True:
            within = deadline - anyio.current_time()
            piece = await _guarded(within, _STORAGE, anext(pieces, None))
            if piece is None:
                return
            if isinstance(piece, ApiError):
                raise piece
            yield piece


async def _content(response: httpx.Response) -> bytes:
    """Return the body of an answer of the API, at most 5 MB, decoded. Raises as `decoded` does.

    An answer that is not compressed, as was asked for, needs none of the decoder's steps.
    """
    if response.headers.get("content-encoding"):
        async with aclosing(_decoded(response, _LONGEST_ANSWER)) as pieces:
            return b"".join([piece async for piece in pieces])
    chunks, total = list[bytes](), 0
    async with closing(aiter(cast("httpx.AsyncByteStream", response.stream))) as raw:
        async for chunk in raw:
            total += len(chunk)
            if total > _LONGEST_ANSWER:
                raise too_large(_LONGEST_ANSWER)
            chunks.append(chunk)
    return b"".join(chunks)


def _decoded(
    response: httpx.Response, limit: int, announced: int | None = None
) -> AsyncGenerator[bytes]:
    # Not `aiter_raw`, which refuses the responses of `httpx.MockTransport`: those are read already.
    stream = cast("httpx.AsyncByteStream", response.stream)
    encoding = response.headers.get("content-encoding", "").strip().lower()
    return decoded(aiter(stream), encoding, limit, announced)


def silence_loggers() -> None:
    """Put the filter on the loggers of httpx and its parts. Doing it again does nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_not_ours)


class quiet:  # noqa: N801 - used as `contextlib.suppress` is; a generator would cost as much again
    """While in here, nothing is logged. Never hold it across a `yield`, which runs other code."""

    __slots__ = ("_token",)
    _token: Token[bool]

    def __enter__(self) -> None:
        self._token = _ours.set(True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _ours.reset(self._token)


def _not_ours(_: logging.LogRecord) -> bool:
    return not _ours.get()
