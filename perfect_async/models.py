"""Frozen values of the public API: jobs, settings, and answers about the account.

They hold seconds, units and counts. They know neither the vendor's JSON nor a clock nor a loop.
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
from perfect_async.errors import ConfigurationError, JobRefused, quoted, shown_source, shown_value

Expression: TypeAlias = Literal["smile_with_teeth_visible", "closed_mouth_smile"]
EXPRESSIONS: tuple[str, ...] = ("smile_with_teeth_visible", "closed_mouth_smile")
_MOST_OUTPUTS: Final = 200


def _must_be_text(instance: object, field: str, value: object) -> None:
    # The type is checked too: a number is neither a template nor a key.
    if not isinstance(value, str) or not value.strip():
        name = f"{type(instance).__name__}.{field}"
        raise JobRefused(f"{name} is {shown_value(value)}; it must be text that is not empty.")


def _text(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    _must_be_text(instance, attribute.name, value)


def _text_or_none(
    instance: object, attribute: attrs.Attribute[str | None], value: str | None
) -> None:
    if value is not None:
        _must_be_text(instance, attribute.name, value)


def _expression(_instance: object, _attribute: object, value: str) -> None:
    if value not in EXPRESSIONS:
        raise JobRefused(
            f"expression is {quoted(value)}; it must be one of {', '.join(EXPRESSIONS)}."
        )


def _count(_instance: object, _attribute: object, value: int) -> None:
    if type(value) is not int or not 1 <= value <= _MOST_OUTPUTS:
        raise JobRefused(
            f"output_count is {shown_value(value)}; it must be a whole number from 1 to "
            f"{_MOST_OUTPUTS}."
        )


@attrs.frozen(eq=False, repr=False)
class FileId(Value):
    """A picture or video that the vendor has already, by its file id; any job takes it as a source.

        file = await client.upload("selfie.jpg")      # or: FileId("id from elsewhere")
        result = await client.run(Smile(file))

    The vendor deletes the file together with any task that used it. Raises `JobRefused` for an
    empty `value`. (contract: Register the file)
    """

    value: str = attrs.field(validator=_text)


@runtime_checkable
class BinaryFile(Protocol):
    """A file object in binary mode, such as `open(path, "rb")` returns."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes; b"" at the end."""
        ...


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that a source needs; Pillow need not be installed."""

    @property
    def mode(self) -> str:
        """The format of its pixels, such as "RGB"."""
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
        case PathLike():
            # It is read by its path, even if it has `read`.
            return repr(source)
        case PillowImage():
            return f"<{source.size[0]} x {source.size[1]} px, {source.mode}>"
        case BinaryFile():
            return "<file object>"
        case _:
            return repr(source)


@attrs.frozen(eq=False, repr=False)
class JobInput(Value):
    """One input of a job: a picture or video, and the name under which it is sent.

    - `name`: "src" is sent as `src_file_id`, or as `src_file_url` if the source is a URL.
    - `source`: as in `Smile`.
    - `index`: the place in a list of inputs, which is sent as `src_file_ids` or `src_file_urls`;
      None for a single input.
    """

    name: str
    source: Source = attrs.field(repr=_shown)
    index: int | None = None


class Job(Value):
    """The base of all jobs, for annotations; make a `Smile`, `Avatar`, `Studio` or `Feature`.

    - `feature`: the vendor's name of the feature, as in the path of its requests.
    - `source`: the picture; `key`: your own identity of the job, such as an order number, or None.
      One key always names one picture, see `Smile`.
    - `formats`: the types of picture that the feature accepts.
    - `longest_side` in pixels, `largest` in bytes, `longest_shape` (long side divided by short
      side): the limits of a picture. `largest_video` in bytes: that of a video.
    - `pictures_only`: whether its results name pictures and nothing else; otherwise they may hold
      any values and files, as those of a `Feature` may.
    - `reusable`: whether the result of an equal job that has finished is fetched again instead of
      bought again, by default (`Client(reuse=...)`).

    (contract: Input pictures)
    """

    # Only declared: attrs would put fields of the base before those of the features. They are not
    # class variables, since a `Feature` has a path of its own.
    feature: str
    formats: tuple[str, ...]
    pictures_only: bool = False
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
        """The pictures and videos that the task is made from."""
        return (JobInput("src", self.source),)

    @property
    def outputs(self) -> int:
        """The number of resulting pictures."""
        return 1

    @property
    def units(self) -> int:
        """The units charged at creation, by the documented prices.

        (contract: Expiry and charging)
        """
        return 1

    @property
    def priced(self) -> bool:
        """Whether `units` is the price; False if the price is unknown."""
        return True

    @property
    def usual(self) -> tuple[float, float] | None:
        """The shortest and longest documented duration in seconds; None if none is documented.

        The scheduler gives it the weight of one observed task. (contract: Durations seen)
        """
        return None


@attrs.frozen(eq=False, repr=False)
class Smile(Job):
    """Make the person in a portrait smile; costs 1 unit.

        result = await client.run(Smile("selfie.jpg"))
        await result.save("smiling.jpg")

    - `source`: a path, bytes, a binary file (read once), a Pillow image, an http(s) URL, or a
      `FileId`. A path is used as it is: `~` and patterns such as `*.jpg` are not expanded, so pass
      `Path("~/a.jpg").expanduser()`, and each path of `Path(".").glob("*.jpg")`. The picture is a
      jpg, png or heic of one person, under 10 MiB; its long side has at most 4096 px and is at most
      20 times the short one. `Client(fit=True)` converts many others. A Pillow image is sent as
      PNG, or as JPEG of quality 95 if the PNG would be too large.
    - `expression`: "smile_with_teeth_visible" or "closed_mouth_smile".
    - `key`: your own identity of the job, such as an order number. One key always names one
      picture: jobs of the same key share one task, and a job with the same key and another picture
      raises `JobRefused`. So a customer number is no key, unless each customer has one picture.
      Without a key the identity is made from the bytes that are sent.

    Raises `JobRefused` for an unknown expression and an empty key. A key that already names another
    picture, and a picture that cannot be sent, raise it when the job is run. (contract: Create the
    task)
    """

    feature = "ai-smile"
    formats = ("jpg", "png", "heic")
    pictures_only = True
    # A face has more than 32 of the 640 px of the long side (contract: Input pictures).
    longest_shape = 20

    source: Source = attrs.field(repr=_shown)
    expression: Expression = attrs.field(default="smile_with_teeth_visible", validator=_expression)
    key: str | None = attrs.field(default=None, validator=_text_or_none)

    @property
    def usual(self) -> tuple[float, float]:
        """5 to 20 s: an assumption, since no duration is recorded (contract: Durations seen)."""
        return 5.0, 20.0


@attrs.frozen(eq=False, repr=False)
class _Styled(Job):
    """The fields that the features with a style have in common."""

    formats = ("jpg", "png")
    pictures_only = True
    # Another run gives other pictures, and users often run a job again for that reason.
    reusable = False

    source: Source = attrs.field(repr=_shown)
    template_id: str = attrs.field(validator=_text)
    output_count: int = attrs.field(default=4, validator=_count)
    key: str | None = attrs.field(default=None, validator=_text_or_none)

    @property
    def outputs(self) -> int:
        """The number of resulting pictures: `output_count`."""
        return self.output_count


@attrs.frozen(eq=False, repr=False)
class Avatar(_Styled):
    """Make avatars of the person in a portrait; costs 1 unit per 4 pictures, rounded up.

        result = await client.run(Avatar("selfie.jpg", "male_studio_00", output_count=8))
        await result.save("avatars/")                 # 8 pictures, 2 units

    - `source`: as in `Smile`, a jpg or png under 10 MiB whose long side has at most 4096 px.
    - `template_id`: the style; `client.templates()` lists them.
    - `output_count`: the number of pictures, 1 to 200; 4 by default.
    - `key`: as in `Smile`.

    Raises `JobRefused` for a count outside 1 to 200, an empty template and an empty key. (contract:
    Create the task)
    """

    feature = "ai-avatar"

    @property
    def units(self) -> int:
        """The units charged at creation: 1 per 4 pictures, rounded up."""
        return -(-self.output_count // 4)

    @property
    def usual(self) -> tuple[float, float] | None:
        """60 to 150 s for one picture; nothing else is recorded (contract: Durations seen)."""
        return (60.0, 150.0) if self.output_count == 1 else None


@attrs.frozen(eq=False, repr=False)
class Studio(_Styled):
    """Make studio pictures of the person in a portrait; costs 1 unit per 2, rounded up.

        async for style in client.templates(Studio):
            print(style.id, style.title)
        result = await client.run(Studio("selfie.jpg", "style id", output_count=4))

    The fields are those of `Avatar`: `source`, `template_id`, `output_count` (1 to 200), `key`.
    Fields, price and result follow the text of the vendor's documents, which has no schema for
    them; no real task was recorded. Raises `JobRefused` as `Avatar` does. (contract: Other
    features)
    """

    feature = "ai-studio"

    @property
    def units(self) -> int:
        """The units charged at creation: 1 per 2 pictures, rounded up."""
        return -(-self.output_count // 2)


@attrs.frozen(eq=False, repr=False)
class Placeholder(Value):
    """Stand for the id of an input in the parameters of a `Feature`.

        Feature("a-feature", {"layers": [{"file": Placeholder("ref")}]}, src="a.jpg", ref="b.png")

    - `name`: the name of the input, as it was passed to `Feature`.
    - `index`: its place in a list of inputs, from 0.

    An input that is given by URL has no id; its URL is sent instead. (contract: Other features)
    """

    name: str
    index: int = 0


Version: TypeAlias = Literal["v2.0", "v2.1"]
Inputs: TypeAlias = "Source | Sequence[Source] | None"

_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Rows of the ledger hold the path, so it is bounded; the vendor's longest has 40 characters.
_LONGEST_PATH: Final = 256
_CALLS: Final = {"delete", "template"}
# The typed features without the vendor's "ai-"; no feature of the vendor has these paths.
_NICKNAMES: Final = {"smile", "avatar", "studio"}
_INPUT: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ENDS: Final = ("_file_id", "_file_url", "_file_ids", "_file_urls")
_MARK: Final = "$input"
"""The key of a placeholder in JSON: `{"$input": "ref", "index": 1}`."""


def feature_name(path: object, version: str = "v2.0") -> str:
    """Return the name of the feature at `path`: "skin-analysis", or "skin-analysis@v2.1".

    Raises `JobRefused` for an unknown version, and for a path that would name another call.
    """
    if (
        not isinstance(path, str)
        or len(path) > _LONGEST_PATH
        or not all(map(_SEGMENT.fullmatch, path.split("/")))
    ):
        raise JobRefused(
            f"{quoted(path)} is not the path of a feature: a path has letters, digits and hyphens, "
            'with slashes between its parts, such as "skin-analysis" or "2d-vto/ring".'
        )
    if other := next((each for each in path.split("/") if each.lower() in _CALLS), None):
        raise JobRefused(
            f"{quoted(path)} is not a feature: {quoted(other)} in a path is another of the "
            "vendor's calls."
        )
    if path in _NICKNAMES:
        raise JobRefused(
            f"{quoted(path)} is not a feature of the vendor; its name is {quoted(f'ai-{path}')}."
        )
    if version not in get_args(Version):
        known = ", ".join(get_args(Version))
        raise JobRefused(f"version is {quoted(version)}; it must be one of {known}.")
    return path if version == "v2.0" else f"{path}@{version}"


def _price(_instance: object, _attribute: object, value: int | None) -> None:
    if value is not None and (type(value) is not int or value < 0):
        raise JobRefused(f"units is {shown_value(value)}; it must be a whole number from 0.")


@attrs.frozen(eq=False, repr=False, init=False)
class Feature(Job):
    """Run any feature of the vendor by its path and parameters; costs what the vendor's page says.

        Feature("skin-analysis", {"dst_actions": ["acne"], "format": "json"}, src="a.jpg")
        Feature("text-to-image/youcam", {"model": "youcam-image-v2", "prompt": "a fox"})

    - `path`: the part behind `/task/` in the vendor's pages, such as "2d-vto/ring" or
      "face-swap/pre-process".
    - `params`: the parameters, sent as they are; a top-level entry that is None is left out. A
      `Placeholder` in them stands for the id of an input.
    - `src`, `ref`, `mask` and any other name: the inputs, if the feature needs any. `src=x` is sent
      as `src_file_id`, or as `src_file_url` for a URL; `ref=[x, y]` as `ref_file_ids` or
      `ref_file_urls`; `mask` under the vendor's name `msk`.
    - `version`: the part before `/task/` in the vendor's pages, "v2.0" or "v2.1".
    - `units`: the price from the vendor's page, rounded up. A spending limit (`max_units`) needs
      it. Without it the price is unknown: the vendor's answers do not name it, so `Result.units`
      and all sums count each task as 1 unit, and `Result.priced` is False.
    - `key`: your own identity of the job, as in `Smile`: one key always names the same inputs.

    An input is a picture (jpg, png, heic, webp, gif, bmp or tiff, under 10 MiB) or a video (mp4 or
    mov, under 100 MiB): a path, bytes, a binary file (read once), a Pillow image, an http(s) URL,
    or a `FileId`. The limits of a single feature are on its page and are not checked here;
    `Client(fit=True)` changes only pictures of too many bytes, pictures turned by EXIF, and colours
    that the vendor shows wrongly.

    `source` is the first input, or empty. `reusable` is False for a feature without inputs, since
    text alone gives another result each time.

    `Result.raw` is the vendor's answer and `Result.outputs` its files. Raises `JobRefused` for a
    path, version, input name, price or parameters that cannot work. (contract: Other features)
    """

    formats = ("jpg", "png", "heic", "webp", "gif", "bmp", "tiff", "mp4", "mov")
    # Each feature has limits of its own, which are not known here.
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
            # Empty text if there is none, since every other job has a source.
            source=inputs[0].source if inputs else "",
            # A task made from text alone gives another result each time, which users often want.
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
        """A copy of the parameters, with their placeholders."""
        return cast("dict[str, object]", placeholders_filled(self._params, lambda each: each))

    @property
    def params_json(self) -> str:
        """The parameters as JSON; equal parameters give equal text."""
        return self._params

    @property
    def inputs(self) -> tuple[JobInput, ...]:
        """The inputs, those of one name next to each other."""
        return self._inputs

    @property
    def units(self) -> int:
        """The price that was given, else 1 unit, the least that a task can cost."""
        return 1 if self.price is None else self.price

    @property
    def priced(self) -> bool:
        """Whether a price was given."""
        return self.price is not None


def _as_inputs(name: str, given: Inputs) -> list[JobInput]:
    """Return the inputs that were `given` under `name`. Raises `JobRefused`."""
    if given is None:
        return []
    if not _INPUT.fullmatch(name):
        raise JobRefused(
            f"{quoted(name)} is not the name of an input: use a-z, 0-9 and _, as in src."
        )
    name = "msk" if name == "mask" else name
    if not isinstance(given, list | tuple):
        return [JobInput(name, cast("Source", given))]
    if not given:
        raise JobRefused(f"{name} is an empty list; leave it out if there is no such input.")
    return [JobInput(name, source, index) for index, source in enumerate(given)]


def _encoded(params: object, inputs: Sequence[JobInput]) -> str:
    """Return `params` as JSON. Raises `JobRefused` for values that cannot be sent."""
    if not isinstance(params, Mapping):
        raise JobRefused(f"params is {quoted(type(params).__name__)}; it must be a dictionary.")
    entries = cast("Mapping[object, object]", params)
    there = {(each.name, each.index or 0) for each in inputs}
    taken = {f"{each.name}{end}" for each in inputs for end in _ENDS}
    if clash := next((name for name in entries if name in taken), None):
        raise JobRefused(
            f"params has {quoted(clash)}, but an input is sent under that name; leave out one of "
            "the two."
        )
    try:
        given = {name: value for name, value in entries.items() if value is not None}
        text = json.dumps(
            _plain(given, there), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (ValueError, RecursionError) as exc:
        raise JobRefused(
            "params holds a number that is not finite, or is nested too deeply."
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
                raise JobRefused(
                    f"params names the input {quoted(name)} [{index}], which was not given."
                )
            return {_MARK: name, "index": index}
        case Mapping():
            entries = cast("Mapping[object, object]", value)
            if _MARK in entries:
                return _plain(_placeholder(entries), there)
            if not all(isinstance(name, str) for name in entries):
                raise JobRefused("params has a name that is not text.")
            return {cast("str", name): _plain(each, there) for name, each in entries.items()}
        case list() | tuple():
            return [_plain(each, there) for each in cast("Sequence[object]", value)]
        case _:
            kind = quoted(type(value).__name__)
            raise JobRefused(
                f"params holds a {kind}; it may hold text, numbers, True and False, None, lists, "
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
    """Decode `Feature.params_json`, with the value of `fill` in place of each placeholder."""

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
            f"{quoted(type(thing).__name__)} is not a job: pass a Smile, Avatar, Studio or Feature."
        )


def _positive(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if type(value) not in {int, float} or not 0 < value < math.inf:
        name = f"{type(instance).__name__}.{attribute.name}"
        raise ConfigurationError(
            f"{name} is {shown_value(value)}; it must be a finite number above 0."
        )


def _whole(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if type(value) is not int or value < 1:
        name = f"{type(instance).__name__}.{attribute.name}"
        raise ConfigurationError(
            f"{name} is {shown_value(value)}; it must be a whole number from 1."
        )


@attrs.frozen(eq=False, repr=False)
class Limits(Value):
    """The vendor's request limits of the key, which the client keeps.

        Client(limits=Limits(requests=200))           # leave 50 of 250 to another program

    - `requests`: how many requests may be sent in any `period`; 250.
    - `period`: the length of that window in seconds; 300.
    - `per_second`: how many requests may be sent in any second; 5.

    Raises `ConfigurationError` for a value that is not a positive number. (contract: Limits)
    """

    requests: int = attrs.field(default=250, validator=_whole)
    period: float = attrs.field(default=300.0, validator=_positive)
    per_second: int = attrs.field(default=5, validator=_whole)
    _whole: Limits | None = attrs.field(default=None, init=False, eq=False, repr=False)

    def split(self, parts: int) -> Limits:
        """Return the share of one of `parts` processes that use the same key.

            Client(limits=Limits().split(3), share=None)      # in each of three processes

        Processes that share the key by a ledger (`Client(share=...)`) use the whole limits
        together, so shares are only for processes without one. Raises `ConfigurationError` if a
        share would be less than one request a second.
        """
        if type(parts) is not int or not 1 <= parts <= min(self.per_second, self.requests):
            raise ConfigurationError(
                f"{self!r} cannot be split into {shown_value(parts)}: "
                "each part needs at least one request a second."
            )
        share = Limits(self.requests // parts, self.period, self.per_second // parts)
        object.__setattr__(share, "_whole", self.whole)
        return share

    @property
    def whole(self) -> Limits:
        """The limits that `split` divided; the limits themselves if they are not a share.

        Processes that share the key by a ledger keep the whole limits together.
        """
        return self if self._whole is None else self._whole


Completion: TypeAlias = Literal["poll", "webhook", "both"]

ASSUMED_LEASE: Final = 10.0
"""Seconds; the shortest that the vendor's documents name (contract: Expiry and charging)."""


FILES_PER_CALL: Final = 80
"""The most pictures that one registration holds."""


class MeasuredLease(float):
    """The lease of `Polling(lease="measured")`.

    It is the assumed lease until the client has read the measured one.
    """

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
    """How running tasks are kept alive; all times in seconds.

        Client(polling=Polling(give_up_after=300, insured=60))

    - `lease`: how long a running task may go without a poll before the vendor drops it. The
      vendor's documents disagree, so the shortest value, 10, is assumed. "measured" uses 0.8 of
      what a task survived in `perfect-async doctor --measure-lease` (or `Client.measure_lease`)
      with this key and host, and never less than 10. If a task is lost within it, the client goes
      back to 10.
    - `interval`: the least time between two polls of a task if the vendor names no
      `polling_interval`; 2. It delays only polls that look for the end of a task early. The polls
      that keep the task alive are sent within the lease, also with a longer `interval`.
    - `give_up_after`: a task that runs for longer is abandoned, and its units are lost; 600.
    - `insured`: how long every running task can be polled for certain; 120. More than
      `give_up_after` counts as `give_up_after`. The client creates a task only if that holds for
      all of them. Longer tasks are covered as far as the observed durations make them likely, so no
      task is lost unless all of them slow down beyond `insured`; then the tasks that the request
      window has no polls for are lost with their units. `insured=give_up_after` loses no task
      whatever the durations, but 50 pictures take about twice the time (1000 the same). A value
      below 120 is faster for some dozens of pictures, and risks running tasks when the vendor's
      engine slows down.
    - `completion`: how the client learns that a task has ended. "poll": by polls; the default
      without a `webhook_secret`. "both": polls keep tasks alive and a notification ends the wait;
      the default with one. "webhook": no polls between creation and notification, as the vendor
      describes it, so that a picture costs two requests; only a task that is long overdue is
      polled. The vendor does not say that a webhook keeps an unpolled task alive, so "webhook"
      risks units: try it first with a few tasks that run for longer than 10 s.

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
                f"Polling.lease is {self.lease} s; it must be at least 1 s, so that a failed poll "
                "can be sent again in time."
            )
        if self.give_up_after < self.lease:
            raise ConfigurationError(
                f"Polling.give_up_after is {self.give_up_after} s; it must be at least "
                f"Polling.lease ({self.lease} s)."
            )

    @property
    def measured(self) -> bool:
        """Whether `lease` was given as "measured"."""
        return isinstance(self.lease, MeasuredLease)


@attrs.frozen(eq=False, repr=False)
class Timeouts(Value):
    """How long single requests may take, in seconds.

        Client(timeouts=Timeouts(request=60, upload=300))

    - `connect`: to connect to a host; 10, since one of the vendor's hosts is slow to connect. The
      others count from the start of a request to the end of its answer.
    - `request`: one call to the vendor's API; 30. A poll without an answer is sent again long
      before.
    - `upload`, `download`: one picture; 120 each.
    - `video`: the upload of a video, and the download of a file of a `Feature`, which may be one;
      900.

    Raises `ConfigurationError` for a value that is not a positive number. (contract: Base URL and
    headers)
    """

    connect: float = attrs.field(default=10.0, validator=_positive)
    request: float = attrs.field(default=30.0, validator=_positive)
    upload: float = attrs.field(default=120.0, validator=_positive)
    download: float = attrs.field(default=120.0, validator=_positive)
    video: float = attrs.field(default=900.0, validator=_positive)


@attrs.frozen(eq=False, repr=False)
class Progress(Value):
    """The progress of a batch: `batch.progress` returns one at any time.

        progress = batch.progress
        print(f"{progress.done} of {progress.total}, {progress.units:g} units")

    - `total`: the number of jobs; None while jobs come from a source without a length, such as a
      generator, that has not ended.
    - `done`, `failed`, `running` (the vendor has the task), `waiting` (not created yet): how many
      jobs are in each state; together they are `total`.
    - `units`: the units charged so far, less those returned; 1 for each task of unknown price.
    - `eta`: the seconds until the last job ends, estimated from the request window and observed
      durations; None while it cannot be estimated.
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
    """One source of units of the account, such as a subscription or a purchase.

    - `id`: the vendor's number, or None.
    - `kind`: the vendor's name, such as "ApiSubsToken" or "ApiPaygToken".
    - `amount`: the units that are left.
    - `expires_at`: when they expire; None if they do not.

    (contract: Units)
    """

    id: int | None
    kind: str
    amount: float
    expires_at: datetime | None


@attrs.frozen(eq=False, repr=False)
class Units(Value):
    """The account's balance: the answer of `Client.units`.

        units = await client.units()
        print(units.balance)

    - `balance`: the units that API calls can spend: the sum of the grants whose kind begins with
      "Api" and that have not expired. None means unknown: the vendor named no grants.
    - `grants`: all grants that the vendor names.

    (contract: Units)
    """

    balance: float | None
    grants: tuple[Grant, ...]
