"""The terminal program: its commands, its exit statuses, and what it prints where."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NoReturn

import pytest

import perfect_async.sandbox
from perfect_async import Batch, Client, Polling, cli
from perfect_async._journal.sqlite import SqliteJournal
from perfect_async.cli import _app, _program, _runner
from perfect_async.cli._display import Display, JobReport
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait
from tests.support import virtual_time

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three pictures in `in`."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(portrait(number, 64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def at(monkeypatch: pytest.MonkeyPatch, **settings: object) -> Sandbox:
    """Let the commands reach a sandbox in virtual time."""
    sandbox = Sandbox(**settings)  # type: ignore[arg-type]
    monkeypatch.setattr(
        _program,
        "client",
        lambda journal=None, polling=None: Client(
            "key",
            base_url="https://sandbox.example",
            transport=sandbox.transport(),
            polling=polling or Polling(),
            journal=journal,
        ),
    )
    monkeypatch.setattr(_program, "run", virtual_time.run)
    return sandbox


# Pictures.


def test_smile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All done: status 0, the paths of the results on stdout, the rest on stderr."""
    sandbox = at(monkeypatch)

    status = cli.main(["smile", "in", "--expression", "closed_mouth_smile"])
    out, err = capsys.readouterr()

    assert 0 == status
    assert 3 == len(out.splitlines()) == len(list((folder / "perfect-async-out").iterdir()))
    assert all((folder / line).is_file() for line in out.splitlines())
    assert "0 of 3: 0 done" in err
    assert "3 done, 0 failed, 3 units, in 0:" in err
    assert {"closed_mouth_smile"} == {
        str(task.params["expression_type"]) for task in sandbox.ledger.tasks
    }


def test_some_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some failed: status 1, one line of JSON each, a table with the mend."""
    at(monkeypatch, faults=Faults(by_picture={"1.jpg": "error_no_face"}))

    status = cli.main(["smile", "in", "--json", "--out", "results"])
    out, err = capsys.readouterr()
    told = {one["source"]: one for one in map(json.loads, out.splitlines())}

    assert 1 == status
    assert {f"in{os.sep}{n}.jpg": n != 1 for n in range(3)} == {k: v["ok"] for k, v in told.items()}
    bad = told[f"in{os.sep}1.jpg"]
    assert (0, [], "error_no_face") == (bad["units"], bad["files"], bad["error"]["code"])
    good = told[f"in{os.sep}0.jpg"]
    assert (1, None) == (good["units"], good["error"])
    assert Path(good["files"][0]).is_relative_to(Path("results").absolute())
    assert "Amz" not in out + err
    assert "what to do" in err
    assert "2 done, 1 failed, 2 units" in err


def test_avatar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Template and count reach the vendor, and every avatar is saved."""
    sandbox = at(monkeypatch)

    status = cli.main(["avatar", "in/0.jpg", "--template", "male_studio_00", "--count", "5"])

    assert 0 == status
    assert 5 == len(capsys.readouterr().out.splitlines())
    assert [("male_studio_00", 5)] == [
        (task.params["template_id"], task.params["output_count"]) for task in sandbox.ledger.tasks
    ]


def test_a_refused_key_is_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that the vendor refuses is status 2, from a batch and from a question."""
    at(monkeypatch, api_keys={"other"})

    assert 2 == cli.main(["smile", "in"])
    assert "Check the key" in capsys.readouterr().err
    assert 2 == cli.main(["units"])
    assert "Check the key" in capsys.readouterr().err


def test_ctrl_c_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C drains: status 1, and the summary says what was not sent."""
    at(monkeypatch, durations={"ai-smile": Durations.fixed(8.0)})
    press_at(monkeypatch, 1)
    many = [f"https://x/{number}.jpg" for number in range(100)]

    assert 1 == cli.main(["smile", *many])
    err = capsys.readouterr().err
    assert "Stopping: nothing more is sent" in err
    assert " not sent, " in err
    assert " 0 failed, " in err


def test_ctrl_c_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C twice leaves: status 130, no traceback."""
    at(monkeypatch, durations={"ai-smile": Durations.uniform(5.0, 100.0)})
    press_at(monkeypatch, 1, 2)

    assert 130 == cli.main(["smile", *[f"https://x/{number}.jpg" for number in range(20)]])
    err = capsys.readouterr().err
    assert "Left at once: " in err
    assert "Traceback" not in err


def press_at(monkeypatch: pytest.MonkeyPatch, *outcomes: int) -> None:
    """Press Ctrl-C at these outcomes, counted from 1."""
    told: list[JobReport] = []

    def tell(_: Display, one: JobReport) -> None:
        told.append(one)
        if len(told) in outcomes:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "tell", tell)


# Money.


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the next command begin so long after the first one's beginning: each has a new loop."""
    monkeypatch.setattr(virtual_time, "START", virtual_time.START + seconds)


def test_what_is_finished_is_not_bought_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a journal the same command again gives the same files for no unit."""
    sandbox = at(monkeypatch)

    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])
    first = capsys.readouterr()
    later(monkeypatch, 100)
    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])
    again = capsys.readouterr()

    assert sorted(first.out.splitlines()) == sorted(again.out.splitlines())
    assert "3 done, 0 failed, 0 units" in again.err
    assert 3 == sandbox.ledger.units_charged


def test_nothing_to_resume(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a run that ended in order there is nothing to go on with: status 0."""
    at(monkeypatch)
    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])
    capsys.readouterr()

    assert 0 == cli.main(["resume", "--journal", "jobs.db"])
    out, err = capsys.readouterr()
    assert "" == out
    assert "0 done, 0 failed, 0 units" in err


@pytest.mark.parametrize("as_json", [False, True])
def test_resume_after_leaving(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    """Ctrl-C twice says how to go on, and going on saves what ran where it was to be saved."""
    sandbox = at(monkeypatch, durations={"ai-smile": Durations.uniform(5.0, 40.0)})
    urls = [f"https://x/{number}.jpg" for number in range(30)]
    left: list[float] = []

    with monkeypatch.context() as patch:
        press_at(patch, 1, 2)
        # The vendor's clock goes on where the first process left it.
        patch.setattr(_runner, "_leave", noting(left))
        assert 130 == cli.main(["smile", *urls, "--journal", "my jobs.db", "--out", "here"])
    err = capsys.readouterr().err
    assert 2 == err.count("go on with perfect-async resume --journal 'my jobs.db'")
    running = int(err.partition("Left at once: ")[2].split()[0])
    done = len(list(Path("here").iterdir()))
    later(monkeypatch, left[0] - virtual_time.START + 1)
    assert running > 1

    assert 0 == cli.main(["resume", "--journal", "my jobs.db", *["--json"] * as_json])
    out, err = capsys.readouterr()

    assert f"{running} done, 0 failed" in err
    assert "saved in" not in err
    files = out.splitlines()
    if as_json:
        files = [path for line in files for path in json.loads(line)["files"]]
    assert running == len(files)
    assert {Path("here").absolute()} == {Path(path).parent for path in files}
    assert done + running == len(list(Path("here").iterdir())) == sandbox.ledger.units_charged
    assert {"success": done + running} == dict(sandbox.ledger.tasks_by_state)


def noting(times: list[float]) -> Callable[[Batch, Display, str | None], NoReturn]:
    """`_runner._leave`, noting the loop's time."""
    leave = _runner._leave

    def left(batch: Batch, screen: Display, later: str | None) -> NoReturn:
        times.append(asyncio.get_running_loop().time())
        leave(batch, screen, later)

    return left


def test_the_vendors_copies_are_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--delete` leaves the pictures here and nothing at the vendor, with and without a journal."""
    sandbox = at(monkeypatch)

    assert 0 == cli.main(["smile", "in/0.jpg", "in/1.jpg", "--delete"])
    later(monkeypatch, 100)
    assert 0 == cli.main(["smile", "in/2.jpg", "--delete", "--journal", "jobs.db"])

    assert {"deleted": 3} == dict(sandbox.ledger.tasks_by_state)
    assert 3 == len([line for line in capsys.readouterr().out.splitlines() if Path(line).is_file()])


def test_a_ceiling(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would cost more than `--max-units` is not sent: status 1."""
    sandbox = at(monkeypatch)

    assert 1 == cli.main(["smile", "in", "--max-units", "2"])
    err = capsys.readouterr().err
    assert "2 done, 1 failed, 2 units" in err
    assert "max_units=2" in err
    assert 2 == sandbox.ledger.units_charged


def test_insured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--insured` reaches the client, which otherwise has its own default."""
    given: list[Polling | None] = []
    at(monkeypatch)
    make = _program.client

    def client(journal: Path | None = None, polling: Polling | None = None) -> Client:
        given.append(polling)
        return make(journal, polling)

    monkeypatch.setattr(_program, "client", client)

    assert 0 == cli.main(["smile", "in", "--insured", "600"])
    later(monkeypatch, 100)
    assert 0 == cli.main(["smile", "in"])
    assert [Polling(insured=600.0), None] == given


def test_forget(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is finished is purged and counted; the second time there is nothing left."""
    at(monkeypatch)
    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])
    capsys.readouterr()

    assert 0 == cli.main(["forget", "--journal", "jobs.db"])
    assert "3 finished jobs forgotten\n" == capsys.readouterr().out
    assert 0 == cli.main(["forget", "--journal", "jobs.db"])
    assert "0 finished jobs forgotten\n" == capsys.readouterr().out


def test_a_journal_in_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process at the journal is status 2, and nothing is sent or forgotten."""
    sandbox = at(monkeypatch)
    owner = SqliteJournal("jobs.db", 0)
    try:
        for command in (["smile", "in"], ["resume"], ["forget"]):
            assert 2 == cli.main([*command, "--journal", "jobs.db"])
            assert "is in use by another client or process" in capsys.readouterr().err
    finally:
        owner.close()
    assert 0 == sum(sandbox.ledger.requests.values())


@pytest.mark.real_time
def test_a_client_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside of tests a command's client has the key of the environment and a loop of its own."""
    monkeypatch.setenv("YOUCAM_API_KEY", "key")
    client = _program.client(tmp_path / "jobs.db", Polling(insured=600.0))

    async def main() -> int:
        async with client:
            return 3

    assert 3 == _program.run(main)
    assert (tmp_path / "jobs.db").is_file()


# Questions.


def test_templates(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All pages, as lines or as JSON."""
    at(monkeypatch)

    assert 0 == cli.main(["templates"])
    lines = capsys.readouterr().out.splitlines()
    assert 0 == cli.main(["templates", "--json"])
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert 71 == len(lines) == len(listed)
    assert ["male_studio_00", "studio 00", "studio"] == lines[0].split("\t")
    assert {"id", "title", "category", "thumb"} == listed[0].keys()


def test_units(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The balance and its grants, as lines or as JSON."""
    at(monkeypatch, units=42.0, epoch=1_800_000_000.0)

    assert 0 == cli.main(["units"])
    lines = capsys.readouterr().out.splitlines()
    assert 0 == cli.main(["units", "--json"])
    facts = json.loads(capsys.readouterr().out)

    assert "balance\t42\t" == lines[0]
    assert 42 == facts["balance"] == sum(grant["amount"] for grant in facts["grants"])
    assert [grant["kind"] for grant in facts["grants"]] == [
        line.split("\t")[0] for line in lines[1:]
    ]


def test_unknown_units(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A balance that the vendor does not tell is unknown, not zero."""
    at(monkeypatch, units=float("inf"))

    assert 0 == cli.main(["units"])
    assert "balance\tunknown\t\n" == capsys.readouterr().out
    assert 0 == cli.main(["units", "--json"])
    assert {"balance": None, "grants": []} == json.loads(capsys.readouterr().out)


def test_a_vendor_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question without an answer is status 1 and one line with the mend."""
    at(monkeypatch, faults=Faults(bad_gateway={"credit": 1.0}))

    assert 1 == cli.main(["units"])
    out, err = capsys.readouterr()
    assert "" == out
    assert 1 == len(err.splitlines())
    assert err.startswith("perfect-async: ")
    assert "Try again later" in err


# Usage and configuration.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smile"], "requires an argument"),
        (["smile", "in", "--expression", "[red]grin\x1b[31m"], '"[red]grin\\x1b[31m"'),
        (["smile", "in", "--nope"], "Unknown option: --nope"),
        (["smile", "missing.jpg"], "there is no file 'missing.jpg'"),
        (["smile", "*.png"], "'*.png' stands for no picture"),
        (["smile", "in", "--out", "in/0.jpg"], "--out 'in/0.jpg' cannot be made"),
        (["smile", "in", "--out", "a\0b"], "cannot be made"),
        (["avatar", "in"], "--template"),
        (["avatar", "in", "--template", "x", "--count", "201"], "not a whole number from 1 to 200"),
        (["avatar", "in", "--template", " "], "template_id"),
        (["smile", "in", "--max-units", "-1"], "max_units is '-1.0'"),
        (["smile", "in", "--insured", "0"], "Polling.insured is '0.0'"),
        (["smile", "in", "--journal", "in/0.jpg"], "is no journal of perfect_async"),
        (["smile", "in", "--journal", "in"], "is no regular file"),
        (["resume"], "--journal"),
        (["resume", "--journal", "nowhere.db"], "There is no journal 'nowhere.db'"),
        (["forget", "--journal", "nowhere.db"], "There is no journal 'nowhere.db'"),
        (["forget", "--journal", "in/0.jpg"], "is no journal of perfect_async"),
        (["nope"], 'Unknown command "nope"'),
        (["demo", "--fail", "1.5"], "--fail is 1.5"),
        (["demo", "--fail", "nan"], "--fail is nan"),
        (["demo", "missing"], "there is no file 'missing'"),
        (["sandbox", "--port", "70000"], "--port is 70000"),
        (["sandbox", "--speed", "0"], "--speed and --lease must be above 0"),
        (["sandbox", "--fail", "-1"], "--fail is -1"),
    ],
)
def test_usage(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """What cannot work is status 2 and one line that names it, before anything is sent."""
    sandbox = at(monkeypatch)

    status = cli.main(arguments)
    out, err = capsys.readouterr()

    assert (2, "") == (status, out)
    assert message in err
    assert err.startswith("perfect-async: ")
    assert 1 == len(err.splitlines())
    assert 0 == sum(sandbox.ledger.requests.values())


def test_a_missing_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key: status 2, the variable is named, and no folder is made."""
    monkeypatch.delenv("YOUCAM_API_KEY", raising=False)

    assert 2 == cli.main(["smile", "in"])
    assert "set YOUCAM_API_KEY" in capsys.readouterr().err
    assert not (folder / "perfect-async-out").exists()


def test_a_folder_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results that could not be saved are not bought."""
    at(monkeypatch)
    monkeypatch.setattr(os, "access", lambda *_: False)

    assert 2 == cli.main(["smile", "in"])
    assert "--out 'perfect-async-out' cannot be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "library", "ours"),
    [
        ("units", "cyclopts", "perfect_async._nothing"),
        ("units", "rich", "perfect_async.cli._display"),
        ("demo", "PIL", "perfect_async.cli._demo"),
        ("sandbox", "starlette", "perfect_async.sandbox"),
    ],
)
def test_without_the_extras(  # noqa: PLR0917 - a table of cases
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    library: str,
    ours: str,
) -> None:
    """A library that is not installed is status 2 and the command that installs it."""
    monkeypatch.delitem(sys.modules, ours, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)

    assert 2 == cli.main([command])
    err = capsys.readouterr().err
    assert f"this command needs {library}" in err
    assert "pip install 'perfect_async[demo]'" in err


def test_our_own_import_errors_are_not_hidden() -> None:
    """A broken import of ours is a defect, not a missing extra."""
    with pytest.raises(ImportError, match="broken"):
        _program.missing(ImportError("broken", name="perfect_async._api.tasks"))


def test_defects_have_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected is raised as it is."""
    monkeypatch.setattr(_program, "client", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        cli.main(["units"])


def test_version_and_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are on stdout and status 0; the command line is the default."""
    monkeypatch.setattr("sys.argv", ["perfect-async", "--version"])
    monkeypatch.setattr(_app, "version", lambda name: f"1.2 of {name}")
    assert 0 == cli.main()
    assert "1.2 of perfect_async\n" == capsys.readouterr().out

    assert 0 == cli.main(["--help"])
    text = capsys.readouterr().out
    assert "YOUCAM_API_KEY" in text
    assert all(
        f" {name} " in text
        for name in (
            *("smile", "avatar", "resume", "templates", "units", "forget"),
            *("sandbox", "demo"),
        )
    )


def test_a_copy_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package on the path without metadata has no version, and works."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_app, "version", missing)

    assert 0 == cli.main(["--version"])
    assert "unknown: not installed\n" == capsys.readouterr().out


def test_the_key_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    """A key on a command line would stay in the shell's history."""
    for command in ("smile", "avatar", "resume", "templates", "units", "forget"):
        assert 0 == cli.main([command, "--help"])
        assert "key" not in capsys.readouterr().out.lower()


# Sandbox and demo.


def test_sandbox_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options reach the server, and a person reads how to point a client at it."""
    given: dict[str, object] = {}
    monkeypatch.setattr(perfect_async.sandbox, "run", lambda **settings: given.update(settings))
    port = free_port()

    assert 0 == cli.main(["sandbox", "--port", str(port), "--fail", "0.1", "--speed", "4"])
    assert (
        f"YOUCAM_BASE_URL=http://127.0.0.1:{port} YOUCAM_API_KEY=anything perfect-async smile"
        in capsys.readouterr().err
    )
    assert {
        "host": "127.0.0.1",
        "port": port,
        "seed": 0,
        "units": 1000.0,
        "lease": 10.0,
        "engine_errors": 0.1,
        "speed": 4.0,
        "webhook_url": None,
        "webhook_secret": None,
    } == given


@pytest.mark.parametrize(
    ("said", "written", "expected"),
    [
        ("whsec_c2VjcmV0", None, ["whsec_c2VjcmV0"]),
        ("c2VjcmV0\twhsec_bmV3", None, ["c2VjcmV0", "whsec_bmV3"]),
        ("", "whsec_bmV3\n", ["whsec_bmV3"]),
        ("whsec_c2VjcmV0", "whsec_bmV3\n", ["whsec_bmV3"]),
    ],
)
def test_the_sandboxs_webhook(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    said: str,
    written: str | None,
    expected: list[str],
) -> None:
    """The secret comes from the environment or a file, several of them while one is replaced."""
    given: dict[str, object] = {}
    monkeypatch.setattr(perfect_async.sandbox, "run", lambda **settings: given.update(settings))
    monkeypatch.setenv("YOUCAM_WEBHOOK_SECRET", said)
    options = ["--webhook-url", "http://127.0.0.1:8000/hook", "--port", str(free_port())]
    if written is not None:
        (tmp_path / "secret").write_text(written)
        options += ["--webhook-secret-file", str(tmp_path / "secret")]

    assert 0 == cli.main(["sandbox", *options])
    assert ("http://127.0.0.1:8000/hook", expected) == (
        given["webhook_url"],
        given["webhook_secret"],
    )


@pytest.mark.parametrize(
    ("url", "secret", "options", "said"),
    [
        ("shop.example", "whsec_c2VjcmV0", [], "--webhook-url is 'shop.example'"),
        ("https://shop.example", "", [], "set YOUCAM_WEBHOOK_SECRET or pass"),
        ("https://shop.example", "s3cret!", [], "not what the vendor's console shows"),
        ("https://shop.example", "", ["--webhook-secret-file", "no"], "No such file"),
        ("https://shop.example", "", ["--webhook-secret-file", "binary"], "it is not text"),
    ],
)
def test_a_webhook_that_cannot_be(  # noqa: PLR0917 - a table of cases
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    url: str,
    secret: str,
    options: list[str],
    said: str,
) -> None:
    """Half a webhook is status 2 before the server starts, and no secret is shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOUCAM_WEBHOOK_SECRET", secret)
    (tmp_path / "binary").write_bytes(b"s3cret\xff")

    assert 2 == cli.main(["sandbox", "--webhook-url", url, *options])
    told = capsys.readouterr().err
    assert said in " ".join(told.split())
    assert "s3cret" not in told


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """A port in use is status 2 before the server starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert 2 == cli.main(["sandbox", "--port", str(port)])
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


def test_demo(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo is status 0 and says where to look; with failures it is status 1."""
    monkeypatch.setattr(_program, "run", virtual_time.run)

    assert 0 == cli.main(["demo"])
    out, err = capsys.readouterr()
    places = [Path(line) for line in out.splitlines()]
    assert [Path("perfect-async-demo", "contact-sheet.png"), True] == [
        places[0],
        all(place.exists() for place in places),
    ]
    assert "24 done, 0 failed, 24 units" in err

    assert 1 == cli.main(["demo", "--fail", "0.05", "--out", "other"])
    assert "23 done, 1 failed, 23 units" in capsys.readouterr().err

    assert 0 == cli.main(["demo", "in", "--out", "own"])
    assert "3 done, 0 failed, 3 units" in capsys.readouterr().err


# As processes.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def program(*arguments: str, cwd: Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the program as a process of its own; it is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perfect_async", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read stderr up to a line that holds `text`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            break
    return "".join(lines)


@pytest.mark.real_time
def test_demo_for_real(tmp_path: Path) -> None:
    """In real time the demo's exit status and summary are right."""
    with program("demo", "--fail", "0.05", cwd=tmp_path) as process:
        out, err = process.communicate()

    assert 1 == process.returncode
    assert "23 done, 1 failed, 23 units" in err
    assert "\x1b" not in out + err
    assert "23 done, 1 failed" in (tmp_path / "perfect-async-demo" / "summary.md").read_text()


@pytest.mark.real_time
def test_ctrl_c_for_real(tmp_path: Path) -> None:
    """One Ctrl-C while pictures are being sent: what runs is saved, status 1."""
    with program("demo", cwd=tmp_path) as process:
        read_until(process, "0 of 24")
        while not list(tmp_path.glob("perfect-async-demo/results/*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()

    saved = list(tmp_path.glob("perfect-async-demo/results/portrait-*"))
    assert 1 == process.returncode
    assert "Stopping: nothing more is sent" in err
    assert f"{len(saved)} done, 0 failed, {24 - len(saved)} not sent" in err


@pytest.mark.real_time
def test_ctrl_c_twice_for_real(tmp_path: Path) -> None:
    """Two Ctrl-C: gone with status 130, no traceback and no half-written picture."""
    with program("demo", cwd=tmp_path) as process:
        read_until(process, "0 of 24")
        while not list(tmp_path.glob("perfect-async-demo/results/portrait-*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        read_until(process, "Stopping")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()

    assert 130 == process.returncode
    assert "Left at once" in err
    assert "Traceback" not in err
    assert [] == list(tmp_path.rglob(".*"))


@contextlib.contextmanager
def vendor(cwd: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The command `sandbox` as a process, once it answers: its URL, and the process."""
    port = free_port()
    with program("sandbox", "--port", str(port), "--speed", "20", cwd=cwd) as server:
        read_until(server, "sandbox on")
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
        yield f"http://127.0.0.1:{port}", server


@pytest.mark.real_time
def test_one_process_serves_another(tmp_path: Path) -> None:
    """`smile` in one process is served by `sandbox` in another, which ends with its ledger."""
    (tmp_path / "me.jpg").write_bytes(portrait(1))
    with vendor(tmp_path) as (url, server):
        with program(
            *("smile", "me.jpg", "--json"),
            cwd=tmp_path,
            YOUCAM_BASE_URL=url,
            YOUCAM_API_KEY="a-secret-key",
        ) as process:
            out, err = process.communicate()
        server.send_signal(signal.SIGINT)
        _, ledger = server.communicate()

    told = json.loads(out)
    assert (0, 0) == (process.returncode, server.returncode)
    assert (True, "me.jpg") == (told["ok"], told["source"])
    assert (tmp_path / told["files"][0]).is_file()
    assert "1 done, 0 failed, 1 units" in err
    assert "1 units charged, 0 returned, 0 wasted" in ledger
    assert "a-secret-key" not in out + err + ledger
    assert "Amz" not in out + err + ledger


@pytest.mark.real_time
@pytest.mark.timeout(60)
def test_killed_and_resumed(tmp_path: Path) -> None:
    """After `kill -9` the command `resume` saves what was paid for; nothing is paid twice."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(portrait(number))
    with vendor(tmp_path) as (url, server):
        key = {"YOUCAM_BASE_URL": url, "YOUCAM_API_KEY": "a-secret-key"}
        journal = ("--journal", "jobs.db")
        with program("smile", "in", *journal, cwd=tmp_path, **key) as process:
            until = time.monotonic() + 10
            while not (tmp_path / "jobs.db").exists() and time.monotonic() < until:
                time.sleep(0.02)
            # Some are running now, or on their way; it makes no difference to what comes.
            time.sleep(0.7)
            process.kill()
            process.communicate()
        with program("resume", *journal, "--json", cwd=tmp_path, **key) as process:
            out, err = process.communicate()
        # 1 where the kill came between the note of a creation and its sending: it stays in doubt.
        assert process.returncode in {0, 1}, err
        with program("resume", *journal, cwd=tmp_path, **key) as process:
            again, _ = process.communicate()
        with program("smile", "in", *journal, cwd=tmp_path, **key) as process:
            same, _ = process.communicate()
        server.send_signal(signal.SIGINT)
        _, ledger = server.communicate()

    told = [json.loads(line) for line in out.splitlines()]
    files = [path for one in told for path in one["files"]]
    assert "" == again
    assert 4 == len(same.splitlines())
    assert set(files) <= set(same.splitlines())
    assert all((tmp_path / path).is_file() for path in same.splitlines())
    assert "4 units charged, 0 returned, 0 wasted" in ledger
    assert "a-secret-key" not in out + err
    assert b"a-secret-key" not in (tmp_path / "jobs.db").read_bytes()
