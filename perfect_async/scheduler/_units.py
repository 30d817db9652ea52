"""What was charged, what came back, what is at stake, and the ceilings over it.

Units are reserved when a creation leaves, by the price of the feature; what was not charged, or was
given back, is free again. A job that does not fit under a ceiling is not sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, assert_never

import attrs

from perfect_async import events as ev
from perfect_async.errors import CeilingReached, PerfectError
from perfect_async.reports import Spending
from perfect_async.scheduler._job import Job

_ROUNDING: Final = 1e-6
"""Of units: how far sums of prices may be off, as floats add; far below any price."""


@attrs.define
class _Purse:
    """`most` units may be spent, `spent` of them are or may be."""

    most: float
    spent: float = 0.0


class Units:
    """The units of all jobs on one key and host, and the purses that they come from."""

    def __init__(self) -> None:
        self._purses: dict[int, _Purse] = {}
        self._charged = self._returned = self._at_stake = 0.0

    def totals(self) -> Spending:
        """How it stands."""
        return Spending(self._charged, self._returned, self._at_stake)

    def hear(self, event: ev.Opened | ev.Emptied) -> None:
        """A ceiling holds from now on, or nothing more comes under it."""
        match event:
            case ev.Opened():
                self._purses[event.purse] = _Purse(event.most)
            case ev.Emptied():
                self._purses.pop(event.purse, None)
            case _:
                assert_never(event)

    def refusal(self, job: Job) -> PerfectError | None:
        """Why `job` cannot be paid for, None where it can."""
        for name in job.purses:
            purse = self._purses.get(name)
            if purse is not None and purse.spent + job.units > purse.most + _ROUNDING:
                return CeilingReached(
                    f"The job costs {job.units:g} units; of max_units={purse.most:g} there are "
                    f"{purse.spent:g} spent or reserved."
                )
        return None

    def poor(self, jobs: Iterable[Job], purses: tuple[int, ...]) -> list[tuple[Job, PerfectError]]:
        """Those of `jobs` that one of `purses` cannot pay for any longer, and why."""
        paid = [job for job in jobs if not set(purses).isdisjoint(job.purses)]
        return [(job, error) for job in paid if (error := self.refusal(job)) is not None]

    def reserve(self, job: Job) -> None:
        """The creation of `job` leaves."""
        self._move(job, job.units)

    def charge(self, job: Job) -> None:
        """Its task exists."""
        job.charged = job.units
        self._charged += job.units

    def give_back(self, job: Job) -> None:
        """Its engine failed."""
        self._returned += job.charged
        job.charged = 0.0
        self._move(job, 0.0)

    def release(self, job: Job) -> None:
        """Its creation was not executed."""
        self._move(job, 0.0)

    def end(self, job: Job, at_stake: float) -> None:
        """It ended; `at_stake` units are or may be charged for it with nothing to show."""
        self._at_stake += at_stake
        self._move(job, max(job.charged, at_stake))

    def _move(self, job: Job, reserved: float) -> None:
        for name in job.purses:
            if (purse := self._purses.get(name)) is not None:
                purse.spent += reserved - job.reserved
        job.reserved = reserved
