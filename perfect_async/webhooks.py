"""The receiving end of the vendor's webhook: verify notifications, read them, serve the endpoint.

The vendor announces a finished task by a POST in the Standard Webhooks scheme (contract: Webhooks).
`verify` checks and reads one from its raw bytes; `WebhookApp` is an endpoint for any ASGI
framework.

    receiver = ...                      # anything with `async deliver(body, headers)`
    app = WebhookApp(receiver)          # then mounted, see there
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
"""A request's headers as any framework has them: a mapping or pairs, of text or of bytes."""

TOLERANCE: Final = 300
"""Seconds by which `webhook-timestamp` may be off in either direction, as the scheme has it."""

MOST_BYTES: Final = 64 * 1024
"""The largest body that `WebhookApp` reads; a notification is some 200 bytes."""

LONGEST_BODY: Final = 10.0
"""Seconds for a body to arrive, however slowly it is sent."""

# One spelling of a number: what was signed is its text. Eleven digits last until the year 5138.
_SHAPES: Final = {
    # A full stop also separates what is signed, so with one in an id the same signature has a
    # second reading. The scheme leaves ids to the sender, and the second reading of a body that
    # starts with `{` is no notification: refusing the stop could cost real ones.
    "webhook-id": re.compile(r"[\x21-\x7e]{1,256}"),
    "webhook-timestamp": re.compile(r"0|[1-9][0-9]{0,10}"),
    # `version,value`, separated by single spaces. A framework that joins repeated headers does so
    # with a comma and a space, which fits nowhere.
    "webhook-signature": re.compile(r"(?=[\x20-\x7e]{1,4096}\Z)[^ ,]+,[^ ,]+(?: [^ ,]+,[^ ,]+)*"),
}


@attrs.frozen
class Notification:
    """A genuine notification: the vendor says that the task `task_id` has ended.

    `id` is the `webhook-id`, the same on every retry. `created_at` is the vendor's time in UTC, or
    None where it gave none. A genuine body that is not understood has neither `task_id` nor
    `status`, and `flaw` says why, quoting nothing of it. Log it once and acknowledge it: a refusal
    makes the sender try again and at last give the endpoint up.

    Ask for the task before you believe it: a notification holds no result, may come before the
    status changes, and may be about a task of another process.
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
    """Read a `body` that is known to be genuine. Whatever its bytes are, nothing is raised."""
    found = structure(decode(body), _Body)
    if isinstance(found, Malformed):
        return Notification(webhook_id, flaw=str(found).replace("the answer", "the body"))
    created_at = _as_time(found.created_at)
    task_id = found.data.task_id
    # As strict as the reading of a creation's answer: any other id is no task of ours.
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
    it. Raises `ConfigurationError` for one that is not, or for none at all; neither an error nor
    the repr holds any of it.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: str | Iterable[str]) -> None:
        given = _each(secrets)
        keys, in_quotes = [_key(secret) for secret in given], any(map(_is_in_quotes, given))
        del secrets, given
        self._keys = tuple(key for key in keys if key)
        if not keys or None in keys:
            # A traceback that shows the values of locals must not show these.
            del keys
            self._keys = ()
            raise ConfigurationError(
                "The webhook's secret stands in quotes, which are no part of it."
                if in_quotes
                else "The webhook's secret is not what the vendor's console shows: "
                "whsec_ and base64 after it."
            )

    def __repr__(self) -> str:
        # Also while it is being made, or after that failed.
        return f"<Secrets: {len(getattr(self, '_keys', ()))}>"

    def signatures(self, content: bytes) -> list[str]:
        """The signature of `content` under each secret: base64 of HMAC-SHA256, padded."""
        return [base64.b64encode(hmac_data(key, content)).decode() for key in self._keys]

    def have_signed(self, content: bytes, signature: str) -> bool:
        """Return whether a `v1` signature of a `webhook-signature` header is by one of these."""
        offered = [
            value
            for version, _, value in (each.partition(",") for each in signature.split(" "))
            if version == "v1"
        ]
        expected = self.signatures(content)
        # As text, since base64 has several spellings of the same bytes. All pairs are compared, so
        # that the time taken does not tell which secret nearly matched.
        fitting = [hmac.compare_digest(one, other) for one in offered for other in expected]
        return any(fitting)


def _each(secrets: object) -> list[object]:
    """Return the secrets one by one; nothing where they are none.

    Raises nothing: an error would show the secrets among the locals of its frames.
    """
    try:
        return [secrets] if isinstance(secrets, str) else list(cast("Iterable[object]", secrets))
    except Exception:  # noqa: BLE001 -- whatever the iterable of a user's raises
        return []


def _is_in_quotes(secret: object) -> bool:
    text = secret.strip() if isinstance(secret, str) else ""
    return bool(text) and (text[0] in QUOTES or text[-1] in QUOTES)


def _key(secret: object) -> bytes | None:
    """Return the bytes of a secret, None for what is none."""
    if not isinstance(secret, str):
        return None
    text = secret.strip().removeprefix("whsec_").rstrip("=")
    try:
        # The library's own reading drops characters that are not base64, and signs with the rest.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def verify(
    body: bytes, headers: Headers, secrets: Secrets | str | Iterable[str], now: float
) -> Notification:
    """Return a notification if it is the vendor's and fresh.

    `body` is the request's body as it came, every byte of it; `headers` all of its headers, names
    in any case; `now` the wall clock in seconds since 1970, from which `webhook-timestamp` may be
    300 s away. Of several signatures and secrets one pair has to fit.

    Raises `WebhookRejected` for everything else, whatever the bytes and types are, and
    `ConfigurationError` for a secret that is none. A genuine body that makes no sense is a
    `Notification` with a `flaw`. The same id may come again: deduplicate on it.

    Of `standardwebhooks` this takes the signature. Its own `verify` reads the wall clock, wants a
    body that is UTF-8, takes the last of repeated headers, and lets ValueError through.
    """
    try:
        keys = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
    finally:
        # A traceback that shows the values of locals must not show these.
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
    # After the signature, so that a reason about clocks is about a genuine message.
    off = _clock(now) - int(timestamp)
    if not abs(off) <= TOLERANCE:  # true for NaN as well
        raise WebhookRejected(
            f"webhook-timestamp is {max(min(off, 1e9), -1e9):.0f} s behind this machine's clock; "
            f"{TOLERANCE} s either way are fresh."
        )
    return read_notification(webhook_id, content)


def _raw(body: object) -> bytes:
    if not isinstance(body, bytes):
        raise WebhookRejected("The body is not bytes as they came.")
    return body


def _clock(now: object) -> float:
    if isinstance(now, bool) or not isinstance(now, int | float):
        raise WebhookRejected("The clock gives no number.")
    return now


def _relevant_headers(headers: object) -> dict[str, str]:
    """Return the headers of the scheme; one that is there twice is refused."""
    found: dict[str, str] = {}
    if isinstance(headers, Mapping):
        headers = cast("Mapping[object, object]", headers).items()
    try:
        for name, value in cast("Iterable[tuple[object, object]]", headers):
            lower = _text(name).lower()
            if lower not in _SHAPES:
                continue
            if lower in found:
                raise WebhookRejected(f"{lower} is there more than once.")
            found[lower] = _text(value)
    except (TypeError, ValueError):
        raise WebhookRejected("The headers are neither a mapping nor pairs.") from None
    return found


def _text(value: object) -> str:
    """Return ASCII text, and "" for anything else, which is no name and no value here."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    # Checked before it is lowered, since the Kelvin sign becomes a `k`.
    return value if isinstance(value, str) and value.isascii() else ""


class Receiver(Protocol):
    """An object that takes notifications, such as `client.webhooks`."""

    def deliver(self, body: bytes, headers: list[tuple[str, str]], /) -> Awaitable[object]:
        """Take one notification: its raw body and all headers, as `verify` wants them.

        Return once it is taken for good or was known already. Raise `WebhookRejected` for what is
        not genuine; any other error makes the sender try again.
        """
        ...


# ASGI's own shapes (asgi.readthedocs.io: Applications).
_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]


class _Routable(Protocol):
    """An application of Starlette or FastAPI."""

    def add_route(self, path: str, route: Any, /) -> None:  # noqa: ANN401 - an ASGI app, or a function
        """Serve `path` by `route`."""
        ...


class WebhookApp:
    """The endpoint as an ASGI 3 application: `receiver.deliver` for every POST, whatever the path.

    It answers 204 once the notification is taken, and for duplicates; 400 if it is rejected,
    without a reason (which is logged at INFO); 405 if it is no POST; 408 if its body takes longer
    than 10 s; 413 if it is over 64 KB, unread; 503 if `deliver` fails otherwise, so that the sender
    tries again (logged at ERROR, once until it works again). No middleware in front may have read
    the body.

    Give it the exact path. `mount` of Starlette and FastAPI answers a path without a slash at its
    end with a redirect, which a sender does not follow; a request that comes through a mount is
    therefore warned of once.

    Starlette and FastAPI, with and without a slash at the end::

        WebhookApp(receiver).add_to(app, "/webhooks/youcam")

    Litestar::

        Litestar([asgi("/webhooks/youcam", copy_scope=True)(WebhookApp(receiver))])

    Django, in `asgi.py`::

        django, webhook = get_asgi_application(), WebhookApp(receiver)

        async def application(scope, receive, send):
            ours = scope["type"] == "http" and scope["path"] == "/webhooks/youcam"
            await (webhook if ours else django)(scope, receive, send)

    Alone it runs as it is (`uvicorn module:app`), and where there is no ASGI call
    `await receiver.deliver(body, headers)` with the raw body instead.

    **Several processes.** Only the process that created a task waits for it, and a load balancer
    hands a notification to any. Give each process a URL of its own in the vendor's console (up to
    ten), routed to it alone; or let one process create all tasks and route the path there. A
    notification that arrives elsewhere is acknowledged there and wakes nobody; with polls going on
    beside it only time is lost.
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

        A path that is spelled in the other way would be answered with a redirect, which senders do
        not follow. Raises `ConfigurationError` for a path that does not begin with a slash.
        """
        if not path.startswith("/"):
            raise ConfigurationError(f"The path {quoted(path)} must begin with a slash.")
        exact = path.rstrip("/")
        for spelled in [exact, f"{exact}/"] if exact else ["/"]:
            app.add_route(spelled, self)

    def _warn_of_mount(self, scope: _Message) -> None:
        """Warn once where a framework's mount leads here: it redirects one of the two paths."""
        root = scope.get("root_path", "")
        inside = scope.get("app_root_path", root) != root
        # A route inside of what is mounted has more of the path.
        if inside and not self._mounted and scope["path"].removeprefix(root) == "/":
            self._mounted = True
            LOG.warning(
                "The webhook is mounted at %s, so only %s/ leads to it: senders do not follow the "
                "redirect from there. Use WebhookApp(...).add_to(app, path) instead of a mount.",
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
                raise RuntimeError(f"a webhook is HTTP, not {other}")

    async def _status(self, scope: _Message, receive: _Receive) -> int | None:
        """Return the status to answer with; None if the sender has gone."""
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
        except Exception as error:  # noqa: BLE001 -- the sender cannot fix what fails here
            if not self._failing:
                LOG.error(
                    "Notifications cannot be taken in: %s. They come again.", type_name(error)
                )
            self._failing = True
            return 503
        self._failing = False
        return 204


async def _read_body(receive: _Receive) -> bytes | int | None:
    """Return the body, the status that refuses it, or None if the sender has gone."""
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
    """Return whether a Content-Length is surely too large; a value that is no number is ignored."""
    digits = announced.lstrip("0")
    return digits.isdecimal() and (len(digits) > len(str(MOST_BYTES)) or int(digits) > MOST_BYTES)


async def _answer(send: _Send, status: int) -> None:
    headers = [] if status == 204 else [(b"content-length", b"0")]  # noqa: PLR2004 -- has no body
    if status == 405:  # noqa: PLR2004 -- as RFC 9110 wants it
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: _Receive, send: _Send) -> None:
    """Answer the lifespan messages of a server that runs the endpoint alone; nothing is opened."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
