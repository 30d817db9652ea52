"""Writes files atomically, and reads the user's choice of a folder or file."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Final, TypeGuard, TypeVar

import attrs

from perfect_async._files import names
from perfect_async._files.endings import has_end
from perfect_async._value import Value
from perfect_async.errors import ConfigurationError, quoted

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")

_PIECE: Final = 1024 * 1024
"""Bytes of a copied file that are in memory at once."""
_SEPARATORS: Final = re.compile("[" + re.escape(os.sep + (os.altsep or "")) + "]")
_PART: Final = re.compile(r"\.[0-9a-f]{16}\.part")
_PROBE: Final = 1024 * 1024
"""Bytes that are written to a folder as a test before a job is sent: about one result."""
_STALE: Final = 3600.0
"""Seconds without a write after which a part is stale, on a file system without locks."""


def is_path(value: object) -> TypeGuard[str]:
    """Return whether `value` can be the path of a file or folder."""
    return isinstance(value, str) and bool(value) and "\0" not in value


def is_new_file(path: Path) -> bool:
    """Return whether `path` has the suffix of a picture and no folder has this name; blocks."""
    return path.suffix.lower() in names.SUFFIXES and not path.is_dir()


@attrs.frozen(eq=False, repr=False)
class SaveTarget(Value):
    """The place of a result: `folder`, and the `name` of the file if the user gave one."""

    folder: Path
    name: str | None

    @classmethod
    def of(cls, target: str) -> SaveTarget:
        """Read `target` as a folder or a file's path, and create the folder.

        Raises the errors of `Result.save`.
        """
        if not is_path(target):
            raise ConfigurationError(
                f"save cannot write to {quoted(target)}: pass the path of a folder or a file."
            )
        path = Path(target)
        # A target with a last separator or dot is a folder; `Path` drops them. A name without a
        # picture's suffix is a folder, also a missing one: otherwise each result of a batch that is
        # saved to Path("out") would replace the one before.
        last = re.split(_SEPARATORS, target)[-1]
        has_suffix = path.suffix.lower() in names.SUFFIXES
        if last in {"", os.curdir, os.pardir} or path.is_dir() or not has_suffix:
            folder, name = path, None
        else:
            folder, name = path.parent, path.name
        # The folder of a file is also created: a missing folder must not lose a paid picture.
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, name)


class AtomicFile:
    """A file that is written beside its target, and then replaces it or is removed.

    Until then only its owner can read it. The file is created with the first byte. Every method
    blocks and runs in a worker thread. A cancelled coroutine does not stop its thread, so `discard`
    may run before the last `write` begins; a lock orders them, and nothing is written after
    `discard`. `remove_stale_parts` removes the file of a killed process.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f".{os.urandom(8).hex()}.part"
        self._file: FileIO | None = None
        self._closed = False
        self._target: Path | None = None
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append `data`. Raises `OSError`, after which the caller must call `discard`."""
        with self._lock:
            if self._closed:
                return
            if self._file is None:
                self._file = _create(self._path)
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def is_whole(self, kind: str) -> bool:
        """Return whether the written bytes are a whole picture of the type `kind`."""
        with self._lock:
            if self._closed or self._file is None:
                return False
            with self._path.open("rb") as file:
                return has_end(file, kind)

    def flush(self) -> None:
        """Wait until the written bytes are on the disk. Raises `OSError`."""
        with self._lock:
            if self._file is not None and not self._closed:
                os.fsync(self._file.fileno())

    def is_at(self, path: Path) -> bool:
        """Return whether the file was moved to `path`, or equals the file at `path`."""
        with self._lock:
            if self._closed or self._file is None:
                return self._target == path
            try:
                return filecmp.cmp(self._path, path, shallow=False)
            except OSError:
                return False

    def replace(self, target: Path) -> None:
        """Flush the file to the disk, and replace `target` by it. Raises `OSError`."""
        self._move(target, Path.replace)

    def put(self, target: Path) -> None:
        """Flush the file to the disk, and rename it to `target` unless that exists.

        Raises `OSError`.
        """
        with contextlib.suppress(FileExistsError):
            self._move(target, _rename)

    def _move(self, target: Path, move: Callable[[Path, Path], object]) -> None:
        with self._lock:
            if self._closed or self._file is None:
                return
            os.fsync(self._file.fileno())
            if sys.platform == "win32":
                # Windows neither renames an open file nor removes it in `remove_stale_parts`.
                self._file.close()
                move(self._path, target)
            else:
                os.fchmod(self._file.fileno(), 0o666 & ~_umask())
                # Closed after the move, since its lock shows that it is not stale.
                move(self._path, target)
                self._file.close()
            self._target = target
            self._closed = True

    def discard(self) -> None:
        """Remove the file unless it has replaced its target; never raises `OSError`."""
        with self._lock:
            if self._closed or self._file is None:
                self._closed = True
                return
            self._closed = True
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._path.unlink()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to `target`, which exists whole or not at all.

    Raises `OSError`, also if `target` is another file or a link to one, which stays as it is.
    """

    def put(part: AtomicFile) -> None:
        part.put(target)
        if not part.is_at(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))

    copy_part(source, target.parent, put)


def copy_part(source: Path, folder: Path, put: Callable[[AtomicFile], T]) -> T:
    """Copy a file to a new part in `folder`, and return what `put` makes of it.

    Raises `OSError`.
    """
    part = AtomicFile(folder)
    try:
        with source.open("rb") as file:
            while piece := file.read(_PIECE):
                part.write(piece)
        return put(part)
    finally:
        part.discard()


def _create(path: Path) -> FileIO:
    """Open a new file that only its owner can read, with a lock that ends with the process."""
    while True:
        # "x" is O_EXCL: it neither follows a link nor opens an existing file.
        file = open(path, "xb", buffering=0, opener=_private)  # noqa: SIM115 - the caller closes it
        if sys.platform == "win32":
            return file
        with contextlib.suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:
            return file
        # Another process removed the file as stale before it was locked, so try again.
        file.close()


def _rename(path: Path, target: Path) -> None:
    """Rename `path` to `target`. Raises `FileExistsError` if `target` exists."""
    if sys.platform == "win32":
        path.rename(target)
        return
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:
        # Without hard links (FAT, some shares), a file that appears at this moment is replaced.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        path.replace(target)
    else:
        path.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@cache
def _umask() -> int:
    # No other way to read the umask is portable. Meanwhile, other threads create private files.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def prepare_folder(folder: Path) -> None:
    """Create `folder`, clean up after killed runs, and check that a result can be written to it.

    Raises `OSError` for a read-only or full disk, and if a file has the folder's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(folder)
    probe = AtomicFile(folder)
    try:
        probe.write(bytes(_PROBE))
        probe.flush()
    finally:
        probe.discard()


def remove_stale_parts(folder: Path) -> None:
    """Remove the parts that killed processes of this user left in `folder`.

    A part that is still being written is locked by its process. Links and files of other users
    are kept.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if _PART.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_if_stale(folder / entry.name)


def _remove_if_stale(path: Path) -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            # Windows refuses to remove an open file.
            path.unlink()
            return
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if _is_stale(handle):
                path.unlink()
        finally:
            os.close(handle)


if sys.platform != "win32":

    def _is_stale(handle: int) -> bool:
        found = os.fstat(handle)
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        if not ours or found.st_nlink != 1:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # The file system has no locks.
            return found.st_mtime < time.time() - _STALE
        return True


def unwritable(folder: str, exc: OSError) -> str:
    """Return the message for a folder that results cannot be written to."""
    return f"save_to is {quoted(folder)}, which cannot be written: {exc.strerror}."
