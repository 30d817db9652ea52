"""What a report is made of: frozen values in seconds, units and counts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePath
from typing import Final, Literal, TypeAlias

import attrs

from perfect_async._value import Value
from perfect_async.errors import ClientClosed, PerfectError

JobOutcome: TypeAlias = Literal["done", "failed", "running", "not sent", "already there"]
RequestKind: TypeAlias = Literal["register", "create", "poll", "other"]

LONGEST: Final = 1_000
"""Characters of a text on the page; a longer one is cut."""


@attrs.frozen(eq=False, repr=False)
class ReportFailure(Value):
    """Why a job failed: the name of the error's class, its message, hint, code and stake.

    `code` is the vendor's or None, `units_at_stake` as in `PerfectError`.
    """

    kind: str
    message: str
    hint: str
    code: str | None = None
    units_at_stake: float = 0.0

    @classmethod
    def of(cls, error: PerfectError) -> ReportFailure:
        """Describe `error`."""
        code: object = getattr(error, "code", None)
        return cls(
            type(error).__name__,
            error.message,
            error.hint,
            None if code is None else str(code),
            error.units_at_stake,
        )

    @staticmethod
    def outcome(error: PerfectError) -> JobOutcome:
        """Return the outcome of a job that ended in `error`."""
        return "not sent" if isinstance(error, ClientClosed) else "failed"


@attrs.frozen(eq=False, repr=False)
class ReportJob(Value):
    """One job: what it was, and what became of it.

    `number` counts from 1 and is unique. `source` is shown; it must hold no secret.
    `picture` is the file of the original, None where there is none on this disk. `details` are the
    parameters of its feature. `units` were charged and not given back; `duration` in seconds.
    `files` are the saved results. `ended` is in seconds since the beginning of the report.
    """

    number: int
    source: str
    outcome: JobOutcome
    picture: Path | None = None
    feature: str = ""
    details: Mapping[str, str] = attrs.field(factory=dict[str, str])
    task_id: str | None = None
    units: float = 0.0
    duration: float | None = None
    files: tuple[Path, ...] = ()
    failure: ReportFailure | None = None
    ended: float | None = None


@attrs.frozen(eq=False, repr=False)
class ReportRequest(Value):
    """One request of the key: when it left and was answered, in seconds since the beginning.

    `jobs` are the numbers of the jobs it was for, none for requests of others. `answer` is the name
    of the event that answered it, such as "Accepted", "Running" or "Limited", empty while there is
    none. `in_window` requests occupied the request window when it had left, itself included.
    """

    kind: RequestKind
    jobs: tuple[int, ...]
    left: float
    answered: float | None
    answer: str
    in_window: int


@attrs.frozen(eq=False, repr=False)
class Report(Value):
    """A run, or what is left of one.

    `began` is the time of the beginning (UTC), `seconds` how long ago that was when the report was
    made; both are None where unknown. `jobs` are the last ones, `left_out` says how many more there
    were. `requests` are the recorded ones, the oldest first. `charged`, `returned` and
    `at_stake` are units of all jobs. `requests_limit`, `period`, `per_second` and `lease` are the
    settings of the client.
    """

    jobs: tuple[ReportJob, ...]
    title: str = "perfect_async"
    began: datetime | None = None
    seconds: float | None = None
    left_out: int = 0
    requests: tuple[ReportRequest, ...] = attrs.field(
        default=(), repr=lambda requests: f"<{len(requests)} requests>"
    )
    charged: float = 0.0
    returned: float = 0.0
    at_stake: float = 0.0
    requests_limit: int = 250
    period: float = 300.0
    per_second: int = 5
    lease: float = 10.0


def shown(text: str, limit: int = LONGEST) -> str:
    """Return `text` for people: cut, with control, format and separator characters escaped.

    Those may reorder or hide what stands beside them, in a browser as well as in a terminal.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)


def short_name(source: str) -> str:
    """Return the last part of a path or URL as it is shown, or all of it where that is nothing."""
    return shown(source.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or source, 120)


def absolute(path: str | PurePath) -> Path | None:
    """Return `path` as an absolute path; None if the working folder, where it starts, is gone."""
    try:
        return Path(path).absolute()
    except OSError:
        return None
