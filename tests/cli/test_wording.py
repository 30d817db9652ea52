"""Messages in the words of the terminal."""

import re

import pytest

from perfect_async.cli._wording import in_terminal_terms, usage_text
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
        ("version 'v3' is none", "--api-version 'v3' is none"),
        ("the conversion 'v3' and 'share is x', 'params has it'", None),
        (
            f"The API key {QUOTES}: set YOUCAM_API_KEY or pass api_key.",
            f"The API key {QUOTES}: remove them from YOUCAM_API_KEY, or pass --api-key-file.",
        ),
        (
            "Redis at '127.0.0.1:1', which `share` names, cannot be reached ('ConnectionError').",
            "Redis at '127.0.0.1:1' cannot be reached.",
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
