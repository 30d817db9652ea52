"""The demo: its portraits, its files and its messages."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from perfect_async import PictureRefused
from perfect_async.cli._demo import Demo, _line_of, _sheet
from perfect_async.cli._display import Display, JobReport, RunSummary
from perfect_async.cli._inputs import Picture
from perfect_async.sandbox import portrait
from tests.support import virtual_time

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"


def run(demo: Demo) -> RunSummary:
    return virtual_time.run(lambda: demo.run(Display("nothing")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a demo with failing pictures has run."""
    folder = tmp_path_factory.mktemp("demo")
    demo = Demo(folder, None, fail=0.05, seed=0)
    summary = run(demo)
    assert (23, 1) == (summary.done, len(summary.failures))
    assert [
        *(
            folder / name
            for name in ("report.html", "contact-sheet.png", "summary.md", "summary.json")
        ),
        folder / "results",
    ] == demo.write_report(summary)
    return folder


def test_everything_is_left_in_the_folder(folder: Path) -> None:
    """Originals, results, a report, a sheet and two summaries."""
    names = ["contact-sheet.png", "originals", "report.html", "results"]
    assert [*names, "summary.json", "summary.md"] == sorted(path.name for path in folder.iterdir())
    assert 24 == len(list((folder / "originals").glob("portrait-*.jpg")))
    assert 23 == len(list((folder / "results").glob("portrait-*")))


def test_the_summary_has_both_accounts(folder: Path) -> None:
    """The counts of the client and of the sandbox's ledger: nothing wasted, refused or wrong."""
    facts = json.loads((folder / "summary.json").read_text())
    outcomes = facts.pop("outcomes")
    calls = facts.pop("requests")
    assert facts.pop("seconds") < 15

    assert {
        "pictures": 24,
        "done": 23,
        "failed": 1,
        "not_sent": 0,
        "units_charged": 24,
        "units_returned": 1,
        "units_wasted": 0,
        "requests_refused": 0,
        "violations": [],
    } == facts
    assert (24, 23) == (calls["task"], calls["result"])
    assert ["error_no_face"] == [one["error"]["code"] for one in outcomes if not one["ok"]]


def test_the_summary_can_be_read(folder: Path) -> None:
    """The text has the counts, the sheet, and each failure with what to do."""
    text = (folder / "summary.md").read_text()

    assert "23 done, 1 failed, 23 units, in 0:0" in text
    assert "ledger: 24 charged, 1 returned for\n  failures, 0 wasted." in text
    assert "contact-sheet.png; the pictures: results/" in text
    assert "error_no_face" in text
    assert "use another picture" in text


def test_the_report_shows_the_run(folder: Path) -> None:
    """A card and a line for each portrait, a slider for each that is done, the failure's hint."""
    page = (folder / "report.html").read_text()

    assert 24 == page.count('<li class="card') == page.count('class="hit"')
    assert 23 == page.count('type="range"')
    assert "no schedule needs fewer than" in page
    assert "<code>error_no_face</code>" in page


def test_the_sheet_shows_before_and_after(folder: Path) -> None:
    """A pair of squares for each portrait, the second one another picture than the first."""
    with Image.open(folder / "contact-sheet.png") as sheet:
        before = sheet.crop((12, 64, 124, 176))
        after = sheet.crop((124, 64, 236, 176))
        assert (1004, 928) == sheet.size

    assert before.tobytes() != after.tobytes()


def test_the_seed_decides(tmp_path: Path) -> None:
    """The same seed gives the same portraits and failures; another seed gives others."""

    def failed(seed: int) -> list[str]:
        summary = run(Demo(tmp_path / str(seed), None, fail=0.1, seed=seed))
        return sorted(Path(report.source).name for report in summary.failures)

    first = failed(3)

    assert 2 == len(first)
    assert first == failed(3)
    assert first != failed(4)
    assert {path.name for path in (tmp_path / "3" / "originals").iterdir()}.isdisjoint(
        path.name for path in (tmp_path / "4" / "originals").iterdir()
    )


def test_a_perfect_demo(tmp_path: Path) -> None:
    """Without failures nothing is announced and nothing failed; all fails where all should."""
    demo = Demo(tmp_path, None, fail=0.0, seed=0)
    summary = run(demo)
    demo.write_report(summary)

    assert (24, []) == (summary.done, summary.failures)
    assert "will fail" not in demo.announcement
    assert "24 drawn portraits, on a sandbox in this process: no key" in demo.announcement
    assert "Failed" not in (tmp_path / "summary.md").read_text()

    all_fail = Demo(tmp_path, None, fail=1.0, seed=0)
    assert "24 of which the engine will fail" in all_fail.announcement
    assert 24 == len(run(all_fail).failures)


def test_pictures_of_ones_own(tmp_path: Path) -> None:
    """Any pictures work: a photo, one whose type Pillow cannot read, a URL, and none at all."""
    photo, heic, text = (tmp_path / name for name in ("photo.jpg", "new.heic", "notes.txt"))
    Image.new("RGB", (300, 100), "#336699").save(photo)
    heic.write_bytes(HEIC)
    text.write_bytes(b"hello")
    pictures: list[Picture] = [photo, heic, text, tmp_path / "gone.jpg", "https://x/y.jpg?z=1"]
    demo = Demo(tmp_path / "out", pictures, fail=0.0, seed=0)

    summary = run(demo)
    demo.write_report(summary)

    sources = {report.source for report in summary.reports if report.ok}
    assert {str(photo), "https://x/y.jpg"} <= sources
    refused = {
        report.source for report in summary.failures if isinstance(report.error, PictureRefused)
    }
    assert {str(text), str(tmp_path / "gone.jpg")} <= refused
    assert "5 of your pictures" in demo.announcement
    assert not (tmp_path / "out" / "originals").exists()


def test_a_big_sheet_is_cut(tmp_path: Path) -> None:
    """Past 80 pairs the sheet ends, and the summary says so."""
    pictures: list[Picture] = [f"https://x/{number}.jpg" for number in range(100)]
    demo = Demo(tmp_path, pictures, fail=0.0, seed=0)
    summary = RunSummary([], 100, 1.0)

    demo.write_report(summary)

    assert "contact-sheet.png (the first 80)" in (tmp_path / "summary.md").read_text()
    assert _sheet(pictures[:80], summary).size == _sheet(pictures, summary).size


def test_a_small_sheet_has_room_for_its_title(tmp_path: Path) -> None:
    """One pair is wide enough; a long or foreign name is cut from its front."""
    path = tmp_path / f"{'long-' * 20}古.jpg"
    path.write_bytes(portrait(1, 64))
    report = JobReport(str(path), False, None, 0.0, None, (), PictureRefused("x"))

    assert (496, 208) == _sheet([path], RunSummary([report], 1, 1.0)).size


def test_a_long_name_is_cut_between_its_characters() -> None:
    """A name that is wider than its pair loses whole characters, however they are written."""
    name = "\u00e9" * 200

    for width in range(50, 60):
        assert set(_line_of(name, ImageFont.load_default(12), width).split("\\xe9")) == {""}
