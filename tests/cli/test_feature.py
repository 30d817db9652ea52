"""The command `feature`: what the command line says is what is sent, and what comes is saved."""

import asyncio
import json
from pathlib import Path

import pytest
from PIL import Image

from perfect_async import cli
from perfect_async.cli import _prepare
from tests.support.terminal import advance_start, use_sandbox

MP = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
RING = {
    "source_info": {"name": {"$input": "src"}},
    "object_infos": [
        {"name": {"$input": "ref", "index": 0}, "parameter": {"ring_wearing_finger": 1}}
    ],
}


def test_an_analysis(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """Parameters are JSON where they can be, else text; files and scores are saved."""
    sandbox = use_sandbox(monkeypatch)
    arguments = ["--param", 'dst_actions=["acne"]', "--param", "format=json", "--src", "in/0.jpg"]
    status = cli.main(["feature", "skin-analysis", *arguments, "--api-version", "v2.1"])
    out, err = capsys.readouterr()

    assert 0 == status
    assert [".png", ".json"] == [Path(line).suffix for line in out.splitlines()]
    assert "acne" == json.loads(Path(out.splitlines()[1]).read_text("utf-8"))["output"][0]["type"]
    assert "1 done, 0 failed" in err
    assert ["skin-analysis@v2.1"] == [task.feature for task in sandbox.ledger.tasks]
    assert folder.is_dir()


def test_a_picture_is_made_to_fit(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """With `--fit` a picture on its side is turned, and the summary says so."""
    use_sandbox(monkeypatch)
    picture = folder / "in" / "0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(picture) as image:
        image.save(picture, exif=exif)
    assert 0 == cli.main(["feature", "skin-tone-analysis", "--src", "in/0.jpg", "--fit"])

    assert "1 made to fit" in capsys.readouterr().err


def test_several_inputs(folder: Path, monkeypatch: MP) -> None:
    """Names with brackets make lists, and placeholders are objects of JSON."""
    sandbox = use_sandbox(monkeypatch)
    params = [f"--param={name}={json.dumps(value)}" for name, value in RING.items()]
    status = cli.main(
        ["feature", "2d-vto/ring", *params, "--src", "in/0.jpg", "--input", "ref[]=in/1.jpg"]
    )

    assert 0 == status
    assert [] == sandbox.ledger.violations
    assert 2 == sandbox.ledger.requests["upload"]
    assert folder.is_dir()


def test_a_mask_and_references(folder: Path, monkeypatch: MP) -> None:
    """A mask, one reference and several have options of their own; an id is not uploaded."""
    sandbox = use_sandbox(monkeypatch)
    statuses = [cli.main(["feature", "generative-fill", "--src", "in/0.jpg", "--mask", "in/1.jpg"])]
    used = f"file:{sandbox.ledger.tasks[0].source}"
    params = [f"--param={name}={json.dumps(value)}" for name, value in RING.items()]
    for arguments in (
        [
            "cloth-v4",
            "--param=garment_category=auto",
            "--src",
            used,
            "--ref",
            "https://x.example/a",
        ],
        [
            *("2d-vto/ring", "--src", "in/0.jpg", "--ref", "in/1.jpg", "--ref", "in/2.jpg"),
            *("--input", "srcmsk=in/0.jpg", *params),
        ],
    ):
        advance_start(monkeypatch, 400)
        statuses.append(cli.main(["feature", *arguments]))

    assert [0, 0, 0] == statuses
    assert folder.is_dir()
    assert [] == sandbox.ledger.violations


def test_without_an_input(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """A feature may be made of words alone; its report names the feature."""
    use_sandbox(monkeypatch)
    words = ["--param", "model=youcam-image-v2", "--param", "prompt=a fox, 3 cats"]
    status = cli.main(["feature", "text-to-image/youcam", *words, "--json"])
    [line] = capsys.readouterr().out.splitlines()

    assert 0 == status
    assert "text-to-image/youcam" == json.loads(line)["source"]
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["../credit"], "not the path of a feature"),
        (["task/delete"], "another of the vendor's calls"),
        (["a", "--api-version", "v3"], "one of v2.0, v2.1"),
        (["a", "--param", "x"], "--param is 'x'; it must be NAME=VALUE"),
        (["a", "--param", "x=1", "--param", "x=2"], "is no single value"),
        (["a", "--input", "x"], "it must be NAME=FILE"),
        (["a", "--input", "x=1", "--input", "x=2"], "named twice: use x[]=FILE"),
        (["a", "--input", "version=1"], "cannot have the name 'version'"),
        (["a", "--input", "Big=1"], "not the name of an input"),
        (["https://x/s2s/v2.1/task/hat"], "pass what stands behind /task/, 'hat'."),
        (["a", "--mask", ""], "--mask is ''; it must be a file, a URL, or file: and an id."),
        (["a", "--src", "file:"], "--src is 'file:'; it must be a file"),
        (["a", "--input", "x[]="], "--input x is ''; it must be a file"),
        (["a", "--max-units", "3"], "--max-units needs --units: the price of 'a' is on"),
        (["a", "--units", "-1"], "whole number from 0"),
    ],
)
def test_refused(
    folder: Path, monkeypatch: MP, capsys: Capture, arguments: list[str], message: str
) -> None:
    """What cannot be sent is a mistake of the command line, and sends nothing."""
    sandbox = use_sandbox(monkeypatch)

    assert 2 == cli.main(["feature", *arguments])
    assert message in capsys.readouterr().err
    assert 0 == sandbox.ledger.requests.total()
    assert not (folder / "perfect-async-out").exists()


def test_a_limit_and_a_price(folder: Path, monkeypatch: MP) -> None:
    """With the price a limit can be kept."""
    sandbox = use_sandbox(monkeypatch)
    arguments = ["feature", "skin-tone-analysis", "--src", "in/0.jpg", "--max-units", "30"]

    assert 0 == cli.main([*arguments, "--units", "20", "--insured", "60"])
    assert 1 == len(sandbox.ledger.tasks)
    assert folder.is_dir()


def test_wrong_json_is_sent_as_text(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """A value that looks like JSON and is none is sent as text, and that is said."""
    use_sandbox(monkeypatch)

    assert 1 == cli.main(["feature", "skin-analysis", "--src", "in/0.jpg", "--param", "a=[x]"])
    assert (
        "perfect-async: --param a is sent as text, since '[x]' is no JSON: put JSON into single "
        "quotes.\n"
    ) in capsys.readouterr().err
    assert folder.is_dir()


def test_an_unknown_feature(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """A path that the vendor does not know is said to be one."""
    use_sandbox(monkeypatch)

    assert 1 == cli.main(["feature", "skin-analisis", "--src", "in/0.jpg"])
    err = capsys.readouterr().err
    assert "the vendor does not know the address of the request (404 Not Found)." in err
    assert "compare the feature's path and --api-version with its page" in err
    assert folder.is_dir()


# Before, while and after it runs: as `smile`.


def test_the_plan(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """The command says what it sends and what that costs, before it is sent."""
    use_sandbox(monkeypatch)
    arguments = ["feature", "skin-tone-analysis", "--src", "in/0.jpg", "--units", "20"]

    assert 0 == cli.main([*arguments, "--max-units", "30", "-v"])
    err = capsys.readouterr().err
    assert "1 to send, 20 units of a balance of 1000.\n" in err
    assert "done: in/0.jpg (" in err
    assert "debug: POST /s2s/v2.0/task/skin-tone-analysis 200 in " in err
    assert "1 done, 0 failed, 20 units, in 0:" in err
    assert folder.is_dir()


def test_quiet(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """With `--quiet` only the paths of the results are printed."""
    use_sandbox(monkeypatch)

    assert 0 == cli.main(["feature", "skin-tone-analysis", "--src", "in/0.jpg", "-q"])
    out, err = capsys.readouterr()
    assert [".json"] == [Path(line).suffix for line in out.splitlines()]
    assert "" == err
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("price", "asks", "said"),
    [
        ([], True, "at an unknown price (its page names it, and --units passes it on) of a "),
        (["--units", "20"], True, "1 to send, 20 units of a balance of 1000."),
        (["--units", "19"], False, "1 to send, 19 units of a balance of 1000."),
        (["-y"], False, "at an unknown price"),
    ],
)
def test_the_question(  # noqa: PLR0917 - a table of cases
    folder: Path,
    monkeypatch: MP,
    capsys: Capture,
    price: list[str],
    asks: bool,
    said: str,
) -> None:
    """On a terminal it asks from 20 units on and where the price is unknown; no sends nothing."""
    sandbox = use_sandbox(monkeypatch)
    asked: list[str] = []

    async def answer() -> str:
        await asyncio.sleep(0)
        asked.append("n")
        return "n"

    monkeypatch.setattr(_prepare, "_answer", answer)
    monkeypatch.setattr(_prepare, "is_interactive", lambda: True)

    status = cli.main(["feature", "skin-tone-analysis", "--src", "in/0.jpg", *price])
    err = capsys.readouterr().err
    assert (asks, int(asks)) == (bool(asked), status)
    assert said in err
    assert asks is ("Nothing was sent." in err)
    assert asks is (not sandbox.ledger.tasks)
    assert folder.is_dir()


def test_a_dry_run(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """A dry run says what would be sent, writes nothing, and works without a key."""
    arguments = ["feature", "hat", "--src", "in/0.jpg", "--dry-run", "--units", "2"]
    monkeypatch.delenv("YOUCAM_API_KEY", raising=False)
    assert 0 == cli.main(arguments)
    err = capsys.readouterr().err
    assert "1 to send, 2 units (balance unknown).\nThis was a dry run: nothing was sent.\n" in err

    sandbox = use_sandbox(monkeypatch)
    assert 0 == cli.main([*arguments, "--report", "report.html"])
    assert "1 to send, 2 units of a balance of 1000." in capsys.readouterr().err
    assert () == sandbox.ledger.tasks
    assert ["in"] == [path.name for path in folder.iterdir()]


def test_an_input_that_cannot_be_sent(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """An input that cannot be sent is named before anything is sent: status 1."""
    sandbox = use_sandbox(monkeypatch)
    (folder / "empty.jpg").touch()
    arguments = ["feature", "2d-vto/ring", "--src", "in/0.jpg", "--ref", "empty.jpg"]

    assert 1 == cli.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert "cannot be sent: 'empty.jpg' is empty. Nothing was sent; use another picture.\n" in err
    assert "1 that cannot be sent: nothing to buy." in err
    assert "0 bytes" not in err
    assert json.loads(out)["ok"] is False
    assert 0 == sandbox.ledger.requests.total()


def test_a_report(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """The report has the job; one that cannot be written is refused before anything is sent."""
    sandbox = use_sandbox(monkeypatch)
    arguments = ["feature", "skin-tone-analysis", "--src", "in/0.jpg", "--report"]

    assert 2 == cli.main([*arguments, "nowhere/report.html"])
    assert 0 == sandbox.ledger.requests.total()
    assert 0 == cli.main([*arguments, "report.csv"])
    assert "The report: report.csv" in capsys.readouterr().err
    assert "in/0.jpg" in (folder / "report.csv").read_text("utf-8")
