"""Verifies the vendor's notifications, and polls the task of each at once.

A notification only says when to poll, and the answer to the poll decides. So notifications may come
early, late, twice or never (contract: Webhooks).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import anyio

from perfect_async._client.session import ClientSession
from perfect_async._log import LOG
from perfect_async._time import SECOND, TtlSet
from perfect_async.errors import JournalError
from perfect_async.webhooks import Headers, Notification, Secrets, verify

_SEEN_FOR: Final = 24 * 3600 * SECOND
"""How long a notification is remembered, to recognise replays. A signature is valid for 300 s
before and after our clock, so a replay may come within 600 s; the vendor's retries may come for
hours.
"""
_JOURNAL_TIMEOUT: Final = 10.0
"""Seconds; senders of Standard Webhooks wait for 15 to 30 s before they try again."""


class WebhookReceiver:
    """The receiver of the vendor's notifications: `Client.webhooks` returns it.

    @app.post("/webhook")
    async def webhook(request):
        await client.webhooks.deliver(await request.body(), request.headers)
    """

    def __init__(self, session: Callable[[], ClientSession], secrets: Secrets) -> None:
        self._get_session = session
        self._secrets = secrets
        self._seen = TtlSet(_SEEN_FOR)
        self._warned = False

    async def deliver(self, body: bytes, headers: Headers) -> None:
        """Verify one notification and poll its task at once.

        - `body`: the raw body of the request.
        - `headers`: all headers of the request.

        The call returns when the notification may be acknowledged: with a journal, once its task is
        on the disk. Notifications may come twice, late, early, out of order, or for another
        program's task. One that comes before the answer to its task's creation is remembered for
        ten minutes.

        Raises `WebhookRejected` for one without a valid signature or that is too old,
        `JournalError` if the journal is not written within 10 s, `ConfigurationError` before the
        client is open, and `ClientClosed` after it has closed. Answer these with an error status,
        so that the sender tries again.
        """
        session = self._get_session()
        session.executor.check()
        await session.executor.call(partial(self._deliver, session, body, headers))

    async def _deliver(self, session: ClientSession, body: bytes, headers: Headers) -> None:
        # Not `session.ready()`, since the client still waits for running tasks while it closes.
        session.driver.check(session.channel)
        now = session.driver.clock.utc()
        notification = verify(body, headers, self._secrets, now / SECOND)
        if not self._seen.holds(notification.id, now):
            self._seen.add(notification.id, now)
            self._handle(session, notification)
        # Comes after the poll, since no poll waits for a disk. A duplicate waits too, since the
        # first notification may not have been acknowledged.
        with anyio.move_on_after(_JOURNAL_TIMEOUT) as scope:
            await session.channel.journal.writer.flushed()
        if scope.cancelled_caught:
            raise JournalError(f"The journal was not written within {_JOURNAL_TIMEOUT:g} s.")

    def _handle(self, session: ClientSession, notification: Notification) -> None:
        if notification.task_id is not None and notification.status is not None:
            session.driver.notify(notification.task_id)
        elif not self._warned:
            self._warned = True
            LOG.warning(
                "A notification of the vendor's has a valid signature but cannot be read: %s. It "
                "and others like it are acknowledged, and polls alone find out when tasks end.",
                notification.flaw,
            )
