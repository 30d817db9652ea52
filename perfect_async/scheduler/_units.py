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
from perfect_async.scheduler._job import ScheduledJob

_ROUNDING: Final = 1e-6
"""Of units: how far sums of prices may be off, as floats add; far below any price."""


@attrs.define
class _Ceiling:
    """`most` units may be spent, `spent` of them are or may be."""

    most: float
    spent: float = 0.0


class UnitLedger:
    """The units of all jobs on one key and host, and the purses that they come from."""

    def __init__(self) -> None:
        self._purses: dict[int, _Ceiling] = {}
        self._charged = self._returned = self._at_stake = 0.0

    def totals(self) -> Spending:
        """How it stands."""
        return Spending(self._charged, self._returned, self._at_stake)

    def hear(self, event: ev.Opened | ev.Emptied) -> None:
        """A ceiling holds from now on, or nothing more comes under it."""
        match event:
            case ev.Opened():
                self._purses[event.ceiling] = _Ceiling(event.most)
            case ev.Emptied():
                self._purses.pop(event.ceiling, None)
            case _:
                assert_never(event)

    def refusal(self, job: ScheduledJob) -> PerfectError | None:
        """Why `job` cannot be paid for, None where it can."""
        for name in job.purses:
            ceiling = self._purses.get(name)
            if ceiling is not None and ceiling.spent + job.units > ceiling.most + _ROUNDING:
                return CeilingReached(
                    f"The job costs {job.units:g} units; of max_units={ceiling.most:g} there are "
                    f"{ceiling.spent:g} spent or reserved."
                )
        return None

    def poor(
        self, jobs: Iterable[ScheduledJob], purses: tuple[int, ...]
    ) -> list[tuple[ScheduledJob, PerfectError]]:
        """Those of `jobs` that one of `purses` cannot pay for any longer, and why."""
        paid = [job for job in jobs if not set(purses).isdisjoint(job.purses)]
        return [(job, error) for job in paid if (error := self.refusal(job)) is not None]

    def reserve(self, job: ScheduledJob) -> None:
        """The creation of `job` leaves."""
        self._move(job, job.units)

    def charge(self, job: ScheduledJob) -> None:
        """Its task exists."""
        job.charged = job.units
        self._charged += job.units

    def give_back(self, job: ScheduledJob) -> None:
        """Its engine failed."""
        self._returned += job.charged
        job.charged = 0.0
        self._move(job, 0.0)

    def release(self, job: ScheduledJob) -> None:
        """Its creation was not executed."""
        self._move(job, 0.0)

    def end(self, job: ScheduledJob, at_stake: float) -> None:
        """It ended; `at_stake` units are or may be charged for it with nothing to show."""
        self._at_stake += at_stake
        self._move(job, max(job.charged, at_stake))

    def _move(self, job: ScheduledJob, reserved: float) -> None:
        for name in job.purses:
            if (ceiling := self._purses.get(name)) is not None:
                ceiling.spent += reserved - job.reserved
        job.reserved = reserved
