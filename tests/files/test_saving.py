"""Atomic files, and the check that a folder can be written."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfect_async._files import saving
from perfect_async._files.saving import AtomicFile, copy_file, prepare_folder, remove_stale_parts

PART = ".0123456789abcdef.part"
MP = pytest.MonkeyPatch


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return an empty folder."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """Run a test with the usual umask."""
    before = os.umask(0o022)
    saving._umask.cache_clear()
    yield
    os.umask(before)
    saving._umask.cache_clear()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# An atomic file.


def test_every_order_of_calls_leaves_a_whole_file_or_none(out: Path) -> None:
    """A file that was discarded or never written is not created by later calls."""
    part = AtomicFile(out)
    part.discard()
    part.write(b"data")
    part.replace(out / "a.jpg")
    part.discard()
    assert set() == names(out)

    part = AtomicFile(out)
    part.replace(out / "b.jpg")
    part.write(b"data")
    part.replace(out / "b.jpg")
    part.write(b"more")
    part.discard()
    part.discard()
    assert {"b.jpg"} == names(out)
    assert b"data" == (out / "b.jpg").read_bytes()


@pytest.mark.parametrize("link", [True, False])
def test_another_file_is_never_written(out: Path, monkeypatch: MP, link: bool) -> None:
    """A name that is taken, also by a link, is an error, and its file is not changed."""
    monkeypatch.setattr(os, "urandom", lambda _: bytes.fromhex(PART[1:17]))
    if link:
        (out / PART).symlink_to(out / "elsewhere")
    else:
        (out / PART).write_bytes(b"somebody's")
    part = AtomicFile(out)

    with pytest.raises(FileExistsError):
        part.write(b"data")
    part.discard()

    assert {PART} == names(out)


@pytest.mark.usefixtures("usual_umask")
def test_only_the_owner_can_read_an_unfinished_file(out: Path) -> None:
    """The file is private from its first byte; the finished file has the usual mode."""
    part = AtomicFile(out)
    part.write(b"data")
    assert [0o600] == [mode(path) for path in out.iterdir()]

    part.replace(out / "a.jpg")

    assert 0o644 == mode(out / "a.jpg")


def written(out: Path, content: bytes = b"data") -> AtomicFile:
    part = AtomicFile(out)
    part.write(content)
    return part


@pytest.mark.parametrize("links", [True, False])
def test_put_replaces_no_file(out: Path, monkeypatch: MP, links: bool) -> None:
    """An existing file is kept, also on file systems without hard links."""
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (out / "file.jpg").write_bytes(b"somebody's")
    (out / "link.jpg").symlink_to(out / "nowhere")
    (out / "folder.jpg").mkdir()
    for name in ("file.jpg", "link.jpg", "folder.jpg"):
        part = written(out)
        part.put(out / name)
        assert not part.is_at(out / name)
        part.discard()
    part = written(out)
    part.put(out / "new.jpg")

    assert part.is_at(out / "new.jpg")
    assert {"file.jpg", "link.jpg", "folder.jpg", "new.jpg"} == names(out)
    assert (b"somebody's", b"data") == (
        (out / "file.jpg").read_bytes(),
        (out / "new.jpg").read_bytes(),
    )


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_equal_bytes_count_as_saved(out: Path) -> None:
    """A picture counts as saved if an existing file has the same bytes."""
    (out / "a.jpg").write_bytes(b"data")
    part = written(out)
    part.put(out / "a.jpg")
    assert part.is_at(out / "a.jpg")
    assert not part.is_at(out / "missing.jpg")
    part.discard()
    assert not part.is_at(out / "a.jpg")
    other = written(out, b"date")
    assert not other.is_at(out / "a.jpg")
    other.discard()


@pytest.mark.parametrize("taken", ["a file", "a link", "a folder"])
def test_a_copy_replaces_no_file(out: Path, taken: str) -> None:
    """What has the name of a copy stays as it is, and a link is not followed."""
    (out / "source.jpg").write_bytes(b"data")
    target, elsewhere = out / "copy.jpg", out / "elsewhere.jpg"
    elsewhere.write_bytes(b"somebody's")
    if taken == "a file":
        target.write_bytes(b"somebody's")
    elif taken == "a link":
        target.symlink_to(elsewhere)
    else:
        target.mkdir()

    with pytest.raises(FileExistsError, match=r"copy\.jpg"):
        copy_file(out / "source.jpg", target)

    assert {"source.jpg", "copy.jpg", "elsewhere.jpg"} == names(out)
    assert b"somebody's" == elsewhere.read_bytes()
    assert b"somebody's" == (elsewhere if taken == "a folder" else target).read_bytes()


def test_a_copy_is_whole_or_missing(out: Path, monkeypatch: MP) -> None:
    """A disk that fails leaves neither the copy nor a part of it; otherwise all bytes are there."""
    source = out / "source.jpg"
    source.write_bytes(bytes(range(256)) * 8192)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(PermissionError):
            copy_file(source, out / "copy.jpg")
    assert {"source.jpg"} == names(out)

    copy_file(source, out / "copy.jpg")

    assert source.read_bytes() == (out / "copy.jpg").read_bytes()
    assert {"source.jpg", "copy.jpg"} == names(out)


# Files of killed runs.


def leave_part(out: Path) -> Path:
    """Kill a process that is writing to `out`, and return the file that it leaves."""
    script = (
        "import os, pathlib, signal, sys\n"
        "from perfect_async._files.saving import AtomicFile\n"
        "AtomicFile(pathlib.Path(sys.argv[1])).write(b'half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    [part] = out.iterdir()
    return part


def test_the_part_of_a_killed_run_is_removed(out: Path) -> None:
    """A part of any age is removed once its process holds no lock on it."""
    leave_part(out)

    remove_stale_parts(out)

    assert set() == names(out)


def test_a_locked_part_is_kept(out: Path) -> None:
    """A lock shows that a process is writing; other descriptors do not share the lock."""
    part = AtomicFile(out)
    part.write(b"half")
    [path] = out.iterdir()

    remove_stale_parts(out)
    assert path.exists()

    part.replace(out / "a.jpg")
    remove_stale_parts(out)
    assert {"a.jpg"} == names(out)


def test_other_files_are_kept(out: Path, tmp_path: Path) -> None:
    """Files with other names, links, folders, and files with a second hard link are kept."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"data")
    (out / "movie.part").touch()
    (out / ".0123456789abcde.part").touch()
    (out / ".0123456789abcdef.part.jpg").touch()
    (out / PART.replace("0", "1")).symlink_to(elsewhere)
    (out / PART.replace("0", "2")).mkdir()
    (out / PART.replace("0", "3")).hardlink_to(elsewhere)
    before = names(out)

    remove_stale_parts(out)

    assert before == names(out)
    assert b"data" == elsewhere.read_bytes()


def test_parts_of_other_users_are_kept(out: Path, monkeypatch: MP) -> None:
    """In a shared folder, only the user's own parts are removed."""
    (out / PART).touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    remove_stale_parts(out)

    assert {PART} == names(out)


@pytest.mark.parametrize(("age", "left"), [(3700, set()), (3500, {PART})])
def test_without_locks_the_age_decides(
    out: Path, monkeypatch: MP, age: float, left: set[str]
) -> None:
    """On a file system without locks a part is stale after an hour."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (out / PART).touch()
    written = time.time() - age
    os.utime(out / PART, (written, written))

    remove_stale_parts(out)

    assert left == names(out)


def test_a_part_removed_before_its_lock_is_created_again(out: Path, monkeypatch: MP) -> None:
    """Another process may remove a new part as stale between opening and locking."""
    flock, calls = fcntl.flock, 0

    def removing_once(handle: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            remove_all(out)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", removing_once)
    part = AtomicFile(out)
    part.write(b"data")
    part.replace(out / "a.jpg")

    assert 2 == calls
    assert b"data" == (out / "a.jpg").read_bytes()


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_a_missing_folder_has_no_stale_files(out: Path) -> None:
    """Nothing is raised for a missing folder."""
    remove_stale_parts(out / "missing")


# Writable folders.


def test_a_folder_is_created_and_left_empty(out: Path) -> None:
    """The test file is removed, and so are the parts of killed runs."""
    leave_part(out)
    prepare_folder(out)
    prepare_folder(out / "a" / "b")

    assert {"a"} == names(out)
    assert set() == names(out / "a" / "b")


def test_a_file_in_the_way_is_an_error(out: Path) -> None:
    """A file with the name of the folder, or of a parent, raises `OSError`."""
    (out / "file").touch()
    for folder in (out / "file", out / "file" / "below"):
        with pytest.raises(OSError):
            prepare_folder(folder)


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_full_disk_is_an_error(out: Path, monkeypatch: MP, call: str) -> None:
    """A disk that is full at the first or the last byte raises, and nothing is left."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        prepare_folder(out)
    monkeypatch.undo()

    assert set() == names(out)
