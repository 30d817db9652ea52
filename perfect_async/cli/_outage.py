"""Notice that the vendor cannot be reached, say why, and give up a host that was never reached.

Nothing here waits: the times are arguments.
"""

from __future__ import annotations

import os
import re
from typing import Final

from perfect_async.cli._wording import in_terminal_terms
from perfect_async.errors import PerfectError, ServiceUnavailable, redacted
from perfect_async.reports import Statistics

NAMED_AFTER: Final = 1.0
"""Seconds after which a host that does not answer is named."""
GIVEN_UP_AFTER: float = 20.0
"""Seconds after which a host that was never reached is given up."""


_STATUS: Final = "the vendor's status"
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_UNREACHED: Final = re.compile(
    r"the vendor's API at (?P<host>\S+) could not be reached \((?:\w+: )?(?P<reason>.+)\)\."
)


def _short(message: str) -> str:
    """Return a message that fits into a line of a terminal."""
    found = _UNREACHED.fullmatch(message)
    return message.rstrip(".") if found is None else f"cannot reach {found[1]}: {found[2]}"


class Outage:
    """Whether the vendor answers, since the time `began` (seconds of the loop)."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._since: float | None = None

    def look(self, now: float, statistics: Statistics) -> str | None:
        """Return the text about the connection now, None where it is fine."""
        failure = statistics.last_failure
        if failure is None:
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        # A host that fails from the start is named when the run is a second old. Later, a failure
        # is named when it has lasted for a second, since the second try often succeeds.
        if now < NAMED_AFTER + (self._since if statistics.reached else self._began):
            return None
        rest = "again" if statistics.reached else f"for {GIVEN_UP_AFTER:g} s"
        return f"{_short(in_terminal_terms(failure.message))}; trying {rest}"

    def end(self, now: float, statistics: Statistics) -> PerfectError | None:
        """Return the error that ends the run: a host that was never reached, or never will be."""
        failure = statistics.last_failure
        if statistics.reached or failure is None:
            return None
        if getattr(failure, "lasting", False):
            return _GivenUp(failure.message, "Nothing was sent; check the address of the host.")
        if now < self._began + GIVEN_UP_AFTER:
            return None
        return _GivenUp(
            f"{failure.message.rstrip('.')}. It was tried for {GIVEN_UP_AFTER:g} s.",
            f"Nothing was sent; check {_on_the_way('YOUCAM_BASE_URL')}.",
        )


def hint_of_unreached(error: PerfectError) -> str | None:
    """Return what to check where a host could not be reached, None for any other error."""
    if not isinstance(error, ServiceUnavailable) or isinstance(error, _GivenUp):
        return None
    if " could not be reached (" not in error.message:
        return None
    # The storage's host is in the vendor's answers, whatever the variable names.
    of_api = error.message.startswith("the vendor's API at ")
    check = "Check" if error.lasting else "Try again later; check"
    return f"{check} {_on_the_way('YOUCAM_BASE_URL' if of_api else _STATUS)}."


def _on_the_way(last: str) -> str:
    """Return what leads to a host: the network, the proxies that are set, and `last`."""
    proxies = [
        f"{name} ({redacted(value)})"
        for name, value in os.environ.items()
        if name.lower() in _PROXIES and value
    ]
    return ", ".join(["the network", *proxies]) + f" and {last}"


class _GivenUp(ServiceUnavailable):
    """The vendor was never reached."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, never_sent=True)
        self.hint = hint
