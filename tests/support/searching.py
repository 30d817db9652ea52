"""The number of examples of a Hypothesis search, with and without `--long`."""

from typing import Final

from hypothesis import settings

EXAMPLES: Final = 50
"""The default number of examples of a property test."""
LONGER: Final = 5
"""The factor of the number of examples with `--long`."""


def examples(usual: int) -> int:
    """Return `usual`, or `LONGER` times as many with `--long`.

    Use it for a search whose examples take more or less time than usual. Other searches follow the
    profile of conftest.py.
    """
    return usual * settings().max_examples // EXAMPLES
