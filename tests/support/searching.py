"""How many examples a search of Hypothesis looks at, with `--long` and without."""

from typing import Final

from hypothesis import settings

EXAMPLES: Final = 50
"""Examples of a property test, where nothing else is said."""
LONGER: Final = 5
"""With `--long` a search looks at so many times as many."""


def examples(usual: int) -> int:
    """Return `usual`, or `LONGER` times as many with `--long`.

    For a search whose examples cost more or less than those of others. Without it a search follows
    the profile of conftest.py.
    """
    return usual * settings().max_examples // EXAMPLES
