"""One request out, and one value or error back, over many kinds of transports."""

import asyncio
import gzip
import inspect
import logging
import socket
import ssl
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError
from types import ModuleType, TracebackType

import anyio
import httpcore
import httpx
import pytest
import respx
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._api.tasks import Request, Response
from perfect_async._transport import transport as transports
from perfect_async._transport.transport import VendorTransport, quiet, silence_loggers
from perfect_async.errors import (
    ApiError,
    BadAnswer,
    ConfigurationError,
    PerfectError,
    PictureRefused,
    RequestRefused,
    ServiceUnavailable,
)
from perfect_async.events import FileGrant
from perfect_async.models import Timeouts
from perfect_async.sandbox import Sandbox
from tests.support.virtual_time import run

BASE = "https://api.example"
KEY = "sk-the-secret-key"
CALL = Request("GET", "/s2s/v2.0/task/ai-smile/a%2Fb")
UPLOAD = "https://up.example/a%20b/c.jpg?X-Amz-Signature=signed-secret&x=%2F"
DOWNLOAD = "https://down.example/r.jpg?X-Amz-Signature=signed-secret"

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


class FakeTransport(httpx.AsyncBaseTransport):
    """A transport that remembers the requests and lets `handler` answer."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.open = self.most = 0
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            self.bodies.append(b"".join([chunk async for chunk in request.stream]))
            return await self._handler(request)
        finally:
            self.open -= 1

    async def aclose(self) -> None:
        self.closed = True


class Body(httpx.AsyncByteStream):
    """The body of an answer: chunks, waits in seconds, and exceptions, in order."""

    def __init__(self, *steps: bytes | float | Exception, closing: Exception | None = None) -> None:
        self._steps = steps
        self._closing = closing
        self.read = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, bytes):
                self.read += 1
                yield step
            else:
                await anyio.sleep(step)

    async def aclose(self) -> None:
        self.closed = True
        if self._closing is not None:
            raise self._closing


def answering(*args: object, **kwargs: object) -> FakeTransport:
    """Return a transport that gives the same answer every time."""

    async def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(*args, **kwargs)  # type: ignore[arg-type]

    return FakeTransport(handler)


def failing(error: BaseException) -> FakeTransport:
    async def handler(_: httpx.Request) -> httpx.Response:
        raise error

    return FakeTransport(handler)


def silent(seconds: float = 1e6) -> FakeTransport:
    async def handler(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(seconds)
        return httpx.Response(200)

    return FakeTransport(handler)


def make_transport(
    net: httpx.AsyncBaseTransport | None, base: str = BASE, bulk: int = 6
) -> VendorTransport:
    timeouts = Timeouts(upload=60, download=60)
    return VendorTransport(base, KEY, timeouts=timeouts, transport=net, bulk=bulk)


def grant(url: str = UPLOAD, method: str = "PUT", **headers: str) -> FileGrant:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    given = named or {"Content-Type": "image/jpeg", "Content-Length": "5"}
    return FileGrant("f", method, url, tuple(given.items()))


async def picture() -> AsyncIterator[bytes]:
    yield b"abc"
    yield b"de"


async def downloaded(transport: VendorTransport, url: str = DOWNLOAD, limit: int = 1000) -> bytes:
    async with transport.download(url, limit=limit) as pieces:
        return b"".join([piece async for piece in pieces])


def sent(request: httpx.Request) -> dict[str, str]:
    return dict(request.headers)


def all_text_of(error: BaseException) -> str:
    """Return a traceback with all local variables, causes and contexts."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(shown.format()) + repr(error) + repr(vars(error))


def assert_clean(error: BaseException) -> None:
    assert error.__cause__ is None
    assert error.__context__ is None
    ours = all_text_of(error.with_traceback(package_traceback(error)))
    assert "secret" not in ours, ours


def package_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback from the first package frame on; tests hold the secrets, too."""
    step = error.__traceback__
    while step is not None and "perfect_async" not in step.tb_frame.f_globals["__name__"]:
        step = step.tb_next
    return step


# API calls.


async def test_a_call_sends_only_the_needed_headers() -> None:
    """A GET has the key, our name and no body; its path is sent as it was encoded."""
    net = answering(200, content=b"{}")

    await make_transport(net).call(CALL, within=1)

    (request,) = net.requests
    assert {
        "host": "api.example",
        "authorization": f"Bearer {KEY}",
        "user-agent": transports._USER_AGENT,
        "accept": "application/json",
        "accept-encoding": "identity",
    } == sent(request)
    assert ("GET", b"/s2s/v2.0/task/ai-smile/a%2Fb") == (request.method, request.url.raw_path)
    assert request.headers["user-agent"].startswith("perfect_async/")


async def test_a_post_sends_its_json() -> None:
    """A body is sent unchanged, with its type and length."""
    net = answering(200)

    await make_transport(net).call(Request("POST", "/s2s/v2.0/file", (), b'{"files":[]}'), within=1)

    assert [b'{"files":[]}'] == net.bodies
    assert "application/json" == net.requests[0].headers["content-type"]
    assert "12" == net.requests[0].headers["content-length"]


async def test_a_query_is_encoded() -> None:
    """Any token of the vendor is percent-encoded in the query."""
    net = answering(200)

    await make_transport(net).call(
        Request("GET", "/a", (("page_size", "20"), ("t", "a&b= +/é"))), within=1
    )

    assert b"/a?page_size=20&t=a%26b%3D%20%2B%2F%C3%A9" == net.requests[0].url.raw_path


async def test_a_base_may_have_a_port_and_a_path() -> None:
    """A base URL with a port and a path, like a gateway's, is kept."""
    net = answering(200)

    await make_transport(net, "http://gate.example:8080/youcam/").call(CALL, within=1)

    assert "http://gate.example:8080/youcam/s2s/v2.0/task/ai-smile/a%2Fb" == str(
        net.requests[0].url
    )


@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 400, 401, 404, 429, 500, 503])
async def test_any_status_is_returned(status: int) -> None:
    """A response of any status is returned; no redirect is followed and nothing is repeated."""
    headers = {"X-Request-Id": "17", "Retry-After": "3", "Location": "https://evil.example/"}
    net = answering(status, headers=headers, content=b"{}")

    assert Response(status, b"{}", "17", "3") == await make_transport(net).call(CALL, within=1)
    assert 1 == len(net.requests)


@given(
    st.sampled_from(
        ["https://xn--a.example/", "https://xn--/", "http://[", "//\x7f", "a:b", "//a:b"]
    )
    | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"))
)
def test_any_location_is_ignored(location: str) -> None:
    """A `Location` header is never read, also one that httpx cannot parse."""
    net = answering(302, headers=[(b"Location", location.encode("latin-1"))])

    try:
        reply = run(lambda: make_transport(net).call(CALL, within=1))
    except ApiError:
        reply = Response(302, b"")

    assert Response(302, b"") == reply
    assert 1 == len(net.requests)


async def test_a_reply_may_lack_the_vendors_headers() -> None:
    """A gateway's answer without a request id is returned."""
    assert Response(502, b"<html>") == await make_transport(answering(502, content=b"<html>")).call(
        CALL, within=1
    )


async def test_cookies_are_not_kept() -> None:
    """A cookie of a gateway is not sent with later calls."""
    net = answering(200, headers={"Set-Cookie": "a=b; Path=/; Max-Age=1000"})
    transport = make_transport(net)

    await transport.call(CALL, within=1)
    await transport.call(CALL, within=1)

    assert "cookie" not in sent(net.requests[1])


@pytest.mark.parametrize("mock", [True, False])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
async def test_a_compressed_answer_is_inflated_once(encoding: str, mock: bool) -> None:
    """One gzip or deflate encoding is decoded, although not asked for; others are refused."""
    content = gzip.compress(b"{}")
    headers = {"Content-Encoding": encoding}

    def respond(_: httpx.Request) -> httpx.Response:
        stream = httpx.ByteStream(content)
        return httpx.Response(200, headers=headers, stream=stream)

    net = (
        httpx.MockTransport(respond)
        if mock
        else answering(200, headers=headers, stream=Body(content))
    )
    call = make_transport(net).call(CALL, within=1)

    if "," in encoding or encoding == "br":
        with pytest.raises(BadAnswer, match="encoding"):
            await call
    else:
        assert Response(200, b"{}") == await call


async def test_a_mock_transport_of_httpx_works() -> None:
    """Responses whose body was read already are read again."""
    net = httpx.MockTransport(lambda _: httpx.Response(200, json={"a": 1}))

    assert b'{"a":1}' == (await make_transport(net).call(CALL, within=1)).content


async def test_an_answer_is_bounded() -> None:
    """5 MB are read, and one byte more raises without reading the rest."""
    chunk = bytes(1_000_000)
    body = Body(*[chunk] * 5, b"x", chunk, chunk)

    assert 5_000_000 == len(
        (await make_transport(answering(200, content=chunk * 5)).call(CALL, within=1)).content
    )
    with pytest.raises(BadAnswer, match="larger than 5,000,000 bytes") as caught:
        await make_transport(answering(200, stream=body)).call(CALL, within=1)

    assert (6, True) == (body.read, body.closed)
    assert_clean(caught.value)


async def test_a_compressed_answer_is_bounded() -> None:
    """An answer that inflates beyond 5 MB is refused."""
    net = answering(
        200, headers={"Content-Encoding": "gzip"}, stream=Body(gzip.compress(bytes(9_000_000)))
    )

    with pytest.raises(BadAnswer, match="larger"):
        await make_transport(net).call(CALL, within=1)


@pytest.mark.parametrize(
    "net", [silent(), answering(200, stream=Body(b"{", 0.6, b'"a"', 0.6, b":1}"))]
)
async def test_a_call_ends_in_its_time(net: FakeTransport) -> None:
    """A transport that ignores timeouts, and an answer that drips, are cut off in time."""
    begun = anyio.current_time()

    with pytest.raises(ServiceUnavailable, match="TimeoutError") as caught:
        await make_transport(net).call(CALL, within=1)

    assert 1 == anyio.current_time() - begun
    assert not caught.value.never_sent
    assert_clean(caught.value)


async def test_a_cancelled_call_is_closed() -> None:
    """A cancelled call stays cancelled, and its response is closed."""
    body = Body(b"{", 1e6)
    transport = make_transport(answering(200, stream=body))

    with anyio.move_on_after(1) as scope:
        await transport.call(CALL, within=10)

    assert scope.cancelled_caught
    assert body.closed


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), KeyError("x"), RuntimeError("x")])
async def test_programming_errors_are_not_mapped(error: Exception) -> None:
    """A bug in a transport is not mapped to an error of the network."""
    with pytest.raises(type(error)) as caught:
        await make_transport(failing(error)).call(CALL, within=1)

    assert error is caught.value


# Errors.


def exceptions_of(module: ModuleType) -> list[type[Exception]]:
    found = {
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    return sorted(found, key=lambda kind: kind.__name__)


NEVER_SENT = {
    *("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"),
    "ConnectionNotAvailable",
}
UNREADABLE = {"CookieConflict", "DecodingError", "InvalidURL", "TooManyRedirects"}


def made(kind: type[Exception]) -> Exception:
    request = httpx.Request("GET", UPLOAD, headers={"Authorization": f"Bearer {KEY}"})
    if kind is httpx.HTTPStatusError:
        return httpx.HTTPStatusError(UPLOAD, request=request, response=httpx.Response(500))
    if kind in {
        httpx.ResponseNotRead,
        httpx.RequestNotRead,
        httpx.StreamClosed,
        httpx.StreamConsumed,
    }:
        return kind()
    if issubclass(kind, httpx.RequestError):
        return kind(UPLOAD, request=request)
    return kind(UPLOAD)


@pytest.mark.parametrize(
    "kind",
    [*exceptions_of(httpx), *exceptions_of(httpcore)],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
@pytest.mark.parametrize("way", ["call", "body", "upload", "download", "pieces"])
async def test_every_exception_of_httpx_is_mapped(kind: type[Exception], way: str) -> None:
    """Each becomes an `ApiError` without a secret that tells whether the vendor saw the request."""
    if way in {"body", "pieces"}:
        net = answering(200, stream=Body(b"x", made(kind)))
    else:
        net = failing(made(kind))
    transport = make_transport(net)

    match way:
        case "call" | "body":
            exchange: Awaitable[object] = transport.call(CALL, within=1)
        case "upload":
            exchange = transport.upload(grant(), picture)
        case _:
            exchange = downloaded(transport)

    with pytest.raises(ApiError) as caught:
        await exchange

    error = caught.value
    assert (BadAnswer if kind.__name__ in UNREADABLE else ServiceUnavailable) is type(error)
    assert kind.__name__ in str(error)
    assert (kind.__name__ in NEVER_SENT) is getattr(error, "never_sent", False)
    assert error.status is None
    assert_clean(error)


def test_the_lists_name_existing_exceptions() -> None:
    """Every name in the lists above is an exception of httpx or httpcore."""
    known = {kind.__name__ for kind in (*exceptions_of(httpx), *exceptions_of(httpcore))}

    assert set() == (NEVER_SENT | UNREADABLE) - known


def chained(outer: Exception, *causes: BaseException) -> Exception:
    step: BaseException = outer
    for cause in causes:
        step.__cause__ = cause
        step = cause
    return outer


def certificate() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "CERTIFICATE_VERIFY_FAILED")
    error.verify_message = "certificate has expired"
    return error


def handshake() -> ssl.SSLError:
    error = ssl.SSLError(1, "x")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


def endless() -> Exception:
    error = httpx.ReadError("x")
    error.__cause__ = error
    return error


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        ("(ConnectionResetError: Connection reset by peer)", ConnectionResetError(104, "secret")),
        ("(BrokenPipeError: Broken pipe)", BrokenPipeError(32, "secret")),
        ("(OSError)", OSError("secret")),
        ("(TimeoutError)", TimeoutError("secret")),
        ("(gaierror: the name was not found)", socket.gaierror(-2, "secret")),
        ("(SSLError: TLS, 'WRONG_VERSION_NUMBER')", handshake()),
        ("(BrokenResourceError)", anyio.BrokenResourceError("secret")),
        ("(ClosedResourceError)", anyio.ClosedResourceError("secret")),
        ("(EndOfStream)", anyio.EndOfStream("secret")),
        (
            "(ConnectError: Connection refused)",
            chained(
                httpx.ConnectError("secret"),
                httpcore.ConnectError("secret"),
                OSError("secret"),
                ExceptionGroup("secret", [ConnectionRefusedError(111, "secret")]),
            ),
        ),
        (
            "(ConnectError: certificate refused, 'certificate has expired')",
            chained(httpx.ConnectError("secret"), httpcore.ConnectError("secret"), certificate()),
        ),
        ("(ReadError)", chained(httpx.ReadError("secret"), ValueError("secret"))),
        ("(ReadError)", endless()),
    ],
    ids=repr,
)
async def test_the_message_has_the_reason_of_the_system(expected: str, error: Exception) -> None:
    """The reason comes from error numbers, never from a text that may hold a URL."""
    with pytest.raises(ServiceUnavailable) as caught:
        await make_transport(failing(error)).call(CALL, within=1)

    assert expected in str(caught.value)
    assert ("refused" in expected) is caught.value.never_sent
    assert ("certificate" in expected) is caught.value.lasting
    assert ("certificate" in expected) is not caught.value.hint.startswith("Try again")
    assert_clean(caught.value)


async def test_the_host_is_named() -> None:
    """The message names the host and the port, which may be mistyped."""
    transport = make_transport(
        failing(httpx.ConnectError("secret")), base="https://api.example:8443"
    )

    with pytest.raises(
        ServiceUnavailable, match=r"API at api\.example:8443 could not be reached"
    ) as e:
        await transport.call(CALL, within=1)
    assert "the host in base_url or YOUCAM_BASE_URL" in e.value.hint


# Uploads.


async def test_an_upload_sends_what_was_granted() -> None:
    """The signed URL, the granted headers and the host are sent; no key, no name, no chunks."""
    net = answering(200)

    await make_transport(net).upload(grant(), picture)

    (request,) = net.requests
    assert {"host": "up.example", "content-type": "image/jpeg", "content-length": "5"} == sent(
        request
    )
    assert b"/a%20b/c.jpg?X-Amz-Signature=signed-secret&x=%2F" == request.url.raw_path
    assert ("PUT", [b"abcde"]) == (request.method, net.bodies)


async def test_an_ungranted_length_is_counted() -> None:
    """The storage takes no chunks, so the picture is read once more to count its bytes."""
    net = answering(200)

    await make_transport(net).upload(grant(content_type="image/jpeg"), picture)

    assert "5" == net.requests[0].headers["content-length"]
    assert "transfer-encoding" not in net.requests[0].headers
    assert [b"abcde"] == net.bodies


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("'POST'; only PUT", grant(method="POST")),
        ("'get'; only PUT", grant(method="get")),
        ("upload header 'Authorization'", grant(Authorization="x")),
        ("upload header 'Host'", grant(Host="x")),
        ("is not https", grant("http://up.example/a?secret")),
        ("special address", grant("https://10.0.0.1/a?secret")),
        ("credentials", grant("https://u:secret@up.example/a")),
        ("InvalidCodepoint", grant("https://xn--a.example/a?secret")),
    ],
    ids=repr,
)
async def test_an_unsafe_grant_is_refused(expected: str, given: FileGrant) -> None:
    """A grant that must not be followed raises, and nothing is sent."""
    net = answering(200)

    with pytest.raises(BadAnswer, match=expected) as caught:
        await make_transport(net).upload(given, picture)

    assert [] == net.requests
    assert_clean(caught.value)


async def test_the_method_may_be_in_lower_case() -> None:
    """The method of a grant is compared without case."""
    await make_transport(answering(200)).upload(grant(method="put"), picture)


STATUSES = [
    *((RequestRefused, status) for status in (400, 401, 403, 404, 410)),
    *((ServiceUnavailable, status) for status in (408, 429, 500, 503)),
    *((BadAnswer, status) for status in (301, 302, 304, 307)),
]


@pytest.mark.parametrize(("kind", "status"), STATUSES)
async def test_a_refused_upload_raises(kind: type[ApiError], status: int) -> None:
    """The storage's status decides the error; redirects are not followed."""
    net = answering(
        status, headers={"Location": "https://other.example/"}, content=b"<Error>secret"
    )

    with pytest.raises(kind) as caught:
        await make_transport(net).upload(grant(), picture)

    assert (kind, status) == (type(caught.value), caught.value.status)
    assert 1 == len(net.requests)
    assert_clean(caught.value)


@pytest.mark.parametrize("status", [200, 201, 204])
async def test_any_2xx_is_an_upload(status: int) -> None:
    """Any 2xx of the storage counts as an upload."""
    await make_transport(answering(status)).upload(grant(), picture)


@pytest.mark.parametrize(
    "body",
    [
        Body(b"", closing=httpx.ReadError("x")),
        Body(httpx.ReadError("x")),
        Body(1e6),
        Body(*[bytes(50_000)] * 9),
        Body(b"\xff", closing=OSError("x")),
    ],
    ids=["closing", "broken", "late", "long", "odd"],
)
async def test_the_body_of_an_uploads_answer_does_not_matter(body: Body) -> None:
    """After a 200 the picture is uploaded, even if the body of the answer is broken."""
    begun = anyio.current_time()

    await make_transport(answering(200, stream=body)).upload(grant(), picture)

    assert body.closed
    assert anyio.current_time() - begun <= 2


@pytest.mark.parametrize("error", [OSError("disk"), PictureRefused("x"), ValueError("x")])
async def test_an_error_of_the_picture_is_raised_unchanged(error: Exception) -> None:
    """An error of reading the picture is not mapped to an error of the network."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"abc"
        raise error

    with pytest.raises(type(error)) as caught:
        await make_transport(answering(200)).upload(grant(), broken)

    assert error is caught.value


@pytest.mark.parametrize("length", ["4", "6"])
async def test_a_picture_of_another_length_is_refused(length: str) -> None:
    """A picture that changed after its registration is not sent to its end."""
    with pytest.raises(PictureRefused, match=f"the {length} bytes"):
        await make_transport(answering(200)).upload(grant(Content_Length=length), picture)


async def test_an_upload_ends_in_its_time() -> None:
    """A slow upload is given up after `timeouts.upload`."""
    begun = anyio.current_time()

    with pytest.raises(ServiceUnavailable):
        await make_transport(silent()).upload(grant(), picture)

    assert 60 == anyio.current_time() - begun


async def test_a_video_has_its_own_timeouts() -> None:
    """A video's upload takes the time of its caller, its download `timeouts.video`."""
    begun = anyio.current_time()

    with pytest.raises(ServiceUnavailable):
        await make_transport(silent()).upload(grant(), picture, within=300)
    with pytest.raises(ServiceUnavailable):
        async with make_transport(silent()).download(DOWNLOAD, large=True):
            pass

    assert 300 + Timeouts().video == anyio.current_time() - begun


async def test_a_video_may_be_larger_than_a_picture() -> None:
    """A large download may exceed the limit of pictures."""
    chunk = bytes(8 * 2**20)
    body = [each for _ in range(9) for each in (chunk, 0.0)]
    read = 0

    async with make_transport(answering(200, stream=Body(*body))).download(
        DOWNLOAD, large=True
    ) as pieces:
        async for piece in pieces:
            read += len(piece)
    with pytest.raises(BadAnswer, match="larger than"):
        await downloaded(make_transport(answering(200, stream=Body(*body))))

    assert 72 * 2**20 == read


async def test_uploads_and_downloads_share_their_places() -> None:
    """Uploads and downloads wait for a place without using their time; calls need no place."""
    net = silent(50)
    transport = make_transport(net, bulk=3)
    begun = anyio.current_time()
    most = 0

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(transport.upload, grant(), picture)
            group.start_soon(downloaded, transport)
        await anyio.wait_all_tasks_blocked()
        most = net.most
        with pytest.raises(ServiceUnavailable):
            await transport.call(CALL, within=1)
        assert 4 == net.most

    assert 3 == most
    assert 150 == anyio.current_time() - begun


@pytest.mark.parametrize("url", [UPLOAD, "http://10.0.0.1/"])
async def test_a_place_is_given_back(url: str) -> None:
    """Failures, refusals and cancellation free their place."""
    transport = make_transport(silent(), bulk=1)

    for _ in range(3):
        with anyio.move_on_after(1), pytest.raises(PerfectError):
            await transport.upload(grant(url), picture)
        with anyio.move_on_after(1), pytest.raises(PerfectError):
            await downloaded(transport, url)

    assert 1 == transport._slots.value


# Downloads.


async def test_a_download_sends_only_url_and_host() -> None:
    """A download sends the signed URL and the host, but no key and no name."""
    net = answering(200, stream=Body(b"ab", b"c"))

    assert b"abc" == await downloaded(make_transport(net))
    assert {"host": "down.example", "accept-encoding": "identity"} == sent(net.requests[0])
    assert DOWNLOAD == str(net.requests[0].url)


@pytest.mark.parametrize(("kind", "status"), [*STATUSES, (BadAnswer, 204), (BadAnswer, 206)])
async def test_a_refused_download_raises(kind: type[ApiError], status: int) -> None:
    """Only a 200 has the picture; redirects are not followed."""
    body = Body(b"secret")
    net = answering(status, headers={"Location": "https://other.example/"}, stream=body)

    with pytest.raises(kind) as caught:
        await downloaded(make_transport(net))

    assert (kind, status) == (type(caught.value), caught.value.status)
    assert (0, True, 1) == (body.read, body.closed, len(net.requests))
    assert_clean(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://down.example/?secret",
        "https://127.0.0.1/?secret",
        "https://localhost/?secret",
        "secret",
    ],
)
async def test_an_unsafe_url_is_refused(url: str) -> None:
    """A result with an unsafe URL is not requested."""
    net = answering(200)

    with pytest.raises(BadAnswer) as caught:
        await downloaded(make_transport(net), url)

    assert [] == net.requests
    assert_clean(caught.value)


async def test_a_download_is_bounded() -> None:
    """Exactly `limit` bytes pass, and one more raises."""
    body = Body(b"abc", b"d", b"e")

    assert b"abc" == await downloaded(make_transport(answering(200, content=b"abc")), limit=3)
    with pytest.raises(BadAnswer, match="larger than 3 bytes") as caught:
        await downloaded(make_transport(answering(200, stream=body)), limit=3)

    assert (2, True) == (body.read, body.closed)
    assert_clean(caught.value)


async def test_the_whole_download_is_bounded_in_time() -> None:
    """A slow server and a slow consumer use the same time, which is checked at the next piece."""
    body = Body(b"a", 25.0, b"b", 1e6)
    transport = make_transport(answering(200, stream=body))
    begun = anyio.current_time()

    async with transport.download(DOWNLOAD) as pieces:
        assert b"a" == await anext(pieces)
        await anyio.sleep(25)
        assert b"b" == await anext(pieces)
        with pytest.raises(ServiceUnavailable, match="TimeoutError"):
            await anext(pieces)

    assert 60 == anyio.current_time() - begun
    assert body.closed


async def test_leaving_a_download_early_closes_it() -> None:
    """An error in the block closes the response and is raised unchanged."""
    body = Body(b"a", b"b")
    transport = make_transport(answering(200, stream=body))

    async def saved() -> None:
        async with transport.download(DOWNLOAD) as pieces:
            await anext(pieces)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await saved()

    assert (1, True) == (body.read, body.closed)


async def test_a_cancelled_download_is_closed() -> None:
    """Cancellation closes the response."""
    body = Body(b"a", 1e6)
    transport = make_transport(answering(200, stream=body))

    with anyio.move_on_after(1) as scope:
        await downloaded(transport)

    assert scope.cancelled_caught
    assert body.closed


# Logs, pools and the rest.


@pytest.mark.parametrize("way", ["given", "respx"])
async def test_no_log_holds_the_key_or_a_signed_url(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, none of our requests is logged, and other uses of httpx are."""
    caplog.set_level(logging.DEBUG)
    net = answering(200, content=b"{}") if way == "given" else None

    with respx.mock(assert_all_called=False) as router:
        router.route().respond(200, content=b"{}", headers={"Location": UPLOAD})
        transport = make_transport(net)
        await transport.call(CALL, within=1)
        await transport.upload(grant(), picture)
        async with transport.download(DOWNLOAD) as pieces:
            async with httpx.AsyncClient() as theirs:
                await theirs.get("https://theirs.example/")
            assert [b"{}"] == [piece async for piece in pieces]
        await transport.aclose()

    assert "https://theirs.example/" in caplog.text
    for secret in ("secret", "api.example", "up.example", "down.example"):
        assert secret not in caplog.text


def test_a_base_with_an_invalid_host_is_refused() -> None:
    """Invalid punycode raises at construction, not with every call."""
    with pytest.raises(ConfigurationError, match="xn--a") as caught:
        make_transport(answering(200), "https://xn--a.example")

    assert caught.value.__context__ is None


def test_the_repr_has_no_key() -> None:
    """The repr shows only the base URL."""
    assert "<Transport to https://api.example>" == repr(make_transport(answering(200)))


async def test_calls_and_pictures_have_separate_pools() -> None:
    """Without a given transport, API calls and pictures do not share connections."""
    transport = make_transport(None)

    assert transport._api is not transport._bulk
    with respx.mock() as router:
        router.get("https://api.example/s2s/v2.0/task/ai-smile/a%2Fb").respond(200, content=b"{}")
        router.put("https://up.example/a%20b/c.jpg").respond(200)
        router.get("https://down.example/r.jpg").respond(200, content=b"abc")
        assert Response(200, b"{}") == await transport.call(CALL, within=1)
        await transport.upload(grant(), picture)
        assert b"abc" == await downloaded(transport)
    await transport.aclose()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("HTTPS_PROXY", f"http://user:secret@proxy:{port}") for port in ("port", "0", "99999")),
        *(("HTTPS_PROXY", value) for value in ("socks5://user:secret@proxy", "gopher://secret")),
        *(("HTTP_PROXY", value) for value in ("http://user:secret@", "http://")),
        *(("ALL_PROXY", value) for value in ("socks5://user:secret@proxy", "secret:port")),
        *(("all_proxy", value) for value in ("http://user:secret@proxy:-1",)),
        *(("NO_PROXY", value) for value in ("[::1]", "a.example,[::1]:80", "fd00::/8")),
        *(("no_proxy", value) for value in ("[::1]",)),
        *(("SSL_CERT_FILE", value) for value in ("/no/such/secret",)),
    ],
)
async def test_an_unusable_environment_variable_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the variable of a proxy or certificate, without its value."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError, match=rf"\b{variable}\b") as caught:
        make_transport(None)

    assert "secret" not in str(caught.value)
    assert (None, None) == (caught.value.__cause__, caught.value.__context__)


async def test_an_overridden_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower-case variable has precedence, as in httpx; the other may have any value."""
    monkeypatch.setenv("HTTPS_PROXY", "gopher://proxy")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")

    await make_transport(None).aclose()


def refusing(error: Exception | int) -> FakeTransport:
    """Return a transport whose proxy refuses, by an answer or by httpx's error for CONNECT."""
    return failing(error) if isinstance(error, Exception) else answering(error, html="<b>no</b>")


@pytest.mark.parametrize("error", [407, httpx.ProxyError("407 Proxy Authentication Required")])
@pytest.mark.parametrize(
    ("named", "value"),
    [
        ("'proxy.example:3128'", "http://user:secret@proxy.example:3128"),
        ("'proxy.example'", "proxy.example"),
        ("the proxy did", None),
    ],
)
async def test_a_refusing_proxy_is_named(
    error: Exception | int, named: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for a 407 names the proxy without its password, and has `never_sent`."""
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    if value is not None:
        monkeypatch.setenv("HTTPS_PROXY", value)
    transport = make_transport(refusing(error))

    work: list[Callable[[], Awaitable[object]]] = [
        lambda: transport.call(CALL, within=1),
        lambda: transport.upload(grant(), picture),
        lambda: downloaded(transport),
    ]
    for each in work:
        with pytest.raises(ServiceUnavailable, match=named) as caught:
            await each()
        assert (407, True) == (caught.value.status, caught.value.never_sent)
        assert "secret" not in str(caught.value)
        assert_clean(caught.value)


async def test_a_given_transport_is_closed() -> None:
    """Closing also closes the given transport, as in httpx."""
    net = answering(200)

    await make_transport(net).aclose()

    assert net.closed


async def test_a_slow_close_is_bounded() -> None:
    """A transport that closes slowly and then fails delays no caller, even when cancelled."""

    class Stubborn(FakeTransport):
        async def aclose(self) -> None:
            self.closed = True
            await anyio.sleep(1)
            raise httpx.ReadError("x")

    async def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200)

    net = Stubborn(handler)
    begun = anyio.current_time()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await make_transport(net).aclose()

    assert net.closed
    assert 1 == anyio.current_time() - begun


def test_the_user_agent_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that was never installed has the version 0 in its user agent."""

    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(transports, "version", lambda _: "1.2.3")
    assert "perfect_async/1.2.3" == transports._user_agent()
    monkeypatch.setattr(transports, "version", missing)
    assert "perfect_async/0" == transports._user_agent()


# On a real socket.


class Server:
    """Answers each request on a connection with the next raw answer; None closes the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while self._answers:
            head = await reader.readuntil(b"\r\n\r\n")
            found = [line for line in head.lower().split(b"\r\n") if b"content-length" in line]
            length = int(found[0].partition(b":")[2]) if found else 0
            self.requests.append(head + await reader.readexactly(length))
            answer = self._answers.pop(0)
            if answer is None:
                break
            writer.write(answer)
            await writer.drain()


@asynccontextmanager
async def listening(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[int]:
    """Serve on a free port, and wait for the end of every connection before leaving."""
    tasks: list[asyncio.Task[object] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield server.sockets[0].getsockname()[1]
    # Every client is closed by now, so the handlers read the end and return.
    await asyncio.gather(*(task for task in tasks if task is not None))


@asynccontextmanager
async def serving(*answers: bytes | None) -> AsyncGenerator[Server]:
    server = Server(*answers)
    async with listening(server) as server.port:
        yield server


OK = b"HTTP/1.1 200 OK\r\nx-request-id: 17\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_the_sent_bytes_are_these(caplog: pytest.LogCaptureFixture) -> None:
    """The bytes of calls, uploads and downloads are exact, and no log at DEBUG has a secret."""
    caplog.set_level(logging.DEBUG)
    async with serving(OK, OK, OK, OK, OK) as server:
        transport = make_transport(None, server.base)
        url = f"{server.base}/a%20b/c.jpg?X-Amz-Signature=signed-secret&x=%2F"
        reply = await transport.call(Request("POST", "/s2s/v2.0/file", (), b"[]"), within=60)
        await transport.call(CALL, within=60)
        await transport.upload(grant(url), picture)
        await transport.upload(grant(url), picture)
        picture_bytes = await downloaded(transport, url)
        async with httpx.AsyncClient() as theirs:
            with pytest.raises(httpx.TransportError):
                await theirs.get(f"{server.base}/theirs")
        await transport.aclose()

    post, get, put, again, download = server.requests
    host = b"Host: 127.0.0.1:%d\r\n" % server.port
    agent = transports._USER_AGENT.encode()
    own = b"Authorization: Bearer " + KEY.encode() + b"\r\nUser-Agent: " + agent + b"\r\n"
    accept = b"Accept: application/json\r\nAccept-Encoding: identity\r\n"
    assert Response(200, b"{}", "17") == reply
    assert (
        b"POST /s2s/v2.0/file HTTP/1.1\r\n"
        + host
        + own
        + accept
        + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
    ) == post
    assert b"GET /s2s/v2.0/task/ai-smile/a%2Fb HTTP/1.1\r\n" + host + own + accept + b"\r\n" == get
    path = b"/a%20b/c.jpg?X-Amz-Signature=signed-secret&x=%2F"
    assert (
        b"PUT " + path + b" HTTP/1.1\r\n" + host + b"content-type: image/jpeg\r\n"
        b"content-length: 5\r\n\r\nabcde"
    ) == put
    assert put == again
    assert (
        b"GET " + path + b" HTTP/1.1\r\n" + host + b"Accept-Encoding: identity\r\n\r\n" == download
    )
    assert b"{}" == picture_bytes
    # One connection for calls, one for pictures (both uploads and the download), one of theirs.
    assert 3 == server.connections
    assert {"httpcore.connection", "httpcore.http11"} <= {record.name for record in caplog.records}
    assert "secret" not in caplog.text


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_a_refused_connection_was_never_sent() -> None:
    """A refused connection has `never_sent`."""
    async with serving() as server:
        base = server.base

    with pytest.raises(ServiceUnavailable, match=r"ConnectError: Connect.*refused") as caught:
        await make_transport(None, base).call(CALL, within=60)

    assert caught.value.never_sent
    assert_clean(caught.value)


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_a_server_without_tls_has_seen_nothing() -> None:
    """A server that does not speak TLS has not seen the request."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"220 who are you?\r\n")
        await writer.drain()

    async with listening(plain) as port:
        transport = make_transport(None, f"https://127.0.0.1:{port}")
        with pytest.raises(ServiceUnavailable, match=r"ConnectError: TLS") as caught:
            await transport.call(CALL, within=60)
        await transport.aclose()

    assert caught.value.never_sent
    assert_clean(caught.value)


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ("RemoteProtocolError", None),
        ("RemoteProtocolError", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"),
        ("RemoteProtocolError", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{"),
        ("RemoteProtocolError", b"no HTTP at all\r\n\r\n"),
        ("RemoteProtocolError", b"HTTP/1.1 200 OK\r\nsecret\x00: x\r\n\r\n"),
    ],
)
async def test_a_broken_answer_is_no_answer(
    expected: str, answer: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """After a broken answer the vendor may have seen the request."""
    caplog.set_level(logging.DEBUG)
    async with serving(answer) as server:
        transport = make_transport(None, server.base)
        with pytest.raises(ServiceUnavailable, match=expected) as caught:
            await transport.call(CALL, within=60)
        await transport.aclose()

    assert not caught.value.never_sent
    assert 1 == len(server.requests)
    assert "secret" not in caplog.text
    assert_clean(caught.value)


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_a_timeout_closes_its_connection() -> None:
    """The connection of a call that timed out is not used by the next call."""
    silent = [True]

    async def moody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            if not silent[0]:
                writer.write(OK)
                await writer.drain()

    async with listening(moody) as port:
        transport = make_transport(None, f"http://127.0.0.1:{port}")
        with pytest.raises(ServiceUnavailable, match="TimeoutError"):
            await transport.call(CALL, within=0.1)
        silent[0] = False
        assert Response(200, b"{}", "17") == await transport.call(CALL, within=60)
        await transport.aclose()


# Surplus answers.


def http(body: str, status: str = "200 OK", number: int = 0) -> bytes:
    """Return an answer of the API whose `x-request-id` is made of `number`."""
    request_id = 576460752303423488 + number
    head = f"HTTP/1.1 {status}\r\nx-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


ONE, TWO, THREE = (http(f'{{"task":{number}}}', number=number) for number in (1, 2, 3))
REAL = b'{"task":2}'


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
@pytest.mark.parametrize(
    "first",
    [
        http("<html>", "502 Bad Gateway") + ONE,
        http("{}", "429 Too Many Requests"),
        http("{}", "404 Not Found"),
        http("{}", "302 Found"),
        http("<html>"),
        http('{"task":'),
        http(""),
        ONE + ONE,
        ONE + THREE,
        ONE + b"x",
        ONE.replace(b"content-length", b"content-encoding: br\r\ncontent-length"),
    ],
    ids=repr,
)
async def test_only_a_clean_answer_keeps_its_connection(first: bytes, given: bool) -> None:
    """After an error, an unreadable answer or surplus bytes, a new connection is opened."""
    async with serving(first, TWO) as server:
        transport = make_transport(httpx.AsyncHTTPTransport() if given else None, server.base)
        with suppress(BadAnswer):
            await transport.call(CALL, within=60)
        answer = await transport.call(CALL, within=60)
        await transport.aclose()

    assert REAL == answer.content
    assert 2 == server.connections


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_a_connection_is_kept_alive_after_clean_answers() -> None:
    """Clean answers share one connection."""
    async with serving(ONE, TWO, THREE) as server:
        transport = make_transport(None, server.base)
        found = [(await transport.call(CALL, within=60)).content for _ in range(3)]
        await transport.aclose()

    assert [b'{"task":1}', b'{"task":2}', b'{"task":3}'] == found
    assert 1 == server.connections


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("late", [ONE, THREE], ids=["the same", "another"])
async def test_an_answer_between_two_requests_is_dropped(late: bytes) -> None:
    """An idle connection on which bytes arrive is not used again."""
    sent, came = anyio.Event(), anyio.Event()
    connections: list[int] = []

    async def doubling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ONE if len(connections) == 1 else TWO)
        await writer.drain()
        if len(connections) == 1:
            await came.wait()
            writer.write(late)
            await writer.drain()
            sent.set()
        await reader.read()

    async with listening(doubling) as port:
        transport = make_transport(None, f"http://127.0.0.1:{port}")
        await transport.call(CALL, within=60)
        came.set()
        await sent.wait()
        answer = await transport.call(CALL, within=60)
        await transport.aclose()

    assert REAL == answer.content
    assert 2 == len(connections)


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_a_repeated_answer_is_refused() -> None:
    """An answer that came before is not returned for the next request."""
    async with serving(THREE, ONE, ONE + TWO, TWO) as server:
        transport = make_transport(None, server.base)
        await transport.call(CALL, within=60)
        await transport.call(CALL, within=60)
        with pytest.raises(ServiceUnavailable, match="came again") as caught:
            await transport.call(CALL, within=60)
        answer = await transport.call(CALL, within=60)
        await transport.aclose()

    assert not caught.value.never_sent
    assert_clean(caught.value)
    assert REAL == answer.content
    assert 2 == server.connections


@pytest.mark.parametrize(
    ("expected", "ids"),
    [
        ([False, False, True, True], ["1" * 18, "2" * 18, "1" * 18, "2" * 18]),
        # If the first two ids are equal, ids are ignored.
        ([False] * 5, ["1" * 18, "1" * 18, "2" * 18, "1" * 18, "2" * 18]),
        # Short ids and missing ones are ignored.
        ([False] * 5, ["1", "2", "1", None, None]),
        ([False] * 4, ["a" * 18, "b" * 18, "a" * 18, "b" * 18]),
    ],
)
def test_a_repeated_id_marks_a_surplus_answer(expected: list[bool], ids: list[str | None]) -> None:
    """A repeated id marks a surplus answer if the server's ids are unique."""
    answers, connection = transports._AnswerIds(), object.__new__(FakeTransport)

    assert expected == [answers.is_repeated(connection, each, 0.0) for each in ids]


def test_ids_belong_to_a_connection() -> None:
    """An id is not repeated on another connection, without a connection, or after ten minutes."""
    answers = transports._AnswerIds()
    one, other = object.__new__(FakeTransport), object.__new__(FakeTransport)
    first, second = "1" * 18, "2" * 18
    for request_id in (first, second):
        assert not answers.is_repeated(one, request_id, 0.0)

    assert not answers.is_repeated(other, first, 1.0)
    assert not answers.is_repeated(None, first, 1.0)
    assert not answers.is_repeated(one, first, 601.0)
    assert answers.is_repeated(one, first, 602.0)


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_surplus_bytes_close_a_pictures_connection() -> None:
    """A connection of an upload or a download is not used again if bytes follow the answer."""
    async with serving(OK + OK, OK + OK, OK) as server:
        transport = make_transport(None, server.base)
        await transport.upload(grant(f"{server.base}/a"), picture)
        await downloaded(transport, f"{server.base}/a")
        await downloaded(transport, f"{server.base}/a")
        await transport.aclose()

    assert 3 == server.connections


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ("does not announce", b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"),
        ("does not announce", b"HTTP/1.0 200 OK\r\n\r\nabc"),
        ("RemoteProtocolError", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"),
        (
            "RemoteProtocolError",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ),
    ],
)
async def test_a_picture_that_may_be_cut_short_is_refused(expected: str, answer: bytes) -> None:
    """A body whose end was not announced, or not reached, is not used."""
    async with serving(answer) as server:
        transport = make_transport(None, server.base)
        with pytest.raises(ServiceUnavailable, match=expected) as caught:
            await downloaded(transport, f"{server.base}/a")
        await transport.aclose()

    assert_clean(caught.value)


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_a_picture_in_chunks_is_accepted() -> None:
    """Chunks announce their end."""
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with serving(chunked) as server:
        transport = make_transport(None, server.base)
        assert b"abc" == await downloaded(transport, f"{server.base}/a")
        await transport.aclose()


@pytest.mark.parametrize(("few", "length"), [("fewer", "4"), ("more", "2")])
async def test_a_wrong_announced_length_is_refused(few: str, length: str) -> None:
    """The number of bytes must equal `Content-Length`, also on other transports."""
    net = answering(200, headers={"content-length": length}, stream=Body(b"ab", b"c"))

    with pytest.raises(ServiceUnavailable, match=few) as caught:
        await downloaded(make_transport(net))

    assert_clean(caught.value)


@pytest.mark.real_time
@pytest.mark.usefixtures("no_proxy")
async def test_the_storage_may_refuse_early() -> None:
    """A refusal that comes while the picture is being sent is read."""
    refusal = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\nconnection: close\r\n\r\n<Err>"

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        await writer.drain()
        while await reader.read(65536):
            pass

    async def large() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(65536)

    async with listening(hasty) as port:
        base = f"http://127.0.0.1:{port}"
        transport = make_transport(None, base)
        with pytest.raises(RequestRefused) as caught:
            await transport.upload(grant(f"{base}/a", Content_Length=str(64 * 65536)), large)
        await transport.aclose()

    assert 403 == caught.value.status


@pytest.mark.real_time
async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a given transport, HTTP_PROXY and NO_PROXY are respected."""
    async with serving(OK) as proxy, serving(OK) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.base)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        transport = make_transport(None, "http://api.example")
        assert Response(200, b"{}", "17") == await transport.call(CALL, within=60)
        await transport.aclose()
        transport = make_transport(None, server.base)
        assert Response(200, b"{}", "17") == await transport.call(CALL, within=60)
        await transport.aclose()

    assert proxy.requests[0].startswith(b"GET http://api.example/s2s/v2.0/task/ai-smile/a%2Fb HTTP")
    assert (1, 1) == (len(proxy.requests), len(server.requests))


# Silenced loggers.

LOGGERS = ["httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "hpack.hpack"]


@pytest.fixture
def at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    silence_loggers()


@pytest.mark.usefixtures("at_debug")
@pytest.mark.parametrize("name", LOGGERS)
def test_our_requests_are_not_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Records of httpx and its parts are dropped during our requests."""
    with quiet():
        logging.getLogger(name).error("secret")

    assert [] == caplog.messages


@pytest.mark.usefixtures("at_debug")
@pytest.mark.parametrize("name", LOGGERS)
def test_other_requests_are_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Records before and after our requests are kept."""
    logging.getLogger(name).debug("before")
    with quiet():
        pass
    logging.getLogger(name).debug("after")

    assert ["before", "after"] == caplog.messages


@pytest.mark.usefixtures("at_debug")
def test_other_loggers_are_not_silenced(caplog: pytest.LogCaptureFixture) -> None:
    """Only the loggers of httpx and its parts are silenced."""
    with quiet():
        logging.getLogger("app").debug("line")

    assert ["line"] == caplog.messages


@pytest.mark.usefixtures("at_debug")
def test_an_error_ends_the_silence(caplog: pytest.LogCaptureFixture) -> None:
    """After an error in the block the loggers log again."""
    with pytest.raises(ZeroDivisionError), quiet(), quiet():
        _ = 1 / 0
    logging.getLogger("httpx").info("line")

    assert ["line"] == caplog.messages


@pytest.mark.usefixtures("at_debug")
def test_every_logger_of_httpcore_is_filtered() -> None:
    """This test fails once another part of httpcore logs."""
    import httpcore  # noqa: F401 -- it makes its loggers

    made = {name for name in logging.root.manager.loggerDict if name.startswith("httpcore.")}
    filtered = {name for name in made if logging.getLogger(name).filters}

    assert set() == made - filtered


@pytest.mark.usefixtures("at_debug")
def test_the_filter_is_added_once() -> None:
    """A second call of `silence_loggers` adds no filter."""
    before = len(logging.getLogger("httpx").filters)
    silence_loggers()

    assert before == len(logging.getLogger("httpx").filters)


# The times of an exchange.


async def test_the_last_exchange_is_timed_and_dated() -> None:
    """`last` has the round trip and the vendor's clock; without a connection no connect time."""
    sandbox = Sandbox(latency=0.4, epoch=1_700_000_000.0, clock_skew=90.0)
    transport = VendorTransport(
        "https://api.example", "key", timeouts=Timeouts(), transport=sandbox.transport()
    )
    before = transport.last

    await transport.call(Request("GET", "/s2s/v1.0/client/credit"), within=5.0)
    last = transport.last
    await transport.aclose()

    assert before is None
    assert last is not None
    assert 0.4 == pytest.approx(last.round_trip)
    assert (None, 1_700_000_090.0) == (last.connect, last.date)


@pytest.mark.parametrize("date", ["yesterday", "", "Sun, 99 Nov 2026 10:00:00 GMT"])
async def test_a_wrong_date_is_ignored(date: str) -> None:
    """A wrong `Date` header leaves the vendor's clock unknown."""

    async def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={}, headers={"date": date})

    mock = httpx.MockTransport(answer)
    transport = VendorTransport("https://api.example", "k", timeouts=Timeouts(), transport=mock)
    await transport.call(Request("GET", "/"), within=5.0)
    await transport.aclose()

    assert transport.last is not None
    assert transport.last.date is None


@pytest.mark.real_time
async def test_connecting_is_timed_separately() -> None:
    """The time of the first connection is known, and kept for later calls."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            while await reader.readline() not in {b"\r\n", b""}:
                pass
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = VendorTransport(f"http://127.0.0.1:{port}", "key", timeouts=Timeouts())
    exchanges = []
    for _ in range(2):
        await transport.call(Request("GET", "/"), within=5.0)
        exchanges.append(transport.last)
    await transport.aclose()
    await gone.wait()
    server.close()
    await server.wait_closed()

    first, second = exchanges
    assert first is not None
    assert second is not None
    assert first.connect is not None
    assert first.connect > 0.0
    assert first.connect == second.connect
    assert first.answered <= second.sent
