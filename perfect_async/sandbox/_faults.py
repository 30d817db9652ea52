"""What can go wrong on request, and the fate of one request."""

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
    "unknown",
]
KINDS: frozenset[str] = frozenset(get_args(Kind))

Action = Literal["pass", "refuse", "drop", "lose", "hang"]
ACTIONS: frozenset[str] = frozenset(get_args(Action))
Scripted: TypeAlias = Action | tuple[int, object]
"""One prepared answer: `(status, body)` or a trick by name (see `Sandbox.script`)."""

# FaultPlan that only chance hands out; a script writes these as `(status, body)`.
Outcome: TypeAlias = Scripted | Literal["gateway", "malformed"]

# Some that may pass on another try and some that will not (contract: Errors).
ENGINE_ERROR_CODES = (
    "error_no_face",
    "error_inference",
    "error_face_parsing",
    "unknown_internal_error",
)


def check_share(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    """Raise `ValueError` for what is no probability."""
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
    """Probabilities of what hurts; the default is a perfect service.

    Drawn when a task is created:

    - `engine_errors`: the engine fails with one of `engine_error_codes`; units come back.
    - `by_picture`: file name, source URL or SHA-256 (hex) of the bytes -> engine code.
    - `stuck`: the task runs for ever while it is polled.
    - `timeouts`: the task ends in `500 Task execution timed out`, its units kept.

    Drawn for every call, as maps from the kind of call (`"poll"`, `"task"`, `"upload"`, ...)
    to a probability:

    - `refused_connections`: the call never leaves (a connect error), nothing is counted.
    - `dropped`: the call arrives, is not executed, and the connection ends without an answer.
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
    refused_connections: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    dropped: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    hang: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    hang_seconds: float = 30.0
    bad_gateway: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    malformed: Mapping[str, float] = attrs.field(factory=_none, validator=_check_shares)
    lost_creations: float = attrs.field(default=0.0, validator=check_share)


class FaultPlan:
    """Decides what becomes of each call: the script first, chance after it."""

    def __init__(self, faults: Faults, chance: Chance) -> None:
        self.faults = faults
        self._chance = chance
        self._scripts: dict[str, deque[Scripted]] = {}

    def script(self, kind: str, answers: tuple[Scripted, ...]) -> None:
        """Append to the prepared answers of this kind."""
        if kind not in KINDS:
            raise ValueError(f"no calls of kind {kind!r}; the kinds are {', '.join(sorted(KINDS))}")
        for answer in answers:
            if isinstance(answer, str) and answer not in ACTIONS:
                raise ValueError(
                    f"no trick {answer!r}; write (status, body) or one of {sorted(ACTIONS)}"
                )
        self._scripts.setdefault(kind, deque()).extend(answers)

    def scripted(self, kind: Kind) -> Scripted | None:
        """The next prepared answer of this kind, taken off the script."""
        waiting = self._scripts.get(kind)
        return waiting.popleft() if waiting else None

    def connects(self, kind: Kind) -> bool:
        """Whether chance lets this call reach the service at all."""
        return not self._hit(self.faults.refused_connections, "refused", kind)

    def draw(self, kind: Kind) -> Outcome:
        """What chance does to a call that arrived and was let in."""
        faults = self.faults
        if self._hit(faults.dropped, "dropped", kind):
            return "drop"
        if self._hit(faults.hang, "hang", kind):
            return "hang"
        if self._hit(faults.bad_gateway, "bad gateway", kind):
            return "gateway"
        if self._hit(faults.malformed, "malformed", kind):
            return "malformed"
        if kind == "task" and self._chance.happens(faults.lost_creations, "lost creations"):
            return "lose"
        return "pass"

    def _hit(self, shares: Mapping[str, float], fault: str, kind: Kind) -> bool:
        # Streams of their own per fault and kind: no draw is needed to keep the others in step.
        return bool(shares) and self._chance.happens(shares.get(kind, 0.0), f"{fault}/{kind}")
