"""Writing a report: a file appears whole or not at all, and only its owner can read it."""

import os
import stat
import sys
from pathlib import Path
from typing import Self

import pytest

from perfect_async import ConfigurationError
from perfect_async.report import Report, check_path, write
from perfect_async.report._table import render_table
from tests.report.made import smile_run


@pytest.mark.parametrize("name", ["report.html", "REPORT.HTML", "report.csv"])
def test_a_report_is_written(tmp_path: Path, name: str) -> None:
    """Its ending says what it becomes; a former file is replaced, nothing is left beside it."""
    path = tmp_path / name
    path.write_text("former")

    assert path == write(smile_run(), path)

    assert path.read_bytes().startswith(
        b"<!doctype" if "h" in name.lower()[-4:] else b"\xef\xbb\xbf"
    )
    assert [name] == [each.name for each in tmp_path.iterdir()]
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("path", ["report.pdf", "report", "", "a\0.html", "gone/report.html"])
def test_a_path_that_cannot_work_is_refused(tmp_path: Path, path: str) -> None:
    """Before anything is bought: another ending, a missing folder, a NUL."""
    with pytest.raises(ConfigurationError, match="report"):
        check_path(f"{tmp_path}/{path}" if path else path)


def test_a_folder_is_no_report(tmp_path: Path) -> None:
    """A folder with the name of a page is not replaced."""
    (tmp_path / "a.html").mkdir()

    with pytest.raises(ConfigurationError, match="it is a folder"):
        check_path(tmp_path / "a.html")


@pytest.mark.usefixtures("no_working_folder")
def test_a_removed_working_folder_is_refused(tmp_path: Path) -> None:
    """A relative path is refused, and an absolute one is written."""
    with pytest.raises(ConfigurationError, match="the working folder was removed"):
        check_path("a.html")
    assert tmp_path / "a.csv" == write(smile_run(), tmp_path / "a.csv")


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be written is noticed before anything is bought, and not after."""
    asked: list[tuple[Path, int]] = []

    def access(folder: Path, mode: int) -> bool:
        asked.append((folder, mode))
        return False

    monkeypatch.setattr(os, "access", access)

    with pytest.raises(ConfigurationError, match="is read-only for you"):
        check_path(tmp_path / "a.csv")
    assert [(tmp_path, os.W_OK)] == asked


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jinja2 a page cannot be made, and a table can."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "perfect_async.report._page", raising=False)

    with pytest.raises(ConfigurationError, match=r"jinja2.*pip install 'perfect_async\[report\]'"):
        check_path(tmp_path / "a.html")
    assert tmp_path / "a.csv" == write(Report(()), tmp_path / "a.csv")


def test_a_report_that_fails_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes nothing away, and leaves no part of a file."""
    path = write(smile_run(), tmp_path / "a.csv")

    class Full:
        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("os.fdopen", lambda *_: Full())
    with pytest.raises(OSError, match="No space"):
        write(Report(()), path)

    assert ["a.csv"] == [each.name for each in tmp_path.iterdir()]
    assert render_table(smile_run()) == path.read_bytes()
