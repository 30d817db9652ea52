"""Pictures on their way to the vendor: registered together, uploaded each."""

import pytest

from perfect_async import events as ev
from perfect_async.errors import JobRefused, PerfectError
from perfect_async.scheduler._job import Job, State
from perfect_async.scheduler._queues import Preparation

SECOND = 1_000_000
NO = PerfectError("no")
GRANT = ev.FileGrant("f", "PUT", "u", ())


class Desk:
    def __init__(self, count: int, *, files: int = 20, lanes: int = 1) -> None:
        self.preparation = Preparation(files)
        self.jobs = {
            ref: Job(ref, ("ai-smile", "ai-avatar")[ref % 2], 1.0, True, ref % lanes, State.WAITING)
            for ref in range(count)
        }
        self.number, self.now = 0, 0
        for job in self.jobs.values():
            self.preparation.add(job, 0)
        self.now = SECOND

    def register(self) -> ev.Register:
        self.now += SECOND
        found = self.preparation.registration(self.now, partly=True)
        assert found is not None
        self.number += 1
        command = ev.Register(self.number, *found)
        self.preparation.issued(command, self.now)
        return command

    def upload(self) -> ev.Upload | None:
        if (ref := self.preparation.upload(self.now)) is None:
            return None
        self.number += 1
        command = ev.Upload(self.number, ref)
        self.preparation.issued(command, self.now)
        return command

    def hear(self, event: ev.Answer) -> tuple[list[int], list[tuple[int, PerfectError]]]:
        assert isinstance(event.command, ev.Register | ev.Upload)
        ready, failed = self.preparation.hear(event.command, event, self.now)
        for job, _ in failed:
            job.state = State.ENDED
        return [job.ref for job in ready], [(job.ref, error) for job, error in failed]

    def registered(self) -> None:
        command = self.register()
        self.hear(ev.Registered(command, (GRANT,) * len(command.refs)))


def test_the_whole_way() -> None:
    """Files are registered together in their order and each is uploaded and ready."""
    desk = Desk(3)
    command = desk.register()
    assert ((0, 1, 2), None) == (command.refs, command.feature)
    assert 3 == desk.preparation.under_way == len(desk.preparation)
    desk.hear(ev.Registered(command, (GRANT,) * 3))
    for ref in range(3):
        upload = desk.upload()
        assert upload is not None
        assert ([ref], []) == desk.hear(ev.Uploaded(upload))
    assert 0 == len(desk.preparation)
    assert [] == desk.preparation.wakes()


def test_a_full_call_or_none() -> None:
    """A call waits until it is full unless part of one is worth it, and for company even then."""
    desk = Desk(3)
    assert None is desk.preparation.registration(SECOND, partly=False)
    assert None is desk.preparation.registration(50_000, partly=True)
    assert [100_000] == desk.preparation.wakes()
    assert None is not Desk(20).preparation.registration(0, partly=False)
    assert None is Desk(0).preparation.registration(0, partly=True)


def test_lanes_stay_apart() -> None:
    """One call holds the files of one lane, and the others keep their order."""
    desk = Desk(6, lanes=2)
    assert (0, 2, 4) == desk.register().refs
    assert (1, 3, 5) == desk.register().refs


def test_too_many_files_halve_the_call() -> None:
    """A refused call is sent again with half of the files, even where several were on their way."""
    desk = Desk(40)
    first, second = desk.register(), desk.register()
    assert 20 == len(first.refs) == len(second.refs)
    assert ([], []) == desk.hear(ev.Refused(first, NO, 400))
    assert ([], []) == desk.hear(ev.Refused(second, NO, 413))
    assert 10 == len(desk.register().refs)


def test_one_bad_file_is_found() -> None:
    """Halving leads to the one file that is refused, which ends alone; calls are full again."""
    desk, ended = Desk(8, files=8), []
    while len(desk.preparation) > desk.preparation.under_way:
        command = desk.register()
        if 5 in command.refs:
            ended += desk.hear(ev.Refused(command, NO, 400))[1]
        else:
            desk.hear(ev.Registered(command, (GRANT,) * len(command.refs)))
    assert [(5, NO)] == ended
    assert 8 == desk.preparation._files


def test_the_feature_s_own_path() -> None:
    """Where the universal path is missing each feature registers for itself, and nothing ends."""
    desk = Desk(40)
    first, second = desk.register(), desk.register()
    assert ([], []) == desk.hear(ev.Refused(first, NO, 404))
    assert ([], []) == desk.hear(ev.Refused(second, NO, 404))
    command = desk.register()
    feature = desk.jobs[command.refs[0]].feature
    assert feature == command.feature
    assert {feature} == {desk.jobs[ref].feature for ref in command.refs}
    desk.hear(ev.Refused(desk.register(), NO, 404))


def test_a_refused_key_ends_all() -> None:
    """401 ends every file of the call."""
    desk = Desk(3)
    assert [0, 1, 2] == [ref for ref, _ in desk.hear(ev.KeyRefused(desk.register(), NO))[1]]


def test_refused_for_the_limit() -> None:
    """429 costs no file anything."""
    desk = Desk(3)
    for _ in range(30):
        assert ([], []) == desk.hear(ev.Limited(desk.register(), NO))


@pytest.mark.parametrize("kind", [ev.NotSent, ev.NoAnswer])
def test_an_outage_while_registering(kind: type[ev.NotSent | ev.NoAnswer]) -> None:
    """A call without an answer is sent again; after six times its first file ends, and no other."""
    desk = Desk(3)
    for _ in range(5):
        assert ([], []) == desk.hear(kind(desk.register(), NO))
    assert ([], [(0, NO)]) == desk.hear(kind(desk.register(), NO))
    assert (1, 2) == desk.register().refs


def test_withdrawn_on_the_way() -> None:
    """What is said of files that ended meanwhile changes nothing."""
    desk = Desk(2)
    command = desk.register()
    for job in desk.jobs.values():
        job.state = State.ENDED
    assert ([], []) == desk.hear(ev.NoAnswer(command, NO))
    desk = Desk(3)
    desk.registered()
    upload = desk.upload()
    assert upload is not None
    desk.jobs[0].state = State.ENDED
    desk.preparation.remove([desk.jobs[0], desk.jobs[1]])
    assert ([], []) == desk.hear(ev.Uploaded(upload))
    last = desk.upload()
    assert last is not None
    assert 2 == last.ref
    assert None is desk.upload()


def test_uploads_at_once() -> None:
    """At most 24 pictures go up at once."""
    desk = Desk(60, files=60)
    desk.registered()
    uploads = [desk.upload() for _ in range(25)]
    assert 24 == sum(upload is not None for upload in uploads)
    assert [] == desk.preparation.wakes()


def test_an_outage_while_uploading() -> None:
    """While the other host is silent one upload at a time is tried, with growing pauses."""
    desk = Desk(10)
    desk.registered()
    flying = [desk.upload() for _ in range(6)]
    for upload in flying:
        assert upload is not None
        desk.hear(ev.NoAnswer(upload, NO))
    tried, ended, until = 0, 0, desk.now + 600 * SECOND
    while True:
        assert None is desk.upload()
        (at,) = desk.preparation.wakes()
        if at > until:
            break
        desk.now = at
        upload = desk.upload()
        assert upload is not None
        assert None is desk.upload()
        tried += 1
        ended += len(desk.hear(ev.NotSent(upload, NO))[1])
    assert tried <= 24
    assert ended <= 5
    desk.now = at
    upload = desk.upload()
    assert upload is not None
    desk.hear(ev.Uploaded(upload))
    assert None is not desk.upload()
    assert None is not desk.upload()


def test_a_signed_url_that_no_longer_serves() -> None:
    """A refused upload registers again, six times."""
    desk = Desk(1)
    for _ in range(5):
        desk.registered()
        upload = desk.upload()
        assert upload is not None
        assert ([], []) == desk.hear(ev.Refused(upload, NO, 403))
    desk.registered()
    upload = desk.upload()
    assert upload is not None
    assert ([], [(0, NO)]) == desk.hear(ev.Refused(upload, NO, 403))


def test_an_upload_fails_six_times() -> None:
    """A picture whose upload stays unanswered six times ends, and no other."""
    desk = Desk(1)
    desk.registered()
    for failure in range(6):
        desk.now += 60 * SECOND
        upload = desk.upload()
        assert upload is not None
        assert ([], [(0, NO)] if failure == 5 else []) == desk.hear(ev.NoAnswer(upload, NO))


def test_a_picture_to_blame() -> None:
    """An upload that our own side refuses ends the job at once."""
    desk, gone = Desk(1), JobRefused("gone")
    desk.registered()
    upload = desk.upload()
    assert upload is not None
    assert ([], [(0, gone)]) == desk.hear(ev.Refused(upload, gone, 0))


def test_when_there_is_anything_to_register() -> None:
    """A full call is worth making at once, a smaller one after a tenth of a second, none never."""
    preparation = Desk(2, files=3).preparation
    assert not preparation.registers(99_999)
    assert preparation.registers(100_000)
    full = Desk(3, files=3).preparation
    assert full.registers(0)
    assert not Desk(0).preparation.registers(SECOND)
