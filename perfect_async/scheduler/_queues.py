"""Queue registrations and uploads of pictures, and queries.

One call registers many files and costs one request of the window. The first one holds 20, and each
full call that is accepted allows the next one twice as many, up to 80. Where the vendor refuses so
many, fewer are tried. The bytes go to another host and cost no request (contract: The flow of one
picture). Neither step spends units, so both are repeated when they fail.

Queries (templates, units, prices, history, delete) are not jobs. They use the same window. All
times are integer microseconds.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

import attrs

from perfect_async import events as ev
from perfect_async._recent import Recent
from perfect_async._time import NEVER, SECOND
from perfect_async.errors import BadAnswer, JobRefused, PerfectError, RateLimited
from perfect_async.models import FILES_PER_CALL
from perfect_async.scheduler._job import JobState, ScheduledJob

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINGER = SECOND // 10
"""How long a registration waits for more files."""
_MOST_FAILURES: Final = 6
_EXPECTED: Final = SECOND
"""How long the answer that may allow more files is waited for. A call may hang for much longer."""
_MOST_UPLOADS = 24
"""The number of concurrent uploads: the other host may be slow, and each holds a piece of a
picture in memory.
"""
_URGENT: Final = 60 * SECOND
"""How long an urgent query may have no answer before it ends, since creations wait for it."""
_LEAST_FILES: Final = 5_000
"""The number of newest file ids that are remembered at least, to find one that the vendor gives
twice. At most twice as many are.
"""
_LONGEST_PAUSE = 30 * SECOND
_DOUBLINGS = 10
"""How often a pause doubles at most. The first one is half a second."""

Prepared: TypeAlias = tuple[list[ScheduledJob], list[tuple[ScheduledJob, PerfectError]]]
"""Jobs that became ready, and jobs that ended with their errors."""


class UploadQueue:
    """The jobs whose pictures are not at the vendor yet.

    A further picture of a job (`ScheduledJob.parts`) waits like a job of its own, and its end is
    the end of its job. `files_per_call` is how many files one registration holds at first. It is
    doubled when a full call is accepted, until a size that was never accepted fails, and halved
    when the vendor refuses a size that was accepted before. Where the universal path is missing,
    each feature has its own registrations. `waiting` are the pictures without a registration.
    `under_way` is how many are being prepared. `unready` are the refs of the jobs that have
    pictures here.
    """

    def __init__(self, files_per_call: int) -> None:
        # The files of the next call, the most that were accepted, and whether more are tried.
        self._files = self._accepted = files_per_call
        self._grows = True
        # When the last call left.
        self._registered_at = 0
        self._universal = True
        self.waiting: deque[ScheduledJob] = deque()
        self._since = 0
        self._registering: dict[int, tuple[ScheduledJob, ...]] = {}
        self._sent = 0
        # The number of pictures that are being registered or uploaded, or wait for their upload.
        self.under_way = 0
        self._queued: list[tuple[int, int, ScheduledJob]] = []
        self._uploading: dict[int, ScheduledJob] = {}
        self.unready: set[int] = set()
        # Files that are registered one by one, and the job of each file id of the vendor.
        self._single: set[int] = set()
        self._given: Recent[int] = Recent(_LEAST_FILES)
        # The uploads without an answer since the last answered one, and when the next may start.
        self._troubles = 0
        self._hold = 0

    def __len__(self) -> int:
        return len(self.waiting) + self.under_way

    def _count(self) -> None:
        self.under_way = self._sent + len(self._queued) + len(self._uploading)

    def add(self, job: ScheduledJob, now: int) -> None:
        """Add a job whose pictures must be registered and uploaded."""
        if not self.waiting:
            self._since = now
        self.waiting.extend((job, *job.parts))
        self.unready.add(job.ref)

    def remove(self, jobs: Iterable[ScheduledJob]) -> None:
        """Drop these jobs. Later answers to their requests change nothing."""
        dropped = tuple(jobs)
        if not dropped:
            return
        gone = {each.ref for job in dropped for each in (job, *job.parts)}
        for job in dropped:
            for part in job.parts:
                part.state = JobState.ENDED
        self.unready -= gone
        self._single -= gone
        self.waiting = deque(job for job in self.waiting if job.ref not in gone)
        self._queued = [entry for entry in self._queued if entry[2].ref not in gone]
        heapq.heapify(self._queued)
        self._count()

    def registration(self, now: int, *, partly: bool) -> tuple[tuple[int, ...], str | None] | None:
        """Return the files to register now, and the feature whose path to use.

        The feature is None for the universal path. With `partly` fewer files than one call holds
        are registered as well, and the answer to an earlier call that may allow more files is not
        waited for. Return None if nothing is to be registered now.
        """
        if now < self.registration_at() or not (partly or self._full(now)):
            return None
        first = self.waiting[0]
        feature = None if self._universal else first.kind.feature
        refs: list[int] = []
        if first.ref in self._single:
            return (first.ref,), feature
        for job in self.waiting:
            if (
                job.channel == first.channel
                and feature in {None, job.kind.feature}
                and job.ref not in self._single
            ):
                refs.append(job.ref)
                if len(refs) == self._files:
                    break
        return tuple(refs), feature

    def _full(self, now: int) -> bool:
        """Return whether a call is full, and no answer is expected that may allow more files."""
        learns = self._grows and self._files < FILES_PER_CALL and self._registering
        waits = learns and now < self._registered_at + _EXPECTED
        return len(self.waiting) >= self._files and not waits

    def registration_at(self) -> int:
        """Return when files may be registered, full call or not."""
        if not self.waiting:
            return NEVER
        return self._since if len(self.waiting) >= self._files else self._since + _LINGER

    def upload_at(self) -> int:
        """Return when the next picture may be uploaded."""
        # While the other host does not answer, one upload at a time probes it.
        most = 1 if self._troubles else _MOST_UPLOADS
        if not self._queued or len(self._uploading) >= most:
            return NEVER
        return max(self._queued[0][0], self._hold)

    def next_upload(self) -> int:
        """Return the ref of the job whose picture is uploaded next."""
        return self._queued[0][1]

    def issued(self, command: ev.Register | ev.Upload, now: int) -> None:
        """Record that a registration or an upload is sent."""
        match command:
            case ev.Register():
                refs, jobs, others = set(command.refs), list[ScheduledJob](), list[ScheduledJob]()
                while len(jobs) < len(refs):
                    job = self.waiting.popleft()
                    (jobs if job.ref in refs else others).append(job)
                self.waiting.extendleft(reversed(others))
                self._registering[command.number] = tuple(jobs)
                self._sent += len(jobs)
                self._since = self._registered_at = now
                for job in jobs:
                    job.move(command, JobState.REGISTERING)
            case ev.Upload():
                _, _, job = heapq.heappop(self._queued)
                self._uploading[command.number] = job
                job.move(command, JobState.UPLOADING)
            case _:
                assert_never(command)
        self._count()

    def on_response(self, command: ev.Register | ev.Upload, event: ev.Answer, now: int) -> Prepared:
        """Process the answer to `command`; return the jobs that are ready or ended by it."""
        uploaded, failed = self._responded(command, event, now)
        jobs = [job.whole or job for job in uploaded]
        ready = [job for job in jobs if job.uploaded]
        for job in ready:
            job.move(event, JobState.READY)
        # The failure of one picture ends its job, and a job ends once.
        ended = {(job.whole or job).ref: (job.whole or job, error) for job, error in failed}
        self.remove(job for job, _ in ended.values())
        self.unready.difference_update(job.ref for job in ready)
        self._count()
        return ready, list(ended.values())

    def _responded(self, command: ev.Register | ev.Upload, event: ev.Answer, now: int) -> Prepared:
        if isinstance(command, ev.Register):
            # Jobs that ended meanwhile (cancelled, or the client closed) are left out.
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
    ) -> Prepared:
        match event:
            case ev.Registered():
                self._fitted(len(command.refs))
                return self._granted(jobs, command, event, now)
            case ev.Refused(status=404) if command.feature is None:
                self._universal = False
            case ev.Refused() | ev.NoAnswer() if len(command.refs) > self._accepted:
                # So many were never accepted, and may be the reason: no call holds more again.
                self._files, self._grows = min(self._files, self._accepted), False
            case ev.Refused() if len(command.refs) > 1:
                # There are too many for one call, or one of them is refused: try fewer at once.
                self._files = max(1, min(self._files, len(command.refs) // 2))
            case ev.Refused() | ev.KeyRefused():
                # The file is refused, and not the number of files.
                self._files = self._accepted
                return [], self._ended(jobs, event)
            case ev.NotSent() | ev.NoAnswer():
                # An outage is not the fault of the pictures, so only the first one counts it.
                if jobs:
                    jobs[0].failures += 1
                    if jobs[0].failures >= _MOST_FAILURES:
                        self._again(jobs[1:], event, now)
                        return [], self._ended(jobs[:1], event)
            case _:
                pass
        return self._again(jobs, event, now)

    def _fitted(self, count: int) -> None:
        """Record that `count` files were accepted in one call; after a full call try more."""
        self._accepted = max(self._accepted, count)
        if self._grows and count == self._files == self._accepted:
            self._files = min(2 * count, max(FILES_PER_CALL, count))

    def _granted(
        self, jobs: list[ScheduledJob], command: ev.Register, event: ev.Registered, now: int
    ) -> Prepared:
        """Queue the uploads; register files again whose id was given before, one by one.

        Two files under one id would be one picture, since the later upload replaces the earlier
        one.
        """
        ids = {ref: grant.file_id for ref, grant in zip(command.refs, event.grants, strict=True)}
        counts = Counter(ids.values())
        repeated: list[ScheduledJob] = []
        for job in jobs:
            if counts[ids[job.ref]] > 1 or self._given.get(ids[job.ref], job.ref) != job.ref:
                job.failures += 1
                repeated.append(job)
            else:
                job.move(event, JobState.REGISTERED)
                heapq.heappush(self._queued, (now, job.ref, job))
        for ref, file_id in ids.items():
            self._given.put(file_id, self._given.get(file_id, ref))
        hopeless = [job for job in repeated if job.failures >= _MOST_FAILURES]
        error = BadAnswer("The vendor repeatedly gave one file id to several pictures.")
        again = [job for job in repeated if job.failures < _MOST_FAILURES]
        self._single.update(job.ref for job in again)
        self._single.difference_update(job.ref for job in jobs if job not in again)
        if again:
            self._again(again, event, now)
        return [], [(job, error) for job in hopeless]

    def _uploaded(self, job: ScheduledJob, event: ev.Answer, now: int) -> Prepared:
        if job.state is not JobState.UPLOADING:
            return [], []
        match event:
            case ev.Uploaded():
                job.failures = 0
                job.move(event, JobState.UPLOADED)
                return [job], []
            case ev.Refused(error=JobRefused()):
                return [], self._ended([job], event)
            case ev.Refused():
                # The signed URL is no longer valid (it expires after two hours): register again.
                job.failures += 1
                if job.failures >= _MOST_FAILURES:
                    return [], self._ended([job], event)
                return self._again([job], event, now)
            case _:
                job.failures += 1
                if job.failures >= _MOST_FAILURES:
                    return [], self._ended([job], event)
                job.move(event, JobState.REGISTERED)
                # It goes behind the uploads that were not tried yet.
                heapq.heappush(self._queued, (now, job.ref, job))
                return [], []

    def _again(self, jobs: list[ScheduledJob], event: ev.Answer, now: int) -> Prepared:
        """Put jobs back at the head of the waiting ones, in their order."""
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
    """One query, which was added at `since`.

    A query that `repeats` may be sent twice. An `urgent` one is sent before earlier ones and before
    any creation, and ends after a minute, since creations wait for it. A `lasting` one is also sent
    while its channel closes. `error` is its last failure.
    """

    ref: int
    channel: int
    since: int
    repeats: bool = True
    urgent: bool = False
    lasting: bool = False
    failures: int = 0
    error: PerfectError | None = None


class QueryQueue:
    """The queries that are `waiting`, in the order they were added in, and those under way."""

    def __init__(self) -> None:
        self.waiting: deque[Query] = deque()
        self._known: dict[int, Query] = {}

    def __contains__(self, ref: int) -> bool:
        return ref in self._known

    def channel(self, ref: int) -> int:
        """Return the channel of query `ref`."""
        return self._known[ref].channel

    def add(self, query: Query) -> None:
        """Add a query."""
        self._known[query.ref] = query
        if query.urgent:
            self.waiting.appendleft(query)
        else:
            self.waiting.append(query)

    def issued(self) -> None:
        """Remove the first waiting query, which is being sent."""
        self.waiting.popleft()

    def forget(self, query: Query) -> None:
        """Forget `query` after its end was reported."""
        del self._known[query.ref]

    def on_response(
        self, command: ev.Ask, event: ev.Answer, now: int, *, again: bool
    ) -> tuple[Query, PerfectError] | None:
        """Process the answer to `command`; return the query and its error if the query failed.

        A query costs only a request, so one whose failure may pass is sent again. `again` is
        whether its channel is open.
        """
        query = self._known[command.ref]
        match event:
            case ev.NotSent() | ev.NoAnswer() | ev.Limited() if (
                (again or query.lasting)
                and query.failures < _MOST_FAILURES
                and now < query.since + (_URGENT if query.urgent else NEVER)
                and (query.repeats or not isinstance(event, ev.NoAnswer))
            ):
                query.failures += 1
                query.error = event.error
                self.waiting.appendleft(query)
                return None
            case ev.NotSent() | ev.NoAnswer() | ev.Limited() | ev.KeyRefused() | ev.Refused():
                return query, event.error
            case _:
                self.forget(query)
                return None

    def expires_at(self) -> int:
        """Return when an urgent query that still waits must end."""
        if not self.waiting:
            return NEVER
        return min((each.since + _URGENT for each in self.waiting if each.urgent), default=NEVER)

    def expired(self) -> tuple[int, PerfectError]:
        """Return the ref of the urgent query that waited too long, and its error."""
        query = min((each for each in self.waiting if each.urgent), key=lambda each: each.since)
        message = f"The limits of the key left no room for a query for {_URGENT // SECOND} s."
        return query.ref, query.error or RateLimited(message)

    def expire(self, ref: int) -> Query:
        """Remove query `ref` from the queue and return it; call `forget` next."""
        query = self._known[ref]
        self.waiting.remove(query)
        return query

    def cancel(self, ref: int) -> None:
        """Do not send query `ref` (again), since its caller no longer waits for it."""
        query = self._known.get(ref)
        if query is None:
            return
        if query in self.waiting:
            self.waiting.remove(query)
            self.forget(query)
        else:
            query.failures = _MOST_FAILURES

    def close(self, channel: int, *, aborted: bool = False) -> list[Query]:
        """Remove and return the waiting queries of `channel`, lasting ones only if `aborted`."""
        for query in self._known.values():
            query.lasting &= query.channel != channel or not aborted
        ended = [each for each in self.waiting if each.channel == channel and not each.lasting]
        self.waiting = deque(each for each in self.waiting if each not in ended)
        return ended
