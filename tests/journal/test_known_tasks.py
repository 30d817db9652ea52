"""Which tasks a journal knows: all that it created, so that none is taken for another's.

A task that is taken for the one in doubt hands its picture to whoever waits: what failed, was lost,
deleted or tried again is known as well as what can still be fetched.
"""

from pathlib import Path

import pytest

from perfect_async._journal import model as words
from perfect_async._journal.model import JournalEntry, JournalState, StoredJob
from perfect_async._journal.sqlite import Entry, SqliteJournal

IDENTITY = "ab" * 32
TOLD = words.Told(1, 9)


def order(*, sure: bool = True, delete: bool = False) -> StoredJob:
    return StoredJob(
        identity=IDENTITY,
        sure=sure,
        stem="me",
        feature="ai-smile",
        units=1.0,
        outputs=1,
        parameters=(),
        key=None,
        kind="path",
        place="me.jpg",
        digest="cd" * 32,
        save_to="out",
        delete=delete,
    )


def written(path: Path, *said: JournalEntry, at_once: bool) -> SqliteJournal:
    """A journal in which all of it was said, opened again."""
    file, memory = SqliteJournal(path, 0), JournalState()
    entries = [Entry(seq, word, memory.receive(word)) for seq, word in enumerate(said, 1)]
    for part in [entries] if at_once else [[entry] for entry in entries]:
        file.commit(part, [], 10)
    file.close()
    return SqliteJournal(path, 10)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "rest",
    [
        pytest.param([], id="running"),
        pytest.param([words.Ended(1, 4, "failed"), TOLD], id="failed"),
        pytest.param([words.Ended(1, 4, "lost"), TOLD], id="lost"),
        pytest.param([words.Returned(1, 4)], id="returned"),
        pytest.param([words.Returned(1, 4), words.Ended(1, 5, "unsent"), TOLD], id="unsent"),
        pytest.param([words.Ended(1, 4, "done"), TOLD], id="done"),
    ],
)
def test_every_task_is_known(tmp_path: Path, rest: list[JournalEntry], at_once: bool) -> None:
    """Whatever became of a task and of its job."""
    said = [words.Entered(1, 1, order()), words.Creating(1, 2), words.Created(1, 3, "t"), *rest]
    file = written(tmp_path / "jobs.db", *said, at_once=at_once)

    assert {"t"} == file.ids(0)
    assert {"t"} == file.ids(2)
    assert set() == file.ids(4)
    file.close()


def test_both_tries_are_known(tmp_path: Path) -> None:
    """The task that failed beside the one that came after it, each by its own time."""
    file = written(
        tmp_path / "jobs.db",
        *(words.Entered(1, 1, order()), words.Creating(1, 2), words.Created(1, 3, "first")),
        *(words.Returned(1, 4), words.Creating(1, 5), words.Created(1, 6, "second")),
        *(words.Ended(1, 7, "done"), TOLD),
        at_once=True,
    )

    assert {"first", "second"} == file.ids(0)
    assert {"second"} == file.ids(5)
    assert "second" == file.lookup(IDENTITY, 0)
    assert 1 == file.forget()
    assert set() == file.ids(0)
    file.close()


@pytest.mark.parametrize("sure", [True, False])
def test_what_cannot_be_fetched_is_known(tmp_path: Path, sure: bool) -> None:
    """A job of a signed URL, and one whose copies are deleted: not to be had again, and known."""
    file = written(
        tmp_path / "jobs.db",
        *(words.Entered(1, 1, order(sure=sure, delete=sure)), words.Creating(1, 2)),
        *(words.Created(1, 3, "t"), words.Ended(1, 4, "done"), words.Saved(1, 5), TOLD),
        *[words.Deleted(1, 10)] * sure,
        at_once=False,
    )

    assert {"t"} == file.ids(0)
    assert None is file.lookup(IDENTITY, 0)
    assert 0 == file.forget()
    file.close()


def test_what_was_dropped_is_known(tmp_path: Path) -> None:
    """A task that was deleted at the vendor is not offered again, and nobody else's."""
    file = written(
        tmp_path / "jobs.db",
        *(words.Entered(1, 1, order()), words.Creating(1, 2), words.Created(1, 3, "t")),
        *(words.Ended(1, 4, "done"), TOLD),
        at_once=True,
    )

    file.drop("t")

    assert None is file.lookup(IDENTITY, 0)
    assert {"t"} == file.ids(0)
    file.close()
