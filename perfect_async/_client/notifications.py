"""What a client does with the vendor's notifications: believe, remember, and ask for the task.

A notification is hearsay until the task was asked, so whichever comes first, second or never
changes nothing but when we ask (contract: Webhooks).
"""

from __future__ import annotations

from collections.abc import Iterable
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
behind, so a replay must be known for longer. Retries that go on for hours are worth knowing, too.
"""
_PATIENCE: Final = 10.0
"""Seconds for the journal; senders of the scheme wait for 15 to 30, and then try again."""


class WebhookReceiver:
    """`client.webhooks`: where an endpoint takes what the vendor sends."""

    def __init__(self, session: ClientSession, secrets: Secrets) -> None:
        self._session = session
        self._secrets = secrets
        self._seen = TtlSet(_SEEN_FOR)
        self._puzzled = False

    async def deliver(self, body: bytes, headers: Headers) -> None:
        """Take in one notification: the request's raw `body` and all of its `headers`.

        Its task is asked for at once. Returns when it may be acknowledged: what it is about is on
        the disk, if there is a journal. Double, late, early and out of order it is harmless, and so
        is one for a task of somebody else; one that overtakes the answer to its creation is kept
        for ten minutes. Raises `WebhookRejected` for what is not the vendor's or not fresh,
        `JournalError` where the journal is not written within 10 s, and `ClientClosed` once the
        client has closed; the sender tries again.
        """
        self._session.home.check()
        await self._session.home.call(partial(self._deliver, body, headers))

    async def _deliver(self, body: bytes, headers: Headers) -> None:
        session = self._session
        # Not `ready`: while it closes, what still runs is waited for.
        session.driver.check(session.channel)
        now = session.driver.utc()
        notification = verify(body, headers, self._secrets, now / SECOND)
        if not self._seen.holds(notification.id, now):
            self._seen.add(notification.id, now)
            self._take(notification)
        # After the task was woken, since no poll waits for a disk; and for what came twice, too,
        # since the first may not have been acknowledged.
        with anyio.move_on_after(_PATIENCE) as scope:
            await session.channel.journal.writer.flushed()
        if scope.cancelled_caught:
            raise JournalError(f"The journal was not written within {_PATIENCE:g} s.")

    def _take(self, notification: Notification) -> None:
        if notification.task_id is not None and notification.status is not None:
            self._session.driver.notify(notification.task_id)
        elif not self._puzzled:
            self._puzzled = True
            LOG.warning(
                "A genuine notification of the vendor's is not understood: %s. It and others like "
                "it are acknowledged; tasks are asked for as without webhooks.",
                notification.flaw,
            )


def secrets_of(secret: str | Iterable[str] | None) -> Secrets | None:
    """The secrets that a user gave; raises `ConfigurationError` for what is none."""
    return None if secret is None else Secrets(secret)
