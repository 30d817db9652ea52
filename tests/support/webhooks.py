"""A vendor that notifies a client of the ends of its tasks, for tests of webhooks."""

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
class Endpoint:
    """A webhook endpoint, its client and the vendor; `received` has times and notifications."""

    sandbox: Sandbox = attrs.field(init=False)
    client: Client | None = None
    received: list[tuple[float, bytes, dict[str, str]]] = attrs.field(factory=list)

    async def deliver(self, body: bytes, headers: dict[str, str]) -> None:
        self.received.append((clock(), body, headers))
        assert self.client is not None
        await self.client.webhooks.deliver(body, headers)

    def polls(self) -> int:
        """Return the number of polls that arrived."""
        return self.sandbox.ledger.requests["poll"]

    def delays(self) -> list[float]:
        """Return the delays between the end and the report of each task, the shortest first."""
        return sorted(
            round(task.ended_at - task.created_at - task.duration, 3)
            for task in self.sandbox.ledger.tasks
            if task.ended_at is not None
        )


def make_endpoint(
    notes: WebhookFaults | None = None, *, lifts: bool = False, **settings: object
) -> Endpoint:
    """Make a vendor that notifies the client of this endpoint; `lifts`: tasks need no polls."""
    made = Endpoint()
    given: dict[str, object] = {
        "webhook": made.deliver,
        "webhook_secret": SECRET,
        "webhook_faults": notes,
        "webhook_lifts_lease": lifts,
        **settings,
    }
    made.sandbox = vendor(**given)  # type: ignore[arg-type]
    return made


def client_of(
    endpoint: Endpoint, completion: Completion | None = None, **settings: object
) -> Client:
    """Make the client of this endpoint, unopened; notifications go to it from now on."""
    given: dict[str, object] = {
        "webhook_secret": SECRET,
        "polling": Polling(completion=completion),
        **settings,
    }
    endpoint.client = client(endpoint.sandbox, **given)
    return endpoint.client


@asynccontextmanager
async def open_client(
    endpoint: Endpoint, completion: Completion | None = None, **settings: object
) -> AsyncGenerator[Client]:
    """Open the vendor and the client of this endpoint."""
    async with endpoint.sandbox, client_of(endpoint, completion, **settings) as c:
        yield c


def notification(
    c: Client,
    data: object,
    *,
    webhook_id: str = "msg_1",
    secret: str = SECRET,
    late: float = 0.0,
) -> tuple[bytes, dict[str, str]]:
    """Make a notification, signed by `secret` `late` seconds ago by the client's clock."""
    assert c._session is not None
    body = json.dumps({"created_at": 1761112848, "data": data}).encode()
    timestamp = round(c._session.driver.clock.utc() / 1_000_000 - late)
    return body, signed(keys_of(secret), webhook_id, timestamp, body)


def task_end(task_id: str, status: str = "success") -> Mapping[str, str]:
    """Return the data of a notification about a task."""
    return {"task_id": task_id, "task_status": status}
