"""Units: the grants, what was taken from them and given back, and the price list."""

from __future__ import annotations

import math

import attrs

from ._features import FEATURES

DAY = 86_400.0

# Ids above 2**53 and odd, which a client that reads them as floats cannot keep (contract:
# Other calls).
_BIG = 2**53 + 1


@attrs.define
class Grant:
    """Units of one purchase."""

    id: int
    type: str
    amount: float
    expiry: int


@attrs.frozen
class Movement:
    """One line of the history; `parts` are units per grant id."""

    id: int
    timestamp: int
    action: str
    task_id: str
    parts: tuple[tuple[int, float], ...]

    def wire(self) -> dict[str, object]:
        """As `client/credit/history` shows it."""
        return {
            "id": self.id,
            "timestamp": self.timestamp,
            "action": self.action,
            "target_id": self.task_id,
            "info": {
                "credits": [
                    {"id": grant, "amount": int(amount), "amount_dec": amount}
                    for grant, amount in self.parts
                ]
            },
        }


class Purse:
    """The account's units.

    `math.inf` units is the account whose list of grants is empty: that means unknown, not zero
    (contract: Other calls), and nothing is ever refused.
    """

    def __init__(self, units: float) -> None:
        self._endless = math.isinf(units)
        first = math.floor(units * 0.6) if not self._endless else 0.0
        parts = {"ApiSubsToken": float(first), "ApiPaygToken": units - first}
        self._grants = [
            Grant(_BIG + 2 * i, kind, amount, 0)
            for i, (kind, amount) in enumerate(parts.items())
            if not self._endless
        ]
        self._taken: dict[str, tuple[tuple[int, float], ...]] = {}
        self.history: list[Movement] = []

    @property
    def balance(self) -> float:
        """Units left."""
        return math.inf if self._endless else sum(grant.amount for grant in self._grants)

    def affords(self, units: int) -> bool:
        """Whether a task of this price can be created."""
        return self.balance >= units

    def charge(self, units: int, task_id: str, wall: float, *, action: str = "consume") -> None:
        """Take units, from the subscription first."""
        parts: list[tuple[int, float]] = []
        left = float(units)
        for grant in self._grants:
            part = min(left, grant.amount)
            if part > 0:
                grant.amount -= part
                left -= part
                parts.append((grant.id, part))
        self._taken[task_id] = tuple(parts)
        self._note(action, task_id, wall)

    def give_back(self, task_id: str, wall: float) -> None:
        """Return a task's units to the grants that they came from."""
        for grant in self._grants:
            grant.amount += sum(part for owner, part in self._taken[task_id] if owner == grant.id)
        self._note("refund", task_id, wall)

    def wire(self, wall: float) -> list[object]:
        """As `client/credit` shows it."""
        expiry = int((wall + 30 * DAY) * 1000)
        return [
            {
                "id": grant.id,
                "type": grant.type,
                "amount": int(grant.amount),
                "amount_dec": grant.amount,
                "expiry": expiry,
            }
            for grant in self._grants
        ]

    def _note(self, action: str, task_id: str, wall: float) -> None:
        number = _BIG + 1000 + 2 * len(self.history)
        taken = self._taken[task_id]
        self.history.append(Movement(number, int(wall * 1000), action, task_id, taken))


def price_list() -> list[object]:
    """As `credit/feature-cost` shows it: our two features among enough others to need pages."""
    others = ("hair-color", "makeup-vto", "skin-analysis", "photo-enhance", "object-removal")
    lines: list[tuple[str, float, int]] = [
        (f"ai-{name}-v{version}", 0.5 * version, 1) for version in range(1, 6) for name in others
    ]
    lines[3:3] = [("ai-smile", 1, 1)]
    lines[22:22] = [("ai-avatar", 1, 4)]
    assert {name for name, _, _ in lines} >= set(FEATURES)  # noqa: S101 - a price per feature
    return [
        {
            "description": name.replace("-", " "),
            "amount": amount,
            "unit": "result_image",
            "proc_unit": proc_unit,
            "run_task_url": f"/s2s/v2.0/task/{name}",
        }
        for name, amount, proc_unit in lines
    ]
