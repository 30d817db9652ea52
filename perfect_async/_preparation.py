"""From a job to a picture at the vendor: registering files together, then uploading each.

One call registers up to 20 files and costs one request of the window, so a picture costs a twentieth of
one here; the bytes go to another host and cost none (contract: The flow of one picture). Neither spends
units, so both are simply done again when they fail. All times are integer microseconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, TypeAlias, assert_never

from perfect_async import events as ev
from perfect_async._evidence import SECOND
from perfect_async._jobs import Job, State
from perfect_async.errors import JobRefused, PerfectError

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINGER = SECOND // 10
"""How long a registration waits for company."""
_MOST_FAILURES = 6
_MOST_UPLOADS = 6
"""Uploads at once: the other host may be slow, and each holds a piece of a picture in memory."""

News: TypeAlias = tuple[list[Job], list[tuple[Job, PerfectError]]]
"""Jobs that became ready, and jobs that ended with why."""


class Preparation:
    """The jobs whose pictures are not at the vendor yet.

    `files_per_call` is how many files one registration holds at first; it is halved when the vendor
    refuses that many, and where the universal path is missing each feature registers for itself.
    """

    def __init__(self, files_per_call: int) -> None:
        self._files = self._files_most = files_per_call
        self._universal = True
        self._waiting: deque[Job] = deque()
        self._since = 0
        self._registering: dict[int, tuple[Job, ...]] = {}
        self._queued: list[tuple[int, int, Job]] = []
        self._uploading: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._waiting) + self.under_way

    @property
    def under_way(self) -> int:
        """Pictures that are being registered or uploaded, or are between the two."""
        registering = sum(len(jobs) for jobs in self._registering.values())
        return registering + len(self._queued) + len(self._uploading)

    def add(self, job: Job, now: int) -> None:
        """A job whose picture must be registered and uploaded."""
        if not self._waiting:
            self._since = now
        self._waiting.append(job)

    def remove(self, jobs: Iterable[Job]) -> None:
        """Nothing more is done for these; what is under way ends unheard."""
        gone = {job.ref for job in jobs}
        self._waiting = deque(job for job in self._waiting if job.ref not in gone)
        self._queued = [entry for entry in self._queued if entry[2].ref not in gone]
        heapq.heapify(self._queued)

    def registration(self, now: int, *, partly: bool) -> tuple[tuple[int, ...], str | None] | None:
        """The files to register now and the feature whose path to use, None for the universal one.

        `partly`: fewer files than one call holds are worth a call.
        """
        full = len(self._waiting) >= self._files
        if not self._waiting or not (full or (partly and now >= self._since + _LINGER)):
            return None
        first = self._waiting[0]
        feature = None if self._universal else first.feature
        refs: list[int] = []
        for job in self._waiting:
            if job.lane == first.lane and feature in {None, job.feature}:
                refs.append(job.ref)
                if len(refs) == self._files:
                    break
        return tuple(refs), feature

    def upload(self, now: int) -> int | None:
        """The picture to upload now."""
        if self._queued and self._queued[0][0] <= now and len(self._uploading) < _MOST_UPLOADS:
            return self._queued[0][1]
        return None

    def wakes(self) -> list[int]:
        """When there may be something to do without news."""
        times = [self._since + _LINGER] if self._waiting else []
        if self._queued and len(self._uploading) < _MOST_UPLOADS:
            times.append(self._queued[0][0])
        return times

    def issued(self, command: ev.Register | ev.Upload, now: int) -> None:
        """A registration or an upload leaves."""
        match command:
            case ev.Register():
                refs = set(command.refs)
                self._registering[command.number] = jobs = tuple(
                    job for job in self._waiting if job.ref in refs
                )
                self._waiting = deque(job for job in self._waiting if job.ref not in refs)
                self._since = now
                for job in jobs:
                    job.move(command, State.REGISTERING)
            case ev.Upload():
                _, _, job = heapq.heappop(self._queued)
                self._uploading[command.number] = job
                job.move(command, State.UPLOADING)
            case _:
                assert_never(command)

    def hear(self, event: ev.Answer, now: int) -> News:
        """A registration or an upload ended."""
        command = event.command
        if isinstance(command, ev.Upload):
            return self._uploaded(self._uploading.pop(command.number), event, now)
        # Jobs that ended meanwhile (withdrawn, the client closed) are no longer registering.
        jobs = self._registering.pop(command.number)
        return self._registered([job for job in jobs if job.state is State.REGISTERING], event, now)

    def _registered(self, jobs: list[Job], event: ev.Answer, now: int) -> News:
        match event:
            case ev.Registered():
                for job in jobs:
                    job.move(event, State.REGISTERED)
                    heapq.heappush(self._queued, (now, job.ref, job))
                return [], []
            case ev.Refused(status=404) if self._universal and event.command.feature is None:  # type: ignore[union-attr]
                self._universal = False
                return self._again(jobs, event, now)
            case ev.Refused(status=400 | 413 | 422) if len(jobs) > 1:
                self._files = max(1, min(self._files, len(jobs)) // 2)
                return self._again(jobs, event, now)
            case ev.Refused() | ev.KeyRefused():
                # It was the file, not the number of them.
                self._files = self._files_most
                return [], self._ended(jobs, event)
            case ev.Limited():
                return self._again(jobs, event, now)
            case _:
                return self._retried(jobs, event, now)

    def _uploaded(self, job: Job, event: ev.Answer, now: int) -> News:
        if job.state is not State.UPLOADING:
            return [], []
        match event:
            case ev.Uploaded():
                job.failures = 0
                job.move(event, State.READY)
                return [job], []
            case ev.Refused(error=JobRefused()):
                return [], self._ended([job], event)
            case ev.Refused():
                # The signed URL no longer serves (it lives two hours): register again.
                return self._retried([job], event, now)
            case _:
                job.failures += 1
                if job.failures >= _MOST_FAILURES:
                    return [], self._ended([job], event)
                job.move(event, State.REGISTERED)
                pause = SECOND * 2 ** (job.failures - 1) // 2
                heapq.heappush(self._queued, (now + pause, job.ref, job))
                return [], []

    def _retried(self, jobs: list[Job], event: ev.Answer, now: int) -> News:
        for job in jobs:
            job.failures += 1
        ended = self._ended([job for job in jobs if job.failures >= _MOST_FAILURES], event)
        ready, _ = self._again([job for job in jobs if job.failures < _MOST_FAILURES], event, now)
        return ready, ended

    def _again(self, jobs: list[Job], event: ev.Answer, now: int) -> News:
        """Back to the head of those that wait, in their order."""
        for job in jobs:
            job.move(event, State.WAITING)
        self._waiting.extendleft(reversed(jobs))
        self._since = now - _LINGER
        return [], []

    @staticmethod
    def _ended(jobs: list[Job], event: ev.Answer) -> list[tuple[Job, PerfectError]]:
        error = getattr(event, "error", None)
        return [(job, error) for job in jobs if isinstance(error, PerfectError)]
