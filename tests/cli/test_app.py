"""The entry point: usage errors, missing extras, help and version."""

import errno
import importlib.metadata
import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from perfect_async import cli
from perfect_async._files.saving import AtomicFile
from perfect_async.cli import _runner
from tests.support.terminal import use_sandbox


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smile"], "no picture is named: give files, folders, patterns or URLs"),
        (["smile", "in", "--expression", "[red]grin\x1b[31m"], '"[red]grin\\x1b[31m"'),
        (["smile", "in", "--nope"], "Unknown option: --nope"),
        (["smile", "missing.jpg"], "there is no file or folder 'missing.jpg'."),
        (["smile", "inn"], "there is no file or folder 'inn'; did you mean 'in'?"),
        (
            ["smile", "in/00.jpg"],
            "there is no file or folder 'in/00.jpg'; did you mean 'in/0.jpg'?",
        ),
        (["smile", "nowhere/0.jpg"], "there is no file or folder 'nowhere/0.jpg'."),
        (["units", "extra"], '"extra" is one word too many. See perfect-async units --help.'),
        (["completion"], "SHELL is missing. See perfect-async completion --help."),
        (["smile", "*.png"], "'*.png' matches no picture"),
        (["smile", "in", "--out", "in/0.jpg"], "--out 'in/0.jpg' is no folder: there is a file"),
        (
            ["smile", "in", "--max-units", "few"],
            '--max-units is "few"; it must be a number from 0.',
        ),
        (
            ["avatar", "in", "--template", "x", "--count", "four"],
            "it must be a whole number from 1 to 200.",
        ),
        (["smile", "in", "--out", "a\0b"], "cannot be written: embedded null byte"),
        (["avatar", "in"], "--template is missing: perfect-async templates lists the styles."),
        (
            ["avatar", "in", "--template", "x", "--count", "201"],
            '--count is "201"; it must be a whole number from 1 to 200.',
        ),
        (["avatar", "in", "--template", " "], "--template is ' '"),
        (["smile", "in", "--max-units", "-1"], '--max-units is "-1"'),
        (["smile", "in", "--insured", "0"], '--insured is "0"'),
        (["smile", "in", "--journal", "in/0.jpg"], "is not a journal of perfect_async"),
        (["smile", "in", "--journal", "in"], "is not a regular file"),
        (["smile", "in", "--journal", "no/j.db"], "cannot be made: there is no folder 'no'."),
        (["resume"], "--journal is missing."),
        (["resume", "--journal", "nowhere.db"], "There is no journal 'nowhere.db': name the file"),
        (["forget", "--journal", "nowhere.db"], "There is no journal 'nowhere.db': name the file"),
        (["forget", "--journal", "in/0.jpg"], "is not a journal of perfect_async"),
        (["nope"], 'Unknown command "nope"'),
        (["demo", "--fail", "1.5"], '--fail is "1.5"'),
        (["demo", "--fail", "nan"], '--fail is "nan"'),
        (["demo", "missing"], "there is no file or folder 'missing'."),
        (["sandbox", "--port", "70000"], '--port is "70000"'),
        (["sandbox", "--speed", "0"], '--speed is "0"; it must be a number above 0'),
        (["sandbox", "--fail", "-1"], '--fail is "-1"'),
    ],
)
def test_usage(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """Wrong usage is status 2 and one line that names the mistake, before anything is sent."""
    sandbox = use_sandbox(monkeypatch)

    status = cli.main(arguments)
    out, err = capsys.readouterr()

    assert (2, "") == (status, out)
    assert message in err
    assert err.startswith("perfect-async: ")
    assert 1 == len(err.splitlines())
    assert 0 == sum(sandbox.ledger.requests.values())


def test_a_file_that_looks_like_an_option(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern that a shell expands may yield such a name: the message says how to name it."""
    use_sandbox(monkeypatch)
    Path("in/0.jpg").rename("-rf.jpg")

    assert 2 == cli.main(["smile", "-rf.jpg", "in/1.jpg"])
    err = capsys.readouterr().err
    assert "There is a file '-rf.jpg': write './-rf.jpg', or put -- after all options. See" in err
    assert 0 == cli.main(["smile", "./-rf.jpg"])
    assert 0 == cli.main(["smile", "--quiet", "--", "-rf.jpg"])


def test_a_missing_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key: status 2, the variable is named, and no folder is made."""
    monkeypatch.delenv("YOUCAM_API_KEY", raising=False)

    assert 2 == cli.main(["smile", "in"])
    assert "set YOUCAM_API_KEY or pass --api-key-file.\n" in capsys.readouterr().err
    assert not (folder / "perfect-async-out").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    """Results that could not be saved are not bought: one line and status 2."""
    sandbox = use_sandbox(monkeypatch)

    def write(_: AtomicFile, __: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(AtomicFile, "write", write)

    assert 2 == cli.main(["smile", "in"])
    assert (
        f"perfect-async: --out 'perfect-async-out' cannot be written: {os.strerror(number)}.\n"
        == capsys.readouterr().err
    )
    assert 0 == sum(sandbox.ledger.requests.values())


@pytest.mark.usefixtures("no_working_folder")
def test_a_removed_working_folder_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A relative path leads nowhere then, which has nothing to do with stdout."""
    assert 2 == cli.main(["smile", "a.jpg"])
    assert "perfect-async: the working folder was removed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "library", "ours"),
    [
        ("units", "cyclopts", "perfect_async._nothing"),
        ("units", "rich", "perfect_async.cli._display"),
        ("demo", "PIL", "perfect_async.cli._demo"),
        ("sandbox", "starlette", "perfect_async.sandbox"),
    ],
)
def test_without_the_extras(  # noqa: PLR0917 - a table of cases
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    library: str,
    ours: str,
) -> None:
    """A library that is not installed is status 2 and the command that installs it."""
    monkeypatch.delitem(sys.modules, ours, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)

    assert 2 == cli.main([command])
    err = capsys.readouterr().err
    assert f"this command needs {library}" in err
    assert "pip install 'perfect_async[demo]'" in err


def test_our_own_import_errors_are_not_hidden() -> None:
    """A broken import of ours is a defect, not a missing extra."""
    with pytest.raises(ImportError, match="broken"):
        _runner.missing_extra(ImportError("broken", name="perfect_async._api.tasks"))


def test_defects_have_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is raised as it is."""
    monkeypatch.setattr(_runner, "make_client", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        cli.main(["units"])


def test_version_and_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are on stdout and status 0; the command line is the default."""
    monkeypatch.setattr("sys.argv", ["perfect-async", "--version"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"1.2 of {name}")
    assert 0 == cli.main()
    assert "1.2 of perfect_async\n" == capsys.readouterr().out

    assert 0 == cli.main(["--help"])
    text = capsys.readouterr().out
    assert "YOUCAM_API_KEY" in text
    assert all(
        f" {name} " in text
        for name in (
            *("smile", "avatar", "feature", "resume", "templates", "units", "forget"),
            *("doctor", "sandbox", "demo", "help", "completion"),
        )
    )


def test_a_copy_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package on the path without metadata has no version, and works."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)

    assert 0 == cli.main(["--version"])
    assert "unknown: not installed\n" == capsys.readouterr().out
