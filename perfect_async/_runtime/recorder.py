"""Records the requests of one key for the report of a batch, within a bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, cast

import attrs

from perfect_async import events as ev
from perfect_async._time import SECOND

_MOST: Final = 20_000
"""Requests that are kept, the newest: of some 8000 pictures, or of six hours at the full rate."""
Kind: TypeAlias = Literal["register", "create", "poll", "other"]
_KINDS: Final[dict[type[ev.Command], Kind]] = {
    ev.Register: "register",
    ev.Submit: "create",
    ev.Poll: "poll",
    ev.Rescue: "other",
    ev.Ask: "other",
}


@attrs.define(eq=False)
class RecordedRequest:
    """One request: when it left and was answered (None: not yet), in the driver's microseconds.

    `kind` is "register", "create", "poll" or "other", `refs` are the jobs that it was for, and
    `outcome` is the name of the event that answered it. `in_window` requests occupied the window
    when it had left.
    """

    kind: Kind
    refs: tuple[int, ...]
    left: int
    in_window: int
    answered: int | None = None
    outcome: str = ""


class RequestRecorder:
    """Listens where the driver hands events to the scheduler; gone with the last batch.

    `occupied` says how many requests occupy the window at a time. It is asked once a second at
    most: between two answers every request counts one more.
    """

    def __init__(self, occupied: Callable[[int], int]) -> None:
        self._occupied = occupied
        self._requests: deque[RecordedRequest] = deque(maxlen=_MOST)
        self._unanswered: dict[int, RecordedRequest] = {}
        self._in_window = 0
        self._asked_at = -SECOND

    def issued(self, command: ev.Command, now: int) -> None:
        """Record that `command` leaves, if it is a request."""
        kind = _KINDS.get(type(command))
        if kind is None:
            return
        command = cast("ev.Request", command)
        if now >= self._asked_at + SECOND:
            self._in_window, self._asked_at = self._occupied(now), now
        else:
            self._in_window += 1
        refs = command.refs if isinstance(command, ev.Register) else (command.ref,)
        request = RecordedRequest(kind, refs, now, self._in_window)
        self._requests.append(request)
        self._unanswered[command.number] = request

    def received(self, event: ev.Event, now: int) -> None:
        """Record the answer to a request, if `event` is one."""
        command = getattr(event, "command", None)
        if command is None:
            return
        request = self._unanswered.pop(command.number, None)
        if request is not None:
            request.answered, request.outcome = now, type(event).__name__

    def requests(self) -> tuple[RecordedRequest, ...]:
        """Return what is recorded so far, the oldest first."""
        return tuple(self._requests)
