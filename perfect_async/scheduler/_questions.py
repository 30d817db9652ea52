"""Questions that are no jobs: templates, units, prices, history, delete. They spend the same
window.

All times are integer microseconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import attrs

from perfect_async import events as ev
from perfect_async.errors import PerfectError

_MOST_FAILURES: Final = 6


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

    def hear(
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
