"""The sandbox as one object: an ASGI app, a transport, a ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import httpx
from anyio import AsyncContextManagerMixin
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ._billing import Purse
from ._charges import Ledger
from ._clock import Chance, Clock, waits
from ._durations import DEFAULT_DURATIONS, Durations
from ._faults import Fates, Faults, Scripted
from ._features import FEATURES
from ._files import Files, HeaderStyle
from ._http import Call
from ._limits import Limiter, Rules, WindowKind
from ._presigned import Links
from ._router import Vendor
from ._tasks import TaskIds, Tasks
from ._transport import SandboxTransport
from ._webhooks import RETRIES, Deliver, Postman, WebhookFaults, keys_of, postman

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Sandbox(AsyncContextManagerMixin):
    """The vendor's API in this process, with its limits, its lease and its prices.

    The only clock is the running loop's, so under a loop with virtual time a day takes no time.

    Time and limits (contract: Limits, Expiry and charging):

    - `requests` per `period` seconds and `per_second`, per key; `window` is `"sliding"` or
      `"fixed"`, and `count_refused` says whether refused requests spend it.
    - `lease`: seconds after which a running task that was not polled is lost.
    - `durations`: seconds the engine needs, by feature; those not named keep their default.
    - `latency`: round trip in seconds; `jitter`: up to so many more, drawn per call. A call
      arrives at any time between its leaving and its answer.
    - `url_lifetime`: seconds that presigned URLs live.

    The account: `units` to begin with (`math.inf` answers `[]`: unknown), `api_keys` that are
    accepted (`None`: every one that is well-formed).

    What the contract leaves open: `polling_interval` in answers (milliseconds, `None`: absent),
    `files_per_call`, `universal_path` (`False`: only `/file/<feature>` exists), `header_style`
    of upload headers, `task_ids` (`"base64"` ones hold `/`, `+` and `=`).

    `origin` (`"http://127.0.0.1:8787"`) is for a real port: presigned URLs are paths of it.
    Without it they are on two other hosts, told apart by the Host header. `seed` fixes every
    chance, and `epoch` the wall clock at the first use (seconds since 1970; `None` reads it).

    A webhook (contract: Webhooks). The sandbox sends from a task of its own, so it has to be open:
    `async with sandbox:`, or a server that sends ASGI's lifespan.

    - `webhook_url` is where it is, reached through `webhook_transport` (an
      `httpx.AsyncBaseTransport`, such as `httpx.ASGITransport(app)`; by default the network);
      `webhook` is an `async def deliver(body, headers)` in this process instead.
    - `webhook_secret`: `whsec_...`, or several of them, each of which signs.
    - `webhook_faults`: what goes wrong; `webhook_retries`: seconds after each attempt that was not
      answered 2xx within 15 s.
    - `webhook_lifts_lease`: whether tasks need no polls any longer. The vendor's own flow has none
      between creation and notification, and yet nobody wrote that a webhook lifts the 10 s rule:
      by default it does not.

    `ledger.webhooks` has what was sent. A task that nobody kept alive is not announced.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        requests: int = 250,
        period: float = 300.0,
        per_second: int = 5,
        window: WindowKind = "sliding",
        count_refused: bool = True,
        lease: float = 10.0,
        durations: Mapping[str, Durations] | None = None,
        units: float = 1000.0,
        faults: Faults | None = None,
        latency: float = 0.0,
        jitter: float = 0.0,
        polling_interval: int | None = None,
        files_per_call: int = 20,
        universal_path: bool = True,
        header_style: HeaderStyle = "object",
        task_ids: TaskIds = "urlsafe",
        origin: str | None = None,
        api_keys: Collection[str] | None = None,
        url_lifetime: float = 7200.0,
        epoch: float | None = None,
        webhook: Deliver | None = None,
        webhook_url: str | None = None,
        webhook_transport: httpx.AsyncBaseTransport | None = None,
        webhook_secret: str | Sequence[str] | None = None,
        webhook_faults: WebhookFaults | None = None,
        webhook_retries: Sequence[float] = RETRIES,
        webhook_lifts_lease: bool = False,
    ) -> None:
        given = {} if durations is None else dict(durations)
        if not given.keys() <= FEATURES.keys():
            raise ValueError(f"durations are for {', '.join(FEATURES)}, not for {', '.join(given)}")
        self._latency = latency
        self._jitter = jitter
        clock = Clock(epoch)
        chance = Chance(seed)
        self._chance = chance
        purse = Purse(units)
        links = Links(
            None if origin is None else origin.rstrip("/"),
            url_lifetime,
            chance.stream("signing secret").randbytes(32),
            clock,
        )
        # The ledger reads the tasks, and the files write violations into the ledger.
        self._ledger = Ledger(lambda: tasks.records(), lambda: purse.balance)  # noqa: PLW0108 - not made yet
        files = Files(links, chance, self._ledger, most=files_per_call, style=header_style)
        self._postman = postman(
            clock,
            chance,
            self._ledger,
            deliver=webhook,
            url=webhook_url,
            transport=webhook_transport,
            secret=webhook_secret,
            faults=webhook_faults,
            retries=webhook_retries,
        )
        lifted = webhook_lifts_lease and self._postman is not None
        tasks = Tasks(
            clock=clock,
            chance=chance,
            files=files,
            links=links,
            purse=purse,
            durations={**DEFAULT_DURATIONS, **given},
            lease=None if lifted else lease,
            polling_interval=polling_interval,
            ids=task_ids,
            announce=None if self._postman is None else self._postman.announce,
        )
        self._vendor = Vendor(
            clock=clock,
            chance=chance,
            ledger=self._ledger,
            limiter=Limiter(Rules(requests, period, per_second, window, count_refused)),
            fates=Fates(Faults() if faults is None else faults, chance),
            links=links,
            files=files,
            tasks=tasks,
            purse=purse,
            api_keys=api_keys,
            universal_path=universal_path,
            postman=self._postman,
        )

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        """Send webhooks until the end of the block; without a webhook there is nothing to open."""
        async with nullcontext() if self._postman is None else self._postman.open():
            yield self

    @property
    def ledger(self) -> Ledger:
        """What the vendor knows: units, tasks, requests, violations."""
        return self._ledger

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on; assign another value at any time."""
        return self._vendor.fates.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._vendor.fates.faults = faults

    @property
    def webhook_faults(self) -> WebhookFaults:
        """What goes wrong with the notifications of tasks created from now on; assign another."""
        return self._sender().faults

    @webhook_faults.setter
    def webhook_faults(self, faults: WebhookFaults) -> None:
        self._sender().faults = faults

    def rotate_webhook_secret(self, secret: str | Sequence[str]) -> None:
        """Sign with this secret, or with each of these, from now on, retries too."""
        self._sender().keys = keys_of(secret)

    def _sender(self) -> Postman:
        if self._postman is None:
            raise ValueError("this sandbox has no webhook: give webhook or webhook_url")
        return self._postman

    def script(self, kind: str, *answers: Scripted) -> None:
        """Prepare the next answers to calls of one kind, in the order in which they leave.

        An answer is `(status, body)`, sent without executing the call (a `str` body goes out as
        HTML, anything else as JSON), or one of the tricks:

        - `"pass"`: the ordinary answer, whatever the faults are;
        - `"refuse"`: no connection (over a port: as `"drop"`);
        - `"drop"`: not executed, and the connection ends without an answer;
        - `"lose"`: executed, and the answer is lost; a lost poll renews no lease;
        - `"hang"`: not executed, `504` after `faults.hang_seconds`.

        Prepared answers come before key, limits and faults, and count as requests all the same
        (but `"refuse"`, which never arrives). Raises `ValueError` for an unknown kind or trick.
        """
        self._vendor.fates.script(kind, answers)

    def foreign(self, count: int, key: str | None = None) -> None:
        """Book `count` requests of somebody else now; `None` books them on every key.

        Needs the running loop, whose time it is: `RuntimeError` outside of it.
        """
        asyncio.get_running_loop()
        self._vendor.limiter.foreign(count, key, self._vendor.clock.now())

    def transport(
        self, *, latency: float | None = None, jitter: float | None = None
    ) -> SandboxTransport:
        """An `httpx.AsyncBaseTransport` into this sandbox; seconds, by default the sandbox's.

        Raises `RuntimeError` if the sandbox has a webhook and is not open.
        """
        if self._postman is not None:
            # A client that meets this at its first call tells no more than that a call failed.
            self._postman.check()
        return SandboxTransport(
            self._vendor,
            latency=self._latency if latency is None else latency,
            jitter=self._jitter if jitter is None else jitter,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection: HTTP and lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the sandbox speaks HTTP, not {scope['type']}")
        try:
            call = await _read(Request(scope, receive))
        except ClientDisconnect:
            # Half a request is none.
            return
        prepared = self._vendor.leave(call)
        before, after = waits(self._latency, self._jitter, self._chance.stream("latency"))
        await asyncio.sleep(before)
        answer = self._vendor.arrive(call, prepared)
        await asyncio.sleep(after + answer.delay)
        if answer.lost:
            # A promised body that never comes makes a server cut the connection, which is as
            # near as ASGI gets to an answer that is lost.
            promise = [(b"content-length", b"1")]
            await send({"type": "http.response.start", "status": 200, "headers": promise})
            return
        headers = {**answer.headers, "content-type": answer.content_type}
        response = Response(answer.body, answer.status, headers)
        await response(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Be open from the startup to the shutdown, unless somebody opened it already."""
        await receive()
        opened = self._postman is not None and self._postman.opened
        async with nullcontext() if opened else self:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def __repr__(self) -> str:
        """For a person."""
        return f"<perfect_async.sandbox.Sandbox {self._ledger!r}>"


async def _read(request: Request) -> Call:
    raw = request.scope.get("raw_path")
    # Servers may leave `raw_path` out; the decoded path is then all there is.
    path = raw.decode("ascii") if isinstance(raw, bytes) else quote(request.url.path)
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Call(
        method=request.method,
        host=headers.get("host", ""),
        path=path,
        query=request.url.query,
        headers=headers,
        body=await request.body(),
    )
