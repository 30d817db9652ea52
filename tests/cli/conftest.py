"""Fixtures of the tests of the terminal program."""

from pathlib import Path

import pytest

from perfect_async.sandbox import portrait


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three pictures in `in`."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(portrait(number, 64))
    monkeypatch.chdir(tmp_path)
    return tmp_path
