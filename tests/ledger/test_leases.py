"""The measured lease, in a file beside the ledgers."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import attrs
import pytest

from perfect_async._ledger.leases import LeaseFile, LeaseRecord
from perfect_async._ledger.rows import LedgerUnavailable

URL = "https://sandbox.example"
KEY = "secret-key"
RECORD = LeaseRecord(20.0, 41.0, datetime(2026, 7, 1, 12, tzinfo=UTC))


def test_a_measured_lease_is_kept_for_its_key_and_host(tmp_path: Path) -> None:
    """A record is read again for the same key and host, and for no other."""
    LeaseFile(URL, KEY, tmp_path).write(RECORD)

    assert RECORD == LeaseFile(f"{URL}/path", KEY, tmp_path).read()
    assert LeaseFile(URL, "other", tmp_path).read() is None
    assert LeaseFile("https://other.example", KEY, tmp_path).read() is None


def test_the_file_is_private_and_names_neither_key_nor_host(tmp_path: Path) -> None:
    """The file and its folders are private, and have only digests and numbers."""
    LeaseFile(URL, KEY, tmp_path / "state").write(RECORD)
    found = sorted((tmp_path / "state").rglob("*"))

    assert ["lease.json"] == [path.name for path in found if path.is_file()]
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_file()}
    assert {0o700} == {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()}
    text = f"{found} {found[-1].read_text()}"
    assert "secret" not in text
    assert "sandbox.example" not in text


@pytest.mark.parametrize(
    ("survived", "refuted", "lease"),
    [(0.0, False, 10.0), (12.0, False, 10.0), (20.0, False, 16.0), (40.0, True, 10.0)],
)
def test_the_lease_that_follows_from_a_record(survived: float, refuted: bool, lease: float) -> None:
    """It is 0.8 of the survived gap, and at least 10 s, also after it is refuted."""
    assert lease == attrs.evolve(RECORD, survived=survived, refuted=refuted).lease


def test_a_refuted_record_stays_and_says_so(tmp_path: Path) -> None:
    """A loss within the lease is written to the record, if there is one."""
    file = LeaseFile(URL, KEY, tmp_path)
    file.refute()
    assert file.read() is None

    file.write(RECORD)
    file.refute()

    assert attrs.evolve(RECORD, refuted=True) == file.read()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "nonsense", '{"survived": "x"}'),
        '{"survived": NaN, "lost": null, "measured_at": "2026-07-01", "refuted": false}',
        '{"survived": 1e9, "lost": null, "measured_at": "2026-07-01", "refuted": false}',
        '{"survived": 20, "lost": null, "measured_at": "July", "refuted": false}',
        "[" * 9000,
    ],
)
def test_an_unreadable_file_counts_as_none(tmp_path: Path, text: str) -> None:
    """A file that another program wrote is not a measurement."""
    file = LeaseFile(URL, KEY, tmp_path)
    (file.make_folder() / "lease.json").write_text(text)

    assert file.read() is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file in place of the folder is an error that names it."""
    (tmp_path / "state").write_text("")

    with pytest.raises(LedgerUnavailable, match="cannot be used"):
        LeaseFile(URL, KEY, tmp_path / "state").write(RECORD)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the former record and no partial file."""
    file = LeaseFile(URL, KEY, tmp_path)
    file.write(RECORD)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LedgerUnavailable, match="No space left"):
        file.write(attrs.evolve(RECORD, survived=40.0))

    assert RECORD == file.read()
    assert ["lease.json"] == [path.name for path in tmp_path.rglob("*") if path.is_file()]
