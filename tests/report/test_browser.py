"""A page in headless Chromium: looked at, filtered, searched and slid, by mouse and keyboard.

Where there is no Chromium it is skipped, but not where CI says that it is CI: `.ci/run` installs
it. SCREENSHOTS names a folder to which the pictures of the page go, to be looked at.
"""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfect_async.report import Report, ReportFailure, ReportJob, ReportRequest, write
from perfect_async.sandbox import portrait
from tests.report.made import HOSTILE, failure, picture, request, smile_run
from tests.support.browser import PROGRAMS, Browser, Page, installed

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(120)]

PATIENCE = 60.0
"""Nothing here takes longer, not even where six others want the cores as well."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = installed()
    if program is None:
        why = f"none of {', '.join(PROGRAMS)} is installed (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with Browser(program, PATIENCE) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with sliders, a strip, failures, a timeline and texts that mean harm."""
    folder = tmp_path_factory.mktemp("report")
    before, after = folder / "before.jpg", picture(folder / "after.png", (300, 300), "#2d8a5f")
    before.write_bytes(portrait(3, 300))
    run = smile_run()
    jobs = [
        ReportJob(1, "in/first.jpg", "done", before, "ai-smile", files=(after,), units=1.0),
        ReportJob(2, "in/second.jpg", "failed", before, "ai-smile", failure=failure()),
        ReportJob(3, "in/third.jpg", "done", before, "ai-avatar", files=(after,) * 8, units=2.0),
    ]
    jobs += [
        ReportJob(
            number,
            text,
            "failed",
            None,
            text,
            {text: text},
            text,
            failure=ReportFailure(text, text, text, text),
        )
        for number, text in enumerate(HOSTILE, 4)
    ]
    page = Report(tuple(jobs), HOSTILE[0], requests=run.requests, seconds=20.0, charged=2.0)
    return write(page, folder / "report.html")


def opened(
    browser: Browser, report: Path, *, width: int = 1280, dark: bool = False, height: int = 900
) -> Page:
    page = browser.page(width=width, height=height)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.call("Emulation.setEmulatedMedia", features=[scheme])
    page.go(report.as_uri())
    return page


def place(page: Page, selector: str) -> tuple[float, float, float]:
    """Scroll an element into view; its left edge, its width, and its middle from above."""
    left, width, middle = page.value(
        f"(() => {{ const it = document.querySelector({selector!r});"
        " it.scrollIntoView({behavior: 'instant', block: 'center'});"
        " const box = it.getBoundingClientRect();"
        " return [box.left, box.width, box.top + box.height / 2]; })()"
    )
    return left, width, middle


def mouse(page: Page, kind: str, x: float, y: float, **more: object) -> None:
    page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


def click(page: Page, selector: str) -> None:
    left, width, y = place(page, selector)
    for kind in ("mousePressed", "mouseReleased"):
        mouse(page, kind, left + width / 2, y, button="left", clickCount=1)


def key(page: Page, name: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code
        )


def shown(page: Page) -> list[str]:
    """The ids of the cards that can be seen."""
    found: list[str] = page.value(
        "[...document.querySelectorAll('.card')].filter(each => each.offsetParent).map(e => e.id)"
    )
    return found


def at(page: Page) -> float:
    """Where the first slider is, in per cent."""
    return float(
        page.value("getComputedStyle(document.querySelector('.pair')).getPropertyValue('--at')")[
            :-1
        ]
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits(browser: Browser, report: Path, width: int, dark: bool) -> None:
    """On a desktop and on a phone nothing is wider than the page, and nothing is complained of."""
    page = opened(browser, report, width=width, dark=dark)

    assert width == page.value("document.documentElement.scrollWidth")
    assert (dark, 17) == tuple(
        page.value(
            "[getComputedStyle(document.body).backgroundColor === 'rgb(17, 20, 27)',"
            " document.querySelectorAll('.card').length]"
        )
    )
    assert page.value("[...document.images].every(image => image.complete && image.naturalWidth)")
    if folder := os.environ.get("SCREENSHOTS"):
        height = page.value("document.documentElement.scrollHeight")
        page.resize(width, height)
        name = f"report-{width}-{'dark' if dark else 'light'}.png"
        (Path(folder) / name).write_bytes(page.picture())
    assert [] == page.complaints()


NAMES = """(() => {
  const chart = document.querySelector('.chart'), box = chart.getBoundingClientRect();
  chart.scrollLeft = 0;
  return [...chart.querySelectorAll('.name')].filter((name) => {
    const at = name.getBoundingClientRect();
    return at.left < box.left || at.right > box.left + chart.scrollWidth;
  }).map((name) => name.textContent);
})()"""


@pytest.mark.parametrize("width", [1280, 390])
def test_names_on_the_timeline_are_whole(browser: Browser, tmp_path: Path, width: int) -> None:
    """Every name can be scrolled to, however long it is."""
    jobs: list[ReportJob] = []
    requests: list[ReportRequest] = []
    for number, began in enumerate((0.0, 3.0, 6.0, 9.0), 1):
        name = f"in/{'long-' * number}name-{number}.jpg"
        jobs.append(ReportJob(number, name, "done", units=1.0, ended=began + 2.5))
        requests += [
            request("create", number, began, "Accepted"),
            request("poll", number, began + 2.0, "Succeeded"),
        ]
    run = Report(tuple(jobs), seconds=12.0, requests=tuple(requests))
    page = opened(browser, write(run, tmp_path / "report.html"), width=width)

    assert 4 == page.value("document.querySelectorAll('.chart .name').length")
    assert [] == page.value(NAMES)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_can_be_read(browser: Browser, report: Path, dark: bool) -> None:
    """Every text has a contrast of 4.5 to what is behind it (WCAG 2.2, 1.4.3)."""
    page = opened(browser, report, dark=dark)

    poor = page.value(
        """(() => {
          const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = (text) => rgb(text).slice(0, 3).map((value) => value / 255)
            .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
            .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
          const behind = (node) => {
            for (; node; node = node.parentElement) {
              const colour = getComputedStyle(node).backgroundColor;
              if ((rgb(colour)[3] ?? 1) > 0.5) return colour;
            }
          };
          const texts = [...document.querySelectorAll("body *")].filter((each) =>
            each.offsetParent && [...each.childNodes].some((node) => node.nodeType === 3
              && node.data.trim()) && !each.closest(".tag, figcaption, legend"));
          return texts.filter((each) => {
            const [one, two] = [light(getComputedStyle(each).color), light(behind(each))];
            return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05) < 4.5;
          }).map((each) => each.outerHTML.slice(0, 120));
        })()"""
    )

    assert [] == poor


def test_the_slider_by_mouse(browser: Browser, report: Path) -> None:
    """Hovering moves it, and so does dragging; the picture after it is cut where it stands."""
    page = opened(browser, report)
    left, width, y = place(page, ".pair [type=range]")

    mouse(page, "mouseMoved", left + width * 0.25, y)
    assert at(page) == pytest.approx(25, abs=2)
    mouse(page, "mousePressed", left + width * 0.25, y, button="left", clickCount=1)
    mouse(page, "mouseMoved", left + width * 0.8, y, button="left", buttons=1)
    mouse(page, "mouseReleased", left + width * 0.8, y, button="left", clickCount=1)
    assert at(page) == pytest.approx(80, abs=2)
    clip = page.value("getComputedStyle(document.querySelector('.after')).clipPath")
    assert "0px 0px 0px" in clip
    assert [] == page.complaints()


def test_the_slider_by_keyboard(browser: Browser, report: Path) -> None:
    """Arrows move it by steps, Home and End to its ends."""
    page = opened(browser, report)
    page.value("document.querySelector('.pair [type=range]').focus()")

    assert 50 == at(page)
    for _ in range(3):
        key(page, "ArrowRight", 39)
    assert 53 == at(page)
    key(page, "ArrowLeft", 37)
    assert 52 == at(page)
    key(page, "Home", 36)
    assert 0 == at(page)
    key(page, "End", 35)
    assert 100 == at(page)


def test_the_filter_and_the_search(browser: Browser, report: Path) -> None:
    """By mouse and keyboard: outcomes, words in any order, and a count of what is shown."""
    page = opened(browser, report)
    assert 17 == len(shown(page))

    click(page, "input[value=done]")
    assert ["job-1", "job-3"] == shown(page)
    assert "2 of 17 shown" == page.value("document.querySelector('output').value")
    # The arrows go on from there.
    key(page, "ArrowRight", 39)
    assert 15 == len(shown(page))

    click(page, "input[value='']")
    click(page, "input[type=search]")
    page.call("Input.insertText", text="NO_FACE second")
    assert ["job-2"] == shown(page)
    page.call("Input.insertText", text=" nothing like it")
    assert [] == shown(page)
    assert page.value("!!document.querySelector('.empty').offsetParent")
    assert [] == page.complaints()


def test_a_link_shows_what_the_filter_hides(browser: Browser, report: Path) -> None:
    """A line of the timeline leads to its picture, whatever is filtered."""
    page = opened(browser, report)
    click(page, "input[value=done]")

    page.value("document.querySelector('.causes a[href=\"#job-2\"]').click()")
    page.until("location.hash === '#job-2'")
    page.until("!!document.querySelector('#job-2').offsetParent")

    assert 17 == len(shown(page))


def test_hostile_texts_do_nothing(browser: Browser, report: Path) -> None:
    """No script of theirs runs and no element of theirs is there, whatever they hold."""
    page = opened(browser, report)

    assert page.value("document.title").startswith("<script>alert(1)</script>")
    assert 1 == page.value("document.scripts.length")
    assert 0 == page.value("document.querySelectorAll('img[src=x], [onload], [onfocus]').length")
    assert [] == page.complaints()


def test_paper_has_both_pictures(browser: Browser, report: Path) -> None:
    """Printed, before and after stand beside each other, and there are no controls."""
    page = opened(browser, report)
    page.call("Emulation.setEmulatedMedia", media="print")

    before, after = page.value(
        "[...document.querySelectorAll('#job-1 .pair img')]"
        ".map(image => image.getBoundingClientRect()).map(box => [box.left, box.right])"
    )
    assert before[1] == pytest.approx(after[0], abs=1)
    assert "none" == page.value("getComputedStyle(document.querySelector('.after')).clipPath")
    assert not page.value("!!document.querySelector('.find').offsetParent")
    pdf = base64.b64decode(page.call("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
