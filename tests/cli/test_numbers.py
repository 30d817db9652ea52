"""Numeric options: every wrong number is refused with its text and the limits, before anything."""

import inspect
from pathlib import Path

import pytest

from perfect_async import cli
from perfect_async.cli import _app
from perfect_async.cli._numbers import Numbers, numbers_of
from tests.support.terminal import use_sandbox

WRONG = ("nan", "inf", "-inf", "1e999", "few", "", "1,5", "0x10", "-1", "1." + "x" * 60)


def numeric_options() -> list[tuple[str, str]]:
    """List every option that takes a number, by the signatures of all commands."""
    return [
        (command.__name__, name)
        for command in _app._COMMANDS
        for name, parameter in inspect.signature(command).parameters.items()
        if {"int", "float"} & set(str(parameter.annotation).replace("|", " ").split())
    ]


# Listed before any command runs: the program replaces the annotations of some.
OPTIONS = numeric_options()


def test_every_numeric_option_has_limits() -> None:
    """A new option needs its numbers, else 2.5 is taken for 2 and nan for a number."""
    assert ("smile", "max_units") in OPTIONS
    assert ("sandbox", "port") in OPTIONS
    assert [] == [each for each in OPTIONS if numbers_of(*each) is None]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_wrong_numbers(  # noqa: PLR0917 - a table of cases
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    option: str,
    wrong: str,
) -> None:
    """A wrong number is status 2 and one line with the option, the value and the limits."""
    sandbox = use_sandbox(monkeypatch)
    words = {
        "avatar": ["in", "--template", "x"],
        "feature": ["hat"],
        "resume": ["--journal", "jobs.db"],
    }
    spelled = f"--{option.replace('_', '-')}"

    assert 2 == cli.main([command, *words.get(command, ["in"]), f"{spelled}={wrong}"])
    err = capsys.readouterr().err
    shown = wrong if len(wrong) < 50 else f"{wrong[:40]}..."
    assert err.startswith(f'perfect-async: {spelled} is "{shown}"; it must be a')
    assert 1 == len(err.splitlines())
    assert 0 == sandbox.ledger.requests.total()
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["avatar", "in", "--template", "x", "--count", "2.5"],
            '--count is "2.5"; it must be a whole number from 1 to 200.',
        ),
        (
            ["avatar", "in", "--template", "x", "--count", "1e2"],
            '--count is "1e2"; it must be a whole number from 1 to 200.',
        ),
        (["feature", "hat", "--units", "2.5"], "it must be a whole number from 0."),
        (["sandbox", "--port", "70000"], "it must be a whole number from 1 to 65535."),
        (["sandbox", "--polling-interval", "0"], "a whole number of milliseconds from 1."),
        (["sandbox", "--speed", "0"], '--speed is "0"; it must be a number above 0.'),
        (
            ["sandbox", "--lease", "0"],
            "a number of seconds above 0, or polling_interval, retention or flexible.",
        ),
        (["demo", "--fail", "1.5"], '--fail is "1.5"; it must be a number from 0 to 1.'),
        (["smile", "in", "--insured", "0"], "it must be a number of seconds above 0."),
        (["smile", "in", "--max-units", "\x1b[31m"], '--max-units is "\\x1b[31m"; it must be'),
    ],
)
def test_messages(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """The limits are those of the option, and the help is named."""
    assert 2 == cli.main(arguments)
    err = capsys.readouterr().err
    assert message in err
    assert err.endswith(f"See perfect-async {arguments[0]} --help.\n")
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("numbers", "text", "found"),
    [
        (Numbers(1, 200, whole=True), "200", 200),
        (Numbers(0), "1e9", 1e9),
        (Numbers(0), "0", 0.0),
        (Numbers(0, above=True), "0.1", 0.1),
        (Numbers(1, words=("measured",)), "measured", "measured"),
        (Numbers(whole=True), "-3", -3),
    ],
)
def test_right_numbers(numbers: Numbers, text: str, found: float | str) -> None:
    """Limits are within the range, and words stay words."""
    assert found == numbers.parse(text)
    assert type(found) is type(numbers.parse(text))


def test_numbers_without_limits() -> None:
    """Where every number is right, the message says so."""
    assert "a whole number" == str(Numbers(whole=True))
