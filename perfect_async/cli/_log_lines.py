"""The library's log as lines of a display."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from perfect_async.cli._wording import in_terminal_terms

LOG: Final = logging.getLogger("perfect_async")


class LogLines(logging.Handler):
    """Passes what the library logs from `level` on to `write`, one call for a line.

    `attach` it for the time of a display, and `detach` it afterwards. The library's requests are
    logged at DEBUG, and the ends of jobs at INFO.
    """

    def __init__(self, write: Callable[[str], None], level: int) -> None:
        super().__init__(level)
        self._write = write
        self._former_level = logging.NOTSET
        self._others: list[logging.Handler] = []

    def attach(self, *, alone: bool) -> None:
        """Begin to write lines; where it is not `alone`, other handlers write them instead.

        A handler of PERFECT_ASYNC_LOG writes to the terminal itself, in the middle of a line that
        is drawn there. With `alone` its lines are written here, in its format and from its level.
        """
        self._former_level = LOG.level
        self._others = LOG.handlers[:] if alone else []
        for other in self._others:
            LOG.removeHandler(other)
        if LOG.handlers:
            return
        if self._others:
            self.setLevel(min(self.level, LOG.getEffectiveLevel()))
        LOG.setLevel(self.level)
        LOG.addHandler(self)

    def detach(self) -> None:
        """Write no more lines, and leave the log as it was."""
        if self not in LOG.handlers:
            return
        LOG.removeHandler(self)
        LOG.setLevel(self._former_level)
        for other in self._others:
            LOG.addHandler(other)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, unless a handler that was added later writes it."""
        if LOG.handlers != [self]:
            return
        try:
            text = in_terminal_terms(record.getMessage())
            if self._others:
                text = self._others[0].format(record)
        except (TypeError, ValueError):
            self.handleError(record)
            return
        self._write(text if self._others else f"{record.levelname.lower()}: {text}")
