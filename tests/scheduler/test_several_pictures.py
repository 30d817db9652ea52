"""A job with several pictures: each is prepared by itself, and the job waits for all of them."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async import events as ev
from perfect_async._time import NEVER
from perfect_async.errors import JobRefused, PerfectError
from perfect_async.scheduler import IllegalEvent
from tests.support.scheduler_harness import SMILE, SchedulerHarness, grants

NO = PerfectError("no")
CHANGED = JobRefused("the file changed")


class Pictures(SchedulerHarness):
    """A scheduler with one job, 1, of three pictures: 1, 2 and 3."""

    def __init__(self) -> None:
        super().__init__()
        self.tell(ev.JobAdded(1, SMILE, 1.0, uploads=True, more=(2, 3)))

    def register(self) -> ev.Register:
        """Register the waiting pictures."""
        command = self.take()
        assert isinstance(command, ev.Register)
        return command

    def uploads(self) -> list[ev.Upload]:
        """Register all three pictures, and issue their uploads."""
        command = self.register()
        self.tell(ev.Registered(command, grants(command)))
        found = [self.take() for _ in range(3)]
        return [command for command in found if isinstance(command, ev.Upload)]


def test_one_call_registers_all_pictures_of_a_job() -> None:
    """The pictures of one job cost one registration, in their order."""
    assert (1, 2, 3) == Pictures().register().refs


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_job_is_created_once_all_are_uploaded(order: tuple[int, int, int]) -> None:
    """The task is created after the last picture is uploaded, whichever that is."""
    harness = Pictures()
    uploads = harness.uploads()
    for index in order:
        assert harness.scheduler.due(harness.now) is None
        harness.tell(ev.Uploaded(uploads[index]))

    created = harness.take()
    assert isinstance(created, ev.Submit)
    assert 1 == created.ref


def test_a_job_counts_once() -> None:
    """The statistics count one job, however many pictures it has."""
    harness = Pictures()
    before = harness.scheduler.statistics()
    uploads = harness.uploads()
    during = harness.scheduler.statistics()
    for upload in uploads:
        harness.tell(ev.Uploaded(upload))
    after = harness.scheduler.statistics()

    assert (1, 0, 0) == (before.waiting, before.preparing, before.ready)
    assert (0, 1, 0) == (during.waiting, during.preparing, during.ready)
    assert (0, 0, 1) == (after.waiting, after.preparing, after.ready)


@pytest.mark.parametrize("failed", range(3))
def test_a_refused_picture_ends_its_job(failed: int) -> None:
    """One picture that the vendor refuses ends the job once; the others are not uploaded."""
    harness = Pictures()
    uploads = harness.uploads()
    harness.tell(ev.Uploaded(uploads[failed - 1]))
    harness.tell(ev.Refused(uploads[failed], CHANGED, 0))
    command = harness.settle()
    harness.tell(ev.Uploaded(uploads[failed - 2]))

    assert (1, CHANGED, 0.0) == (command.ref, command.ending, command.units)
    assert harness.scheduler.due(harness.now) is None
    assert not harness.scheduler.busy()


def test_a_refused_registration_ends_the_job_once() -> None:
    """A refused key ends the job once, and not once for each picture."""
    harness = Pictures()
    harness.tell(ev.KeyRefused(harness.register(), NO))

    assert 1 == harness.settle().ref
    assert harness.scheduler.due(harness.now) is None


ANSWERS = ("good", "lost", "refused", "changed", "same")


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(ANSWERS)), max_size=60),
)
def test_whatever_happens_a_job_is_created_or_ends(
    pictures: list[int], answers: list[tuple[int, str]]
) -> None:
    """For any order of answers, each job is created once after all of its uploads, or ends once
    without a task.
    """
    harness = SchedulerHarness()
    more, owner = 100, dict[int, int]()
    for ref, count in enumerate(pictures, 1):
        numbers = tuple(range(more, more + count))
        more += count
        owner |= dict.fromkeys((ref, *numbers), ref)
        harness.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=True, more=numbers))
    open_: list[ev.Register | ev.Upload] = []
    uploaded, created, ended = set[int](), list[int](), list[int]()
    given_ids = iter(range(10**6))
    left = iter(answers)
    for _ in range(2_000):
        command = harness.scheduler.due(harness.now)
        if command is not None:
            harness.tell(ev.Issued(command))
        match command:
            case ev.Register() | ev.Upload():
                open_.append(command)
            case ev.Submit():
                created.append(command.ref)
                assert {each for each, job in owner.items() if job == command.ref} <= uploaded
                harness.tell(ev.Refused(command, NO, 400))
            case ev.Settle():
                ended.append(command.ref)
            case _ if open_:
                index, kind = next(left, (0, "good"))
                answered = open_.pop(index % len(open_))
                harness.tell(_answer(answered, kind, given_ids))
                if isinstance(answered, ev.Upload) and kind in {"good", "same"}:
                    uploaded.add(answered.ref)
            case _:
                at = harness.scheduler.wakes_at(harness.now)
                if at == NEVER:
                    break
                harness.now = at

    assert sorted(range(1, len(pictures) + 1)) == sorted(ended)
    assert len(created) == len(set(created))
    assert not harness.scheduler.busy()
    assert 0 == harness.scheduler.statistics().preparing


def _answer(command: ev.Register | ev.Upload, kind: str, ids: Iterator[int]) -> ev.Answer:
    """Answer `command`; "same" gives one id to all files of a registration."""
    match kind:
        case "lost":
            return ev.NoAnswer(command, NO)
        case "refused":
            return ev.Refused(command, NO, 403)
        case "changed" if isinstance(command, ev.Upload):
            return ev.Refused(command, CHANGED, 0)
        case _ if isinstance(command, ev.Upload):
            return ev.Uploaded(command)
        case _:
            one = next(ids)
            names = [f"f{one if kind == 'same' else next(ids)}" for _ in command.refs]
            return ev.Registered(command, grants(command, *names))


def test_a_cancelled_job_takes_its_pictures_along() -> None:
    """The pictures of a cancelled job are not registered, and answers change nothing."""
    harness = Pictures()
    command = harness.register()
    harness.tell(ev.JobCancelled(1))
    assert 1 == harness.settle().ref
    harness.tell(ev.Registered(command, grants(command)))

    assert harness.scheduler.due(harness.now) is None


def test_pictures_have_numbers_of_their_own() -> None:
    """A picture with the number of a job is refused, and changes nothing."""
    harness = Pictures()
    with pytest.raises(IllegalEvent, match="already in use"):
        harness.tell(ev.JobAdded(4, SMILE, 1.0, uploads=True, more=(1,)))
    harness.tell(ev.JobAdded(4, SMILE, 1.0, uploads=False))
