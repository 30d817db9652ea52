"""The vendor's notifications: signed, sent, sent again, and everything that goes wrong with them.

Contract: Webhooks. Signed here by hand, so that the sandbox is a judge of whoever verifies.
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
"""A receiver inside the process: body and headers; returning is a 204, raising a 500."""

_Post: TypeAlias = Callable[[bytes, dict[str, str]], Awaitable[int]]

PATIENCE: Final = 15.0
"""Seconds within which the receiver has to answer; the scheme advises 15 to 30."""

RETRIES: Final = (5.0, 300.0, 1800.0, 7200.0)
"""The first waits of the schedule that the scheme advises, in seconds. The vendor's is open."""


def _check_seconds(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{attribute.name} is a time in seconds, not {value}")


@attrs.frozen(kw_only=True)
class WebhookFaults:
    """Probabilities of what hurts on the way to the webhook; the default is prompt and in order.

    Drawn when a task is created:

    - `lost`: nothing is ever sent.
    - `duplicated`: it is sent twice, with the same id; `reorder_seconds` is drawn for each.
    - `early`: it is sent `early_seconds` before the status flips, but not before the creation:
      with more seconds than the task has, it overtakes the creation's answer.
    - `delayed`: it is sent `delay_seconds` late.

    `reorder_seconds`: each is sent up to so many seconds later, drawn one by one, so that they
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
    """The keys of one secret or several: base64 after `whsec_`, which may be left out, as may `=`.

    Raises `ValueError`, which does not repeat the secret.
    """
    keys: list[bytes] = []
    for each in [secret] if isinstance(secret, str) else secret:
        text = each.removeprefix("whsec_").rstrip("=")
        try:
            keys.append(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
        except ValueError:
            keys.append(b"")
    if not keys or b"" in keys:
        raise ValueError("webhook_secret is whsec_ and base64, or several of that")
    return tuple(keys)


def signed(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one attempt; with several keys there are several signatures."""
    content = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
    signatures = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)) for key in keys]
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{each.decode()}" for each in signatures),
    }


@attrs.frozen
class News:
    """The end of a task, known from its creation on; times in microseconds of the loop's clock.

    `ended` is None for a task that never ends. `alive` tells whether the service still knows it.
    """

    task_id: str
    status: str
    created: int
    ended: int | None
    alive: Callable[[], bool]


@attrs.frozen
class _Letter:
    """A notification: the same id and body at every attempt."""

    webhook_id: str
    body: bytes
    news: News
    attempt: int = 1


class Postman:
    """Sends what is announced when it is due, from a task of its own while it is open."""

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
        self._clock = clock
        self._chance = chance
        self._ledger = ledger
        self._retries = retries
        self._to = to
        self._transport = transport
        # By time; the number keeps equal ones in order.
        self._due: list[tuple[int, int, _Letter]] = []
        self._count = 0
        self._more = anyio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def opened(self) -> bool:
        """Whether it is at work."""
        return self._loop is not None

    def check(self) -> None:
        """Raise `RuntimeError` if what is announced now would never be sent."""
        if not self.opened:
            raise RuntimeError(
                "this sandbox sends webhooks, which needs a task of its own: use it inside of "
                "`async with sandbox:` (a server that sends ASGI's lifespan does so by itself)"
            )

    def announce(self, news: News) -> None:
        """Draw what becomes of the notification of a task that was just created."""
        faults, chance = self.faults, self._chance
        webhook_id = "msg_" + base64.b32encode(chance.stream("webhook ids").randbytes(15)).decode()
        lost = chance.happens(faults.lost, "webhooks lost")
        early = chance.happens(faults.early, "webhooks early")
        delayed = chance.happens(faults.delayed, "webhooks delayed")
        copies = 2 if chance.happens(faults.duplicated, "webhooks duplicated") else 1
        if lost or news.ended is None:
            return
        at = news.ended
        if early:
            at = max(news.created, at - round(faults.early_seconds * MICROSECONDS))
        data = {"task_id": news.task_id, "task_status": news.status}
        body = json.dumps(
            {"created_at": int(self._clock.wall(at)), "data": data}, separators=(",", ":")
        )
        late = faults.delay_seconds if delayed else 0.0
        rng = chance.stream("webhooks reordered")
        for _ in range(copies):
            seconds = late + faults.reorder_seconds * rng.random()
            letter = _Letter(webhook_id, body.encode(), news)
            self._hand_over(at + round(seconds * MICROSECONDS), letter)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Be at work until the end of the block; what is due later is never sent."""
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
            except Exception as error:  # noqa: BLE001 -- raised below: the group would wrap it
                failure = error
            finally:
                self._loop = None
                self._due.clear()
                group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _hand_over(self, at: int, letter: _Letter) -> None:
        loop = self._loop
        if loop is asyncio.get_running_loop():
            self._put(at, letter)
        elif loop is not None:
            # A client in a thread of its own.
            loop.call_soon_threadsafe(self._put, at, letter)

    def _put(self, at: int, letter: _Letter) -> None:
        self._count += 1
        heappush(self._due, (at, self._count, letter))
        self._more.set()

    async def _work(self, group: TaskGroup, post: _Post) -> None:
        while True:
            self._more = anyio.Event()
            now = self._clock.now()
            while self._due and self._due[0][0] <= now:
                letter = heappop(self._due)[2]
                # Side by side: a receiver that hangs holds up its own notification only.
                group.start_soon(self._send, post, letter)
            wait = (self._due[0][0] - now) / MICROSECONDS if self._due else math.inf
            with anyio.move_on_after(wait):
                await self._more.wait()

    async def _send(self, post: _Post, letter: _Letter) -> None:
        news = letter.news
        if letter.attempt == 1 and not news.alive():
            return
        now = self._clock.now()
        headers = signed(self.keys, letter.webhook_id, int(self._clock.wall(now)), letter.body)
        answer, error = 0, None
        try:
            with anyio.move_on_after(PATIENCE):
                answer = await post(letter.body, headers)
        except httpx.HTTPError as failure:
            error = repr(failure)
        except Exception as failure:  # noqa: BLE001 -- the receiver's, which a sender survives
            answer, error = 500, repr(failure)
        self._ledger.webhooks.append(
            WebhookRecord(
                time=now / MICROSECONDS,
                webhook_id=letter.webhook_id,
                task_id=news.task_id,
                task_status=news.status,
                attempt=letter.attempt,
                answer=answer,
                error=error,
            )
        )
        if not 200 <= answer < 300 and letter.attempt <= len(self._retries):  # noqa: PLR2004 -- 2xx
            wait = round(self._retries[letter.attempt - 1] * MICROSECONDS)
            again = attrs.evolve(letter, attempt=letter.attempt + 1)
            self._put(self._clock.now() + wait, again)


def _calling(deliver: Deliver) -> _Post:
    async def post(body: bytes, headers: dict[str, str]) -> int:
        await deliver(body, headers)
        return 204

    return post


def _posting(http: httpx.AsyncClient, url: str) -> _Post:
    async def post(body: bytes, headers: dict[str, str]) -> int:
        answer = await http.post(url, content=body, headers=headers, timeout=PATIENCE)
        return answer.status_code

    return post


def postman(
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
) -> Postman | None:
    """Whoever sends the notifications; None if nobody asked for any. Raises `ValueError`."""
    to = url if deliver is None else deliver
    if to is None:
        if any(given is not None for given in (secret, faults, transport)):
            raise ValueError("webhook_... is for a webhook: give webhook or webhook_url, too")
        return None
    if deliver is not None and (url is not None or transport is not None):
        raise ValueError("give webhook or webhook_url, not both")
    if url is not None and httpx.URL(url).scheme not in {"http", "https"}:
        raise ValueError("webhook_url is http://... or https://...")
    if secret is None:
        raise ValueError("a webhook is signed: give webhook_secret, too")
    return Postman(
        clock=clock,
        chance=chance,
        ledger=ledger,
        keys=keys_of(secret),
        faults=WebhookFaults() if faults is None else faults,
        retries=tuple(retries),
        to=to,
        transport=transport,
    )
