"""A job as it goes on its way: what it costs, what it is called, and what is to become of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import attrs

from perfect_async._api.tasks import FEATURES
from perfect_async._api.urls import picture_url
from perfect_async._files import names
from perfect_async._files.images import ImageFile
from perfect_async._journal.model import Kind, StoredJob
from perfect_async._time import SECOND
from perfect_async.errors import JobRefused, quoted
from perfect_async.events import TaskKind
from perfect_async.models import FileId, Job


@attrs.frozen
class JobOptions:
    """What a caller asks for beside the job: a folder for its pictures, whether the vendor's copies
    are deleted then, and the purses that pay.
    """

    save_to: str | None = None
    delete: bool = False
    purses: tuple[int, ...] = ()


PLAIN: Final = JobOptions()


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
            names.identity(job, picture),
            job,
            job.key is not None or not names.signed(job.source),
            picture,
            source,
            options,
        )

    @classmethod
    def attached(cls, feature: type[Job], task_id: str) -> JobSpec:
        """The errand of a task that somebody created: at least one unit is at stake in it."""
        return cls(feature.feature, 1.0, 1, None, names.FALLBACK, names.of_task(feature, task_id))

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

    @property
    def kind(self) -> TaskKind:
        """Which tasks last like its own."""
        return TaskKind(self.feature, self.outputs, self.usual)

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

    def order(self) -> StoredJob:
        """What a journal holds of it: no bytes, and no signed URL."""
        job, place = self.job, None
        kind: Kind = "bytes"
        if job is None:
            raise AssertionError(self)
        if isinstance(self.source, FileId):
            kind, place = "file", self.source.value
        elif self.source is not None:
            kind, place = "url", None if names.signed(job.source) else self.source
        elif self.picture is not None and self.picture.path is not None:
            kind, place = "path", str(self.picture.path)
        return StoredJob(
            identity=self.identity,
            sure=self.sure,
            stem=self.stem,
            feature=self.feature,
            units=self.units,
            outputs=self.outputs,
            parameters=tuple(names.parameters(job)),
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
