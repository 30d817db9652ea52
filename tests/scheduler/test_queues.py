"""Registrations and uploads of pictures, and queries."""

from collections.abc import Callable
from functools import partial

import pytest

from perfect_async import events as ev
from perfect_async._time import NEVER
from perfect_async.errors import JobRefused, PerfectError
from perfect_async.events import TaskKind
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._queues import Query, QueryQueue, UploadQueue
from tests.support.scheduler_harness import grants

SECOND = 1_000_000
SMILE, AVATAR = TaskKind("ai-smile"), TaskKind("ai-avatar")
NO = PerfectError("no")


class UploadHarness:
    def __init__(self, count: int, *, files: int = 20, channels: int = 1) -> None:
        self.uploads = UploadQueue(files)
        self.jobs = {
            ref: ScheduledJob(
                ref, (SMILE, AVATAR)[ref % 2], 1.0, True, ref % channels, JobState.WAITING
            )
            for ref in range(count)
        }
        self.number, self.now = 0, 0
        for job in self.jobs.values():
            self.uploads.add(job, 0)
        self.now = SECOND

    def register(self) -> ev.Register:
        self.now += SECOND
        found = self.uploads.registration(self.now, partly=True)
        assert found is not None
        self.number += 1
        command = ev.Register(self.number, *found)
        self.uploads.issued(command, self.now)
        return command

    def upload(self) -> ev.Upload | None:
        if self.now < self.uploads.upload_at():
            return None
        self.number += 1
        command = ev.Upload(self.number, self.uploads.next_upload())
        self.uploads.issued(command, self.now)
        return command

    def hear(self, event: ev.Answer) -> tuple[list[int], list[tuple[int, PerfectError]]]:
        assert isinstance(event.command, ev.Register | ev.Upload)
        ready, failed = self.uploads.on_response(event.command, event, self.now)
        for job, _ in failed:
            job.state = JobState.ENDED
        return [job.ref for job in ready], [(job.ref, error) for job, error in failed]

    def registered(self) -> ev.Register:
        command = self.register()
        self.hear(ev.Registered(command, grants(command)))
        return command


def test_register_and_upload() -> None:
    """Files are registered together in their order, and each is uploaded and ready."""
    harness = UploadHarness(3)
    command = harness.register()
    assert ((0, 1, 2), None) == (command.refs, command.feature)
    assert 3 == harness.uploads.under_way == len(harness.uploads)
    harness.hear(ev.Registered(command, grants(command)))
    for ref in range(3):
        upload = harness.upload()
        assert upload is not None
        assert ([ref], []) == harness.hear(ev.Uploaded(upload))
    assert 0 == len(harness.uploads)
    assert NEVER == harness.uploads.upload_at()


def test_a_full_call_or_none() -> None:
    """A call waits until it is full, unless part of a call is wanted; then it waits briefly."""
    harness = UploadHarness(3)
    assert None is harness.uploads.registration(SECOND, partly=False)
    assert None is harness.uploads.registration(50_000, partly=True)
    assert 100_000 == harness.uploads.registration_at()
    assert None is not UploadHarness(20).uploads.registration(0, partly=False)
    assert None is UploadHarness(0).uploads.registration(0, partly=True)


def test_channels_stay_apart() -> None:
    """One call holds the files of one channel, and the others keep their order."""
    harness = UploadHarness(6, channels=2)
    assert (0, 2, 4) == harness.register().refs
    assert (1, 3, 5) == harness.register().refs


def test_too_many_files_halve_the_call() -> None:
    """A refused call is sent again with half of the files, also if several were under way."""
    harness = UploadHarness(40)
    first, second = harness.register(), harness.register()
    assert 20 == len(first.refs) == len(second.refs)
    assert ([], []) == harness.hear(ev.Refused(first, NO, 400))
    assert ([], []) == harness.hear(ev.Refused(second, NO, 413))
    assert 10 == len(harness.register().refs)


def test_full_calls_grow() -> None:
    """Each full call that is accepted doubles the next one, up to 80 files."""
    harness, sizes = UploadHarness(310), list[int]()
    while harness.uploads.waiting:
        sizes.append(len(harness.registered().refs))
    assert [20, 40, 80, 80, 80, 10] == sizes


def test_a_call_that_is_not_full_shows_nothing() -> None:
    """Only an accepted full call allows more files than before."""
    harness = UploadHarness(15)
    harness.registered()
    assert 20 == harness.uploads._files


@pytest.mark.parametrize("answer", [partial(ev.Refused, status=400), ev.NoAnswer])
def test_a_size_that_fails_is_not_tried_again(
    answer: Callable[[ev.Register, PerfectError], ev.Answer],
) -> None:
    """A call of more files than were ever accepted ends no job, and no later call is larger."""
    harness = UploadHarness(100)
    harness.registered()
    larger = harness.register()
    assert 40 == len(larger.refs)
    assert ([], []) == harness.hear(answer(larger, NO))
    assert larger.refs[:20] == harness.registered().refs
    assert [20, 20, 20] == [len(harness.registered().refs) for _ in range(3)]
    assert not harness.uploads.waiting


def test_an_outage_does_not_limit_the_size() -> None:
    """A larger call that was not sent is tried again with as many files."""
    harness = UploadHarness(100)
    harness.registered()
    assert ([], []) == harness.hear(ev.NotSent(harness.register(), NO))
    assert 40 == len(harness.registered().refs)


def test_a_full_call_waits_for_the_answer_that_allows_more() -> None:
    """It does not wait where pictures are needed at once, for an answer that takes a second, nor
    after the largest call.
    """
    harness = UploadHarness(250)
    first = harness.register()
    soon = harness.now + SECOND
    assert None is harness.uploads.registration(soon - 1, partly=False)
    assert None is not harness.uploads.registration(soon - 1, partly=True)
    assert None is not harness.uploads.registration(soon, partly=False)
    harness.hear(ev.Registered(first, grants(first)))
    harness.registered()
    assert 80 == len(harness.register().refs)
    assert None is not harness.uploads.registration(harness.now, partly=False)


def test_one_bad_file_is_found() -> None:
    """Halving finds the one file that is refused, which ends alone; calls are full again."""
    harness, ended = UploadHarness(8, files=8), []
    while len(harness.uploads) > harness.uploads.under_way:
        command = harness.register()
        if 5 in command.refs:
            ended += harness.hear(ev.Refused(command, NO, 400))[1]
        else:
            harness.hear(ev.Registered(command, grants(command)))
    assert [(5, NO)] == ended
    assert 8 == harness.uploads._files


def test_the_feature_s_own_path() -> None:
    """If the universal path is missing, each feature registers by its own, and no job ends."""
    harness = UploadHarness(40)
    first, second = harness.register(), harness.register()
    assert ([], []) == harness.hear(ev.Refused(first, NO, 404))
    assert ([], []) == harness.hear(ev.Refused(second, NO, 404))
    command = harness.register()
    feature = harness.jobs[command.refs[0]].kind.feature
    assert feature == command.feature
    assert {feature} == {harness.jobs[ref].kind.feature for ref in command.refs}
    harness.hear(ev.Refused(harness.register(), NO, 404))


def test_a_refused_key_ends_all() -> None:
    """401 ends every file of the call."""
    harness = UploadHarness(3)
    assert [0, 1, 2] == [ref for ref, _ in harness.hear(ev.KeyRefused(harness.register(), NO))[1]]


def test_refused_for_the_limit() -> None:
    """429 does not count as a failure of a file."""
    harness = UploadHarness(3)
    for _ in range(30):
        assert ([], []) == harness.hear(ev.Limited(harness.register(), NO))


@pytest.mark.parametrize("kind", [ev.NotSent, ev.NoAnswer])
def test_an_outage_while_registering(kind: type[ev.NotSent | ev.NoAnswer]) -> None:
    """A call without an answer is sent again; after six times only its first file ends."""
    harness = UploadHarness(3)
    for _ in range(5):
        assert ([], []) == harness.hear(kind(harness.register(), NO))
    assert ([], [(0, NO)]) == harness.hear(kind(harness.register(), NO))
    assert (1, 2) == harness.register().refs


def test_cancelled_while_under_way() -> None:
    """Answers about files that ended meanwhile change nothing."""
    harness = UploadHarness(2)
    command = harness.register()
    for job in harness.jobs.values():
        job.state = JobState.ENDED
    assert ([], []) == harness.hear(ev.NoAnswer(command, NO))
    harness = UploadHarness(3)
    harness.registered()
    upload = harness.upload()
    assert upload is not None
    harness.jobs[0].state = JobState.ENDED
    harness.uploads.remove([harness.jobs[0], harness.jobs[1]])
    assert ([], []) == harness.hear(ev.Uploaded(upload))
    last = harness.upload()
    assert last is not None
    assert 2 == last.ref
    assert None is harness.upload()


def test_uploads_at_once() -> None:
    """At most 24 pictures are uploaded at once."""
    harness = UploadHarness(60, files=60)
    harness.registered()
    uploads = [harness.upload() for _ in range(25)]
    assert 24 == sum(upload is not None for upload in uploads)
    assert NEVER == harness.uploads.upload_at()


def test_an_outage_while_uploading() -> None:
    """While the other host does not answer, one upload at a time is tried, with growing pauses."""
    harness = UploadHarness(10)
    harness.registered()
    flying = [harness.upload() for _ in range(6)]
    for upload in flying:
        assert upload is not None
        harness.hear(ev.NoAnswer(upload, NO))
    tried, ended, until = 0, 0, harness.now + 600 * SECOND
    while True:
        assert None is harness.upload()
        at = harness.uploads.upload_at()
        if at > until:
            break
        harness.now = at
        upload = harness.upload()
        assert upload is not None
        assert None is harness.upload()
        tried += 1
        ended += len(harness.hear(ev.NotSent(upload, NO))[1])
    assert tried <= 24
    assert ended <= 5
    harness.now = at
    upload = harness.upload()
    assert upload is not None
    harness.hear(ev.Uploaded(upload))
    assert None is not harness.upload()
    assert None is not harness.upload()


def test_an_expired_signed_url() -> None:
    """A refused upload is registered again, six times."""
    harness = UploadHarness(1)
    for _ in range(5):
        harness.registered()
        upload = harness.upload()
        assert upload is not None
        assert ([], []) == harness.hear(ev.Refused(upload, NO, 403))
    harness.registered()
    upload = harness.upload()
    assert upload is not None
    assert ([], [(0, NO)]) == harness.hear(ev.Refused(upload, NO, 403))


def test_an_upload_fails_six_times() -> None:
    """A picture whose upload has no answer six times ends, and no other."""
    harness = UploadHarness(1)
    harness.registered()
    for failure in range(6):
        harness.now += 60 * SECOND
        upload = harness.upload()
        assert upload is not None
        assert ([], [(0, NO)] if failure == 5 else []) == harness.hear(ev.NoAnswer(upload, NO))


def test_an_upload_refused_by_our_side() -> None:
    """An upload that our own side refuses ends the job at once."""
    harness, gone = UploadHarness(1), JobRefused("gone")
    harness.registered()
    upload = harness.upload()
    assert upload is not None
    assert ([], [(0, gone)]) == harness.hear(ev.Refused(upload, gone, 0))


def test_when_registrations_are_due() -> None:
    """A full call is due at once, a smaller one after a tenth of a second."""
    uploads = UploadHarness(2, files=3).uploads
    assert 100_000 == uploads.registration_at()
    full = UploadHarness(3, files=3).uploads
    assert 0 == full.registration_at()
    assert NEVER == UploadHarness(0).uploads.registration_at()


# Queries.


DOWN = PerfectError("down")


def waiting_queries(*refs: int) -> QueryQueue:
    queries = QueryQueue()
    for ref in refs:
        queries.add(Query(ref, channel=ref % 2, since=0))
    return queries


def test_in_order() -> None:
    """The first query is sent first, and an answered one is forgotten."""
    queries = waiting_queries(4, 5)
    assert 2 == len(queries.waiting)
    assert 0 == queries.channel(4)
    queries.issued()
    command = ev.Ask(1, 4)
    assert None is queries.on_response(command, ev.Answered(command), 0, again=True)
    assert 4 not in queries
    assert 5 == queries.waiting[0].ref


@pytest.mark.parametrize("kind", [ev.NotSent, ev.NoAnswer, ev.Limited])
def test_queries_are_retried(kind: type[ev.NotSent | ev.NoAnswer | ev.Limited]) -> None:
    """A query whose failure may pass is retried first, six times, and not in a closed channel."""
    queries = waiting_queries(4, 5)
    command = ev.Ask(1, 4)
    for _ in range(6):
        queries.issued()
        assert None is queries.on_response(command, kind(command, DOWN), 0, again=True)
    queries.issued()
    ended = queries.on_response(command, kind(command, DOWN), 0, again=True)
    assert ended is not None
    assert DOWN is ended[1]
    queries.forget(ended[0])
    queries.issued()
    command = ev.Ask(2, 5)
    ended = queries.on_response(command, kind(command, DOWN), 0, again=False)
    assert ended is not None
    assert not queries.waiting


def test_refused() -> None:
    """A final refusal ends the query with the vendor's reason."""
    queries = waiting_queries(4)
    queries.issued()
    command = ev.Ask(1, 4)
    ended = queries.on_response(command, ev.Refused(command, DOWN, 400), 0, again=True)
    assert ended is not None
    assert DOWN is ended[1]


def test_closed() -> None:
    """A closing channel ends its queries that were not sent, and no others."""
    queries = waiting_queries(1, 2, 3)
    assert [1, 3] == [question.ref for question in queries.close(1)]
    assert 1 == len(queries.waiting)


def test_lasting() -> None:
    """Lasting queries are sent and retried while their channel closes, and end when it aborts."""
    queries = waiting_queries(1)
    queries.add(Query(3, channel=1, since=0, lasting=True))
    assert [1] == [question.ref for question in queries.close(1)]
    queries.issued()
    command = ev.Ask(1, 3)
    assert None is queries.on_response(command, ev.NotSent(command, DOWN), 0, again=False)
    assert [3] == [question.ref for question in queries.close(1, aborted=True)]
    assert not queries.waiting
