"""Questions wait in order, are asked again where that may help, and end with their lane."""

import pytest

from perfect_async import events as ev
from perfect_async.errors import PerfectError
from perfect_async.scheduler._queues import Query, QueryQueue

DOWN = PerfectError("down")


def asked(*refs: int) -> QueryQueue:
    questions = QueryQueue()
    for ref in refs:
        questions.add(Query(ref, channel=ref % 2, since=0))
    return questions


def test_in_order() -> None:
    """The first that came is the first to be sent, and an answered one is forgotten."""
    questions = asked(4, 5)
    assert 2 == len(questions.waiting)
    assert 0 == questions.channel(4)
    questions.issued()
    command = ev.Ask(1, 4)
    assert None is questions.on_response(command, ev.Answered(command), 0, again=True)
    assert 4 not in questions
    assert 5 == questions.waiting[0].ref


@pytest.mark.parametrize("kind", [ev.NotSent, ev.NoAnswer, ev.Limited])
def test_asked_again(kind: type[ev.NotSent | ev.NoAnswer | ev.Limited]) -> None:
    """What may pass is asked again before the others, six times, not in a closed lane."""
    questions = asked(4, 5)
    command = ev.Ask(1, 4)
    for _ in range(6):
        questions.issued()
        assert None is questions.on_response(command, kind(command, DOWN), 0, again=True)
    questions.issued()
    ended = questions.on_response(command, kind(command, DOWN), 0, again=True)
    assert ended is not None
    assert DOWN is ended[1]
    questions.forget(ended[0])
    questions.issued()
    command = ev.Ask(2, 5)
    ended = questions.on_response(command, kind(command, DOWN), 0, again=False)
    assert ended is not None
    assert not questions.waiting


def test_refused() -> None:
    """A final refusal ends the question with the vendor's reason."""
    questions = asked(4)
    questions.issued()
    command = ev.Ask(1, 4)
    ended = questions.on_response(command, ev.Refused(command, DOWN, 400), 0, again=True)
    assert ended is not None
    assert DOWN is ended[1]


def test_closed() -> None:
    """A closing lane ends its questions that were not sent, and no others."""
    questions = asked(1, 2, 3)
    assert [1, 3] == [question.ref for question in questions.close(1)]
    assert 1 == len(questions.waiting)


def test_lasting() -> None:
    """Some are sent, and sent again, while their lane closes, and end when it is dropped."""
    questions = asked(1)
    questions.add(Query(3, channel=1, since=0, lasting=True))
    assert [1] == [question.ref for question in questions.close(1)]
    questions.issued()
    command = ev.Ask(1, 3)
    assert None is questions.on_response(command, ev.NotSent(command, DOWN), 0, again=False)
    assert [3] == [question.ref for question in questions.close(1, dropped=True)]
    assert not questions.waiting
