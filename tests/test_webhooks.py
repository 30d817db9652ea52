"""Webhooks: only genuine and fresh notifications are accepted, and the endpoint answers."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import math
import re
from collections import UserDict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import assume, example, given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from perfect_async import Client, ConfigurationError, WebhookRejected
from perfect_async.webhooks import (
    Notification,
    Secrets,
    WebhookApp,
    read_notification,
    verify,
)

KEY = bytes(range(200, 224))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OTHER = "whsec_" + base64.b64encode(b"another secret of 24 byte").decode()
NOW = 1761112850
BODY = b'{"created_at":1761112848,"data":{"task_id":"abc","task_status":"success"}}'
SAID = Notification("msg_1", datetime(2025, 10, 22, 6, 0, 48, tzinfo=UTC), "abc", "success")

ids = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=256)
keys = st.binary(min_size=1, max_size=64)


def signature(key: bytes, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return a signature of the scheme, computed by hand."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def signed(
    body: bytes = BODY, *, key: bytes = KEY, webhook_id: str = "msg_1", timestamp: object = NOW
) -> dict[str, str]:
    """Return the three headers of a genuine notification."""
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(key, webhook_id, str(timestamp), body),
    }


def rejected(
    body: object = BODY,
    headers: object = None,
    secrets: object = SECRET,
    now: object = NOW,
) -> str:
    """Return the reason of a rejection."""
    given = signed() if headers is None else headers
    with pytest.raises(WebhookRejected) as caught:
        verify(body, given, secrets, now)  # type: ignore[arg-type]
    assert None is caught.value.__cause__
    assert caught.value.reason.isascii()
    assert caught.value.reason.isprintable()
    return caught.value.reason


# Accepted notifications.


def test_a_genuine_notification_is_accepted() -> None:
    """A notification that is signed with the secret and fresh is read from its body."""
    assert SAID == verify(BODY, signed(), SECRET, NOW)
    assert SAID == verify(BODY, signed(), Secrets(SECRET), float(NOW))


def test_the_example_of_the_scheme_is_accepted() -> None:
    """The signature of the scheme's own test libraries is accepted and reproduced."""
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    found = verify(body, headers, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1614265330)

    assert "msg_p5jXN8AQM9LWM0D4loKWxJek" == found.id
    assert "data is missing" == found.flaw


SHAPES: dict[str, Callable[[dict[str, str]], object]] = {
    "upper case": lambda h: {name.upper(): value for name, value in h.items()},
    "bytes": lambda h: {name.title().encode(): value.encode() for name, value in h.items()},
    "pairs": lambda h: list(h.items()),
    "pairs of bytes": lambda h: [(name.encode(), value.encode()) for name, value in h.items()],
    "an iterator": lambda h: iter(h.items()),
    "lists": lambda h: [[name, value] for name, value in h.items()],
    "a mapping": UserDict,
    "httpx": httpx.Headers,
    "httpx, raw": lambda h: httpx.Headers(h).raw,
    "among others": lambda h: [
        *h.items(),
        ("x", "ü"),
        ("webhoo\N{KELVIN SIGN}-id", "no"),
        (b"\xff", b"\xff"),
    ],
    "among nonsense": lambda h: [*h.items(), ("x", 1), (None, None), ("x", "again")],
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_headers_of_any_framework_are_read(shape: Callable[[dict[str, str]], object]) -> None:
    """Headers may be a mapping or pairs, of text or bytes, in any case, among others."""
    assert SAID == verify(BODY, shape(signed()), SECRET, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        SECRET.removeprefix("whsec_"),
        f" {SECRET}\n",
        [OTHER, SECRET],
        (SECRET, OTHER),
        iter([SECRET]),
    ],
)
def test_secrets_may_be_written_in_several_ways(written: str | list[str]) -> None:
    """A secret may have a prefix, white space, and other secrets beside it."""
    assert SAID == verify(BODY, signed(), written, NOW)


@given(keys, st.booleans(), st.booleans(), ids, st.binary())
def test_any_signed_body_is_accepted(
    key: bytes, prefixed: bool, padded: bool, webhook_id: str, body: bytes
) -> None:
    """Any body passes with its signature by any secret, padded or not."""
    secret = base64.b64encode(key).decode()
    secret = secret if padded else secret.rstrip("=")

    found = verify(
        body,
        signed(body, key=key, webhook_id=webhook_id),
        "whsec_" + secret if prefixed else secret,
        NOW,
    )

    assert webhook_id == found.id


@given(keys, ids, st.text(), st.integers(-300, 300))
def test_signatures_of_standardwebhooks_are_accepted(
    key: bytes, webhook_id: str, body: str, off: int
) -> None:
    """A signature of `standardwebhooks` is accepted."""
    at = datetime.fromtimestamp(NOW + off, UTC)
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(NOW + off),
        "webhook-signature": Webhook(key).sign(webhook_id, at, body),
    }

    found = verify(body.encode(), headers, base64.b64encode(key).decode(), NOW)

    assert webhook_id == found.id


@given(st.integers(-400, 400), st.booleans(), st.booleans())
def test_standardwebhooks_agrees(off: int, right: bool, known: bool) -> None:
    """Both agree on fresh, stale, genuine and forged notifications at its wall clock."""
    assume(abs(abs(off) - 300) > 30)
    now = datetime.now(UTC).timestamp()
    headers = signed(BODY if right else b"{}", key=KEY if known else b"?", timestamp=int(now) + off)

    def theirs() -> bool:
        try:
            Webhook(SECRET).verify(BODY, headers)
        except WebhookVerificationError:
            return False
        return True

    def ours() -> bool:
        try:
            verify(BODY, headers, SECRET, now)
        except WebhookRejected:
            return False
        return True

    assert theirs() == ours()


@pytest.mark.parametrize(
    "around",
    [
        "{good} {bad}",
        "{bad} {good}",
        "v1a,xyz {good}",
        "{good} v2,xyz",
        "{good} v1,AAAA",
    ],
)
def test_one_signature_of_several_is_enough(around: str) -> None:
    """While a secret is replaced, a notification has two signatures, maybe of other versions."""
    headers = signed()
    bad = signature(b"other", "msg_1", str(NOW), BODY)
    headers["webhook-signature"] = around.format(good=headers["webhook-signature"], bad=bad)

    assert SAID == verify(BODY, headers, SECRET, NOW)


@pytest.mark.parametrize("off", [-300, -299.5, 0, 299.5, 300])
def test_five_minutes_either_way_are_fresh(off: float) -> None:
    """A notification exactly at the tolerance is accepted, independent of the wall clock."""
    assert SAID == verify(BODY, signed(), SECRET, NOW + off)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[]", b'{"data":{"task_id":7}}'])
def test_a_genuine_body_that_is_not_understood_has_a_flaw(body: bytes) -> None:
    """A genuine notification is not rejected for an unknown body."""
    found = verify(body, signed(body), SECRET, NOW)

    assert None is found.task_id
    assert found.flaw


# Rejected notifications.


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_rejected(name: str) -> None:
    """Each of the three headers must be there and not empty."""
    headers = signed()

    assert f"{name} is malformed." == rejected(headers={**headers, name: ""})
    del headers[name]
    assert f"{name} is missing." == rejected(headers=headers)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_repeated_header_is_rejected(name: str) -> None:
    """Two headers with one name are rejected, even if they are equal."""
    headers = signed()
    reason = f"{name} is in the headers more than once."

    assert reason == rejected(headers=[*headers.items(), (name.upper(), headers[name])])
    assert reason == rejected(headers=[*headers.items(), (name.encode(), b"")])
    assert reason == rejected(headers={**headers, name.title(): headers[name]})


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_joined_header_is_rejected(name: str) -> None:
    """A framework may have joined two headers with one name."""
    headers = httpx.Headers([*signed().items(), (name, signed()[name])])

    assert f"{name} is malformed." == rejected(headers=headers)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize(
    "value",
    ["ü", b"\xff", "\ud800", "a\nb", "a\0", "a" * 5000, " ", None, 7, [], ["x"], True],
)
def test_a_malformed_header_is_rejected(name: str, value: object) -> None:
    """A header that is not ASCII, has control characters, is too long or no text is rejected."""
    assert rejected(headers={**signed(), name: value})


@pytest.mark.parametrize(
    "timestamp",
    [
        *("-1", "+1761112850", "01761112850", " 1761112850", "1761112850 ", "1761112850\n"),
        *("1_761_112_850", "1761112850.0", "1.76111285e9", "1e3", "0x68f86f52", "nan", "inf"),
        *("١٧٦١١١٢٨٥٠", "1²", "9" * 12, "9" * 5000, "", "now", "None"),
        *("0", "1761112850000", "99999999999"),
    ],
)
def test_an_absurd_timestamp_is_rejected(timestamp: str) -> None:
    """A signed time that is no plain number of seconds, or far away, is rejected."""
    assert "webhook-timestamp" in rejected(headers=signed(timestamp=timestamp))


@pytest.mark.parametrize("off", [-301, -300.001, 300.001, 301, 1e12, -1e300, 10**400])
def test_a_stale_or_future_notification_is_rejected(off: float) -> None:
    """A time just beyond the tolerance, or as far as clocks go, is rejected."""
    message = rejected(now=NOW + off)
    assert "at most 300 s in either direction" in message
    assert ("s ahead of this machine's clock" if off < 0 else "s behind this") in message
    assert "-" not in message.removeprefix("webhook-timestamp")


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, None, "1761112850", True, [NOW]])
def test_a_clock_without_a_number_is_rejected(now: object) -> None:
    """Without a number for `now` nothing is fresh."""
    assert rejected(now=now)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "v1",
        "v1,",
        ",",
        "{sig}",
        "v1{sig}",
        "v1 {sig}",
        "v1,,{sig}",
        "v1, {sig}",
        "v0,{sig}",
        "V1,{sig}",
        "v1a,{sig}",
        "v2,{sig}",
        "v1,{sig}=",
        "v1,{bare}",
        "v1,{bare}*=",
        "v1,{sig},v1",
        "v1,{sig};",
        "v1,{sig}\tv1,{sig}",
        "v1,!!!!",
        "v1,AAAA",
        "v1," + "A" * 4000,
        "v1," * 1000,
        "v1,{sig} ",
        " v1,{sig}",
        "v1,{sig}  v1,{sig}",
        "v1,{sig} garbage",
        "garbage v1,{sig}",
        "v1,{sig}," + "A" * 10,
        "v1,{sig}, v1,{sig}",
        "v1,{sig}" + " v1,{sig}" * 200,
    ],
)
def test_a_malformed_signature_is_rejected(written: str) -> None:
    """A signature without comma or base64, or in another version or spelling, is rejected."""
    headers = signed()
    good = headers["webhook-signature"].removeprefix("v1,")
    headers["webhook-signature"] = written.format(sig=good, bare=good.rstrip("="))

    assert "webhook-signature" in rejected(headers=headers)


def test_a_wrong_secret_is_rejected() -> None:
    """A signature by another secret, or by a removed one, is rejected."""
    assert "by one of the secrets" in rejected(secrets=OTHER)
    assert "by one of the secrets" in rejected(headers=signed(key=b"x"), secrets=[OTHER, SECRET])


@pytest.mark.parametrize(
    "body", [BODY.decode(), bytearray(BODY), None, 7, json.loads(BODY), [BODY]]
)
def test_a_body_that_is_not_bytes_is_rejected(body: object) -> None:
    """Only bytes were signed; the body as a framework parsed it may be different."""
    assert "The body is not bytes; pass the unchanged body of the request." == rejected(body=body)


@pytest.mark.parametrize("headers", [7, "abc", b"xyz", [1], [("a",)], [("a", "b", "c")], object()])
def test_an_object_without_headers_is_rejected(headers: object) -> None:
    """An object that is neither a mapping nor pairs has no headers."""
    assert "The headers are neither a mapping nor pairs." == rejected(headers=headers)


@given(st.data())
def test_any_change_is_rejected(data: st.DataObject) -> None:
    """One changed byte of the body, id, timestamp or signature is rejected."""
    parts = {name: value.encode() for name, value in signed().items()}
    parts["body"] = BODY
    name = data.draw(st.sampled_from(sorted(parts)))
    place = data.draw(st.integers(0, len(parts[name]) - 1))
    byte = data.draw(st.integers(0, 255))
    assume(byte != parts[name][place])
    parts[name] = parts[name][:place] + bytes([byte]) + parts[name][place + 1 :]

    rejected(parts.pop("body"), parts)


@given(
    st.binary() | st.just(BODY),
    st.lists(
        st.tuples(
            st.sampled_from(["webhook-id", "Webhook-Timestamp", b"webhook-signature", "x"])
            | st.text()
            | st.binary(),
            st.sampled_from(list(signed().values())) | st.text() | st.binary() | st.none(),
        )
    )
    | st.dictionaries(st.text() | st.binary(), st.text() | st.binary())
    | st.dictionaries(st.sampled_from(list(signed())), st.text() | st.sampled_from(["v1,a v1"]))
    | st.text()
    | st.binary()
    | st.none(),
    st.floats() | st.integers() | st.just(NOW),
)
@example(BODY, signed(), NOW)
def test_nothing_else_is_raised(body: bytes, headers: object, now: float) -> None:
    """Any input is rejected or accepted, and raises nothing else."""
    try:
        found = verify(body, headers, SECRET, now)  # type: ignore[arg-type]
    except WebhookRejected:
        return
    assert SAID == found


def test_reasons_quote_nothing() -> None:
    """A reason, which is logged, contains neither the input nor the secret."""
    marked = "marked\x1b[31m"
    reasons = [
        rejected(headers={**signed(), "webhook-id": marked}),
        rejected(headers={**signed(), "webhook-timestamp": marked}),
        rejected(headers={**signed(), "webhook-signature": marked}),
        rejected(headers={**signed(), "webhook-signature": "v1,marked"}),
        rejected(body=b"marked"),
        rejected(headers=[("webhook-id", "marked")] * 2),
    ]

    assert [] == [reason for reason in reasons if "marked" in reason or SECRET[8:16] in reason]


# The secrets.


@pytest.mark.parametrize(
    "secrets",
    [
        "",
        "whsec_",
        "whsec_====",
        [],
        (),
        [""],
        [SECRET, ""],
        "abcde",
        "s3cret!",
        "s3-cret_",
        "whsec_s3cr et",
        "s3crét",
        "whsec_whsec_s3cret",
        [b"s3cret"],
        [None],
        [7],
    ],
)
def test_a_malformed_secret_is_refused(secrets: list[str]) -> None:
    """A malformed secret is refused at once; neither the error nor its traceback shows it."""
    with pytest.raises(ConfigurationError) as caught:
        Secrets(secrets)

    trace = caught.value.__traceback__
    assert trace is not None
    assert trace.tb_next is not None
    assert {"self", "in_quotes"} >= set(trace.tb_next.tb_frame.f_locals)

    assert "whsec_ followed by base64" in str(caught.value)
    assert "s3" not in str(caught.value)
    assert None is caught.value.__cause__
    with pytest.raises(ConfigurationError) as caught:
        verify(BODY, signed(), secrets, NOW)
    assert "s3" not in locals_of(caught.value)


def locals_of(error: BaseException) -> str:
    """Return all local values of the package's frames in a traceback, as a debugger prints them."""
    found: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        if "perfect_async" in trace.tb_frame.f_globals["__name__"].split("."):
            found.append(repr(trace.tb_frame.f_locals))
        trace = trace.tb_next
    return " ".join(found)


class Broken:
    """An iterable that raises after it has yielded a secret."""

    def __iter__(self) -> Iterator[str]:
        yield SECRET
        raise OSError(SECRET)


@pytest.mark.parametrize("secrets", [None, 7, Broken()], ids=["None", "7", "one that raises"])
def test_another_object_than_secrets_is_refused(secrets: object) -> None:
    """Another object raises `ConfigurationError`, also if reading it raises."""
    with pytest.raises(ConfigurationError) as caught:
        verify(BODY, signed(), secrets, NOW)  # type: ignore[arg-type]

    assert None is caught.value.__cause__
    assert None is caught.value.__context__


@pytest.mark.parametrize(
    ("body", "headers", "now"),
    [
        (BODY, signed(key=b"x"), NOW),
        (BODY + b" ", signed(), NOW),
        (BODY, signed(), NOW + 1000),
        (BODY, {}, NOW),
        (b"", signed(), NOW),
    ],
    ids=["forged", "changed", "stale", "no headers", "no body"],
)
def test_a_rejection_holds_no_secret(body: bytes, headers: dict[str, str], now: int) -> None:
    """A traceback with local values shows neither the secret nor the right signature."""
    with pytest.raises(WebhookRejected) as caught:
        verify(body, headers, SECRET, now)

    shown = locals_of(caught.value)
    expected = signature(KEY, "msg_1", str(NOW), BODY + b" ")
    assert SECRET not in shown
    assert SECRET.removeprefix("whsec_") not in shown
    assert repr(KEY) not in shown
    assert expected.removeprefix("v1,") not in shown


@pytest.mark.parametrize(
    ("secret", "base_url"), [("s3cret!", None), (["s3cret!"], None), (SECRET, "ftp://a.example")]
)
def test_refused_settings_of_a_client_hold_no_secret(
    secret: str | list[str], base_url: str | None
) -> None:
    """A traceback of a client's settings shows the secret in no frame."""
    with pytest.raises(ConfigurationError) as caught:
        Client("key", base_url=base_url, webhook_secret=secret)

    assert "s3cret" not in locals_of(caught.value)
    assert SECRET not in locals_of(caught.value)


def test_half_made_secrets_can_be_printed() -> None:
    """Secrets whose constructor failed, or has not begun, have a repr."""
    assert "<Secrets: 0>" == repr(object.__new__(Secrets))


def test_the_repr_shows_no_secrets() -> None:
    """The repr shows the number of secrets."""
    assert "<Secrets: 2>" == repr(Secrets([SECRET, OTHER])) == str(Secrets([SECRET, OTHER]))


# The endpoint.


class FakeReceiver:
    """A receiver that verifies like a client, and fails on request."""

    def __init__(self) -> None:
        self.taken: list[Notification] = []
        self.fails: Exception | None = None

    async def deliver(self, body: bytes, headers: list[tuple[str, str]]) -> None:
        if self.fails is not None:
            raise self.fails
        self.taken.append(verify(body, headers, SECRET, NOW))


def calls(app: WebhookApp | Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop.example")


async def test_a_notification_is_answered_with_204() -> None:
    """A genuine POST is answered with an empty 204, and so is a repeated one."""
    receiver = FakeReceiver()
    async with calls(WebhookApp(receiver)) as http:
        answers = [await http.post("/any/path", content=BODY, headers=signed()) for _ in range(2)]

    assert [(204, b""), (204, b"")] == [(each.status_code, each.content) for each in answers]
    assert "content-length" not in answers[0].headers
    assert [SAID, SAID] == receiver.taken
    assert "<WebhookApp for FakeReceiver>" == repr(WebhookApp(receiver))


async def test_a_forgery_is_answered_without_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    """A rejected POST is answered with an empty 400; the reason is logged at INFO."""
    caplog.set_level(logging.INFO, "perfect_async")
    async with calls(WebhookApp(FakeReceiver())) as http:
        answer = await http.post("/", content=BODY, headers=signed(key=b"x"))

    assert (400, b"", "0") == (
        answer.status_code,
        answer.content,
        answer.headers["content-length"],
    )
    (record,) = [each for each in caplog.records if each.name == "perfect_async"]
    assert logging.INFO == record.levelno
    assert "by one of the secrets" in record.getMessage()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods_are_answered_with_405(method: str) -> None:
    """The answer to another method names POST."""
    async with calls(WebhookApp(FakeReceiver())) as http:
        answer = await http.request(method, "/")

    assert (405, "POST", b"") == (answer.status_code, answer.headers["allow"], answer.content)


async def test_a_route_of_starlette_serves_one_path() -> None:
    """A route of Starlette answers only at its path, for all methods."""
    receiver = FakeReceiver()
    app = Starlette(routes=[Route("/webhooks/youcam", WebhookApp(receiver))])
    async with calls(app) as http:
        good = await http.post("/webhooks/youcam", content=BODY, headers=signed())
        bad = await http.post("/webhooks/youcam", content=BODY)
        wrong = await http.get("/webhooks/youcam")
        elsewhere = await http.post("/webhooks", content=BODY, headers=signed())

    assert [204, 400, 405, 404] == [each.status_code for each in (good, bad, wrong, elsewhere)]
    assert [SAID] == receiver.taken


def starlette() -> Starlette:
    return Starlette()


def fastapi() -> Starlette:
    return FastAPI()


@pytest.mark.parametrize("make", [starlette, fastapi])
@pytest.mark.parametrize("path", ["/hook", "/hook/"])
async def test_both_spellings_of_a_path_are_served(
    make: Callable[[], Starlette], path: str
) -> None:
    """`add_to` serves the path with and without a slash at its end, without a redirect."""
    receiver, app = FakeReceiver(), make()
    WebhookApp(receiver).add_to(app, path)
    async with calls(app) as http:
        one = await http.post("/hook", content=BODY, headers=signed())
        other = await http.post("/hook/", content=BODY, headers=signed())

    assert [204, 204] == [one.status_code, other.status_code]
    assert [SAID, SAID] == receiver.taken


async def test_the_root_may_be_the_path() -> None:
    """The root has one spelling, and a path without a slash in front is refused."""
    receiver, app = FakeReceiver(), Starlette()
    WebhookApp(receiver).add_to(app, "/")
    async with calls(app) as http:
        assert 204 == (await http.post("/", content=BODY, headers=signed())).status_code
    with pytest.raises(ConfigurationError, match="slash"):
        WebhookApp(receiver).add_to(app, "hook")


@pytest.mark.parametrize(
    ("mounted", "path", "warned"),
    [
        (lambda app: Mount("/hook", app), "/hook/", 1),
        (lambda app: Mount("/api", routes=[Route("/hook", app)]), "/api/hook", 0),
    ],
    ids=["the app", "a router with it"],
)
async def test_a_mount_is_warned_of(
    mounted: Callable[[WebhookApp], Mount],
    path: str,
    warned: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mount redirects the path without a slash, so the first request logs a warning."""
    app = Starlette(routes=[mounted(WebhookApp(FakeReceiver()))])
    async with calls(app) as http:
        for _ in range(2):
            assert 204 == (await http.post(path, content=BODY, headers=signed())).status_code

    assert warned == caplog.text.count("add_to(app, path)")


async def test_a_failing_receiver_is_answered_with_503(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is logged once, by its type, until a notification is received again."""
    caplog.set_level(logging.WARNING, "perfect_async")
    receiver = FakeReceiver()
    statuses: list[int] = []
    async with calls(WebhookApp(receiver)) as http:
        for fails in (OSError("https://signed?url"), ValueError(), None, OSError()):
            receiver.fails = fails
            answer = await http.post("/", content=BODY, headers=signed())
            statuses.append(answer.status_code)
            assert b"" == answer.content

    assert [503, 503, 204, 503] == statuses
    assert [
        (
            logging.ERROR,
            "Notifications cannot be received ('OSError'); the vendor will send them again.",
        ),
        (
            logging.ERROR,
            "Notifications cannot be received ('OSError'); the vendor will send them again.",
        ),
    ] == [(each.levelno, each.getMessage()) for each in caplog.records]
    assert [None, None] == [each.exc_info for each in caplog.records]


# Direct ASGI calls.

Message = MutableMapping[str, Any]


async def exchange(
    app: Callable[..., Awaitable[None]], messages: list[Message], **scope: object
) -> tuple[list[Message], int]:
    """Call the app with these messages; return the sent messages and the number of unread ones."""
    waiting = list(messages)
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "headers": [], **scope}, receive, send)
    return sent, len(waiting)


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_parts_is_joined() -> None:
    """Parts are joined, also without the optional keys of ASGI."""
    receiver = FakeReceiver()
    parts: list[Message] = [part(BODY[:9]), part(b""), {"type": "http.request", "body": BODY[9:]}]

    sent, _ = await exchange(WebhookApp(receiver), parts, headers=raw(signed()))

    assert [
        {"type": "http.response.start", "status": 204, "headers": []},
        {"type": "http.response.body", "body": b""},
    ] == sent
    assert [SAID] == receiver.taken


async def test_a_body_over_64_kb_is_refused() -> None:
    """64 KB are read; at the next byte reading stops."""
    receiver = FakeReceiver()
    most = b"{}" + b" " * (64 * 1024 - 2)
    headers = raw({**signed(most), "content-length": "5"})

    full, _ = await exchange(WebhookApp(receiver), [part(most, more=False)], headers=headers)
    over, unread = await exchange(
        WebhookApp(receiver), [part(most), part(b" "), part(b" ", more=False)], headers=headers
    )

    assert 204 == full[0]["status"]
    assert (413, 1) == (over[0]["status"], unread)
    assert 1 == len(receiver.taken)


@pytest.mark.parametrize(
    ("promised", "status"),
    [
        (b"65536", 204),
        (b"65537", 413),
        (b"9" * 5000, 413),
        (b"0065537", 413),
        (b"0000000007", 204),
        (b"-1", 204),
        (b"1e9", 204),
        (b"\xb2", 204),
        (b"", 204),
    ],
)
async def test_a_large_content_length_is_refused(promised: bytes, status: int) -> None:
    """A body that is announced as too large is not read; an invalid length is ignored."""
    headers = [*raw(signed()), (b"Content-Length", promised)]

    sent, unread = await exchange(
        WebhookApp(FakeReceiver()), [part(BODY, more=False)], headers=headers
    )

    assert (status, status == 413) == (sent[0]["status"], unread == 1)


@pytest.mark.parametrize(("pause", "status"), [(4.9, 204), (5.1, 408)])
async def test_a_slow_body_is_answered_with_408(pause: float, status: int) -> None:
    """A body is read for at most 10 s, and then nothing is delivered."""
    receiver = FakeReceiver()
    parts = [part(BODY[:9]), part(BODY[9:], more=False)]
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(pause)
        return parts.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Message = {"type": "http", "method": "POST", "headers": raw(signed())}
    await WebhookApp(receiver)(scope, receive, send)

    assert status == sent[0]["status"]
    assert (status == 204) == bool(receiver.taken)


async def test_a_disconnected_sender_is_not_answered() -> None:
    """If the sender disconnects in the middle of its body, nothing is delivered."""
    receiver = FakeReceiver()

    sent, _ = await exchange(
        WebhookApp(receiver), [part(BODY), {"type": "http.disconnect"}], headers=raw(signed())
    )

    assert ([], []) == (sent, receiver.taken)


async def test_a_cancelled_delivery_stays_cancelled() -> None:
    """A server that cancels a request gets no status."""

    class Slow:
        async def deliver(self, body: bytes, headers: object) -> None:
            await asyncio.sleep(3600)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await exchange(WebhookApp(Slow()), [part(BODY, more=False)])


async def test_lifespan_messages_are_answered() -> None:
    """Startup and shutdown are answered, since a server may run this application alone."""
    sent, _ = await exchange(
        WebhookApp(FakeReceiver()),
        [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}],
        type="lifespan",
    )

    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == [m["type"] for m in sent]


async def test_a_websocket_is_closed() -> None:
    """A websocket is closed before it is accepted, which a server answers with 403."""
    sent, _ = await exchange(
        WebhookApp(FakeReceiver()), [{"type": "websocket.connect"}], type="websocket"
    )

    assert [{"type": "websocket.close"}] == sent


async def test_other_protocols_raise() -> None:
    """An unknown protocol raises with its name, as ASGI requires."""
    with pytest.raises(RuntimeError, match="serves only HTTP, not telepathy"):
        await exchange(WebhookApp(FakeReceiver()), [], type="telepathy")


# Bodies of genuine notifications.

GOOD = {"created_at": 1761112848, "data": {"task_id": "abc-_9", "task_status": "success"}}
AT = datetime(2025, 10, 22, 6, 0, 48, tzinfo=UTC)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "task_id", "task_status", "created_at", "x"]), inner
        )
    ),
)


def read_body(content: bytes) -> Notification:
    return read_notification("msg_1", content)


def altered_body(**changes: object) -> bytes:
    """Return the body of the contract page with `changes` to its data."""
    return json.dumps({**GOOD, "data": {**GOOD["data"], **changes}}).encode()  # type: ignore[dict-item]


@pytest.mark.parametrize("status", ["success", "error"])
def test_a_notification_is_read(status: Literal["success", "error"]) -> None:
    """The contract's body gives the task, the status and the time, and has no flaw."""
    expected = Notification("msg_1", AT, "abc-_9", status)

    assert expected == read_body(altered_body(task_status=status))


@pytest.mark.parametrize(
    ("created_at", "expected"),
    [
        ("1761112848", AT),
        (1761112848.5, AT.replace(microsecond=500_000)),
        (None, None),
        ("yesterday", None),
        (True, None),
        (10**400, None),
        (1e300, None),
        (-1e300, None),
        ([], None),
    ],
)
def test_a_wrong_time_is_ignored(created_at: object, expected: datetime | None) -> None:
    """A wrong `created_at` does not affect the other fields."""
    found = read_body(json.dumps({**GOOD, "created_at": created_at}).encode())

    assert Notification("msg_1", expected, "abc-_9", "success") == found


def test_the_time_may_be_absent() -> None:
    """A body without `created_at` has the other fields."""
    assert Notification("msg_1", None, "abc-_9", "success") == read_body(
        json.dumps({"data": GOOD["data"]}).encode()
    )


def test_unknown_fields_are_ignored() -> None:
    """Unknown fields and a byte order mark are ignored."""
    more = {**GOOD, "type": "task", "data": {**GOOD["data"], "feature": 7}}  # type: ignore[dict-item]

    assert read_body(altered_body()) == read_body(b"\xef\xbb\xbf" + json.dumps(more).encode())


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        (b"", "the body is not JSON"),
        (b"ok", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"9" * 5000, "the body is not JSON"),
        (b"null", "the body is not an object"),
        (b"[]", "the body is not an object"),
        (b"{}", "data is missing"),
        (b'{"data":null}', "data is not an object"),
        (b'{"data":[]}', "data is not an object"),
        (b'{"data":{"task_status":"success"}}', "data.task_id is missing"),
        (b'{"data":{"task_id":"a"}}', "data.task_status is missing"),
        (altered_body(task_id=7), "data.task_id is no usable id"),
        (altered_body(task_id=None), "data.task_id is no usable id"),
        (altered_body(task_id=["a"]), "data.task_id is no usable id"),
        (altered_body(task_id=""), "data.task_id is no usable id"),
        (altered_body(task_id=" "), "data.task_id is no usable id"),
        (altered_body(task_id="a\nb"), "data.task_id is no usable id"),
        (altered_body(task_id="\ud800"), "data.task_id is no usable id"),
        (altered_body(task_id="a" * 1025), "data.task_id is no usable id"),
        (altered_body(task_status="running"), "data.task_status is neither success nor error"),
        (altered_body(task_status="SUCCESS"), "data.task_status is neither success nor error"),
        (altered_body(task_status=None), "data.task_status is neither success nor error"),
        (altered_body(task_status=["success"]), "data.task_status is neither success nor error"),
    ],
)
def test_a_flaw_is_named(content: bytes, flaw: str) -> None:
    """A body without a usable task gives a notification with a flaw and no task."""
    found = read_body(content)

    assert ("msg_1", None, None, flaw) == (found.id, found.task_id, found.status, found.flaw)


def test_the_longest_id_is_accepted() -> None:
    """An id may have 1024 characters."""
    assert "a" * 1024 == read_body(altered_body(task_id="a" * 1024)).task_id


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read(content: bytes) -> None:
    """Any bytes give a notification, whole or with a flaw that quotes nothing."""
    found = read_body(content)

    whole = found.task_id is not None and found.status is not None and found.flaw is None
    empty = found.task_id is None and found.status is None and found.flaw is not None
    assert whole or empty
    assert found.flaw is None or re.fullmatch(r"[A-Za-z_. ]+", found.flaw)


@pytest.mark.parametrize("secret", ['"whsec_MTIz"', "\u201cwhsec_MTIz\u201d", ["'whsec_MTIz'"]])
def test_quotes_around_a_secret_are_named(secret: str | list[str]) -> None:
    """A secret that was copied with its quotes is refused with that reason."""
    with pytest.raises(ConfigurationError, match="stands in quotes") as caught:
        Secrets(secret)
    assert "MTIz" not in str(caught.value)
