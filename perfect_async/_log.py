"""The one logger of the package, its switch, and how an error is named in it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, TextIO, cast

from perfect_async.errors import ConfigurationError, quoted

LOG: Final = logging.getLogger("perfect_async")
LOG_VARIABLE: Final = "PERFECT_ASYNC_LOG"

# The class takes a parameter for type checkers alone.
if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    _Handler = logging.StreamHandler

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO}
_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def switch_on() -> None:
    """Show the logger's lines on stderr where PERFECT_ASYNC_LOG is `debug` or `info`.

    Empty and `off` leave the logger as the program has set it. A program that has handlers of its
    own on the root logger gets the lines there alone. Raises `ConfigurationError` for other values.
    """
    value = os.environ.get(LOG_VARIABLE, "").strip().lower()
    if value in {"", "off"}:
        return
    if value not in _LEVELS:
        raise ConfigurationError(
            f"{LOG_VARIABLE} is {quoted(value)}; it must be debug, info or off."
        )
    LOG.setLevel(_LEVELS[value])
    if not any(isinstance(handler, _OwnHandler) for handler in LOG.handlers):
        LOG.addHandler(_OwnHandler())


class _OwnHandler(_Handler):
    """Writes to stderr unless the program does so itself, now or later: no line comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self.addFilter(lambda _: not logging.getLogger().handlers)


def type_name(error: BaseException) -> str:
    """Return the type of an error and nothing else: its text may hold what no log may."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return ", ".join(sorted({type_name(each) for each in group.exceptions}))
    return quoted(type(error).__name__)
