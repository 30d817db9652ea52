"""The one logger of the package, and how an error is named in it."""

from __future__ import annotations

import logging
from typing import Final, cast

from perfect_async.errors import quoted

LOG: Final = logging.getLogger("perfect_async")


def type_name(error: BaseException) -> str:
    """Return the type of an error and nothing else: its text may hold what no log may."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return ", ".join(sorted({type_name(each) for each in group.exceptions}))
    return quoted(type(error).__name__)
