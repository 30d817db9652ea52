"""The command `doctor`: its line for each thing, what to do, and its exit status."""

import json
import os
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from perfect_async import Client, Limits, Polling, cli
from perfect_async._ledger.leases import LeaseFile, LeaseRecord
from perfect_async._ledger.local import LocalLedger, open_local
from perfect_async._ledger.rows import host_digest, key_digest
from perfect_async.cli import _doctor, _runner
from perfect_async.events import MemberRow, SharedLimits
from perfect_async.sandbox import Durations, Grant, Sandbox
from perfect_async.scheduler import Scheduler
from tests.support import virtual_time
from tests.support.ports import free_port
from tests.support.terminal import advance_start, use_sandbox

URL = "https://sandbox.example"
KEY = "key"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of each test's own, and the key and host of `use_sandbox`."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PERFECT_ASYNC_STATE", str(folder))
    monkeypatch.setenv("YOUCAM_API_KEY", KEY)
    monkeypatch.setenv("YOUCAM_BASE_URL", URL)
    return folder


def use_transport(
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[httpx.Request], Coroutine[None, None, httpx.Response]],
) -> None:
    """Let the commands reach a vendor that gives these answers."""

    def make(*_: object, **__: object) -> Client:
        return Client(KEY, base_url=URL, transport=httpx.MockTransport(answer))

    monkeypatch.setattr(_runner, "make_client", make)
    monkeypatch.setattr(_runner, "run", virtual_time.run)


def diagnose(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run `doctor --json`; return its status and its checks by name."""
    status = cli.main(["doctor", "--json"])
    out, err = capsys.readouterr()
    assert "" == err
    report = json.loads(out)
    assert (status == 0) is report["ok"]
    return status, {check["name"]: check for check in report["checks"]}


def said(check: dict[str, Any]) -> tuple[str, str]:
    """Return how a check stands and what it says."""
    return check["state"], check["text"]


# All is well.


def test_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    """One request and no unit: each thing in one line, with status 0."""
    sandbox = use_sandbox(monkeypatch, latency=0.2, units=856.0)

    status, checks = diagnose(capsys)

    assert 0 == status
    assert {"ask": 1} == {"ask": sum(sandbox.ledger.requests.values())}
    assert 0 == sandbox.ledger.units_charged
    assert ("ok", "The key in YOUCAM_API_KEY is accepted.") == said(checks["key"])
    assert ("ok", f"{URL} answered in 200 ms.") == said(checks["host"])
    assert "ok" == checks["units"]["state"]
    assert checks["units"]["text"].startswith("856 units; the first grant ends on 20")
    assert ("ok", "The vendor's clock and this machine's agree.") == said(checks["clock"])
    assert (
        "1 of 250 requests are counted in 300 s; no other process uses the key now."
        in checks["window"]["text"]
    )
    assert ("ok", "250 requests per 300 s, 5 per second.") == said(checks["limits"])
    assert "lease of 10 s, the shortest that the documents name" in checks["lease"]["text"]
    assert "--measure-lease" in checks["lease"]["hint"]
    assert "can be written" in checks["state"]["text"]
    assert ("ok", f"Processes share the key's window by '{state}'.") == said(checks["sharing"])
    assert ["cli", "demo"] == sorted({"cli", "demo"} & checks["extras"]["extras"].keys())


def test_lines_for_a_person(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line begins with the state and the name of a thing; what to do follows below it."""
    use_sandbox(monkeypatch, units=0.0)

    assert 1 == cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()

    [number] = [n for n, line in enumerate(lines) if line.startswith("error")]
    assert "error    units    There are no units that the API can spend." == lines[number]
    assert lines[number + 1].startswith("               -> Buy units for the API")


def test_a_terminal_gets_wrapped_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal of 60 columns no line is longer, but for what has no spaces."""
    use_sandbox(monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")

    assert 0 == cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()

    assert all(len(line) <= 60 for line in lines if "/" not in line)
    assert any(line.startswith(" " * 18) for line in lines)


def test_json_speaks_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts and hints name options and variables, in JSON too."""
    monkeypatch.setenv("YOUCAM_BASE_URL", "https://no host")
    _, checks = diagnose(capsys)
    assert "YOUCAM_BASE_URL 'https://no host'" in checks["host"]["text"]
    monkeypatch.delenv("YOUCAM_BASE_URL")
    monkeypatch.setenv("PERFECT_ASYNC_SHARE", "nowhere")
    _, checks = diagnose(capsys)
    assert checks["settings"]["text"].startswith("PERFECT_ASYNC_SHARE is 'nowhere'; it must be ")
    monkeypatch.setenv("PERFECT_ASYNC_SHARE", "off")
    use_sandbox(monkeypatch, api_keys={"other"})
    _, checks = diagnose(capsys)
    assert checks["key"]["hint"].endswith("set YOUCAM_API_KEY or pass --api-key-file.")
    assert "Run one process at a time on the key." == checks["sharing"]["hint"]


# What prevents work.


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (None, "The API key is missing."),
        ("", "The API key is empty."),
        ("'key'", "The API key stands in quotes, which are no part of it."),
        ("Bearer key", 'starts with "Bearer "'),
    ],
)
def test_no_key(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str | None,
    text: str,
) -> None:
    """Without a usable key nothing is sent; the other checks are made all the same."""
    if key is None:
        monkeypatch.delenv("YOUCAM_API_KEY")
    else:
        monkeypatch.setenv("YOUCAM_API_KEY", key)

    status, checks = diagnose(capsys)

    assert 1 == status
    assert "error" == checks["key"]["state"]
    assert text in checks["key"]["text"]
    assert "--api-key-file" in checks["key"]["hint"]
    assert ("note", f"{URL} was not asked.") == said(checks["host"])
    assert {"lease", "state", "sharing", "extras"} < checks.keys()


def test_a_refused_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that the vendor refuses is named, with where it is set; the host is fine."""
    use_sandbox(monkeypatch, api_keys={"other"})

    status, checks = diagnose(capsys)

    assert (1, "error", "ok") == (status, checks["key"]["state"], checks["host"]["state"])
    assert checks["key"]["text"].startswith("The key in YOUCAM_API_KEY is refused: ")
    assert "Check the key" in checks["key"]["hint"]
    assert "note" == checks["units"]["state"]


@pytest.mark.real_time
def test_a_host_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A closed port is an error with its reason, after seconds."""
    monkeypatch.setenv("YOUCAM_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(_doctor, "_AFTER_FAILURE", 0.1)

    status, checks = diagnose(capsys)

    assert (1, "error") == (status, checks["host"]["state"])
    assert "Connection refused" in checks["host"]["text"]
    assert "Check the network" in checks["host"]["hint"]
    assert "note" == checks["key"]["state"]


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (httpx.ProxyError("403 Forbidden"), "HTTPS_PROXY"),
        (httpx.ConnectError("no"), "firewall"),
    ],
)
def test_a_host_that_is_never_reached_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    hint: str,
) -> None:
    """The wait ends a few seconds after the first failure."""

    async def fail(_: httpx.Request) -> httpx.Response:
        raise error

    use_transport(monkeypatch, fail)

    status, checks = diagnose(capsys)

    assert (1, "error") == (status, checks["host"]["state"])
    assert hint in checks["host"]["hint"]


def test_an_answer_that_is_not_the_vendors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page of another server is an error of the host."""

    async def page(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, html="<h1>Welcome to the hotel</h1>")

    use_transport(monkeypatch, page)

    status, checks = diagnose(capsys)

    assert (1, "error") == (status, checks["host"]["state"])


def test_a_wrong_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL with credentials is refused, and shown without them."""
    monkeypatch.setenv("YOUCAM_BASE_URL", "https://user:s3cret@host.example")

    assert 1 == cli.main(["doctor"])
    out, err = capsys.readouterr()

    assert "YOUCAM_BASE_URL" in out
    assert "s3cret" not in out + err


def test_a_setting_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What no client could be made with is an error with its message."""
    monkeypatch.setenv("YOUCAM_WEBHOOK_SECRET", '"whsec_MTIz"')

    status, checks = diagnose(capsys)

    assert 1 == status
    assert ("error", "The webhook's secret stands in quotes, which are no part of it.") == said(
        checks["settings"]
    )


def test_no_units_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A balance of zero prevents work; an unknown balance does not."""
    use_sandbox(monkeypatch, units=[Grant("AppToken", 5.0)])
    status, checks = diagnose(capsys)
    assert (1, "error") == (status, checks["units"]["state"])

    use_sandbox(monkeypatch, units=[])
    status, checks = diagnose(capsys)
    assert (0, "note") == (status, checks["units"]["state"])


# What may cost something.


@pytest.mark.parametrize(
    ("skew", "stands", "text"),
    [
        (0.0, "ok", "agree"),
        (30.0, "ok", "ahead of this machine's"),
        (-600.0, "warning", "10 min behind this machine's."),
    ],
)
def test_the_clock(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    skew: float,
    stands: str,
    text: str,
) -> None:
    """A clock that is off by more than a minute is a warning, with what it costs."""
    use_sandbox(monkeypatch, clock_skew=skew)

    status, checks = diagnose(capsys)

    assert (0, stands) == (status, checks["clock"]["state"])
    assert text in checks["clock"]["text"]
    assert abs(checks["clock"]["skew"] - skew) < 2.0


def test_a_host_in_clear_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An http:// URL of another machine is a warning: the key can be read on the way."""
    use_sandbox(monkeypatch)
    monkeypatch.setenv("YOUCAM_BASE_URL", "http://proxy.example")

    status, checks = diagnose(capsys)

    assert (0, "warning") == (status, checks["host"]["state"])
    assert "without encryption" in checks["host"]["text"]


def test_a_window_without_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A vendor that refuses for the window's sake is no broken host."""

    async def full(_: httpx.Request) -> httpx.Response:
        return httpx.Response(429, json={"status": 429, "error": "Too many requests"})

    use_transport(monkeypatch, full)

    status, checks = diagnose(capsys)

    assert 0 == status
    assert "warning" == checks["host"]["state"]
    assert "request window" in checks["host"]["text"]


def member(state: Path, pid: int) -> LocalLedger:
    """Join the ledger of the key as another process would."""

    async def join() -> LocalLedger:
        ledger = open_local(
            state,
            host_digest(URL),
            key_digest(KEY),
            clock=lambda: int(virtual_time.START * 1e9),
        )
        await ledger.take(1.0)
        limits = SharedLimits(250, 300_000_000, 5, 10_000_000)
        now = int(virtual_time.START * 1e6)
        row = MemberRow(ledger.member, pid, limits, now, work=3, running=2)
        assert await ledger.publish([row])
        return ledger

    return virtual_time.run(join)


def test_other_processes_on_the_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    """The other members of the ledger are named by process, with what they have and their age."""
    use_sandbox(monkeypatch)
    other = member(state, 4242)
    advance_start(monkeypatch, 3.0)

    status, checks = diagnose(capsys)
    virtual_time.run(other.aclose)

    assert 0 == status
    assert "pid 4242 (3 waiting, 2 running, wrote 3.0 s ago)" in checks["window"]["text"]
    assert [{"pid": 4242, "waiting": 3, "running": 2, "age": 3.0}] == checks["window"]["others"]


def test_requests_of_earlier_runs() -> None:
    """Requests of runs that have ended count, too, and no process uses the key now."""
    fine = Scheduler(Limits(), Polling(), engine_retries=1).statistics()
    seen = attrs.evolve(fine, requests_in_window=152, requests_by_others=151)

    assert (
        "152 of 250 requests are counted in 300 s, 151 of them by earlier runs or other processes; "
        "no other process uses the key now."
    ) == _doctor._window(seen, None).text


def test_sharing_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    """A state folder that cannot be used is a warning with its reason and what to do."""
    use_sandbox(monkeypatch)
    state.write_text("")

    status, checks = diagnose(capsys)

    assert 0 == status
    assert ("warning", f"The state folder '{state}' cannot be written.") == said(checks["state"])
    assert "PERFECT_ASYNC_STATE" in checks["state"]["hint"]
    assert "warning" == checks["sharing"]["state"]
    assert "cannot be used: " in checks["sharing"]["text"]
    assert "Run one process at a time on the key." == checks["sharing"]["hint"]


def test_sharing_that_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    """PERFECT_ASYNC_SHARE=off is a warning, and no folder is made."""
    use_sandbox(monkeypatch)
    monkeypatch.setenv("PERFECT_ASYNC_SHARE", "off")

    status, checks = diagnose(capsys)

    assert (0, "warning") == (status, checks["sharing"]["state"])
    assert "PERFECT_ASYNC_SHARE is off" in checks["sharing"]["text"]
    assert "does not exist; it is made when it is needed" in checks["state"]["text"]
    assert not state.exists()


def test_a_server_is_shown_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Redis server that cannot be used is named without user and password."""
    use_sandbox(monkeypatch)
    monkeypatch.setenv("PERFECT_ASYNC_SHARE", f"redis://u:s3cret@127.0.0.1:{free_port()}/0")

    cli.main(["doctor"])
    out, err = capsys.readouterr()

    assert "sharing" in out
    assert "s3cret" not in out + err


# Extras.


def test_extras_are_read_from_the_metadata() -> None:
    """An extra is installed if all is that it names, through other extras too."""
    needs = _doctor._needs(
        [
            "httpx<1,>=0.28",
            "pytest>=9; extra == 'cli'",
            "no-such-library; extra == 'redis'",
            "perfect-async[cli,redis]; extra == 'demo'",
            'perfect_async[cli]; extra == "one"',
        ]
    )

    assert {"cli": True, "redis": False, "demo": False, "one": True} == {
        name: _doctor._is_installed(name, needs) for name in needs
    }


# The lease.


def keep(survived: float, lost: float | None, *, refuted: bool = False) -> None:
    """Keep what was measured for the key and host of `use_sandbox`."""
    record = LeaseRecord(survived, lost, datetime(2026, 7, 1, tzinfo=UTC), refuted)
    LeaseFile(URL, KEY).write(record)


@pytest.mark.parametrize(
    ("record", "refuted", "stands", "text"),
    [
        ((20.0, 41.0), False, "ok", "--lease measured uses 16 s of it."),
        ((40.0, None), False, "ok", "survived 40 s without a poll. --lease measured uses 32 s"),
        ((0.0, 13.0), False, "ok", "was lost within 13 s without a poll. 10 s stay assumed."),
        ((20.0, 41.0), True, "warning", "so it is not used"),
    ],
)
def test_the_measured_lease_is_shown(  # noqa: PLR0917 - a table of cases
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record: tuple[float, float | None],
    refuted: bool,
    stands: str,
    text: str,
) -> None:
    """The lease in force, what was measured and when, and what would be used of it."""
    use_sandbox(monkeypatch)
    keep(*record, refuted=refuted)

    _, checks = diagnose(capsys)

    assert stands == checks["lease"]["state"]
    assert "lease of 10 s. Measured on 2026-07-01" in checks["lease"]["text"]
    assert text in checks["lease"]["text"]


def use_lease(monkeypatch: pytest.MonkeyPatch, **settings: object) -> Sandbox:
    """Let the commands reach a sandbox in which an avatar takes 150 s."""
    slow = {"ai-avatar": Durations.fixed(150.0)}
    return use_sandbox(monkeypatch, **{"durations": slow, **settings})


def test_measure_the_lease(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One avatar is announced, the result is printed after each gap and kept for the next time."""
    sandbox = use_lease(monkeypatch, lease=30.0)

    status = cli.main(["doctor", "--measure-lease", "--picture", "in/0.jpg", "-y"])
    out, err = capsys.readouterr()

    assert 0 == status
    assert (
        "A running task survived 20 s without a poll, and was lost within 40 s. "
        "--lease measured uses 16 s of it.\n"
    ) == out
    assert "It costs 1 unit, lost or not" in err.splitlines()[0]
    assert "so far a running task survived 12 s without a poll" in err
    [task] = sandbox.ledger.tasks
    assert 1 == task.params["output_count"] == sandbox.ledger.units_charged
    assert 16.0 == (LeaseFile(URL, KEY).read() or pytest.fail("nothing was kept")).lease


def test_measure_the_lease_as_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--json` prints what was found as one line; a style may be named."""
    sandbox = use_lease(monkeypatch, lease="flexible")
    command = ["doctor", "--measure-lease", "--picture", "in/0.jpg", "-y", "--json"]

    assert 0 == cli.main([*command, "--template", "male_studio_00"])

    assert {"survived": 40.0, "lost": None, "lease": 32.0, "ended": False} == json.loads(
        capsys.readouterr().out
    )
    assert 0 == sandbox.ledger.requests["templates"]


def test_a_task_that_ends_at_once_shows_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that ended before its first poll leaves all as it was, and says so."""
    use_lease(monkeypatch, durations={"ai-avatar": Durations.fixed(5.0)}, lease="flexible")

    assert 0 == cli.main(["doctor", "--measure-lease", "--picture", "in/0.jpg", "-y"])

    assert "ended before its first poll, which shows nothing" in capsys.readouterr().out
    assert LeaseFile(URL, KEY).read() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --picture"),
        (["--picture", "in/0.jpg"], "no terminal is there to ask on: pass -y"),
        (["--picture", "in"], "names 3 pictures"),
        (["--picture", "nowhere.jpg", "-y"], "there is no file or folder 'nowhere.jpg'."),
    ],
)
def test_measuring_needs_a_picture_and_a_yes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """Without both nothing is sent: status 2 and one line at the end that says what is missing."""
    sandbox = use_lease(monkeypatch)

    assert 2 == cli.main(["doctor", "--measure-lease", *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert 0 == sum(sandbox.ledger.requests.values())


@pytest.mark.parametrize("option", [["--picture", "x"], ["--template", "x"], ["-y"]])
def test_options_of_the_measurement(capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    """An option of the measurement does not do nothing without it."""
    assert 2 == cli.main(["doctor", *option])
    assert "are for --measure-lease only." in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("YES\n", 0), ("\n", 1), ("n\n", 1)])
def test_a_terminal_is_asked(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    status: int,
) -> None:
    """A unit is spent after a yes only; by default nothing is."""
    sandbox = use_lease(monkeypatch)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: answer, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    assert status == cli.main(["doctor", "--measure-lease", "--picture", "in/0.jpg"])

    assert "Go on? [y/N]" in capsys.readouterr().err
    assert (status == 0) == (sandbox.ledger.units_charged == 1)


def test_no_line_holds_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither lines nor JSON repeat the key, from a file neither."""
    use_sandbox(monkeypatch)
    monkeypatch.setenv("YOUCAM_API_KEY", "s3cret-key")
    (tmp_path / "key").write_text("s3cret-key\n")

    for extra in ([], ["--json"], ["--api-key-file", str(tmp_path / "key")]):
        assert 0 == cli.main(["doctor", *extra])
    out, err = capsys.readouterr()

    assert "s3cret" not in out + err
    assert f"The key in --api-key-file '{tmp_path}{os.sep}key' is accepted." in out


def test_a_check_speaks_of_the_terminal() -> None:
    """Text and hint of a check name options and variables from the beginning."""
    check = _doctor.Check("host", "error", "max_units is '-1'", "raise `max_units` to go on.")

    assert ("--max-units is '-1'", "raise --max-units to go on.") == (check.text, check.hint)
