"""All errors of the package, in one tree, ordered by who must act.

    PerfectError
    ├── ConfigurationError      you, in the program or its environment
    │   └── JournalError        you, at the journal's path or its disk
    ├── ClientClosed            you: open a client
    ├── JobRefused              you, in the parameters of this job
    │   ├── PictureRefused      you, in this picture
    │   └── SourceLost          you: give the picture again
    ├── ApiError                (status, code, request_id)
    │   ├── Unauthorized        you, at the key
    │   ├── RequestRefused      you or this package: the vendor read the request and refused it
    │   ├── RateLimited         nobody: wait, or lower `Limits`
    │   ├── ServiceUnavailable  nobody: wait, since no usable answer came back
    │   └── BadAnswer           the vendor: its answer is malformed or unsafe
    ├── UnitsExhausted          you, at the balance
    │   └── CeilingReached      you, at `max_units`
    ├── WebhookRejected         nobody, or you: at the webhook's secret or this machine's clock
    └── TaskError               (task_id)
        ├── TaskFailed          depends on `code`: mostly you, in the picture
        ├── TaskExpired         nobody: the vendor dropped the task
        ├── TaskTimedOut        nobody: the vendor's own limit ended the task
        ├── TaskAbandoned       you, if you still want the task
        ├── ResultUnreadable    you: `raw` holds what you paid for
        ├── NotSaved            you, at the disk: the vendor still has the picture
        ├── WaitTimeout         you, if you still want to wait (also a TimeoutError)
        └── SubmissionInDoubt   you: only you can agree to a second charge

Every message says what happened, which units are at stake, and what to do next; `hint` is the last
part alone. Text of the vendor's is quoted with its control characters escaped and cut at 300
characters. No message holds the API key or a signed URL.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import TypeVar

_QUOTE = 300
_LONGEST_URL = 200
# Long enough for "data:" and any common media type.
_LONGEST_TYPE = 40
# Matches a URL, also a mistyped one: `https://`, `htps:/`, `https//`, `http;//`.
_URL_LIKE = re.compile(r"\s*(?:[htps]{3,7}[:;,.]*[/\\]|[a-z][a-z0-9+.-]+:[/\\])", re.IGNORECASE)
# How many candidates a message names; the attribute has all of them.
_SHOWN = 3

QUOTES = "\"'`\u2018\u2019\u201c\u201d"
"""Quotation marks that people copy along with a key or secret, the curly ones included."""


def quoted(text: object, limit: int = _QUOTE) -> str:
    """Return `text` from outside, made safe for a message: escaped, quoted, cut at `limit`."""
    shown = ascii(str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 2] + "…" + shown[-1]


def shown_value(value: object) -> str:
    """Return a wrong value for a message, so that text and a number look different.

    Numbers, None, True and False stand without quotes; the type follows any other value.
    """
    if value is None or isinstance(value, int | float):
        return quoted(value)[1:-1]
    return f"{quoted(value)} ({type(value).__name__})"


def without_secrets(url: str) -> str:
    """Return `url` without its credentials, query and fragment, which may be secret.

    Parsers disagree about where credentials end, so all text before an "@" in the first segment is
    dropped.
    """
    shown = re.split(r"[?#]", url, maxsplit=1)[0]
    found = re.match(r"(?P<head>(?:[A-Za-z][A-Za-z0-9+.-]*:(?=[/\\]))?[/\\]*)[^/\\]*@", shown)
    return shown if found is None else found["head"] + shown[found.end() :]


def shown_source(source: str) -> str:
    """Return a picture's source, a path or a URL, without its secrets, for a message.

    A mistyped URL counts as a path, so credentials are dropped wherever a part looks like them. A
    `data:` URL holds the picture itself, so only its beginning is shown.
    """
    data = re.match(r"\s*data:[A-Za-z0-9/+.-]*", source, re.IGNORECASE)
    if data is not None:
        return data[0][:_LONGEST_TYPE] + "…"
    if _URL_LIKE.match(source) is None:
        return re.sub(r"[^/\\\s]*:[^/\\\s]*@", "", source)
    return re.sub(r"[^/\\]*@", "", re.split(r"[?#]", source, maxsplit=1)[0])


def redacted(url: str) -> str:
    """Return `url` without its secrets, escaped and cut at 200 characters, for a message."""
    text = without_secrets(url)
    escaped = text[: _LONGEST_URL + 1].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= _LONGEST_URL else escaped[: _LONGEST_URL - 1] + "…"


class PerfectError(Exception):
    """The base of every error that this package raises.

        try:
            result = await client.run(job)
        except PerfectError as error:
            print(error.message, error.hint, error.units_at_stake)

    - `message`: what happened, without the hint; `str(error)` has both.
    - `hint`: what to do next.
    - `units_at_stake`: the units that were charged, or may have been, without a result; 0.0 if
      nothing was bought or all units were returned.
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
        # The default calls the class with `args` alone, which some errors here do not accept.
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
    """Return an equal error to raise elsewhere, since raising an error adds to its traceback."""
    other = copy.copy(error)
    if error.__cause__ is not None:
        other.__cause__ = error.__cause__
    return other


class ConfigurationError(PerfectError):
    """The client was set up or used in a way that cannot work; nothing was sent.

    The message names the setting, its value and the values that work.
    """

    hint = "Nothing was sent; correct the setting named here."


class JournalError(ConfigurationError):
    """The journal cannot be opened or written; nothing was bought.

    The reason is its path, its format, the disk, or another process that uses it. A task that
    cannot be recorded is not created.

    `in_use`: another client or process has the journal open, so opening it later may work.
    """

    hint = "Nothing was bought; correct what is named here."

    def __init__(self, message: str, *, in_use: bool = False, units_at_stake: float = 0.0) -> None:
        super().__init__(message, units_at_stake=units_at_stake)
        self.in_use = in_use


class ClientClosed(PerfectError):
    """The client, or the batch, closed before this job was sent; nothing was bought.

    `Result.save` and `read` raise it too if the client is closed. That task is finished and paid
    for, and the hint says how to fetch its result again with `Client.attach`.
    """

    hint = "Nothing was bought for this job; run it on an open client."


class JobRefused(PerfectError):
    """The parameters of a job are outside the vendor's limits; nothing was sent.

    The message names the parameter, its value and the limit.
    """

    hint = "Nothing was sent; correct the job."


class PictureRefused(JobRefused):
    """A picture is outside the vendor's limits, or cannot be read; nothing was sent.

    - `fittable`: whether `Client(fit=True)` converts it into what the vendor accepts.
    - `reason`: why it was refused, in a word or two, for counting: "webp", "0 bytes", "unreadable".

    The hint fits the reason: another path for a missing file, `Client.batch` for a list, another
    try where the file could not be read for a reason that may pass. (contract: Input pictures)
    """

    hint = "Nothing was sent; use another picture or convert this one."

    def __init__(
        self,
        message: str,
        *,
        passing: bool = False,
        fittable: bool = False,
        reason: str = "unusable",
        advice: str | None = None,
        units_at_stake: float = 0.0,
    ) -> None:
        super().__init__(message, units_at_stake=units_at_stake)
        self.fittable = fittable
        self.reason = reason
        if advice is not None:
            self.hint = f"Nothing was sent; {advice}."
        if fittable:
            self.hint = "Nothing was sent; use another picture, or let Client(fit=True) convert it."
        if passing:
            self.hint = "Nothing was bought; try again."


class SourceLost(JobRefused):
    """The picture of a job that a former process left can no longer be found.

    The job was not created. Its picture was given as bytes, as a signed URL, or as a file that has
    changed or gone since.
    """

    hint = "Nothing was bought for this job; run it again with its picture."


class ApiError(PerfectError):
    """A request to the vendor failed, at the vendor or on the way.

    - `status`: the HTTP status; None if no answer came.
    - `code`: the vendor's `error_code`, or None.
    - `request_id`: the `x-request-id` of the answer, which the vendor's support asks for, or None.
    """

    hint = "Try again later; if it goes on, send the request id to the vendor's support."

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
    """The key is wrong, inactive or expired (401). The client creates no more tasks."""

    hint = "Check the key in the vendor's console and open a new client."


class RequestRefused(ApiError):
    """The vendor read the request and refused it (4xx); nothing was created or charged.

    `code` is the vendor's reason. (contract: Errors)
    """

    hint = "Nothing was charged; correct what the vendor names."


class RateLimited(ApiError):
    """The vendor refused a request again and again with 429, so something else uses the key."""

    hint = "Nothing was charged; lower `Limits` or find out who else uses this key."


class ServiceUnavailable(ApiError):
    """The vendor gave no usable answer: no connection, a dropped one, a timeout, or a 5xx.

    - `never_sent`: True only if the vendor certainly did not see the request.
    - `lasting`: True if trying again cannot help, since the host's certificate is refused.
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
    """The vendor's answer is malformed, too large, or names a URL that is not safe to follow."""

    hint = "No part of it was used; send the request id to the vendor's support."


class UnitsExhausted(PerfectError):
    """The balance does not cover the job; nothing was charged for it.

    `Client.units` asks for the balance. `request_id` is the `x-request-id` of the answer, or None.
    """

    hint = "Nothing was charged; buy units or run cheaper jobs."

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class CeilingReached(UnitsExhausted):
    """The job would cost more than `max_units` leaves; it was not sent.

    `max_units` is a setting of `Client` and of `Client.batch`.
    """

    hint = "Nothing was charged; raise `max_units` to go on."


class WebhookRejected(PerfectError):
    """A request at the webhook has no valid signature, or is too old; nothing changed.

    `reason` is for your log, never for the sender. It shows no part of the request or the secret.
    """

    hint = (
        "Refuse it; if the vendor sent it, compare the webhook's secret and this machine's clock."
    )

    @property
    def reason(self) -> str:
        """Why the request was rejected."""
        return self.message


class TaskError(PerfectError):
    """An error about one task.

    - `task_id`: the vendor's id, None if it is unknown.
    - `request_id`: the `x-request-id` of the answer that the error came with, or None.
    """

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
    """The vendor's engine failed on the task; the vendor returns the units.

    - `code`: the engine's reason in lower case, such as "error_no_face". New ones may appear.
    - `passing`: True for the four codes that may pass on another try.

    (contract: Engine codes)
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
    """The vendor does not know the task, mostly since nobody polled it in time.

    Its units may have been charged. The vendor gives the same answer to an id, a feature, a version
    or a key other than those that the task was created with. (contract: Expiry and charging)
    """

    hint = "Compare the balance; run the job again if a second charge is acceptable."


class TaskTimedOut(TaskError):
    """The vendor's own time limit ended the task (500, "Task execution timed out"). It is final."""

    hint = "Compare the balance; run the job again if a second charge is acceptable."


class TaskAbandoned(TaskError):
    """The client stopped polling a task that was still running.

    It ran for longer than `Polling.give_up_after`, or the client closed. The task is lost after its
    lease; until then `Client.attach` with `task_id` keeps it alive again:

        result = await client.attach(Smile, error.task_id)
    """

    hint = "The units are charged; a task that nobody polls is lost after its lease."


class ResultUnreadable(TaskError):
    """The task succeeded and was charged, but no picture can be read from the vendor's answer.

    `raw` is the vendor's decoded `results`, or its whole answer if there are none. It may hold
    signed URLs, so message, `repr` and `str` leave it out.
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
    """The pictures were made and charged, but could not be written to their folder.

    The vendor keeps them for a day at least. `__cause__` is the error of the disk or the download,
    if there is one. `Client.attach` fetches them again at no charge:

        result = await client.attach(Smile, error.task_id)
        await result.save("another folder/")
    """

    hint = "Fix the cause, then save them: by resuming the journal, or attach() with the task id."


class WaitTimeout(TaskError, TimeoutError):
    """The caller's own `timeout` ran out. A task that was created goes on and is kept alive.

        except WaitTimeout as error:
            if error.task_id is not None:
                result = await client.attach(Smile, error.task_id)

    It is also a `TimeoutError`. `task_id` is None if the job was not sent, which costs nothing, or
    if its creation has no answer yet, which `units_at_stake` shows. The hint says which it is, and
    the message says so if the request window of the key was full.
    """

    hint = (
        "A task that was created goes on while the client is open; a job that was never sent costs "
        "nothing."
    )


class SubmissionInDoubt(TaskError):
    """The creation was sent and its answer never came, so the task may exist and be charged.

    `candidates` are the ids of tasks that may be the lost one, oldest first. Each may also be
    another program's task with another person's picture, so none is taken without your consent.

        status = await client.status(Smile, error.candidates[0])       # looks, and keeps nothing
        result = await client.attach(Smile, error.candidates[0])       # takes it; look at the face
        result = await client.run(job, buy_in_doubt=True)      # or: consent to a second charge
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
