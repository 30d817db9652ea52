"""The page: its texts stay texts, it loads nothing, and a thousand pictures fit."""

import base64
import functools
import hashlib
import os
import re
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perfect_async.report import Report, ReportFailure, ReportJob, ReportRequest, _thumbnails
from perfect_async.report._page import heading, render_page
from perfect_async.report._values import shown
from tests.report.made import HOSTILE, failure, picture, smile_run

VOID = {"meta", "link", "img", "input"}


class Page(HTMLParser):
    """What a browser would read: elements, attributes and texts."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.names: set[tuple[str, str]] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.names |= {(tag, name) for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.remove(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(data.strip())


def page(report: Report, folder: Path = Path("/nowhere")) -> Page:
    return Page(render_page(report, folder))


def hostile(text: str) -> Report:
    """A report in which each text is this one, in cards, causes and the timeline."""
    failure = ReportFailure(text, text, text, text, 1.0)
    jobs = (
        ReportJob(1, text, "failed", None, text, {text: text}, text, failure=failure),
        ReportJob(
            2, text, "done", None, text, {text: text}, text, files=(Path("out") / _file(text),)
        ),
        ReportJob(3, text, "done", files=(Path(_file(text)), Path("b.jpg"))),
    )
    requests = tuple(
        ReportRequest("create", (number,), float(number), None, "Accepted", number)
        for number in (1, 2, 3)
    )
    return Report(jobs, title=text, seconds=20.0, requests=requests)


def _file(text: str) -> str:
    # No file system takes a longer name.
    return text.replace("\0", "").replace("/", "")[:200] or "a"


PLAIN = page(hostile("plain"))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_stay_texts(text: str) -> None:
    """The page has the elements and attributes that it has with a harmless text, and no other."""
    found = page(hostile(text))

    assert PLAIN.tags == found.tags
    assert PLAIN.names == found.names
    assert any(shown(text).strip() in seen for seen in found.texts)


@given(st.text(min_size=1, max_size=80))
def test_every_text_is_escaped(text: str) -> None:
    """Whatever a name, a message, a code or a task id holds, it changes nothing but the text."""
    found = page(hostile(text))

    assert PLAIN.tags == found.tags
    assert PLAIN.names == found.names
    assert all(char.isprintable() or char == "\n" for seen in found.texts for char in seen)


@given(st.text(min_size=1, max_size=40))
def test_links_lead_to_files_only(text: str) -> None:
    """A file's name becomes a relative URL, whatever scheme it looks like."""
    found = page(hostile(text))

    for tag, name, value in found.attributes:
        if (tag, name) == ("a", "href"):
            assert re.fullmatch(r"#job-\d+|[A-Za-z0-9_.~%/-]+", value)
            assert not value.startswith("/")


def test_a_very_long_text_is_cut() -> None:
    """A message of a megabyte does not make a page of megabytes."""
    content = render_page(hostile("y" * 1_000_000), Path("/nowhere"))

    assert len(content) < 150_000


def test_the_page_loads_nothing() -> None:
    """No address of anything outside; its own style and script are allowed by their digests."""
    content = render_page(smile_run(), Path("/nowhere")).decode()
    found = Page(content.encode())

    assert [] == re.findall(r"https?:|src=\"(?!data:)|@import|url\(|innerHTML|\son[a-z]+=", content)
    assert ("link", "href", "data:,") in found.attributes
    [policy] = [
        value for tag, name, value in found.attributes if name == "content" and "default" in value
    ]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [name for _, name, _ in found.attributes if name == "style"]


def test_the_account_is_in_words() -> None:
    """Units, requests against the bound, durations and the lease that was left."""
    texts = page(smile_run()).texts

    for expected in (
        *("units spent", "1", "2 charged, 1 returned"),
        *("requests a picture", "6.00", "no schedule needs fewer than 5.00"),
        *("6", "1 registration, 2 creations, 3 polls"),
        *("median duration (p50)", "9.1 s", "19 of 20 within 17.9 s (p95)"),
        *("lease to spare", "0.9 s", "left of a 10 s lease at its closest poll"),
    ):
        assert expected in texts


def test_failures_are_named_once_with_what_to_do() -> None:
    """One cause of five pictures has one hint among the causes, and names three of the five."""
    jobs = tuple(ReportJob(n, f"in/{n}.jpg", "failed", failure=failure()) for n in range(1, 6))
    content = render_page(Report(jobs), Path("/nowhere")).decode()
    [causes] = re.findall(r'<ul class="causes">.*?</ul>', content, re.DOTALL)

    assert 1 == causes.count("Use another picture.")
    assert '<p class="count">5</p>' in causes
    assert "3.jpg</a> and 2 more" in causes
    assert "4.jpg" not in causes


def test_each_kind_of_result_has_its_card(tmp_path: Path) -> None:
    """Two pictures are a slider, several results a strip, one is shown alone, none is said."""
    before, after = picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg", colour="#993333")
    jobs = (
        ReportJob(1, "one", "done", before, files=(after,)),
        ReportJob(2, "strip", "done", before, files=(after, tmp_path / "gone.jpg")),
        ReportJob(3, "alone", "done", None, files=(after,)),
        ReportJob(4, "failed", "failed", before, failure=failure()),
        ReportJob(5, "nothing", "not sent"),
    )

    content = render_page(Report(jobs), tmp_path).decode()
    cards = re.findall(r'<li class="card.*?</li>', content, re.DOTALL)

    assert [1, 0, 0, 0, 0] == [card.count('type="range"') for card in cards]
    assert [0, 1, 0, 0, 0] == [card.count('class="strip"') for card in cards]
    assert [2, 2, 1, 1, 0] == [card.count("data:image/jpeg") for card in cards]
    assert '<span class="none">gone.jpg</span>' in cards[1]
    assert 'alt="alone, after"' in cards[2]
    assert "no picture to show" in cards[4]
    assert 'href="b.jpg"' in cards[0]


def test_the_heading_says_when_and_how_long() -> None:
    """Numbers and dates for people; what is left out is said."""
    report = attrs.evolve(
        smile_run(), began=datetime(2026, 5, 1, 9, 30, tzinfo=UTC), seconds=3725.0, left_out=10
    )

    assert "12 pictures · 01 May 2026, 09:30 UTC · in 1:02:05 · the last 2 are shown" == heading(
        report
    )
    assert "1 picture" == heading(Report((ReportJob(1, "a", "done"),)))


@pytest.mark.parametrize(("count", "pages"), [(1, 1), (20, 1), (150, 6), (400, 16), (900, 25)])
def test_a_timeline_of_any_length_is_drawn(count: int, pages: int) -> None:
    """Each task has a line; the drawing gets wider where a task would be a dot."""
    jobs = tuple(ReportJob(n, f"{n}.jpg", "done", ended=10.0 * n) for n in range(1, count + 1))
    requests = tuple(
        ReportRequest("create", (n,), 10.0 * n - 9, 10.0 * n - 8.8, "Accepted", min(n, 250))
        for n in range(1, count + 1)
    )

    content = render_page(Report(jobs, seconds=10.0 * count, requests=requests), Path("/")).decode()

    assert count == content.count('class="run done"')
    assert (count if count <= 200 else 0) == len(re.findall(r'<text class="name', content))
    assert f'width="{pages}00%" height="110"' in content


@pytest.mark.parametrize(
    ("name", "ends"), [("a" * 30, True), ("\a" * 30, False)], ids=["a", "bell"]
)
def test_a_name_stands_where_its_escapes_have_room(name: str, ends: bool) -> None:
    """A name is written before its line only where it fits there as it is written."""
    job = ReportJob(1, f"in/{name}", "done", ended=12.0)
    request = ReportRequest("create", (1,), 9.0, 9.2, "Accepted", 1)

    content = render_page(Report((job,), seconds=12.0, requests=(request,)), Path("/")).decode()

    assert ends == ('<text class="name ends"' in content)


def test_an_empty_report_is_a_page() -> None:
    """A batch without jobs has one, too."""
    found = page(Report(()))

    assert "0" in found.texts
    assert "svg" not in found.tags


def test_a_thousand_pictures_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 pictures before and after, of noise, are a page of less than 30 MB."""
    source = tmp_path / "noise.jpg"
    Image.effect_noise((200, 200), 90).convert("RGB").save(source, quality=95)
    paths = [tmp_path / f"{number}.jpg" for number in range(2000)]
    for path in paths:
        os.link(source, path)
    # They are one picture, which need not be made small 2000 times.
    small = functools.cache(functools.partial(_thumbnails._thumbnail, source))
    monkeypatch.setattr(_thumbnails, "_thumbnail", lambda _, *, most: small(most=most))
    jobs = tuple(
        ReportJob(n + 1, f"{n}.jpg", "done", paths[2 * n], files=(paths[2 * n + 1],))
        for n in range(1000)
    )

    content = render_page(Report(jobs), tmp_path)

    assert 2000 == content.count(b"data:image/jpeg")
    assert 10_000_000 < len(content) < 30_000_000
