"""The command `feature`: what the command line says is what is sent, and what comes is saved."""

import json
from pathlib import Path

import pytest
from PIL import Image

from perfect_async import cli
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


def test_an_unknown_price(folder: Path, monkeypatch: MP, capsys: Capture) -> None:
    """A limit needs the price; the message names the option."""
    use_sandbox(monkeypatch)
    arguments = ["feature", "skin-tone-analysis", "--src", "in/0.jpg", "--max-units", "30"]

    assert 1 == cli.main(arguments)
    assert "pass --units" in capsys.readouterr().err
    assert 0 == cli.main([*arguments, "--units", "20", "--insured", "60"])
    assert folder.is_dir()
