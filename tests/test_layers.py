"""The table of packages, held against the source: which package may import which.

`python -m tests.test_layers` prints the sans-IO files, comma-separated, for the gate.
"""

import ast
import functools
import graphlib
import inspect
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "perfect_async"

# Which package may import which. Files of one package may import each other (without circles),
# and everything may import `errors`, `_recent`, `_time` and `_value`.
VALUES = {"models", "reports", "events"}
EVERYWHERE = {"errors", "_recent", "_time", "_value"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "_recent": set(),
    "_time": set(),
    "_value": set(),
    "models": VALUES,
    "reports": VALUES,
    "events": VALUES,
    "_log": set(),
    "_ratelimit": VALUES,
    "_api": VALUES,
    "scheduler": {*VALUES, "_ratelimit"},
    "_journal": {"_log"},
    "_ledger": {*VALUES, "_log"},
    "_transport": {*VALUES, "_log", "_api"},
    "_files": {*VALUES, "_log", "_api"},
    "webhooks": {"_log", "_api"},
    "_runtime": {
        *VALUES,
        *("_log", "scheduler", "_api", "_transport", "_journal", "_files", "_ledger"),
    },
    "_client": {
        *VALUES,
        *("_log", "scheduler", "_api", "_transport", "_journal", "_files", "_runtime", "webhooks"),
        *("_ledger", "report"),
    },
    "report": VALUES,
    "__init__": {*VALUES, "_client"},
    "fleet": {*VALUES, "__init__", "_api.tasks"},
    "telemetry": {*VALUES, "__init__"},
    "cli": {
        *VALUES,
        *("__init__", "webhooks", "fleet", "_client.settings", "_client.folder", "_journal"),
        *("_ledger", "_api.urls", "report", "sandbox"),
    },
    "pytest_plugin": {"__init__", "sandbox"},
    "__main__": {"cli"},
    "sandbox": set(),
}

# Decide without awaiting: no await, clock, randomness or I/O. The gate wants every branch covered.
SANS_IO = (
    *(
        "_recent",
        "_time",
        "_value",
        "_ratelimit",
        "scheduler",
        "_api",
        "errors",
        "events",
        "models",
        "reports",
    ),
    *("_journal/model", "_ledger/rows"),
)

# The stand-in for the vendor imports nothing of ours, so that a wrong key name cannot be wrong on
# both sides. Only the terminal program starts it, when a command needs it.
SANDBOX = "sandbox"

# One outside library, one file: a move to another library is a move of that file.
ONE_FILE = {
    # The demo's contact sheet; pictures that are made to fit; thumbnails.
    "PIL": {"cli/_demo", "_files/fitting", "report/_thumbnails", SANDBOX},
    "cattrs": {"_api/responses"},
    "coredis": {"fleet"},
    "cyclopts": {"cli/_app"},
    "httpx": {"_transport/transport", SANDBOX},
    "imagesize": {"_files/images"},
    "opentelemetry": {"telemetry"},
    "platformdirs": {"_ledger/folder"},
    "pytest": {"pytest_plugin"},
    "rich": {"cli/_display"},
    "jinja2": {"report/_page"},
    "markupsafe": {"report/_page"},
    "redis": {"_ledger/redis"},
    "sqlite3": {"_journal/sqlite", "_ledger/local"},
    "standardwebhooks": {"webhooks"},
    "starlette": {SANDBOX},
    "streaq": {"fleet"},
    "uvicorn": {SANDBOX},
}

# Sans-IO code gets time, chance and identity as arguments, and waits for nothing.
NOT_SANS_IO = {
    *("anyio", "asyncio", "concurrent", "multiprocessing", "threading"),
    *("http", "httpx", "os", "shutil", "socket", "sqlite3", "subprocess", "tempfile", "urllib"),
    *("random", "secrets", "time", "uuid"),
}
CLOCK_CALLS = {"now", "today", "utcnow"}

# Every task has an owner with a closing brace.
NO_STRAY_TASKS = {"create_task", "ensure_future", "run_coroutine_threadsafe"}

TOP_LEVEL = {
    *("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"),
    *("benchmarks", "examples", "perfect_async", "tests"),
}


def files() -> list[Path]:
    """Return every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """Return a file's place in the package: `_api/tasks`, `models`; `_api` for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "/".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """Return the package of a module; a module beside the packages is one of its own."""
    return module.split("/", maxsplit=1)[0]


def read(path: Path) -> ast.Module:
    """Read a file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


# Several tests ask for the trees of the package.
parse = functools.cache(read)


def walk(tree: ast.AST, *, loading: bool) -> Iterator[ast.AST]:
    """Yield the nodes of a tree; with `loading` only those that run when the module is loaded."""
    later = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    for node in ast.iter_child_nodes(tree):
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if loading and (types_only or isinstance(node, later)):
            continue
        yield node
        yield from walk(node, loading=loading)


@functools.cache
def imports(path: Path, *, loading: bool = False) -> Sequence[str]:
    """Return what a file imports, absolute and as deep as it is written, wherever it stands.

    `from a import b` is `a.b`: whether b is a module does not matter here.
    """
    parents = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: list[str] = []
    for node in walk(parse(path), loading=loading):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else list(parents[: len(parents) - node.level + 1])
            if node.module:
                base.append(node.module)
            found += (".".join([*base, alias.name]) for alias in node.names)
    return found


def own_imports(path: Path, *, loading: bool = False) -> Iterator[str]:
    """Yield the modules of ours that a file imports; a name of the package itself is `__init__`."""
    for name in imports(path, loading=loading):
        head, *rest = name.split(".")
        if head != PACKAGE.name:
            continue
        while rest and not is_module("/".join(rest)):
            rest.pop()
        yield "/".join(rest) or "__init__"


@functools.cache
def is_module(name: str) -> bool:
    """Whether the package has this module or package."""
    return (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name / "__init__.py").is_file()


def allowed(package: str, imported: str) -> bool:
    """Whether a file of `package` may import the module `imported`."""
    return (
        package_of(imported) in {package, *EVERYWHERE, *MAY_IMPORT[package]}
        or imported.replace("/", ".") in MAY_IMPORT[package]
    )


def sans_io_files() -> list[str]:
    """Return the files whose every branch is covered, relative to the repository."""
    found = [
        path
        for path in files()
        if module_of(path) in SANS_IO or package_of(module_of(path)) in SANS_IO
    ]
    return [path.relative_to(ROOT).as_posix() for path in found]


def each_file(find: Callable[[Path], set[str]]) -> dict[str, set[str]]:
    """Return what `find` finds in each file of the package, by module, where it finds anything."""
    return {module_of(path): found for path in files() if (found := find(path))}


def test_packages_import_what_the_table_allows() -> None:
    """A file imports only its own package and those that the table names for it."""
    packages = {package_of(module_of(path)) for path in files()}
    assert set() == packages - set(MAY_IMPORT), "give each a row in tests/test_layers.py"

    def astray(path: Path) -> set[str]:
        package = package_of(module_of(path))
        return {name for name in own_imports(path) if not allowed(package, name)}

    assert {} == each_file(astray)


def test_modules_load_without_a_circle() -> None:
    """The imports that run when a module is loaded have an order."""
    graph = {
        module_of(path): set(own_imports(path, loading=True)) - {module_of(path)}
        for path in files()
    }

    order = list(graphlib.TopologicalSorter(graph).static_order())

    assert set() == set(graph) - set(order)


def test_packages_have_no_circle() -> None:
    """Packages import each other in one direction only, also inside functions and for types."""
    graph: dict[str, set[str]] = {}
    for path in files():
        package = package_of(module_of(path))
        found = {package_of(name) for name in own_imports(path)} - {package}
        graph.setdefault(package, set()).update(found)

    order = list(graphlib.TopologicalSorter(graph).static_order())

    assert set() == set(graph) - set(order)


def test_the_sandbox_is_loaded_only_when_a_command_needs_it() -> None:
    """No module loads the sandbox when it is itself imported."""

    def loaded(path: Path) -> set[str]:
        packages = {package_of(name) for name in own_imports(path, loading=True)}
        return packages & {SANDBOX} - {package_of(module_of(path))}

    assert {} == each_file(loaded)


def test_one_outside_library_one_file() -> None:
    """Each outside library is imported only where the table says."""

    def astray(path: Path) -> set[str]:
        libraries = {name.split(".")[0] for name in imports(path)}
        here = {module_of(path), package_of(module_of(path))}
        return {library for library in libraries if not here & ONE_FILE.get(library, here)}

    assert {} == each_file(astray)


def test_sans_io_code_neither_waits_nor_looks_around() -> None:
    """Sans-IO code has no await, and imports no clock, randomness, identity or I/O."""
    names = sans_io_files()

    found = {name: lines for name in names if (lines := not_sans_io(ROOT / name))}

    assert names
    assert {} == found


def not_sans_io(path: Path) -> set[str]:
    """Return what in a file waits or looks around."""
    waiting = (ast.Await, ast.AsyncFor, ast.AsyncFunctionDef, ast.AsyncWith)
    found = {
        f"line {node.lineno}: {type(node).__name__}"
        for node in ast.walk(parse(path))
        if isinstance(node, waiting)
    }
    found |= {
        name
        for name in imports(path)
        if name.split(".")[0] in NOT_SANS_IO and name != "os.PathLike"
    }
    found |= {
        f"line {node.lineno}: {node.func.attr}()"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CLOCK_CALLS
    }
    return found


def test_no_stray_tasks() -> None:
    """Nobody starts a task through asyncio: task groups do. (`group.create_task` is anyio's.)"""

    def stray(path: Path) -> set[str]:
        found = {name for name in imports(path) if name.split(".")[-1] in NO_STRAY_TASKS}
        found |= {
            f"line {node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(parse(path))
            if isinstance(node, ast.Attribute)
            and node.attr in NO_STRAY_TASKS
            and ast.unparse(node.value) == "asyncio"
        }
        return found

    assert {} == each_file(stray)


def test_one_host_task() -> None:
    """At most one place asks the loop for a task: the host in which a client's group lives."""
    hosts = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        for path in files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute)
        and node.attr == "create_task"
        and "loop" in ast.unparse(node.value)
    ]

    assert len(hosts) <= 1, hosts


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
        for node in functions(read(path))
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert [] == silent


def functions(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions of a module and of its classes, where pytest looks for tests."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            yield each
        elif isinstance(each, ast.ClassDef):
            yield from functions(each)


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
    print(",".join(sans_io_files()))
