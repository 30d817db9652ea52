"""Saves pictures as part of their jobs, and deletes the vendor's copies afterwards.

A job with `save_to` is done when its files are on the disk. The vendor's copies are deleted after
that, and only while no other job uses the same file at the vendor, since deleting a task also
deletes its input files (contract: Other calls).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import attrs

from perfect_async._api.responses import same_code
from perfect_async._client.results import Done, Failed, Outcome, save_beside, with_answer
from perfect_async._files import names
from perfect_async._files.saving import prepare_folder, remove_stale_parts
from perfect_async._files.sets import PictureSet, copy_files, save_set
from perfect_async._files.threads import in_thread
from perfect_async._journal.journal import JobEntry
from perfect_async._log import LOG, type_name
from perfect_async._runtime.handle import JobHandle
from perfect_async._value import Value
from perfect_async.errors import JournalError, NotSaved, PerfectError, RequestRefused
from perfect_async.models import FileId

_MAX_SAVES: Final = 8
"""How many results are downloaded at once; URLs of waiting ones work for two hours."""
_PAUSES: Final = (0.0, 1.0, 5.0, 20.0)
"""Seconds before each try of a deletion."""
_GONE: Final = ("OperationNotSupport", "InvalidTaskId")
"""The vendor's error codes for deleting a task that was deleted already."""


@attrs.frozen(eq=False, repr=False)
class Copy(Value):
    """The vendor's copy of one finished task, which is to be deleted; `files` are its inputs."""

    task_id: str
    entry: JobEntry
    files: tuple[FileId, ...] = ()


class Retention:
    """Saves results and deletes the vendor's copies for one client.

    `delete` deletes a task at the vendor. `used` returns whether a job that has not ended needs a
    task or one of its files.
    """

    def __init__(
        self,
        delete: Callable[[str], Awaitable[None]],
        used: Callable[[str, Sequence[FileId]], bool],
    ) -> None:
        self._delete = delete
        self._used = used
        self._cleaned: set[Path] = set()
        self._writable: set[Path] = set()
        self._saves = anyio.Semaphore(_MAX_SAVES)
        self._saving: set[JobHandle] = set()
        self._unrecorded: set[JobHandle] = set()
        # For each file, how many batches may still read a job that uses it.
        self._pinned: Counter[FileId] = Counter()
        self._to_delete: list[Copy] = []
        self._fetching: Counter[str] = Counter()
        self._deleting: set[str] = set()
        # Tasks given to `delete_later`, until their deletion has succeeded or failed.
        self._scheduled: set[str] = set()
        self._deletions = 0
        self._changed = anyio.Event()

    # What is in use.

    def pin(self, file: FileId) -> None:
        """Keep `file` at the vendor, since unread jobs of a batch may use it."""
        self._pinned[file] += 1

    def unpin(self, files: Iterable[FileId]) -> None:
        """Undo one `pin` of each of `files`."""
        self._pinned.subtract(files)
        self._pinned += Counter()

    @contextmanager
    def fetching(self, task_id: str) -> Generator[bool]:
        """Keep the task at the vendor inside the block; yield False if it is being deleted."""
        self._fetching[task_id] += 1
        try:
            yield task_id not in self._deleting
        finally:
            self._fetching[task_id] -= 1
            self._fetching += Counter()

    def delete_later(self, copies: Iterable[Copy]) -> None:
        """Schedule the deletion of `copies`, each task once, for when no job needs them."""
        for copy in copies:
            if copy.task_id not in self._scheduled:
                self._scheduled.add(copy.task_id)
                self._to_delete.append(copy)

    def begin(self, handle: JobHandle) -> None:
        """Keep the task and file of `handle`, which has ended and is to be saved."""
        self._saving.add(handle)

    def end(self, handle: JobHandle, outcome: Outcome) -> None:
        """Record that saving has ended, and schedule the deletion of a saved result's copies."""
        self._saving.discard(handle)
        self._notify()
        recorded = handle not in self._unrecorded
        self._unrecorded.discard(handle)
        wanted = handle.spec.options.delete and recorded
        if wanted and isinstance(outcome, Done) and outcome.files:
            self.delete_later([Copy(outcome.task_id, handle.entry, handle.inputs)])

    def take_unused(self) -> list[Copy]:
        """Return the copies that no job needs, each once, for `delete_now`."""
        free = [copy for copy in self._to_delete if not self._in_use(copy)]
        self._to_delete = [copy for copy in self._to_delete if copy not in free]
        self._deletions += bool(free)
        return free

    def _in_use(self, copy: Copy) -> bool:
        task_id, files = copy.task_id, copy.files
        saving = any(handle.needs(task_id, files) for handle in self._saving)
        pinned = any(self._pinned[file] > 0 for file in files)
        return saving or pinned or self._fetching[task_id] > 0 or self._used(task_id, files)

    async def wait_until_idle(self) -> None:
        """Wait until nothing is being saved or deleted."""
        while not self.idle:
            await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    @property
    def idle(self) -> bool:
        """Whether nothing is being saved or deleted."""
        return not self._saving and not self._deletions

    # Saving and deleting.

    async def check_folder(self, path: str) -> None:
        """Check that results can be written to the folder `path`, before a job is charged.

        The folder is checked again only after a result could not be saved there. Raises `OSError`.
        """
        folder = Path(path)
        if folder not in self._writable:
            await in_thread(prepare_folder, folder)
            self._cleaned.add(folder)
            self._writable.add(folder)

    async def clean_folder(self, folder: Path) -> None:
        """Remove the partial files that killed processes left in `folder`, once per folder."""
        if folder not in self._cleaned:
            self._cleaned.add(folder)
            await in_thread(remove_stale_parts, folder)

    async def save_outcome(self, handle: JobHandle, outcome: Outcome) -> Outcome:
        """Save the pictures of `outcome`, the outcome of `handle`, as the job's options say.

        Returns the outcome with its `files`, or `Failed` with `NotSaved` if they cannot be written.
        """
        folder = handle.spec.options.save_to
        if folder is None or not isinstance(outcome, Done):
            return outcome
        if handle.files and handle.files[0].parent == Path(folder):
            return _with_files(outcome, handle.files)
        async with self._saves:
            try:
                files = await self._save(handle, outcome, Path(folder))
            except (PerfectError, OSError) as exc:
                if isinstance(exc, OSError):
                    self._writable.discard(Path(folder))
                why = exc.message if isinstance(exc, PerfectError) else str(exc)
                error = NotSaved(
                    f"The pictures were made, but not saved: {why}",
                    task_id=outcome.task_id,
                    units_at_stake=outcome.units,
                )
                error.__cause__ = exc.with_traceback(None)
                return Failed(
                    outcome.job,
                    error,
                    outcome.task_id,
                    outcome.units,
                    outcome.duration,
                    changes=outcome.changes,
                )
        await self._record(handle, outcome, files)
        return _with_files(outcome, files)

    async def _save(self, handle: JobHandle, outcome: Done, folder: Path) -> Sequence[Path]:
        """Save the pictures of `outcome` that are missing, and return the paths of all.

        Raises `PerfectError` and `OSError`.
        """
        await in_thread(partial(folder.mkdir, parents=True, exist_ok=True))
        pictures = _pictures(outcome, handle, folder)
        if handle.files:
            # A former run saved them elsewhere, and the vendor has no copy.
            await self.clean_folder(folder)
            pictures = attrs.evolve(pictures, count=len(handle.files))
            copy = partial(copy_files, handle.files, folder)
            files = await save_set(pictures, outcome.task_id, copy)
            LOG.info("%d files were copied from another folder; nothing was charged.", len(files))
            return files
        former = await _files_by_record(outcome, handle)
        snapshot = handle.entry.snapshot
        if not former and snapshot is not None and snapshot.saved:
            former = await _files_by_name(outcome, handle, pictures)
            if not former:
                # The number of files may have been unknown.
                result = await with_answer(outcome.result)
                outcome = attrs.evolve(outcome, result=result)
                pictures = _pictures(outcome, handle, folder)
                former = await _files_by_name(outcome, handle, pictures)
        return await save_beside(outcome.result, pictures, former)

    async def _record(self, handle: JobHandle, outcome: Done, files: Iterable[Path]) -> None:
        """Record in the journal where the result of `handle` was saved.

        If that fails, the vendor's copies are not deleted, since a later process needs them.
        """
        spec = handle.spec
        if spec.sure and spec.options.save_to is not None:
            try:
                await handle.channel.journal.writer.save_result(
                    spec.identity,
                    spec.options.save_to,
                    outcome.task_id,
                    [file.name for file in files],
                )
            except JournalError as exc:
                LOG.error(
                    "A result was saved, but that could not be written to the journal: %s The "
                    "vendor's copies are kept.",
                    exc.message,
                )
                self._unrecorded.add(handle)
                return
        handle.entry.saved()

    async def delete_now(self, copies: Iterable[Copy]) -> None:
        """Delete the copies of `take_unused`, one after another, with several tries each."""
        try:
            for copy in copies:
                await self._delete_unused(copy)
        finally:
            self._deletions -= 1
            self._notify()

    async def _delete_unused(self, copy: Copy) -> None:
        if self._in_use(copy):
            # A job that needs the copy has come in the meantime.
            self._to_delete.append(copy)
            return
        self._deleting.add(copy.task_id)
        try:
            await self._try_to_delete(copy)
        finally:
            self._deleting.discard(copy.task_id)
            self._scheduled.discard(copy.task_id)

    async def _try_to_delete(self, copy: Copy) -> None:
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
                "The vendor's copies of a task could not be deleted (%s); the next client with the "
                "same journal tries again when it opens.",
                "" if why is None else type_name(why),
            )
            return
        copy.entry.deleted()


def _with_files(outcome: Done, files: Iterable[Path]) -> Done:
    found = tuple(files)
    return attrs.evolve(outcome, files=found, result=attrs.evolve(outcome.result, files=found))


async def _files_by_record(outcome: Done, handle: JobHandle) -> Sequence[Path]:
    """Return the files to which this task was saved, according to the journal.

    Some of them may be gone; if all are gone, none is returned.
    """
    spec = handle.spec
    folder = spec.options.save_to
    if folder is None or not spec.sure:
        return ()
    try:
        results = await handle.channel.journal.writer.saved_results(spec.identity)
    except JournalError:
        # The files are then found by their names and contents.
        return ()
    saved = results.get(folder)
    if saved is None or saved.task_id != outcome.task_id:
        return ()
    there = await in_thread(lambda: any(file.is_file() for file in saved.files))
    return saved.files if there else ()


def _pictures(outcome: Done, handle: JobHandle, folder: Path) -> PictureSet:
    spec, count = handle.spec, outcome.result.file_count
    return PictureSet(folder, spec.stem, spec.file_identity, count)


async def _files_by_name(outcome: Done, handle: JobHandle, pictures: PictureSet) -> Sequence[Path]:
    """Return the files that a former process saved for a job; none if one of them is gone."""
    spec, count = handle.spec, pictures.count
    # Former versions could give two jobs one file name. Such a file is not taken for either job,
    # and the result is fetched again.
    former_name = names.in_folder_formerly(spec.stem, spec.identity, "")
    jobs = {
        other.stored.identity
        for other in handle.channel.journal.writer.state.live.values()
        if names.in_folder_formerly(other.stored.stem, other.stored.identity, "") == former_name
    }
    is_clear = not jobs - {spec.identity}

    def find_formerly(index: int) -> Path | None:
        """Return the file with the name that former versions wrote, if it exists."""
        number = index + 1 if count > 1 else None
        for kind in names.RESULT_KINDS if is_clear else ():
            name = names.in_folder_formerly(spec.stem, spec.identity, kind, number)
            if (pictures.folder / name).is_file():
                return pictures.folder / name
        return None

    def find_all() -> list[Path]:
        for there in (pictures.under_other_names(outcome.task_id).find(), pictures.find()):
            found = [there.get(index) or find_formerly(index) for index in range(count)]
            paths = [path for path in found if path is not None]
            if len(paths) == count:
                return paths
        return []

    return await in_thread(find_all)
