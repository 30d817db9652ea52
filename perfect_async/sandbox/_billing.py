"""Units: the grants, charges and refunds, the unit history, and the price list."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import attrs

from ._catalogue import NAMES
from ._clock import Clock
from ._dialect import Dialect

Charging = Literal["creation", "success"]

DAY = 86_400.0

# Ids are odd and above 2**53, so that a client that reads them as floats loses digits (contract:
# Other calls).
_FIRST_ID = 2**53 + 1

# Description, amount, unit, number of units per amount, feature.
_Price = tuple[str, float, str, int, str]
_PRICES: tuple[_Price, ...] = (
    ("Skin analysis, up to 4 concerns", 9, "result_image", 1, "skin-analysis"),
    ("Skin analysis, up to 7 concerns", 12, "result_image", 1, "skin-analysis"),
    ("Skin analysis, up to 10 concerns", 14, "result_image", 1, "skin-analysis"),
    ("AI smile", 1, "result_image", 1, "ai-smile"),
    ("Ring try-on, one ring", 1, "result_image", 1, "2d-vto/ring"),
    ("Ring try-on, stacked", 2, "result_image", 1, "2d-vto/ring"),
    ("Colour tones", 20, "result_image", 1, "skin-tone-analysis"),
    ("Clothes try-on", 2, "result_image", 1, "cloth-v4"),
    ("Object removal", 1, "result_image", 1, "generative-fill"),
    ("Image from text", 1, "result_image", 1, "text-to-image/youcam"),
    ("Video enhancement", 1, "second", 2, "video-sr"),
    ("Video enhancement, 720p", 0.5, "second", 1, "video-enhance"),
    ("Video enhancement, 1080p", 1, "second", 1, "video-enhance"),
    *(
        (f"AI {name} v{version}", 0.5 * version, "result_image", 1, f"ai-{name}-v{version}")
        for version in range(1, 6)
        for name in ("hair-color", "makeup-vto", "photo-enhance", "object-removal")
    ),
    ("AI avatar", 1, "result_image", 4, "ai-avatar"),
    ("AI studio", 1, "result_image", 2, "ai-studio"),
)


@attrs.frozen
class Grant:
    """Units of one purchase, as a row of `client/credit`.

    `days` is the time until it expires, from the sandbox's first request; at 0 or less it has
    expired. The API spends only grants whose `type` begins with `Api`. With `has_id=False` the row
    has no id.
    """

    type: str
    units: float
    days: float = 365.0
    has_id: bool = True

    @property
    def is_spent_by_api(self) -> bool:
        """Whether tasks are paid from this grant."""
        return self.type.startswith("Api")


@attrs.define
class _Balance:
    """The units left in a grant."""

    id: int
    grant: Grant
    amount: float

    def id_as_json(self) -> dict[str, object]:
        """Return the field with the id, or no field if the grant has no id."""
        return {"id": self.id} if self.grant.has_id else {}


@attrs.frozen
class _Part:
    """A number of units that was taken from one grant (positive) or added to it (negative)."""

    balance: _Balance
    amount: float


@attrs.frozen
class HistoryRow:
    """One row of the unit history; `timestamp` in milliseconds since 1970."""

    id: int
    timestamp: int
    action: str
    target_id: str
    parts: tuple[_Part, ...]

    def as_json(self, dialect: Dialect) -> dict[str, object]:
        """Return the row of `client/credit/history`."""
        sign = -1 if dialect.history_sign == "negative" else 1
        row: dict[str, object] = {
            "id": self.id,
            "timestamp": self.timestamp,
            "action": self.action,
            "target_id": self.target_id,
            "info": {
                "credits": [
                    {
                        **part.balance.id_as_json(),
                        "amount": int(sign * part.amount),
                        "amount_dec": sign * part.amount,
                    }
                    for part in self.parts
                ]
            },
        }
        if dialect.history == "no_target":
            del row["target_id"]
        elif dialect.history == "seconds":
            row["timestamp"] = self.timestamp // 1000
        elif dialect.history == "negative_time":
            row["timestamp"] = -self.timestamp
        return row


class UnitAccount:
    """The units of the account.

    `units` is a number, which is split over two grants, or the grants. With `math.inf` the list of
    grants is empty, which means unknown, not zero (contract: Other calls); nothing is refused.
    """

    def __init__(self, units: float | Sequence[Grant], clock: Clock) -> None:
        self._clock = clock
        self._endless = False
        if isinstance(units, Sequence):
            grants = tuple(units)
        elif math.isinf(units):
            self._endless = True
            grants = ()
        else:
            first = float(math.floor(units * 0.6))
            grants = (Grant("ApiSubsToken", first), Grant("ApiPaygToken", units - first, 730.0))
        self._balances: list[_Balance] = []
        for grant in grants:
            self._add(grant)
        self._taken: dict[str, tuple[_Part, ...]] = {}
        # Units of tasks that are charged only when they succeed.
        self._reserved: dict[str, int] = {}
        self._rows: list[HistoryRow] = []

    @property
    def balance(self) -> float:
        """The units that are left in the grants that the API spends."""
        if self._endless:
            return math.inf
        return sum((balance.amount for balance in self._usable()), 0.0)

    def affords(self, units: int) -> bool:
        """Return whether a task of this price can be created."""
        return self.balance - sum(self._reserved.values()) >= units

    def reserve(self, units: int, task_id: str) -> None:
        """Reserve units for a task without charging them yet."""
        self._reserved[task_id] = units

    def release(self, task_id: str) -> None:
        """End a reservation; does nothing if there is none."""
        self._reserved.pop(task_id, None)

    def charge(self, units: int, task_id: str, wall: float, *, action: str = "consume") -> None:
        """Charge a task; units are taken from the grant that expires first."""
        self.release(task_id)
        self._taken[task_id] = self._take(units)
        self._note(action, task_id, wall, self._taken[task_id])

    def refund(self, task_id: str, wall: float) -> None:
        """Return a task's units to the grants that they were taken from."""
        parts = tuple(_Part(part.balance, -part.amount) for part in self._taken[task_id])
        for part in parts:
            part.balance.amount -= part.amount
        self._note("refund", task_id, wall, parts)

    def book(self, action: str, amount: float, target_id: str, wall: float) -> None:
        """Add a history row of another program: a charge (negative) or a purchase (positive)."""
        if amount < 0:
            parts = self._take(-amount)
        else:
            parts = (_Part(self._add(Grant("ApiPaygToken", amount)), -amount),)
        self._note(action, target_id, wall, parts)

    def history(self) -> list[HistoryRow]:
        """Return the unit history, newest row first."""
        return sorted(self._rows, key=lambda row: (row.timestamp, row.id), reverse=True)

    def as_json(self) -> list[object]:
        """Return the rows of `client/credit`."""
        return [
            {
                **balance.id_as_json(),
                "type": balance.grant.type,
                "amount": int(balance.amount),
                "amount_dec": balance.amount,
                "expiry": int(self._expiry(balance) * 1000),
            }
            for balance in self._balances
        ]

    def _add(self, grant: Grant) -> _Balance:
        balance = _Balance(_FIRST_ID + 2 * len(self._balances), grant, float(grant.units))
        self._balances.append(balance)
        return balance

    def _expiry(self, balance: _Balance) -> float:
        return self._clock.start() + balance.grant.days * DAY

    def _usable(self) -> list[_Balance]:
        now = self._clock.wall(self._clock.now())
        usable = [
            balance
            for balance in self._balances
            if balance.grant.is_spent_by_api and self._expiry(balance) > now
        ]
        return sorted(usable, key=self._expiry)

    def _take(self, units: float) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        left = float(units)
        for balance in self._usable():
            part = min(left, balance.amount)
            if part > 0:
                balance.amount -= part
                left -= part
                parts.append(_Part(balance, part))
        return tuple(parts)

    def _note(self, action: str, target_id: str, wall: float, parts: tuple[_Part, ...]) -> None:
        number = _FIRST_ID + 1000 + 2 * len(self._rows)
        self._rows.append(HistoryRow(number, int(wall * 1000), action, target_id, parts))


def price_list(dialect: Dialect) -> list[object]:
    """Return the rows of `credit/feature-cost`: two pages with all features of the sandbox."""
    assert {price[-1] for price in _PRICES} >= set(NAMES)  # noqa: S101 - a price per feature
    return [
        {
            "description": description,
            "amount": amount,
            "unit": unit,
            **({"proc_unit": proc_unit} if dialect.proc_unit or proc_unit != 1 else {}),
            "run_task_url": f"/s2s/v2.0/task/{feature}",
        }
        for description, amount, unit, proc_unit, feature in _PRICES
    ]
