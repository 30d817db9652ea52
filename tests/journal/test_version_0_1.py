"""A journal of version 0.1, as a killed process left it, is opened and continued."""

import re
import sqlite3
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from perfect_async import Avatar, Done, Failed, Smile, SubmissionInDoubt
from perfect_async._journal.model import Phase
from perfect_async._journal.sqlite import SqliteJournal
from perfect_async.sandbox import portrait
from tests.support.journaled import EPOCH, JournalHarness, all_of, creates

DUMP = Path(__file__).with_name("journal-0.1.sql").read_text("utf-8")
SECOND = 1_000_000
WRITTEN = 1_795_982_173
"""When the process was killed, in seconds since 1970."""
FINISHED, BY_URL, KEYED, RUNNING = re.findall(r"INTO \"tasks\" VALUES\(X'\w*','([\w-]+)'", DUMP)


HEAD, TAIL = "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAAAAACPAi4CAAAAKklEQVR42u3M", "AAAAAElFTkSuQmCC"
PICTURES = {
    number: b64decode(HEAD + data + TAIL)
    for number, data in enumerate(
        (
            "MQ0AAAwDoN71L7gi9i0ggPQoAoFAIBAIBAKBQCAQCL4HA1xsoAH0HpXj",
            "QREAAAwCIEPYP6sh9ttBANKjCAQCgUAgEAgEAoFAIPgeDKiYQBBuonJe",
            "QREAAAwCIOPYP6Eh9ttBANKjCAQCgUAgEAgEAoFAIPgeDED/gB98zHPE",
            "QREAAAwCIIPZP5ch9ttBANKjCAQCgUAgEAgEAoFAIPgeDNlXwC7W4CWY",
        )
    )
}
"""The pictures that version 0.1 was given, of one grey each; number 0 was given as bytes."""


def restore(path: Path, photos: Path, killed_at: int) -> None:
    """Make the journal as if its process had been killed at `killed_at`, in seconds."""
    later = killed_at - WRITTEN

    def move(found: re.Match[str]) -> str:
        return str(int(found[0]) + later * (SECOND if len(found[0]) > len(str(WRITTEN)) else 1))

    dump = re.sub(r"\b17959821\d\d(\d{6})?\b", move, DUMP.replace("/photos", str(photos)))
    db = sqlite3.connect(path)
    db.executescript(dump)
    db.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "jobs.db"


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    restore(path, path.parent / "photos", WRITTEN)
    file = SqliteJournal(path, (WRITTEN + 5) * SECOND)
    yield file
    file.close()


def test_its_jobs_are_known(journal: SqliteJournal) -> None:
    """The running task, the creation without an answer, and the requests of the window."""
    running, doubted = journal.state.live.values()

    assert (4, Phase.RUNNING, RUNNING) == (running.job, running.phase, running.task_id)
    assert (5, Phase.CREATING, True) == (doubted.job, doubted.phase, doubted.in_doubt)
    tasks = (FINISHED, BY_URL, KEYED, RUNNING)
    assert sorted(hash(each) for each in tasks) == [*journal.known_tasks]
    # With those that the killed process may have sent unseen.
    assert 16 + 15 <= sum(requests for _, requests in journal.past)


def test_it_is_reopened_as_a_journal_of_this_version(path: Path) -> None:
    """What this version adds to the file is there, and nothing is lost by it."""
    restore(path, path.parent, WRITTEN)
    for _ in range(2):
        file = SqliteJournal(path, (WRITTEN + 5) * SECOND)
        found = {job: each.phase for job, each in file.state.live.items()}
        tables = {name for (name,) in file._all("SELECT name FROM sqlite_master")}
        file.close()

        assert {4: Phase.RUNNING, 5: Phase.CREATING} == found
        assert {"results", "keys"} <= tables


class Vendor:
    """A vendor that knows the tasks of version 0.1, and counts the creations that reach it."""

    def __init__(self) -> None:
        self.created = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response | None:
        self.created += creates(request)
        if request.url.host == "results.example":
            return httpx.Response(200, content=portrait(1))
        if request.url.path.rsplit("/")[-1] not in {FINISHED, BY_URL, KEYED, RUNNING}:
            return None
        url = {"url": "https://results.example/a.jpg"}
        results = {"output": [url] * 4} if "ai-avatar" in request.url.path else url
        data = {"task_status": "success", "error": None, "results": results}
        return httpx.Response(200, json={"status": 200, "data": data})


async def test_what_was_done_is_not_bought_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal jobs have the identities that version 0.1 gave them: their results are fetched."""
    harness, vendor = JournalHarness(path.parent, monkeypatch), Vendor()
    photos = path.parent / "photos"
    (photos / "1.png").write_bytes(PICTURES[1])
    restore(path, photos, EPOCH - 5)
    jobs = [
        Smile(PICTURES[0]),
        Smile("https://pictures.example/2.jpg"),
        Smile(photos / "1.png", key="order-1"),
    ]

    async with harness.client(vendor) as client:
        results = [await client.run(job) for job in jobs]

    assert [FINISHED, BY_URL, KEYED] == [result.task_id for result in results]
    assert 0 == vendor.created


async def test_what_was_saved_is_fetched_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs could have one name of version 0.1, so its file stays; nothing is bought."""
    harness, vendor = JournalHarness(path.parent, monkeypatch), Vendor()
    photos = path.parent / "photos"
    (photos / "1.png").write_bytes(PICTURES[1])
    harness.out.mkdir()
    saved = harness.out / "1-14cbda5e.jpg"
    saved.write_bytes(portrait(3))
    restore(path, photos, EPOCH - 5)

    async with harness.client(vendor) as client:
        job = Smile(photos / "1.png", key="order-1")
        [outcome] = await all_of(client.batch([job], save_to=harness.out))

    assert isinstance(outcome, Done)
    assert (KEYED, 0) == (outcome.task_id, vendor.created)
    assert {saved, *outcome.files} == set(harness.out.iterdir())
    assert [portrait(3), portrait(1)] == [each.read_bytes() for each in (saved, *outcome.files)]


async def test_the_run_is_resumed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running task is fetched; the creation without an answer is in doubt, not repeated."""
    harness, vendor = JournalHarness(path.parent, monkeypatch), Vendor()
    photos = path.parent / "photos"
    for number in (2, 3):
        (photos / f"{number}.png").write_bytes(PICTURES[number])
    restore(path, photos, EPOCH - 5)

    async with harness.client(vendor) as client:
        outcomes = await all_of(client.resume())

    avatar = next(each for each in outcomes if isinstance(each.job, Avatar))
    smile = next(each for each in outcomes if isinstance(each.job, Smile))
    assert isinstance(avatar, Done)
    assert (RUNNING, 4) == (avatar.task_id, len(avatar.result.images))
    assert isinstance(smile, Failed)
    assert isinstance(smile.error, SubmissionInDoubt)
    assert 0 == vendor.created
