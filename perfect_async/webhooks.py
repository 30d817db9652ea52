"""Is this notification genuine, and what does it say: the vendor's webhook at your end.

A finished task is announced by a POST in the Standard Webhooks scheme (contract: Webhooks).
`verify` judges one from its raw bytes; `WebhookApp` is an endpoint for any ASGI framework.

    receiver = ...                      # anything with `async deliver(body, headers)`
    app = WebhookApp(receiver)          # then mounted, see there
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, Protocol, TypeAlias, cast

from standardwebhooks.webhooks import hmac_data

from perfect_async._api.notices import Notification, read_notification
from perfect_async._log import LOG, type_name
from perfect_async.errors import ConfigurationError, WebhookRejected

__all__ = ["Headers", "Notification", "Receiver", "Secrets", "WebhookApp", "verify"]

Headers: TypeAlias = (
    Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str, str] | tuple[bytes, bytes]]
)
"""A request's headers as any framework has them: a mapping or pairs, of text or of bytes."""

TOLERANCE: Final = 300
"""Seconds by which `webhook-timestamp` may be off in either direction, as the scheme has it."""

MOST_BYTES: Final = 64 * 1024
"""The largest body that `WebhookApp` reads; a notification is some 200 bytes."""

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


class Secrets:
    """The webhook's secrets from the vendor's console, several of them while one is replaced.

    Each is base64, with or without `whsec_` in front, padding at the end, and white space around
    it. Raises `ConfigurationError` for one that is not, or for none at all; neither an error nor
    the repr holds any of it.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: str | Iterable[str]) -> None:
        keys = [_key(each) for each in ([secrets] if isinstance(secrets, str) else secrets)]
        self._keys = tuple(key for key in keys if key)
        if not keys or None in keys:
            # What shows a traceback with its values shows these no longer.
            del secrets, keys, self._keys
            raise ConfigurationError(
                "The webhook's secret is not what the vendor's console shows: "
                "whsec_ and base64 after it."
            )

    def __repr__(self) -> str:
        return f"<Secrets: {len(self._keys)}>"

    def signatures(self, content: bytes) -> list[str]:
        """The signature of `content` under each secret: base64 of HMAC-SHA256, padded."""
        return [base64.b64encode(hmac_data(key, content)).decode() for key in self._keys]


def _key(secret: object) -> bytes | None:
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
    """What a notification says, if it is the vendor's and fresh.

    `body` is the request's body as it came, every byte of it; `headers` all of its headers, names
    in any case; `now` the wall clock in seconds since 1970, from which `webhook-timestamp` may be
    300 s away. Of several signatures and secrets one pair has to fit.

    Raises `WebhookRejected` for everything else, whatever the bytes and types are, and
    `ConfigurationError` for a secret that is none. A genuine body that makes no sense is a
    `Notification` with a `flaw`. The same id may come again: see `_notices.Seen`.

    Of `standardwebhooks` this takes the signature. Its own `verify` reads the wall clock, wants a
    body that is UTF-8, takes the last of repeated headers, and lets ValueError through.
    """
    known = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
    content = _raw(body)
    said = _named(headers)
    for name, shape in _SHAPES.items():
        if name not in said:
            raise WebhookRejected(f"{name} is missing.")
        if not shape.fullmatch(said[name]):
            raise WebhookRejected(f"{name} is malformed.")
    webhook_id, timestamp, signature = (said[name] for name in _SHAPES)
    offered = [
        value
        for version, _, value in (each.partition(",") for each in signature.split(" "))
        if version == "v1"
    ]
    expected = known.signatures(f"{webhook_id}.{timestamp}.".encode() + content)
    # As text: base64 has several spellings of the same bytes. All of them: how long it takes says
    # nothing of which secret came near.
    fitting = [hmac.compare_digest(one, other) for one in offered for other in expected]
    if not any(fitting):
        raise WebhookRejected("No v1 signature in webhook-signature is by one of the secrets.")
    # After the signature, so that a reason that speaks of clocks is about a genuine message.
    off = _clock(now) - int(timestamp)
    if not abs(off) <= TOLERANCE:  # also where it is no number
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


def _named(headers: object) -> dict[str, str]:
    """The headers that count; one that is there twice has no meaning."""
    found: dict[str, str] = {}
    if isinstance(headers, Mapping):
        headers = cast("Mapping[object, object]", headers).items()
    try:
        for name, value in cast("Iterable[tuple[object, object]]", headers):
            known = _text(name).lower()
            if known not in _SHAPES:
                continue
            if known in found:
                raise WebhookRejected(f"{known} is there more than once.")
            found[known] = _text(value)
    except (TypeError, ValueError):
        raise WebhookRejected("The headers are neither a mapping nor pairs.") from None
    return found


def _text(value: object) -> str:
    """ASCII text; nothing, which is no name and no value here, for everything else."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    # Before lowering it: the Kelvin sign is a `k` then.
    return value if isinstance(value, str) and value.isascii() else ""


class Receiver(Protocol):
    """Who takes notifications in."""

    def deliver(self, body: bytes, headers: list[tuple[str, str]], /) -> Awaitable[object]:
        """Take in what came: raw body and all headers, as `verify` wants them.

        Raises `WebhookRejected` for what is not genuine. Returning means that it was taken in for
        good, or was known; any other error asks the sender to try again.
        """
        ...


# ASGI's own shapes (asgi.readthedocs.io: Applications).
_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]


class WebhookApp:
    """The endpoint as an ASGI 3 application: `receiver.deliver` for every POST, whatever the path.

    It answers 204 once the notification is taken in, and for duplicates; 400 if it is rejected,
    without saying why (that is in the log, at INFO); 405 if it is no POST; 413 if it is over
    64 KB, unread; 503 if `deliver` fails otherwise, so that the sender tries again (logged at
    ERROR, once until it works again). Behind it no framework may have touched the body.

    Give it the exact path. `mount` of Starlette and FastAPI answers a path without a slash at its
    end with a redirect, which a sender does not follow.

    Starlette::

        Starlette(routes=[Route("/webhooks/youcam", WebhookApp(receiver))], lifespan=...)

    FastAPI::

        app.add_route("/webhooks/youcam", WebhookApp(receiver))

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
    hands a notification to any. Until processes share what they know, let each have a URL of its
    own in the vendor's console (up to ten), routed to it alone; or let one process create all
    tasks and route the path there. A notification that arrives elsewhere is acknowledged there
    and helps nobody; with polls going on beside it nothing is lost but time.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._failing = False

    def __repr__(self) -> str:
        return f"<WebhookApp for {type(self._receiver).__name__}>"

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Serve one ASGI connection."""
        match scope["type"]:
            case "http":
                status = await self._judge(scope, receive)
                if status is not None:
                    await _answer(send, status)
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case other:
                raise RuntimeError(f"a webhook is HTTP, not {other}")

    async def _judge(self, scope: _Message, receive: _Receive) -> int | None:
        """The status to answer with; None if nobody waits for it any longer."""
        if scope["method"] != "POST":
            return 405
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
        if any(name.lower() == "content-length" and _too_long(value) for name, value in headers):
            return 413
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
        try:
            await self._receiver.deliver(bytes(body), headers)
        except WebhookRejected as error:
            LOG.info("A request at the webhook was rejected: %s", error.reason)
            return 400
        except Exception as error:  # noqa: BLE001 -- the sender cannot mend what fails here
            if not self._failing:
                LOG.error(
                    "Notifications cannot be taken in: %s. They come again.", type_name(error)
                )
            self._failing = True
            return 503
        self._failing = False
        return 204


def _too_long(promised: str) -> bool:
    """Whether a Content-Length is known to be too much; what is no number promises nothing."""
    digits = promised.lstrip("0")
    return digits.isdecimal() and (len(digits) > len(str(MOST_BYTES)) or int(digits) > MOST_BYTES)


async def _answer(send: _Send, status: int) -> None:
    headers = [] if status == 204 else [(b"content-length", b"0")]  # noqa: PLR2004 -- has no body
    if status == 405:  # noqa: PLR2004 -- as RFC 9110 wants it
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _live(receive: _Receive, send: _Send) -> None:
    """Answer the lifespan messages of a server that runs the endpoint alone; nothing is opened."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
