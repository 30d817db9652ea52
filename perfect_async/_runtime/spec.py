"""A job as it goes on its way: what it costs, what it is called, and what is to become of it."""

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
from perfect_async._journal.model import SourceKind, StoredJob
from perfect_async._time import SECOND
from perfect_async.errors import JobRefused, quoted
from perfect_async.models import FileId, Job, Source


@attrs.frozen
class JobOptions:
    """What a caller asks for beside the job: a folder for its pictures, whether the vendor's copies
    are deleted then, and the purses that pay.
    """

    save_to: str | None = None
    delete: bool = False
    purses: tuple[int, ...] = ()


PLAIN: Final = JobOptions()

# Query names that sign a URL for a while (S3 and its likes, CloudFront, Azure): they change with
# each signing, the picture does not. A plain `token` or `hash` is none of them: it may be all that
# tells two people's pictures apart, and taking one for the other is worse than paying twice.
_SIGNING: Final = re.compile(
    r"x-(?:amz|goog|oss|cos|ms|obs)-.*|signature|expires|policy|key-pair-id|"
    r"(?:aws|oss)?accesskeyid|googleaccessid",
    re.IGNORECASE,
)
_AZURE: Final = re.compile(
    "s[vsrpteik]|srt|spr|sig|sip|sdd|ses|sk(?:oid|tid|[tesv])|s[acu]oid|scid"
)


@attrs.frozen
class JobSpec:
    """One job on its way.

    `job` is None for a task that is known by its id alone. `stem` and `identity` name its results;
    `sure`: whether equal identities are equal jobs. `picture` is what has to be uploaded, `source`
    what is sent where nothing has to.
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

    @classmethod
    def of(cls, job: Job, picture: ImageFile | None, options: JobOptions) -> JobSpec:
        """The errand of `job`, which was looked at. Raises `JobRefused`."""
        source: FileId | str | None = None
        if picture is None:
            given = job.source
            source = given if isinstance(given, FileId) else picture_url(str(given))
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
        )

    @classmethod
    def attached(cls, feature: type[Job], task_id: str) -> JobSpec:
        """The errand of a task that somebody created: at least one unit is at stake in it."""
        return cls(feature.feature, 1.0, 1, None, names.FALLBACK, task_identity(feature, task_id))

    @classmethod
    def recalled(cls, order: StoredJob, file_id: str | None, purses: tuple[int, ...]) -> JobSpec:
        """The errand of a job of a former process, as far as its journal holds it.

        A picture that is not at the vendor is not looked at here. Raises `JobRefused` where this
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
            options=JobOptions(order.save_to, order.delete, purses),
        )

    @staticmethod
    def job_of(order: StoredJob, file_id: str | None) -> Job:
        """The job of `order`; b"" is its source where that is not known any longer.

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
        # Typed as what it is: a class whose other fields only the journal knows.
        make = cast("Callable[..., Job]", kind)
        try:
            return make(source=source, key=order.key, **dict(order.parameters))
        except TypeError as exc:
            raise JobRefused(f"{order.feature} has other parameters in this version.") from exc

    def stored(self) -> StoredJob:
        """Return what a journal holds of it: no bytes, and no signed URL."""
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
            digest=None if self.picture is None else self.picture.digest,
            save_to=self.options.save_to,
            delete=self.options.delete,
        )


def _usual(job: Job) -> tuple[int, int] | None:
    """From how long to how long such a task lasts, in microseconds."""
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
    return any(_SIGNING.fullmatch(key) for key in keys) or {"sv", "sig"} <= keys


def identity(job: Job, digest: str | None) -> str:
    """Return what makes `job` the same job another day, as 64 hex digits (SHA-256).

    It covers the user's `key` and the feature, if there is a key; else the feature, its parameters
    and the picture: the `digest` of its bytes, its URL or its file id. The signature of a signed
    URL is left out, since it changes each time; the rest of the query stays, since it may tell
    pictures apart. Stable between versions: file names and journals hold it.
    """
    parts: list[object]
    if job.key is not None:
        parts = ["key", job.feature, job.key]
    else:
        parts = ["job", job.feature, sorted(parameters(job)), *_origin(job.source, digest)]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def task_identity(feature: type[Job], task_id: str) -> str:
    """Return the identity of a job of which only the task is known, in the form of `identity`."""
    parts = ["task", feature.feature, task_id]
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
            return "url", _unsigned(source)
        case _ if digest is not None:
            return "digest", digest
        case _:
            raise TypeError(
                "the identity of a job with a picture of its own needs the digest of its bytes."
            )


def _unsigned(url: str) -> str:
    """Return `url` without its fragment and without the parameters that sign it."""
    address, _, query = url.strip().partition("#")[0].partition("?")
    pairs = [(pair.partition("=")[0], pair) for pair in query.split("&") if pair]
    azure = {"sv", "sig"} <= {name for name, _ in pairs}  # both in every shared access signature
    kept = [
        pair
        for name, pair in pairs
        if not _SIGNING.fullmatch(name) and not (azure and _AZURE.fullmatch(name))
    ]
    return "?".join([address, "&".join(kept)]) if kept else address
