"""Writes the files of one result to a folder without replacing existing files.

An existing file with the name of a picture may be retouched by its owner, or be of an earlier
purchase. Files of the same task are kept. If other files have the names of a result, the whole
result gets other names, so that two results are never mixed.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

import attrs

from perfect_async._files import names
from perfect_async._files.saving import AtomicFile, copy_part
from perfect_async._files.threads import in_thread

Put: TypeAlias = Callable[[int, AtomicFile, str], Path]
"""Gives a written picture its name, by index and type, and returns its path; blocks."""
Write: TypeAlias = Callable[[Sequence[int], Put], Awaitable[list[Path]]]
"""Writes the pictures with these indices, one after another, and returns their paths."""


class _Taken(Exception):
    """Raised if another file has the name of a picture."""


@attrs.frozen
class PictureSet:
    """The `count` pictures of one result in `folder`; `stem` and `identity` name them.

    `token` is part of the names if other files have the usual names.
    """

    folder: Path
    stem: str
    identity: str
    count: int
    token: str | None = None

    def under_other_names(self, task_id: str) -> PictureSet:
        """Return the same set with names that no pictures of another task have."""
        return attrs.evolve(self, token=sha256(task_id.encode(errors="replace")).hexdigest()[:8])

    def find(self) -> dict[int, Path]:
        """Return the existing files of the set by the indices of their pictures."""
        found: dict[int, Path] = {}
        for index in range(self.count):
            paths = (self._path(index, kind) for kind in names.RESULT_KINDS)
            there = next((path for path in paths if os.path.lexists(path)), None)
            if there is not None:
                found[index] = there
        return found

    def put(self, index: int, part: AtomicFile, kind: str) -> Path:
        """Give a written picture its name, unless a file has it already, and return its path."""
        path = self._path(index, kind)
        part.put(path)
        return path

    def _path(self, index: int, kind: str) -> Path:
        number = index + 1 if self.count > 1 else None
        name = names.in_folder(self.stem, self.identity, kind, number, token=self.token)
        return self.folder / name


async def save_set(pictures: PictureSet, task_id: str, write: Write) -> list[Path]:
    """Save the pictures of a task, and return their paths; no existing file is replaced.

    An existing file with the same bytes counts as saved. Raises the errors of `write`.
    """
    there = await in_thread(pictures.find)

    def put(index: int, part: AtomicFile, kind: str) -> Path:
        path = there.get(index) or pictures.put(index, part, kind)
        # `is_at` also fails if another writer was faster.
        if not part.is_at(path):
            raise _Taken
        return path

    # Pictures whose names exist come first: if the names are taken, nothing was written yet.
    order = sorted(range(pictures.count), key=lambda index: index not in there)
    try:
        return _sorted(order, await write(order, put))
    except _Taken:
        others = pictures.under_other_names(task_id)
    there = await in_thread(others.find)
    return await complete_set(there, others.count, others.put, write)


async def complete_set(there: dict[int, Path], count: int, put: Put, write: Write) -> list[Path]:
    """Write the pictures that are not `there`, and return the paths of all `count` pictures."""
    missing = [index for index in range(count) if index not in there]
    written = dict(zip(missing, await write(missing, put), strict=True))
    return [(there | written)[index] for index in range(count)]


async def copy_files(
    sources: Sequence[Path], folder: Path, wanted: Sequence[int], put: Put
) -> list[Path]:
    """Copy the `wanted` files of `sources` to `folder`; works as a `Write`. Raises `OSError`."""
    return [await in_thread(_copy, sources[index], folder, partial(put, index)) for index in wanted]


def _copy(source: Path, folder: Path, put: Callable[[AtomicFile, str], Path]) -> Path:
    kind = names.SUFFIXES.get(source.suffix.lower(), names.RESULT_KINDS[0])
    return copy_part(source, folder, lambda part: put(part, kind))


def _sorted(order: Sequence[int], paths: Sequence[Path]) -> list[Path]:
    """Return `paths`, whose indices are `order`, sorted by index."""
    return [path for _, path in sorted(zip(order, paths, strict=True))]
