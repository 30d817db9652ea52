"""The plan of the house, held against the source: who may import whom, and what is where.

`python -m tests.test_house FLOOR` prints the files of a floor, comma-separated, for the gate.
"""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "perfect_async"

# From the ground up. A file imports from its own floor and from those before it.
FLOORS = {
    "words": {"errors", "events", "models", "reports"},
    "thought": {
        *("_urls", "_reply", "_wire", "_enquiries"),
        *(
            "_network",
            "_allowance",
            "_second",
            "_account",
            "_phases",
            "_timetable",
            "_pace",
            "_jobs",
            "_spending",
            "_evidence",
            "_admission",
            "_preparation",
            "_questions",
            "_repolls",
            "_keeping",
            "_endings",
            "_reasons",
            "_book",
            "_notices",
            "_memory",
            "_doubt",
        ),
        "scheduler",
    },
    "hands": {
        *("_quiet", "_streams", "_transport", "_names", "_pictures"),
        *("_journal", "_scribe", "_errand", "_records", "_creation", "_intake"),
        *("webhooks", "_ticket", "_failures", "_exchanges", "_watch", "_driver", "_keys"),
    },
    "door": {
        *(
            "__init__",
            "__main__",
            "_apart",
            "_batch",
            "_checks",
            "_client",
            "_custody",
            "_desk",
            "_home",
            "_isolated",
            "_leftovers",
            "_lookups",
            "_receiver",
            "_result",
        ),
        *("_sources", "_terminal", "_bulk", "_demo", "_program", "_commands", "cli"),
    },
}

# The vendor, rebuilt: it imports nothing of ours, so that a wrong key name cannot be wrong
# on both sides. Only the terminal program starts it.
NEIGHBOUR = "sandbox"
KNOWS_THE_NEIGHBOUR = {"_demo", "_commands"}

# One outside library, one file: a move to another library is a move of that file.
ONE_FILE = {
    "PIL": {"_demo", NEIGHBOUR},  # the demo's contact sheet
    "cattrs": {"_reply"},
    "cyclopts": {"cli"},
    "httpx": {"_transport", NEIGHBOUR},
    "imagesize": {"_pictures"},
    "rich": {"_terminal"},
    "sqlite3": {"_journal"},
    "standardwebhooks": {"webhooks"},
    "starlette": {NEIGHBOUR},
    "uvicorn": {NEIGHBOUR},
}

# Thought gets time, chance and identity as arguments, and waits for nothing.
NOT_IN_THOUGHT = {
    *("anyio", "asyncio", "concurrent", "multiprocessing", "threading"),
    *("http", "httpx", "os", "shutil", "socket", "sqlite3", "subprocess", "tempfile", "urllib"),
    *("random", "secrets", "time", "uuid"),
}
CLOCK_CALLS = {"now", "today", "utcnow"}

# Every task has an owner with a closing brace.
NO_STRAY_TASKS = {"create_task", "ensure_future", "run_coroutine_threadsafe"}

# Past this a file is a question to the design.
LONGEST = 400

TOP_LEVEL = {
    *("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"),
    *("benchmarks", "examples", "perfect_async", "tests"),
}


def modules() -> list[Path]:
    """Return our modules, without the neighbour's."""
    return sorted(PACKAGE.glob("*.py"))


def everything() -> list[Path]:
    """Return our modules and the neighbour's."""
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the name by which the tables above know a file of the package."""
    inside = path.relative_to(PACKAGE)
    return inside.stem if len(inside.parts) == 1 else inside.parts[0]


def parse(path: Path) -> ast.Module:
    """Read a file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports, absolute and as deep as it is written, wherever it stands.

    `from a import b` is `a.b`: whether b is a module does not matter here.
    """
    parents = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else list(parents[: len(parents) - node.level + 1])
            if node.module:
                base.append(node.module)
            yield from (".".join([*base, alias.name]) for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """Yield the stems of our modules that a file imports; a name of the package is `__init__`."""
    for name in imports(path):
        head, *rest = name.split(".")
        if head == PACKAGE.name:
            stem = rest[0] if rest else "__init__"
            known = (PACKAGE / stem).is_dir() or (PACKAGE / f"{stem}.py").is_file()
            yield stem if known else "__init__"


def floor_of(stem: str) -> int:
    """Return the floor a file stands on, 0 for the ground."""
    for number, stems in enumerate(FLOORS.values()):
        if stem in stems:
            return number
    return pytest.fail(f"{stem} stands on no floor: give it a room in tests/test_house.py")


def files_of(floor: str) -> list[str]:
    """Return the existing files of a floor, relative to the repository."""
    paths = (PACKAGE / f"{stem}.py" for stem in sorted(FLOORS[floor]))
    return [path.relative_to(ROOT).as_posix() for path in paths if path.exists()]


every_module = pytest.mark.parametrize("path", modules(), ids=room)
every_file = pytest.mark.parametrize(
    "path", everything(), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
every_thought = pytest.mark.parametrize(
    "path", [ROOT / name for name in files_of("thought")], ids=room
)


@every_module
def test_imports_point_up_the_list(path: Path) -> None:
    """A file imports only from its own floor and from those named before it."""
    floor = floor_of(path.stem)

    above = {
        stem
        for stem in own_imports(path)
        if stem not in {NEIGHBOUR, path.stem} and floor_of(stem) > floor
    }

    assert set() == above


def test_the_neighbour_imports_nothing_of_ours() -> None:
    """The sandbox knows only itself."""
    ours = {
        (path.name, stem)
        for path in everything()
        if room(path) == NEIGHBOUR
        for stem in own_imports(path)
        if stem != NEIGHBOUR
    }

    assert set() == ours


@every_module
def test_the_neighbour_is_not_needed(path: Path) -> None:
    """Only the terminal program imports the sandbox, and not before a command needs it."""
    knows = NEIGHBOUR in own_imports(path)
    at_the_top = {
        alias.name
        for node in parse(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in [*node.names, ast.alias(getattr(node, "module", None) or "")]
        if NEIGHBOUR in alias.name.split(".")
    }

    assert not knows or path.stem in KNOWS_THE_NEIGHBOUR
    assert set() == at_the_top


@every_file
def test_one_outside_library_one_file(path: Path) -> None:
    """Each outside library is imported only where the table says."""
    libraries = {name.split(".")[0] for name in imports(path)}

    astray = {
        library for library in libraries if room(path) not in ONE_FILE.get(library, {room(path)})
    }

    assert set() == astray


@every_thought
def test_thought_neither_waits_nor_looks_around(path: Path) -> None:
    """The thought floor has no await, and imports no clock, chance, identity or network."""
    waiting = (ast.Await, ast.AsyncFor, ast.AsyncFunctionDef, ast.AsyncWith)
    found = {
        f"line {node.lineno}: {type(node).__name__}"
        for node in ast.walk(parse(path))
        if isinstance(node, waiting)
    }
    found |= {name for name in imports(path) if name.split(".")[0] in NOT_IN_THOUGHT}
    found |= {
        f"line {node.lineno}: {node.func.attr}()"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CLOCK_CALLS
    }

    assert set() == found


@every_file
def test_no_stray_tasks(path: Path) -> None:
    """Nobody starts a task through asyncio: task groups do. (`group.create_task` is anyio's.)"""
    found = {name for name in imports(path) if name.split(".")[-1] in NO_STRAY_TASKS}
    found |= {
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute)
        and node.attr in NO_STRAY_TASKS
        and ast.unparse(node.value) == "asyncio"
    }

    assert set() == found


def test_one_host_task() -> None:
    """At most one place asks the loop for a task: the host in which a client's group lives."""
    hosts = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        for path in everything()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute)
        and node.attr == "create_task"
        and "loop" in ast.unparse(node.value)
    ]

    assert len(hosts) <= 1, hosts


@every_file
def test_files_are_short(path: Path) -> None:
    """A file past 400 lines wants to be two."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_public_names_are_sorted() -> None:
    """`__all__` is sorted and names nothing twice."""
    import perfect_async

    assert sorted(set(perfect_async.__all__)) == list(perfect_async.__all__)


def test_public_names_are_ours_and_documented() -> None:
    """What users import says `perfect_async.X` when printed, and has a docstring of its own."""
    import perfect_async

    public = {name: getattr(perfect_async, name) for name in perfect_async.__all__}
    things = {k: v for k, v in public.items() if inspect.isclass(v) or inspect.isfunction(v)}

    assert {} == {k: v.__module__ for k, v in things.items() if v.__module__ != "perfect_async"}
    assert [] == [k for k, v in things.items() if not own_docstring(v)]


def own_docstring(thing: object) -> bool:
    """Whether somebody wrote a docstring for just this thing; attrs writes none."""
    return bool(vars(thing).get("__doc__")) if inspect.isclass(thing) else bool(thing.__doc__)


def test_every_test_says_one_sentence() -> None:
    """Each test function has a docstring."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]

    assert [] == silent


def test_top_level_is_what_the_design_lists() -> None:
    """The repository's first level holds nothing else, dotfiles aside."""
    git = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if git.returncode:
        pytest.skip("not a git checkout")

    entries = {name.split("/")[0] for name in git.stdout.split("\0") if name}

    assert set() == {name for name in entries if not name.startswith(".")} - TOP_LEVEL


if __name__ == "__main__":
    print(",".join(files_of(sys.argv[1])))
