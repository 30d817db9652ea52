"""Configured faults, and the choice of the fault for each request."""

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

# The last three outcomes are only drawn; a script writes them as `(status, body)`.
Outcome: TypeAlias = Scripted | Literal["gateway", "malformed", "limited"]

# Codes that may pass on another try, and codes that do not (contract: Errors).
ENGINE_ERROR_CODES = (
    "error_no_face",
    "error_inference",
    "error_face_parsing",
    "unknown_internal_error",
)


def check_share(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    """Raise `ValueError` for a value that is not a probability."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{attribute.name} must be a probability from 0 to 1, not {value}")


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
                f"{attribute.name}[{kind!r}] must be a probability from 0 to 1, not {share}"
            )


def _none() -> dict[str, float]:
    return {}


@attrs.frozen(kw_only=True)
class Faults:
    """Probabilities of faults; by default there are none.

        sandbox = Sandbox(faults=Faults(engine_errors=0.1, dropped={"poll": 0.05}))

    Drawn when a task is created:

    - `engine_errors`: the engine fails with one of `engine_error_codes`; the units are returned.
    - `by_picture`: maps a file name, source URL or SHA-256 (hex) of the bytes to an engine code.
    - `stuck`: the task never ends while it is polled.
    - `repeated_task_ids`: the answer has the id of the previous task; the new task is charged and
      runs, but its id is never sent.
    - `timeouts`: the task ends with `500 Task execution timed out`; its units are not returned.
    - `lost_creations`: the task is created and charged, and the answer is lost.

    Drawn when a file is registered:

    - `repeated_file_ids`: the answer has the id of the previous file.

    Drawn for every request, as maps from its kind (`"poll"`, `"task"`, `"upload"`, ...) to a
    probability:

    - `refused_connections`: the connection fails, so the request is neither sent nor counted.
    - `dropped`: the request arrives, is not executed, and the connection ends without an answer.
    - `limited`: the request is not executed, and answered with 429.
    - `hang`: the request is not executed, and answered with 504 after `hang_seconds`.
    - `bad_gateway`: the request is not executed, and answered with `502` and an HTML body.
    - `malformed`: the request is executed, but the 200 has broken JSON or a wrong shape.

    A poll with any of these faults does not renew the lease, which is the pessimistic reading.
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
    """Decides the outcome of each request, by the script or else by chance."""

    def __init__(self, faults: Faults, chance: Chance) -> None:
        self.faults = faults
        self._chance = chance
        self._scripts: dict[str, deque[Scripted]] = {}

    def script(self, kind: str, answers: tuple[Scripted, ...]) -> None:
        """Append to the prepared answers of this kind."""
        if kind not in KINDS:
            raise ValueError(
                f"{kind!r} is no kind of request; the kinds are {', '.join(sorted(KINDS))}"
            )
        for answer in answers:
            if isinstance(answer, str) and answer not in ACTIONS:
                raise ValueError(
                    f"{answer!r} is no action; pass (status, body) or one of {sorted(ACTIONS)}"
                )
        self._scripts.setdefault(kind, deque()).extend(answers)

    def scripted(self, kind: Kind) -> Scripted | None:
        """Remove the next prepared answer of this kind from the script and return it."""
        waiting = self._scripts.get(kind)
        return waiting.popleft() if waiting else None

    def connects(self, kind: Kind) -> bool:
        """Draw whether this request reaches the service."""
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
        # Each fault and kind has its own stream, so a skipped draw does not change others.
        return bool(shares) and self._chance.happens(shares.get(kind, 0.0), f"{fault}/{kind}")
