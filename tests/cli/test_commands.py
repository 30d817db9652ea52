"""The commands: what they do, print and return; in virtual time."""

import asyncio
import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

import perfect_async.sandbox
from perfect_async import Batch, Client, Polling, Smile, cli
from perfect_async._journal.model import Creating, Entered, JournalEntry, JournalState
from perfect_async._journal.sqlite import Row, SqliteJournal
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async.cli import _manifest, _runner
from perfect_async.cli._display import Display
from perfect_async.cli._manifest import Manifest
from perfect_async.sandbox import Dialect, Durations, Faults, Sandbox, portrait
from tests.sandbox.customer import Customer, data_of
from tests.support import virtual_time
from tests.support.ports import free_port
from tests.support.terminal import advance_start, interrupt_at, use_sandbox

# Pictures.


def test_smile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All done: status 0, the paths of the results on stdout, the rest on stderr."""
    sandbox = use_sandbox(monkeypatch)

    status = cli.main(["smile", "in", "--expression", "closed_mouth_smile"])
    out, err = capsys.readouterr()

    assert 0 == status
    assert 3 == len(out.splitlines()) == len(list((folder / "perfect-async-out").glob("[!.]*")))
    assert all((folder / line).is_file() for line in out.splitlines())
    assert "3 to send, 3 units of a balance of 1000, under 1 min." in err
    assert "0 of 3: sending pictures, 0 done" in err
    assert "3 done, 0 failed, 3 units, in 0:" in err
    assert {"closed_mouth_smile"} == {
        str(task.params["expression_type"]) for task in sandbox.ledger.tasks
    }


def test_some_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some failed: status 1, one line of JSON each, the cause and the hint."""
    use_sandbox(monkeypatch, faults=Faults(by_picture={"1.jpg": "error_no_face"}))

    status = cli.main(["smile", "in", "--json", "--out", "results"])
    out, err = capsys.readouterr()
    reports = {one["source"]: one for one in map(json.loads, out.splitlines())}

    assert 1 == status
    assert {f"in{os.sep}{n}.jpg": n != 1 for n in range(3)} == {
        k: v["ok"] for k, v in reports.items()
    }
    bad = reports[f"in{os.sep}1.jpg"]
    assert (0, [], "error_no_face") == (bad["units"], bad["files"], bad["error"]["code"])
    good = reports[f"in{os.sep}0.jpg"]
    assert (1, None) == (good["units"], good["error"])
    assert Path(good["files"][0]).is_relative_to(Path("results").absolute())
    assert "Amz" not in out + err
    hint = "The vendor returns the units; use another picture."
    assert f"1 failed: no face was found (error_no_face). {hint}" in err
    assert "2 done, 1 failed, 2 units" in err


def test_avatar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Template and count reach the vendor, and every avatar is saved."""
    sandbox = use_sandbox(monkeypatch)

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
    use_sandbox(monkeypatch, api_keys={"other"})

    assert 2 == cli.main(["smile", "in"])
    assert "Check the key" in capsys.readouterr().err
    assert 2 == cli.main(["units"])
    assert "Check the key" in capsys.readouterr().err


def test_ctrl_c_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C drains: status 1, and the summary says what was not sent."""
    use_sandbox(monkeypatch, durations={"ai-smile": Durations.fixed(8.0)})
    interrupt_at(monkeypatch, 1)
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
    use_sandbox(monkeypatch, durations={"ai-smile": Durations.uniform(5.0, 100.0)})
    interrupt_at(monkeypatch, 1, 2)

    assert 130 == cli.main(["smile", *[f"https://x/{number}.jpg" for number in range(20)]])
    err = capsys.readouterr().err
    assert "Left at once: " in err
    assert "Traceback" not in err


# Money.


def test_finished_jobs_are_not_bought_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a journal the same command again fetches deleted results for no unit."""
    sandbox = use_sandbox(monkeypatch)

    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])
    first = capsys.readouterr()
    shutil.rmtree("perfect-async-out")
    advance_start(monkeypatch, 100)
    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])
    again = capsys.readouterr()

    assert sorted(first.out.splitlines()) == sorted(again.out.splitlines())
    assert "3 done, 0 failed, 0 units" in again.err
    assert 3 == sandbox.ledger.units_charged


def test_results_in_the_folder_are_not_bought_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again prints the same results for no unit; only new pictures are sent."""
    sandbox = use_sandbox(monkeypatch)

    assert 0 == cli.main(["smile", "in"])
    first = capsys.readouterr()
    advance_start(monkeypatch, 100)
    assert 0 == cli.main(["smile", "in"])
    again = capsys.readouterr()
    (folder / "in" / "new.jpg").write_bytes(portrait(9, 64))
    advance_start(monkeypatch, 100)
    assert 0 == cli.main(["smile", "in", "--json"])
    more = capsys.readouterr()

    assert sorted(first.out.splitlines()) == sorted(again.out.splitlines())
    assert "0 done, 0 failed, 3 already there, 0 units" in again.err
    assert "1 done, 0 failed, 3 already there, 1 unit," in more.err
    assert [False, True, True, True] == sorted(
        json.loads(line)["already_there"] for line in more.out.splitlines()
    )
    assert 4 == sandbox.ledger.units_charged


def test_avatars_are_not_bought_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Avatars are bought once, with a journal too; `--again` buys a set beside the older one."""
    sandbox = use_sandbox(monkeypatch)
    command = ["avatar", "in/0.jpg", "--template", "male_studio_00", "--journal", "jobs.db"]

    for extra in ([], [], ["--again"], []):
        assert 0 == cli.main([*command, *extra])
        advance_start(monkeypatch, 1000)
    files = capsys.readouterr().out.splitlines()

    assert 2 == sandbox.ledger.units_charged
    assert files[:4] == files[4:8]
    assert set(files[:4]).isdisjoint(files[8:12])
    assert files[8:12] == files[12:]
    assert all(Path(path).is_file() for path in files)


@pytest.mark.parametrize(
    ("extra", "units"),
    [([], 2), (["--journal", "jobs.db"], 1), (["--journal", "jobs.db", "--delete"], 2)],
)
def test_a_set_of_which_a_file_is_gone(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    units: int,
) -> None:
    """A file that was removed is fetched again or bought, and the retouched ones stay."""
    sandbox = use_sandbox(monkeypatch)
    command = ["avatar", "in/0.jpg", "--template", "male_studio_00", *extra]
    assert 0 == cli.main(command)
    files = [Path(path) for path in capsys.readouterr().out.splitlines()]
    files[0].unlink()
    files[3].write_bytes(b"retouched")

    for _ in range(2):
        advance_start(monkeypatch, 1000)
        assert 0 == cli.main(command)
        again = [Path(path) for path in capsys.readouterr().out.splitlines()]
        assert 4 == len(again)
        assert all(path.is_file() for path in again)
        assert b"retouched" == files[3].read_bytes()
        assert (units == 2) is set(files).isdisjoint(again)

    assert units == sandbox.ledger.units_charged


def test_a_run_that_stopped_at_its_ceiling_is_completed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repeating a run that stopped at `--max-units` buys only what is missing, deleted or not."""
    sandbox = use_sandbox(monkeypatch)

    for status in (1, 1, 0, 0):
        assert status == cli.main(["smile", "in", "--max-units", "1", "--delete"])
        advance_start(monkeypatch, 100)

    assert 3 == sandbox.ledger.units_charged


def test_results_in_the_folder_of_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is both input and output does not have its results worked on."""
    sandbox = use_sandbox(monkeypatch)

    for pictures in (["in"], ["in"], ["in/**/*.jpg"], [str(path) for path in Path("in").glob("*")]):
        assert 0 == cli.main(["smile", *pictures, "--out", "in"])
        advance_start(monkeypatch, 100)
    assert 3 == sandbox.ledger.units_charged
    assert "3 of the pictures are results of former runs: left out." in capsys.readouterr().err

    results = [str(path) for path in Path("in").glob("?-*.jpg")]
    assert 2 == cli.main(["smile", *results, "--out", "in"])
    assert "pass another --out" in capsys.readouterr().err


def test_a_broken_manifest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken manifest is said and rebuilt, and nothing is bought again."""
    sandbox = use_sandbox(monkeypatch)
    assert 0 == cli.main(["smile", "in", "--out", "out"])
    Path("out", ".perfect-async-manifest").write_text("nonsense")
    capsys.readouterr()

    assert 0 == cli.main(["smile", "in", "--out", "out"])
    assert (
        "The manifest in out was broken. It was rebuilt from the 3 results that are there."
        in capsys.readouterr().err
    )
    assert 3 == sandbox.ledger.units_charged


def test_a_manifest_that_cannot_be_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its manifest a folder's results could be bought again: status 2, nothing is sent."""
    sandbox = use_sandbox(monkeypatch)
    Path("out", ".perfect-async-manifest").mkdir(parents=True)

    assert 2 == cli.main(["smile", "in", "--out", "out"])
    assert "it is no regular file" in capsys.readouterr().err
    assert 0 == sum(sandbox.ledger.requests.values())


def test_a_manifest_that_cannot_be_rebuilt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken manifest on a disk that refuses another one is status 2, and nothing is sent."""
    sandbox = use_sandbox(monkeypatch)
    Path("out").mkdir()
    Path("out", ".perfect-async-manifest").write_text("nonsense")

    def refuse(_: Manifest) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Manifest, "rebuild", refuse)

    assert 2 == cli.main(["smile", "in", "--out", "out"])
    assert "cannot be rebuilt: No space left on device" in capsys.readouterr().err
    assert 0 == sum(sandbox.ledger.requests.values())


def test_a_former_result_that_cannot_be_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A former result that cannot be recorded as one picture's is status 2: nothing is sent."""
    sandbox = use_sandbox(monkeypatch)
    monkeypatch.setattr(
        "perfect_async._client.folder.name_identity", lambda job, digest: "01234567" + digest[8:]
    )
    Path("out").mkdir()
    Path("out", "0-01234567.jpg").write_bytes(portrait(3, 64))

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_manifest, "_append", refuse)
        assert 2 == cli.main(["smile", "in", "--out", "out"])
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert 0 == sum(sandbox.ledger.requests.values())

    assert 0 == cli.main(["smile", "in/0.jpg", "--out", "out"])
    assert "1 already there" in capsys.readouterr().err


def test_a_manifest_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results that cannot be recorded are saved, reported and still found by their names."""
    use_sandbox(monkeypatch)
    append = _manifest._write

    def refuse(_: int, __: bytes) -> NoReturn:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(_manifest, "_write", refuse)
    assert 0 == cli.main(["smile", "in", "--out", "out"])
    assert 3 == capsys.readouterr().err.count("cannot be written: Disk quota exceeded")

    monkeypatch.setattr(_manifest, "_write", append)
    assert 0 == cli.main(["smile", "in", "--out", "out"])
    assert "3 already there" in capsys.readouterr().err


def test_two_pictures_for_one_former_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures that may both belong to a former result are not bought: status 1."""
    sandbox = use_sandbox(monkeypatch)
    monkeypatch.setattr(
        "perfect_async._client.folder.name_identity", lambda job, digest: "01234567" + digest[8:]
    )
    for name in ("one", "two"):
        Path(name).mkdir()
        Path(name, "a.jpg").write_bytes(portrait(len(name) + ord(name[0]), 64))
    Path("out").mkdir()
    Path("out", "a-01234567.jpg").write_bytes(portrait(3, 64))

    assert 1 == cli.main(["smile", "one", "two", "--out", "out", "--json"])
    errors = [json.loads(line)["error"] for line in capsys.readouterr().out.splitlines()]
    assert ["JobRefused"] * 2 == [error["type"] for error in errors]
    assert all("a-01234567.jpg" in error["message"] for error in errors)
    assert 0 == sandbox.ledger.units_charged


def test_nothing_to_resume(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a complete run nothing is left to resume: status 0."""
    use_sandbox(monkeypatch)
    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])
    capsys.readouterr()

    assert 0 == cli.main(["resume", "--journal", "jobs.db"])
    out, err = capsys.readouterr()
    assert "" == out
    assert err == "Nothing is left to resume in jobs.db: all of its jobs are finished.\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_resume_after_leaving(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    """Ctrl-C twice prints the command to resume, which saves the rest to the same folder."""
    sandbox = use_sandbox(monkeypatch, durations={"ai-smile": Durations.uniform(5.0, 40.0)})
    urls = [f"https://x/{number}.jpg" for number in range(30)]
    left: list[float] = []

    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, 2)
        # The vendor's clock goes on where the first process left it.
        patch.setattr(_runner, "_leave", noting_time(left))
        assert 130 == cli.main(["smile", *urls, "--journal", "my jobs.db", "--out", "here"])
    err = capsys.readouterr().err
    assert 2 == err.count("go on with perfect-async resume --journal 'my jobs.db'")
    running = int(err.partition("Left at once: ")[2].split()[0])
    done = len(list(Path("here").glob("[!.]*")))
    advance_start(monkeypatch, left[0] - virtual_time.START + 1)
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
    assert done + running == len(list(Path("here").glob("[!.]*"))) == sandbox.ledger.units_charged
    assert {"success": done + running} == dict(sandbox.ledger.tasks_by_state)


def noting_time(times: list[float]) -> Callable[[Batch, Display, str | None, int], NoReturn]:
    """Return a `_runner._leave` that notes the loop's time."""
    leave = _runner._leave

    def left(batch: Batch, display: Display, resume_command: str | None, number: int) -> NoReturn:
        times.append(asyncio.get_running_loop().time())
        leave(batch, display, resume_command, number)

    return left


def test_the_vendors_copies_are_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--delete` keeps the results and deletes the vendor's copies, with and without a journal."""
    sandbox = use_sandbox(monkeypatch)

    assert 0 == cli.main(["smile", "in/0.jpg", "in/1.jpg", "--delete"])
    advance_start(monkeypatch, 100)
    assert 0 == cli.main(["smile", "in/2.jpg", "--delete", "--journal", "jobs.db"])

    assert {"deleted": 3} == dict(sandbox.ledger.tasks_by_state)
    assert 3 == len([line for line in capsys.readouterr().out.splitlines() if Path(line).is_file()])


def test_a_ceiling(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures beyond `--max-units` are not sent: status 1."""
    sandbox = use_sandbox(monkeypatch)

    assert 1 == cli.main(["smile", "in", "--max-units", "2"])
    err = capsys.readouterr().err
    assert "2 done, 1 failed, 2 units" in err
    assert "--max-units=2" in err
    assert 2 == sandbox.ledger.units_charged


def test_insured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--insured` reaches the client, which otherwise has its own default."""
    given: list[Polling | None] = []
    use_sandbox(monkeypatch)
    make = _runner.make_client

    def client(
        journal: Path | None = None, polling: Polling | None = None, **options: bool
    ) -> Client:
        given.append(polling)
        return make(journal, polling, **options)

    monkeypatch.setattr(_runner, "make_client", client)

    assert 0 == cli.main(["smile", "in", "--insured", "600"])
    advance_start(monkeypatch, 100)
    assert 0 == cli.main(["smile", "in"])
    assert [Polling(insured=600.0), Polling()] == given


def test_pictures_are_made_to_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--fit` other types count too; the second time nothing is bought again."""
    sandbox = use_sandbox(monkeypatch)
    with Image.open("in/0.jpg") as image:
        image.save("in/other.webp", lossless=True)
    Path("in/0.jpg").unlink()

    assert 1 == cli.main(["smile", "in/other.webp", "--json"])
    out, err = capsys.readouterr()
    assert "use another picture, or let --fit convert it." in json.loads(out)["error"]["hint"]
    assert "--fit" in err

    assert 0 == cli.main(["smile", "in", "--fit", "--json"])
    out, err = capsys.readouterr()
    changes = {
        Path(line["source"]).name: line["changes"] for line in map(json.loads, out.split("\n")[:-1])
    }
    assert ["webp made png"] == changes["other.webp"]
    assert 3 == len(changes)
    assert "3 done, 0 failed, 1 made to fit" in err

    assert 0 == cli.main(["smile", "in", "--fit"])
    assert "3 already there" in capsys.readouterr().err
    assert 3 == sandbox.ledger.units_charged


def turn(*names: str) -> None:
    """Give pictures in `in` an EXIF orientation that is not upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in names:
        with Image.open(f"in/{name}") as image:
            image.save(f"in/{name}", exif=exif)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], ["--fit"], "2 were bought as they were before; --again buys them fitted."),
        (["--fit"], [], "2 were bought made to fit; --again buys them as they are."),
    ],
)
def test_what_was_bought_without_fit_is_there(  # noqa: PLR0917 - a table of cases
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: list[str],
    second: list[str],
    message: str,
) -> None:
    """With `--fit` or without, a picture that was bought is not bought again; `--again` does."""
    sandbox = use_sandbox(monkeypatch)
    turn("0.jpg", "1.jpg")

    Path("in/fake.jpg").write_text("no picture", encoding="utf-8")
    assert 0 == cli.main(["smile", "in", *first])
    paths = set(capsys.readouterr().out.splitlines())
    advance_start(monkeypatch, 100)
    for _ in range(2):
        assert 0 == cli.main(["smile", "in", *second])
        out, err = capsys.readouterr()
        assert paths == set(out.splitlines())
        assert message in err
        assert "3 already there, 1 skipped" in err
    assert 3 == sandbox.ledger.units_charged

    assert 0 == cli.main(["smile", "in", *second, "--again"])
    bought = set(capsys.readouterr().out.splitlines())
    assert 6 == sandbox.ledger.units_charged
    for options, files in ((second, bought), (first, paths)):
        advance_start(monkeypatch, 100)
        assert 0 == cli.main(["smile", "in/0.jpg", "in/1.jpg", *options])
        out, err = capsys.readouterr()
        assert files >= set(out.splitlines())
        assert "were bought" not in err
    assert 6 == sandbox.ledger.units_charged


def test_equal_pictures_have_files_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal pictures are reported with a file each, again too; one that is gone is copied."""
    sandbox = use_sandbox(monkeypatch)
    Path("in/twin.jpg").write_bytes(Path("in/0.jpg").read_bytes())
    assert 0 == cli.main(["smile", "in", "--json"])
    files = files_by_source(capsys.readouterr().out)
    assert 4 == len(set(files.values()))

    for gone in (None, files["twin.jpg"], files["0.jpg"]):
        advance_start(monkeypatch, 100)
        if gone is not None:
            gone.unlink()
            assert 0 == cli.main(["smile", "in", "--dry-run"])
            assert not gone.exists()
        capsys.readouterr()
        assert 0 == cli.main(["smile", "in", "--json"])
        out, err = capsys.readouterr()
        assert files == files_by_source(out)
        assert all(file.is_file() for file in files.values())
        assert (gone is not None) is ("1 of the results is gone; an equal" in err)
    assert 3 == sandbox.ledger.units_charged


def files_by_source(out: str) -> dict[str, Path]:
    lines = [json.loads(line) for line in out.splitlines()]
    return {Path(line["source"]).name: Path(line["files"][0]) for line in lines}


def test_forget(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished jobs are deleted and counted; the second time none is left."""
    use_sandbox(monkeypatch)
    assert 0 == cli.main(["smile", "in", "--journal", "jobs.db"])
    capsys.readouterr()

    assert 0 == cli.main(["forget", "--journal", "jobs.db"])
    assert "3 finished jobs forgotten\n" == capsys.readouterr().out
    assert 0 == cli.main(["forget", "--journal", "jobs.db"])
    assert "0 finished jobs forgotten\n" == capsys.readouterr().out


def test_a_doubt_is_not_forgotten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it is in doubt whether something was bought, nothing is deleted: status 1."""
    now, state = time.time_ns() // 1000, JournalState()
    job = Smile("https://x/a.jpg")
    stored = JobSpec.of(job, None, PLAIN).stored()
    entries: tuple[JournalEntry, ...] = (Entered(1, now, stored), Creating(1, now))
    file = SqliteJournal("jobs.db", now)
    file.commit([Row(1 + n, each, state.receive(each)) for n, each in enumerate(entries)], [], now)
    file.close()

    assert 1 == cli.main(["forget", "--journal", "jobs.db"])
    out, err = capsys.readouterr()
    assert "" == out
    assert "in doubt" in err
    assert 1 == len(err.splitlines())


@pytest.mark.parametrize("sole", [False, True])
def test_a_sole_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sole: bool
) -> None:
    """Only with `--sole-user` a task whose creation got no answer is found in the history."""
    sandbox = use_sandbox(monkeypatch)
    sandbox.script("task", "lose")

    status = cli.main(
        ["smile", "in/0.jpg", "--journal", "jobs.db", "--json", *["--sole-user"] * sole]
    )
    (report,) = map(json.loads, capsys.readouterr().out.splitlines())

    assert (not sole, sole) == (bool(status), report["ok"])
    if not sole:
        assert "SubmissionInDoubt" == report["error"]["type"]
    assert 1 == sandbox.ledger.units_charged


def test_a_journal_in_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A journal that another process uses is status 2, and nothing is sent or forgotten."""
    sandbox = use_sandbox(monkeypatch)
    owner = SqliteJournal("jobs.db", 0)
    try:
        for command in (["smile", "in"], ["resume"], ["forget"]):
            assert 2 == cli.main([*command, "--journal", "jobs.db"])
            assert "is in use by another process: wait until" in capsys.readouterr().err
    finally:
        owner.close()
    assert 0 == sum(sandbox.ledger.requests.values())


@pytest.mark.real_time
def test_a_client_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command's client takes the key from the environment and runs on a real loop."""
    monkeypatch.setenv("YOUCAM_API_KEY", "key")
    client = _runner.make_client(tmp_path / "jobs.db", Polling(insured=600.0))

    async def main() -> int:
        async with client:
            return 3

    assert 3 == _runner.run(main)
    assert (tmp_path / "jobs.db").is_file()


# Templates and units.


def test_templates(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All pages, as lines or as JSON."""
    use_sandbox(monkeypatch)

    assert 0 == cli.main(["templates"])
    lines = capsys.readouterr().out.splitlines()
    assert 0 == cli.main(["templates", "--json"])
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert 71 == len(lines) == len(listed)
    assert ["male_studio_00", "studio 00", "studio"] == lines[0].split("\t")
    assert {"id", "title", "category", "thumb"} == listed[0].keys()


def test_units(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The balance and its grants, as lines or as JSON."""
    use_sandbox(monkeypatch, units=42.0, epoch=1_800_000_000.0)

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
    """A balance that the vendor does not report is unknown, not zero."""
    use_sandbox(monkeypatch, units=float("inf"))

    assert 0 == cli.main(["units"])
    assert "balance\tunknown\t\n" == capsys.readouterr().out
    assert 0 == cli.main(["units", "--json"])
    assert {"balance": None, "grants": []} == json.loads(capsys.readouterr().out)


def test_an_unreachable_vendor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question without an answer says what it waits for, and ends with the hint: status 1."""
    use_sandbox(monkeypatch, faults=Faults(bad_gateway={"credit": 1.0}))

    assert 1 == cli.main(["units"])
    out, err = capsys.readouterr()
    assert "" == out
    waits, ended = err.splitlines()
    assert "answered HTTP 502; trying again" in waits
    assert ended.startswith("perfect-async: ")
    assert "Try again later" in ended


# Sandbox and demo.


def test_sandbox_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options reach the server."""
    given: dict[str, object] = {}
    monkeypatch.setattr(perfect_async.sandbox, "run", lambda **settings: given.update(settings))
    port = free_port()

    assert 0 == cli.main(["sandbox", "--port", str(port), "--fail", "0.1", "--speed", "4"])
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
        "charging": "creation",
        "polling_interval": None,
        "dialect": Dialect(),
    } == given


def use_served(
    monkeypatch: pytest.MonkeyPatch,
    options: Sequence[str],
    use: Callable[[Customer], Awaitable[None]],
) -> None:
    """Use the sandbox that the command would serve with these options, in virtual time."""

    async def serve(sandbox: Sandbox, *_: object) -> None:
        async with Customer(sandbox) as customer:
            await use(customer)

    monkeypatch.setattr("perfect_async.sandbox._server.serve", serve)
    monkeypatch.setattr(asyncio, "run", lambda main: virtual_time.run(lambda: main))
    assert 0 == cli.main(["sandbox", "--port", str(free_port()), *options])


def test_what_the_sandbox_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says where it is, then how a client gets there, and at the end what was charged."""

    async def use(customer: Customer) -> None:
        await customer.task()

    use_served(monkeypatch, [], use)
    where, how, ledger = capsys.readouterr().err.splitlines()
    assert where.startswith("sandbox on http://127.0.0.1:")
    assert how.startswith("In another terminal: YOUCAM_BASE_URL=http://127.0.0.1:")
    assert how.endswith(" YOUCAM_API_KEY=anything perfect-async smile PICTURES")
    assert ledger.startswith(
        "The sandbox's ledger: 1 units charged, 0 returned, 0 wasted, 999 left;"
    )
    assert "<" not in ledger


@pytest.mark.parametrize(("charging", "left"), [("creation", 8), ("success", 9)])
def test_how_the_sandbox_charges(
    monkeypatch: pytest.MonkeyPatch, charging: str, left: float
) -> None:
    """`--charging` says whether units are taken at the creation or for a success only."""

    async def use(customer: Customer) -> None:
        await customer.task()
        answer = await customer.get("/s2s/v1.0/client/credit")
        assert left == sum(grant["amount_dec"] for grant in answer.json()["results"])

    use_served(monkeypatch, ["--charging", charging, "--units", "9"], use)


@pytest.mark.parametrize(
    ("errors", "fields"),
    [
        ("both", {"status", "error", "error_code"}),
        ("text", {"status", "error"}),
        ("code", {"status", "error_code"}),
        ("errorCode", {"status", "error", "errorCode"}),
    ],
)
def test_how_the_sandbox_words_errors(
    monkeypatch: pytest.MonkeyPatch, errors: str, fields: set[str]
) -> None:
    """`--errors` says which fields an error has."""

    async def use(customer: Customer) -> None:
        assert fields == set((await customer.poll("unknown")).json())

    use_served(monkeypatch, ["--errors", errors], use)


DAY = 86_400.0


@pytest.mark.parametrize(
    ("options", "lease"),
    [
        (["--lease", "20"], 20.0),
        (["--lease", "polling_interval", "--polling-interval", "3000"], 3.0),
        (["--lease", "retention"], DAY),
        (["--lease", "flexible"], None),
    ],
)
def test_the_leases_of_the_sandbox(
    monkeypatch: pytest.MonkeyPatch, options: list[str], lease: float | None
) -> None:
    """`--lease` says for how long a running task lives without a poll."""

    async def use(customer: Customer) -> None:
        first, second = [await customer.task() for _ in range(2)]
        await asyncio.sleep((lease or 30 * DAY) - 1.0)
        assert 200 == (await customer.poll(first)).status_code
        await asyncio.sleep(2.0)
        lost = await customer.poll(second)
        assert (200 if lease is None else 400) == lost.status_code

    use_served(monkeypatch, ["--speed", "1e-7", *options], use)


def test_the_polling_interval_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--polling-interval` is in the answers to polls, in milliseconds."""

    async def use(customer: Customer) -> None:
        answer = await customer.poll(await customer.task())
        assert 1500 == data_of(answer)["polling_interval"]

    use_served(monkeypatch, ["--polling-interval", "1500"], use)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lease", "long"], "--lease"),
        (["--lease", "0"], "it must be a number of seconds above 0"),
        (["--lease", "nan"], "it must be a number of seconds above 0"),
        (["--lease", "polling_interval"], "--lease polling_interval needs --polling-interval"),
        (["--polling-interval", "0"], "it must be a whole number of milliseconds from 1"),
        (["--charging", "never"], "--charging"),
        (["--errors", "none"], "--errors"),
    ],
)
def test_wrong_sandbox_settings(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """A setting that is none is status 2 before the server starts."""
    assert 2 == cli.main(["sandbox", *options])
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("variable", "file", "expected"),
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
    variable: str,
    file: str | None,
    expected: list[str],
) -> None:
    """The secret comes from the environment or a file, several of them while one is replaced."""
    given: dict[str, object] = {}
    monkeypatch.setattr(perfect_async.sandbox, "run", lambda **settings: given.update(settings))
    monkeypatch.setenv("YOUCAM_WEBHOOK_SECRET", variable)
    options = ["--webhook-url", "http://127.0.0.1:8000/hook", "--port", str(free_port())]
    if file is not None:
        (tmp_path / "secret").write_text(file)
        options += ["--webhook-secret-file", str(tmp_path / "secret")]

    assert 0 == cli.main(["sandbox", *options])
    assert ("http://127.0.0.1:8000/hook", expected) == (
        given["webhook_url"],
        given["webhook_secret"],
    )


@pytest.mark.parametrize(
    ("url", "secret", "options", "message"),
    [
        ("shop.example", "whsec_c2VjcmV0", [], "--webhook-url is 'shop.example'"),
        ("https://shop.example", "", [], "set YOUCAM_WEBHOOK_SECRET or pass"),
        ("https://shop.example", "s3cret!", [], "not what the vendor's console shows"),
        ("https://shop.example", "", ["--webhook-secret-file", "no"], "No such file"),
        ("https://shop.example", "", ["--webhook-secret-file", "binary"], "it is not text"),
    ],
)
def test_wrong_webhook_settings(  # noqa: PLR0917 - a table of cases
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    url: str,
    secret: str,
    options: list[str],
    message: str,
) -> None:
    """A bad webhook is status 2 before the server starts, and no secret is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOUCAM_WEBHOOK_SECRET", secret)
    (tmp_path / "binary").write_bytes(b"s3cret\xff")

    assert 2 == cli.main(["sandbox", "--webhook-url", url, *options])
    err = capsys.readouterr().err
    assert message in " ".join(err.split())
    assert "s3cret" not in err


def test_a_host_of_the_sandbox_that_is_not_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is not found is said to be one: its number has no text."""

    def create_server(address: tuple[str, int]) -> NoReturn:
        text = f"Name or service not known (while attempting to bind on address {address!r})"
        raise OSError(-2, text)

    monkeypatch.setattr(socket, "create_server", create_server)

    assert 2 == cli.main(["sandbox", "--host", "no.invalid"])
    assert (
        "perfect-async: cannot listen on no.invalid port 8787: Name or service not known.\n"
    ) == capsys.readouterr().err


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
    monkeypatch.setattr(_runner, "run", virtual_time.run)

    assert 0 == cli.main(["demo"])
    out, err = capsys.readouterr()
    places = [Path(line) for line in out.splitlines()]
    assert "Open the report in a browser: perfect-async-demo/report.html" in err
    assert [Path("perfect-async-demo", "report.html"), True] == [
        places[0],
        all(place.exists() for place in places),
    ]
    assert "24 done, 0 failed, 24 units" in err

    assert 1 == cli.main(["demo", "--fail", "0.05", "--out", "other"])
    assert "23 done, 1 failed, 23 units" in capsys.readouterr().err

    assert 0 == cli.main(["demo", "in", "--out", "own"])
    assert "3 done, 0 failed, 3 units" in capsys.readouterr().err
