"""The vendor's notifications: verify each, and poll its task at once.

A notification only says when to poll; the poll's answer decides. So it does not matter whether
notifications come early, late, twice or never (contract: Webhooks).
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
"""A genuine notification passes as fresh for 2 * 300 s, from being ahead of our clock to being
behind it, so a replay must be known for longer. Retries that go on for hours are worth knowing too.
"""
_JOURNAL_TIMEOUT: Final = 10.0
"""Seconds; senders of Standard Webhooks wait for 15 to 30 s and then try again."""


class WebhookReceiver:
    """`client.webhooks`: takes the requests that the vendor sends to a webhook endpoint."""

    def __init__(self, session: Callable[[], ClientSession], secrets: Secrets) -> None:
        self._get_session = session
        self._secrets = secrets
        self._seen = TtlSet(_SEEN_FOR)
        self._warned = False

    async def deliver(self, body: bytes, headers: Headers) -> None:
        """Handle one notification: the request's raw `body` and all of its `headers`.

        Its task is polled at once. Returns when the notification may be acknowledged: with a
        journal, once its task is on the disk. Notifications may come twice, late, early, out of
        order, or for somebody else's task; one that overtakes the answer to its creation is kept
        for ten minutes. Raises `WebhookRejected` for one that is not the vendor's or not fresh,
        `JournalError` if the journal is not written within 10 s, `ConfigurationError` before the
        client is open, and `ClientClosed` once it has closed; the sender then tries again.
        """
        session = self._get_session()
        session.executor.check()
        await session.executor.call(partial(self._deliver, session, body, headers))

    async def _deliver(self, session: ClientSession, body: bytes, headers: Headers) -> None:
        # Not `session.ready()`: running tasks are still awaited while the client closes.
        session.driver.check(session.channel)
        now = session.driver.clock.utc()
        notification = verify(body, headers, self._secrets, now / SECOND)
        if not self._seen.holds(notification.id, now):
            self._seen.add(notification.id, now)
            self._handle(session, notification)
        # After the poll was asked for, since no poll waits for a disk; and for a duplicate too,
        # since the first may not have been acknowledged.
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
                "A genuine notification of the vendor's is not understood: %s. It and others like "
                "it are acknowledged; tasks are asked for as without webhooks.",
                notification.flaw,
            )
