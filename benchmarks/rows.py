"""A row of a table: the same run with several seeds."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Generic, TypeVar

import attrs

R = TypeVar("R")


@attrs.frozen
class Runs(Generic[R]):
    """The runs of one thing, one a seed; all numbers of a row are means of them."""

    name: str
    runs: tuple[R, ...]

    def mean(self, what: Callable[[R], float]) -> float:
        """Return the mean of `what` over the runs."""
        return mean(map(what, self.runs))
