"""All errors of the package, in one tree that is ordered by who must act.

    PerfectError
    ├── ConfigurationError      you, in the program or its environment
    │   └── JournalError        you, at the journal's path or its disk
    ├── ClientClosed            nobody: the job was not sent
    ├── JobRefused              you, in the parameters of this job
    │   ├── PictureRefused      you, in this picture
    │   └── SourceLost          you: the picture is to be given again
    ├── ApiError                (status, code, request_id)
    │   ├── Unauthorized        you, at the key
    │   ├── RequestRefused      you or we: the vendor read the request and said no
    │   ├── RateLimited         time
    │   ├── ServiceUnavailable  time: no usable answer came back
    │   └── BadAnswer           the vendor: an answer that is not to be believed or followed
    ├── UnitsExhausted          you, at the balance
    │   └── CeilingReached      you, at `max_units`
    ├── WebhookRejected         nobody, or you: at the webhook's secret or this machine's clock
    └── TaskError               (task_id)
        ├── TaskFailed          depends on `code`: mostly the picture
        ├── TaskExpired         nobody: the vendor dropped it
        ├── TaskTimedOut        nobody: the vendor's own limit
        ├── TaskAbandoned       you, if the task is still wanted
        ├── ResultUnreadable    you: `raw` is what was paid for
        ├── NotSaved            you, at the disk: the picture is made and can still be fetched
        ├── WaitTimeout         you, if you still want to wait (also a TimeoutError)
        └── SubmissionInDoubt   you: only you can agree to a second charge

Every message says what happened, whether units are at stake, and what to do next; `hint` is that
last part alone. The vendor's text is quoted with its control characters escaped and cut at 300
characters. No message holds the API key or a signed URL.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import TypeVar

_QUOTE = 300
_LONGEST_URL = 200
# "data:" and the longest of the usual media types.
_LONGEST_TYPE = 40
# A URL, well written or not: `https://`, `htps:/`, `https//`, `http;//`.
_URL_LIKE = re.compile(r"\s*(?:[htps]{3,7}[:;,.]*[/\\]|[a-z][a-z0-9+.-]+:[/\\])", re.IGNORECASE)
# Candidates that a message names; all of them stand in the attribute.
_SHOWN = 3

QUOTES = "\"'`\u2018\u2019\u201c\u201d"
"""Quotation marks that are copied along with a key or secret; word processors slant them."""


def quoted(text: object, limit: int = _QUOTE) -> str:
    """Return foreign `text` fit for a message or a log line: escaped, quoted, cut at `limit`."""
    shown = ascii(str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 2] + "…" + shown[-1]


def without_secrets(url: str) -> str:
    """Return `url` without its credentials, query and fragment: they may sign it or be a password.

    Parsers disagree about where credentials end, so whatever stands before an "@" in the first
    segment is dropped.
    """
    shown = re.split(r"[?#]", url, maxsplit=1)[0]
    found = re.match(r"(?P<head>(?:[A-Za-z][A-Za-z0-9+.-]*:(?=[/\\]))?[/\\]*)[^/\\]*@", shown)
    return shown if found is None else found["head"] + shown[found.end() :]


def shown_source(source: str) -> str:
    """Return a picture's source, a path or a URL, for a message: without what may be secret.

    A mistyped URL is a path to us, so credentials are dropped wherever a part looks like them; a
    `data:` URL is the picture itself and shows its beginning only.
    """
    data = re.match(r"\s*data:[A-Za-z0-9/+.-]*", source, re.IGNORECASE)
    if data is not None:
        return data[0][:_LONGEST_TYPE] + "…"
    if _URL_LIKE.match(source) is None:
        return re.sub(r"[^/\\\s]*:[^/\\\s]*@", "", source)
    return re.sub(r"[^/\\]*@", "", re.split(r"[?#]", source, maxsplit=1)[0])


def redacted(url: str) -> str:
    """Return `url` for a message or a log line: no secrets, escaped, at most 200 characters."""
    text = without_secrets(url)
    escaped = text[: _LONGEST_URL + 1].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= _LONGEST_URL else escaped[: _LONGEST_URL - 1] + "…"


class PerfectError(Exception):
    """The base of every error that this package raises.

    `hint` says what to do next. `units_at_stake` is the number of units that were charged, or may
    have been, without a result: 0.0 where nothing was bought or all was given back.
    """

    hint: str = "See the message."

    def __init__(self, message: str, *, units_at_stake: float = 0.0) -> None:
        super().__init__(message)
        self.units_at_stake = units_at_stake

    @property
    def message(self) -> str:
        """What happened, without `hint`."""
        return str(self.args[0])

    def __str__(self) -> str:
        stake = ""
        if self.units_at_stake:
            are = "unit is" if self.units_at_stake == 1 else "units are"
            stake = f" {self.units_at_stake:g} {are} at stake."
        return f"{self.message}{stake} {self.hint}"

    def __reduce__(self) -> tuple[Callable[..., PerfectError], tuple[object, ...]]:
        # By default the class is called with `args` alone, which not every error here accepts.
        return _restored, (type(self), self.args, vars(self))


def _restored(
    kind: type[PerfectError], args: tuple[object, ...], known: dict[str, object]
) -> PerfectError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(known)
    return error


E = TypeVar("E", bound=PerfectError)


def copy_error(error: E) -> E:
    """Return an equal error to raise elsewhere: raising an error writes a traceback into it."""
    other = copy.copy(error)
    if error.__cause__ is not None:
        other.__cause__ = error.__cause__
    return other


class ConfigurationError(PerfectError):
    """The client was set up or used in a way that cannot work; nothing was sent."""

    hint = "Nothing was sent; correct the setting named here."


class JournalError(ConfigurationError):
    """The journal cannot be opened or written: its path, its format, the disk, or another process.

    No task is created that could not be recorded.
    """

    hint = "Nothing was bought; correct what is named here."


class ClientClosed(PerfectError):
    """The client closed before this job was sent; nothing was bought."""

    hint = "Nothing was bought for this job; run it on an open client."


class JobRefused(PerfectError):
    """The parameters of a job are outside the vendor's limits; nothing was sent."""

    hint = "Nothing was sent; correct the job."


class PictureRefused(JobRefused):
    """A picture is outside the vendor's limits (contract: Input pictures); nothing was sent.

    `passing`: it could not be read just now, and another try may do it. `fittable`: the client can
    make it into what the vendor takes, which the hint then says. `reason`: why it is refused in a
    word or two, for counts: "webp", "0 bytes", "unreadable".
    """

    hint = "Nothing was sent; use another picture or convert this one."

    def __init__(
        self,
        message: str,
        *,
        passing: bool = False,
        fittable: bool = False,
        reason: str = "unusable",
        units_at_stake: float = 0.0,
    ) -> None:
        super().__init__(message, units_at_stake=units_at_stake)
        self.fittable = fittable
        self.reason = reason
        if fittable:
            self.hint = "Nothing was sent; use another picture, or let Client(fit=True) convert it."
        if passing:
            self.hint = "Nothing was bought; try again."


class SourceLost(JobRefused):
    """A job of a former process was not created yet, and its picture can no longer be found.

    It was given as bytes, as a signed URL, or as a file that has changed since.
    """

    hint = "Nothing was bought for this job; run it again with its picture."


class ApiError(PerfectError):
    """A request to the vendor failed, at the vendor or on the way.

    `status` is the HTTP status or None where no answer came; `code` the vendor's `error_code` or
    None; `request_id` the `x-request-id` of the answer, to quote to the vendor's support, or None.
    """

    hint = "Try again later; quote the request id to the vendor if it stays."

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        units_at_stake: float = 0.0,
    ) -> None:
        super().__init__(message, units_at_stake=units_at_stake)
        self.status = status
        self.code = code
        self.request_id = request_id

    def __str__(self) -> str:
        known = {"HTTP": self.status, "code": self.code, "request id": self.request_id}
        facts = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
        text = super().__str__()
        return f"{text} ({facts})" if facts else text


class Unauthorized(ApiError):
    """The key is wrong, inactive or expired (401): final for the client, which creates no more."""

    hint = "Check the key in the vendor's console and open a new client."


class RequestRefused(ApiError):
    """The vendor read the request and refused it (4xx); nothing was created or charged."""

    hint = "Nothing was charged; correct what the vendor names."


class RateLimited(ApiError):
    """The key's request limit was met (429), again and again: something else uses the key."""

    hint = "Nothing was charged; lower `Limits` or find out who else uses this key."


class ServiceUnavailable(ApiError):
    """No usable answer: not connected, dropped, too slow, or a 5xx.

    `never_sent` is True only where it is certain that the vendor did not see the request. `lasting`
    is True where trying again cannot help: the certificate of the host is refused.
    """

    hint = "Try again later; check the network and the vendor's status."

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        units_at_stake: float = 0.0,
        never_sent: bool = False,
        lasting: bool = False,
    ) -> None:
        super().__init__(
            message, status=status, code=code, request_id=request_id, units_at_stake=units_at_stake
        )
        self.never_sent = never_sent
        self.lasting = lasting


class BadAnswer(ApiError):
    """The vendor's answer is malformed, too large, or names a URL that must not be followed."""

    hint = "Nothing of it was used; quote the request id to the vendor."


class UnitsExhausted(PerfectError):
    """The balance does not cover the job; nothing was charged for it."""

    hint = "Nothing was charged; buy units or run cheaper jobs."

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class CeilingReached(UnitsExhausted):
    """The job would cost more than `max_units` leaves; it was not sent."""

    hint = "Nothing was charged; raise `max_units` to go on."


class WebhookRejected(PerfectError):
    """A request at the webhook is not proven to be the vendor's, or is not fresh; nothing changed.

    `reason` is for your log, never for the sender. It quotes nothing of the request and says
    nothing of the secret.
    """

    hint = (
        "Refuse it; if the vendor sent it, compare the webhook's secret and this machine's clock."
    )

    @property
    def reason(self) -> str:
        """Why the request was rejected."""
        return self.message


class TaskError(PerfectError):
    """An error about one task; `task_id` is the vendor's id, None where it is unknown."""

    hint = "Look the task up by its id."

    def __init__(
        self,
        message: str,
        *,
        task_id: str | None = None,
        request_id: str | None = None,
        units_at_stake: float = 0.0,
    ) -> None:
        super().__init__(message, units_at_stake=units_at_stake)
        self.task_id = task_id
        self.request_id = request_id

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} (task {quoted(self.task_id)})" if self.task_id is not None else text


class TaskFailed(TaskError):
    """The engine failed on the task; the vendor gives the units back.

    `code` is the engine's, lower case as on the wire (an open set; contract: Engine codes);
    `passing` is True for the four codes that may pass on another try.
    """

    hint = "The vendor returns the units; use another picture."

    def __init__(
        self,
        message: str,
        *,
        code: str,
        passing: bool,
        task_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, task_id=task_id, request_id=request_id)
        self.code = code
        self.passing = passing
        if passing:
            self.hint = "The vendor returns the units; try again."


class TaskExpired(TaskError):
    """The vendor no longer knows the task: it expired unpolled. Its units may have been charged."""

    hint = "Compare the balance; run the job again if a second charge is acceptable."


class TaskTimedOut(TaskError):
    """The vendor's own limit ended the task (500, "Task execution timed out"): final."""

    hint = "Compare the balance; run the job again if a second charge is acceptable."


class TaskAbandoned(TaskError):
    """The client stopped polling: the task still ran at `Polling.give_up_after` or at closing."""

    hint = "The units are taken; a task that nobody polls is lost after its lease."


class ResultUnreadable(TaskError):
    """The task succeeded and was charged, but no picture can be read from its answer.

    `raw` is the vendor's decoded `results`, or its whole answer where there are none. It may hold
    signed URLs: message, `repr` and `str` show nothing of it.
    """

    hint = "Read `raw`, or ask for the task again by its id within a day; do not buy it again."

    def __init__(
        self,
        message: str,
        *,
        raw: object = None,
        task_id: str | None = None,
        request_id: str | None = None,
        units_at_stake: float = 0.0,
    ) -> None:
        super().__init__(
            message, task_id=task_id, request_id=request_id, units_at_stake=units_at_stake
        )
        self.raw = raw


class NotSaved(TaskError):
    """The pictures were made and paid for, and could not be written to their folder.

    The vendor keeps them for a day at least; `__cause__` is what went wrong.
    """

    hint = "Fix the cause, then save them: by resuming the journal, or attach() with the task id."


class WaitTimeout(TaskError, TimeoutError):
    """The caller's own `timeout` ran out. A task that was created goes on and is kept alive."""

    hint = "A created task goes on while the client is open; nothing is charged for one never sent."


class SubmissionInDoubt(TaskError):
    """The creation went out and its answer never came: the task may exist and be charged.

    `candidates` are the ids of tasks that may be the lost one, oldest first. Each may also be
    another program's task with another person's picture, so none is taken without your consent.
    """

    hint = (
        "Look at the unit history; buy_in_doubt=True, or another run of the program, consents to a "
        "second charge."
    )

    def __init__(
        self,
        message: str,
        *,
        candidates: tuple[str, ...] = (),
        task_id: str | None = None,
        request_id: str | None = None,
        units_at_stake: float = 0.0,
    ) -> None:
        super().__init__(
            message, task_id=task_id, request_id=request_id, units_at_stake=units_at_stake
        )
        self.candidates = candidates

    def __str__(self) -> str:
        text = super().__str__()
        if not self.candidates:
            return text
        shown = ", ".join(quoted(each) for each in self.candidates[:_SHOWN])
        more = len(self.candidates) - _SHOWN
        return f"{text} (it may be {shown}{f' or one of {more} others' if more > 0 else ''})"
