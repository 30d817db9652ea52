"""`--api-key-file`: the key of a command from a file."""

from pathlib import Path

import pytest

from perfect_async import cli
from perfect_async.cli._key import api_key, key_file, read_key, with_key_file

COMMANDS = ("smile", "avatar", "resume", "templates", "units", "doctor")


def test_the_key_of_a_file_is_used(tmp_path: Path) -> None:
    """The file's key without its line end counts while the command runs, and not after."""
    (tmp_path / "key").write_text("s3cret\n")
    seen: list[str | None] = []

    def units(*, json: bool = False) -> int:
        """Show the balance."""
        seen.append(api_key())
        return int(json)

    command = with_key_file(units)

    assert 1 == command(json=True, api_key_file=tmp_path / "key")
    assert 0 == command()
    assert ["s3cret", None] == seen
    assert key_file() is None
    assert "s3cret" not in repr(read_key(tmp_path / "key"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory."),
        (b"", "is empty."),
        (b"\n", "is empty."),
        (b'"s3cret"\n', "stands in quotes, which are no part of it."),
        (b"...\n", 'is "...", which stands for a key in examples.'),
        (b"s3cret\nother", "holds white space"),
        (b"\xff\xfes3cret", "cannot be read: it is not text."),
    ],
)
def test_a_file_without_a_key_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    """What is wrong with the file is said with its path and without its content: status 2."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)

    assert 2 == cli.main(["units", "--api-key-file", str(path)])
    err = capsys.readouterr().err

    assert message in err
    assert f"--api-key-file '{path}'" in err
    assert "s3cret" not in err


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_need_a_key_take_a_file(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their help names the file; the key itself is no option, since shells keep command lines."""
    assert 0 == cli.main([command, "--help"])
    shown = capsys.readouterr().out

    assert "--api-key-file" in shown
    assert "--api-key " not in shown
    assert "--key" not in shown


@pytest.mark.parametrize("command", ["sandbox", "demo", "forget"])
def test_other_commands_take_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands that send nothing to the vendor have no such option."""
    assert 0 == cli.main([command, "--help"])
    assert "api-key" not in capsys.readouterr().out
