"""Webhook notifications: signing, sending, retries and faults (contract: Webhooks).

The signature is computed without a library, so that it tests the library of the receiver.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from heapq import heappop, heappush
from typing import Final, TypeAlias

import anyio
import attrs
import httpx
from anyio.abc import TaskGroup

from ._charges import Ledger, WebhookRecord
from ._clock import Chance, Clock
from ._faults import check_share
from ._http import MICROSECONDS

Deliver: TypeAlias = Callable[[bytes, dict[str, str]], Awaitable[object]]
"""A receiver inside the process; returning counts as a 204, raising as a 500."""

OnFailure: TypeAlias = Callable[[WebhookRecord, float | None], object]
"""Called after a failed attempt, with the seconds to the next one; None if there is none."""

_Post: TypeAlias = Callable[[bytes, dict[str, str]], Awaitable[int]]

TIMEOUT: Final = 15.0
"""Seconds within which the receiver must answer; Standard Webhooks advises 15 to 30."""

RETRIES: Final = (5.0, 300.0, 1800.0, 7200.0)
"""The first waits (seconds) that Standard Webhooks advises; the vendor's are unknown."""


def _check_seconds(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be a time in seconds, not {value}")


@attrs.frozen(kw_only=True)
class WebhookFaults:
    """Probabilities of faults between the vendor and the webhook; by default there are none.

    Drawn when a task is created:

    - `lost`: the notification is never sent.
    - `duplicated`: it is sent twice, with the same id; `reorder_seconds` is drawn for each.
    - `early`: it is sent `early_seconds` before the status changes, but not before the creation.
      With a large value it overtakes the answer to the creation.
    - `delayed`: it is sent `delay_seconds` late.

    `reorder_seconds` is the largest delay that is drawn for each notification, so that they
    overtake each other.
    """

    lost: float = attrs.field(default=0.0, validator=check_share)
    duplicated: float = attrs.field(default=0.0, validator=check_share)
    early: float = attrs.field(default=0.0, validator=check_share)
    early_seconds: float = attrs.field(default=1.0, validator=_check_seconds)
    delayed: float = attrs.field(default=0.0, validator=check_share)
    delay_seconds: float = attrs.field(default=30.0, validator=_check_seconds)
    reorder_seconds: float = attrs.field(default=0.0, validator=_check_seconds)


def keys_of(secret: str | Sequence[str]) -> tuple[bytes, ...]:
    """Decode one secret or several: base64, with or without `whsec_` and padding.

    Raises `ValueError` for another text; the message does not show it.
    """
    keys: list[bytes] = []
    for each in [secret] if isinstance(secret, str) else secret:
        text = each.removeprefix("whsec_").rstrip("=")
        try:
            keys.append(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
        except ValueError:
            keys.append(b"")
    if not keys or b"" in keys:
        raise ValueError("webhook_secret must be whsec_ followed by base64, or a list of these")
    return tuple(keys)


def signed(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of one attempt, with a signature by each key."""
    content = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
    signatures = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)) for key in keys]
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{each.decode()}" for each in signatures),
    }


@attrs.frozen
class TaskEnd:
    """The end of a task, drawn at its creation; times are in microseconds of the loop's clock.

    `ended` is None for a task that never ends. `alive` returns whether the task still exists.
    """

    task_id: str
    status: str
    created: int
    ended: int | None
    alive: Callable[[], bool]


@attrs.frozen
class _Notification:
    """A notification, with the same id and body for every attempt."""

    webhook_id: str
    body: bytes
    end: TaskEnd
    attempt: int = 1


class WebhookSender:
    """Sends due notifications from a background task while it is open."""

    def __init__(
        self,
        *,
        clock: Clock,
        chance: Chance,
        ledger: Ledger,
        keys: Sequence[bytes],
        faults: WebhookFaults,
        retries: Sequence[float],
        to: Deliver | str,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self.keys = keys
        self.faults = faults
        self.on_failure: OnFailure | None = None
        self._clock = clock
        self._chance = chance
        self._ledger = ledger
        self._retries = retries
        self._to = to
        self._transport = transport
        # A heap by time; the counter keeps equal times in order.
        self._due: list[tuple[int, int, _Notification]] = []
        self._count = 0
        self._more = anyio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def opened(self) -> bool:
        """Whether the background task runs."""
        return self._loop is not None

    def check(self) -> None:
        """Raise `RuntimeError` if no background task runs to send notifications."""
        if not self.opened:
            raise RuntimeError(
                "this sandbox sends webhooks from a background task: use it inside of "
                "`async with sandbox:` (a server that sends ASGI's lifespan does this already)"
            )

    def announce(self, end: TaskEnd) -> None:
        """Schedule the notification of a new task, and draw its faults."""
        faults, chance = self.faults, self._chance
        webhook_id = (
            "msg_" + base64.b32encode(chance.identifiers("webhook ids").randbytes(15)).decode()
        )
        lost = chance.happens(faults.lost, "webhooks lost")
        early = chance.happens(faults.early, "webhooks early")
        delayed = chance.happens(faults.delayed, "webhooks delayed")
        copies = 2 if chance.happens(faults.duplicated, "webhooks duplicated") else 1
        if lost or end.ended is None:
            return
        at = end.ended
        if early:
            at = max(end.created, at - round(faults.early_seconds * MICROSECONDS))
        data = {"task_id": end.task_id, "task_status": end.status}
        body = json.dumps(
            {"created_at": int(self._clock.wall(at)), "data": data}, separators=(",", ":")
        )
        late = faults.delay_seconds if delayed else 0.0
        rng = chance.stream("webhooks reordered")
        for _ in range(copies):
            seconds = late + faults.reorder_seconds * rng.random()
            notification = _Notification(webhook_id, body.encode(), end)
            self._hand_over(at + round(seconds * MICROSECONDS), notification)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Run the background task until the end of the block; later notifications are not sent."""
        failure: Exception | None = None
        async with AsyncExitStack() as stack:
            if isinstance(self._to, str):
                http = httpx.AsyncClient(transport=self._transport, trust_env=False)
                post = _posting(await stack.enter_async_context(http), self._to)
            else:
                post = _calling(self._to)
            group = await stack.enter_async_context(anyio.create_task_group())
            self._loop = asyncio.get_running_loop()
            group.start_soon(self._work, group, post)
            try:
                yield
            except Exception as error:  # noqa: BLE001 -- raised below, since the group would wrap it
                failure = error
            finally:
                self._loop = None
                self._due.clear()
                group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _hand_over(self, at: int, notification: _Notification) -> None:
        loop = self._loop
        if loop is asyncio.get_running_loop():
            self._put(at, notification)
        elif loop is not None:
            # The client runs in another thread.
            loop.call_soon_threadsafe(self._put, at, notification)

    def _put(self, at: int, notification: _Notification) -> None:
        self._count += 1
        heappush(self._due, (at, self._count, notification))
        self._more.set()

    async def _work(self, group: TaskGroup, post: _Post) -> None:
        while True:
            self._more = anyio.Event()
            now = self._clock.now()
            while self._due and self._due[0][0] <= now:
                notification = heappop(self._due)[2]
                # Concurrently, so that a hanging receiver delays only its own notification.
                group.start_soon(self._send, post, notification)
            wait = (self._due[0][0] - now) / MICROSECONDS if self._due else math.inf
            with anyio.move_on_after(wait):
                await self._more.wait()

    async def _send(self, post: _Post, notification: _Notification) -> None:
        end = notification.end
        if notification.attempt == 1 and not end.alive():
            return
        now = self._clock.now()
        headers = signed(
            self.keys, notification.webhook_id, int(self._clock.wall(now)), notification.body
        )
        answer, error = 0, None
        try:
            with anyio.move_on_after(TIMEOUT):
                answer = await post(notification.body, headers)
        except httpx.HTTPError as failure:
            error = repr(failure)
        except Exception as failure:  # noqa: BLE001 -- any error of the receiver is a 500
            answer, error = 500, repr(failure)
        record = WebhookRecord(
            time=now / MICROSECONDS,
            webhook_id=notification.webhook_id,
            task_id=end.task_id,
            task_status=end.status,
            attempt=notification.attempt,
            answer=answer,
            error=error,
        )
        self._ledger.webhooks.append(record)
        if 200 <= answer < 300:  # noqa: PLR2004 -- 2xx
            return
        wait: float | None = None
        if notification.attempt <= len(self._retries):
            wait = self._retries[notification.attempt - 1]
            again = attrs.evolve(notification, attempt=notification.attempt + 1)
            self._put(self._clock.now() + round(wait * MICROSECONDS), again)
        if self.on_failure is not None:
            self.on_failure(record, wait)


def _calling(deliver: Deliver) -> _Post:
    async def post(body: bytes, headers: dict[str, str]) -> int:
        await deliver(body, headers)
        return 204

    return post


def _posting(http: httpx.AsyncClient, url: str) -> _Post:
    async def post(body: bytes, headers: dict[str, str]) -> int:
        answer = await http.post(url, content=body, headers=headers, timeout=TIMEOUT)
        return answer.status_code

    return post


def webhook_sender(
    clock: Clock,
    chance: Chance,
    ledger: Ledger,
    *,
    deliver: Deliver | None,
    url: str | None,
    transport: httpx.AsyncBaseTransport | None,
    secret: str | Sequence[str] | None,
    faults: WebhookFaults | None,
    retries: Sequence[float],
) -> WebhookSender | None:
    """Build the sender of notifications, or None without a webhook. Raises `ValueError`."""
    to = url if deliver is None else deliver
    if to is None:
        if any(given is not None for given in (secret, faults, transport)):
            raise ValueError("webhook_... needs a webhook: pass webhook or webhook_url, too")
        return None
    if deliver is not None and (url is not None or transport is not None):
        raise ValueError("pass webhook or webhook_url, not both")
    if url is not None and httpx.URL(url).scheme not in {"http", "https"}:
        raise ValueError("webhook_url must be http://... or https://...")
    if secret is None:
        raise ValueError("a webhook is signed: pass webhook_secret, too")
    return WebhookSender(
        clock=clock,
        chance=chance,
        ledger=ledger,
        keys=keys_of(secret),
        faults=WebhookFaults() if faults is None else faults,
        retries=tuple(retries),
        to=to,
        transport=transport,
    )
