"""What the commands of the terminal program share: the client, the loop, and how they end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from perfect_async import Client, ConfigurationError, Polling, Unauthorized
from perfect_async.errors import JournalError, quoted

if TYPE_CHECKING:
    from perfect_async.cli._display import RunSummary

T = TypeVar("T")

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


def client(journal: Path | None = None, polling: Polling | None = None) -> Client:
    """Make the client of a command; tests put another in its place."""
    return Client(journal=journal, polling=polling or Polling())


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a command's loop; tests put virtual time in its place."""
    return asyncio.run(main())


def status(summary: RunSummary) -> int:
    """The exit status of a run."""
    if any(isinstance(told.error, Unauthorized) for told in summary.told):
        return USAGE
    return FAILED if summary.done < summary.jobs else 0


def ready(folder: Path) -> None:
    """Make the folder for results: before anything is bought that could then not be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"--out {quoted(folder)} cannot be made: {exc}.") from exc
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--out {quoted(folder)} cannot be written to.")


def there(journal: Path) -> None:
    """See that there is something at `journal`: whoever mistypes a path wants no new journal."""
    if not os.path.lexists(journal):
        raise JournalError(f"There is no journal {quoted(journal)}.")


def missing(error: ImportError) -> str:
    """What to say where an extra is not installed; another defect of an import is raised."""
    library = (error.name or "perfect_async").partition(".")[0]
    if library == "perfect_async":
        raise error
    return (
        f"this command needs {library}, which is not installed: pip install 'perfect_async[demo]'"
    )
