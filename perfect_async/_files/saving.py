"""Files that appear whole or not at all, and the folder or file that a user means."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from io import FileIO
from pathlib import Path
from typing import Final, TypeGuard

import attrs

from perfect_async._files import names
from perfect_async.errors import ConfigurationError, quoted

_SEPARATORS: Final = re.compile("[" + re.escape(os.sep + (os.altsep or "")) + "]")


def is_path(value: object) -> TypeGuard[str]:
    """Return whether `value` can be the path of a file or folder."""
    return isinstance(value, str) and bool(value) and "\0" not in value


@attrs.frozen
class SaveTarget:
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

    Every method blocks and runs in a worker thread. A cancelled coroutine leaves its thread at
    work, so `discard` may come before the last `write` has begun: a lock orders them, and nothing
    is written after `discard`. No file is made before the first byte.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._closed = False
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append `data`. Raises `OSError`, after which the caller must call `discard`."""
        with self._lock:
            if self._closed:
                return
            if self._file is None:
                # "x" is O_EXCL: it follows no link and opens no file that is there already.
                self._file = self._path.open("xb", buffering=0)
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def replace(self, target: Path) -> None:
        """Flush the file to the disk and replace `target` by it. Raises `OSError`."""
        with self._lock:
            if self._closed or self._file is None:
                return
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.replace(target)
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
