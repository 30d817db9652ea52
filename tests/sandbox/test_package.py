"""The names of the package, and its message for a missing library."""

import subprocess
import sys

import pytest

import perfect_async.sandbox as package


def test_the_names_are_sorted_and_exist() -> None:
    """The list of names is sorted as by ruff, and every name exists."""
    names = package.__all__

    assert (
        sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)) == names
    )
    assert all(hasattr(package, name) for name in names)


def test_objects_name_the_package() -> None:
    """Classes and functions name the package, not a private file."""
    things = [getattr(package, name) for name in package.__all__ if name != "Scripted"]

    assert {"perfect_async.sandbox"} == {thing.__module__ for thing in things if callable(thing)}


def test_every_name_has_a_docstring() -> None:
    """Every public name has a docstring."""
    for name in package.__all__:
        if not isinstance(getattr(package, name), type):
            continue
        assert (getattr(package, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("missing", ["PIL", "starlette", "uvicorn"])
def test_a_missing_library_is_named_with_its_fix(missing: str) -> None:
    """Without the extra the import says what to install."""
    code = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "try:\n"
        "    import perfect_async.sandbox\n"
        "except ImportError as error:\n"
        "    print(error.name, error)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0]
    )

    assert done.stdout.startswith(missing), done
    assert "pip install 'perfect_async[sandbox]'" in done.stdout
