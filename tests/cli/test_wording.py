"""Messages in the words of the terminal."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import perfect_async
from perfect_async import Avatar, Polling
from perfect_async._client import settings
from perfect_async.cli._wording import _ADVICE, _OPTIONS, in_terminal_terms, usage_text
from perfect_async.errors import PerfectError

QUOTES = "stands in quotes, which are no part of it"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("max_units is '-1'; raise `max_units`.", "--max-units is '-1'; raise `--max-units`."),
        ("set YOUCAM_API_KEY or pass api_key.", "set YOUCAM_API_KEY or pass --api-key-file."),
        ("output_count '0' is", "--count '0' is"),
        ("or let Client(fit=True) convert it.", "or let --fit convert it."),
        ("fit=True needs Pillow", "--fit needs Pillow"),
        ("share is 'x'; it must", "PERFECT_ASYNC_SHARE is 'x'; it must"),
        ("params holds a number", "--param holds a number"),
        ("version is 'v3'; it must", "--api-version is 'v3'; it must"),
        ("the conversion is 'v3' and 'share is x', 'params has it'", None),
        (
            f"The API key {QUOTES}: set YOUCAM_API_KEY or pass api_key.",
            f"The API key {QUOTES}: remove them from YOUCAM_API_KEY, or pass --api-key-file.",
        ),
        (
            "Redis at 'a:1', the server of `share`, cannot be reached (ConnectionError). Start it",
            "Redis at 'a:1' cannot be reached (ConnectionError). Start it",
        ),
        (
            "the vendor's API at x could not be reached (ConnectError: Connection refused).",
            "the vendor's API at x could not be reached (Connection refused).",
        ),
        ("'max_units.jpg' and a/max_units.jpg, my_max_units", None),
    ],
)
def test_messages_name_options(message: str, text: str | None) -> None:
    """Settings in messages have their names in the terminal; names of files stay."""
    assert (message if text is None else text) == in_terminal_terms(message)


VALUES = re.compile(r"FileNotFoundError|ConnectionError|'WRONG_VERSION_NUMBER'|machine")
"""Values in the keys of the table; the texts of the package have a placeholder there."""


def texts_of_the_package(part: str = "") -> Iterator[str]:
    """Yield the texts in the source of `part`, docstrings aside, with "{}" for each value."""
    for file in (Path(perfect_async.__file__).parent / part).rglob("*.py"):
        if file.name == "_wording.py":
            continue
        nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            match node:
                case ast.Constant(value=str(text)) if node not in docstrings:
                    yield text
                case ast.JoinedStr(values=parts):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "{}"
                        for part in parts
                    )
                case _:
                    pass


def made_of_several_texts() -> Iterator[str]:
    """Yield messages whose parts stand in several places of the source."""
    yield from (settings.key_problem(key) or "" for key in ('"key"', "Bearer key", "a key"))
    for make in (lambda: Polling(insured=0), lambda: Avatar("a.jpg", template_id="")):
        with pytest.raises(PerfectError) as caught:
            make()
        yield caught.value.message


def test_each_translation_is_of_a_text_that_there_is() -> None:
    """Every text that is translated for the terminal is one of the package's texts today."""
    texts = [*texts_of_the_package(), *made_of_several_texts()]
    translated = [*_OPTIONS, *_ADVICE]

    assert [] == [
        key for key in translated if not any(VALUES.sub("{}", key) in text for text in texts)
    ]


def test_messages_about_a_shared_key_are_for_the_terminal() -> None:
    """Nothing that is said of a shared key names a setting or a function of the library."""
    texts = [in_terminal_terms(text) for text in texts_of_the_package("_ledger")]

    assert [] == [text for text in texts if re.search(r"`share`|\bshare=|urllib", text)]


def every_error() -> list[type[PerfectError]]:
    """Return all classes of errors, the base first."""
    found: list[type[PerfectError]] = [PerfectError]
    for error in found:
        found += error.__subclasses__()
    return found


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_hints_are_for_the_terminal(error: type[PerfectError]) -> None:
    """No advice of an error names a setting, a method or an object of the library."""
    advice = in_terminal_terms(error.hint)

    assert not re.search(r"[a-z]_[a-z]|\w\(|=|`|\bclient\b|\bjob\b|\bsetting\b", advice), advice


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("Unused Tokens: ['extra'].", '"extra" is one word too many.'),
        ("Unused Tokens: ['a b', 'c'].", '"a b" is one word too many.'),
        ('Invalid value for --count: --count is "x"; it', '--count is "x"; it'),
        ('Command "worker" parameter --folder requires an argument.', "--folder is missing."),
    ],
)
def test_usage_errors(message: str, text: str) -> None:
    """What cyclopts says of a command line is said in plain words."""
    assert text == usage_text(message)
