"""A prepared job: its price, the names of its results, and the options of the caller."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Final, cast

import attrs

from perfect_async._api.tasks import FEATURES, mixed_inputs, pictures_only
from perfect_async._api.urls import picture_url
from perfect_async._files import names
from perfect_async._files.images import ImageFile
from perfect_async._journal.model import (
    NO_STORED_INPUT,
    SourceKind,
    StoredInput,
    StoredJob,
    joined_digest,
    source_digest,
)
from perfect_async._time import SECOND
from perfect_async._value import Value
from perfect_async.errors import JobRefused, quoted
from perfect_async.events import TaskKind
from perfect_async.models import Feature, FileId, Job, JobInput, Source


@attrs.frozen(eq=False, repr=False)
class JobOptions(Value):
    """The caller's options for a job.

    `save_to`: the folder for its pictures. `delete`: whether the vendor's copies are deleted once
    the pictures are saved. `spending_limits`: the numbers of the limits that the job counts
    against. `buy_in_doubt`: the caller agrees to a second charge if an equal job is in doubt.
    `once`: the job is not bought if another process on the key has bought it. `give_up`
    (microseconds) and `engine_retries` are those of this job; None means the client's.
    """

    save_to: str | None = None
    delete: bool = False
    spending_limits: tuple[int, ...] = ()
    buy_in_doubt: bool = False
    once: bool = False
    give_up: int | None = None
    engine_retries: int | None = None


PLAIN: Final = JobOptions()

# Query names of temporary signatures (S3 and similar stores, CloudFront; Azure has `sv` and `sig`).
# A plain `token` or `hash` is not among them, since it stays the same.
_SIGNING: Final = re.compile(
    r"x-(?:amz|goog|oss|cos|ms|obs)-.*|signature|expires|policy|key-pair-id|"
    r"(?:aws|oss)?accesskeyid|googleaccessid",
    re.IGNORECASE,
)
_AZURE: Final = {"sv", "sig"}
_PARAMS: Final = "params"
_INPUTS: Final = "inputs"
_UNITS: Final = "units"


@attrs.frozen(eq=False, repr=False)
class InputSpec(Value):
    """One prepared input of a job.

    `picture` is uploaded if there is one; otherwise `source` is sent. `origin` identifies the
    picture: by its digest, a file id or an unsigned URL. `signed` is the SHA-256 of a signed URL;
    two signed URLs may lead to the same picture. `digest` is that of a picture which a former
    process has inspected.
    """

    picture: ImageFile | None = None
    source: FileId | str | None = attrs.field(default=None, repr=False)
    origin: str | None = attrs.field(default=None, repr=False)
    signed: str | None = None
    digest: str | None = None

    @classmethod
    def of(cls, source: Source, picture: ImageFile | None) -> InputSpec:
        """Prepare `source`, which was inspected. Raises `JobRefused`."""
        if picture is not None:
            return cls(picture, origin=picture.digest)
        if isinstance(source, FileId):
            return cls(source=source, origin=source.value)
        url = picture_url(str(source))
        if is_signed(source):
            return cls(source=url, signed=source_digest(None, url))
        return cls(source=url, origin=url)

    @classmethod
    def restored(cls, stored: StoredInput, file_id: str | None) -> InputSpec:
        """Prepare an input of a former process; an input that is not uploaded has no picture."""
        given = _source_of(stored, file_id)
        return cls(
            source=stored.place if stored.kind == "url" else _file_of(given),
            origin=stored.place if stored.digest is None or stored.is_signed else stored.digest,
            signed=stored.digest if stored.is_signed else None,
            digest=None if stored.is_signed else stored.digest,
        )

    @property
    def source_digest(self) -> str | None:
        """The SHA-256 that identifies its picture; None for a signed URL."""
        if self.picture is not None:
            return self.picture.digest
        return source_digest(self.digest, self.origin)

    def stored(self, source: Source) -> StoredInput:
        """Return the form for a journal, without bytes and without a signed URL."""
        kind: SourceKind = "bytes"
        place: str | None = None
        if isinstance(self.source, FileId):
            kind, place = "file", self.source.value
        elif self.source is not None:
            kind, place = "url", None if is_signed(source) else self.source
        elif self.picture is not None and self.picture.path is not None:
            kind, place = "path", str(self.picture.path)
        return StoredInput(
            kind, place, self.signed if self.picture is None else self.picture.digest
        )


NO_INPUT: Final = InputSpec()


@attrs.frozen(eq=False, repr=False)
class JobSpec(Value):
    """One prepared job.

    `job` is None for a task that is known by its id alone. `sure`: whether equal identities mean
    equal jobs. `stem` and `file_identity` name its results. `inputs` are the job's, in their order.
    """

    feature: str
    units: float
    outputs: int
    usual: tuple[int, int] | None
    stem: str
    identity: str
    job: Job | None = None
    sure: bool = False
    inputs: tuple[InputSpec, ...] = ()
    options: JobOptions = PLAIN

    @property
    def first(self) -> InputSpec:
        """The first input; most jobs have only this one."""
        return self.inputs[0] if self.inputs else NO_INPUT

    @property
    def picture(self) -> ImageFile | None:
        """The picture of the first input, if it is uploaded."""
        return self.first.picture

    @property
    def source(self) -> FileId | str | None:
        """The file id or URL that is sent for the first input, if it is not uploaded."""
        return self.first.source

    @property
    def sources(self) -> list[FileId | str | None]:
        """The file id or URL that is sent for each input; None for one that is uploaded."""
        return [each.source for each in self.inputs]

    @property
    def file_identity(self) -> str:
        """The identity for file names, which differs between pictures even if the key is equal.

        Two signed URLs count as two pictures, since they may lead to two.
        """
        if self.job is None or self.job.key is None:
            return self.identity
        return _file_identity(self.job, self.identity, self.inputs)

    @property
    def source_digest(self) -> str | None:
        """The SHA-256 that identifies its pictures; None with a signed URL or without pictures."""
        return joined_digest([each.source_digest for each in self.inputs])

    @property
    def pictures_only(self) -> bool:
        """Whether its results must be pictures, see `Job`."""
        return pictures_only(self.feature, self.job)

    @property
    def priced(self) -> bool:
        """Whether a spending limit can count its units."""
        return self.job is None or self.job.priced

    @classmethod
    def of(
        cls, job: Job, picture: ImageFile | None, options: JobOptions, *more: ImageFile | None
    ) -> JobSpec:
        """Prepare `job` with its inspected inputs, of which `picture` is the first.

        Raises `JobRefused`.
        """
        pictures = (picture, *more)[: len(job.inputs)]
        inputs = tuple(
            InputSpec.of(each.source, found)
            for each, found in zip(job.inputs, pictures, strict=True)
        )
        _check_names(job, inputs)
        spec = cls(
            job.feature,
            float(job.units),
            job.outputs,
            _usual(job),
            names.stem(job),
            identity(job, *(None if found is None else found.digest for found in pictures)),
            job,
            job.key is not None or not any(is_signed(each.source) for each in job.inputs),
            inputs,
            options,
        )
        if options.spending_limits:
            spec.check_price()
        return spec

    def check_price(self) -> None:
        """Raise `JobRefused` if the price is unknown, since a spending limit needs it."""
        if not self.priced:
            raise JobRefused(
                f"the price of {self.feature} is unknown, so max_units cannot count it: pass "
                "units= with the price from the vendor's page."
            )

    @classmethod
    def attached(cls, feature: str, task_id: str) -> JobSpec:
        """Prepare a job for a task that exists; it counts as one unit, the least that it cost."""
        return cls(feature, 1.0, 1, None, names.FALLBACK, task_identity(feature, task_id))

    @classmethod
    def restored(
        cls,
        order: StoredJob,
        file_id: str | None,
        spending_limits: tuple[int, ...],
        more_ids: Sequence[tuple[int, str]] = (),
    ) -> JobSpec:
        """Prepare a job of a former process from its journal.

        `file_id` is the first input's at the vendor, and `more_ids` has those of the others by
        their numbers. A picture that is not uploaded is not inspected here. Raises `JobRefused` if
        this version cannot make such a job.
        """
        job = cls.job_of(order, file_id, more_ids)
        ids = {0: file_id, **dict(more_ids)}
        return cls(
            order.feature,
            order.units,
            order.outputs,
            _usual(job),
            order.stem,
            order.identity,
            job,
            order.sure,
            tuple(
                InputSpec.restored(each, ids.get(number))
                for number, each in enumerate(order.inputs)
            ),
            JobOptions(order.save_to, order.delete, spending_limits),
        )

    @property
    def changes(self) -> tuple[str, ...]:
        """The changes that `Client(fit=True)` made to its pictures.

        If there are several inputs, each change names its input.
        """
        given = () if self.job is None else self.job.inputs
        found: list[str] = []
        for name, each in zip(map(_shown_name, given), self.inputs, strict=False):
            made = () if each.picture is None else each.picture.changes
            found += made if len(given) == 1 else (f"{name}: {change}" for change in made)
        return tuple(found)

    @property
    def kind(self) -> TaskKind:
        """The kind of its task; tasks of one kind last equally long."""
        return TaskKind(self.feature, self.outputs, self.usual)

    @staticmethod
    def kind_of(job: Job) -> TaskKind:
        """Return the kind of the task of `job`, before its picture is inspected."""
        return TaskKind(job.feature, job.outputs, _usual(job))

    @staticmethod
    def job_of(
        order: StoredJob, file_id: str | None, more_ids: Sequence[tuple[int, str]] = ()
    ) -> Job:
        """Make the job of `order`; a source that is no longer known is b"".

        Raises `JobRefused` if this version cannot make such a job.
        """
        held = dict(order.parameters)
        ids = {0: file_id, **dict(more_ids)}
        sources = [_source_of(each, ids.get(n)) for n, each in enumerate(order.inputs)]
        if _PARAMS in held:
            return _feature(order, held, sources)
        kind, [source] = FEATURES.get(order.feature), sources or [b""]
        if kind is None:
            raise JobRefused(f"this version does not know the feature {quoted(order.feature)}.")
        # The other fields of the class come from the journal, so a type checker cannot know them.
        make = cast("Callable[..., Job]", kind)
        try:
            return make(source=source, key=order.key, **held)
        except TypeError as exc:
            raise JobRefused(f"{order.feature} has other parameters in this version.") from exc

    def stored(self) -> StoredJob:
        """Return the form for a journal, without bytes and without a signed URL."""
        job = self.job
        if job is None:
            raise AssertionError(self)
        pairs = zip(self.inputs, job.inputs, strict=True)
        first, *more = [each.stored(given.source) for each, given in pairs] or [NO_STORED_INPUT]
        return StoredJob(
            identity=self.identity,
            sure=self.sure,
            stem=self.stem,
            feature=self.feature,
            units=self.units,
            outputs=self.outputs,
            parameters=tuple(parameters(job)),
            key=job.key,
            kind=first.kind,
            place=first.place,
            digest=first.digest,
            save_to=self.options.save_to,
            delete=self.options.delete,
            more=tuple(more),
        )


def _shown_name(given: JobInput) -> str:
    return given.name if given.index is None else f"{given.name}[{given.index}]"


def _source_of(stored: StoredInput, file_id: str | None) -> FileId | str | bytes:
    """Return the source of an input of a former process; b"" if it is no longer known."""
    if stored.kind == "bytes" and file_id is not None:
        return FileId(file_id)
    if stored.place is None:
        return b""
    return FileId(stored.place) if stored.kind == "file" else stored.place


def _file_of(source: Source) -> FileId | None:
    return source if isinstance(source, FileId) else None


def _feature(order: StoredJob, held: dict[str, str | int], sources: Sequence[Source]) -> Feature:
    """Make the `Feature` of `order`, whose parameters are `held`. Raises `JobRefused`."""
    path, _, version = order.feature.partition("@")
    inputs: dict[str, Source | list[Source]] = {}
    try:
        params = cast("dict[str, object]", json.loads(str(held[_PARAMS])))
        layout = cast("list[tuple[str, int | None]]", json.loads(str(held.get(_INPUTS, "[]"))))
        for (name, index), source in zip(layout, sources, strict=True):
            if index is None:
                inputs[name] = source
            else:
                cast("list[Source]", inputs.setdefault(name, [])).append(source)
        price = None if _UNITS not in held else int(held[_UNITS])
    except (TypeError, ValueError, AttributeError) as exc:
        raise JobRefused(
            f"the journal has the {order.feature} in a form that this version does not know."
        ) from exc
    return Feature(path, params, version=version or "v2.0", units=price, key=order.key, **inputs)


def _check_names(job: Job, inputs: Sequence[InputSpec]) -> None:
    """Raise `JobRefused` for inputs of one name that cannot be sent together."""
    urls: dict[str, bool] = {}
    for each, found in zip(job.inputs, inputs, strict=True):
        is_url = isinstance(found.source, str)
        if urls.setdefault(each.name, is_url) != is_url:
            raise JobRefused(mixed_inputs(each.name))


def _usual(job: Job) -> tuple[int, int] | None:
    """Return the documented shortest and longest duration of such a task, in microseconds."""
    usual = job.usual
    return usual and (round(usual[0] * SECOND), round(usual[1] * SECOND))


def is_signed(source: Source) -> bool:
    """Return whether `source` is a URL with a temporary signature.

    A later URL of the same picture has another signature, and two URLs that differ only in their
    signatures may lead to different pictures.
    """
    if not isinstance(source, str) or not names.is_url(source):
        return False
    query = source.strip().partition("#")[0].partition("?")[2]
    keys = {pair.partition("=")[0] for pair in query.split("&")}
    return any(_SIGNING.fullmatch(key) for key in keys) or keys >= _AZURE


def identity(job: Job, *digests: str | None) -> str:
    """Return the identity of `job`, which equal jobs share at any time: 64 hex digits (SHA-256).

    With a `key` it covers the feature and the key. Otherwise it covers the feature, the parameters
    and each input: the digest of its bytes (`digests`), its URL or its file id. The signature of a
    signed URL is included, since two signatures may lead to two pictures. The identity must not
    change between versions, since file names and journals hold it.
    """
    parts: list[object]
    if job.key is not None:
        parts = ["key", job.feature, job.key]
    elif isinstance(job, Feature):
        origins = [
            [each.name, each.index, *_origin(each.source, digest)]
            for each, digest in zip(job.inputs, digests, strict=True)
        ]
        parts = ["feature", job.feature, job.params_json, origins]
    else:
        parts = ["job", job.feature, sorted(parameters(job)), *_origin(job.source, digests[0])]
    return _digest(parts)


def name_identity(job: Job, *digests: str | None) -> str:
    """Return the identity for the file names of `job`, before the job is prepared.

    `digests` are as in `identity`. Raises `JobRefused` for a URL that cannot be sent.
    """
    known = identity(job, *digests)
    if job.key is None:
        return known
    inputs = [
        InputSpec.of(each.source, None) if digest is None else InputSpec(origin=digest)
        for each, digest in zip(job.inputs, digests, strict=True)
    ]
    return _file_identity(job, known, inputs)


def _file_identity(job: Job, known: str, inputs: Sequence[InputSpec]) -> str:
    origins = [each.origin if each.signed is None else ["signed", each.signed] for each in inputs]
    whole: object = origins if isinstance(job, Feature) else origins[0]
    return _digest(["file", known, sorted(parameters(job)), whole])


def task_identity(feature: str, task_id: str) -> str:
    """Return an identity, in the form of `identity`, for a job of which only the task is known."""
    return _digest(["task", feature, task_id])


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def parameters(job: Job) -> list[tuple[str, str | int]]:
    """Return the parameters of `job`, its pictures excluded, by the names of its fields.

    A `Feature` has its parameters and the names of its inputs as JSON, and its price if that was
    given; these names tell it from other jobs.
    """
    if isinstance(job, Feature):
        layout = json.dumps([[each.name, each.index] for each in job.inputs])
        price = [] if job.price is None else [(_UNITS, job.price)]
        return [(_PARAMS, job.params_json), (_INPUTS, layout), *price]
    feature = type(job)
    fields = [field.name for field in attrs.fields(feature)] if attrs.has(feature) else []
    values: list[tuple[str, str | int | None]] = [
        (name, getattr(job, name)) for name in fields if name not in {"source", "key"}
    ]
    # None is not sent either, so a parameter that a later version adds changes no identity.
    return [(name, value) for name, value in values if value is not None]


def _origin(source: Source, digest: str | None) -> tuple[str, str]:
    match source:
        case FileId(value):
            return "file", value
        case str() if names.is_url(source):
            return "url", _normalised(source)
        case _ if digest is not None:
            return "digest", digest
        case _:
            raise TypeError(
                "the identity of a job with a picture of its own needs the digest of its bytes."
            )


def _normalised(url: str) -> str:
    """Return `url` without its fragment, which is not sent, and without empty parameters."""
    address, _, query = url.strip().partition("#")[0].partition("?")
    kept = "&".join(pair for pair in query.split("&") if pair)
    return f"{address}?{kept}" if kept else address
