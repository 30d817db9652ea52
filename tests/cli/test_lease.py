"""The option `--lease`: what it sets, which values it takes, and what is said where it cannot."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from perfect_async import Client, Polling, cli
from perfect_async._ledger.folder import STATE_VARIABLE
from perfect_async._ledger.leases import LeaseFile, LeaseRecord
from perfect_async.cli import _buy, _runner
from perfect_async.cli._plan import estimate_seconds
from perfect_async.models import Avatar
from tests.support.terminal import use_sandbox

URL, KEY = "https://sandbox.example", "key"
MEASURED = LeaseRecord(20.0, 41.0, datetime(2026, 7, 1, tzinfo=UTC))
COMMANDS = (
    ["smile", "in/0.jpg"],
    ["avatar", "in/0.jpg", "--template", "x"],
    ["feature", "hat", "--src", "in/0.jpg"],
)


@pytest.fixture
def settings(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Polling]]:
    """The settings of polls that each command makes its client with."""
    use_sandbox(monkeypatch)
    monkeypatch.setenv(STATE_VARIABLE, str(folder / "state"))
    make, made = _runner.make_client, list[Polling]()

    def noting(journal: Path | None, polling: Polling, **options: bool) -> Client:
        made.append(polling)
        return make(journal, polling, **options)

    monkeypatch.setattr(_runner, "make_client", noting)
    yield made
    assert folder.is_dir()


@pytest.mark.parametrize("command", COMMANDS)
def test_seconds(settings: list[Polling], command: list[str]) -> None:
    """A number is the lease; without the option it is the assumed one."""
    for lease in (["--lease", "15"], ["--lease", "1"], []):
        assert 0 == cli.main([*command, *lease, "--dry-run", "--insured", "90"])

    assert [15.0, 1.0, 10.0] == [each.lease for each in settings]
    assert {90.0} == {each.insured for each in settings}


@pytest.mark.parametrize("command", COMMANDS)
def test_measured(
    settings: list[Polling], capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """The measured lease is used; where there is none, the message says what to run."""
    assert 2 == cli.main([*command, "--lease", "measured"])
    assert (
        "perfect-async: --lease measured: nothing was measured for this key and host. Run "
        "`perfect-async doctor --measure-lease --picture FILE` first, which costs 1 unit, or leave "
        "--lease out.\n"
    ) == capsys.readouterr().err

    LeaseFile(URL, KEY).write(MEASURED)
    assert 0 == cli.main([*command, "--lease", "measured", "--dry-run"])
    assert [True, True] == [each.measured for each in settings]


@pytest.mark.parametrize("wrong", ["0", "0.5", "-3", "601", "1e9", "nan", "inf", "long", ""])
def test_wrong(capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    """A wrong value is refused with the limits."""
    assert 2 == cli.main(["smile", "in", f"--lease={wrong}"])
    assert (
        f'perfect-async: --lease is "{wrong}"; it must be a number of seconds from 1 to 600, or '
        "measured. See perfect-async smile --help.\n"
    ) == capsys.readouterr().err


def test_a_resumed_run(folder: Path, settings: list[Polling]) -> None:
    """A run is continued with the lease that it is given."""
    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db", "--out", "out"])
    resume = ["resume", "--journal", "jobs.db", "--lease", "20", "--insured", "600"]

    assert 0 == cli.main(resume)
    assert [Polling(), Polling(lease=20.0, insured=600.0)] == settings
    assert folder.is_dir()


def test_a_longer_lease_takes_less_time() -> None:
    """The time that the plan names follows the lease."""
    avatars = [Avatar(f"https://x/{number}.jpg", template_id="t") for number in range(100)]
    usual, rare = estimate_seconds(avatars), estimate_seconds(avatars, 20.0)

    assert usual is not None
    assert rare is not None
    assert 0.5 * usual < rare < 0.7 * usual


def test_the_plan_names_that_time(
    folder: Path, settings: list[Polling], capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan of a run with a measured lease takes it into account."""
    LeaseFile(URL, KEY).write(MEASURED)
    for number in range(50):
        # Bytes after the end of a picture make it another one.
        content = (folder / "in" / "0.jpg").read_bytes() + bytes([number])
        (folder / "in" / f"other-{number}.jpg").write_bytes(content)
    command = ["avatar", "in", "--template", "x", "--count", "1", "--dry-run"]
    for lease in ([], ["--lease", "measured"]):
        cli.main([*command, *lease])

    plans = [line for line in capsys.readouterr().err.splitlines() if " to send, " in line]
    assert ["about 15 min.", "about 10 min."] == [line.rpartition(", ")[2] for line in plans]
    assert 2 == len(settings)


def test_defaults() -> None:
    """Without options the settings are those of the library."""
    assert Polling() == _buy.polling(None, None)
