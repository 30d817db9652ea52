"""Performs the scheduler's commands: sends the request of each, and returns its answer's event.

Registering, uploading and polling are one request each. Creating a task is billed and has no
idempotency key, so a journal has the intent on the disk before the request is sent.

A creation whose answer is lost is in doubt. If a former process had the answer and could not write
it to its journal, the ledger of the key may have it. Otherwise the unit history lists the tasks
that it may be, but not their pictures, and any of them may belong to another user of the account.
So none is taken, unless the user says that nobody else creates tasks on the account (`sole_user`),
the client has a journal, and only one task is possible. With a journal only one creation is under
way at a time, so that there are few candidates.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final
from weakref import WeakSet

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._api import history, tasks
from perfect_async._api.history import NEAR, HistorySearch, Unresolved
from perfect_async._log import LOG, type_name
from perfect_async._runtime.clock import Clock
from perfect_async._runtime.doubts import ProcessMemory
from perfect_async._runtime.elsewhere import LostCreation
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async._runtime.sharing import SharedKey
from perfect_async._transport.request_log import RequestLog, logged_request
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    JobRefused,
    JournalError,
    PerfectError,
    RequestRefused,
    ServiceUnavailable,
    SubmissionInDoubt,
    quoted,
)

_DISK_TOO_SLOW: Final = 1.0
"""Seconds; a creation that waited longer for the disk is sent in a later slot, since in its own one
it could exceed the limit per second.
"""
_ANSWER_OVERDUE: Final = 4.0
"""Seconds without an answer before the history is read, since the task's lease runs."""
_LOOK_PAUSES: Final = (0.0, 2.0, 4.0)
"""Seconds before each look into the history, since a new task may not be listed yet."""
_LONGEST_LOOK: Final = 15.0
"""Seconds for all looks into the history together, since other creations wait for them."""
_MOST_PAGES: Final = 20

Ask = Callable[[Channel, tasks.Request], Awaitable[tasks.Response]]


async def call(channel: Channel, request: tasks.Request) -> tasks.Response:
    """Send `request` through the transport of `channel`."""
    with logged_request(request.method, request.path, request.task_id) as log:
        return await _answered(channel, request, log)


async def _answered(channel: Channel, request: tasks.Request, log: RequestLog) -> tasks.Response:
    response = await channel.transport.call(request, within=channel.timeouts.request)
    log.status, log.request_id = response.status, response.safe_request_id
    return response


async def register(command: ev.Register, pictures: Sequence[tuple[JobHandle, int]]) -> ev.Answer:
    """Register `pictures` in the order of the command.

    Each is a job and the number of its input; all jobs are of one channel.
    """
    found = [handle.spec.inputs[number].picture for handle, number in pictures]
    facts = [picture.facts for picture in found if picture is not None]
    channel = pictures[0][0].channel
    response = await call(channel, tasks.registration(facts, command.feature))
    event = tasks.read_registration(command, response)
    if isinstance(event, ev.Registered):
        for (handle, number), grant in zip(pictures, event.grants, strict=True):
            handle.registered(number, grant)
    return event


async def upload(command: ev.Upload, handle: JobHandle, number: int) -> ev.Answer:
    """Upload the input `number` of `handle` to the URL of its registration."""
    grant, picture = handle.grants.get(number), handle.spec.inputs[number].picture
    if grant is None or picture is None:
        raise AssertionError(handle)
    timeouts = handle.channel.timeouts
    within = timeouts.video if picture.is_video else timeouts.upload
    await handle.channel.transport.upload(grant, picture.chunks, within=within)
    handle.uploaded(number, grant)
    return ev.Uploaded(command)


async def poll(command: ev.Poll, handle: JobHandle, task_id: str) -> ev.Answer:
    """Ask for the state of `task_id`, the task that `handle` had when the command was issued."""
    spec = handle.spec
    response = await call(handle.channel, tasks.status(spec.feature, task_id))
    event = tasks.read_status(
        command,
        response,
        pictures_only=spec.pictures_only,
        task_id=task_id,
        units=spec.units,
    )
    handle.emit("polled")
    if isinstance(event, ev.EngineFailed):
        handle.failed(task_id)
    return event


async def rescue(command: ev.Rescue, channel: Channel) -> ev.Answer:
    """Ask for the state of another process's task, whose poll is overdue."""
    feature, task_id = command.feature, command.task_id
    response = await call(channel, tasks.status(feature, task_id))
    only = tasks.pictures_only(feature, None)
    return tasks.read_status(command, response, pictures_only=only, task_id=task_id, units=0.0)


def failure_event(command: ev.Request | ev.Upload, error: BaseException) -> ev.Answer:
    """Return the event for `error`, which the transport raised for `command`.

    The error loses its traceback, whose frames hold pictures. An error of an unknown class comes
    from a transport of the user's and must not end other tasks.
    """
    error = error.with_traceback(None)
    match error:
        case ServiceUnavailable(never_sent=True):
            return ev.NotSent(command, error)
        case ServiceUnavailable() | BadAnswer():
            return ev.NoAnswer(command, error)
        case RequestRefused():
            return ev.Refused(command, error, error.status or 0)
        case JobRefused():
            return ev.Refused(command, error, 0)
        case _:
            LOG.error("The transport raised an unexpected error: %s.", type_name(error))
            return ev.NoAnswer(
                command, ServiceUnavailable(f"the transport failed: {type_name(error)}.")
            )


@attrs.define(eq=False)
class _Creation:
    """One creation of `feature` that was sent at `sent` (UTC microseconds) for job `number`.

    `answered`: an answer came, or no answer can come. `lost`: the outcome is unknown. `recorded`
    are tasks that the ledger has of the same job.
    """

    feature: str
    sent: int
    number: int
    lost: bool = False
    recorded: tuple[str, ...] = ()
    answered: anyio.Event = attrs.field(factory=anyio.Event)


@attrs.frozen
class _HistoryAnswer:
    """The history's answer about a creation: its task, or the reason for none, and candidates."""

    found: str | Unresolved | PerfectError
    candidates: tuple[str, ...] = ()


class Submitter:
    """Creates the tasks of one key and host for the clients on `channels`.

    `ask` sends a query before any other request.
    """

    def __init__(
        self, ask: Ask, clock: Clock, channels: Collection[Channel], memory: ProcessMemory
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._channels = channels
        self.memory = memory
        # The ledger, if the key is shared with other processes.
        self.shared: SharedKey | None = None
        # Held by the creation that is under way or being settled.
        self._turn = anyio.Lock()
        self._creations: list[_Creation] = []
        _submitters.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it serves a client that is open."""
        return bool(self._channels)

    def remember(self, task_id: str) -> None:
        """Remember a task of a job of this process, so that it is no candidate for another job."""
        self.memory.tasks.add(task_id)

    def knows(self, task_id: str) -> bool:
        """Return whether a job of this process or of an open journal has, or had, this task."""
        writers = [channel.journal.writer for channel in list(self._channels)]
        return task_id in self.memory.tasks or any(writer.knows(task_id) for writer in writers)

    def in_doubt(self, feature: str, since: int, but: _Creation) -> bool:
        """Return whether a creation of `feature`, other than `but`, is in doubt since `since`."""
        creations = [creation for creation in self._creations if creation is not but]
        numbers = {creation.number for creation in [*creations, but]}
        features = {
            creation.feature
            for creation in creations
            if creation.sent >= since and (creation.lost or not creation.answered.is_set())
        }
        journals = [channel.journal for channel in list(self._channels)]
        for journal in journals:
            features.update(journal.features_in_doubt(since, numbers))
        return feature in features or any(journal.writer.in_doubt(since) for journal in journals)

    async def _is_repeated(self, task_id: str) -> bool:
        """Return whether the vendor has given this id to another known job before."""
        known = any(
            other.knows(task_id)
            for other in _open_submitters()
            # Two test vendors behind transports of the user's may use the same ids.
            if other is self or (other.memory.network and self.memory.network)
        )
        return known or await self._is_known_elsewhere(task_id)

    async def _is_known_elsewhere(self, task_id: str) -> bool:
        """Return whether another process on the key has this task."""
        return self.shared is not None and await self.shared.knows(task_id)

    async def create(self, command: ev.Submit, handle: JobHandle) -> ev.Answer:
        """Send the creation of `handle` and return its outcome."""
        if not handle.entry.persistent:
            with self._tracked(handle, self._clock.utc()) as creation:
                event = await self._sent(command, handle, creation)
                if isinstance(event, ev.NoAnswer):
                    return await self._settled_event(command, handle, creation, event.error)
                return event
        began = self._clock.seconds()
        async with self._turn:
            with self._tracked(handle, self._clock.utc()) as creation:
                try:
                    await handle.entry.creating(self._intent(command))
                except JournalError as exc:
                    return ev.Refused(command, exc, 0)
                if self._clock.seconds() > began + _DISK_TOO_SLOW:
                    # The entry stays, so that the next try need not wait for the disk.
                    handle.entry.written_ahead = True
                    late = ServiceUnavailable("The journal's disk was slow.", never_sent=True)
                    return ev.NotSent(command, late)
                return await self._send_and_settle(command, handle, creation)

    def _intent(self, command: ev.Submit) -> str:
        return "" if self.shared is None else self.shared.intent(command.number)

    async def settle(self, handle: JobHandle, lost: LostCreation) -> str | PerfectError:
        """Return the task of `handle`, or the error that says why it is unknown.

        Its creation was sent by the former process, which did not record the answer in the journal.
        The ledger may have it.
        """
        with self._tracked(handle, lost.sent) as creation:
            creation.lost = True
            creation.answered.set()
            if self.shared is not None:
                age = self._clock.utc() - lost.sent
                recorded = await self.shared.recorded(lost, age)
                if recorded.row is not None:
                    creation.lost = False
                    return recorded.row.task_id
                knows = handle.channel.journal.writer.knows
                creation.recorded = tuple(each for each in recorded.candidates if not knows(each))
            async with self._turn:
                found = await self._settled(handle, creation, None)
            creation.lost = isinstance(found, PerfectError)
            return found

    @contextmanager
    def _tracked(self, handle: JobHandle, sent: int) -> Generator[_Creation]:
        """Track the creation of `handle`; one that is in doubt stays tracked after the block."""
        creation = _Creation(handle.spec.feature, sent, handle.entry.number)
        self._creations.append(creation)
        try:
            yield creation
        finally:
            creation.answered.set()
            near = self._clock.utc() - NEAR
            self._creations = [
                other
                for other in self._creations
                if (other.lost and other.sent >= near) or not other.answered.is_set()
            ]

    async def _send_and_settle(
        self, command: ev.Submit, handle: JobHandle, creation: _Creation
    ) -> ev.Answer:
        """Send the creation, and settle it if no answer comes.

        With `sole_user` the history is read as soon as the answer is overdue.
        """
        answers: list[ev.Answer] = []

        async def answer() -> None:
            answers.append(await self._sent(command, handle, creation))
            group.cancel_scope.cancel()

        async def search() -> None:
            pauses = (_ANSWER_OVERDUE, *_LOOK_PAUSES[1:])
            found = (await self._search_history(handle, creation, pauses)).found
            if isinstance(found, str) and not answers:
                answers.append(self._found(command, found, creation))
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            if handle.channel.sole_user:
                group.start_soon(search)
        silent = ServiceUnavailable("the transport cancelled the request.")
        event = answers[0] if answers else ev.NoAnswer(command, silent)
        if isinstance(event, ev.NoAnswer):
            return await self._settled_event(command, handle, creation, event.error)
        return event

    async def _settled_event(
        self, command: ev.Submit, handle: JobHandle, creation: _Creation, error: PerfectError
    ) -> ev.Accepted | ev.NoAnswer:
        found = await self._settled(handle, creation, error)
        if isinstance(found, str):
            return self._found(command, found, creation)
        creation.lost = True
        return ev.NoAnswer(command, found)

    async def _sent(self, command: ev.Submit, handle: JobHandle, creation: _Creation) -> ev.Answer:
        sources = [source for source in handle.sources if source is not None]
        if len(sources) != len(handle.sources) or handle.spec.job is None:
            raise AssertionError(handle)
        channel, call = handle.channel, tasks.creation(handle.spec.job, sources)
        if not handle.awaited:
            # Its caller has gone while it waited for the disk or for another creation.
            return ev.NotSent(command, ClientClosed("The caller no longer waits for this job."))
        handle.creating(self._clock.seconds())
        creation.lost = True
        event: ev.Answer
        try:
            with logged_request(call.method, call.path) as log:
                event = tasks.read_creation(command, await _answered(channel, call, log))
                log.task_id = event.task_id if isinstance(event, ev.Accepted) else None
            if isinstance(event, ev.Accepted) and await self._is_repeated(event.task_id):
                why = f"the answer names {quoted(event.task_id)}, which is another job's task."
                event = ev.NoAnswer(command, BadAnswer(why))
        except Exception as exc:  # noqa: BLE001 - a transport of the user's may raise anything
            event = failure_event(command, exc)
        finally:
            creation.answered.set()
        creation.lost = isinstance(event, ev.NoAnswer)
        if isinstance(event, ev.Accepted):
            # Remembered at once, so that no concurrent look into the history takes the task.
            self.remember(event.task_id)
        return event

    def _found(self, command: ev.Submit, task_id: str, creation: _Creation) -> ev.Accepted:
        creation.lost = False
        self.remember(task_id)
        return ev.Accepted(command, task_id)

    # Doubt.

    async def _settled(
        self, handle: JobHandle, creation: _Creation, error: PerfectError | None
    ) -> str | SubmissionInDoubt:
        """Return the task of a creation whose answer is lost, or the doubt with its candidates."""
        answer = _HistoryAnswer(ServiceUnavailable(f"no answer came within {_LONGEST_LOOK:g} s."))
        with anyio.move_on_after(_LONGEST_LOOK):
            answer = await self._search_history(handle, creation, _LOOK_PAUSES)
        match answer.found:
            case str() as task_id:
                return task_id
            case Unresolved.NOTHING:
                history = "shows no charge for it so far, but may show one later."
            case Unresolved.AMBIGUOUS:
                history = "does not show which task it is, if any."
            case failure:
                history = f"could not be read: {failure.message}"
        why = "The process ended before an answer came." if error is None else error.message
        return SubmissionInDoubt(
            f"The task's creation was sent and no usable answer came back: {why} The unit history "
            f"{history}",
            request_id=getattr(error, "request_id", None),
            units_at_stake=handle.spec.units,
            # A task of the same job is more likely than the others, which may be of any job.
            candidates=tuple(dict.fromkeys((*creation.recorded, *answer.candidates))),
        )

    async def _search_history(
        self, handle: JobHandle, creation: _Creation, pauses: Iterable[float]
    ) -> _HistoryAnswer:
        """Look after each of `pauses` until the task is found; the vendor may create it late."""
        answer = _HistoryAnswer(Unresolved.NOTHING)
        for pause in pauses:
            await anyio.sleep(pause)
            answer = await self._read_history(handle, creation)
            if answer.found is not Unresolved.NOTHING:
                break
        return answer

    async def _read_history(self, handle: JobHandle, creation: _Creation) -> _HistoryAnswer:
        """Read the unit history, and return its answer about the creation of `handle`."""
        feature, near = handle.spec.feature, creation.sent - NEAR
        search, complete, token = HistorySearch(feature, tasks.FEATURES, creation.sent), False, None
        try:
            for _ in range(_MOST_PAGES):
                response = await self._ask(handle.channel, history.history(token))
                rows, following = history.read_history(response)
                if not search.read(rows) or following in {None, token}:
                    complete = True
                    break
                token = following
        except PerfectError as exc:
            return _HistoryAnswer(exc)
        submitters = _open_submitters()

        def known(task_id: str) -> bool:
            return any(submitter.knows(task_id) for submitter in submitters)

        if search.candidates(known):
            # The tasks of other creations may be listed before their answers come.
            for other in [other for other in self._creations if other is not creation]:
                await other.answered.wait()
        for task_id in search.candidates(known):
            if await self._is_known_elsewhere(task_id):
                self.remember(task_id)
        candidates = search.candidates(known)
        verdict = search.verdict(
            known,
            now=self._clock.utc(),
            others_in_doubt=any(each.in_doubt(feature, near, creation) for each in submitters)
            or (self.shared is not None and self.shared.others_in_doubt(feature)),
        )
        alone = handle.channel.sole_user and handle.entry.persistent and complete
        alone = alone and not creation.recorded
        if isinstance(verdict, str) and not alone:
            verdict = Unresolved.AMBIGUOUS
        return _HistoryAnswer(verdict, candidates)


_submitters: WeakSet[Submitter] = WeakSet()
"""The submitters of all drivers of this process, in all event loops."""


def _open_submitters() -> list[Submitter]:
    """Return the submitters of the open clients of this process."""
    return [submitter for submitter in list(_submitters) if submitter.is_open]
