"""Write a report to a file, which appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from perfect_async.errors import ConfigurationError, quoted
from perfect_async.report._table import render_table
from perfect_async.report._values import Report, absolute

_ENDINGS: Final = (".html", ".csv")


def check_path(path: str | os.PathLike[str]) -> Path:
    """Return `path` if a report can be written there, before anything is bought for it.

    Raises `ConfigurationError` for a name that ends in neither .html nor .csv, for a folder that is
    missing or read-only, and where the extra `report` is needed and not installed.
    """
    text = cast("object", os.fspath(path))
    if not isinstance(text, str) or "\0" in text or not text.lower().endswith(_ENDINGS):
        raise ConfigurationError(
            f"a report's name must end in .html or .csv, and {quoted(text)} does not."
        )
    target = Path(text)
    whole, problem = absolute(target), None
    if whole is None:
        problem = "the working folder was removed; pass an absolute path"
    elif target.is_dir():
        problem = "it is a folder"
    elif not whole.parent.is_dir():
        problem = f"there is no folder {quoted(target.parent)}"
    elif not os.access(whole.parent, os.W_OK):
        problem = f"the folder {quoted(target.parent)} is read-only for you"
    if problem is not None:
        raise ConfigurationError(f"a report cannot be written to {quoted(text)}: {problem}.")
    if target.suffix.lower() == ".html":
        _check_extra()
    return target


def _check_extra() -> None:
    try:
        import_module("perfect_async.report._page")
    except ImportError as exc:
        raise ConfigurationError(
            f"the report needs {exc.name or 'a library'}, which is not installed: "
            "pip install 'perfect_async[report]', or write a .csv."
        ) from exc


def write(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write `report` to `path`, a page or a table by its ending; return the path.

    It blocks while thumbnails are made, about 20 ms for each picture. The pictures are read from
    the disk now. A file that is there is replaced. Raises as `check_path` does, and `OSError` as
    the disk does.
    """
    target = check_path(path)
    if target.suffix.lower() == ".csv":
        content = render_table(report)
    else:
        from perfect_async.report._page import render_page  # noqa: PLC0415 - needs the extra

        content = render_page(report, target.absolute().parent)
    _replace(target, content)
    return target


def _replace(target: Path, content: bytes) -> None:
    handle, part = tempfile.mkstemp(prefix=".report-", suffix=".part", dir=target.absolute().parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # The page shows people, so only its owner can read it.
        Path(part).replace(target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
