"""Reports from the terminal: `--report`, and the command `report`."""

import csv
import sys
from pathlib import Path

import pytest

from perfect_async import cli
from perfect_async._journal.model import Created, Creating, Ended, Entered, JournalEntry
from perfect_async._journal.sqlite import Row, SqliteJournal
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async.models import Smile
from perfect_async.sandbox import Faults
from tests.support.terminal import use_sandbox


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def outcomes(path: str) -> dict[str, str]:
    return {Path(row["source"]).name: row["outcome"] for row in rows(path)}


def test_a_report_of_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--report` writes a page with the run's timeline, and says where it is."""
    use_sandbox(monkeypatch, faults=Faults(by_picture={"1.jpg": "error_no_face"}))

    assert 1 == cli.main(["smile", "in", "--report", "run.html"])

    assert "The report: run.html" in capsys.readouterr().err
    page = Path("run.html").read_text()
    assert (3, 2, 3) == tuple(
        page.count(text) for text in ('<li class="card', 'type="range"', 'class="hit"')
    )
    assert "use another picture" in page


def test_a_report_names_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures that are not bought again are in the report, beside those that are."""
    use_sandbox(monkeypatch)
    assert 0 == cli.main(["smile", "in/0.jpg", "--report", "first.csv"])
    assert 0 == cli.main(["smile", "in", "--report", "second.csv"])
    assert 0 == cli.main(["smile", "in", "--report", "third.csv"])

    assert {"0.jpg": "done"} == outcomes("first.csv")
    assert {"0.jpg": "already there", "1.jpg": "done", "2.jpg": "done"} == outcomes("second.csv")
    assert {"already there"} == set(outcomes("third.csv").values())
    assert all(row["files"] for row in rows("third.csv"))


def test_a_report_of_nothing_to_resume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all jobs of a journal are finished, the report that was asked for is there, empty."""
    use_sandbox(monkeypatch)
    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])

    assert 0 == cli.main(["resume", "--journal", "jobs.db", "--report", "rest.csv"])

    assert [] == rows("rest.csv")


def test_a_report_of_what_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that sends only what failed before has only that in its report."""
    use_sandbox(monkeypatch, faults=Faults(by_picture={"1.jpg": "error_no_face"}))
    assert 1 == cli.main(["smile", "in", "--yes"])

    assert 1 == cli.main(["smile", "--retry-failed", "--report", "again.csv", "--quiet"])

    assert {"1.jpg": "failed"} == outcomes("again.csv")


def test_a_report_speaks_the_terminals_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hints name options, and not the library's settings."""
    use_sandbox(monkeypatch)

    assert 1 == cli.main(["smile", "in", "--max-units", "1", "--report", "run.csv"])

    failed = [row for row in rows("run.csv") if row["outcome"] == "failed"]
    assert 2 == len(failed)
    assert all("--max-units" in row["message"] + row["hint"] for row in failed)


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (["smile", "in"], "run.pdf"),
        (["avatar", "in", "--template", "x"], "gone/run.html"),
        (["report"], "run.txt"),
    ],
)
def test_a_wrong_report_path_is_refused_first(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    path: str,
) -> None:
    """Status 2, and nothing is bought."""
    sandbox = use_sandbox(monkeypatch)

    option = "--to" if command == ["report"] else "--report"
    assert 2 == cli.main([*command, option, path])

    assert "report" in capsys.readouterr().err
    assert not sandbox.ledger.tasks


def test_a_report_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures are bought and saved; the status is 1 and the message says why."""
    use_sandbox(monkeypatch)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perfect_async.cli._report.write", full)
    assert 1 == cli.main(["smile", "in", "--report", "run.csv"])

    out, err = capsys.readouterr()
    assert 3 == len(out.splitlines())
    assert "the report 'run.csv' cannot be written: No space left on device." in err


def test_a_report_of_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results are found with their originals: smiles by the pictures, avatars by their names."""
    use_sandbox(monkeypatch)
    assert 0 == cli.main(["smile", "in/0.jpg", "in/1.jpg"])
    assert 0 == cli.main(["avatar", "in/2.jpg", "--template", "male_studio_00"])
    capsys.readouterr()
    (folder / "in" / "3.jpg").write_bytes(b"new")

    assert 0 == cli.main(["report", "in"])
    assert 0 == cli.main(["report", "in", "--to", "all.csv"])
    assert 0 == cli.main(["report", "--to", "alone.csv"])

    assert ["perfect-async-report.html", "all.csv", "alone.csv"] == (
        capsys.readouterr().out.splitlines()
    )
    page = Path("perfect-async-report.html").read_text()
    assert (4, 2, 1) == tuple(
        page.count(text) for text in ('<li class="card', 'type="range"', 'class="strip"')
    )
    assert {"0.jpg": "done", "1.jpg": "done", "2.jpg": "done", "3.jpg": "not sent"} == (
        outcomes("all.csv")
    )
    assert 3 == len(rows("alone.csv"))
    assert all(
        row["source"] == Path(row["files"].split(" | ")[0]).name for row in rows("alone.csv")
    )


def test_results_without_a_manifest_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their names, also those of former versions."""
    use_sandbox(monkeypatch)
    assert 0 == cli.main(["smile", "in/0.jpg"])
    (folder / "perfect-async-out" / ".perfect-async-manifest").unlink()
    (folder / "perfect-async-out" / "old-01234567.jpg").write_bytes(b"old")

    assert 0 == cli.main(["report", "in/0.jpg", "--to", "all.csv"])

    assert {"0.jpg": "done", "old-01234567.jpg": "done"} == outcomes("all.csv")


def test_an_empty_folder_has_no_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and a message that says which folder was looked at."""
    assert 2 == cli.main(["report"])

    assert "no results in 'perfect-async-out': name their folder with --out." in (
        capsys.readouterr().err
    )


def test_a_report_of_a_journal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs that have not ended are in it, with what to do; the journal stays as it is."""
    path = folder / "jobs.db"
    file = SqliteJournal(path, 0)
    entries: list[JournalEntry] = []
    for number in range(1, 6):
        spec = JobSpec.of(Smile(f"https://x.example/{number}.jpg"), None, PLAIN)
        entries.append(Entered(number, 1, spec.stored()))
    entries += [Creating(number, 2) for number in (2, 3, 4)]
    entries += [Created(3, 3, "three"), Created(4, 3, "four"), Ended(4, 4, "done")]
    entries.append(Ended(5, 4, "failed"))
    file.commit(
        [Row(seq, entry, file.state.receive(entry)) for seq, entry in enumerate(entries, 1)], (), 2
    )
    file.close()

    for _ in range(2):
        assert 0 == cli.main(["report", "--journal", "jobs.db", "--to", "all.csv"])

    found = {Path(row["source"]).name: row for row in rows("all.csv")}
    assert ["not sent", "failed", "running", "failed", "failed"] == [
        found[f"{number}.jpg"]["outcome"] for number in range(1, 6)
    ]
    assert ["doubt", "", "NotSaved", "failed"] == [
        found[f"{number}.jpg"]["error"] for number in range(2, 6)
    ]
    assert "perfect-async resume" in found["2.jpg"]["hint"]
    assert "three" == found["3.jpg"]["task_id"]
    assert 2 == cli.main(["report", "--journal", "gone.db"])
    assert "There is no journal" in capsys.readouterr().err


def test_the_missing_extra_is_named_before_anything_is_bought(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page needs the extra, and the message says how to install it."""
    sandbox = use_sandbox(monkeypatch)
    monkeypatch.setitem(sys.modules, "perfect_async.report._page", None)

    assert 2 == cli.main(["smile", "in", "--report", "run.html"])

    assert "pip install 'perfect_async[report]'" in capsys.readouterr().err
    assert not sandbox.ledger.tasks
