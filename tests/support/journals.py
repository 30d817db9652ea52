"""Calls on a journal that only its tests need."""

from collections.abc import Iterable

from perfect_async._journal.model import JournalEntry, JournalState
from perfect_async._journal.sqlite import SqliteJournal


def fold(entries: Iterable[JournalEntry]) -> JournalState:
    """Apply `entries` one after another to an empty state. Raises `IllegalEntry`."""
    state = JournalState()
    for entry in entries:
        state.receive(entry)
    return state


def task_ids(file: SqliteJournal, since: int) -> frozenset[str]:
    """Return all tasks that were created since `since`; "" if a creation stayed in doubt."""
    rows = file._all("SELECT task_id FROM tasks WHERE created >= ?", since)
    return frozenset(str(task_id) for (task_id,) in rows)
