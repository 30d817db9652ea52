"""Faults on request, and which of them a request meets."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import attrs

from ._clock import Chance

Kind = Literal[
    "file",
    "upload",
    "task",
    "poll",
    "result",
    "thumb",
    "template",
    "credit",
    "history",
    "feature_cost",
    "delete",
    "auth",
    "unknown",
]
KINDS: frozenset[str] = frozenset(get_args(Kind))

Action = Literal["pass", "refuse", "drop", "lose", "lose_502", "hang"]
ACTIONS: frozenset[str] = frozenset(get_args(Action))
Scripted: TypeAlias = Action | tuple[int, object]
"""One prepared answer: `(status, body)` or an action by name (see `Sandbox.script`)."""

# Outcomes that only chance gives; a script writes them as `(status, body)`.
Outcome: TypeAlias = Scripted | Literal["gateway", "malformed", "limited"]

# Codes that may pass on another try and codes that will not (contract: Errors).
ENGINE_ERROR_CODES = (
    "error_no_face",
    "error_inference",
    "error_face_parsing",
    "unknown_internal_error",
)


def check_share(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    """Raise `ValueError` for a value that is not a probability."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{attribute.name} is a probability between 0 and 1, not {value}")


def _check_shares(
    _: object, attribute: attrs.Attribute[Mapping[str, float]], value: Mapping[str, float]
) -> None:
    for kind, share in value.items():
        if kind not in KINDS:
            raise ValueError(
                f"{attribute.name} names {kind!r}; the kinds are {', '.join(sorted(KINDS))}"
            )
        if not 0.0 <= share <= 1.0:
            raise ValueError(
                f"{attribute.name}[{kind!r}] is a probability between 0 and 1, not {share}"
            )


def _none() -> dict[str, float]:
    return {}


@attrs.frozen(kw_only=True)
class Faults:
    """Probabilities of faults; by default there are none.

    Drawn when a task is created:

    - `engine_errors`: the engine fails with one of `engine_error_codes`; units come back.
    - `by_picture`: file name, source URL or SHA-256 (hex) of the bytes -> engine code.
    - `stuck`: the task never ends while it is polled.
    - `repeated_task_ids`: the answer has the id of the task created before; this one is charged
      and runs unseen.
    - `timeouts`: the task ends in `500 Task execution timed out`, its units kept.

    Drawn when a file is registered:

    - `repeated_file_ids`: the answer has the id of the file registered before.

    Drawn for every request, as maps from its kind (`"poll"`, `"task"`, `"upload"`, ...) to a
    probability:

    - `refused_connections`: the request never leaves (a connect error); nothing is counted.
    - `dropped`: it arrives, is not executed, and the connection ends without an answer.
    - `limited`: not executed, and a 429.
    - `hang`: not executed, and a 504 after `hang_seconds`.
    - `bad_gateway`: not executed, `502` with an HTML body.
    - `malformed`: executed, but the 200 holds broken JSON or the wrong shape.

    and `lost_creations`: a task is created and charged, and the answer is lost.
    A poll that meets any of these renews no lease, which is the pessimistic reading.
    """

    engine_errors: float = attrs.field(default=0.0, validator=check_share)
    engine_error_codes: tuple[str, ...] = ENGINE_ERROR_CODES
    by_picture: Mapping[str, str] = attrs.field(factory=dict[str, str])
    stuck: float = attrs.field(default=0.0, validator=check_share)
    timeouts: float = attrs.field(default=0.0, validator=check_share)
    repeated_task_ids: float = attrs.field(default=0.0, validator=check_share)
    repeated_file_ids: float = attrs.field(default=0.0, validator=check_share)
    refused_connections: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    dropped: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    hang: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    hang_seconds: float = 30.0
    bad_gateway: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    malformed: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    limited: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    lost_creations: float = attrs.field(default=0.0, validator=check_share)


class FaultPlan:
    """Decides the outcome of each request: first the script, then chance."""

    def __init__(self, faults: Faults, chance: Chance) -> None:
        self.faults = faults
        self._chance = chance
        self._scripts: dict[str, deque[Scripted]] = {}

    def script(self, kind: str, answers: tuple[Scripted, ...]) -> None:
        """Append to the prepared answers of this kind."""
        if kind not in KINDS:
            raise ValueError(
                f"no requests of kind {kind!r}; the kinds are {', '.join(sorted(KINDS))}"
            )
        for answer in answers:
            if isinstance(answer, str) and answer not in ACTIONS:
                raise ValueError(
                    f"no action {answer!r}; write (status, body) or one of {sorted(ACTIONS)}"
                )
        self._scripts.setdefault(kind, deque()).extend(answers)

    def scripted(self, kind: Kind) -> Scripted | None:
        """Take the next prepared answer of this kind off the script."""
        waiting = self._scripts.get(kind)
        return waiting.popleft() if waiting else None

    def connects(self, kind: Kind) -> bool:
        """Draw whether this request reaches the service at all."""
        return not self._hit(self.faults.refused_connections, "refused", kind)

    def draw(self, kind: Kind) -> Outcome:
        """Draw the outcome of a request that arrived and was admitted."""
        faults = self.faults
        if self._hit(faults.dropped, "dropped", kind):
            return "drop"
        if self._hit(faults.hang, "hang", kind):
            return "hang"
        if self._hit(faults.bad_gateway, "bad gateway", kind):
            return "gateway"
        if self._hit(faults.limited, "limited", kind):
            return "limited"
        if self._hit(faults.malformed, "malformed", kind):
            return "malformed"
        if kind == "task" and self._chance.happens(faults.lost_creations, "lost creations"):
            return "lose"
        return "pass"

    def _hit(self, shares: Mapping[str, float], fault: str, kind: Kind) -> bool:
        # Each fault and kind has its own stream: skipping a draw changes no other.
        return bool(shares) and self._chance.happens(shares.get(kind, 0.0), f"{fault}/{kind}")
