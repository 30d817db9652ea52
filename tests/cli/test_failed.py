"""The record of what failed, for `--retry-failed`."""

from pathlib import Path

import pytest

from perfect_async.cli._failed import NAME, only_failed, read_failed, record_failed
from perfect_async.cli._inputs import Entry
from perfect_async.errors import ConfigurationError


def test_recorded_failures_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths become absolute, keys stay, URLs that may be signed are left out."""
    monkeypatch.chdir(tmp_path)
    entries = [
        Entry(Path("ü.jpg"), "k", named=False),
        Entry("https://x/a.jpg"),
        Entry("https://x/b.jpg?sig=secret"),
    ]

    assert 2 == record_failed(tmp_path, entries)
    assert [Entry(tmp_path / "ü.jpg", "k"), Entry("https://x/a.jpg")] == read_failed(tmp_path)
    assert "secret" not in (tmp_path / NAME).read_text()
    assert 0o600 == (tmp_path / NAME).stat().st_mode & 0o777
    assert [NAME] == [path.name for path in tmp_path.iterdir()]


def test_nothing_failed(tmp_path: Path) -> None:
    """A run without failures leaves no record."""
    record_failed(tmp_path, [Entry(Path("a.jpg"))])

    assert 0 == record_failed(tmp_path, [])
    assert [] == read_failed(tmp_path)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["nonsense\n", "{}\n", "[]\n", '{"picture": 1, "key": 2}\n'])
def test_a_damaged_record(tmp_path: Path, content: str) -> None:
    """A record that cannot be read is an error, and no traceback."""
    (tmp_path / NAME).write_text(content)

    with pytest.raises(ConfigurationError, match="is damaged"):
        read_failed(tmp_path)


def test_the_named_ones_among_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures that are named those are taken that failed, however they are spelled."""
    monkeypatch.chdir(tmp_path)
    failed = [Entry(tmp_path / "a.jpg"), Entry("https://x/b.jpg")]
    entries = [Entry(Path("a.jpg")), Entry(Path("c.jpg")), Entry("https://x/b.jpg")]

    assert [entries[0], entries[2]] == only_failed(entries, failed)
