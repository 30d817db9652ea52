"""The folder of a ledger on one machine, and the locks that show which of its members live.

    <state folder>/<host>/<key>/ledger-<boot>            the ledger, with sqlite's -wal and -shm
                                ledger-<boot>.<member>   locked while that member lives
                                guard                    locked while a ledger is made or removed
                                lease.json               the measured lease (`leases.py`)

All of it may be deleted at any time. The names hold digests of the host, of the key, and of the
boot with the format of the rows. So a ledger of another boot or of another version of this package
is another file, which is removed when none of its members lives. No function here waits for a lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import platformdirs

from perfect_async._ledger.rows import FORMAT, LedgerUnavailable
from perfect_async.errors import quoted

if sys.platform != "win32":
    import fcntl

STATE_VARIABLE: Final = "PERFECT_ASYNC_STATE"
"""The environment variable that names another state folder."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TIME_OFFSETS: Final = Path("/proc/self/timens_offsets")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_NETWORK: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs"),
        *("fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.mount.glusterfs", "fuse.rclone"),
        *("fuse.s3fs", "fuse.sshfs"),
    }
)
"""Types of network file systems; the ledger needs the common clock and memory of one machine."""
_MOUNT_POINT: Final = 4
"""The place of the mount point in a line of mountinfo (proc(5)); the type follows a single dash."""
_MEMBER: Final = re.compile(r"(?P<ledger>ledger-[0-9a-f]+)\.[0-9a-f]+")
_LEDGER: Final = re.compile(r"(?P<ledger>ledger-[0-9a-f]+)(-wal|-shm|-journal)?")
_UNFINISHED: Final = ".new"
_UNFINISHED_KEPT: Final = 3600.0
_ORDINARY: Final = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
        *(errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK),
    }
)
"""Errors of a folder where files cannot be written or locked, perhaps on purpose."""
_TOO_MANY_OPEN: Final = frozenset({errno.EMFILE, errno.ENFILE})


def default_folder() -> Path:
    """Return the folder of this user's ledgers: `PERFECT_ASYNC_STATE`, else the system's place.

    Raises `LedgerUnavailable` if the user has no home folder, or the working folder was removed.
    """
    named = os.environ.get(STATE_VARIABLE)
    if named:
        try:
            return Path(named).absolute()
        except OSError as exc:
            raise LedgerUnavailable(
                f"{STATE_VARIABLE} is {quoted(named)}, and the working folder was removed"
            ) from exc
    folder = platformdirs.user_state_path("perfect_async", appauthor=False)
    if not folder.is_absolute():
        # "~" is not replaced for a user that the system does not know, as in some containers.
        raise LedgerUnavailable("this user has no home folder", ordinary=True)
    return folder


def boot_id() -> str:
    """Return a text that identifies this boot of this machine and its monotonic clock.

    Raises `LedgerUnavailable` if the system has no boot id.
    """
    if sys.platform == "darwin":
        return _darwin_boot_id()
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        boot = ""
    if not boot:
        raise LedgerUnavailable("this system has no boot id", ordinary=True)
    try:
        # A container may have a monotonic clock of its own.
        offsets = _TIME_OFFSETS.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        offsets = []
    return f"{boot} {' '.join(offsets)}"


def _darwin_boot_id() -> str:
    import ctypes  # noqa: PLC0415 - not needed elsewhere

    size = ctypes.c_size_t(64)
    text = ctypes.create_string_buffer(size.value)
    try:
        found = ctypes.CDLL(None).sysctlbyname(
            b"kern.bootsessionuuid", text, ctypes.byref(size), None, ctypes.c_size_t(0)
        )
    except (OSError, AttributeError):
        found = -1
    if found != 0 or not text.value:
        raise LedgerUnavailable("this system has no boot id", ordinary=True)
    return text.value.decode("ascii", "replace")


def network_file_system(path: str, mounts: str) -> str:
    """Return the type of the network file system of `path`; empty if it is on a local one.

    `path` has no links in it. `mounts` is the text of /proc/self/mountinfo.
    """
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) <= _MOUNT_POINT or "-" not in fields:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[_MOUNT_POINT])
        within = path == point or path.startswith(point.rstrip("/") + "/")
        # The last of several mounts at one point hides the others.
        if within and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return kind if kind in _NETWORK else ""


@contextmanager
def errors_mapped(folder: Path) -> Generator[None]:
    """Turn errors of the system into `LedgerUnavailable`."""
    try:
        yield
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        raise LedgerUnavailable(
            f"the folder {quoted(folder)} cannot be used: {why}", ordinary=exc.errno in _ORDINARY
        ) from exc


def file_id(path: Path | str) -> tuple[int, int] | None:
    """Return the device and inode of the file at `path`; None if it does not exist."""
    try:
        found = os.stat(path)  # noqa: PTH116 - asked nine times a step: text is twice as fast
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class KeyFolder:
    """The folder of one key in this boot. Its methods raise `OSError`."""

    def __init__(self, folder: Path, host: str, key: str, boot: str) -> None:
        self.path = folder / host / key
        self._parents = folder, folder / host
        name = hashlib.sha256(f"{FORMAT} {boot}".encode()).hexdigest()[:8]
        self.ledger = self.path / f"ledger-{name}"
        # The ledger comes first, since a process that found it without its log would miss rows.
        self._files = tuple(f"{self.ledger}{part}" for part in ("", "-wal", "-shm"))

    def __repr__(self) -> str:
        return f"<KeyFolder {quoted(self.ledger)}>"

    def make(self) -> None:
        """Make the folder, readable for its user only.

        Raises `OSError`, and `LedgerUnavailable` if processes cannot share the folder.
        """
        self._parents[0].mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._parents[1], self.path):
            folder.mkdir(mode=0o700, exist_ok=True)
            make_private(folder)
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            mounts = ""
        kind = network_file_system(os.path.realpath(self.path), mounts)
        if kind:
            raise LedgerUnavailable(
                f"the folder {quoted(self.path)} is on a network file system ({kind})"
            )

    def member(self, name: str) -> Path:
        """Return the file of a member."""
        return self.ledger.with_name(f"{self.ledger.name}.{name}")

    def lives(self, name: str) -> bool:
        """Return whether a member holds the lock of its file; remove the file of a dead one."""
        return _lives(self.member(name))

    def files(self) -> tuple[tuple[int, int] | None, ...]:
        """Return the ids of the ledger's files, to see whether they were replaced."""
        return tuple(file_id(path) for path in self._files)

    @contextmanager
    def guard(self) -> Generator[bool]:
        """Lock the making and removing of ledgers; yield False if another process has the lock."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path / "guard", flags, 0o600)
        try:
            yield _lock(descriptor, exclusive=True)
        finally:
            os.close(descriptor)

    def can_be_opened(self) -> bool:
        """Return whether the ledger is a file that this process may write."""
        return self.ledger.is_file() and os.access(self.ledger, os.R_OK | os.W_OK)

    def remove_ledger(self) -> None:
        """Remove the ledger; its members notice that with their next step."""
        for path in self._files:
            Path(path).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the files that dead members and other boots left."""
        alive: set[str] = set()
        ledgers: list[tuple[str, Path]] = []
        for path in sorted(self.path.iterdir()):
            if path.name.endswith(_UNFINISHED):
                # By wall time, since files have no other; a changed clock only removes it later.
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _UNFINISHED_KEPT:
                        path.unlink()
            elif (found := _MEMBER.fullmatch(path.name)) is not None:
                if _lives(path):
                    alive.add(found["ledger"])
            elif (found := _LEDGER.fullmatch(path.name)) is not None:
                ledgers.append((found["ledger"], path))
        for ledger, path in ledgers:
            if ledger != self.ledger.name and ledger not in alive:
                path.unlink(missing_ok=True)


class MemberFile:
    """The file of a member, locked from its first moment until `close` or the process's death.

    A forked child shares the lock of its parent, so the child must call `close` too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def keep(self) -> None:
        """Make the file if it is missing or was deleted, since the member then seems dead."""
        if self._descriptor is not None and os.fstat(self._descriptor).st_nlink:
            return
        self.close()
        part = self._path.with_name(self._path.name + _UNFINISHED)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(part, flags, 0o600)
        try:
            _lock(descriptor, exclusive=True)
            # It is locked before it gets the name that others look for.
            part.rename(self._path)
        except BaseException:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            raise
        self._descriptor = descriptor

    def remove(self) -> None:
        """Delete the file, so that others know that the member is gone."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file; its lock ends with the last process that has it open."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # LOCK_UN is not used, since in a forked child it would release the parent's lock.
            os.close(descriptor)


def forget(folder: Path, host: str) -> None:
    """Delete all ledgers of `host` (`host_digest`); their members make new ones and go on."""
    shutil.rmtree(folder / host, ignore_errors=True)


def make_private(folder: Path) -> None:
    """Make `folder` readable for its user only. Raises `LedgerUnavailable` for another user's."""
    if sys.platform == "win32":
        return
    found = folder.stat()
    if found.st_uid != os.geteuid():
        # Two users cannot share a folder, since neither can use the other's files.
        raise LedgerUnavailable(f"the folder {quoted(folder)} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def _lives(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as exc:
        if exc.errno in _TOO_MANY_OPEN:
            # The member is checked again soon. A process that has too many open files for a moment
            # must not stop sharing its key.
            return True
        raise
    try:
        # A shared lock, since two members may check at the same time.
        dead = _lock(descriptor, exclusive=False)
        if dead and file_id(path) == _id_of(descriptor):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return not dead


def _id_of(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    """Lock an open file; return False if another process has the lock.

    It uses flock, since a POSIX lock is lost when any descriptor of the same file is closed.
    """
    if sys.platform == "win32":
        raise LedgerUnavailable("this system has no locks on files", ordinary=True)
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
