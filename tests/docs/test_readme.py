"""The README runs: each block against the sandbox, in virtual time, and each command exists.

`python -m tests.docs.test_readme` prints the state diagram that the README must hold.
"""

import ast
import asyncio
import inspect
import re
import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import attrs
import certifi
import httpx
import pytest

import perfect_async
from perfect_async import Client
from perfect_async.sandbox import Faults, Sandbox, portrait
from perfect_async.scheduler._job import TRANSITIONS, JobState
from tests.support.virtual_time import VirtualTimeLoop, run

T = TypeVar("T")

pytest_plugins = ["perfect_async.pytest_plugin"]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Whatever else a fence may say would be a block that no test reads.
LANGUAGES = {"console", "mermaid", "python", "text"}

COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -e '.[demo]' && .venv/bin/perfect-async demo",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest",
)


@attrs.frozen
class Block:
    """One fenced block: where its text begins, under which heading, in which language."""

    line: int
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{re.sub(r'[^a-z]+', '-', self.heading.lower()).strip('-')}-{self.line}"


def blocks(text: str = README) -> list[Block]:
    found: list[Block] = []
    heading, fence, lines, begins = "", None, list[str](), 0
    for number, line in enumerate(text.splitlines(), 1):
        if fence is not None:
            if line.startswith("```"):
                found.append(Block(begins, heading, fence, "\n".join(lines) + "\n"))
                fence = None
            else:
                lines.append(line)
        elif line.lstrip().startswith(("```", "~~~")):
            fence, lines, begins = line.removeprefix("```"), [], number + 1
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert fence is None, "the last block never ends"
    return found


def of(language: str) -> list[Block]:
    return [block for block in blocks() if block.language == language]


# The state diagram.


def diagram() -> str:
    """The job's life as a mermaid state diagram, drawn from the table that the scheduler obeys."""
    causes: dict[tuple[JobState, JobState], list[str]] = {}
    for (before, cause), after in TRANSITIONS.items():
        for state in JobState:
            if state in after:
                causes.setdefault((before, state), []).append(cause.__name__)
    lines = ["stateDiagram-v2", "    [*] --> WAITING: a picture of yours"]
    lines.append("    [*] --> READY: a URL or a FileId")
    lines.append("    [*] --> ADOPTED: a task that exists")
    lines += [
        f"    {before.name} --> {after.name}: {', '.join(names)}"
        for (before, after), names in causes.items()
    ]
    lines.append("    SETTLED --> [*]")
    return "\n".join(lines) + "\n"


def test_the_diagram_is_the_table() -> None:
    """The README draws the states that the code has, and no others."""
    assert [diagram()] == [block.text for block in of("mermaid")]


# The program blocks.


@pytest.fixture
def sandbox() -> Sandbox:
    faults = Faults(by_picture={"no-face.jpg": "error_no_face"})
    return Sandbox(seed=1, latency=0.15, units=10_000, faults=faults)


@pytest.fixture
def names(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    sandbox: Sandbox,
    youcam_client: Client,
    youcam_sandbox: Sandbox,
) -> dict[str, object]:
    """What the README says a block may use; all its clients reach the sandbox."""

    class SandboxClient(Client):
        def __init__(
            self,
            *args: Any,  # noqa: ANN401 - whatever the README gives
            transport: httpx.AsyncBaseTransport | None = None,
            **settings: Any,  # noqa: ANN401
        ) -> None:
            # A sandbox of the block's own stays; a proxy that is nowhere does not.
            if transport is None or isinstance(transport, httpx.AsyncHTTPTransport):
                transport = sandbox.transport()
            super().__init__(*args, transport=transport, **settings)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOUCAM_API_KEY", "a-key")
    monkeypatch.delenv("YOUCAM_BASE_URL", raising=False)
    monkeypatch.setattr(perfect_async, "Client", SandboxClient)
    monkeypatch.setattr(asyncio, "run", in_virtual_time)
    shutil.copy(certifi.where(), "company-ca.pem")
    Path("selfie.jpg").write_bytes(portrait(0))
    Path("no-face.jpg").write_bytes(portrait(1))
    Path("photos").mkdir()
    for number in range(1, 6):
        Path(f"photos/{number}.jpg").write_bytes(portrait(number))
    shutil.copy("no-face.jpg", "photos/no-face.jpg")
    Path("photos/notes.jpg").write_text("not a picture")
    photos = sorted(Path("photos").iterdir())
    # Libraries look up the module of a function that they decorate.
    monkeypatch.setitem(sys.modules, "readme", ModuleType("readme"))
    public = {name: getattr(perfect_async, name) for name in perfect_async.__all__}
    fixtures = {"youcam_client": youcam_client, "youcam_sandbox": youcam_sandbox}
    return {**public, **fixtures, "photos": photos, "__name__": "readme"}


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def execute(block: Block, names: dict[str, object]) -> None:
    """Run a block: a program as it is, a piece inside an open client, a test by calling it."""
    # Its lines have the README's numbers in tracebacks.
    source = "\n" * (block.line - 1) + block.text
    code = compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if "asyncio.run(" in block.text:
        exec(code, names)
        return

    async def piece() -> None:
        async with perfect_async.Client() as client:
            names["client"] = client
            before = set(names)
            # A code object with an await in it gives a coroutine, one without is done at once.
            left = eval(code, names)
            if inspect.iscoroutine(left):
                await left
            for name in sorted(set(names) - before):
                if name.startswith("test_"):
                    test = cast("Callable[..., Awaitable[object]]", names[name])
                    await test(**{each: names[each] for each in inspect.signature(test).parameters})

    run(piece)


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_the_block_runs(block: Block, names: dict[str, object], sandbox: Sandbox) -> None:
    """It does what it says, and the vendor has nothing to complain about."""
    execute(block, names)

    assert [] == sandbox.ledger.violations
    assert 0 == sandbox.ledger.refused.total()
    assert 0 == sandbox.ledger.units_wasted


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_the_block_leaves_nothing_uncalled(block: Block) -> None:
    """A function that a block defines is used in it, or is a test: no line is left out."""
    tree = ast.parse(block.text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    made = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert set() == {name for name in made - used if not name.startswith("test_")}


def test_a_broken_block_fails(names: dict[str, object]) -> None:
    """The harness runs what it is given, to the last line, awaits and tests included."""
    for text in (
        "import asyncio\nasyncio.run(asyncio.sleep(0))\n1 / 0\n",
        "await client.units()\n1 / 0\n",
        "1 / 0\n",
        "async def test_it():\n    1 / 0\n",
    ):
        with pytest.raises(ZeroDivisionError):
            execute(Block(1, "", "python", text), dict(names))


def test_a_block_meets_the_sandbox(names: dict[str, object], sandbox: Sandbox) -> None:
    """The README's first program reaches the sandbox and leaves the picture that it names."""
    execute(of("python")[0], names)

    assert 1 == sandbox.ledger.tasks_by_state["success"]
    assert Path("smiling.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    """No block hides behind a language that no test looks at."""
    assert LANGUAGES == {block.language for block in blocks()}
    assert README.count("```") == 2 * len(blocks())


# The commands.


def test_the_two_commands() -> None:
    """Each is one line that can be copied."""
    lines = [line for block in of("console") for line in block.text.splitlines()]

    assert [] == [command for command in COMMANDS if command not in lines]


def words() -> list[list[str]]:
    """Every call of `perfect-async` in the README, from its command on."""
    lines = [line for block in of("console") for line in block.text.splitlines()]
    found: list[list[str]] = []
    for line in lines:
        split = shlex.split(line)
        ours = [at for at, word in enumerate(split) if Path(word).name == "perfect-async"]
        found += [split[at + 1 :] for at in ours]
    return found


@pytest.mark.parametrize("call", words(), ids=" ".join)
def test_the_commands_exist(call: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal program knows each command and each option that the README shows."""
    from perfect_async.cli import main

    command, *rest = call

    status = main([command, "--help"])

    told = capsys.readouterr().out
    assert 0 == status
    assert [] == [word for word in rest if word.startswith("--") and word not in told]


def test_every_command_is_told() -> None:
    """The README shows each command of the terminal program."""
    told = {call[0] for call in words()}

    assert {
        *("avatar", "demo", "doctor", "enqueue", "feature", "forget", "report", "resume"),
        *("sandbox", "smile"),
        *("templates", "units", "worker"),
    } == told


# Names and links.


def test_every_error_is_told() -> None:
    """The README's tree of errors is the code's."""
    [tree] = [block.text for block in of("text") if block.text.startswith("PerfectError")]
    drawn = re.findall(r"^[│├└─ ]*(\w+)", tree, re.MULTILINE)
    ours = [
        name
        for name in perfect_async.__all__
        if issubclass(type(thing := getattr(perfect_async, name)), type)
        and issubclass(thing, perfect_async.PerfectError)
    ]

    assert sorted(ours) == sorted(drawn)


def test_links_lead_somewhere() -> None:
    """Links point at headings and files that are there, and so do the programs named."""
    anchors = {
        "#" + re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    targets = re.findall(r"\]\(([^)]+)\)", README)
    targets += re.findall(r"`python (\S+\.py)`", README)

    assert targets
    assert [] == [
        target for target in targets if target not in anchors and not (ROOT / target).exists()
    ]


if __name__ == "__main__":
    print(diagram(), end="")
