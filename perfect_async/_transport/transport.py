"""Sends one request and returns one value or error. No retries, no redirects, no cookies.

Errors. This is the only file that uses httpx, and each of httpx's errors becomes an
`errors.ApiError` here (`_mapped`). Nothing that leaves this file may hold the key or a signed URL,
and httpx's exceptions carry the request. An `ApiError` is therefore raised after httpx's error is
gone, without cause or context, from a frame that never held the request. Its message has the name
of the error's type and the system's reason.

Logs. httpx and its parts log requests, too: "httpx" logs every URL in full at INFO, "httpcore" the
headers of answers at DEBUG, and "hpack" (for HTTP/2, on a transport of the user) the
`Authorization` header at DEBUG. Using httpx's transports without its client would silence only the
first, and this file would have to read the proxies of the environment. The client is therefore
used, and a filter on these loggers drops records while a request of this file is being sent or
read (a context variable). Other uses of httpx in the application are logged as usual.

Surplus answers. An HTTP/1 answer does not name its request; on a kept-alive connection only the
order assigns it. A surplus answer (a proxy sends an answer twice, or passes on a late one after its
own 502) would count as the answer to the next request: another person's picture. A connection is
therefore closed after an answer other than 2xx, after an answer that could not be read, and when
bytes follow an answer. httpcore closes an idle connection on which bytes arrive. A surplus answer
that arrives later still, together with the next one, is recognised by its repeated `x-request-id`.
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

_API_NAME: Final = "the vendor's API at"
# In bytes. A page of 20 templates has about 10 KB; no answer of the API comes near this.
_LONGEST_ANSWER: Final = 5_000_000
# Concurrent uploads and downloads: on our own pools, and on a transport of the user, whose pool
# may be small.
_PARALLEL: Final = 24
_PARALLEL_GIVEN: Final = 6
# In bytes. The storage's refusals have about 1 KB of XML.
_LONGEST_REFUSAL: Final = 64 * 1024
_LARGEST_PICTURE: Final = 64 * 1024 * 1024
_LARGEST_VIDEO: Final = 2 * 1024 * 1024 * 1024
# Surplus answers come within seconds; ids are remembered for longer than any request takes.
_ANSWER_REMEMBERED: Final = 600 * SECOND
_REQUEST_ID: Final = re.compile(r"[0-9]{12,20}")
# Five attributes lead from httpx's response to httpcore's connection; this leaves room for more.
_MOST_WRAPPERS: Final = 10
_WRAPPED: Final = ("_stream", "_httpcore_stream", "_connection")
# Seconds for closing a connection, shielded from cancellation.
_GRACE: Final = 2.0

_STORAGE: Final = "the vendor's storage"
_LAST_PORT: Final = 65535

# Each logger is listed: a filter on "httpcore" does not see the records of its children.
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
_in_request: Final = ContextVar("perfect_async_request", default=False)

# Errors of an answer that came but cannot be used.
_UNREADABLE: Final = (
    httpx.DecodingError,
    httpx.TooManyRedirects,
    httpx.InvalidURL,
    httpx.CookieConflict,
    # httpx raises it for some hosts that begin with "xn--", in a URL or a `Location`.
    UnicodeError,
)
_Errors: TypeAlias = tuple[type[Exception], ...]


@cache
def _network_errors() -> tuple[_Errors, _Errors]:
    """Return the errors after which the vendor has not seen the request, and all network errors.

    httpcore's errors appear where httpx does not map them (closing); errors of anyio and of the
    system appear on a transport of the user. Any other error is a bug and is not mapped.
    """
    # httpx imports it with its first pool. At the top it would take a tenth of our import time.
    import httpcore  # noqa: PLC0415

    # There was no connection, so the request was not sent.
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
    """The times of the last answered API call, in seconds.

    `sent` and `answered` are times of the event loop. `connect` is the time for making the first
    connection, None if it was not measured. `date` is the answer's `Date` in seconds since 1970,
    None without one: the vendor's time, in whole seconds, at a moment between `sent` and
    `answered`.
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

    `base_url` must be normalised. The key is sent only in the `Authorization` header of API calls.
    `transport` carries all requests and is closed with this object, as in httpx. Without one, API
    calls and files have a pool each, and proxies and certificates come from the environment. At
    most `bulk` uploads and downloads run at a time (by default 6 on a given transport, else 24), so
    that an API call finds a free connection. Raises `ConfigurationError` if the environment cannot
    be used. Call `aclose` at the end. `last` holds the times of the last answered API call.
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
        # Built once; httpx copies them for each call. Their repr hides the key.
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
        self._api_name = f"{_API_NAME} {host}"
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
        """Close all connections; requests that are still running fail."""
        for client in {self._api, self._bulk}:
            await _close(client)

    async def call(self, call: Request, *, within: float) -> Response:
        """Send `call` to the API and return its answer, with any status, in `within` seconds.

        Raises `ServiceUnavailable` if no answer came (with `never_sent` if the vendor has certainly
        not seen the request), and `BadAnswer` for an answer over 5 MB or one that cannot be
        decoded.
        """
        outcome = await _guarded(within, self._api_name, self._exchange(call))
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
        """Upload the bytes of `chunks()` as `grant` says, in `within` seconds.

        None means `timeouts.upload`. The time starts when one of the `bulk` places is free. If the
        grant does not name the length, `chunks` is called twice, first to count the bytes. Raises
        `BadAnswer` for a grant that must not be followed and for a redirect, `PictureRefused` if
        the number of bytes differs from the granted one, `RequestRefused` for 4xx,
        `ServiceUnavailable` for 5xx, 408, 429 and no answer, and any error of `chunks`.
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
        """Download `url`: yields at most `limit` decoded bytes, in `timeouts.download` in all.

        By default the limit is 64 MB. `large` is for results that may be a video: the limit is 2 GB
        and the time `timeouts.video`. The time starts when one of the `bulk` places is free;
        leaving the block frees the place.

        Entering the block raises `BadAnswer` for a URL that must not be followed, for a redirect
        and for a success other than 200; `RequestRefused` for 4xx (403 once a URL has expired); and
        `ServiceUnavailable` for 5xx, 408, 429 and no answer. Iterating raises `ServiceUnavailable`
        and `BadAnswer`.
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
            # Only the first call is traced: a trace costs about 20 function calls per request.
            request.extensions["trace"] = stopwatch.trace
        response = await self._api.send(request, stream=True)
        reusable = False
        try:
            content = await _content(response, _LONGEST_ANSWER)
            answered = anyio.current_time()
            self.last = stopwatch.read(answered, response.headers.get("date"), self.last)
            request_id = response.headers.get("x-request-id")
            connection = response.extensions.get("network_stream")
            if self._answers.is_repeated(connection, request_id, answered):
                raise ServiceUnavailable(
                    "the answer to an earlier request came again as the answer to this one; it was "
                    "not used.",
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
            raise BadAnswer(f"the vendor asks for an upload by {method}; only PUT is allowed.")
        headers = upload_headers(grant.headers)
        url = followed(grant.url, base_url=self._base_url)
        if "content-length" not in headers:
            # The storage takes no chunked encoding, so the length must be known before.
            headers["content-length"] = str(await body.count())
        async with aclosing(body.read(int(headers["content-length"]))) as content:
            request = httpx.Request("PUT", url, headers=headers, content=content)
            response = await self._bulk.send(request, stream=True)
            await _drain(response)
        return response.status_code

    async def _get(self, url: str) -> httpx.Response:
        # Pictures do not compress further, and an uncompressed body cannot grow when decoded.
        headers = {"Accept-Encoding": "identity"}
        request = httpx.Request("GET", followed(url, base_url=self._base_url), headers=headers)
        return await self._bulk.send(request, stream=True)


class _Stopwatch:
    """Times one exchange that begins at `began`, and the connecting in it."""

    def __init__(self, began: float) -> None:
        self._began = self._sent = began
        self._connects = False

    async def trace(self, event: str, _: Mapping[str, object]) -> None:
        """Receive an event of httpcore's "trace" extension."""
        self._connects |= event.startswith("connection.")
        # With a proxy this event comes twice, the second time after the tunnel is open.
        if event.endswith(".send_request_headers.started"):
            self._sent = anyio.current_time()

    def read(self, answered: float, date: str | None, before: Exchange | None) -> Exchange:
        """Return the exchange; without a new connection, its `connect` is that of `before`."""
        connect = None if before is None else before.connect
        if self._connects:
            connect = self._sent - self._began
        return Exchange(self._sent, answered, connect, _seconds(date))


@lru_cache(maxsize=4)
def _seconds(date: str | None) -> float | None:
    """Return an HTTP date in seconds since 1970, or None for any other text."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _user_agent() -> str:
    try:
        return f"perfect_async/{version('perfect_async')}"
    except PackageNotFoundError:
        # The package is on the path but not installed.
        return "perfect_async/0"


# Only for the API's URLs, which repeat and hold no secret; signed URLs must not be cached.
_parsed: Final = lru_cache(maxsize=256)(httpx.URL)

# Read at import: reading metadata blocks, so it must not run in the event loop.
_USER_AGENT: Final = _user_agent()


def _accepted_base(base_url: str) -> str:
    """Return `base_url` if httpx accepts it: httpx refuses some hosts in punycode.

    Raises `ConfigurationError` otherwise.
    """
    try:
        httpx.Request("GET", base_url)
    except (httpx.InvalidURL, UnicodeError):
        pass
    else:
        return base_url
    raise ConfigurationError(
        f"the host of base_url {quoted(redacted(base_url))} is not a valid host name."
    )


def _clients(
    timeouts: Timeouts, transport: HttpTransport | None
) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
    """Return the clients for the API and for files; with a `transport` they are the same one."""
    # This file bounds total times itself: some transports, like `ASGITransport`, ignore httpx's
    # timeouts.
    timeout = httpx.Timeout(None, connect=timeouts.connect)
    if transport is not None:
        client = _Client(transport=transport, timeout=timeout)
        return client, client
    _check_proxies()
    try:
        verify = httpx.create_ssl_context()
        # No bound on connections: the request limit bounds API calls, and `bulk` bounds files.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=10)
        first, second = (_Client(verify=verify, timeout=timeout, limits=limits) for _ in range(2))
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        problem = error.with_traceback(None)
    else:
        return first, second
    raise _environment_error(problem)


def _proxy_settings() -> dict[str, str]:
    """Return the environment variables that name proxies; lower-case names take precedence."""
    spelled = (
        next((name for name in (base, base.upper()) if os.environ.get(name)), None)
        for base in ("https_proxy", "http_proxy", "all_proxy")
    )
    return {name: os.environ[name] for name in spelled if name is not None}


def _proxy_url(value: str) -> httpx.URL | None:
    """Return the URL of a proxy, or None if `value` is not one."""
    try:
        url = httpx.URL(value if "://" in value else f"http://{value}")
        httpx.Proxy(url)
    except (ValueError, httpx.InvalidURL):
        return None
    return url if url.host and (url.port is None or 1 <= url.port <= _LAST_PORT) else None


def _check_proxies() -> None:
    """Raise `ConfigurationError` for a variable that is not a proxy's URL, without its value."""
    for name, value in _proxy_settings().items():
        if _proxy_url(value) is None:
            raise ConfigurationError(
                f"the environment variable {name} is not the URL of a proxy "
                "(scheme, host, and a port from 1 to 65535)."
            )


def _environment_error(error: Exception) -> ConfigurationError:
    """Return the error that names the environment variable that httpx could not use.

    The value of the variable and the cause are not shown: they may hold a password.
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
        origin = " and ".join(found) or "this system"
        return ConfigurationError(f"the certificates of {origin} cannot be used ({problem}).")
    name = next((name for name in ("no_proxy", "NO_PROXY") if os.environ.get(name)), "NO_PROXY")
    return ConfigurationError(
        f"the environment variable {name} cannot be used ({problem}). It must list names and "
        "addresses; an IPv6 address has no brackets, port or prefix length there."
    )


def _refusal(what: str, status: int) -> ApiError:
    """Return the error for a failed status of the storage or of a proxy in front of it."""
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return _proxy_refuses(status)
    return storage_error(what, status)


def _proxy_refuses(status: int) -> ServiceUnavailable:
    """Return the error for a proxy that did not forward the request, with its host and port."""
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
    """Cookies that stay empty, so that later calls do not send a gateway's cookies.

    A policy that forbids cookies takes longer than reading the answer.
    """

    def extract_cookies(self, response: httpx.Response) -> None:
        """Do nothing."""


class _Client(httpx.AsyncClient):
    """An httpx client that neither stores nor sends cookies."""

    _none: Final = _NoCookies()

    @property  # type: ignore[misc]
    def cookies(self) -> httpx.Cookies:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the empty cookies; they cannot be set."""
        return self._none


async def _guarded(within: float, peer: str, work: Awaitable[_T]) -> _T | ApiError:
    """Return the value of `work`, or the `ApiError` for its failure, in `within` seconds.

    Foreign errors are mapped only here. The `ApiError` is returned, and the caller raises it, so
    that neither the foreign error nor a frame with the request is attached to it. Cancellation is
    not caught.
    """
    try:
        with anyio.move_on_after(within), quiet():
            return await work
    except ApiError as error:
        return error.with_traceback(None)
    except _network_errors()[1] as error:
        return _mapped(error, peer)
    return _mapped(TimeoutError(), peer)


def _mapped(error: Exception, peer: str) -> ApiError:
    """Return the `ApiError` for `error`, with the name of its type and, if safe, its reason."""
    reason = f"{type(error).__name__}{_reason(error)}"
    if isinstance(error, _UNREADABLE):
        return BadAnswer(f"the answer of {peer} cannot be read ({reason}).")
    if isinstance(error, httpx.ProxyError) and (found := re.match("[1-5][0-9]{2}", str(error))):
        return _proxy_refuses(int(found[0]))
    if isinstance(error, _network_errors()[0]):
        failure = ServiceUnavailable(
            f"{peer} could not be reached ({reason}).",
            never_sent=True,
            lasting=any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error)),
        )
        last = "the host in base_url or YOUCAM_BASE_URL" if peer.startswith(_API_NAME) else ""
        if failure.lasting:
            host = f", and {last}" if last else ""
            failure.hint = f"Check this machine's clock, certificates and proxy{host}."
        elif last:
            failure.hint = f"Try again later; check the network, and {last}."
        return failure
    return ServiceUnavailable(f"no answer came from {peer} ({reason}).")


def _reason(error: BaseException) -> str:
    """Return the reason by error numbers only: the text of a transport's error may hold secrets."""
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
    """Yield `error` and its causes, the nearest first."""
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
    """Return whether `content` looks like a whole JSON object, by its first and last brace."""
    whole = content.strip()
    return whole.startswith(b"{") and whole.endswith(b"}")


class _AnswerIds:
    """Recognises an answer that comes twice on a connection, by its `x-request-id`.

    The vendor gives every answer a unique `x-request-id`, a long number (contract: Base URL and
    headers). If the first two answers have the same id, the ids are not unique and are ignored.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[object, TtlSet] = WeakKeyDictionary()
        self._are_unique: bool | None = None

    def is_repeated(self, connection: object, request_id: str | None, now: float) -> bool:
        """Return whether `request_id` has come before on `connection`, and remember it."""
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
    """Return the announced length of a body, or None if another framing marks its end.

    Raises `ServiceUnavailable` if nothing marks it: an HTTP/1 body without length and chunks ends
    with its connection, so a body that was cut short looks whole. Transports without a connection
    (`network_stream`) return whole bodies.
    """
    length = response.headers.get("content-length", "")
    if response.headers.get("transfer-encoding") is None and re.fullmatch("[0-9]{1,15}", length):
        return int(length)
    framed = "transfer-encoding" in response.headers or not _is_http1(response)
    if not framed:
        raise ServiceUnavailable(
            "the vendor's storage does not announce the length of the picture, which may be cut "
            "short; it was not used."
        )
    return None


def _is_http1(response: httpx.Response) -> bool:
    """Return whether `response` came over HTTP/1, which serves one request at a time."""
    version = response.extensions.get("http_version")
    return version in {b"HTTP/1.0", b"HTTP/1.1"} and "network_stream" in response.extensions


async def _release(response: httpx.Response, *, reusable: bool) -> None:
    """Close `response`, and its HTTP/1 connection unless that is `reusable` and without surplus."""
    if _is_http1(response) and not (reusable and not _has_surplus(response)):
        # The pool finds the connection closed and opens another one. An HTTP/2 connection stays
        # open: it numbers its answers, and other requests use it.
        with anyio.move_on_after(_GRACE, shield=True), quiet(), suppress(*_network_errors()[1]):
            await response.extensions["network_stream"].aclose()
    await _close(response)


def _has_surplus(response: httpx.Response) -> bool:
    """Return whether bytes follow the answer on its connection.

    Only the h11 object inside httpcore's connection knows this. If it is not found, False is
    returned, and the other checks against surplus answers remain.
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
    """Close `thing` in bounded time, also when cancelled; errors of the closing are ignored."""
    with anyio.move_on_after(_GRACE, shield=True), quiet(), suppress(*_network_errors()[1]):
        await thing.aclose()


async def _drain(response: httpx.Response) -> None:
    """Read the short body after an upload, so that its connection can be reused, and close.

    The status is known already: if the body is late, long or broken, only the connection is lost.
    """
    try:
        with anyio.move_on_after(_GRACE), suppress(*_network_errors()[1], BadAnswer):
            await _content(response, _LONGEST_REFUSAL)
    finally:
        await _release(response, reusable=response.is_success)


async def _pieces(
    response: httpx.Response, limit: int, deadline: float, announced: int | None
) -> AsyncGenerator[bytes]:
    """Yield the bytes of `response` until `deadline`; no cancel scope spans a `yield`."""
    async with aclosing(_decoded(response, limit, announced)) as pieces:
        while True:
            within = deadline - anyio.current_time()
            piece = await _guarded(within, _STORAGE, anext(pieces, None))
            if piece is None:
                return
            if isinstance(piece, ApiError):
                raise piece
            yield piece


async def _content(response: httpx.Response, limit: int) -> bytes:
    """Return the body of an answer, decoded, of at most `limit` bytes. Raises as `decoded` does.

    An answer that is not compressed, as was asked for, needs none of the decoder's steps.
    """
    if response.headers.get("content-encoding"):
        async with aclosing(_decoded(response, limit)) as pieces:
            return b"".join([piece async for piece in pieces])
    chunks, total = list[bytes](), 0
    async with closing(aiter(cast("httpx.AsyncByteStream", response.stream))) as raw:
        async for chunk in raw:
            total += len(chunk)
            if total > limit:
                raise too_large(limit)
            chunks.append(chunk)
    return b"".join(chunks)


def _decoded(
    response: httpx.Response, limit: int, announced: int | None = None
) -> AsyncGenerator[bytes]:
    # `aiter_raw` refuses the responses of `httpx.MockTransport`, which are read already.
    stream = cast("httpx.AsyncByteStream", response.stream)
    encoding = response.headers.get("content-encoding", "").strip().lower()
    return decoded(aiter(stream), encoding, limit, announced)


def silence_loggers() -> None:
    """Put the filter on the loggers of httpx and its parts; a second call changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_outside_request)


class quiet:  # noqa: N801 - used like `contextlib.suppress`; a generator would cost twice as much
    """Silences the loggers of httpx inside the block. Never hold it across a `yield`."""

    __slots__ = ("_token",)
    _token: Token[bool]

    def __enter__(self) -> None:
        self._token = _in_request.set(True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _in_request.reset(self._token)


def _outside_request(_: logging.LogRecord) -> bool:
    return not _in_request.get()
