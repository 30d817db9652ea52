"""Files that appear whole or not at all, and the folder or file that a user means."""

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
from typing import Final, TypeGuard

import attrs

from perfect_async._files import names
from perfect_async._files.endings import has_end
from perfect_async._value import Value
from perfect_async.errors import ConfigurationError, quoted

if sys.platform != "win32":
    import fcntl

_SEPARATORS: Final = re.compile("[" + re.escape(os.sep + (os.altsep or "")) + "]")
_PART: Final = re.compile(r"\.[0-9a-f]{16}\.part")
_PROBE: Final = 1024 * 1024
"""Bytes that a folder must take before a job is sent: about one result."""
_STALE: Final = 3600.0
"""Seconds after which a part is no longer written, on a file system that has no locks."""


def is_path(value: object) -> TypeGuard[str]:
    """Return whether `value` can be the path of a file or folder."""
    return isinstance(value, str) and bool(value) and "\0" not in value


@attrs.frozen(eq=False, repr=False)
class SaveTarget(Value):
    """The place of a result: `folder`, and the file's name in it if the user gave one."""

    folder: Path
    name: str | None

    @classmethod
    def of(cls, target: str) -> SaveTarget:
        """Tell a folder from a file's path, and make the folder. Raises as `Result.save` does."""
        if not is_path(target):
            raise ConfigurationError(f"save cannot write to {quoted(target)}.")
        path = Path(target)
        # Path drops a last separator or dot, and no file has such a name. A name without a
        # picture's suffix is a folder even if none is there yet: else a batch saved to Path("out")
        # would be one file, written again and again.
        last = re.split(_SEPARATORS, target)[-1]
        has_suffix = path.suffix.lower() in names.SUFFIXES
        if last in {"", os.curdir, os.pardir} or path.is_dir() or not has_suffix:
            folder, name = path, None
        else:
            folder, name = path.parent, path.name
        # A file's folder is made too: a missing folder must not lose a picture that is paid for.
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, name)


class AtomicFile:
    """A file that is written beside its target, and then replaces it or is removed.

    Until then only its owner can read it. Every method blocks and runs in a worker thread. A
    cancelled coroutine leaves its thread at work, so `discard` may come before the last `write` has
    begun: a lock orders them, and nothing is written after `discard`. No file is made before the
    first byte. A file that a killed process left is removed by `remove_stale_parts`.
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
        """Return whether what was written is a whole picture of the type `kind`."""
        with self._lock:
            if self._closed or self._file is None:
                return False
            with self._path.open("rb") as file:
                return has_end(file, kind)

    def flush(self) -> None:
        """Wait until what was written is on the disk. Raises `OSError`."""
        with self._lock:
            if self._file is not None and not self._closed:
                os.fsync(self._file.fileno())

    def is_at(self, path: Path) -> bool:
        """Return whether what was written is at `path`: was put there, or equals the file there."""
        with self._lock:
            if self._closed or self._file is None:
                return self._target == path
            try:
                return filecmp.cmp(self._path, path, shallow=False)
            except OSError:
                return False

    def replace(self, target: Path) -> None:
        """Flush the file to the disk and replace `target` by it. Raises `OSError`."""
        self._move(target, Path.replace)

    def put(self, target: Path) -> None:
        """Flush the file to the disk and rename it to `target`, unless something is there.

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
                # An open file cannot be renamed there, nor be removed by `remove_stale_parts`.
                self._file.close()
                move(self._path, target)
            else:
                os.fchmod(self._file.fileno(), 0o666 & ~_umask())
                # Closed afterwards: its lock says that it is not stale.
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


def _create(path: Path) -> FileIO:
    """Open a new file that only its owner can read, with a lock that ends with the process."""
    while True:
        # "x" is O_EXCL: it follows no link and opens no file that is there already.
        file = open(path, "xb", buffering=0, opener=_private)  # noqa: SIM115 - the caller closes it
        if sys.platform == "win32":
            return file
        with contextlib.suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:
            return file
        # Another process found it before it was locked, and removed it.
        file.close()


def _rename(path: Path, target: Path) -> None:
    """Rename `path` to `target`. Raises `FileExistsError` where something is there."""
    if sys.platform == "win32":
        path.rename(target)
        return
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (FAT, some shares): another writer of this moment may be replaced.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        path.replace(target)
    else:
        path.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@cache
def _umask() -> int:
    # No other way to read it is portable. For that moment other threads make private files.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def prepare_folder(folder: Path) -> None:
    """Make `folder`, clean up after killed runs, and check that a result can be written to it.

    Raises `OSError` for a folder on a read-only or full disk, and where a file is in the way.
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
    """Remove the files that killed processes of ours were writing to `folder`.

    A file that is still written is locked by its process. Links and files of other users stay.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if _PART.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_if_stale(folder / entry.name)


def _remove_if_stale(path: Path) -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            # The system refuses it for a file that is open.
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
            # A file system without locks.
            return found.st_mtime < time.time() - _STALE
        return True


def unwritable(folder: str, exc: OSError) -> str:
    """Say that results cannot be written to `folder`."""
    return f"save_to is {quoted(folder)}, which cannot be written: {exc.strerror}."
