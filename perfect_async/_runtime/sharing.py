"""Shares a key with other processes: takes the steps of the scheduler in the key's ledger.

A step takes the ledger's lock, reads the rows of other processes, lets the scheduler decide, writes
the changed rows, and releases the lock. Commands are performed after that. If the ledger can no
longer be used, the process goes on alone and logs that once.

The scheduler and the ledger count time from different moments, which differ by whole slots, so that
all members have the same slots.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from logging import INFO, WARNING
from pathlib import Path
from typing import Final, TypeVar

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._api.history import NEAR
from perfect_async._ledger.rows import (
    LedgerStore,
    LedgerUnavailable,
    Snapshot,
    believable,
    host_digest,
    key,
    key_digest,
    shifted,
)
from perfect_async._log import LOG
from perfect_async._runtime.elsewhere import (
    Bought,
    LostCreation,
    Recorded,
    Submission,
    bought,
    recorded,
)
from perfect_async._runtime.spec import JobSpec
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.errors import ConfigurationError, ServiceUnavailable, SubmissionInDoubt
from perfect_async.models import Feature, Limits
from perfect_async.scheduler import Scheduler

T = TypeVar("T")

_SHORT_WAIT: Final = 0.05
"""Seconds to wait for the lock while a reserved poll is due, which may leave without the lock."""
_LONGEST_WAIT: Final = 2.0
"""Seconds to wait for the lock otherwise, at most until the next reserved poll."""
_OPENING_WAIT: Final = 5.0
"""Seconds to wait for the lock when the ledger is opened."""
_HEARTBEAT: Final = SECOND
"""How often a member with work reads the rows of others."""
_LOOKED_EVERY: Final = 2 * SECOND
"""How often a member without work looks whether others have written: they may begin to run tasks,
and a task of a member that dies must be polled within its lease.
"""
_WAITED_FOR: Final = 300_000
"""After this long without the lock, polls of others may seem to be overdue, but have left."""
_UNREAD_FOR: Final = 2 * SECOND
"""After this long without the lock, other members may have polls that they could not write."""
_MEMBERS_KEPT: Final = SECOND // 2
"""How long the list of living members is used before it is read again."""
_MOST_CREATED: Final = 10_000
"""How many tasks have their creation remembered."""
_MARGIN: Final = 10 * SECOND
"""How long before the oldest request of a window the scheduler's time begins."""


@attrs.frozen
class ShareSetting:
    """The place of a key's ledger: a `folder` (None: the user's state folder) or a Redis `url`."""

    folder: str | None = None
    url: str | None = attrs.field(default=None, repr=False)


def submission(spec: JobSpec, gone: str = "") -> Submission:
    """Return the form of `spec` for the ledger, without paths and URLs.

    `gone` is a task of the job whose result the vendor no longer has.
    """
    options = spec.options
    return Submission(
        spec.identity, _digest(spec), spec.feature, options.once, options.buy_in_doubt, gone
    )


def _digest(spec: JobSpec) -> str:
    """Return the digest that identifies the pictures of `spec`.

    For a `Feature` it covers the parameters and the names of the inputs too.
    """
    # A signed URL counts with its signature, since two signatures may lead to two pictures.
    digests = [each.source_digest or each.signed for each in spec.inputs]
    if not isinstance(spec.job, Feature):
        [digest] = digests
        if digest is None:
            raise AssertionError(spec)
        return digest
    roles = [[each.name, each.index] for each in spec.job.inputs]
    text = json.dumps([spec.job.params_json, roles, digests])
    return hashlib.sha256(text.encode()).hexdigest()


def doubt_elsewhere(units: float) -> SubmissionInDoubt:
    """Return the error of a job whose equal is in doubt in another process."""
    return SubmissionInDoubt(
        "Nothing was sent: another process on this key created a task for the same job and got no "
        "usable answer, so creating it again may be a second charge.",
        units_at_stake=units,
    )


def _whole_slots(microseconds: int) -> int:
    return round(microseconds / SLOT) * SLOT


class SharedKey:
    """This process's membership in the ledger of one key.

    `describe` returns the job of a creation. `give_way` is called with the number of a job that is
    not created because another process has bought it. Between `open` and `close` each decision is a
    `step`, unless `alone` is True because the ledger cannot be used.
    """

    def __init__(
        self,
        setting: ShareSetting,
        base_url: str,
        key: str,
        scheduler: Scheduler,
        describe: Callable[[ev.Submit], Submission],
        *,
        give_way: Callable[[int], None],
    ) -> None:
        self.setting = setting
        self.alone = True
        self._base_url = base_url
        self._key = key
        self._scheduler = scheduler
        self._describe = describe
        self._give_way = give_way
        self._store: LedgerStore | None = None
        # The scheduler's time minus the loop's, and the ledger's time minus the scheduler's.
        self._offset = self._origin = 0
        # Returns the ledger's time.
        self._now: Callable[[], int] = lambda: 0
        self._intents: dict[int, ev.IntentRow] = {}
        # The creations of the tasks that run in this process, by task.
        self._created: dict[str, ev.IntentRow] = {}
        self._changed: list[ev.IntentRow | ev.DoneRow] = []
        # When the living members were read, and when each of them wrote last.
        self._living_at: tuple[int, dict[str, int]] = -NEVER, {}
        self._stepped_at = self._looked_at = -_HEARTBEAT
        # Since when the lock has been tried for in vain.
        self._tried_since = NEVER
        self._held: ev.SharedLimits | None = None
        self.opened_at = 0

    def __repr__(self) -> str:
        state = "alone" if self.alone else f"{self._scheduler.others()} others"
        return f"<SharedKey {state}>"

    async def open(self, limits: Limits, now: Callable[[], int]) -> int | None:
        """Join the ledger, and return how far the scheduler's time is ahead of `now`.

        `now` returns the loop's time in microseconds, and `limits` are those of the whole key. None
        means that the ledger cannot be used, so that the process is alone. Raises
        `ConfigurationError` for a Redis server that cannot be used.
        """
        try:
            store = await self._opened(now)
        except LedgerUnavailable as exc:
            self._log_alone(exc)
            return None
        self._store = store
        try:
            snapshot = await store.take(_OPENING_WAIT)
            if snapshot is None:
                if self.setting.url is not None:
                    raise ConfigurationError(  # noqa: TRY301 - closes the store below
                        "The Redis server of `share` stopped answering while the client opened. "
                        "Open the client again once the server answers."
                    )
                held = "its lock was held for more than 5 s"
                raise LedgerUnavailable(held)  # noqa: TRY301 - as above
            here = now()
            await store.release()
        except LedgerUnavailable as exc:
            await self.close()
            self._log_alone(exc)
            return None
        except BaseException:
            await self.close()
            raise
        self.opened_at = snapshot.now
        earliest = snapshot.now - round(limits.period * SECOND) - _MARGIN
        ahead = _whole_slots(snapshot.now - here)
        self._offset = ahead - earliest // SLOT * SLOT
        self._origin = ahead - self._offset
        # Over Redis, members may be on other machines, and their rows do not say on which.
        one_machine = self.setting.url is None
        self._scheduler.share(store.member, os.getpid(), limits, same_network=one_machine)
        self._held = self._scheduler.shared_limits()[0]
        self.alone = False
        self._now = lambda: now() + self._offset + self._origin
        return self._offset

    async def _opened(self, now: Callable[[], int]) -> LedgerStore:
        setting, host = self.setting, host_digest(self._base_url)
        digest = key_digest(self._key)
        self._key = ""
        if setting.url is not None:
            # Loaded only when it is used, since redis is an extra.
            from perfect_async._ledger.redis import open_redis  # noqa: PLC0415

            return await open_redis(setting.url, host, digest)
        from perfect_async._ledger.folder import default_folder  # noqa: PLC0415
        from perfect_async._ledger.local import open_local  # noqa: PLC0415

        folder = default_folder() if setting.folder is None else Path(setting.folder)
        return open_local(folder, host, digest, clock=lambda: now() * 1000)

    async def close(self) -> None:
        """Leave the ledger; the other members notice it at once."""
        store, self._store, self.alone = self._store, None, True
        if store is not None:
            await store.aclose()

    async def leave(self, now: Callable[[], int]) -> None:
        """Write which tasks have ended, so that no member polls them, and leave the ledger."""
        store = self._store
        try:
            if store is not None and (snapshot := await store.take(_SHORT_WAIT)) is not None:
                at = now()
                self._read(snapshot, at)
                await store.publish([*self._changes(at), *self._changed])
        except LedgerUnavailable as exc:
            LOG.debug("The last step in the ledger failed: %s.", exc)
        finally:
            await self.close()

    # Steps.

    def next_step(self, now: int, *, busy: bool) -> int:
        """Return when a step is needed though no command is due, or a look if nothing is `busy`.

        Reserved polls of others that are overdue are commands, so `due` tells of these.
        """
        if busy or self._changed:
            return max(now, self._stepped_at + _HEARTBEAT)
        looks_at = max(self._looked_at, self._stepped_at) + _LOOKED_EVERY
        return max(now, min(looks_at, self._renewal_at()))

    def _renewal_at(self) -> int:
        return NEVER if self._store is None else self._stepped_at + self._store.renewed_every

    async def look(self, now: int) -> bool:
        """Return whether a member without work needs a step: for news, of its own or of others."""
        self._looked_at = now
        # The next step logs a ledger that cannot be used.
        if self._changed or now >= self._renewal_at():
            return True
        return await self._asked(lambda store: store.has_news(), otherwise=True)

    def tried_for(self, now: int) -> int:
        """Return for how many microseconds the lock has been tried for in vain."""
        return max(0, now - self._tried_since)

    async def step(self, now: Callable[[], int], *, hurry: bool) -> list[ev.Command] | None:
        """Decide which commands leave now, write them to the ledger, and return them.

        The caller performs them. `hurry`: a reserved poll is due, which may leave without the lock.
        None means that the lock could not be taken, so that only reserved polls may leave.
        """
        store, scheduler = self._store, self._scheduler
        if store is None:
            raise AssertionError(self)
        commands: list[ev.Command] = []
        try:
            self._tried_since = min(self._tried_since, now())
            snapshot = await self._taken(store, now, hurry=hurry)
            if snapshot is None:
                return None
            try:
                self._read(snapshot, now())
                if not await self._decide(store, commands, now):
                    await store.release()
                    scheduler.changes(now())
                    scheduler.publish_again()
                    # The caller tries again at once.
                    await anyio.sleep(_SHORT_WAIT)
                    return self._not_sent(commands, now)
                at = now()
                published = self._changes(at)
                published += self._with_intents(commands, at + self._origin)
                intents = len(self._changed)
            except BaseException:
                await store.release()
                raise
            try:
                kept = await store.publish(published)
            except LedgerUnavailable:
                raise
            except BaseException:
                # No command is performed after this, and `leave` writes that none was sent.
                scheduler.publish_again()
                self._not_sent(commands, now)
                raise
        except LedgerUnavailable as exc:
            await self.close()
            self._log_alone(exc)
            scheduler.unshare(now())
            return commands
        self._stepped_at = at
        self._log_limits()
        if kept:
            del self._changed[:intents]
            return commands
        scheduler.publish_again()
        return self._not_sent(commands, now)

    async def _decide(
        self, store: LedgerStore, commands: list[ev.Command], now: Callable[[], int]
    ) -> bool:
        """Add the commands that leave now to `commands`, while the ledger is locked.

        A job with the option `once` is not created if another process has bought it. False means
        that the ledger could not be asked about that, so that no command may leave.
        """
        scheduler, unbought = self._scheduler, set[int]()
        at = now()
        while (command := scheduler.due(at)) is not None:
            if (
                not isinstance(command, ev.Submit)
                or command.ref in unbought
                or not (job := self._describe(command)).once
            ):
                scheduler.receive(ev.Issued(command), at)
                commands.append(command)
                continue
            try:
                found = await self._found(store, job)
            except LedgerUnavailable:
                return False
            # Time has passed, so another command may be due now, or the job may have ended.
            at = now()
            if found is None:
                unbought.add(command.ref)
            elif scheduler.due(at) == command:
                self._give_way(command.ref)
                scheduler.receive(ev.JobCancelled(command.ref), at)
        return True

    def _read(self, snapshot: Snapshot, at: int) -> None:
        """Give the scheduler the rows of other members; the lock is held."""
        if snapshot.afresh:
            # The clock that all members share may have been set in the meantime.
            self._origin = _whole_slots(snapshot.now - (at - self._offset)) - self._offset
        rows = tuple(
            shifted(row, -self._origin) for row in snapshot.rows if believable(row, snapshot.now)
        )
        # Other members may have sent polls that they could not write. They write them now, as
        # after a loss of the ledger.
        afresh = snapshot.afresh or at - self._tried_since > _UNREAD_FOR
        waited = at - self._tried_since > _WAITED_FOR
        self._tried_since = NEVER
        read = ev.LedgerRead(rows, snapshot.gone, afresh=afresh, waited=waited)
        self._scheduler.receive(read, at)

    def _changes(self, at: int) -> list[ev.LedgerRow]:
        return [shifted(row, self._origin) for row in self._scheduler.changes(at)]

    async def _taken(
        self, store: LedgerStore, now: Callable[[], int], *, hurry: bool
    ) -> Snapshot | None:
        began, within = now(), _SHORT_WAIT
        if not hurry:
            # At most until the next reserved poll, which leaves without the lock.
            reserved = (self._scheduler.reserved_at() - began) / SECOND
            within = min(max(reserved, _SHORT_WAIT), _LONGEST_WAIT)
        snapshot = await store.take(within)
        if snapshot is None and not hurry:
            # A store that is known to be unreachable returns at once.
            await anyio.sleep(max(0.0, _SHORT_WAIT - (now() - began) / SECOND))
        return snapshot

    def _with_intents(self, commands: list[ev.Command], now: int) -> list[ev.LedgerRow]:
        for command in commands:
            if isinstance(command, ev.Submit):
                job = self._describe(command)
                row = ev.IntentRow(
                    self._member, command.number, job.identity, job.digest, job.feature, now
                )
                self._intents[command.number] = row
                self._changed.append(row)
        return list(self._changed)

    def _not_sent(self, commands: list[ev.Command], now: Callable[[], int]) -> list[ev.Command]:
        """Report `commands` as not sent, and return those that need no ledger."""
        kept: list[ev.Command] = []
        error = ServiceUnavailable("The ledger of the key could not be written.", never_sent=True)
        for command in commands:
            if isinstance(command, ev.Settle | ev.Upload):
                kept.append(command)
                continue
            not_sent = ev.NotSent(command, error, unwritten=True)
            if isinstance(command, ev.Submit):
                self.submitted(command, not_sent)
            self._scheduler.receive(not_sent, now())
        return kept

    def submitted(self, command: ev.Submit, event: ev.Answer) -> None:
        """Write the outcome of a creation at the next step."""
        row = self._intents.pop(command.number, None)
        if row is None or self.alone:
            return
        match event:
            case ev.Accepted():
                row = attrs.evolve(row, state="accepted", task_id=event.task_id)
                self._remember(row)
            case ev.NoAnswer():
                row = attrs.evolve(row, state="doubt")
            case _:
                row = attrs.evolve(row, state="refused")
        self._changed.append(row)

    def _remember(self, row: ev.IntentRow) -> None:
        self._created[row.task_id] = row
        if len(self._created) > _MOST_CREATED:
            # Drops the oldest, since a lost task is never removed otherwise.
            del self._created[next(iter(self._created))]

    def adopted(self, found: Bought) -> None:
        """Record that this process polls the task of `found` from now on."""
        if isinstance(found.row, ev.IntentRow):
            self._remember(found.row)

    def failed(self, task_id: str) -> None:
        """Write that the engine failed on this process's task, so that its units were returned."""
        row = self._created.pop(task_id, None)
        if row is not None and not self.alone:
            self._changed.append(attrs.evolve(row, state="refused"))

    def done(self, job: Submission, task_id: str) -> None:
        """Write that this process's task for `job` has succeeded."""
        self._created.pop(task_id, None)
        if not self.alone:
            row = ev.DoneRow(job.identity, job.digest, job.feature, task_id, self._now())
            self._changed.append(row)

    def intent(self, number: int) -> str:
        """Return the key of the ledger's row for the creation `number`; empty if it has none."""
        row = self._intents.get(number)
        return "" if row is None else key(row)

    # Questions to the ledger.

    async def bought(self, job: Submission) -> Bought | None:
        """Return the purchase of `job` by any process, this one included.

        None means that no process is known to have bought it. `step` asks again under the lock, and
        that answer is final.
        """
        return await self._asked(lambda store: self._found(store, job), None)

    async def recorded(self, creation: LostCreation, age: int) -> Recorded:
        """Return the task that the ledger names for a creation of a former process.

        It was sent `age` microseconds ago. The caller polls a task that is certain from now on.
        """
        found = await self._asked(lambda store: self._recorded(store, creation, age), Recorded())
        if found.row is not None:
            self._remember(found.row)
        return found

    async def _recorded(self, store: LedgerStore, creation: LostCreation, age: int) -> Recorded:
        rows = await store.find_intents(creation.job.identity, creation.job.digest)
        return recorded(creation, rows, self._now() - age)

    async def is_active(self, member: str) -> bool:
        """Return whether `member` wrote to the ledger lately, as a member with a task does."""
        seen = await self._asked(lambda store: self._living(store, {member}), dict[str, int]())
        return self._now() - seen.get(member, -NEVER) < ev.SILENT_AFTER

    async def _living(self, store: LedgerStore, wanted: set[str]) -> dict[str, int]:
        """Return the members that have neither left nor died, and when each wrote last.

        The answer is at most half a second old. If a `wanted` member is not in it, the members are
        read again, since that one may be new.
        """
        at, living = self._living_at
        if self._now() >= at + _MEMBERS_KEPT or not wanted <= living.keys():
            members = await store.members()
            at = self._now()
            living = {each.member: at - each.age for each in members}
            self._living_at = at, living
        return living

    async def _found(self, store: LedgerStore, job: Submission) -> Bought | None:
        rows = {key(row): row for row in await store.find_intents(job.identity, job.digest)}
        # Rows of this process that were not written yet are newer.
        mine = [r for r in self._changed if (r.identity, r.digest) == (job.identity, job.digest)]
        rows.update({key(row): row for row in mine})
        sent = {
            r.member for r in rows.values() if isinstance(r, ev.IntentRow) and r.state == "sent"
        }
        living = await self._living(store, sent) if sent else {}
        return bought(job, rows.values(), living, self._now())

    @property
    def _member(self) -> str:
        return "" if self._store is None else self._store.member

    async def in_doubt(self, job: Submission) -> bool:
        """Return whether another member's creation for `job` is in doubt since this one opened.

        Raises `ServiceUnavailable` if the ledger cannot be asked, so that nothing is created.
        """
        store = self._store
        if store is None:
            return False
        try:
            rows = await store.find_intents(job.identity, job.digest)
        except LedgerUnavailable as exc:
            raise ServiceUnavailable(
                f"The ledger of the key could not be read: {exc}.", never_sent=True
            ) from exc
        return any(
            isinstance(row, ev.IntentRow)
            and row.state == "doubt"
            and row.sent >= self.opened_at
            and row.member != store.member
            for row in rows
        )

    def others_in_doubt(self, feature: str) -> bool:
        """Return whether another member lately created a task of `feature` whose id is unknown."""
        return not self.alone and self._scheduler.others_in_doubt(feature, 2 * NEAR)

    async def knows(self, task_id: str) -> bool:
        """Return whether `task_id` is a task of any member."""
        return await self._asked(lambda store: store.known_task(task_id), otherwise=False)

    async def _asked(self, ask: Callable[[LedgerStore], Awaitable[T]], otherwise: T) -> T:
        """Return the store's answer, or `otherwise` if it cannot be asked."""
        if self._store is None:
            return otherwise
        try:
            return await ask(self._store)
        except LedgerUnavailable:
            # The next step logs it.
            return otherwise

    def _log_limits(self) -> None:
        """Log once that other members have stricter settings, which hold for this process too."""
        own, held = self._scheduler.shared_limits()
        if held == self._held:
            return
        self._held = held
        if held != own:
            LOG.info(
                "Another process on this key has other settings. This one has %s. While both run, "
                "the strictest of each hold: %s.",
                _settings(own),
                _settings(held),
            )

    def _log_alone(self, error: LedgerUnavailable) -> None:
        """Log once that the key is not shared from now on, and why."""
        message = (
            "This process does not share its key's request window with others: %s. Run one process "
            "at a time on the key, or give each its share with Limits().split(n) and share=None."
        )
        # A process that is alone on its key needs no warning.
        ordinary = error.ordinary and not self._scheduler.others()
        LOG.log(INFO if ordinary else WARNING, message, error)


def _settings(limits: ev.SharedLimits) -> str:
    period, lease = limits.period / SECOND, limits.lease / SECOND
    return (
        f"{limits.requests} requests in {period:g} s, {limits.per_second} a second, and a lease of "
        f"{lease:g} s"
    )
