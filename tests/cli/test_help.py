"""`help`, completion, and which help a usage error names."""

import os
import pty
import select
import shutil
import signal
import subprocess
import time
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


CASES = (
    (["perfect-async", "doc"], "doctor"),
    (["perfect-async", "doctor", "--meas"], "--measure-lease"),
    (["perfect-async", "smile", "--expression", "closed"], "closed_mouth_smile"),
    (["perfect-async", "smile", "--lease", "mea"], "measured"),
)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(("words", "found"), CASES)
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


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("words", "found"), CASES)
def test_fish_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], found: str
) -> None:
    """fish reads the script, and completes a command, an option and a value."""
    assert 0 == cli.main(["completion", "fish"])
    (tmp_path / "script").write_text(capsys.readouterr().out)

    done = subprocess.run(
        ["fish", "--no-config", "-c", f'source script; complete -C "{" ".join(words)}"'],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "" == done.stderr
    assert [found] == [line.split("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.real_time
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(
    "setup", ["fpath=($PWD $fpath); compinit -u -D", "compinit -u -D; . $PWD/_*"]
)
@pytest.mark.parametrize(("words", "found"), CASES)
def test_zsh_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], found: str, setup: str
) -> None:
    """zsh completes on its terminal, whether the script is a file in `fpath` or is read."""
    assert 0 == cli.main(["completion", "zsh"])
    (tmp_path / "_perfect-async").write_text(capsys.readouterr().out)
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - another process
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "xterm", "PS1": "> "})
    screen = Screen(terminal)
    try:
        screen.type(f"autoload -U compinit; {setup}; echo rea''dy\n")
        assert screen.shows("ready\r\n")
        screen.type(f"{' '.join(words)}\t")
        completed = " ".join([*words[:-1], found])
        assert screen.shows(completed), screen.text
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Screen:
    """What a shell has written on its terminal, with what it erases again."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def shows(self, text: str) -> bool:
        """Wait until it has written `text`, for 20 s at most."""
        until = time.monotonic() + 20
        while text not in self.text and time.monotonic() < until:
            ready, _, _ = select.select([self._terminal], [], [], 0.1)
            if ready:
                self.text += os.read(self._terminal, 1 << 16).decode("utf-8", "replace")
        return text in self.text
