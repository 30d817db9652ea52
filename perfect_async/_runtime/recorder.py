"""Records the requests of one key for the report of a batch, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, cast

import attrs

from perfect_async import events as ev
from perfect_async._time import SECOND

_MOST: Final = 20_000
"""How many requests are kept, the newest: those of some 8000 pictures, or of six full hours."""
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
    """One request, and when it left and was answered (None: not yet), in the driver's microseconds.

    `refs` are its jobs, `outcome` is the name of the event of its answer, and `in_window` is the
    number of requests in the window after it left.
    """

    kind: Kind
    refs: tuple[int, ...]
    left: int
    in_window: int
    answered: int | None = None
    outcome: str = ""


class RequestRecorder:
    """Records the commands and events that pass between driver and scheduler.

    The recorder is freed with the last batch that uses it. `occupied` returns how many requests
    occupy the window at a time; it is called once a second at most, and each request in between
    counts one more.
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
        """Return the requests recorded so far, the oldest first."""
        return tuple(self._requests)
