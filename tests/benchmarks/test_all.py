"""All benchmarks at once: their commands, their results, and the page that shows them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks import policies, webhooks
from benchmarks.all import (
    BENCHMARKS,
    NOT_RUN,
    README,
    SCHEDULER,
    Benchmark,
    last_results,
    main,
    perform,
    shown_on,
    written,
)
from tests.docs.test_readme import blocks

TEXT = README.read_text("utf-8")
MARKED = dict(re.findall(r"<!-- ([\w-]+) -->\n(.*?)<!-- end -->", TEXT, re.DOTALL))


def test_the_readme_has_a_table_of_each_benchmark() -> None:
    """Between the markers of a benchmark is its last result, and nothing else."""
    assert [each.name for each in BENCHMARKS] == list(MARKED) == list(last_results())
    assert TEXT == written(TEXT, last_results())


def test_the_scheduler_shows_the_last_results() -> None:
    """Its page has the same tables as this one."""
    page = SCHEDULER.read_text("utf-8")
    shown = shown_on(page, last_results())
    assert ["webhooks", "table", "insured"] == list(shown)
    assert page == written(page, shown)


def test_every_table_has_its_command_and_its_time() -> None:
    """The first line says how it was made, the last one how long that took."""
    ran = {name: text for name, text in last_results().items() if NOT_RUN not in text}
    assert "policies" in ran
    for name, text in ran.items():
        first, *table, last = text.strip().splitlines()
        [benchmark] = [each for each in BENCHMARKS if each.name == name]
        assert first.startswith(f"$ python benchmarks/{benchmark.script}"), name
        assert re.fullmatch(r"\(\d+ s in all\)", last), name
        assert len(table) > 1, name


def test_the_tables_have_a_row_for_each_way() -> None:
    """Each policy and each way to hear of an end is in each table, in their order."""
    for name, head, width, rows in (
        ("policies", policies.HEAD, 34, [each.name for each in policies.POLICIES]),
        ("webhooks", webhooks.HEAD, 20, [each.name for each in webhooks.WAYS]),
    ):
        for table in last_results()[name].split(head)[1:]:
            lines = table.strip("\n").partition("\n\n")[0].splitlines()
            assert rows == [line[:width].rstrip() for line in lines], name


def test_no_block_of_the_readme_is_of_another_kind() -> None:
    """Commands and tables; the tables are those of the markers."""
    found = blocks("benchmarks/README.md")

    assert {"console", "text"} == {block.language for block in found}
    assert [block.text.strip() for block in found if block.language == "text"] == [
        text.removeprefix("```text\n").removesuffix("```\n").strip() for text in MARKED.values()
    ]


def test_the_commands_of_the_readme_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each console line is a call that the script understands."""
    performed: list[str] = []

    def perform(benchmark: Benchmark, *, quick: bool) -> int:
        performed.append(benchmark.name)
        return 0

    monkeypatch.setattr(everything, "perform", perform)
    lines = [
        line
        for block in blocks("benchmarks/README.md")
        if block.language == "console"
        for line in block.text.splitlines()
    ]
    for line in lines:
        python, script, *arguments = shlex.split(line)
        assert ("python", "benchmarks/all.py") == (python, script)
        assert 0 == main([word for word in arguments if word != "--write"])

    assert performed == [*[each.name for each in BENCHMARKS] * 2, "policies", "webhooks"]


@pytest.mark.long
@pytest.mark.parametrize("script", sorted({each.script for each in BENCHMARKS} - {"months.py"}))
def test_every_script_takes_its_options(script: str) -> None:
    """`--help` names the options that a run of all passes."""
    told = subprocess.run(
        [sys.executable, str(README.parent / script), "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for benchmark in BENCHMARKS:
        if benchmark.script == script:
            words = [*benchmark.command(quick=True), *benchmark.command(quick=False)]
            options = [word for word in words if word.startswith("--")]
            assert [] == [option for option in options if option not in told]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two scripts, of which one fails."""
    (tmp_path / "benchmarks").mkdir()
    script = "import sys\nprint('a table of', *sys.argv[1:])\nsys.exit(sys.argv[1] == 'wrong')\n"
    (tmp_path / "benchmarks" / "a.py").write_text(script)
    monkeypatch.setattr(everything, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(everything, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(everything, "README", tmp_path / "README.md")
    monkeypatch.setattr(everything, "SCHEDULER", tmp_path / "SCHEDULER.md")
    return tmp_path


@pytest.mark.parametrize(("quick", "arguments"), [(True, "few"), (False, "many --out ")])
def test_a_result_is_kept(here: Path, quick: bool, arguments: str) -> None:
    """The command, what it printed, and the time."""
    benchmark = Benchmark("one", "a.py", ("many",), ("few",), None if quick else "--out")

    assert 0 == perform(benchmark, quick=quick)

    command, table, took = (here / "results" / "one.txt").read_text().splitlines()
    assert command.startswith(f"$ python benchmarks/a.py {arguments}".rstrip())
    assert table.startswith(f"a table of {arguments}".rstrip())
    assert re.fullmatch(r"\(\d+ s in all\)", took)


def test_a_benchmark_that_fails_is_told(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its exit status comes back, and what it printed is kept all the same."""
    assert 1 == perform(Benchmark("bad", "a.py", ("wrong",)), quick=False)
    assert "exit status 1" in capfd.readouterr().out
    assert (here / "results" / "bad.txt").exists()


def test_results_go_between_their_markers() -> None:
    """Other text stays, backslashes too, and a benchmark without a place is an error."""
    before = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"

    after = written(before, {"one": r"new \1" + "\n"})

    assert "a\n<!-- one -->\n```text\nnew \\1\n```\n<!-- end -->\nb" in after
    assert after.endswith("<!-- two -->\n<!-- end -->\n")
    assert after == written(after, {"one": r"new \1"})
    with pytest.raises(ValueError, match="three"):
        written(before, {"three": ""})


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing runs."""
    with pytest.raises(SystemExit):
        main(["polices"])
    assert "'polices' is none of policies, webhooks" in capsys.readouterr().err


def test_the_last_results_are_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without running anything; what has not run yet says so."""
    (here / "results").mkdir()
    (here / "results" / "latency.txt").write_text("a table\n")
    places = "".join(f"<!-- {each.name} -->\n<!-- end -->\n" for each in BENCHMARKS)
    (here / "README.md").write_text(places)
    (here / "SCHEDULER.md").write_text("# One\n<!-- latency -->\n<!-- end -->\n")
    monkeypatch.setattr(everything, "perform", None)

    assert 0 == main(["--last", "--write"])

    text = (here / "README.md").read_text()
    assert "<!-- latency -->\n```text\na table\n```\n<!-- end -->\n" in text
    assert f"$ python benchmarks/all.py table\n{NOT_RUN}\n" in text
    assert len(BENCHMARKS) - 1 == text.count(NOT_RUN)
    page = "# One\n<!-- latency -->\n```text\na table\n```\n<!-- end -->\n"
    assert page == (here / "SCHEDULER.md").read_text()
