"""`help`, completion, and which help a usage error names."""

import shutil
import subprocess
from pathlib import Path

import pytest

from perfect_async import cli
from perfect_async.cli._help import help_of


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["smile", "--nope"], "perfect-async smile --help"),
        (["--nope"], "perfect-async --help"),
        (["nope"], "perfect-async --help"),
        ([], "perfect-async --help"),
    ],
)
def test_a_usage_error_names_the_help_of_its_command(arguments: list[str], shown: str) -> None:
    """The help of the command that was named, else that of the program."""
    assert shown == help_of(arguments, ["smile", "units"])


def test_usage_errors_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong option and a missing argument end with the help to read."""
    assert 2 == cli.main(["templates", "--nope"])
    assert capsys.readouterr().err.endswith("See perfect-async templates --help.\n")
    assert 2 == cli.main(["avatar"])
    assert capsys.readouterr().err.endswith("See perfect-async avatar --help.\n")


def test_help_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`help` prints what --help prints, and `help COMMAND` that of the command."""
    for command, flags in ((["help"], ["--help"]), (["help", "smile"], ["smile", "--help"])):
        assert 0 == cli.main(command)
        shown = capsys.readouterr().out
        assert 0 == cli.main(flags)
        assert shown == capsys.readouterr().out
    assert 2 == cli.main(["help", "nope"])
    assert "there is no command 'nope'" in capsys.readouterr().err


def test_v_is_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """-V prints what --version prints."""
    assert 0 == cli.main(["--version"])
    version = capsys.readouterr().out
    assert 0 == cli.main(["-V"])
    assert version == capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script names the program, its commands and their options."""
    assert 0 == cli.main(["completion", shell])
    script = capsys.readouterr().out

    for word in ("perfect-async", "doctor", "measure-lease", "api-key-file", "expression"):
        assert word in script


def test_another_shell_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell without a completion is a usage error that names those with one."""
    assert 2 == cli.main(["completion", "tcsh"])
    assert "fish" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["perfect-async", "doc"], "doctor"),
        (["perfect-async", "doctor", "--meas"], "--measure-lease"),
        (["perfect-async", "smile", "--expression", "closed"], "closed_mouth_smile"),
    ],
)
def test_bash_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], found: str
) -> None:
    """bash reads the script, and completes a command, an option and a value."""
    assert 0 == cli.main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    program = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _perfect_async; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )

    done = subprocess.run(
        ["bash", "-c", program, "bash", str(tmp_path / "script"), *words],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "" == done.stderr
    assert [found] == done.stdout.split()
