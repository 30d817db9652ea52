"""The contract page has every heading that the code cites."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "perfect_async"
PAGE = PACKAGE / "_api" / "README.md"

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "contract:" in path.read_text().lower()]


def headings(page: str) -> set[str]:
    """Return the headings of a page, without the numbers of its steps."""
    return {name.strip() for name in re.findall(r"^#+ (?:\d+\. )?(.+)$", page, re.MULTILINE)}


def citations(source: str) -> list[str]:
    """Return the headings that a source cites as "contract: A heading, another"."""
    # A citation may be broken over two lines of a comment or a docstring.
    flat = re.sub(r"\n\s*(?:# ?)?", " ", source)
    cited = re.findall(r"contract:\s*([^.;):]*)", flat, re.IGNORECASE)
    return [name.strip() for each in cited for name in each.split(",")]


@pytest.mark.parametrize(
    ("expected", "source"),
    [
        (["Limits"], '"""One. (contract: Limits)"""'),
        (["Limits", "Errors"], "# Two (contract:\n    # Limits, Errors)."),
        (["Webhooks"], "Contract: Webhooks. Signed by hand."),
        (["Engine codes"], "(an open set; contract: Engine\n    codes)"),
        ([], "the contract page"),
    ],
)
def test_citations_are_found(expected: list[str], source: str) -> None:
    """A citation is found in comments and docstrings, also across lines."""
    assert expected == citations(source)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_citations_name_a_heading(path: Path) -> None:
    """Every citation names a heading of the contract page."""
    known = headings(PAGE.read_text(encoding="utf-8"))

    assert [] == [name for name in citations(path.read_text(encoding="utf-8")) if name not in known]
