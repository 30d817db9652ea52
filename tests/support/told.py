"""What the tests of completion by webhook share: a vendor that tells a client of ends."""

import base64
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import attrs

from perfect_async import Client, Polling
from perfect_async.models import Completion
from perfect_async.sandbox import Sandbox, WebhookFaults
from perfect_async.sandbox._webhooks import keys_of, signed
from tests.support.sandboxed import client, clock, vendor

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER = "whsec_" + base64.b64encode(b"another secret of 24 byte").decode()


@attrs.define
class Shop:
    """An endpoint, the client behind it, and the vendor; `came` is when what was delivered."""

    sandbox: Sandbox = attrs.field(init=False)
    client: Client | None = None
    came: list[tuple[float, bytes, dict[str, str]]] = attrs.field(factory=list)

    async def deliver(self, body: bytes, headers: dict[str, str]) -> None:
        self.came.append((clock(), body, headers))
        assert self.client is not None
        await self.client.webhooks.deliver(body, headers)

    def asked(self) -> int:
        """Polls that arrived."""
        return self.sandbox.ledger.requests["poll"]

    def waits(self) -> list[float]:
        """How long after its end each task's end was reported, the shortest first."""
        return sorted(
            round(task.ended_at - task.created_at - task.duration, 3)
            for task in self.sandbox.ledger.tasks
            if task.ended_at is not None
        )


def shop(notes: WebhookFaults | None = None, *, lifts: bool = False, **settings: object) -> Shop:
    """A vendor that tells the client of this shop; `lifts`: tasks need no polls then."""
    made = Shop()
    given: dict[str, object] = {
        "webhook": made.deliver,
        "webhook_secret": SECRET,
        "webhook_faults": notes,
        "webhook_lifts_lease": lifts,
        **settings,
    }
    made.sandbox = vendor(**given)  # type: ignore[arg-type]
    return made


def customer(here: Shop, completion: Completion | None = None, **settings: object) -> Client:
    """A client of this shop, unopened; from now on it hears the notifications."""
    given: dict[str, object] = {
        "webhook_secret": SECRET,
        "polling": Polling(completion=completion),
        **settings,
    }
    here.client = client(here.sandbox, **given)
    return here.client


@asynccontextmanager
async def opened(
    here: Shop, completion: Completion | None = None, **settings: object
) -> AsyncGenerator[Client]:
    """The shop and a client of it, both open."""
    async with here.sandbox, customer(here, completion, **settings) as c:
        yield c


def note(
    c: Client,
    data: object,
    *,
    webhook_id: str = "msg_1",
    secret: str = SECRET,
    late: float = 0.0,
) -> tuple[bytes, dict[str, str]]:
    """A notification, signed by `secret` `late` seconds ago by the client's clock."""
    assert c._session is not None
    body = json.dumps({"created_at": 1761112848, "data": data}).encode()
    timestamp = round(c._session.driver.clock.utc() / 1_000_000 - late)
    return body, signed(keys_of(secret), webhook_id, timestamp, body)


def end_of(task_id: str, status: str = "success") -> Mapping[str, str]:
    """What a notification says of a task."""
    return {"task_id": task_id, "task_status": status}
