"""The processes of the crash test: a vendor that keeps running, and workers that are killed.

    python -m tests.support.crashing vendor PORT   a sandbox with a lease of seconds; GET /ledger
    python -m tests.support.crashing forkserver    forks a worker for each plan (JSON) on stdin

The fork server has imported all modules, so that a new worker starts fast. A worker kills itself
with SIGKILL when it reaches a point of its plan for the n-th time, or by a timer.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import anyio
import attrs

from perfect_async import (
    Avatar,
    Batch,
    Client,
    Done,
    Job,
    Limits,
    Outcome,
    Polling,
    Smile,
    Timeouts,
)
from perfect_async._api.tasks import Request, Response
from perfect_async._client import retention
from perfect_async._client.batch import _Entry
from perfect_async._client.recovery import RecoveredJob
from perfect_async._files.saving import AtomicFile
from perfect_async._journal.model import JobSnapshot, Phase
from perfect_async._journal.sqlite import Row, SqliteJournal
from perfect_async._runtime import commands
from perfect_async._runtime.spec import identity
from perfect_async._transport.transport import VendorTransport
from perfect_async.events import FileGrant
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait, serve
from perfect_async.sandbox._portraits import seed_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

LEASE = 2.0
LIMITS = Limits(requests=30_000, period=60.0, per_second=100)
POLLING = Polling(lease=LEASE, interval=0.1, insured=15.0, give_up_after=15.0)
TEMPLATE = "male_studio_00"
OUTPUTS = 2
SIDE = 64

POINTS = (
    *("opened", "reported"),
    *("before commit", "after commit"),
    *("before register", "after register", "before upload", "after upload"),
    *("before submit", "after submit", "before poll", "after poll"),
    *("before history", "after history", "before delete", "after delete"),
    *("before save", "after save"),
)


class Plan(TypedDict):
    """The plan of one worker: its pictures, and the time of its kill.

    `kill_switch` is a point and the number of times it is reached before the kill. `after` is the
    latest kill: a number of points of any kind, and seconds after the last of them.
    """

    number: int
    folder: str
    url: str
    pictures: list[int]
    delete: bool
    pause: float
    delay: float
    kill_switch: tuple[str, int]
    after: tuple[int, float]


class Line(TypedDict):
    """A line of the log; lines of a start have a number and `left`, those of an end a number."""

    picture: str
    number: int | None
    task_id: str | None
    files: list[str]
    error: str | None
    message: str | None
    at_stake: float
    left: dict[str, str]


class Task(TypedDict):
    """A task in the ledger."""

    task_id: str
    state: str
    units: int
    picture: int | None


class LedgerReport(TypedDict):
    """The vendor's ledger."""

    tasks: list[Task]
    violations: list[str]
    refused: int


@attrs.frozen
class Picture:
    """One picture of the test: its face, and the form of its source."""

    number: int

    @property
    def data(self) -> bytes:
        return portrait(self.number, SIDE)

    @property
    def by_path(self) -> bool:
        return self.number % 2 == 0

    @property
    def key(self) -> str | None:
        return f"picture {self.number}" if self.number % 3 == 0 else None

    @property
    def outputs(self) -> int:
        return OUTPUTS if self.number % 5 == 0 else 1

    def job(self, folder: Path) -> Job:
        source: Path | bytes = self.data
        if self.by_path:
            source = folder / f"{self.number}.jpg"
            if not source.exists():
                part = source.with_suffix(".part")
                part.write_bytes(self.data)
                part.replace(source)
        if self.outputs == 1:
            return Smile(source, key=self.key)
        return Avatar(source, TEMPLATE, output_count=OUTPUTS, key=self.key)

    def identity(self, folder: Path) -> str:
        return identity(self.job(folder), hashlib.sha256(self.data).hexdigest())


# The vendor.


class Vendor(Sandbox):
    """A sandbox that serves its ledger."""

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or scope["path"] != "/ledger":
            await super().__call__(scope, receive, send)
            return
        body = json.dumps(self.ledger_report()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def ledger_report(self) -> LedgerReport:
        tasks = self._router._tasks._by_id
        return {
            "tasks": [
                {
                    "task_id": record.task_id,
                    "state": record.state,
                    "units": record.units,
                    "picture": seed_of(tasks[record.task_id].picture.data or b""),
                }
                for record in self.ledger.tasks
            ],
            "violations": self.ledger.violations,
            "refused": sum(self.ledger.refused.values()),
        }


def vendor(port: int, seed: int) -> None:
    sandbox = Vendor(
        seed=seed,
        requests=100_000,
        period=60.0,
        per_second=1_000,
        lease=LEASE,
        durations={
            "ai-smile": Durations.uniform(0.05, 0.6),
            "ai-avatar": Durations.uniform(0.05, 0.9),
        },
        units=100_000.0,
        faults=Faults(engine_errors=0.08, lost_creations=0.05),
        latency=0.02,
        jitter=0.02,
        origin=f"http://127.0.0.1:{port}",
    )
    asyncio.run(serve(sandbox, port=port))


# A worker.


@attrs.define
class KillSwitch:
    """Kills this process when `point` is reached for the `left`-th time, in any thread, or `later`
    seconds after any point was reached for the `among`-th time.
    """

    point: str
    left: int
    among: int
    later: float

    def passing(self, point: str) -> None:
        self.among -= 1
        if not self.among:
            threading.Timer(self.later, kill).start()
        if point == self.point:
            self.left -= 1
            if not self.left:
                kill()
                threading.Event().wait()  # until the signal arrives

    def install(self) -> None:
        """Patch the calls that spend units or write results."""
        commit, replace = SqliteJournal.commit, AtomicFile.replace
        call, upload = VendorTransport.call, VendorTransport.upload

        def committing(
            file: SqliteJournal, entries: Iterable[Row], window: list[tuple[int, int]], now: int
        ) -> None:
            self.passing("before commit")
            commit(file, entries, window, now)
            self.passing("after commit")

        def replacing(part: AtomicFile, target: Path) -> None:
            self.passing("before save")
            replace(part, target)
            self.passing("after save")

        async def calling(way: VendorTransport, one: Request, *, within: float) -> Response:
            kind = kind_of(one)
            self.passing(f"before {kind}")
            reply = await call(way, one, within=within)
            self.passing(f"after {kind}")
            return reply

        async def uploading(
            way: VendorTransport,
            grant: FileGrant,
            chunks: Callable[[], AsyncIterator[bytes]],
            *,
            within: float | None = None,
        ) -> None:
            self.passing("before upload")
            await upload(way, grant, chunks, within=within)
            self.passing("after upload")

        set_to(SqliteJournal, "commit", committing)
        set_to(AtomicFile, "replace", replacing)
        set_to(VendorTransport, "call", calling)
        set_to(VendorTransport, "upload", uploading)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def set_to(where: object, name: str, what: object) -> None:
    assert hasattr(where, name), name
    setattr(where, name, what)


def kind_of(call: Request) -> str:
    if "history" in call.path:
        return "history"
    if call.path.endswith("/delete"):
        return "delete"
    if "/file" in call.path:
        return "register"
    return "submit" if call.method == "POST" else "poll"


class EventLog:
    """A log of the outcomes reported to the user: a line each, which survives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(self, **facts: object) -> None:
        os.write(self._file, json.dumps(facts).encode() + b"\n")


def label(snapshot: JobSnapshot) -> str:
    """Return the state in which a kill has left a job."""
    if snapshot.phase is Phase.ENTERED:
        return "entered" if snapshot.file_id is None else "uploaded"
    if snapshot.phase is Phase.DONE:
        return "reported" if snapshot.reported else "saved" if snapshot.saved else "done"
    return snapshot.phase.name.lower()


class Worker:
    """One process: it resumes the jobs of the former one, then runs the rest of the batch."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = Path(plan["folder"])
        self.event_log = EventLog(self.folder / "event_log")
        self.pictures = {
            picture.identity(self.folder): picture for picture in map(Picture, plan["pictures"])
        }
        self.kill_switch = KillSwitch(*plan["kill_switch"], *plan["after"])
        self.former: dict[int, str] = {}
        self.jobs: dict[Job, str] = {}

    async def work(self) -> None:
        client = Client(
            "key",
            base_url=self.plan["url"],
            journal=self.folder / "jobs.db",
            limits=LIMITS,
            polling=POLLING,
            timeouts=Timeouts(request=5.0),
            reuse=True,
            # Nobody else creates tasks at this vendor.
            sole_user=True,
        )
        async with client:
            assert client._session is not None
            journal = client._session.channel.journal.writer
            left = dict(journal.state.live)
            labels = {number: label(snapshot) for number, snapshot in left.items()}
            self.event_log.note(start=self.plan["number"], left=labels)
            self.kill_switch.passing("opened")
            self.former = {number: snapshot.stored.identity for number, snapshot in left.items()}
            await self.report(client.resume())
            rounds = 0
            while self.pictures:
                # A failed job is run again; from the second round on with `buy_in_doubt`.
                self.jobs = {one.job(self.folder): name for name, one in self.pictures.items()}
                out, delete = self.folder / "out", self.plan["delete"]
                consents = {"buy_in_doubt": bool(rounds)}
                await self.report(client.batch(self.jobs, save_to=out, delete=delete, **consents))
                rounds += 1
        self.event_log.note(end=self.plan["number"])

    async def report(self, batch: Batch) -> None:
        """Log each outcome before anything else happens."""
        places: list[_Entry] = []
        take = batch._take

        def taking() -> Outcome | None:
            places[:] = list(batch._ended)[:1]
            return take()

        set_to(batch, "_take", taking)
        async with batch:
            async for outcome in batch:
                self.note(places[0], outcome)
                self.kill_switch.passing("reported")
                await anyio.sleep(self.plan["pause"])

    def note(self, place: _Entry, outcome: Outcome) -> None:
        item, error = place.item, outcome.error
        number = None if place.journal_entry is None else place.journal_entry.number or None
        if isinstance(item, RecoveredJob):
            number, identity = item.number, self.former[item.number]
        else:
            identity = self.jobs[item]
        self.event_log.note(
            picture=identity,
            number=number,
            task_id=outcome.task_id,
            files=list(map(str, outcome.files)) if isinstance(outcome, Done) else [],
            error=None if error is None else type(error).__name__,
            message=None if error is None else str(error),
            at_stake=0.0 if error is None else error.units_at_stake,
        )
        if outcome.ok:
            self.pictures.pop(identity, None)


def worker(plan: Plan) -> None:
    """Run a worker; its waits for the vendor are short."""
    set_to(commands, "_ANSWER_OVERDUE", 1.0)
    set_to(commands, "_LOOK_PAUSES", (0.0, 0.1, 0.2))
    set_to(retention, "_PAUSES", (0.0, 0.1, 0.2))
    one = Worker(plan)
    one.kill_switch.install()
    asyncio.run(one.work())


# The fork server.


def forkserver() -> None:
    for line in sys.stdin:
        plan: Plan = json.loads(line)
        time.sleep(plan["delay"])
        child = os.fork()
        if child == 0:
            run_child(plan)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run_child(plan: Plan) -> None:
    """Run a worker in the child, and end the child in any case."""
    status = 1
    try:
        worker(plan)
        status = 0
    except BaseException:  # noqa: BLE001 - a fork of the server does not go back into it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "vendor":
        vendor(int(sys.argv[2]), int(sys.argv[3]))
    else:
        forkserver()
