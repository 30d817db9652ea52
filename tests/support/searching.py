"""How many examples a search of Hypothesis looks at, with `--long` and without."""

from typing import Final

from hypothesis import settings

SHORT: Final = 30
"""Examples of a property test, where nothing else is said."""
LONG: Final = 250
"""The same with `--long`."""
_USUAL: Final = 50


def examples(usual: int, short: int | None = None) -> int:
    """Return the examples of a search whose examples cost more or less than those of others.

    Where others look at `_USUAL` of them it looks at `usual`, and as much less or more as they do.
    Without `--long` it looks at `short`, where that is given.
    """
    if short is not None and settings().max_examples == SHORT:
        return short
    return usual * settings().max_examples // _USUAL
