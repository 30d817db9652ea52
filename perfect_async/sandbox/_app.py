"""The public class `Sandbox`: an ASGI app, an httpx transport and a ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import httpx
from anyio import AsyncContextManagerMixin
from starlette import requests, responses

from ._billing import DAY, Charging, Grant, UnitAccount
from ._catalogue import FEATURES
from ._charges import Ledger
from ._clock import Chance, Clock, split_latency
from ._dialect import Dialect
from ._engine import DEFAULT_DURATIONS, Durations
from ._faults import FaultPlan, Faults, Scripted
from ._files import Files, HeaderStyle
from ._http import Request
from ._keys import Keys
from ._limits import Limiter, Rules, WindowKind
from ._presigned import UrlSigner
from ._router import Router
from ._rules import Lease, TaskIds, TaskRules
from ._tasks import Tasks
from ._transport import SandboxTransport
from ._webhooks import RETRIES, Deliver, WebhookFaults, WebhookSender, keys_of, webhook_sender

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Sandbox(AsyncContextManagerMixin):
    """A simulation of the vendor's API with its limits, its lease and its prices.

    Time is the running loop's: under a loop with virtual time a simulated day passes at once.

    Time and limits (contract: Limits, Expiry and charging):

    - `requests` per `period` seconds and `per_second`, per key; `window` is `"sliding"` or
      `"fixed"`, and `count_refused` says whether refused requests count.
    - `lease`: when a running task that was not polled is lost: after so many seconds, or one of
      the other published readings: within the `"polling_interval"`, within the `"retention"`, or
      `"flexible"`: never. `retention`: seconds for which a finished task is kept.
    - `durations`: seconds that the engine needs, by feature; features not named keep their default.
    - `latency`: round trip in seconds; `jitter`: up to so many more, drawn per request. A request
      arrives at a random time within its round trip.
    - `url_lifetime`: seconds that presigned URLs are valid.

    The account: `units` at the start (`math.inf` answers `[]`: unknown), or the `Grant`s that make
    them up; `charging`: units are taken at the `"creation"` (and returned when a poll reports a
    failure) or for a `"success"` only; `api_keys` that are accepted (`None`: every well-formed
    key).

    Details that the contract leaves open: `dialect` (how answers are worded), `polling_interval`
    in answers (milliseconds, `None`: absent), `files_per_call`, `universal_path` (`False`: only
    `/file/<feature>` exists), `header_style` of upload headers, `task_ids` (`"base64"` ones hold
    `/`, `+` and `=`).

    `origin` (`"http://127.0.0.1:8787"`) is for a real port: presigned URLs are then paths of this
    origin. Without it they are on two other hosts, told apart by the Host header. `seed` fixes
    every random draw, and `epoch` the wall clock at the first use (seconds since 1970; `None`
    reads the real one). The vendor's clock is `clock_skew` seconds ahead of it (negative: behind).
    The ids of tasks, files, requests and notifications depend on `run_id` as well: the vendor
    repeats none after a restart, so where a client outlives the sandbox give each run another one.

    A webhook (contract: Webhooks). The sandbox sends from a background task, so it has to be open:
    `async with sandbox:`, or a server that sends ASGI's lifespan.

    - `webhook_url` is the receiver, reached through `webhook_transport` (an
      `httpx.AsyncBaseTransport`, such as `httpx.ASGITransport(app)`; by default the network);
      `webhook` is an `async def deliver(body, headers)` in this process instead.
    - `webhook_secret`: `whsec_...`, or several of them, each of which signs.
    - `webhook_faults`: probabilities of faults; `webhook_retries`: seconds to wait after each
      attempt that was not answered 2xx within 15 s.
    - `webhook_lifts_lease`: whether tasks need no polls any longer. The vendor's own webhook flow
      has no polls between creation and notification, but no document says that a webhook lifts
      the 10 s rule: by default it does not.

    `ledger.webhooks` lists the attempts. A task whose lease ran out is not announced.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        run_id: str = "",
        requests: int = 250,
        period: float = 300.0,
        per_second: int = 5,
        window: WindowKind = "sliding",
        count_refused: bool = True,
        lease: Lease = 10.0,
        durations: Mapping[str, Durations] | None = None,
        retention: float = DAY,
        units: float | Sequence[Grant] = 1000.0,
        charging: Charging = "creation",
        faults: Faults | None = None,
        dialect: Dialect | None = None,
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
        clock_skew: float = 0.0,
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
        clock = Clock(epoch, clock_skew)
        chance = Chance(seed, run_id)
        self._chance = chance
        account = UnitAccount(units, clock)

        urls = UrlSigner(
            None if origin is None else origin.rstrip("/"),
            url_lifetime,
            chance.identifiers("signing secret").randbytes(32),
            clock,
        )
        # The ledger reads the tasks, and the files report violations to the ledger.
        self._account = account
        self._ledger = Ledger(lambda: tasks.records(), self._balance)  # noqa: PLW0108 - not made yet
        files = Files(urls, chance, self._ledger, limit=files_per_call, style=header_style)
        self._sender = webhook_sender(
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
        lifted = webhook_lifts_lease and self._sender is not None
        self._tasks = tasks = Tasks(
            clock=clock,
            chance=chance,
            files=files,
            urls=urls,
            account=account,
            rules=TaskRules(
                durations={**DEFAULT_DURATIONS, **given},
                lease="flexible" if lifted else lease,
                retention=retention,
                charging=charging,
                polling_interval=polling_interval,
                ids=task_ids,
            ),
            announce=None if self._sender is None else self._sender.announce,
        )
        self._router = Router(
            clock=clock,
            chance=chance,
            ledger=self._ledger,
            limiter=Limiter(Rules(requests, period, per_second, window, count_refused)),
            fault_plan=FaultPlan(Faults() if faults is None else faults, chance),
            dialect=Dialect() if dialect is None else dialect,
            urls=urls,
            files=files,
            tasks=tasks,
            account=account,
            keys=Keys(api_keys, clock, chance),
            universal_path=universal_path,
            sender=self._sender,
        )

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        """Send webhooks until the end of the block; without a webhook this does nothing."""
        async with nullcontext() if self._sender is None else self._sender.open():
            yield self

    def _balance(self) -> float:
        self._tasks.settle(self._router.clock.now())
        return self._account.balance

    @property
    def ledger(self) -> Ledger:
        """Units, tasks, requests and violations, as the vendor knows them."""
        return self._ledger

    @property
    def faults(self) -> Faults:
        """The faults of every request from now on; assign another value at any time."""
        return self._router.fault_plan.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._router.fault_plan.faults = faults

    @property
    def dialect(self) -> Dialect:
        """The wording of every answer from now on; assign another value at any time."""
        return self._router.dialect

    @dialect.setter
    def dialect(self, dialect: Dialect) -> None:
        self._router.dialect = dialect

    @property
    def webhook_faults(self) -> WebhookFaults:
        """The faults of notifications of tasks created from now on; assign another value."""
        return self._require_sender().faults

    @webhook_faults.setter
    def webhook_faults(self, faults: WebhookFaults) -> None:
        self._require_sender().faults = faults

    def rotate_webhook_secret(self, secret: str | Sequence[str]) -> None:
        """Sign everything from now on, retries included, with this secret or each of these."""
        self._require_sender().keys = keys_of(secret)

    def _require_sender(self) -> WebhookSender:
        if self._sender is None:
            raise ValueError("this sandbox has no webhook: give webhook or webhook_url")
        return self._sender

    def script(self, kind: str, *answers: Scripted) -> None:
        """Prepare the next answers to requests of one kind, in the order in which they leave.

        An answer is `(status, body)`, sent without executing the request (a `str` body is sent as
        HTML, anything else as JSON), or one of these actions:

        - `"pass"`: the ordinary answer, whatever the faults are;
        - `"refuse"`: no connection (over a port: as `"drop"`);
        - `"drop"`: not executed, and the connection ends without an answer;
        - `"lose"`: executed, and the answer is lost; a lost poll renews no lease;
        - `"lose_502"`: executed, and a gateway answers 502 instead;
        - `"hang"`: not executed, `504` after `faults.hang_seconds`.

        Prepared answers come before key, limits and faults, and count as requests all the same
        (except `"refuse"`, which never arrives). Raises `ValueError` for an unknown kind or action.
        """
        self._router.fault_plan.script(kind, answers)

    def foreign(self, count: int, key: str | None = None) -> None:
        """Count `count` requests of another program now; `None` counts them on every key.

        Raises `RuntimeError` outside of a running loop, whose time it needs.
        """
        asyncio.get_running_loop()
        self._router.limiter.foreign(count, key, self._router.clock.now())

    def book(
        self, action: str, amount: float, *, target_id: str | None = None, ago: float = 0.0
    ) -> str:
        """Add a row to the unit history that is not this sandbox's, and move the units.

        `amount` is the net change: negative for another program's charge, positive for a
        purchase, which adds a grant. `target_id` is by default a new id of the form of a task's;
        it is returned. The row is dated `ago` seconds back. `action` is the vendor's word, such
        as `"api_photo_enhance"` or `"renew"` (contract: Other calls).
        """
        if target_id is None:
            target_id = self._tasks.new_id()
        now = self._router.clock.now()
        wall = self._router.clock.wall(now) - ago
        self._account.book(action, amount, target_id, wall)
        return target_id

    def transport(
        self, *, latency: float | None = None, jitter: float | None = None
    ) -> SandboxTransport:
        """Return an `httpx.AsyncBaseTransport` into this sandbox.

        `latency` and `jitter` are seconds and default to the sandbox's.


        Raises `RuntimeError` if the sandbox has a webhook and is not open.
        """
        if self._sender is not None:
            # Raised here, because a client would report it only as a failed request.
            self._sender.check()
        return SandboxTransport(
            self._router,
            latency=self._latency if latency is None else latency,
            jitter=self._jitter if jitter is None else jitter,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection: HTTP and lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] == "websocket":
            # A refused handshake, which the server answers with 403.
            await receive()
            await send({"type": "websocket.close"})
            return
        try:
            incoming = await _read(requests.Request(scope, receive))
        except requests.ClientDisconnect:
            # The request is incomplete: there is nothing to answer.
            return
        prepared = self._router.leave(incoming)
        before, after = split_latency(self._latency, self._jitter, self._chance.stream("latency"))
        await asyncio.sleep(before)
        answer = self._router.arrive(incoming, prepared)
        await asyncio.sleep(after + answer.delay)
        if answer.lost:
            # ASGI cannot drop a connection. A server closes it after a body shorter than announced.
            promise = [(b"content-length", b"1")]
            await send({"type": "http.response.start", "status": 200, "headers": promise})
            return
        headers = {**answer.headers}
        if answer.status != HTTPStatus.NO_CONTENT:
            headers["content-type"] = answer.content_type
            headers["content-length"] = str(len(answer.body))
        # A response to HEAD announces the body and does not send it.
        body = b"" if incoming.method == "HEAD" else answer.body
        await responses.Response(body, answer.status, headers)(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Open the sandbox from startup to shutdown, unless it is open already."""
        await receive()
        opened = self._sender is not None and self._sender.opened
        async with nullcontext() if opened else self:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def __repr__(self) -> str:
        """For a person."""
        return f"<perfect_async.sandbox.Sandbox {self._ledger!r}>"


async def _read(request: requests.Request) -> Request:
    raw = request.scope.get("raw_path")
    # Servers may leave `raw_path` out; only the decoded path is known then.
    path = raw if isinstance(raw, bytes) else quote(request.scope["path"]).encode()
    query: bytes = request.scope["query_string"]
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Request(
        method=request.method,
        host=headers.get("host", ""),
        # Latin-1 decodes every byte: strange ones make an unknown path, not an exception.
        path=path.decode("latin-1"),
        query=query.decode("latin-1"),
        headers=headers,
        body=await request.body(),
    )
