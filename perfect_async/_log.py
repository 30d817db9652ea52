"""The package's logger, the environment variable that shows it, and names of errors for it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, TextIO, cast

from perfect_async.errors import ConfigurationError, quoted

LOG: Final = logging.getLogger("perfect_async")
LOG_VARIABLE: Final = "PERFECT_ASYNC_LOG"

# `StreamHandler` is generic for type checkers, not at run time.
if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    _Handler = logging.StreamHandler

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO}
_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def switch_on() -> None:
    """Show the logger's lines on stderr if PERFECT_ASYNC_LOG is `debug` or `info`.

    Empty and `off` leave the logger as the program has set it. If the program has handlers on the
    root logger, the lines go to those handlers only. Raises `ConfigurationError` for other values.
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
    """Writes to stderr while the root logger has no handler, so that no line is printed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self.addFilter(lambda _: not logging.getLogger().handlers)


def type_name(error: BaseException) -> str:
    """Return the name of an error's type, without its text, which may hold secrets."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return ", ".join(sorted({type_name(each) for each in group.exceptions}))
    return quoted(type(error).__name__)
