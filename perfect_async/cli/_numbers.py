"""The numeric options of all commands: which numbers each takes, checked as the text was typed.

Cyclopts alone would take 2.5 for the whole number 2, and let nan and inf pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import attrs

from perfect_async.cli._output import printable

_WHOLE: Final = re.compile(r"[+-]?[0-9]+")
_LONGEST: Final = 40
"""Characters of a value that a message shows."""


@attrs.frozen
class Numbers:
    """The numbers that an option takes, from `least` to `most`; `words` may stand in their place.

    `above`: `least` itself is too small. `unit` is what they count.
    """

    least: float = -math.inf
    most: float = math.inf
    whole: bool = attrs.field(default=False, kw_only=True)
    above: bool = attrs.field(default=False, kw_only=True)
    unit: str = attrs.field(default="", kw_only=True)
    words: tuple[str, ...] = attrs.field(default=(), kw_only=True)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        kind += f" of {self.unit}" if self.unit else ""
        if self.least == -math.inf:
            limits = ""
        elif self.most < math.inf:
            limits = f" from {self.least:g} to {self.most:g}"
        else:
            limits = f" above {self.least:g}" if self.above else f" from {self.least:g}"
        *words, last = self.words or ("",)
        joined = f", or {', '.join(words)} or {last}" if words else f", or {last}"
        return f"{kind}{limits}{joined if last else ''}"

    def parse(self, text: str) -> float | str | None:
        """Return the number that `text` is, or the word; None for anything else."""
        if text in self.words:
            return text
        found: float
        try:
            found = int(text) if self.whole and _WHOLE.fullmatch(text) else float(text)
        except ValueError:
            return None
        if not math.isfinite(found) or (self.whole and not isinstance(found, int)):
            return None
        fits = self.least <= found <= self.most and not (self.above and found == self.least)
        return found if fits else None


_COUNT: Final = Numbers(1, 200, whole=True)
_SHARE: Final = Numbers(0, 1)
_SEED: Final = Numbers(0, 2**53, whole=True)
_SECONDS: Final = Numbers(0, above=True, unit="seconds")

# A task is given up after 600 s, so that a longer lease cannot be used.
_LEASE: Final = Numbers(1, 600, unit="seconds", words=("measured",))

_OPTIONS: Final[dict[str, Numbers]] = {
    "count": _COUNT,
    "max_units": Numbers(0),
    "insured": _SECONDS,
    "lease": _LEASE,
    "fail": _SHARE,
    "seed": _SEED,
    "port": Numbers(1, 2**16 - 1, whole=True),
    "speed": Numbers(0, above=True),
    "polling_interval": Numbers(1, whole=True, unit="milliseconds"),
    "units": Numbers(0, whole=True),
}
_SANDBOX: Final[dict[str, Numbers]] = {
    "units": Numbers(0),
    "lease": attrs.evolve(_SECONDS, words=("polling_interval", "retention", "flexible")),
}


class Token(Protocol):
    """The attributes of a cyclopts token that are used here: one word of the command line."""

    @property
    def keyword(self) -> str | None:
        """The option that it is the value of."""
        ...

    @property
    def value(self) -> str:
        """The word."""
        ...


def numbers_of(command: str, option: str) -> Numbers | None:
    """Return the numbers that an option of a command takes, None for other kinds of options."""
    own = _SANDBOX if command == "sandbox" else {}
    return own.get(option) or _OPTIONS.get(option)


def converter_of(numbers: Numbers) -> Callable[[Any, Sequence[Token]], float | str]:
    """Return a converter for cyclopts; it raises `ValueError` for a wrong value."""

    def convert(_: object, tokens: Sequence[Token]) -> float | str:
        [token] = tokens
        found = numbers.parse(token.value)
        if found is None:
            shown = printable(token.value)
            shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
            raise ValueError(f'{token.keyword} is "{shown}"; it must be {numbers}.')
        return found

    return convert
