"""Share a key with the other processes that use it: one step of a scheduler in a ledger.

A step takes the ledger's lock, reads what others wrote, lets the scheduler decide, writes what has
changed, and gives the lock back. Only then is anything performed. Where the ledger cannot be used
any more the process goes on alone, and says so once.

The scheduler counts time from a moment of its own, the ledger from one that all members share. The
two differ by whole slots, so that the slots of all members are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from logging import INFO, WARNING
from pathlib import Path
from typing import Final, TypeVar

import attrs

from perfect_async import events as ev
from perfect_async._api.history import NEAR
from perfect_async._ledger.rows import (
    LedgerStore,
    LedgerUnavailable,
    MemberStatus,
    host_digest,
    key_digest,
    shifted,
)
from perfect_async._log import LOG
from perfect_async._runtime.spec import JobSpec
from perfect_async._time import SECOND, SLOT
from perfect_async.errors import ServiceUnavailable, SubmissionInDoubt
from perfect_async.models import Limits
from perfect_async.scheduler import Scheduler

T = TypeVar("T")

_HURRY: Final = 0.05
"""Seconds to wait for the lock while a reserved poll is due, which may leave without it."""
_PATIENCE: Final = 2.0
"""Seconds to wait for the lock otherwise."""
_OPENING: Final = 5.0
"""Seconds to wait for the lock at first."""
_BEAT: Final = SECOND
"""How often a member that has work reads what others wrote."""
_MARGIN: Final = 10 * SECOND
"""How long before the oldest request of a window the scheduler's time begins."""


@attrs.frozen
class ShareSetting:
    """Where the ledger of a key is: `folder` on this machine (None: the user's), or a Redis `url`.

    `asked_for`: the user named it, so it also holds where the client has a transport of its own.
    """

    folder: str | None = None
    url: str | None = attrs.field(default=None, repr=False)
    asked_for: bool = False


@attrs.frozen
class Submission:
    """What a creation is for, as the ledger tells of it."""

    identity: str
    digest: str
    feature: str


def submission(spec: JobSpec) -> Submission:
    """Return what the ledger tells of the creation for `spec`: no path and no URL."""
    digest = spec.source_digest
    if digest is None:
        # A signed URL: two signatures may lead to two pictures. Or no picture at all.
        text = " ".join(map(str, spec.sources))
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Submission(spec.identity, digest, spec.feature)


def doubt_elsewhere(units: float) -> SubmissionInDoubt:
    """Return the error of a job that equals one whose creation is in doubt in another process."""
    return SubmissionInDoubt(
        "Nothing was sent: another process on this key created a task for the same job, and no "
        "usable answer came back, so a second one may be a second charge. buy_in_doubt=True "
        "consents to it.",
        units_at_stake=units,
    )


class SharedKey:
    """This process's membership in the ledger of one key.

    `describe` says what a creation is for. Between `open` and `close` each decision is a `step`,
    unless `alone`, because the ledger could not be used.
    """

    def __init__(
        self,
        setting: ShareSetting,
        base_url: str,
        key: str,
        scheduler: Scheduler,
        describe: Callable[[ev.Submit], Submission],
    ) -> None:
        self.setting = setting
        self.alone = True
        self._base_url = base_url
        self._key = key
        self._scheduler = scheduler
        self._describe = describe
        self._store: LedgerStore | None = None
        self._origin = 0
        self._intents: dict[int, ev.IntentRow] = {}
        self._changed: list[ev.IntentRow] = []
        self._beat_at = 0
        self._others = 0
        self.opened_at = 0

    def __repr__(self) -> str:
        state = "alone" if self.alone else f"{self._others} others"
        return f"<SharedKey {state}>"

    @property
    def others(self) -> int:
        """How many other members were alive at the last step."""
        return self._others

    async def open(self, limits: Limits, now: Callable[[], int]) -> int | None:
        """Join the ledger; returns how far the scheduler's time is ahead of `now`, which counts
        microseconds of the loop. None: the ledger cannot be used, and the process is alone.

        `limits` are those of the whole key. Raises `ConfigurationError` for a server that cannot
        be used.
        """
        try:
            store = await self._opened(now)
        except LedgerUnavailable as exc:
            self._say_alone(exc)
            return None
        self._store = store
        try:
            snapshot = await store.take(_OPENING)
            if snapshot is None:
                raise LedgerUnavailable("its lock was held for more than 5 s")  # noqa: TRY301
            await store.release()
        except LedgerUnavailable as exc:
            await self.close()
            self._say_alone(exc)
            return None
        except BaseException:
            await self.close()
            raise
        here = now()
        self.opened_at = snapshot.now
        earliest = snapshot.now - round(limits.period * SECOND) - _MARGIN
        self._origin = earliest // SLOT * SLOT
        self._scheduler.share(store.member, os.getpid(), limits)
        self.alone = False
        return snapshot.now - self._origin - here

    async def _opened(self, now: Callable[[], int]) -> LedgerStore:
        setting, host = self.setting, host_digest(self._base_url)
        digest = key_digest(self._key)
        self._key = ""
        if setting.url is not None:
            # Loaded when it is used: redis is an extra.
            from perfect_async._ledger.redis import open_redis  # noqa: PLC0415

            return await open_redis(setting.url, host, digest)
        from perfect_async._ledger.folder import default_folder  # noqa: PLC0415
        from perfect_async._ledger.local import open_local  # noqa: PLC0415

        folder = default_folder() if setting.folder is None else Path(setting.folder)
        return open_local(folder, host, digest, clock=lambda: now() * 1000)

    async def close(self) -> None:
        """Leave the ledger: the others see at once that this process is gone."""
        store, self._store, self.alone = self._store, None, True
        if store is not None:
            await store.aclose()

    # Steps.

    def next_step(self, now: int, *, busy: bool) -> int | None:
        """When the ledger has to be read without anything being due; None where it need not."""
        return max(now, self._beat_at) if busy or self._changed else None

    async def step(self, now: Callable[[], int], *, hurry: bool) -> list[ev.Command] | None:
        """Decide what leaves now, and tell the others; the commands are to be performed.

        `hurry`: a reserved poll is due, which may leave without the lock. None: the lock was not
        had, or nobody knows of what was decided, so that nothing may leave that is not reserved.
        """
        store, scheduler = self._store, self._scheduler
        if store is None:
            raise AssertionError(self)
        commands: list[ev.Command] = []
        try:
            snapshot = await store.take(_HURRY if hurry else _PATIENCE)
            if snapshot is None:
                return None
            try:
                at = now()
                rows = tuple(shifted(row, -self._origin) for row in snapshot.rows)
                scheduler.receive(ev.LedgerRead(rows, snapshot.gone, afresh=snapshot.afresh), at)
                while (command := scheduler.due(at)) is not None:
                    scheduler.receive(ev.Issued(command), at)
                    commands.append(command)
                told = [shifted(row, self._origin) for row in scheduler.changes(at)]
                told += self._told_intents(commands, at + self._origin)
                intents = len(self._changed)
            except BaseException:
                await store.release()
                raise
            kept = await store.publish(told)
        except LedgerUnavailable as exc:
            await self.close()
            scheduler.unshare(now())
            self._say_alone(exc)
            return commands
        self._beat_at = at + _BEAT
        self._others = scheduler.others()
        if kept:
            del self._changed[:intents]
            return commands
        scheduler.tell_again()
        return self._not_sent(commands, now)

    def _told_intents(self, commands: list[ev.Command], now: int) -> list[ev.LedgerRow]:
        for command in commands:
            if isinstance(command, ev.Submit):
                job, member = self._describe(command), self._store.member if self._store else ""
                row = ev.IntentRow(
                    member, command.number, job.identity, job.digest, job.feature, now
                )
                self._intents[command.number] = row
                self._changed.append(row)
        return list(self._changed)

    def _not_sent(self, commands: list[ev.Command], now: Callable[[], int]) -> list[ev.Command]:
        """Take back what nobody else knows of; gives what may be performed all the same."""
        kept: list[ev.Command] = []
        error = ServiceUnavailable("The ledger of the key could not be written.", never_sent=True)
        for command in commands:
            if isinstance(command, ev.Settle | ev.Upload):
                kept.append(command)
            else:
                self._scheduler.receive(ev.NotSent(command, error), now())
        return kept

    def submitted(self, command: ev.Submit, event: ev.Answer) -> None:
        """Tell the others at the next step what became of a creation."""
        row = self._intents.pop(command.number, None)
        if row is None or self.alone:
            return
        match event:
            case ev.Accepted():
                row = attrs.evolve(row, state="accepted", task_id=event.task_id)
            case ev.NoAnswer():
                row = attrs.evolve(row, state="doubt")
            case _:
                row = attrs.evolve(row, state="refused")
        self._changed.append(row)

    # What others know.

    async def in_doubt(self, job: Submission) -> bool:
        """Whether another member's creation for `job` came into doubt since this one opened."""
        own = "" if self._store is None else self._store.member
        return any(
            row.state == "doubt" and row.sent >= self.opened_at and row.member != own
            for row in await self._intents_of(job)
        )

    def others_in_doubt(self, feature: str) -> bool:
        """Whether another member has created a task of `feature` lately whose id nobody knows."""
        return not self.alone and self._scheduler.others_in_doubt(feature, 2 * NEAR)

    async def running(self, job: Submission) -> str | None:
        """Return the task that any member created for `job` lately, None where there is none."""
        accepted = [row for row in await self._intents_of(job) if row.task_id]
        return max(accepted, key=lambda row: row.sent).task_id if accepted else None

    async def _intents_of(self, job: Submission) -> list[ev.IntentRow]:
        nothing: tuple[ev.IntentRow | ev.DoneRow, ...] = ()
        found = await self._asked(
            lambda store: store.find_intents(job.identity, job.digest), nothing
        )
        return [row for row in found if isinstance(row, ev.IntentRow)]

    async def knows(self, task_id: str) -> bool:
        """Whether `task_id` is a task of any member."""
        return await self._asked(lambda store: store.known_task(task_id), otherwise=False)

    async def members(self) -> tuple[MemberStatus, ...]:
        """Return all members, this one too; none where the process is alone."""
        return await self._asked(lambda store: store.members(), ())

    async def _asked(self, ask: Callable[[LedgerStore], Awaitable[T]], otherwise: T) -> T:
        """Return what the store says, or `otherwise` where it cannot be asked."""
        if self._store is None:
            return otherwise
        try:
            return await ask(self._store)
        except LedgerUnavailable:
            # The next step says so.
            return otherwise

    def _say_alone(self, error: LedgerUnavailable) -> None:
        """Say once that nothing is shared from now on, and why."""
        message = (
            "This process does not share its key's request window with others: %s. Run one process "
            "at a time on the key, or give each its share with Limits().split(n) and share=None."
        )
        # A process that is alone on its key misses nothing.
        LOG.log(INFO if error.ordinary and not self._others else WARNING, message, error)
