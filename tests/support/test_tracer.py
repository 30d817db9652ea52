"""The tracer counts calls between files and packages."""

import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.tracer import SCENARIOS, Trace, Tracer, measure

SOURCES = {
    "flat.py": "def call(other): return other()\ndef twice(): return same() + same()\n"
    "def same(): return 1\n",
    "_inner/one.py": "def leaf(): return 1\n",
    "_inner/two.py": "def call(other): return other()\n",
    "sandbox/far.py": "def leaf(): return 1\n",
    "_inner/awaiting.py": "async def wait(other): return await other()\n",
    "_other.py": "import asyncio\nasync def pause():\n    await asyncio.sleep(0)\n",
}

Modules = dict[str, ModuleType]


@pytest.fixture
def modules(tmp_path: Path) -> Modules:
    """Make a package of two folders and three modules; return them by the paths of their files."""
    found: Modules = {}
    for name, source in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


def traced(root: Path, work: Callable[[], object]) -> Trace:
    tracer = Tracer(root)
    with tracer.installed(), tracer.counting():
        work()
    return tracer.trace


def test_a_call_into_another_file_counts(modules: Modules, tmp_path: Path) -> None:
    """A call between different files counts, with the names of both."""
    flat, one = modules["flat.py"], modules["_inner/one.py"]
    trace = traced(tmp_path, lambda: [flat.call(one.leaf), flat.twice()])

    assert {("flat.py", "_inner/one.py"): 1} == trace.calls
    assert {("flat", "_inner"): 1} == trace.packages()
    assert {"flat.py", "_inner/one.py"} == trace.files


def test_a_call_inside_a_package_crosses_only_files(modules: Modules, tmp_path: Path) -> None:
    """A call between two files of one folder crosses files but no package."""
    two, one = modules["_inner/two.py"], modules["_inner/one.py"]
    trace = traced(tmp_path, lambda: two.call(one.leaf))

    assert (1, 0) == (trace.across_files, trace.across_packages)


def test_the_sandbox_is_not_counted(modules: Modules, tmp_path: Path) -> None:
    """Neither calls into the sandbox nor its files are counted."""
    flat, far = modules["flat.py"], modules["sandbox/far.py"]
    trace = traced(tmp_path, lambda: flat.call(far.leaf))

    assert (0, frozenset({"flat.py"})) == (trace.across_files, trace.files)


def test_nothing_counts_outside_the_block(modules: Modules, tmp_path: Path) -> None:
    """Calls while the tracer is installed but not counting are ignored."""
    flat, one = modules["flat.py"], modules["_inner/one.py"]
    tracer = Tracer(tmp_path)
    with tracer.installed():
        flat.call(one.leaf)

    assert (0, frozenset()) == (tracer.trace.across_files, tracer.trace.files)


def test_threads_count(modules: Modules, tmp_path: Path) -> None:
    """A thread that was started before the counting is counted, too."""
    flat, one = modules["flat.py"], modules["_inner/one.py"]
    tracer, go = Tracer(tmp_path), threading.Event()

    def work() -> None:
        go.wait()
        flat.call(one.leaf)

    with tracer.installed():
        thread = threading.Thread(target=work)
        thread.start()
        with tracer.counting():
            go.set()
            thread.join()

    assert 1 == tracer.trace.across_files


async def test_resuming_counts(modules: Modules, tmp_path: Path) -> None:
    """A coroutine that another file awaits counts when it starts and when it resumes."""
    tracer = Tracer(tmp_path)
    with tracer.installed(), tracer.counting():
        await modules["_inner/awaiting.py"].wait(modules["_other.py"].pause)

    assert {("_inner/awaiting.py", "_other.py"): 2} == tracer.trace.calls


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_cross_files(name: str) -> None:
    """Each scenario ends, and crosses files at least as often as packages."""
    trace = measure(SCENARIOS[name])

    assert trace.across_files >= trace.across_packages > 0
    assert {caller for caller, _ in trace.calls} <= trace.files
