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
from ._webhooks import (
    RETRIES,
    Deliver,
    OnFailure,
    WebhookFaults,
    WebhookSender,
    keys_of,
    webhook_sender,
)

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Sandbox(AsyncContextManagerMixin):
    """A simulation of the vendor's API with its limits, its lease and its prices.

        sandbox = Sandbox(units=10)
        async with Client("sandbox-key", transport=sandbox.transport()) as client:
            await client.run(Smile(portrait(1)))
        assert sandbox.ledger.units_charged == 1

    Time is the time of the running loop: under a loop with virtual time a simulated day passes at
    once.

    Time and limits (contract: Limits, Expiry and charging):

    - `requests` per `period` seconds and `per_second`, per key; `window` is `"sliding"` or
      `"fixed"`, and `count_refused` says whether refused requests count.
    - `lease`: the seconds after which a running task without polls is lost, or one of the other
      published readings: the `"polling_interval"`, the `"retention"`, or `"flexible"` (never).
      `retention`: the seconds for which a finished task is kept.
    - `durations`: the time that the engine needs, by feature; other features keep their default.
    - `latency`: the round trip in seconds; `jitter`: the most that is added, drawn per request. A
      request arrives at a random time within its round trip.
    - `url_lifetime`: the seconds for which presigned URLs are valid.

    The account:

    - `units`: their number at the start (`math.inf` answers `[]`: unknown), or a list of `Grant`s.
    - `charging`: units are taken at the `"creation"` (and returned when a poll reports a failure)
      or only for a `"success"`.
    - `api_keys`: the accepted keys (`None`: every well-formed key).

    Details that the contract leaves open: `dialect` (the wording of answers), `polling_interval` in
    answers (milliseconds, `None`: absent), `files_per_call`, `universal_path` (`False`: only
    `/file/<feature>` exists), `header_style` of upload headers, `task_ids` (`"base64"` ids have
    `/`, `+` and `=`).

    `origin` (`"http://127.0.0.1:8787"`) is for a real port: presigned URLs are then paths of this
    origin. Without it they are on two other hosts, which are recognised by the Host header. `seed`
    fixes every random draw. `epoch` is the wall clock at the first use (seconds since 1970; `None`
    reads the real clock). The vendor's clock is `clock_skew` seconds ahead of it (negative:
    behind). The ids of tasks, files, requests and notifications also depend on `run_id`: the vendor
    never repeats an id, so give each run another one if a client outlives the sandbox.

    A webhook (contract: Webhooks). The sandbox sends notifications from a background task, so it
    must be open: `async with sandbox:`, or a server that sends ASGI's lifespan.

    - `webhook_url` is the receiver, reached by `webhook_transport` (an `httpx.AsyncBaseTransport`,
      such as `httpx.ASGITransport(app)`; by default the network). `webhook` is instead an
      `async def deliver(body, headers)` in this process.
    - `webhook_secret`: `whsec_...`, or several secrets, each of which signs.
    - `webhook_faults`: probabilities of faults; `webhook_retries`: seconds to wait after each
      attempt that was not answered with 2xx within 15 s.
    - `webhook_lifts_lease`: whether tasks need no polls. The vendor's webhook flow has no polls
      between creation and notification, but no document says that a webhook lifts the rule of
      10 s. By default it does not.

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
        files_per_call: int = 100,
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
            raise ValueError(
                f"durations has {', '.join(given)}; the features are {', '.join(FEATURES)}"
            )
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
        self._ledger = Ledger(lambda: tasks.records(), self._balance)  # noqa: PLW0108 - set below
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
        """Send notifications until the end of the block; without a webhook, do nothing."""
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
        """The faults of all requests from now on; assign another value at any time."""
        return self._router.fault_plan.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._router.fault_plan.faults = faults

    @property
    def dialect(self) -> Dialect:
        """The wording of all answers from now on; assign another value at any time."""
        return self._router.dialect

    @dialect.setter
    def dialect(self, dialect: Dialect) -> None:
        self._router.dialect = dialect

    @property
    def webhook_faults(self) -> WebhookFaults:
        """The faults of notifications of tasks that are created from now on; may be assigned."""
        return self._require_sender().faults

    @webhook_faults.setter
    def webhook_faults(self, faults: WebhookFaults) -> None:
        self._require_sender().faults = faults

    def rotate_webhook_secret(self, secret: str | Sequence[str]) -> None:
        """Sign all notifications from now on, also retries, with this secret or these secrets."""
        self._require_sender().keys = keys_of(secret)

    def on_webhook_failure(self, report: OnFailure) -> None:
        """Call `report` after each failed attempt to notify the webhook.

        It gets the record and the seconds to the next attempt, or None if there is none.
        """
        self._require_sender().on_failure = report

    def _require_sender(self) -> WebhookSender:
        if self._sender is None:
            raise ValueError("this sandbox has no webhook: pass webhook or webhook_url")
        return self._sender

    def script(self, kind: str, *answers: Scripted) -> None:
        """Prepare the next answers to requests of one kind, in the order of their sending.

            sandbox.script("poll", (429, {"status": 429, "error": "Too many requests"}), "drop")

        `kind` is one of `KINDS`. An answer is `(status, body)`, sent without executing the request
        (a `str` body is sent as HTML, any other as JSON), or one of these actions:

        - `"pass"`: the ordinary answer, without faults;
        - `"refuse"`: no connection (over a port: like `"drop"`);
        - `"drop"`: not executed, and the connection ends without an answer;
        - `"lose"`: executed, and the answer is lost; a lost poll does not renew the lease;
        - `"lose_502"`: executed, and a gateway answers 502 instead;
        - `"hang"`: not executed, and answered with `504` after `faults.hang_seconds`.

        Prepared answers take precedence over key, limits and faults. They also count as requests,
        except `"refuse"`, which never arrives. Raises `ValueError` for an unknown kind or action.
        """
        self._router.fault_plan.script(kind, answers)

    def foreign(self, count: int, key: str | None = None) -> None:
        """Count `count` requests of another program now, on `key` or, with `None`, on every key.

        Raises `RuntimeError` outside of a running loop, since it needs the loop's time.
        """
        asyncio.get_running_loop()
        self._router.limiter.foreign(count, key, self._router.clock.now())

    def book(
        self, action: str, amount: float, *, target_id: str | None = None, ago: float = 0.0
    ) -> str:
        """Add another program's row to the unit history, and change the balance.

        `action` is the vendor's word, such as `"api_photo_enhance"` or `"renew"` (contract: Other
        calls). `amount` is the net change in units: negative for a charge, positive for a purchase,
        which adds a grant. `target_id` is by default a new id like that of a task; it is returned.
        The row is dated `ago` seconds back.
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

        `latency` and `jitter` are in seconds; by default they are those of the sandbox.

        Raises `RuntimeError` if the sandbox has a webhook and is not open.
        """
        if self._sender is not None:
            # Checked here, since a client would report it only as a failed request.
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
            # The server answers the refused handshake with 403.
            await receive()
            await send({"type": "websocket.close"})
            return
        try:
            incoming = await _read(requests.Request(scope, receive))
        except requests.ClientDisconnect:
            # The client is gone, so no answer is sent.
            return
        prepared = self._router.leave(incoming)
        before, after = split_latency(self._latency, self._jitter, self._chance.stream("latency"))
        await asyncio.sleep(before)
        answer = self._router.arrive(incoming, prepared)
        await asyncio.sleep(after + answer.delay)
        if answer.lost:
            # ASGI cannot close a connection, but servers close it after a body that is too short.
            promise = [(b"content-length", b"1")]
            await send({"type": "http.response.start", "status": 200, "headers": promise})
            return
        headers = {**answer.headers}
        if answer.status != HTTPStatus.NO_CONTENT:
            headers["content-type"] = answer.content_type
            headers["content-length"] = str(len(answer.body))
        # A response to HEAD has the headers of the body without the body.
        body = b"" if incoming.method == "HEAD" else answer.body
        await responses.Response(body, answer.status, headers)(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Keep the sandbox open from startup to shutdown, unless it is open already."""
        await receive()
        opened = self._sender is not None and self._sender.opened
        async with nullcontext() if opened else self:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def __repr__(self) -> str:
        """Summarise the ledger."""
        return f"<perfect_async.sandbox.Sandbox {self._ledger!r}>"


async def _read(request: requests.Request) -> Request:
    raw = request.scope.get("raw_path")
    # Some servers leave `raw_path` out, and only the decoded path is known then.
    path = raw if isinstance(raw, bytes) else quote(request.scope["path"]).encode()
    query: bytes = request.scope["query_string"]
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Request(
        method=request.method,
        host=headers.get("host", ""),
        # Latin-1 decodes every byte, so that unusual bytes give an unknown path and no exception.
        path=path.decode("latin-1"),
        query=query.decode("latin-1"),
        headers=headers,
        body=await request.body(),
    )
