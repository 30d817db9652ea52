"""From a job to a picture at the vendor: registering files together, then uploading each.

One call registers up to 20 files and costs one request of the window, so a picture costs a
twentieth of one here; the bytes go to another host and cost none (contract: The flow of one
picture). Neither spends units, so both are simply done again when they fail. All times are integer
microseconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

import attrs

from perfect_async import events as ev
from perfect_async._time import NEVER, SECOND
from perfect_async.errors import JobRefused, PerfectError
from perfect_async.scheduler._job import JobState, ScheduledJob

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINGER = SECOND // 10
"""How long a registration waits for company."""
_MOST_FAILURES: Final = 6
_MOST_UPLOADS = 24
"""Uploads at once: the other host may be slow, and each holds a piece of a picture in memory."""
_LONGEST_PAUSE = 30 * SECOND
_DOUBLINGS = 10
"""Pauses double from half a second; more often than this they are at their longest."""

News: TypeAlias = tuple[list[ScheduledJob], list[tuple[ScheduledJob, PerfectError]]]
"""Jobs that became ready, and jobs that ended with why."""


class UploadQueue:
    """The jobs whose pictures are not at the vendor yet.

    `files_per_call` is how many files one registration holds at first; it is halved when the vendor
    refuses that many, and where the universal path is missing each feature registers for itself.
    `waiting` are those that are not registered, `under_way` is how many are on their way to READY.
    """

    def __init__(self, files_per_call: int) -> None:
        self._files = self._files_most = files_per_call
        self._universal = True
        self.waiting: deque[ScheduledJob] = deque()
        self._since = 0
        self._registering: dict[int, tuple[ScheduledJob, ...]] = {}
        self._sent = 0
        # Pictures that are being registered or uploaded, or registered and not uploaded.
        self.under_way = 0
        self._queued: list[tuple[int, int, ScheduledJob]] = []
        self._uploading: dict[int, ScheduledJob] = {}
        # Uploads without an answer since the last that had one, and when the next may leave.
        self._troubles = 0
        self._hold = 0

    def __len__(self) -> int:
        return len(self.waiting) + self.under_way

    def _count(self) -> None:
        self.under_way = self._sent + len(self._queued) + len(self._uploading)

    def add(self, job: ScheduledJob, now: int) -> None:
        """A job whose picture must be registered and uploaded."""
        if not self.waiting:
            self._since = now
        self.waiting.append(job)

    def remove(self, jobs: Iterable[ScheduledJob]) -> None:
        """Nothing more is done for these; what is under way ends unheard."""
        gone = {job.ref for job in jobs}
        self.waiting = deque(job for job in self.waiting if job.ref not in gone)
        self._queued = [entry for entry in self._queued if entry[2].ref not in gone]
        heapq.heapify(self._queued)
        self._count()

    def registration(self, now: int, *, partly: bool) -> tuple[tuple[int, ...], str | None] | None:
        """The files to register now and the feature whose path to use, None for the universal one.

        `partly`: fewer files than one call holds are worth a call.
        """
        if now < self.registration_at() or not (partly or len(self.waiting) >= self._files):
            return None
        first = self.waiting[0]
        feature = None if self._universal else first.kind.feature
        refs: list[int] = []
        for job in self.waiting:
            if job.channel == first.channel and feature in {None, job.kind.feature}:
                refs.append(job.ref)
                if len(refs) == self._files:
                    break
        return tuple(refs), feature

    def registration_at(self) -> int:
        """When files may be registered, if fewer than one call holds are worth it."""
        if not self.waiting:
            return NEVER
        return self._since if len(self.waiting) >= self._files else self._since + _LINGER

    def upload_at(self) -> int:
        """When the next picture may be uploaded."""
        # While the other host answers nothing, one upload at a time finds out when it does.
        most = 1 if self._troubles else _MOST_UPLOADS
        if not self._queued or len(self._uploading) >= most:
            return NEVER
        return max(self._queued[0][0], self._hold)

    def next_upload(self) -> int:
        """The ref of that picture."""
        return self._queued[0][1]

    def issued(self, command: ev.Register | ev.Upload, now: int) -> None:
        """A registration or an upload leaves."""
        match command:
            case ev.Register():
                refs, jobs, others = set(command.refs), list[ScheduledJob](), list[ScheduledJob]()
                while len(jobs) < len(refs):
                    job = self.waiting.popleft()
                    (jobs if job.ref in refs else others).append(job)
                self.waiting.extendleft(reversed(others))
                self._registering[command.number] = tuple(jobs)
                self._sent += len(jobs)
                self._since = now
                for job in jobs:
                    job.move(command, JobState.REGISTERING)
            case ev.Upload():
                _, _, job = heapq.heappop(self._queued)
                self._uploading[command.number] = job
                job.move(command, JobState.UPLOADING)
            case _:
                assert_never(command)
        self._count()

    def on_response(self, command: ev.Register | ev.Upload, event: ev.Answer, now: int) -> News:
        """`command` ended in `event`."""
        news = self._responded(command, event, now)
        self._count()
        return news

    def _responded(self, command: ev.Register | ev.Upload, event: ev.Answer, now: int) -> News:
        if isinstance(command, ev.Register):
            # Jobs that ended meanwhile (withdrawn, the client closed) are no longer registering.
            jobs = self._registering.pop(command.number)
            self._sent -= len(jobs)
            left = [job for job in jobs if job.state is JobState.REGISTERING]
            return self._registered(left, command, event, now)
        if isinstance(event, ev.NotSent | ev.NoAnswer):
            self._troubles += 1
            pause = SECOND * 2 ** min(self._troubles - 1, _DOUBLINGS) // 2
            self._hold = now + min(pause, _LONGEST_PAUSE)
        else:
            self._troubles = 0
        return self._uploaded(self._uploading.pop(command.number), event, now)

    def _registered(
        self, jobs: list[ScheduledJob], command: ev.Register, event: ev.Answer, now: int
    ) -> News:
        match event:
            case ev.Registered():
                for job in jobs:
                    job.move(event, JobState.REGISTERED)
                    heapq.heappush(self._queued, (now, job.ref, job))
                return [], []
            case ev.Refused(status=404) if command.feature is None:
                self._universal = False
            case ev.Refused() if len(command.refs) > 1:
                # Too many for one call, or one of them is not taken: fewer will tell.
                self._files = max(1, min(self._files, len(command.refs) // 2))
            case ev.Refused() | ev.KeyRefused():
                # It was the file, not the number of them.
                self._files = self._files_most
                return [], self._ended(jobs, event)
            case ev.NotSent() | ev.NoAnswer():
                # An outage is not the pictures' fault: the first alone pays for the attempt.
                if jobs:
                    jobs[0].failures += 1
                    if jobs[0].failures >= _MOST_FAILURES:
                        self._again(jobs[1:], event, now)
                        return [], self._ended(jobs[:1], event)
            case _:
                pass
        return self._again(jobs, event, now)

    def _uploaded(self, job: ScheduledJob, event: ev.Answer, now: int) -> News:
        if job.state is not JobState.UPLOADING:
            return [], []
        match event:
            case ev.Uploaded():
                job.failures = 0
                job.move(event, JobState.READY)
                return [job], []
            case ev.Refused(error=JobRefused()):
                return [], self._ended([job], event)
            case ev.Refused():
                # The signed URL no longer serves (it lives two hours): register again.
                job.failures += 1
                if job.failures >= _MOST_FAILURES:
                    return [], self._ended([job], event)
                return self._again([job], event, now)
            case _:
                job.failures += 1
                if job.failures >= _MOST_FAILURES:
                    return [], self._ended([job], event)
                job.move(event, JobState.REGISTERED)
                # Behind those that were not tried yet.
                heapq.heappush(self._queued, (now, job.ref, job))
                return [], []

    def _again(self, jobs: list[ScheduledJob], event: ev.Answer, now: int) -> News:
        """Back to the head of those that wait, in their order."""
        for job in jobs:
            job.move(event, JobState.WAITING)
        self.waiting.extendleft(reversed(jobs))
        self._since = now - _LINGER
        return [], []

    @staticmethod
    def _ended(
        jobs: list[ScheduledJob], event: ev.Answer
    ) -> list[tuple[ScheduledJob, PerfectError]]:
        error = getattr(event, "error", None)
        return [(job, error) for job in jobs if isinstance(error, PerfectError)]


@attrs.define(eq=False)
class Query:
    """One question; `since` is when it came, `repeats` whether it may be asked twice, `urgent`
    whether it leaves before those that came sooner and before any creation, `lasting` whether it is
    asked while its lane closes.
    """

    ref: int
    channel: int
    since: int
    repeats: bool = True
    urgent: bool = False
    lasting: bool = False
    failures: int = 0


class QueryQueue:
    """Those that are `waiting`, in the order in which they came, and those on their way."""

    def __init__(self) -> None:
        self.waiting: deque[Query] = deque()
        self._known: dict[int, Query] = {}

    def __contains__(self, ref: int) -> bool:
        return ref in self._known

    def channel(self, ref: int) -> int:
        """Whose question `ref` is."""
        return self._known[ref].channel

    def add(self, question: Query) -> None:
        """A question came."""
        self._known[question.ref] = question
        if question.urgent:
            self.waiting.appendleft(question)
        else:
            self.waiting.append(question)

    def issued(self) -> None:
        """The first leaves."""
        self.waiting.popleft()

    def forget(self, question: Query) -> None:
        """It was told how it ended."""
        del self._known[question.ref]

    def on_response(
        self, command: ev.Ask, event: ev.Answer, *, again: bool
    ) -> tuple[Query, PerfectError] | None:
        """The question of `command` came back; gives it and why where it ended without an answer.

        Asking costs nothing but the window, so what may pass is asked `again`, while the client is
        open.
        """
        question = self._known[command.ref]
        match event:
            case ev.NotSent() | ev.NoAnswer() | ev.Limited() if (
                (again or question.lasting)
                and question.failures < _MOST_FAILURES
                and (question.repeats or not isinstance(event, ev.NoAnswer))
            ):
                question.failures += 1
                self.waiting.appendleft(question)
                return None
            case ev.NotSent() | ev.NoAnswer() | ev.Limited() | ev.KeyRefused() | ev.Refused():
                return question, event.error
            case _:
                self.forget(question)
                return None

    def withdraw(self, ref: int) -> None:
        """Nobody waits for it: it does not leave if it has not, nor again if it has."""
        question = self._known.get(ref)
        if question is None:
            return
        if question in self.waiting:
            self.waiting.remove(question)
            self.forget(question)
        else:
            question.failures = _MOST_FAILURES

    def close(self, channel: int, *, dropped: bool = False) -> list[Query]:
        """What was not sent of `channel` is not sent; what lasts is not once it is `dropped`."""
        for question in self._known.values():
            question.lasting &= question.channel != channel or not dropped
        ended = [each for each in self.waiting if each.channel == channel and not each.lasting]
        self.waiting = deque(each for each in self.waiting if each not in ended)
        return ended
