"""The table of the states of a job."""

import attrs
import pytest

from perfect_async import events as ev
from perfect_async.errors import PerfectError
from perfect_async.events import TaskKind
from perfect_async.scheduler._job import ANSWERS, TRANSITIONS, IllegalEvent, JobState, ScheduledJob

POLL = ev.Poll(1, 1)
EVENTS: dict[type, object] = {
    ev.Poll: POLL,
    ev.Running: ev.Running(POLL),
    ev.Succeeded: ev.Succeeded(POLL, ()),
    ev.Accepted: ev.Accepted(ev.Submit(1, 1), "task"),
    ev.NoAnswer: ev.NoAnswer(POLL, PerfectError("x")),
    ev.Settle: ev.Settle(1, PerfectError("x"), 0.0),
}


def job(state: JobState) -> ScheduledJob:
    return ScheduledJob(1, TaskKind("ai-smile"), 1.0, uploads=True, channel=0, state=state)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("kind", EVENTS)
def test_the_table_decides(state: JobState, kind: type) -> None:
    """A job goes only where the table leads; elsewhere it raises and stays unchanged."""
    for target in JobState:
        here = job(state)
        before = attrs.asdict(here)
        if target in TRANSITIONS.get((state, kind), ()):
            here.move(EVENTS[kind], target)  # type: ignore[arg-type]
            assert target is here.state
        else:
            with pytest.raises(IllegalEvent, match="does not lead from"):
                here.move(EVENTS[kind], target)  # type: ignore[arg-type]
            assert before == attrs.asdict(here)


def test_every_state_is_reached_and_left() -> None:
    """Every state is reached except the initial ones, and left except the last one."""
    reached = {target for targets in TRANSITIONS.values() for target in targets}
    left = {state for state, _ in TRANSITIONS}
    assert {JobState.WAITING, JobState.READY} <= reached
    assert {JobState.ADOPTED} == set(JobState) - reached
    assert {JobState.SETTLED} == set(JobState) - left


def test_every_answer_is_in_the_table() -> None:
    """Every answer to a command of a job is accepted in some state."""
    known = {kind for _, kind in TRANSITIONS}
    known_answers = {
        kind for command, kinds in ANSWERS.items() if command is not ev.Ask for kind in kinds
    }
    assert known_answers <= known


def test_no_money_is_spent_twice() -> None:
    """A creation without an answer ends the job, and no other creation follows."""
    assert frozenset({JobState.ENDED}) == TRANSITIONS[JobState.SUBMITTING, ev.NoAnswer]


def test_states_are_told_apart_by_identity() -> None:
    """Each state is one object, and is found by its name as such."""
    assert len(JobState) == len({*JobState}) == len({hash(state) for state in JobState})
    assert all(JobState[state.name] is state for state in JobState)
