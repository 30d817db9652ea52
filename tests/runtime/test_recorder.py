"""A recorder keeps the command and answer of each request, up to a limit."""

import pytest

from perfect_async import ServiceUnavailable
from perfect_async import events as ev
from perfect_async._runtime import recorder
from perfect_async._runtime.recorder import RecordedRequest, RequestRecorder
from perfect_async._time import SECOND


def facts(request: RecordedRequest) -> tuple[object, ...]:
    return request.kind, request.refs, request.left, request.answered, request.outcome


def test_a_request_is_kept_with_its_answer() -> None:
    """A record has the kind, jobs, times and answer; uploads and outcomes are not requests."""
    made = RequestRecorder(lambda now: 0)
    register, submit = ev.Register(1, (7, 8), None), ev.Submit(2, 7)
    poll, rescue, ask = ev.Poll(3, 7), ev.Rescue(4, -1, "ai-smile", "t"), ev.Ask(5, 9)

    made.issued(register, 0)
    made.issued(ev.Upload(6, 7), 1)
    made.issued(submit, 2)
    made.received(ev.Registered(register, ()), 3)
    made.issued(poll, 4)
    made.issued(rescue, 5)
    made.issued(ask, 6)
    made.received(ev.Running(poll), 7)
    made.received(ev.JobCancelled(7), 8)
    made.received(ev.NoAnswer(submit, ServiceUnavailable("silent")), 9)
    made.issued(ev.Settle(7, ServiceUnavailable("silent"), 0.0), 10)

    assert [
        ("register", (7, 8), 0, 3, "Registered"),
        ("create", (7,), 2, 9, "NoAnswer"),
        ("poll", (7,), 4, 7, "Running"),
        ("other", (-1,), 5, None, ""),
        ("other", (9,), 6, None, ""),
    ] == list(map(facts, made.requests()))


def test_the_window_is_read_once_a_second() -> None:
    """Each request in between counts one more."""
    asked: list[int] = []

    def occupied(now: int) -> int:
        asked.append(now)
        return 100 * len(asked)

    made = RequestRecorder(occupied)
    for number, now in enumerate((0, SECOND // 2, SECOND - 1, SECOND, SECOND + 1)):
        made.issued(ev.Poll(number, 1), now)

    assert [0, SECOND] == asked
    assert [100, 101, 102, 200, 201] == [request.in_window for request in made.requests()]


def test_the_newest_requests_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that runs for months keeps a bounded number of requests."""
    monkeypatch.setattr(recorder, "_MOST", 3)
    made = RequestRecorder(lambda now: 0)
    polls = [ev.Poll(number, 1) for number in range(5)]
    for poll in polls:
        made.issued(poll, poll.number)
    for poll in polls:
        made.received(ev.Running(poll), 10)

    assert [2, 3, 4] == [request.left for request in made.requests()]
    assert all(request.answered == 10 for request in made.requests())
