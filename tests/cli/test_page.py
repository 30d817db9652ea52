"""The page with the thumbnails of the styles."""

import webbrowser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from perfect_async import Template, cli
from perfect_async.cli._page import page
from tests.support.terminal import use_sandbox

HOSTILE = '"><script>alert(1)</script>'


class Reader(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[str | None]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def test_texts_of_the_vendor_are_escaped() -> None:
    """Hostile names, titles and URLs add no tag and no script."""
    found = Reader(
        page(
            [
                Template(HOSTILE, HOSTILE, HOSTILE, f"https://x/{HOSTILE}"),
                Template("a", "", "", None),
            ]
        )
    )

    assert {"script"}.isdisjoint(tag for tag, _ in found.tags)
    assert HOSTILE in found.text
    assert [f"https://x/{HOSTILE}"] == found.pictures()
    assert "no picture" in found.text
    assert "Others" in found.text


def test_the_page_needs_nothing_but_the_thumbnails() -> None:
    """It has no script and no link, and a policy that allows only pictures by https."""
    found = Reader(page([Template("a", "A", "Anime", "https://x/a.jpg")]))

    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in found.tags)
    policy = [
        attributes.get("content") for _, attributes in found.tags if attributes.get("http-equiv")
    ]
    assert ["default-src 'none'; img-src https:; style-src 'unsafe-inline'"] == policy


@pytest.mark.parametrize("browser", [True, False])
def test_templates_open(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    browser: bool,
) -> None:
    """The page is written, opened and named; without a browser stderr says what to do."""
    use_sandbox(monkeypatch)
    opened: list[str] = []

    def open_url(url: str) -> bool:
        opened.append(url)
        return browser

    monkeypatch.setattr(webbrowser, "open", open_url)
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    assert 0 == cli.main(["templates", "--open"])
    out, err = capsys.readouterr()
    path = Path(out.strip())
    found = Reader(path.read_text(encoding="utf-8"))

    assert [path] == [Path(unquote(urlsplit(url).path)) for url in opened]
    assert 71 == len(found.pictures())
    assert all(str(picture).startswith("https://") for picture in found.pictures())
    assert "male_studio_00" in found.text
    assert ("no browser was found" in err) is not browser


def test_a_page_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder for temporary files that is missing is one line and status 2."""
    use_sandbox(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(folder / "missing"))

    assert 2 == cli.main(["templates", "--open"])
    assert "the page cannot be written: No such file or directory." in capsys.readouterr().err
