"""Frozen values of the public API: jobs, settings, and answers about the account.

They hold seconds, units and counts, and know nothing of the wire, a clock or a loop.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from os import PathLike
from typing import Final, Literal, Protocol, TypeAlias, cast, get_args, runtime_checkable

import attrs

from perfect_async._value import Value
from perfect_async.errors import ConfigurationError, JobRefused, quoted, shown_source

Expression: TypeAlias = Literal["smile_with_teeth_visible", "closed_mouth_smile"]
EXPRESSIONS: tuple[str, ...] = ("smile_with_teeth_visible", "closed_mouth_smile")
_MOST_OUTPUTS: Final = 200


def _must_be_text(instance: object, field: str, value: object) -> None:
    # The type is checked too: a number is no template, and no key.
    if not isinstance(value, str) or not value.strip():
        name = f"{type(instance).__name__}.{field}"
        raise JobRefused(f"{name} is {quoted(value)}; it must be text that is not empty.")


def _text(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    _must_be_text(instance, attribute.name, value)


def _text_or_none(
    instance: object, attribute: attrs.Attribute[str | None], value: str | None
) -> None:
    if value is not None:
        _must_be_text(instance, attribute.name, value)


def _expression(_instance: object, _attribute: object, value: str) -> None:
    if value not in EXPRESSIONS:
        raise JobRefused(f"expression {quoted(value)} is none of {', '.join(EXPRESSIONS)}.")


def _count(_instance: object, _attribute: object, value: int) -> None:
    if type(value) is not int or not 1 <= value <= _MOST_OUTPUTS:
        raise JobRefused(
            f"output_count {quoted(value)} is not a whole number from 1 to {_MOST_OUTPUTS}."
        )


@attrs.frozen(eq=False, repr=False)
class FileId(Value):
    """A picture that is already at the vendor, by the `file_id` of its registration.

    Raises `JobRefused` where it is empty. (contract: Register the file)
    """

    value: str = attrs.field(validator=_text)


@runtime_checkable
class BinaryFile(Protocol):
    """A file object in binary mode, such as `open(path, "rb")` gives."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes; b"" at the end."""
        ...


@runtime_checkable
class PillowImage(Protocol):
    """What `PIL.Image.Image` is, for type checkers: Pillow need not be there."""

    @property
    def mode(self) -> str:
        """How its pixels are stored."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        ...

    def getbands(self) -> tuple[str, ...]:
        """Name its channels."""
        ...


Source: TypeAlias = (
    "str | PathLike[str] | bytes | bytearray | memoryview | BinaryFile | PillowImage | FileId"
)


def _shown(source: Source) -> str:
    """Return a source for a repr: the length of bytes, a URL without its secrets."""
    match source:
        case bytes() | bytearray():
            return f"<{len(source)} bytes>"
        case memoryview():
            return f"<{source.nbytes} bytes>"
        case str():
            return repr(shown_source(source))
        case PillowImage():
            return f"<{source.size[0]} x {source.size[1]} px, {source.mode}>"
        case BinaryFile():
            return "<file object>"
        case _:
            return repr(source)


@attrs.frozen(eq=False, repr=False)
class JobInput(Value):
    """One input of a job: `source` is sent under `name`, as one of several where it has an `index`.

    "src" is sent as `src_file_id` or `src_file_url`, and several as `src_file_ids` or `..._urls`.
    """

    name: str
    source: Source = attrs.field(repr=_shown)
    index: int | None = None


class Job(Value):
    """The base of the features' jobs; use `Smile`, `Avatar`, `Studio` or `Feature`.

    `feature` is the vendor's name in the path; `formats` the types that it takes, by their first
    bytes; `longest_side` in pixels and `largest` in bytes bound the picture (contract: Input
    pictures), and so does `longest_shape`, how many times its short side the long one may be.
    `largest_video` in bytes bounds a video. `reusable`: an equal job that is finished is fetched
    again, not bought again.
    """

    # Declared only: a field of the base would come before those of the features. They are no class
    # variables, since a `Feature` has a path of its own.
    feature: str
    formats: tuple[str, ...]
    reusable: bool = True
    longest_side: float = 4096
    longest_shape: float = math.inf
    largest: int = 10 * 1024 * 1024
    largest_video: int = 100 * 1024 * 1024
    source: Source
    key: str | None

    __slots__ = ()

    @property
    def inputs(self) -> tuple[JobInput, ...]:
        """What the task is made of, beside its parameters."""
        return (JobInput("src", self.source),)

    @property
    def outputs(self) -> int:
        """The number of resulting pictures."""
        return 1

    @property
    def units(self) -> int:
        """Units charged at creation by the documented prices (contract: Expiry and charging)."""
        return 1

    @property
    def priced(self) -> bool:
        """Whether `units` is what it costs; False where nobody knows the price."""
        return True

    @property
    def usual(self) -> tuple[float, float] | None:
        """The shortest and longest documented duration in seconds, None where there is none.

        It weighs as much as one observed task of that duration (contract: Durations seen).
        """
        return None


@attrs.frozen(eq=False, repr=False)
class Smile(Job):
    """One portrait, made to smile: 1 unit.

    `source` is a path, bytes, a binary file (read once), an image of Pillow's, an http(s) URL or a
    `FileId`: jpg, png or heic under 10 MiB, long side at most 4096 px and 20 times the short one,
    one person. `Client(fit=True)` makes many others into that. An image of Pillow's is sent as PNG
    (as JPEG of quality 95 where that would be too large); the digest of what is sent is the job's
    identity. `key` is your own identity for the job. Raises `JobRefused` for an unknown expression
    and an empty key. (contract: Create the task)
    """

    feature = "ai-smile"
    formats = ("jpg", "png", "heic")
    # A face has more than 32 of the 640 px of the long side (contract: Input pictures).
    longest_shape = 20

    source: Source = attrs.field(repr=_shown)
    expression: Expression = attrs.field(default="smile_with_teeth_visible", validator=_expression)
    key: str | None = attrs.field(default=None, validator=_text_or_none)

    @property
    def usual(self) -> tuple[float, float]:
        """5 to 20 s, an assumption: no duration is recorded (contract: Durations seen)."""
        return 5.0, 20.0


@attrs.frozen(eq=False, repr=False)
class _Styled(Job):
    """Pictures of one portrait in a style: the fields that such features have in common."""

    formats = ("jpg", "png")
    # Another try gives other pictures, which is often the reason for it.
    reusable = False

    source: Source = attrs.field(repr=_shown)
    template_id: str = attrs.field(validator=_text)
    output_count: int = attrs.field(default=4, validator=_count)
    key: str | None = attrs.field(default=None, validator=_text_or_none)

    @property
    def outputs(self) -> int:
        """`output_count`."""
        return self.output_count


@attrs.frozen(eq=False, repr=False)
class Avatar(_Styled):
    """`output_count` (1 to 200) avatars of one portrait: 1 unit per 4, rounded up.

    `source` as in `Smile`: jpg or png under 10 MiB, long side at most 4096 px. `template_id` is the
    style; `client.templates()` lists them. `key` is your own identity for the job. Raises
    `JobRefused` for a count outside 1..200, an empty template and an empty key. (contract: Create
    the task)
    """

    feature = "ai-avatar"

    @property
    def units(self) -> int:
        """1 per 4 pictures, rounded up."""
        return -(-self.output_count // 4)

    @property
    def usual(self) -> tuple[float, float] | None:
        """60 to 150 s for one picture; nothing else is recorded (contract: Durations seen)."""
        return (60.0, 150.0) if self.output_count == 1 else None


@attrs.frozen(eq=False, repr=False)
class Studio(_Styled):
    """`output_count` (1 to 200) studio pictures of one portrait: 1 unit per 2, rounded up.

    The fields are those of `Avatar`; `client.templates(Studio)` lists the styles. Fields, price and
    the shape of the result are read from the vendor's prose, not from its schema, and no task was
    recorded. Raises `JobRefused` as `Avatar` does. (contract: Other features)
    """

    feature = "ai-studio"

    @property
    def units(self) -> int:
        """1 per 2 pictures, rounded up."""
        return -(-self.output_count // 2)


@attrs.frozen(eq=False, repr=False)
class Placeholder(Value):
    """Stands in the parameters of a `Feature` for the id of one of its inputs.

    `name` is the input's, `index` its place where there are several under that name. An input at a
    URL has no id, so that its URL is sent. (contract: Other features)
    """

    name: str
    index: int = 0


Version: TypeAlias = Literal["v2.0", "v2.1"]
Inputs: TypeAlias = "Source | Sequence[Source] | None"

_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What other processes read of a task holds it; the vendor's longest path has 40 characters.
_LONGEST_PATH: Final = 256
_CALLS: Final = {"delete", "template"}
_INPUT: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ENDS: Final = ("_file_id", "_file_url", "_file_ids", "_file_urls")
_MARK: Final = "$input"
"""The key of a placeholder in JSON: `{"$input": "ref", "index": 1}`."""


def feature_name(path: object, version: str = "v2.0") -> str:
    """Return the name of the feature at `path`: "skin-analysis", or "skin-analysis@v2.1".

    Raises `JobRefused` for a path that would lead elsewhere and for an unknown version.
    """
    if (
        not isinstance(path, str)
        or len(path) > _LONGEST_PATH
        or not all(map(_SEGMENT.fullmatch, path.split("/")))
    ):
        raise JobRefused(
            f"{quoted(path)} is no path of a feature: it has letters, digits and hyphens, with "
            'slashes between its parts, as "skin-analysis" and "2d-vto/ring" have.'
        )
    if other := next((each for each in path.split("/") if each.lower() in _CALLS), None):
        raise JobRefused(
            f"{quoted(path)} is no feature: tasks at {quoted(other)} are other calls of the vendor."
        )
    if version not in get_args(Version):
        known = ", ".join(get_args(Version))
        raise JobRefused(f"version {quoted(version)} is none of {known}.")
    return path if version == "v2.0" else f"{path}@{version}"


def _price(_instance: object, _attribute: object, value: int | None) -> None:
    if value is not None and (type(value) is not int or value < 0):
        raise JobRefused(f"units is {quoted(value)}; it must be a whole number from 0.")


@attrs.frozen(eq=False, repr=False, init=False)
class Feature(Job):
    """Any feature of the vendor, by its `path` and `params`; kept alive and charged as the others.

        Feature("skin-analysis", {"dst_actions": ["acne"], "format": "json"}, src="a.jpg")
        Feature("text-to-image/youcam", {"model": "youcam-image-v2", "prompt": "a fox"})

    `path` is what stands behind `/task/` in the vendor's pages ("2d-vto/ring", "face-swap/
    pre-process"), `version` what stands before it ("v2.0" or "v2.1"). `params` are sent as they
    are; None at their top level is left out.

    Inputs: `src=x` is sent as `src_file_id` or, for a URL, as `src_file_url`; `ref=[x, y]` as
    `ref_file_ids` or `ref_file_urls`; any other name likewise, and `mask` by the vendor's `msk`. An
    input is a picture (jpg, png, heic, webp, gif, bmp or tiff, under 10 MiB) or a video (mp4 or
    mov, under 100 MiB), given as a path, bytes, a binary file (read once), an image of Pillow's, an
    http(s) URL or a `FileId`. What a feature takes of these is on its page and is not checked here:
    `Client(fit=True)` changes only what is too many bytes, turned by EXIF, or of odd colours. A
    `Placeholder` in `params` stands for the id of an input. There may be no input at all.

    `units` is the price, which only the vendor's page knows; round a fraction up. A spending limit
    (`max_units`) needs it. `key` is your own identity for the job.

    The result is `Result.raw`, the vendor's answer; its files are `Result.outputs`. Raises
    `JobRefused` for a path, version, name of an input, price or parameters that cannot work.
    (contract: Other features)
    """

    formats = ("jpg", "png", "heic", "webp", "gif", "bmp", "tiff", "mp4", "mov")
    # Each feature has bounds of its own, which are not known here.
    longest_side = math.inf

    path: str
    _params: str
    version: str
    _inputs: tuple[JobInput, ...]
    price: int | None = attrs.field(validator=_price)
    key: str | None = attrs.field(validator=_text_or_none)
    feature: str
    source: Source
    reusable: bool

    def __init__(
        self,
        path: str,
        params: Mapping[str, object] | None = None,
        *,
        src: Inputs = None,
        ref: Inputs = None,
        mask: Inputs = None,
        version: str = "v2.0",
        units: int | None = None,
        key: str | None = None,
        **others: Inputs,
    ) -> None:
        named = {"src": src, "ref": ref, "mask": mask, **others}
        inputs = tuple(each for name, given in named.items() for each in _as_inputs(name, given))
        self.__attrs_init__(  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
            path=path,
            params=_encoded({} if params is None else params, inputs),
            version=version,
            inputs=inputs,
            price=units,
            key=key,
            feature=feature_name(path, version),
            # Empty text where there is none: a source is no optional thing in other jobs.
            source=inputs[0].source if inputs else "",
            # Made of words alone, another try gives another result, which is often the reason.
            reusable=bool(inputs),
        )

    def __repr__(self) -> str:
        shown = [repr(self.path), repr(self.params)]
        groups: dict[str, list[str]] = {}
        for each in self._inputs:
            groups.setdefault(each.name, []).append(_shown(each.source))
        several = {each.name for each in self._inputs if each.index is not None}
        for name, sources in groups.items():
            joined = ", ".join(sources)
            shown.append(f"{name}=[{joined}]" if name in several else f"{name}={joined}")
        if self.version != "v2.0":
            shown.append(f"version={self.version!r}")
        if self.price is not None:
            shown.append(f"units={self.price!r}")
        if self.key is not None:
            shown.append(f"key={self.key!r}")
        return f"Feature({', '.join(shown)})"

    @property
    def params(self) -> dict[str, object]:
        """A copy of its parameters, with the placeholders in them."""
        return cast("dict[str, object]", placeholders_filled(self._params, lambda each: each))

    @property
    def params_json(self) -> str:
        """Its parameters as JSON, the same text for equal ones."""
        return self._params

    @property
    def inputs(self) -> tuple[JobInput, ...]:
        """Its inputs, those under one name side by side."""
        return self._inputs

    @property
    def units(self) -> int:
        """The given price, else 1 unit, the least that a task may cost."""
        return 1 if self.price is None else self.price

    @property
    def priced(self) -> bool:
        """Whether its price was given."""
        return self.price is not None


def _as_inputs(name: str, given: Inputs) -> list[JobInput]:
    """Return the inputs that were `given` for `name`. Raises `JobRefused`."""
    if given is None:
        return []
    if not _INPUT.fullmatch(name):
        raise JobRefused(f"{quoted(name)} is no name of an input: use a-z, 0-9 and _, as in src.")
    name = "msk" if name == "mask" else name
    if not isinstance(given, list | tuple):
        return [JobInput(name, cast("Source", given))]
    if not given:
        raise JobRefused(f"{name} is an empty list; leave it out where there is none.")
    return [JobInput(name, source, index) for index, source in enumerate(given)]


def _encoded(params: object, inputs: Sequence[JobInput]) -> str:
    """Return `params` as JSON. Raises `JobRefused` for what cannot be sent."""
    if not isinstance(params, Mapping):
        raise JobRefused(f"params is {quoted(type(params).__name__)}; it must be a dictionary.")
    entries = cast("Mapping[object, object]", params)
    there = {(each.name, each.index or 0) for each in inputs}
    taken = {f"{each.name}{end}" for each in inputs for end in _ENDS}
    if clash := next((name for name in entries if name in taken), None):
        raise JobRefused(
            f"params has {quoted(clash)}, which stands for an input; give one of both."
        )
    try:
        given = {name: value for name, value in entries.items() if value is not None}
        text = json.dumps(
            _plain(given, there), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (ValueError, RecursionError) as exc:
        raise JobRefused(
            "params holds a number that is not finite, or is nested too deep."
        ) from exc
    return text


def _plain(value: object, there: set[tuple[str, int]]) -> object:
    """Return `value` as JSON's types, placeholders by `_MARK`. Raises `JobRefused`."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Placeholder(name, index):
            name = "msk" if name == "mask" else name
            if (name, index) not in there:
                raise JobRefused(f"params names the input {quoted(name)} [{index}]; there is none.")
            return {_MARK: name, "index": index}
        case Mapping():
            entries = cast("Mapping[object, object]", value)
            if _MARK in entries:
                return _plain(_placeholder(entries), there)
            if not all(isinstance(name, str) for name in entries):
                raise JobRefused("params has a name that is no text.")
            return {cast("str", name): _plain(each, there) for name, each in entries.items()}
        case list() | tuple():
            return [_plain(each, there) for each in cast("Sequence[object]", value)]
        case _:
            kind = quoted(type(value).__name__)
            raise JobRefused(
                f"params holds a {kind}; it takes text, numbers, true and false, None, lists, "
                "dictionaries and placeholders."
            )


def _placeholder(entries: Mapping[object, object]) -> Placeholder:
    """Return the placeholder that a JSON object with `_MARK` stands for. Raises `JobRefused`."""
    name, index = entries.get(_MARK), entries.get("index", 0)
    if (
        not isinstance(name, str)
        or type(index) is not int
        or not entries.keys() <= {_MARK, "index"}
    ):
        raise JobRefused(f'params holds "{_MARK}" in a form other than {{"{_MARK}": "src"}}.')
    return Placeholder(name, index)


def placeholders_filled(params: str, fill: Callable[[Placeholder], object]) -> object:
    """Return what `Feature.params_json` says, with the value of `fill` for each placeholder."""

    def restored(value: dict[str, object]) -> object:
        return (
            fill(Placeholder(str(value[_MARK]), cast("int", value["index"])))
            if _MARK in value
            else value
        )

    return json.loads(params, object_hook=restored)


def must_be_job(thing: object) -> None:
    """Raise `JobRefused` unless `thing` is a job of a feature."""
    if not isinstance(thing, Job) or type(thing) is Job:
        raise JobRefused(
            f"{quoted(type(thing).__name__)} is no job: pass a Smile, an Avatar or a Feature."
        )


def _positive(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if type(value) not in {int, float} or not 0 < value < math.inf:
        name = f"{type(instance).__name__}.{attribute.name}"
        raise ConfigurationError(f"{name} is {quoted(value)}; it must be a finite number above 0.")


def _whole(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if type(value) is not int or value < 1:
        name = f"{type(instance).__name__}.{attribute.name}"
        raise ConfigurationError(f"{name} is {quoted(value)}; it must be a whole number from 1.")


@attrs.frozen(eq=False, repr=False)
class Limits(Value):
    """The limits of the key: `requests` per `period` seconds, and `per_second`.

    Raises `ConfigurationError` for a value that is no positive number. (contract: Limits)
    """

    requests: int = attrs.field(default=250, validator=_whole)
    period: float = attrs.field(default=300.0, validator=_positive)
    per_second: int = attrs.field(default=5, validator=_whole)
    _whole: Limits | None = attrs.field(default=None, init=False, eq=False, repr=False)

    def split(self, parts: int) -> Limits:
        """Return the share of one of `parts` processes on the same key.

        Processes that share the key by a ledger (`Client(share=...)`) use the whole together, so a
        share counts only where there is none.

        Raises `ConfigurationError` where a share would be less than one request a second, which no
        longer keeps the per-second limit for sure.
        """
        if type(parts) is not int or not 1 <= parts <= min(self.per_second, self.requests):
            raise ConfigurationError(
                f"{self!r} cannot be split into {quoted(parts)}: "
                "each part needs at least one request a second."
            )
        share = Limits(self.requests // parts, self.period, self.per_second // parts)
        object.__setattr__(share, "_whole", self.whole)
        return share

    @property
    def whole(self) -> Limits:
        """The limits that were split into shares; themselves where they were not.

        Processes that share the key by a ledger need no shares: the whole counts for all of them.
        """
        return self if self._whole is None else self._whole


Completion: TypeAlias = Literal["poll", "webhook", "both"]

ASSUMED_LEASE: Final = 10.0
"""Seconds; the shortest that the vendor's documents name (contract: Expiry and charging)."""


class MeasuredLease(float):
    """`Polling(lease="measured")`: the assumed lease until the client has read the measured one."""

    def __repr__(self) -> str:
        return "'measured'" if self == ASSUMED_LEASE else f"{float(self)} (measured)"


def _as_lease(value: float | Literal["measured"]) -> float:
    return MeasuredLease(ASSUMED_LEASE) if value == "measured" else value


def _lease(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if isinstance(cast("object", value), str):
        raise ConfigurationError(
            f'Polling.lease is {quoted(value)}; it must be a number of seconds or "measured".'
        )
    if not isinstance(value, MeasuredLease):
        _positive(instance, attribute, value)


def _completion(_instance: object, _attribute: object, value: object) -> None:
    if value not in {None, "poll", "webhook", "both"}:
        raise ConfigurationError(
            f'Polling.completion is {quoted(value)}; it must be "poll", "webhook" or "both".'
        )


@attrs.frozen(eq=False, repr=False)
class Polling(Value):
    """How tasks are kept alive, in seconds.

    `lease`: a running task that is not polled for so long is lost (the true value is open; 10 is
    assumed). "measured" takes 0.8 of what a task of yours survived when `perfect-async doctor
    --measure-lease` (or `Client.measure_lease`) was run with this key and host, and never less than
    10; the first task that is lost inside it puts the client back to 10.

    `interval`: the least time between two polls of a task where the vendor names no
    `polling_interval`. `give_up_after`: a task older than this is abandoned, and its units are
    lost.

    `insured`: every task in flight can be polled for at least this long, whatever happens, since no
    more tasks are created. Longer tasks are covered as far as the durations seen make them likely.
    So nothing is lost while durations stay as they were, nor while all tasks slow down to
    `insured`; in a slowdown beyond it, the tasks that the window cannot hold are lost with their
    units. `give_up_after` or more is strict: nothing is lost whatever the durations, and 50
    pictures take about twice the time, 1000 the same. Less than the default is faster for some
    dozens of pictures, and puts the tasks in flight at stake when the engine slows down.

    `completion`: how the end of a task is noticed. "poll": by polls alone. "both": polls keep tasks
    alive, and a notification ends the wait; the default with a `webhook_secret`. "webhook": no
    polls between creation and notification, as the vendor describes it; a picture then costs two
    requests, and a task that is long overdue is polled all the same. The vendor says nowhere that a
    webhook lifts the rule that a task is lost when it is not polled for 10 s. So "webhook" risks
    units: try it with a few tasks that run for longer.

    Raises `ConfigurationError` for values that cannot work. (contract: Expiry and charging)
    """

    lease: float = attrs.field(default=ASSUMED_LEASE, converter=_as_lease, validator=_lease)
    interval: float = attrs.field(default=2.0, validator=_positive)
    insured: float = attrs.field(default=120.0, validator=_positive)
    give_up_after: float = attrs.field(default=600.0, validator=_positive)
    completion: Completion | None = attrs.field(default=None, validator=_completion)

    def __attrs_post_init__(self) -> None:
        if self.lease < 1:
            raise ConfigurationError(
                f"Polling.lease is {self.lease}; under 1 s no poll has time for a second try."
            )
        if self.give_up_after < self.lease:
            raise ConfigurationError(
                f"Polling.give_up_after ({self.give_up_after}) is below the lease ({self.lease})."
            )

    @property
    def measured(self) -> bool:
        """Whether the lease is the measured one."""
        return isinstance(self.lease, MeasuredLease)


@attrs.frozen(eq=False, repr=False)
class Timeouts(Value):
    """The longest times of single exchanges, in seconds; all but `connect` for the whole exchange.

    `connect` is generous since one of the vendor's hosts is slow to connect (contract: Base URL and
    headers). `request` bounds a call that creates nothing and one that creates; a poll that is
    silent is asked again long before. `upload` and `download` bound one picture, and `video` the
    upload of a video and the download of what a `Feature` gives, which may be one. Raises
    `ConfigurationError` for a value that is no positive number.
    """

    connect: float = attrs.field(default=10.0, validator=_positive)
    request: float = attrs.field(default=30.0, validator=_positive)
    upload: float = attrs.field(default=120.0, validator=_positive)
    download: float = attrs.field(default=120.0, validator=_positive)
    video: float = attrs.field(default=900.0, validator=_positive)


@attrs.frozen(eq=False, repr=False)
class Progress(Value):
    """The progress of a batch: numbers of jobs, `units` charged net of returns, `eta` in seconds.

    `done`, `failed`, `running` (at the vendor) and `waiting` (not created yet) add up to `total`,
    which is None while the jobs' source has not ended and has no length. `eta` counts from now; it
    comes from the request budget and is None while there is nothing to compute it from.
    """

    total: int | None
    done: int
    failed: int
    running: int
    waiting: int
    units: float
    eta: float | None


@attrs.frozen(eq=False, repr=False)
class Grant(Value):
    """One source of units: `kind` ("ApiSubsToken", "ApiPaygToken"), `amount` of units, its end.

    `id` is None where the vendor names none, `expires_at` where it does not end. (contract: Units)
    """

    id: int | None
    kind: str
    amount: float
    expires_at: datetime | None


@attrs.frozen(eq=False, repr=False)
class Units(Value):
    """The balance in units, None where the vendor names no grants (unknown), and all grants.

    The balance is the sum of the grants that the API can spend: those of a kind that begins with
    "Api" and that have not expired. (contract: Units)
    """

    balance: float | None
    grants: tuple[Grant, ...]
