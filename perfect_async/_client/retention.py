"""Pictures that are saved as part of their jobs, and the vendor's copies that are deleted then.

A job that is to be saved counts as done when its files are on the disk. Only then, and only when no
other job uses the same file at the vendor, are the vendor's copies deleted: deleting a task deletes
its input files as well (contract: Other calls).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import attrs

from perfect_async._api.responses import same_code
from perfect_async._client.results import Done, Failed, Outcome
from perfect_async._files import names as names_module
from perfect_async._journal.journal import JobEntry
from perfect_async._log import LOG, type_name
from perfect_async._runtime.handle import JobHandle
from perfect_async.errors import NotSaved, PerfectError, RequestRefused
from perfect_async.models import FileId

_MOST_SAVES: Final = 8
"""Results downloaded at once; what they wait for, keeps its URL for two hours."""
_PAUSES: Final = (0.0, 1.0, 5.0, 20.0)
"""Seconds before each try of a deletion."""
_GONE: Final = ("OperationNotSupport", "InvalidTaskId")
"""What the vendor says to the deletion of a task that is deleted already."""


@attrs.frozen
class Copy:
    """The vendor's copy of one finished task, that is to be deleted; `file` went into it."""

    task_id: str
    entry: JobEntry
    file: FileId | None = None


class Retention:
    """Saves and deletes for one client.

    `delete` asks the vendor to forget a task; `used` tells whether a job on its way needs a task or
    its file.
    """

    def __init__(
        self,
        delete: Callable[[str], Awaitable[None]],
        used: Callable[[str, FileId | None], bool],
    ) -> None:
        self._delete = delete
        self._used = used
        self._saves = anyio.Semaphore(_MOST_SAVES)
        self._saving: set[JobHandle] = set()
        # Files that a source of jobs may name again, and what waits until nobody needs its file.
        self._held: Counter[FileId] = Counter()
        self._waiting: list[Copy] = []
        self._fetching: Counter[str] = Counter()
        self._going: set[str] = set()
        self._erasing = 0
        self._changed = anyio.Event()

    # Who needs what.

    def hold(self, source: object) -> None:
        """Whoever reads jobs may meet the file `source` again (anything but a `FileId` is none)."""
        if isinstance(source, FileId):
            self._held[source] += 1

    def let_go(self, sources: Iterable[object]) -> None:
        """It will not."""
        self._held.subtract([source for source in sources if isinstance(source, FileId)])
        self._held += Counter()

    @contextmanager
    def fetching(self, task_id: str) -> Generator[bool]:
        """Somebody asks for the task of a job that is over; False if it is being deleted."""
        self._fetching[task_id] += 1
        try:
            yield task_id not in self._going
        finally:
            self._fetching[task_id] -= 1
            self._fetching += Counter()

    def delete(self, copies: Iterable[Copy]) -> None:
        """They are to be deleted, once nobody needs them."""
        self._waiting.extend(copies)

    def begin(self, handle: JobHandle) -> None:
        """`handle` has ended, and is to be kept."""
        self._saving.add(handle)

    def end(self, handle: JobHandle, outcome: Outcome) -> None:
        """It is kept, or could not be; what its terms want deleted waits for its turn."""
        self._saving.discard(handle)
        self._pulse()
        if handle.spec.options.delete and isinstance(outcome, Done) and outcome.files:
            file = handle.source if isinstance(handle.source, FileId) else None
            self.delete([Copy(outcome.task_id, handle.entry, file)])

    def free(self) -> list[Copy]:
        """What can be deleted now, to be erased: nobody needs it or its file any more.

        Each is given once.
        """
        free = [copy for copy in self._waiting if not self._busy(copy)]
        self._waiting = [copy for copy in self._waiting if copy not in free]
        self._erasing += bool(free)
        return free

    def _busy(self, copy: Copy) -> bool:
        task_id, file = copy.task_id, copy.file
        saving = any(handle.needs(task_id, file) for handle in self._saving)
        held = file is not None and self._held[file] > 0
        return saving or held or self._fetching[task_id] > 0 or self._used(task_id, file)

    async def change(self) -> None:
        """Wait until something is saved or deleted."""
        await self._changed.wait()

    def _pulse(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    @property
    def idle(self) -> bool:
        """Whether nothing is being saved or deleted."""
        return not self._saving and not self._erasing

    # Saving and deleting.

    async def keep(self, handle: JobHandle, outcome: Outcome) -> Outcome:
        """Save the pictures of `outcome`, which is that of `handle`, as its terms say.

        The outcome with its `files`, or `Failed` with `NotSaved` where they cannot be written.
        """
        folder = handle.spec.options.save_to
        if folder is None or not isinstance(outcome, Done):
            return outcome
        async with self._saves:
            snapshot = handle.entry.snapshot
            if snapshot is not None and snapshot.saved and (found := await _found(outcome, handle)):
                return attrs.evolve(outcome, files=tuple(found))
            try:
                # The separator says that a folder is meant, also where somebody has removed it.
                files = await outcome.result.save(os.path.join(folder, ""))  # noqa: PTH118
            except (PerfectError, OSError) as exc:
                why = exc.message if isinstance(exc, PerfectError) else str(exc)
                error = NotSaved(
                    f"The pictures were made, but not saved: {why}",
                    task_id=outcome.task_id,
                    units_at_stake=outcome.units,
                )
                error.__cause__ = exc.with_traceback(None)
                return Failed(outcome.job, error, outcome.task_id, outcome.units, outcome.duration)
        handle.entry.saved()
        return attrs.evolve(outcome, files=tuple(files))

    async def erase(self, copies: Iterable[Copy]) -> None:
        """Delete what is `free`, one after another, each tried several times."""
        try:
            for copy in copies:
                await self._erase(copy)
        finally:
            self._erasing -= 1
            self._pulse()

    async def _erase(self, copy: Copy) -> None:
        if self._busy(copy):
            # Meanwhile somebody wants it again.
            self.delete([copy])
            return
        self._going.add(copy.task_id)
        try:
            await self._ask(copy)
        finally:
            self._going.discard(copy.task_id)

    async def _ask(self, copy: Copy) -> None:
        why: PerfectError | None = None
        for pause in _PAUSES:
            await anyio.sleep(pause)
            try:
                await self._delete(copy.task_id)
            except RequestRefused as exc:
                if any(same_code(exc.code, code) for code in _GONE):
                    break
                why = exc
            except PerfectError as exc:
                why = exc
            else:
                break
        else:
            LOG.warning(
                "The vendor's copies of a task were not deleted (%s); a client with the same "
                "journal tries again when it opens.",
                "" if why is None else type_name(why),
            )
            return
        copy.entry.deleted()


async def _found(outcome: Done, handle: JobHandle) -> list[Path]:
    """The files of a job that a former process has saved; none where one of them is gone."""
    spec, count = handle.spec, len(outcome.result.images)
    folder, kinds = Path(spec.options.save_to or ""), sorted(set(names_module.SUFFIXES.values()))

    def look() -> list[Path]:
        found: list[Path] = []
        for number in range(1, count + 1) if count > 1 else [None]:
            names = (
                names_module.in_folder(spec.stem, spec.identity, kind, number) for kind in kinds
            )
            found += [folder / name for name in names if (folder / name).is_file()][:1]
        return found if len(found) == count else []

    return await anyio.to_thread.run_sync(look, abandon_on_cancel=True)
