"""The settings of tasks: lease, retention, charging and ids."""

from __future__ import annotations

from typing import Final, Literal, get_args

import attrs

from ._billing import Charging
from ._dialect import one_of
from ._engine import Durations
from ._http import MICROSECONDS

TaskIds = Literal["urlsafe", "base64"]
LeaseReading = Literal["polling_interval", "retention", "flexible"]
Lease = float | LeaseReading
_LEASES: Final = get_args(LeaseReading)


def _check_lease(_: object, __: attrs.Attribute[Lease], lease: object) -> None:
    if isinstance(lease, str) and lease not in _LEASES:
        raise ValueError(
            f"lease must be a number of seconds or one of {', '.join(_LEASES)}, not {lease!r}"
        )


@attrs.frozen(kw_only=True)
class TaskRules:
    """The settings of tasks; times are in seconds.

    - `lease`: the time that a running task survives without a poll (contract: Expiry and charging):
      seconds, the `"polling_interval"`, the `"retention"`, or `"flexible"` (forever).
    - `retention`: the time for which a task is kept after its end.
    - `charging`: whether units are taken at the creation (and refunded when a poll reports a
      failure), or when the engine succeeds.
    """

    durations: dict[str, Durations]
    lease: Lease = attrs.field(validator=_check_lease)
    retention: float
    charging: Charging = attrs.field(validator=one_of(Charging))
    polling_interval: int | None
    ids: TaskIds

    def lease_microseconds(self) -> int | None:
        """Return the lease in microseconds, or None without one. Raises `ValueError`."""
        if self.lease == "flexible":
            return None
        if self.lease == "retention":
            return round(self.retention * MICROSECONDS)
        if self.lease == "polling_interval":
            if self.polling_interval is None:
                raise ValueError("lease='polling_interval' needs a polling_interval")
            return self.polling_interval * 1000
        return round(self.lease * MICROSECONDS)
