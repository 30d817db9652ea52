"""How many examples a property test tries, with `--long` and without."""

from typing import Final

from hypothesis import settings

SHORT: Final = 30
"""The default number of examples of a property test."""
LONG: Final = 150
"""The number of examples with `--long`."""
_USUAL: Final = 50


def examples(usual: int, short: int | None = None) -> int:
    """Return the number of examples for a test whose examples take more or less time than usual.

    The number is `usual` where other tests would try 50, and scales with the profile of
    conftest.py. `short` is the number without `--long`, where it is given.
    """
    if short is not None and settings().max_examples == SHORT:
        return short
    return usual * settings().max_examples // _USUAL
