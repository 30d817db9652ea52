"""Checks that each job key of a client always names the same picture.

Jobs with one key are equal, so the second one gets the first one's result. If its picture were a
different one, the caller would get the face of another person.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from perfect_async._journal.model import StoredJob
from perfect_async._runtime.handle import JobHandle
from perfect_async._runtime.spec import JobSpec
from perfect_async.errors import JobRefused, PerfectError, SubmissionInDoubt, quoted, redacted
from perfect_async.models import FileId, Job

_MOST: Final = 20_000
_DIGITS: Final = 12  # of a digest in a message


class Keys:
    """The picture of each key that a client has seen, for the last 20,000 keys."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[str, tuple[str, str]] = OrderedDict()
        # For each key whose jobs are being entered: a lock, and how many tasks use it.
        self._turns: dict[tuple[str, str], tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, job: Job) -> AsyncGenerator[None]:
        """Let jobs with one key enter one after another, so that the first one's picture counts."""
        if job.key is None:
            yield
            return
        key = job.feature, job.key
        lock, count = self._turns.get(key, (anyio.Lock(), 0))
        self._turns[key] = lock, count + 1
        try:
            async with lock:
                yield
        finally:
            lock, count = self._turns.pop(key)
            if count > 1:
                self._turns[key] = lock, count - 1

    def claim(self, spec: JobSpec) -> bool:
        """Record the picture of the key of `spec`; return whether it was recorded.

        It is not recorded if `spec` has no key or no picture, or if the key is known. Raises
        `JobRefused` if the key names another picture.
        """
        digest = spec.source_digest
        if spec.job is None or spec.job.key is None or digest is None:
            return False
        known = self._pictures.get(spec.identity)
        if known is not None:
            _check(spec, known)
            return False
        self._pictures[spec.identity] = digest, _name(spec)
        if len(self._pictures) > _MOST:
            self._pictures.popitem(last=False)
        return True

    def release(self, spec: JobSpec) -> None:
        """Forget the key of `spec`, whose job has no task, so that it may name another picture."""
        self._pictures.pop(spec.identity, None)

    def follow(self, handle: JobHandle) -> None:
        """Release the key of `handle` once its job has failed without a possible charge."""

        def ended() -> None:
            error = handle.ending
            if (
                isinstance(error, PerfectError)
                and not isinstance(error, SubmissionInDoubt)
                and not error.units_at_stake
            ):
                self.release(handle.spec)

        handle.subscribe(ended)
        ended()


def check_former(spec: JobSpec, former: StoredJob | None, digest: str | None) -> None:
    """Check the picture of `spec` against the pictures of the same key in former processes.

    `former` is a job that a former process left; `digest` is the picture of one that has ended.
    Raises `JobRefused`.
    """
    if former is not None and former.source_digest is not None:
        shown = redacted if former.kind == "url" else quoted
        name = former.kind if former.place is None else shown(former.place)
        _check(spec, (former.source_digest, name))
    if digest is not None:
        _check(spec, (digest, "one of a former process"))


def _check(spec: JobSpec, known: tuple[str, str]) -> None:
    digest, (known_digest, name) = spec.source_digest, known
    if digest is not None and digest != known_digest and spec.job is not None:
        refusal = JobRefused(
            f"the key {quoted(spec.job.key)} already names another picture: {name} (SHA-256 "
            f"{known_digest[:_DIGITS]}), not {_name(spec)} (SHA-256 {digest[:_DIGITS]})."
        )
        refusal.hint = (
            "Nothing was sent; give each picture a key of its own, such as an order number, or "
            "leave the key out."
        )
        raise refusal


def _name(spec: JobSpec) -> str:
    if spec.picture is not None:
        return "bytes" if spec.picture.path is None else quoted(spec.picture.path)
    if isinstance(spec.source, FileId):
        return f"the file {quoted(spec.source.value)}"
    return redacted(str(spec.source))
