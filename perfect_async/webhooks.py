"""Receives the vendor's webhook: verifies and reads notifications, and serves the endpoint.

The vendor announces a finished task by a POST in the Standard Webhooks scheme (contract: Webhooks).
`verify` checks and reads a notification from its raw bytes. `WebhookApp` is an endpoint for any
ASGI framework:

    app = Starlette()
    WebhookApp(client.webhooks).add_to(app, "/webhooks/youcam")
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

import anyio
import attrs
from standardwebhooks.webhooks import hmac_data

from perfect_async._api.responses import (
    Malformed,
    as_moment,
    as_number,
    decode,
    is_task_id,
    structure,
)
from perfect_async._log import LOG, type_name
from perfect_async.errors import QUOTES, ConfigurationError, WebhookRejected, quoted

__all__ = ["Headers", "Notification", "Receiver", "Secrets", "WebhookApp", "verify"]

Headers: TypeAlias = (
    Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str, str] | tuple[bytes, bytes]]
)
"""The headers of a request in the form of any framework: a mapping or pairs, of text or bytes."""

TOLERANCE: Final = 300
"""Seconds that `webhook-timestamp` may be off in either direction (Standard Webhooks)."""

MOST_BYTES: Final = 64 * 1024
"""The largest body that `WebhookApp` reads; a notification has about 200 bytes."""

LONGEST_BODY: Final = 10.0
"""Seconds within which a body must arrive."""

_SHAPES: Final = {
    # Full stops also separate the signed parts, so an id with a full stop can be split in a second
    # way. Ids are the sender's choice, and the second split of a body that starts with `{` is not a
    # notification. Refusing full stops could cost genuine notifications.
    "webhook-id": re.compile(r"[\x21-\x7e]{1,256}"),
    # Only one spelling of a number, since its text is signed. Eleven digits last until 5138.
    "webhook-timestamp": re.compile(r"0|[1-9][0-9]{0,10}"),
    # `version,value`, separated by single spaces. A framework that joins repeated headers with a
    # comma and a space does not match.
    "webhook-signature": re.compile(r"(?=[\x20-\x7e]{1,4096}\Z)[^ ,]+,[^ ,]+(?: [^ ,]+,[^ ,]+)*"),
}


@attrs.frozen
class Notification:
    """A genuine notification: the vendor announces that the task `task_id` has ended.

    `id` is the `webhook-id`, the same on every retry. `created_at` is the vendor's time in UTC, or
    None if the body has none. For a genuine body that is not understood, `task_id` and `status` are
    None and `flaw` names the problem without quoting the body. Log it once and acknowledge it: if
    it is refused, the vendor retries it and at last disables the endpoint.

    Poll the task before you rely on it: a notification has no result, may arrive before the status
    changes, and may be about a task of another process.
    """

    id: str
    created_at: datetime | None = None
    task_id: str | None = None
    status: Literal["success", "error"] | None = None
    flaw: str | None = None


@attrs.frozen
class _Data:
    task_id: object
    task_status: object


@attrs.frozen
class _Body:
    data: _Data
    created_at: object = None


def read_notification(webhook_id: str, body: bytes) -> Notification:
    """Read a `body` that is known to be genuine. Nothing is raised for any bytes."""
    found = structure(decode(body), _Body)
    if isinstance(found, Malformed):
        return Notification(webhook_id, flaw=str(found).replace("the answer", "the body"))
    created_at = _as_time(found.created_at)
    task_id = found.data.task_id
    # As strict as for the answer to a creation: no task of this package has any other id.
    if not isinstance(task_id, str) or not is_task_id(task_id):
        return Notification(webhook_id, created_at, flaw="data.task_id is no usable id")
    match found.data.task_status:
        case "success":
            return Notification(webhook_id, created_at, task_id, "success")
        case "error":
            return Notification(webhook_id, created_at, task_id, "error")
        case _:
            flaw = "data.task_status is neither success nor error"
            return Notification(webhook_id, created_at, flaw=flaw)


def _as_time(seconds: object) -> datetime | None:
    try:
        return as_moment(as_number(seconds) * 1000)
    except Malformed:
        return None


class Secrets:
    """The webhook's secrets from the vendor's console; several while one is being replaced.

    Each is base64, with or without `whsec_` in front, padding at the end, and white space around
    it. Raises `ConfigurationError` for any other text and for no secrets at all. Neither an error
    nor the repr shows a secret.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: str | Iterable[str]) -> None:
        given = _each(secrets)
        keys, in_quotes = [_key(secret) for secret in given], any(map(_is_in_quotes, given))
        del secrets, given
        self._keys = tuple(key for key in keys if key)
        if not keys or None in keys:
            # A traceback with local variables must not show the keys.
            del keys
            self._keys = ()
            raise ConfigurationError(
                "The webhook's secret stands in quotes, which are no part of it."
                if in_quotes
                else "The webhook's secret is not what the vendor's console shows: whsec_ "
                "followed by base64. Copy it again."
            )

    def __repr__(self) -> str:
        # `_keys` is missing while the constructor runs, and after it failed.
        return f"<Secrets: {len(getattr(self, '_keys', ()))}>"

    def signatures(self, content: bytes) -> list[str]:
        """Return the signature of `content` by each secret: base64 of HMAC-SHA256, padded."""
        return [base64.b64encode(hmac_data(key, content)).decode() for key in self._keys]

    def have_signed(self, content: bytes, signature: str) -> bool:
        """Return whether a `v1` signature of a `webhook-signature` header is by a secret."""
        offered = [
            value
            for version, _, value in (each.partition(",") for each in signature.split(" "))
            if version == "v1"
        ]
        expected = self.signatures(content)
        # Compared as text, since base64 has several spellings of the same bytes. All pairs are
        # compared, so that the time does not show which secret nearly matched.
        fitting = [hmac.compare_digest(one, other) for one in offered for other in expected]
        return any(fitting)


def _each(secrets: object) -> list[object]:
    """Return the secrets as a list; an empty one for an object that is not iterable.

    Nothing is raised, since a traceback with local variables would show the secrets.
    """
    try:
        return [secrets] if isinstance(secrets, str) else list(cast("Iterable[object]", secrets))
    except Exception:  # noqa: BLE001 -- an iterable of the user may raise anything
        return []


def _is_in_quotes(secret: object) -> bool:
    text = secret.strip() if isinstance(secret, str) else ""
    return bool(text) and (text[0] in QUOTES or text[-1] in QUOTES)


def _key(secret: object) -> bytes | None:
    """Return the bytes of a secret, or None if it is not base64."""
    if not isinstance(secret, str):
        return None
    text = secret.strip().removeprefix("whsec_").rstrip("=")
    try:
        # standardwebhooks drops characters that are not base64, and signs with the rest.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def verify(
    body: bytes, headers: Headers, secrets: Secrets | str | Iterable[str], now: float
) -> Notification:
    """Verify a notification and return it if the vendor has signed it and it is fresh.

        notification = verify(await request.body(), request.headers, secret, time.time())

    `body` is the unchanged body of the request; `headers` are all of its headers, with names in any
    case. `now` is the wall clock in seconds since 1970; `webhook-timestamp` may differ from it by
    300 s. One pair of a signature and a secret must match.

    Raises `WebhookRejected` for any other bytes and types, and `ConfigurationError` for a malformed
    secret. A genuine body that is not understood is a `Notification` with a `flaw`. The vendor may
    send the same id again; deduplicate on it.

    Only the signature is computed by `standardwebhooks`. Its `verify` reads the wall clock, refuses
    a body that is not UTF-8, uses the last of repeated headers, and lets `ValueError` through.
    """
    try:
        keys = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
    finally:
        # A traceback with local variables must not show the secrets.
        del secrets
    content = _raw(body)
    found = _relevant_headers(headers)
    for name, shape in _SHAPES.items():
        if name not in found:
            raise WebhookRejected(f"{name} is missing.")
        if not shape.fullmatch(found[name]):
            raise WebhookRejected(f"{name} is malformed.")
    webhook_id, timestamp, signature = (found[name] for name in _SHAPES)
    if not keys.have_signed(f"{webhook_id}.{timestamp}.".encode() + content, signature):
        raise WebhookRejected("No v1 signature in webhook-signature is by one of the secrets.")
    # Checked after the signature, so that only a genuine notification is rejected for its time.
    off = _clock(now) - int(timestamp)
    if not abs(off) <= TOLERANCE:  # true for NaN as well
        side = "ahead of" if off < 0 else "behind"
        raise WebhookRejected(
            f"webhook-timestamp is {min(abs(off), 1e9):.0f} s {side} this machine's clock; "
            f"at most {TOLERANCE} s in either direction are accepted."
        )
    return read_notification(webhook_id, content)


def _raw(body: object) -> bytes:
    if not isinstance(body, bytes):
        raise WebhookRejected("The body is not bytes; pass the unchanged body of the request.")
    return body


def _clock(now: object) -> float:
    if isinstance(now, bool) or not isinstance(now, int | float):
        raise WebhookRejected("The clock did not return a number.")
    return now


def _relevant_headers(headers: object) -> dict[str, str]:
    """Return the headers of the scheme. Raises `WebhookRejected` for a repeated one."""
    found: dict[str, str] = {}
    if isinstance(headers, Mapping):
        headers = cast("Mapping[object, object]", headers).items()
    try:
        for name, value in cast("Iterable[tuple[object, object]]", headers):
            lower = _text(name).lower()
            if lower not in _SHAPES:
                continue
            if lower in found:
                raise WebhookRejected(f"{lower} is in the headers more than once.")
            found[lower] = _text(value)
    except (TypeError, ValueError):
        raise WebhookRejected("The headers are neither a mapping nor pairs.") from None
    return found


def _text(value: object) -> str:
    """Return ASCII text, and "" for any other value, which is neither a valid name nor value."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    # Checked before lowering, which turns the Kelvin sign into a `k`.
    return value if isinstance(value, str) and value.isascii() else ""


class Receiver(Protocol):
    """An object that receives notifications, such as `client.webhooks`."""

    def deliver(self, body: bytes, headers: list[tuple[str, str]], /) -> Awaitable[object]:
        """Receive one notification: the raw body and all headers, for `verify`.

        Return once the notification is stored or was known already. Raise `WebhookRejected` if it
        is not genuine; after any other error the vendor retries it.
        """
        ...


# The types of ASGI (asgi.readthedocs.io: Applications).
_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]


class _Routable(Protocol):
    """An application of Starlette or FastAPI."""

    def add_route(self, path: str, route: Any, /) -> None:  # noqa: ANN401 - an ASGI app, or a function
        """Serve `path` by `route`."""
        ...


class WebhookApp:
    """An ASGI 3 application that passes every POST, on any path, to `receiver.deliver`.

    It answers:

    - 204 for a received notification, also a repeated one;
    - 400 for a rejected notification; the reason is logged at INFO, not sent;
    - 405 for another method than POST;
    - 408 for a body that takes longer than 10 s;
    - 413 for a body over 64 KB;
    - 503 if `deliver` raises another error, so that the vendor retries. It is logged at ERROR, once
      until a notification is received again.

    No middleware before it may read the body.

    Serve it at the exact path. `mount` of Starlette and FastAPI answers a path without a slash at
    its end with a redirect, which the vendor does not follow; a request through a mount therefore
    logs one warning.

    Starlette and FastAPI, with and without a slash at the end::

        WebhookApp(receiver).add_to(app, "/webhooks/youcam")

    Litestar::

        Litestar([asgi("/webhooks/youcam", copy_scope=True)(WebhookApp(receiver))])

    Django, in `asgi.py`::

        django, webhook = get_asgi_application(), WebhookApp(receiver)

        async def application(scope, receive, send):
            ours = scope["type"] == "http" and scope["path"] == "/webhooks/youcam"
            await (webhook if ours else django)(scope, receive, send)

    It also runs alone (`uvicorn module:app`). Without ASGI, call
    `await receiver.deliver(body, headers)` with the raw body.

    **Several processes.** A load balancer passes a notification to any process. Processes that
    share the key (`Client(share=...)`, the default on one machine) tell it to the process that
    created the task, within about a second. Without sharing, a notification at another process is
    acknowledged and has no effect there; the polls still find the end of the task, only later.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._failing = False
        self._mounted = False

    def __repr__(self) -> str:
        return f"<WebhookApp for {type(self._receiver).__name__}>"

    def add_to(self, app: _Routable, path: str) -> None:
        """Serve `path` of a Starlette or FastAPI application, with and without a slash at its end.

            WebhookApp(client.webhooks).add_to(app, "/webhook")

        A framework would redirect the other spelling of the path, and the vendor does not follow
        redirects. Raises `ConfigurationError` for a path that does not begin with a slash.
        """
        if not path.startswith("/"):
            raise ConfigurationError(f"The path {quoted(path)} must begin with a slash.")
        exact = path.rstrip("/")
        for spelled in [exact, f"{exact}/"] if exact else ["/"]:
            app.add_route(spelled, self)

    def _warn_of_mount(self, scope: _Message) -> None:
        """Warn once if the request came through a mount, which redirects one of two paths."""
        root = scope.get("root_path", "")
        inside = scope.get("app_root_path", root) != root
        # The path of a route inside a mounted application is longer than "/".
        if inside and not self._mounted and scope["path"].removeprefix(root) == "/":
            self._mounted = True
            LOG.warning(
                "The webhook is mounted at %s, so only %s/ reaches it: the framework redirects the "
                "path without the slash, and the vendor does not follow redirects. Use "
                "WebhookApp(...).add_to(app, path) instead of a mount.",
                quoted(root),
                quoted(root)[1:-1],
            )

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Serve one ASGI connection."""
        match scope["type"]:
            case "http":
                self._warn_of_mount(scope)
                status = await self._status(scope, receive)
                if status is not None:
                    await _answer(send, status)
            case "lifespan":
                await _lifespan(receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case other:
                raise RuntimeError(f"WebhookApp serves only HTTP, not {other}")

    async def _status(self, scope: _Message, receive: _Receive) -> int | None:
        """Return the status of the answer, or None if the sender has disconnected."""
        if scope["method"] != "POST":
            return 405
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
        if any(name.lower() == "content-length" and _too_long(value) for name, value in headers):
            return 413
        body: bytes | int | None = 408
        with anyio.move_on_after(LONGEST_BODY):
            body = await _read_body(receive)
        if not isinstance(body, bytes):
            return body
        try:
            await self._receiver.deliver(body, headers)
        except WebhookRejected as error:
            LOG.info("A request at the webhook was rejected: %s", error.reason)
            return 400
        except Exception as error:  # noqa: BLE001 -- the sender cannot fix an error of the receiver
            if not self._failing:
                LOG.error(
                    "Notifications cannot be received (%s); the vendor will send them again.",
                    type_name(error),
                )
            self._failing = True
            return 503
        self._failing = False
        return 204


async def _read_body(receive: _Receive) -> bytes | int | None:
    """Return the body, the status that refuses it, or None if the sender has disconnected."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return 413
        more = message.get("more_body", False)
    return bytes(body)


def _too_long(announced: str) -> bool:
    """Return whether a Content-Length is too large; a value that is not a number is ignored."""
    digits = announced.lstrip("0")
    return digits.isdecimal() and (len(digits) > len(str(MOST_BYTES)) or int(digits) > MOST_BYTES)


async def _answer(send: _Send, status: int) -> None:
    headers = [] if status == 204 else [(b"content-length", b"0")]  # noqa: PLR2004 -- has no body
    if status == 405:  # noqa: PLR2004 -- RFC 9110 requires Allow
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: _Receive, send: _Send) -> None:
    """Answer the lifespan messages of a server that runs the endpoint alone."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
