"""A prepared job: its price, the names of its results, and the options of the caller."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Final, cast

import attrs

from perfect_async._api.tasks import FEATURES
from perfect_async._api.urls import picture_url
from perfect_async._files import names
from perfect_async._files.images import ImageFile
from perfect_async._journal.model import SourceKind, StoredJob, source_digest
from perfect_async._time import SECOND
from perfect_async._value import Value
from perfect_async.errors import JobRefused, quoted
from perfect_async.events import TaskKind
from perfect_async.models import FileId, Job, Source


@attrs.frozen(eq=False, repr=False)
class JobOptions(Value):
    """The options of a caller for a job.

    `save_to`: the folder for its pictures. `delete`: whether the vendor's copies are deleted once
    they are saved. `spending_limits`: the numbers of the limits that the job counts against.
    `buy_in_doubt`: the caller agrees to a second charge where an equal job is in doubt. `once`: the
    job is not bought where another process on the key has bought it. `give_up` (microseconds) and
    `engine_retries` are those of this job, None where those of the client hold.
    """

    save_to: str | None = None
    delete: bool = False
    spending_limits: tuple[int, ...] = ()
    buy_in_doubt: bool = False
    once: bool = False
    give_up: int | None = None
    engine_retries: int | None = None


PLAIN: Final = JobOptions()

# Query names that sign a URL for a while (S3 and its likes, CloudFront; Azure has `sv` and `sig`).
# A plain `token` or `hash` is none of them: it is the same each time.
_SIGNING: Final = re.compile(
    r"x-(?:amz|goog|oss|cos|ms|obs)-.*|signature|expires|policy|key-pair-id|"
    r"(?:aws|oss)?accesskeyid|googleaccessid",
    re.IGNORECASE,
)
_AZURE: Final = {"sv", "sig"}


@attrs.frozen(eq=False, repr=False)
class JobSpec(Value):
    """One prepared job.

    `job` is None for a task that is known by its id alone. `sure`: whether equal identities are
    equal jobs. `picture` is to be uploaded; `source` is sent where nothing is uploaded. `stem` and
    `file_identity` name its results. `origin` tells its picture from others: the digest, a file id
    or a URL that is not signed. `signed` is the SHA-256 of a signed URL, which may lead to the same
    picture as another one.
    """

    feature: str
    units: float
    outputs: int
    usual: tuple[int, int] | None
    stem: str
    identity: str
    job: Job | None = None
    sure: bool = False
    picture: ImageFile | None = None
    source: FileId | str | None = attrs.field(default=None, repr=False)
    options: JobOptions = PLAIN
    origin: str | None = attrs.field(default=None, repr=False)
    signed: str | None = None

    @property
    def file_identity(self) -> str:
        """The identity for file names: another one for each picture, even if the key is equal.

        Two signed URLs count as two pictures, since they may be.
        """
        if self.job is None or self.job.key is None:
            return self.identity
        origin = self.origin if self.signed is None else ["signed", self.signed]
        return _digest(["file", self.identity, sorted(parameters(self.job)), origin])

    @property
    def source_digest(self) -> str | None:
        """What tells its picture from others, as a SHA-256; None for a signed URL."""
        if self.picture is not None:
            return self.picture.digest
        return source_digest(None, self.origin)

    @classmethod
    def of(cls, job: Job, picture: ImageFile | None, options: JobOptions) -> JobSpec:
        """Prepare `job`, whose picture was inspected. Raises `JobRefused`."""
        source: FileId | str | None = None
        origin = signed = None
        if picture is not None:
            origin = picture.digest
        elif isinstance(job.source, FileId):
            source, origin = job.source, job.source.value
        else:
            source = picture_url(str(job.source))
            if is_signed(job.source):
                signed = source_digest(None, source)
            else:
                origin = source
        return cls(
            job.feature,
            float(job.units),
            job.outputs,
            _usual(job),
            names.stem(job),
            identity(job, None if picture is None else picture.digest),
            job,
            job.key is not None or not is_signed(job.source),
            picture,
            source,
            options,
            origin,
            signed,
        )

    @classmethod
    def attached(cls, feature: type[Job], task_id: str) -> JobSpec:
        """Prepare the watching of a task that exists: at least one unit is at stake in it."""
        return cls(feature.feature, 1.0, 1, None, names.FALLBACK, task_identity(feature, task_id))

    @classmethod
    def restored(
        cls, order: StoredJob, file_id: str | None, spending_limits: tuple[int, ...]
    ) -> JobSpec:
        """Prepare a job of a former process from its journal.

        A picture that is not at the vendor is not inspected here. Raises `JobRefused` where this
        version cannot make such a job.
        """
        job = cls.job_of(order, file_id)
        given = job.source
        source = given if isinstance(given, FileId) else None
        return cls(
            order.feature,
            order.units,
            order.outputs,
            _usual(job),
            order.stem,
            order.identity,
            job,
            order.sure,
            source=order.place if order.kind == "url" else source,
            options=JobOptions(order.save_to, order.delete, spending_limits),
            origin=order.place if order.digest is None or order.is_signed else order.digest,
            signed=order.digest if order.is_signed else None,
        )

    @property
    def changes(self) -> tuple[str, ...]:
        """What was changed in its picture to make it fit."""
        return () if self.picture is None else self.picture.changes

    @property
    def kind(self) -> TaskKind:
        """Which tasks last like its own."""
        return TaskKind(self.feature, self.outputs, self.usual)

    @staticmethod
    def kind_of(job: Job) -> TaskKind:
        """Return the kind of task that `job` is, before its picture is looked at."""
        return TaskKind(job.feature, job.outputs, _usual(job))

    @staticmethod
    def job_of(order: StoredJob, file_id: str | None) -> Job:
        """Make the job of `order`; its source is b"" where that is no longer known.

        Raises `JobRefused` where this version cannot make such a job.
        """
        source: FileId | str | bytes = b""
        if order.kind == "bytes" and file_id is not None:
            source = FileId(file_id)
        elif order.place is not None:
            source = FileId(order.place) if order.kind == "file" else order.place
        kind = FEATURES.get(order.feature)
        if kind is None:
            raise JobRefused(f"this version knows no feature {quoted(order.feature)}.")
        # The journal alone knows the other fields of this class, so its type cannot say them.
        make = cast("Callable[..., Job]", kind)
        try:
            return make(source=source, key=order.key, **dict(order.parameters))
        except TypeError as exc:
            raise JobRefused(f"{order.feature} has other parameters in this version.") from exc

    def stored(self) -> StoredJob:
        """Return the form that a journal stores: without bytes, and without a signed URL."""
        job, place = self.job, None
        kind: SourceKind = "bytes"
        if job is None:
            raise AssertionError(self)
        if isinstance(self.source, FileId):
            kind, place = "file", self.source.value
        elif self.source is not None:
            kind, place = "url", None if is_signed(job.source) else self.source
        elif self.picture is not None and self.picture.path is not None:
            kind, place = "path", str(self.picture.path)
        return StoredJob(
            identity=self.identity,
            sure=self.sure,
            stem=self.stem,
            feature=self.feature,
            units=self.units,
            outputs=self.outputs,
            parameters=tuple(parameters(job)),
            key=job.key,
            kind=kind,
            place=place,
            digest=self.signed if self.picture is None else self.picture.digest,
            save_to=self.options.save_to,
            delete=self.options.delete,
        )


def _usual(job: Job) -> tuple[int, int] | None:
    """Return the documented shortest and longest duration of such a task, in microseconds."""
    usual = job.usual
    return usual and (round(usual[0] * SECOND), round(usual[1] * SECOND))


def is_signed(source: Source) -> bool:
    """Return whether `source` is a URL with a signature that lasts for a while.

    The next URL of the same picture has another signature, and two URLs that differ only in their
    signatures may lead to different pictures.
    """
    if not isinstance(source, str) or not names.is_url(source):
        return False
    query = source.strip().partition("#")[0].partition("?")[2]
    keys = {pair.partition("=")[0] for pair in query.split("&")}
    return any(_SIGNING.fullmatch(key) for key in keys) or keys >= _AZURE


def identity(job: Job, digest: str | None) -> str:
    """Return what makes `job` the same job another day, as 64 hex digits (SHA-256).

    It covers the user's `key` and the feature, if there is a key; else the feature, its parameters
    and the picture: the `digest` of its bytes, its URL or its file id. The signature of a signed
    URL is part of it: two signatures may lead to two pictures. Stable between versions: file names
    and journals hold it.
    """
    parts: list[object]
    if job.key is not None:
        parts = ["key", job.feature, job.key]
    else:
        parts = ["job", job.feature, sorted(parameters(job)), *_origin(job.source, digest)]
    return _digest(parts)


def task_identity(feature: type[Job], task_id: str) -> str:
    """Return the identity of a job of which only the task is known, in the form of `identity`."""
    return _digest(["task", feature.feature, task_id])


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def parameters(job: Job) -> list[tuple[str, str | int]]:
    """Return what `job` asks for beside its picture, by the names of its fields."""
    feature = type(job)
    fields = [field.name for field in attrs.fields(feature)] if attrs.has(feature) else []
    values: list[tuple[str, str | int | None]] = [
        (name, getattr(job, name)) for name in fields if name not in {"source", "key"}
    ]
    # None is left out on the wire too, so a parameter that a later version adds changes no
    # identity.
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
