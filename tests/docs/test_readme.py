"""All READMEs run: each block against the sandbox, in virtual time, and each command exists.

`python -m tests.docs.test_readme` prints the state diagram that the scheduler's README must hold.
"""

import ast
import asyncio
import inspect
import json
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
from fastapi import FastAPI
from fastapi.routing import APIRoute

import perfect_async
from perfect_async import Client
from perfect_async.sandbox import Faults, Sandbox, portrait
from perfect_async.scheduler._job import TRANSITIONS, JobState
from tests.support.virtual_time import VirtualTimeLoop, run

T = TypeVar("T")

pytest_plugins = ["perfect_async.pytest_plugin"]

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "examples", "perfect_async")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md")),
    )
}
FIRST = "README.md"
SCHEDULER = "perfect_async/scheduler/README.md"

# Whatever else a fence may say would be a block that no test reads.
LANGUAGES = {"console", "json", "mermaid", "python", "text"}

COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -e '.[demo]' && .venv/bin/perfect-async demo",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest",
)


@attrs.frozen
class Block:
    """One fenced block: on which page and line, under which heading, in which language."""

    page: str
    line: int
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        heading = re.sub(r"[^a-z]+", "-", self.heading.lower()).strip("-")
        return f"{self.page}:{self.line}-{heading}"


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = PAGES[page]
    found: list[Block] = []
    heading, fence, lines, begins = "", None, list[str](), 0
    for number, line in enumerate(text.splitlines(), 1):
        if fence is not None:
            if line.startswith("```"):
                found.append(Block(page, begins, heading, fence, "\n".join(lines) + "\n"))
                fence = None
            else:
                lines.append(line)
        elif line.lstrip().startswith(("```", "~~~")):
            fence, lines, begins = line.removeprefix("```"), [], number + 1
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert fence is None, f"the last block of {page} never ends"
    return found


def of(language: str, *pages: str) -> list[Block]:
    """Return the blocks in a language, of some pages or of all."""
    found = [block for page in pages or PAGES for block in blocks(page)]
    return [block for block in found if block.language == language]


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
    """The scheduler's README draws the states that the code has, and no others."""
    assert [diagram()] == [block.text for block in of("mermaid", SCHEDULER)]


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
    """What a README says a block may use; all its clients reach the sandbox."""

    class SandboxClient(Client):
        def __init__(
            self,
            *args: Any,  # noqa: ANN401 - whatever a README gives
            transport: httpx.AsyncBaseTransport | None = None,
            share: object = None,  # there is no Redis here
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
    # Its lines have the page's numbers in tracebacks.
    source = "\n" * (block.line - 1) + block.text
    code = compile(source, block.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
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
            if isinstance(app := names.get("app"), FastAPI):
                await serve(app)

    run(piece)


async def serve(app: FastAPI) -> None:
    """Send portraits and a text to the app's one route, as a browser would."""
    [path] = [each.path for each in app.routes if isinstance(each, APIRoute)]
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app.example") as browser,
    ):
        good = [await browser.post(path, content=portrait(number)) for number in range(8)]
        bad = await browser.post(path, content=b"not a picture")
    # The vendor sends JPEGs and PNGs.
    types = {each.content[:4]: each.headers["content-type"] for each in good}
    assert {b"\xff\xd8\xff\xe0": "image/jpeg", b"\x89PNG": "image/png"} == types
    assert 422 == bad.status_code


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_the_block_runs(block: Block, names: dict[str, object], sandbox: Sandbox) -> None:
    """It does what it says, and the vendor has nothing to complain about."""
    execute(block, names)

    assert [] == sandbox.ledger.violations
    assert 0 == sandbox.ledger.refused.total()
    assert 0 == sandbox.ledger.units_wasted


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_the_block_leaves_nothing_uncalled(block: Block) -> None:
    """A function that a block defines is used in it, a test or a route: no line is left out."""
    tree = ast.parse(block.text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    made = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(ast.unparse(each).startswith("app.") for each in node.decorator_list)
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
            execute(Block("", 1, "", "python", text), dict(names))


def test_a_block_meets_the_sandbox(names: dict[str, object], sandbox: Sandbox) -> None:
    """The first program reaches the sandbox and leaves the picture that it names."""
    execute(of("python", FIRST)[0], names)

    assert 1 == sandbox.ledger.tasks_by_state["success"]
    assert Path("smiling.jpg").read_bytes().startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_tested(page: str) -> None:
    """No block hides behind a language that no test looks at."""
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert PAGES[page].count("```") == 2 * len(blocks(page))


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_the_example_is_json(block: Block) -> None:
    """An example of answers holds JSON documents, one after another."""
    rest, found = block.text.strip(), []
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()

    assert found
    assert all(isinstance(document, dict) for document in found)


# The commands.


def test_the_two_commands() -> None:
    """Each is one line of the first page that can be copied."""
    lines = [line for block in of("console", FIRST) for line in block.text.splitlines()]

    assert [] == [command for command in COMMANDS if command not in lines]


def words() -> list[list[str]]:
    """Every call of `perfect-async` on the pages, from its command on."""
    lines = [line for block in of("console") for line in block.text.splitlines()]
    found: list[list[str]] = []
    for line in lines:
        split = shlex.split(line)
        ours = [at for at, word in enumerate(split) if Path(word).name == "perfect-async"]
        found += [split[at + 1 :] for at in ours]
    return found


@pytest.mark.parametrize("call", [*map(list, dict.fromkeys(map(tuple, words())))], ids=" ".join)
def test_the_commands_exist(call: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal program knows each command and each option that a README shows."""
    from perfect_async.cli import main

    command, *rest = call

    status = main([command, "--help"])

    told = capsys.readouterr().out
    assert 0 == status
    assert [] == [word for word in rest if word.startswith("--") and word not in told]


def test_every_command_is_told() -> None:
    """The READMEs show each command of the terminal program."""
    told = {call[0] for call in words()}

    assert {
        *("avatar", "demo", "doctor", "enqueue", "feature", "forget", "report", "resume"),
        *("sandbox", "smile"),
        *("templates", "units", "worker"),
    } == told


# Names and links.


def test_every_error_is_told() -> None:
    """The tree of errors on the package's page is the code's."""
    trees = [block.text for block in of("text") if block.text.startswith("PerfectError")]
    drawn = [re.findall(r"^[│├└─ ]*(\w+)", tree, re.MULTILINE) for tree in trees]
    ours = [
        name
        for name in perfect_async.__all__
        if issubclass(type(thing := getattr(perfect_async, name)), type)
        and issubclass(thing, perfect_async.PerfectError)
    ]

    assert [sorted(ours)] == [sorted(names) for names in drawn]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", each.lower()).replace(" ", "-") for each in headings}


def leads(page: str, target: str) -> bool:
    """Whether a link of a page leads to a file that is there, and to a heading of it."""
    if target.startswith("https://"):
        return True
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    found = path / "README.md" if path.is_dir() and anchor else path
    return found.exists() and (not anchor or anchor in anchors(found.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Links point at headings and files that are there, and so do the programs named."""
    targets = re.findall(r"\]\(([^)]+)\)", PAGES[page])
    programs = re.findall(r"\bpython (\S+\.py)\b", PAGES[page])

    assert [] == [target for target in targets if not leads(page, target)]
    assert [] == [program for program in programs if not (ROOT / program).exists()]


@pytest.mark.parametrize(
    ("leads_there", "target"),
    [
        (True, "#install"),
        (True, "LICENSE"),
        (False, "#nowhere"),
        (False, "perfect_async/no.py"),
        (True, "perfect_async/README.md#errors"),
        (False, "perfect_async/README.md#nowhere"),
    ],
)
def test_a_broken_link_is_found(leads_there: bool, target: str) -> None:
    """A link to a missing file or heading is reported."""
    assert leads_there == leads(FIRST, target)


def test_every_page_is_linked() -> None:
    """A reader reaches every page from the first one, in one step."""
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", PAGES[FIRST])}
    folders = {f"{name}/README.md" for name in linked}

    assert set() == PAGES.keys() - linked - folders - {FIRST}


if __name__ == "__main__":
    print(diagram(), end="")
