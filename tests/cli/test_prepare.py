"""Before anything is bought: the plan, the question, the dry run; in virtual time."""

import asyncio
import io
import json
import ssl
import time
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, Smile, cli
from perfect_async._journal.model import Entered, JournalState
from perfect_async._journal.sqlite import Row, SqliteJournal
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async.cli import _outage, _prepare, _runner
from perfect_async.sandbox import Faults, portrait
from tests.support import virtual_time
from tests.support.terminal import advance_start, use_sandbox


def answer(monkeypatch: pytest.MonkeyPatch, text: str, *, terminal: bool = True) -> list[str]:
    """Answer `text` at a terminal; return the answers that were given."""
    asked: list[str] = []

    async def reply() -> str:
        await asyncio.sleep(30)
        asked.append(text)
        return text

    monkeypatch.setattr(_prepare, "_answer", reply)
    monkeypatch.setattr(_prepare, "is_interactive", lambda: terminal)
    return asked


def test_a_folder_with_some_that_cannot_be_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was found in a folder and cannot be sent is skipped and named: status 0."""
    sandbox = use_sandbox(monkeypatch)
    Path("in/a.webp").write_bytes(b"RIFF1234WEBPxxxx")
    Path("in/b.jpg").touch()
    Path("in/c.jpg").symlink_to("nowhere")
    Path("in/d.jpg").write_bytes(Path("in/0.jpg").read_bytes())

    assert 0 == cli.main(["smile", "in"])
    err = capsys.readouterr().err
    assert (
        "4 to send, 3 skipped (webp, broken link, 0 bytes), 1 equal to another, "
        "3 units of a balance of 1000, under 1 min."
    ) in err
    assert "skipped: 'in/a.webp' is webp; jpg, png, heic can be sent; --fit makes it fit." in err
    assert "skipped: 'in/b.jpg' is empty." in err
    assert "skipped: 'in/c.jpg' is a link to a file that is not there." in err
    assert "'in/d.jpg' is the same picture as 'in/0.jpg': one task, bought once." in err
    assert 3 == sandbox.ledger.units_charged


def test_one_that_was_named_cannot_be_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was named itself and cannot be sent has failed: status 1, and one line of JSON."""
    use_sandbox(monkeypatch)
    Path("in/b.jpg").touch()

    assert 1 == cli.main(["smile", "in", "in/b.jpg", "--json"])
    out, err = capsys.readouterr()
    assert "3 to send, 1 that cannot be sent, 3 units" in err
    assert 1 == err.count("cannot be sent: 'in/b.jpg' is empty. Nothing was sent; use another")
    assert 1 == err.count("'in/b.jpg' is empty.")
    assert 0 == err.count("failed: in/b.jpg")
    assert [True, True, True, False] == sorted(
        (json.loads(line)["ok"] for line in out.splitlines()), reverse=True
    )


def test_some_that_were_named_are_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped name and a broken link have failed, each; the others are sent: status 1."""
    sandbox = use_sandbox(monkeypatch)
    Path("in/link.jpg").symlink_to("nowhere")

    assert 1 == cli.main(["smile", "in/0.jpg", "in/00.jpg", "in/link.jpg", "in/1.jpg"])
    err = capsys.readouterr().err
    assert "cannot be sent: there is no file or folder 'in/00.jpg'; did you mean 'in/0.jpg'?" in err
    assert "cannot be sent: 'in/link.jpg' is a link to a file that is not there." in err
    assert "2 to send, 2 that cannot be sent, 2 units" in err
    assert "2 done, 2 failed, 2 units" in err
    assert 2 == sandbox.ledger.units_charged

    assert 2 == cli.main(["smile", "in/00.jpg", "in/link.jpg"])
    assert "perfect-async: there is no file or folder 'in/00.jpg'" in capsys.readouterr().err


def test_all_that_was_named_cannot_be_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing is left to send no request leaves: status 1."""
    sandbox = use_sandbox(monkeypatch)
    Path("in/b.jpg").touch()

    assert 1 == cli.main(["smile", "in/b.jpg"])
    assert "0 to send, 1 that cannot be sent: nothing to buy." in capsys.readouterr().err
    assert {} == dict(sandbox.ledger.requests)


def test_a_dry_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run says what would be done, buys nothing and writes nothing: status 0."""
    sandbox = use_sandbox(monkeypatch)

    assert 0 == cli.main(
        ["smile", "in", "--dry-run", "--journal", "jobs.db", "--report", "run.csv"]
    )
    out, err = capsys.readouterr()
    assert "" == out
    assert "3 to send, 3 units of a balance of 1000, under 1 min." in err
    assert "This was a dry run: nothing was sent." in err
    assert [Path("in")] == list(Path().iterdir())
    assert {"credit": 1} == dict(sandbox.ledger.requests)


def test_a_dry_run_without_a_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key the balance is unknown, and the rest is said all the same."""
    monkeypatch.delenv("YOUCAM_API_KEY", raising=False)

    assert 0 == cli.main(["smile", "in", "--dry-run"])
    err = capsys.readouterr().err
    assert "3 to send, 3 units (balance unknown), under 1 min." in err
    assert "The API key is missing: set YOUCAM_API_KEY or pass --api-key-file." in err


def test_a_dry_run_with_a_refused_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused key is one line, however many pictures there are: status 2."""
    sandbox = use_sandbox(monkeypatch, api_keys={"other"})

    for options in ([], ["--dry-run"], ["--quiet"]):
        assert 2 == cli.main(["smile", "in", *options])
        err = capsys.readouterr().err
        (line,) = err.splitlines()
        assert line.startswith("perfect-async: the vendor does not accept the API key.")
        assert "set YOUCAM_API_KEY or pass --api-key-file." in line
    assert 0 == sandbox.ledger.units_charged


@pytest.mark.parametrize("text", ["n\n", "", " Yes\n"])
def test_a_low_balance_is_asked_about(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """A run asks where the balance does not suffice, and only yes sends anything."""
    sandbox = use_sandbox(monkeypatch, units=2.0)
    asked = answer(monkeypatch, text)

    assert 1 == cli.main(["smile", "in"])
    err = capsys.readouterr().err
    assert [text] == asked
    assert "3 units of a balance of 2, under 1 min. The balance does not suffice" in err
    assert "Go on? [y/N]" in err
    sent = text.strip() == "Yes"
    assert (2 if sent else 0) == sandbox.ledger.units_charged
    assert sent is not ("Nothing was sent." in err)
    # The time to answer is not the run's.
    assert "in 0:3" not in err


@pytest.mark.parametrize(
    ("arguments", "terminal", "asks"),
    [([], True, True), (["-y"], True, False), (["--yes"], True, False), ([], False, False)],
)
def test_many_units_are_asked_about(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    *,
    terminal: bool,
    asks: bool,
) -> None:
    """From 20 units on a terminal asks; `-y` never does, and nor does a pipe."""
    use_sandbox(monkeypatch)
    asked = answer(monkeypatch, "y\n", terminal=terminal)

    assert 0 == cli.main(["smile", *[f"https://x/{n}.jpg" for n in range(20)], *arguments])
    assert asks is bool(asked)


def test_a_quiet_question_says_what_about(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question names what is asked about, also with `--quiet`."""
    use_sandbox(monkeypatch, units=2.0)
    answer(monkeypatch, "n\n")

    assert 1 == cli.main(["smile", "in", "-q"])
    assert "3 units of a balance of 2" in capsys.readouterr().err


def test_few_units_are_not_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 20 units a run does not ask."""
    use_sandbox(monkeypatch)
    asked = answer(monkeypatch, "n\n")

    assert 0 == cli.main(["smile", "in"])
    assert [] == asked


def test_a_balance_that_stays_unknown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown balance does not stop the run."""
    sandbox = use_sandbox(monkeypatch)
    sandbox.script("credit", *[(404, "gone")] * 20)

    assert 0 == cli.main(["smile", "in"])
    assert "3 units (balance unknown), under 1 min." in capsys.readouterr().err


class ClosedPort(httpx.AsyncBaseTransport):
    """A host on which nothing listens."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.01)
        raise httpx.ConnectError("refused", request=request) from self.error


def use_closed_port(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def make(journal: Path | None = None, *_: object, **__: object) -> Client:
        return Client(
            "key", base_url="https://closed.example", transport=ClosedPort(error), journal=journal
        )

    monkeypatch.setattr(_runner, "make_client", make)
    monkeypatch.setattr(_runner, "run", virtual_time.run)


@pytest.mark.parametrize("arguments", [["smile", "in"], ["smile", "in", "--dry-run"]])
def test_a_host_that_cannot_be_reached(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    """The host is named with the reason, and given up in the end: one line, status 1."""
    use_closed_port(monkeypatch, ConnectionRefusedError(111, "Connection refused"))

    assert 1 == cli.main(arguments)
    named, ended = capsys.readouterr().err.splitlines()
    assert "cannot reach closed.example: Connection refused; trying for 20 s" == named
    reason = "the vendor's API at closed.example could not be reached (Connection"
    assert ended.startswith(f"perfect-async: {reason}")
    assert "It was tried for 20 s." in ended


@pytest.mark.parametrize("arguments", [["smile", "in"], ["units"], ["templates"]])
def test_a_refused_certificate(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    """A certificate that is refused ends every command at once: one line, status 1."""
    error = ssl.SSLCertVerificationError(1, "secret")
    error.verify_message = "certificate has expired"
    use_closed_port(monkeypatch, error)

    assert 1 == cli.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert "closed.example could not be reached" in line
    assert "certificate refused, 'certificate has expired'" in line
    assert line.endswith("Nothing was sent; check the address of the host.")


@pytest.mark.parametrize("command", ["units", "templates"])
def test_questions_to_a_host_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A question is given up as a run is."""
    use_closed_port(monkeypatch, ConnectionRefusedError(111, "Connection refused"))

    assert 1 == cli.main([command])
    named, ended = capsys.readouterr().err.splitlines()
    assert named.startswith("cannot reach closed.example: Connection refused")
    assert "It was tried for 20 s." in ended


def test_pictures_from_stdin(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dash stands for the names on stdin, as `find` prints them."""
    use_sandbox(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"in/0.jpg\nin/2.jpg\n")))

    assert 0 == cli.main(["smile", "-", "--expression", "closed_mouth_smile"])
    assert "2 done, 0 failed, 2 units," in capsys.readouterr().err


def test_a_wrong_url(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped URL is found before anything is sent."""
    sandbox = use_sandbox(monkeypatch)

    assert 1 == cli.main(["smile", "htps://x.example/a.jpg"])
    err = capsys.readouterr().err
    assert "cannot be sent: the picture's URL 'htps://x.example/a.jpg' is not http(s)://" in err
    assert {} == dict(sandbox.ledger.requests)


def test_an_unknown_template(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A template that the vendor does not know: the hint says where they are listed."""
    use_sandbox(monkeypatch)

    assert 1 == cli.main(["avatar", "in/0.jpg", "--template", "nope"])
    assert "perfect-async templates lists those for --template." in capsys.readouterr().err


def test_resuming_without_the_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot reach the host resumes nothing: it says so and ends, with nothing lost."""
    monkeypatch.setattr(_outage, "GIVEN_UP_AFTER", 3.0)
    now, state = time.time_ns() // 1000, JournalState()
    entry = Entered(1, now, JobSpec.of(Smile("https://x/a.jpg"), None, PLAIN).stored())
    file = SqliteJournal("jobs.db", now)
    file.commit([Row(1, entry, state.receive(entry))], [], now)
    file.close()

    use_closed_port(monkeypatch, ConnectionRefusedError(111, "Connection refused"))
    assert 1 == cli.main(["resume", "--journal", "jobs.db"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("perfect-async: the vendor's API at closed.example")
    assert "It was tried for 3 s." in last

    use_sandbox(monkeypatch)
    assert 0 == cli.main(["resume", "--journal", "jobs.db"])
    assert "1 done, 0 failed, 1 unit," in capsys.readouterr().err


def test_failures_are_sent_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--retry-failed` sends what failed in the last run, without or among named pictures."""
    sandbox = use_sandbox(monkeypatch, faults=Faults(by_picture={"1.jpg": "error_no_face"}))
    assert 1 == cli.main(["smile", "in"])
    assert "The same command with --retry-failed sends it again." in capsys.readouterr().err
    advance_start(monkeypatch, 100)

    assert 1 == cli.main(["smile", "--retry-failed"])
    assert "0 done, 1 failed, 0 units" in capsys.readouterr().err
    advance_start(monkeypatch, 100)
    Path("in/1.jpg").write_bytes(portrait(7, 64))
    sandbox = use_sandbox(monkeypatch)
    assert 0 == cli.main(["smile", "in", "--retry-failed"])
    assert "1 done, 0 failed, 1 unit," in capsys.readouterr().err
    assert 1 == sandbox.ledger.units_charged

    assert 0 == cli.main(["smile", "--retry-failed"])
    assert "No failed picture is recorded in perfect-async-out" in capsys.readouterr().err


def test_what_was_refused_before_it_was_sent_is_sent_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that could not be sent has failed, too, named or in a folder that is named."""
    sandbox = use_sandbox(monkeypatch)
    Path("in/a.webp").write_bytes(b"RIFF1234WEBPxxxx")
    Path("in/b.jpg").touch()

    for named, arguments in (("a.webp", ["in"]), ("b.jpg", ["in"]), ("b.jpg", [])):
        assert 1 == cli.main(["smile", f"in/{named}"])
        assert "--retry-failed" not in capsys.readouterr().err
        assert 1 == cli.main(["smile", *arguments, "--retry-failed"])
        assert "0 to send, 1 that cannot be sent: nothing" in capsys.readouterr().err
        assert 0 == cli.main(["smile", "in/0.jpg", "--retry-failed"])
        err = capsys.readouterr().err
        assert "None of the pictures that failed last into perfect-async-out is named" in err
    Path("in/b.jpg").write_bytes(portrait(7, 64))
    assert 0 == cli.main(["smile", "--retry-failed"])
    assert 1 == sandbox.ledger.units_charged


def test_a_wrong_template_is_not_sent_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would fail in the same way is not advised; with the right template it is sent."""
    sandbox = use_sandbox(monkeypatch)

    assert 1 == cli.main(["avatar", "in/0.jpg", "--template", "nope"])
    assert "--retry-failed" not in capsys.readouterr().err
    advance_start(monkeypatch, 100)
    assert 0 == cli.main(["avatar", "--retry-failed", "--template", "male_studio_00"])
    assert 1 == sandbox.ledger.units_charged


def test_the_last_line_repeats_the_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures that were skipped are in the last line: the exit status does not count them."""
    use_sandbox(monkeypatch)
    Path("in/b.jpg").touch()

    for counts in ("3 done, 0 failed, 1 skipped", "0 done, 0 failed, 3 already there, 1 skipped"):
        assert 0 == cli.main(["smile", "in"])
        assert counts in capsys.readouterr().err.splitlines()[-1]
        advance_start(monkeypatch, 100)


def test_subfolders_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder's folders are not searched, which one line says; results and hidden ones are not."""
    use_sandbox(monkeypatch)
    for name in ("in/2025/a", "in/2026", "in/.cache", "in/out"):
        Path(name).mkdir(parents=True)
    Path("in/notes.txt").touch()

    assert 0 == cli.main(["smile", "in", "--out", "in/out"])
    line = "'in': 2 subfolders are not searched: use 'in/**/*'; 1 file is no picture by the name."
    assert 1 == capsys.readouterr().err.count(line)
    assert 0 == cli.main(["smile", "in/**/*", "--out", "in/out"])
    assert "searched" not in capsys.readouterr().err


def test_one_picture_that_cannot_be_sent_is_named_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cause and what to do are one line, and no line repeats them."""
    use_sandbox(monkeypatch)
    Path("in/a.webp").write_bytes(b"RIFF1234WEBPxxxx")

    assert 1 == cli.main(["smile", "in/a.webp"])
    err = capsys.readouterr().err
    assert 1 == err.count("'in/a.webp' is webp by its first bytes")
    assert "let --fit convert it" in err


def test_a_list_with_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CSV list is sent; the same list again buys nothing."""
    sandbox = use_sandbox(monkeypatch)
    Path("in/people.csv").write_text("key,picture\nann,0.jpg\nbob,1.jpg\n")

    for _ in range(2):
        assert 0 == cli.main(["smile", "in/people.csv", "--json"])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {"ann": "in/0.jpg", "bob": "in/1.jpg"} == {
            line["key"]: line["source"] for line in lines
        }
        advance_start(monkeypatch, 100)
    assert 2 == sandbox.ledger.units_charged


def test_quiet_and_verbose(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--quiet` prints results and errors only, `--verbose` each picture too."""
    use_sandbox(monkeypatch, faults=Faults(by_picture={"1.jpg": "error_no_face"}))

    assert 1 == cli.main(["smile", "in", "-q"])
    out, err = capsys.readouterr()
    assert 2 == len(out.splitlines())
    assert ["1 failed: no face was found (error_no_face). The vendor", "  in/1.jpg"] == [
        line[:55].rstrip() for line in err.splitlines()
    ]
    advance_start(monkeypatch, 100)
    assert 1 == cli.main(["smile", "in", "-v", "--again"])
    err = capsys.readouterr().err
    assert "done: in/0.jpg (1 unit, " in err
    assert "failed: in/1.jpg: no face was found (error_no_face)." in err
