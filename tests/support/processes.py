"""Processes that share a key: a vendor on a port, and programs like those of users.

`Town` starts and watches them. It has its own state folder.

    python -m tests.support.processes vendor PORT SETTINGS   a sandbox; GET /ledger
    python -m tests.support.processes work WORK              runs one batch
    python -m tests.support.processes fork METHOD WORK       forks or spawns processes that do
    python -m tests.support.processes threads WORK           two event loops and an isolated client
    uvicorn tests.support.processes:app                      a smile for each request

SETTINGS and WORK are JSON, and so are the reports, which are lines of stdout. `app` reads its WORK
from the environment variable WORK. The log goes to stderr.
"""

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, Self, TypedDict, cast

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from perfect_async import Avatar, Client, Job, Limits, Outcome, Polling, Smile, Timeouts
from perfect_async.sandbox import Durations, Sandbox, portrait, serve
from perfect_async.sandbox._portraits import seed_of
from perfect_async.webhooks import WebhookApp
from tests.support.ports import free_port

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

KEY = "sk-a-key-of-many-processes"
SIDE = 64
TEMPLATE = "male_studio_00"


class Work(TypedDict):
    """The work of a process: `count` pictures from number `first` on, with these settings.

    `avatars` is the number of outputs of each avatar; without it the jobs are smiles. `file_size`
    is the most bytes of any file that it writes, like on a full disk. `queries` is the number of
    times it asks for the balance first.
    """

    url: str
    first: int
    count: int
    requests: int
    period: float
    per_second: int
    lease: float
    avatars: NotRequired[int]
    share: NotRequired[str | None]
    secret: NotRequired[str]
    file_size: NotRequired[int]
    queries: NotRequired[int]


class Report(TypedDict):
    """The end of a batch: its errors by type, and numbers of the client's statistics."""

    pid: int
    done: int
    errors: dict[str, int]
    requests: dict[str, int]
    refused: int
    most_members: int
    waited: float
    lost: float


class Task(TypedDict):
    """A task of the vendor."""

    task_id: str
    state: str
    picture: int | None


class LedgerReport(TypedDict):
    """The vendor's ledger."""

    tasks: list[Task]
    states: dict[str, int]
    requests: dict[str, int]
    refused: int
    violations: list[str]
    charged: int
    wasted: int
    most: int
    webhooks: list[int]


# Starting the processes.

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0
"""The longest time, in seconds, for any wait, also on a busy machine."""


class Program:
    """A process of this module or another one; its output goes to two files."""

    def __init__(self, town: "Town", name: str, arguments: Sequence[str], **more: str) -> None:
        self.name = name
        self._out, self._err = town.folder / f"{name}.out", town.folder / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env={**os.environ, **town.environment, "PYTHONPATH": str(ROOT), **more},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                # Its forked children are in its process group, and end with it.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def lines(self) -> list[dict[str, object]]:
        """Return the lines that it has reported so far."""
        return [json.loads(line) for line in self._out.read_text().splitlines()]

    def said(self) -> str:
        """Return its log."""
        return self._err.read_text()

    def wait_for(self, name: str, count: int = 1) -> None:
        """Wait until it has reported `name` `count` times."""
        self.until(lambda: count <= sum(name in line for line in self.lines()))

    def until(self, true: Callable[[], bool]) -> None:
        limit = time.monotonic() + PATIENCE
        while not true():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < limit, self.said()
            time.sleep(0.02)

    def reports(self, count: int = 1) -> list[Report]:
        """Wait for its normal end, and return the reports of its batches."""
        assert 0 == self.process.wait(PATIENCE), self.said()
        assert "Traceback" not in self.said(), self.said()
        found = [line for line in self.lines() if "done" in line]
        assert count == len(found), self.said()
        return cast("list[Report]", found)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Town:
    """A vendor on a port and the programs that use it with one key, with their own state folder.

    `settings` are for the vendor, and its clients assume the same. `share` is for the clients.
    """

    def __init__(self, folder: Path, *, share: str | None = None, **settings: object) -> None:
        self.folder = folder
        self.share = share
        self.state = folder / "state"
        self.settings: dict[str, object] = {
            "requests": 100_000,
            "period": 300.0,
            "per_second": 200,
            "lease": 10.0,
            "durations": (6.0, 12.0),
            **settings,
        }
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {"PERFECT_ASYNC_STATE": str(self.state)}
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        given = json.dumps(self.settings)
        server = self.program("vendor", "tests.support.processes", "vendor", str(self.port), given)
        wait_for_port(server, self.port)
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs:
            program.end()

    def work(self, first: int, count: int, **settings: object) -> Work:
        """Return a batch of `count` pictures from number `first` on."""
        assumed = ("requests", "period", "per_second", "lease")
        given = {name: self.settings[name] for name in assumed}
        if self.share is not None:
            given["share"] = self.share
        work = {"url": self.url, "first": first, "count": count, **given, **settings}
        return cast("Work", work)

    def program(self, name: str, *arguments: str, **environment: str) -> Program:
        started = Program(self, name, arguments, **environment)
        self._programs.append(started)
        return started

    def worker(self, name: str, work: Work, **environment: str) -> Program:
        """Start a program that runs one batch."""
        return self.program(
            name, "tests.support.processes", "work", json.dumps(work), **environment
        )

    def ledger(self) -> LedgerReport:
        """Return the vendor's ledger."""
        return cast("LedgerReport", httpx.get(f"{self.url}/ledger", timeout=30).json())

    def files(self) -> list[Path]:
        """Return the files of the ledger that the programs share."""
        return sorted(path for path in self.state.rglob("*") if path.is_file())


def check(town: Town, pictures: int, *, lost: int = 0) -> None:
    """Check that the vendor refused nothing, and that each picture was paid once, or was lost."""
    ledger = town.ledger()
    assert (0, []) == (ledger["refused"], ledger["violations"])
    assert lost == ledger["wasted"]
    assert pictures + lost == sum(ledger["states"].values())
    bought = [task["picture"] for task in ledger["tasks"] if task["state"] == "success"]
    assert pictures == len(set(bought)) == len(bought)
    assert ledger["most"] <= town.settings["requests"]  # type: ignore[operator]


def all_done(reports: list[Report], pictures: int) -> None:
    """Check that every job of `reports` is done, and their number."""
    assert [{}] * len(reports) == [report["errors"] for report in reports]
    assert pictures == sum(report["done"] for report in reports)
    assert {0} == {report["refused"] for report in reports}


def begun(
    town: Town, parts: int, each: int, *, avatars: int = 0, others: int | None = None
) -> list[Program]:
    """Start `parts` processes, and wait until each has created its first task.

    `others` is the number of outputs for all processes but the first, if it differs.
    """
    rest = avatars if others is None else others
    works = [town.work(each * n, each, avatars=rest if n else avatars) for n in range(parts)]
    programs = [town.worker(str(number), work) for number, work in enumerate(works)]
    for program in programs:
        program.wait_for("begun")
    return programs


def all_of(programs: list[Program], pictures: int) -> list[Report]:
    """Wait for the normal end of all processes, check them, and return their reports."""
    reports = [report for program in programs for report in program.reports()]
    all_done(reports, pictures)
    return reports


# Checks for any ledger, on a file of the machine or on a Redis server.


def two_runs(town: Town) -> None:
    """Check that a second run waits for the window of the first, and loses nothing."""
    first = town.worker("first", town.work(0, 4, queries=222))
    all_of([first], 4)
    second = town.worker("second", town.work(4, 20))
    [report] = all_of([second], 20)

    assert report["waited"] > 3
    assert 1 == second.said().count("The request window of this key is full")
    assert "The first job is sent in about" in second.said()
    check(town, 24)


def four_share(town: Town, each: int, avatars: int) -> None:
    """Check that four processes with more work than a window holds lose nothing."""
    reports = all_of(begun(town, 4, each, avatars=avatars), 4 * each)

    assert 4 == max(report["most_members"] for report in reports)
    check(town, 4 * each)


def different_limits(town: Town) -> None:
    """Check that the strictest limits hold, and that the process with wider ones says so."""
    wide = town.worker("wide", town.work(0, 30, requests=500, per_second=40))
    strict = town.worker("strict", town.work(30, 30))

    all_of([wide, strict], 60)
    assert 1 == wide.said().count("has other settings")
    assert "This one has 500 requests in 75 s, 40 a second" in wide.said()
    assert "the strictest of each hold: 250 requests in 75 s, 20 a second" in wide.said()
    assert "has other settings" not in strict.said()
    check(town, 60)


def one_stops(town: Town, parts: int, stops: float, avatars: int) -> None:
    """Stop one process for a while, and check that the others poll its tasks."""
    # The others must run for as long as it is stopped.
    programs = begun(town, parts, 10, avatars=avatars, others=4)
    time.sleep(3)
    programs[0].send(signal.SIGSTOP)
    time.sleep(stops)
    programs[0].send(signal.SIGCONT)

    all_of(programs, 10 * parts)
    check(town, 10 * parts)


def wait_for_port(server: Program, port: int) -> None:
    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    server.until(answers)


# The vendor.


class Vendor(Sandbox):
    """A sandbox that serves its ledger."""

    period = 300.0

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or scope["path"] != "/ledger":
            await super().__call__(scope, receive, send)
            return
        body = json.dumps(self.report()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def report(self) -> LedgerReport:
        tasks, ledger = self._router._tasks._by_id, self.ledger
        return {
            "tasks": [
                {
                    "task_id": record.task_id,
                    "state": record.state,
                    "picture": seed_of(tasks[record.task_id].picture.data or b""),
                }
                for record in ledger.tasks
            ],
            "states": dict(ledger.tasks_by_state),
            "requests": dict(ledger.requests),
            "refused": sum(ledger.refused.values()),
            "violations": ledger.violations,
            "charged": ledger.units_charged,
            "wasted": ledger.units_wasted,
            "most": ledger.max_in_window(self.period),
            "webhooks": [record.answer for record in ledger.webhooks],
        }


def vendor(port: int, settings: Mapping[str, object]) -> None:
    given = dict(settings)
    smile, avatar = cast("tuple[float, float]", given.pop("durations"))
    sandbox = Vendor(
        seed=1,
        units=100_000.0,
        latency=0.02,
        jitter=0.02,
        origin=f"http://127.0.0.1:{port}",
        durations={
            "ai-smile": Durations.uniform(smile / 2, smile * 3 / 2),
            "ai-avatar": Durations.uniform(avatar / 2, avatar * 3 / 2),
        },
        **given,  # type: ignore[arg-type]
    )
    sandbox.period = cast("float", settings["period"])
    asyncio.run(serve(sandbox, port=port))


# A program.


def client(work: Work, **settings: object) -> Client:
    """Return the client of a program; each program has its own transport."""
    given: dict[str, object] = {
        "base_url": work["url"],
        "limits": Limits(work["requests"], work["period"], work["per_second"]),
        # The defaults, in proportion to the lease.
        "polling": Polling(
            lease=work["lease"],
            interval=work["lease"] / 5,
            insured=work["lease"] * 12,
            give_up_after=work["lease"] * 60,
        ),
        "timeouts": Timeouts(request=10.0),
        "drain": 60.0,
        **({"share": work["share"]} if "share" in work else {}),
        **({"webhook_secret": work["secret"]} if "secret" in work else {}),
        **settings,
    }
    return Client(KEY, **given)  # type: ignore[arg-type]


def job(work: Work, number: int) -> Job:
    data, outputs = portrait(number, SIDE), work.get("avatars", 0)
    return Avatar(data, TEMPLATE, output_count=outputs) if outputs else Smile(data)


async def perform(work: Work, *, isolated: bool = False) -> None:
    """Run a batch; report its end, and its beginning once the first task was created."""
    numbers = range(work["first"], work["first"] + work["count"])
    ended: list[Outcome] = []
    members, waited, begun = 1, 0.0, False
    async with client(work, isolated=isolated) as opened:
        tell({"opened": os.getpid()})
        for _ in range(work.get("queries", 0)):
            await opened.units()
        async with opened.batch([job(work, number) for number in numbers]) as batch:

            async def watch() -> None:
                nonlocal members, waited, begun
                while True:
                    now = opened.statistics()
                    members, waited = max(members, now.members), max(waited, now.window_wait)
                    if now.requests.get("submit", 0) and not begun:
                        begun = True
                        tell({"begun": os.getpid()})
                    await asyncio.sleep(0.05)

            watcher = asyncio.create_task(watch())
            ended.extend([outcome async for outcome in batch])
            watcher.cancel()
        statistics = opened.statistics()
    errors = [outcome.error for outcome in ended if outcome.error is not None]
    report: Report = {
        "pid": os.getpid(),
        "done": sum(outcome.ok for outcome in ended),
        "errors": dict(Counter(type(error).__name__ for error in errors)),
        "requests": dict(statistics.requests),
        "refused": statistics.refused,
        "most_members": members,
        "waited": waited,
        "lost": sum(error.units_at_stake for error in errors),
    }
    tell(report)


def tell(report: Mapping[str, object]) -> None:
    """Write a line in one call, so that lines of several processes are not mixed."""
    os.write(1, json.dumps(report).encode() + b"\n")


def run(work: Work) -> None:
    """Run a batch as a program."""
    prepare(work)
    asyncio.run(perform(work))


def prepare(work: Work) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    if "file_size" in work:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (work["file_size"], work["file_size"]))


def share(work: Work, part: int, parts: int) -> Work:
    """Return one of `parts` equal parts of `work`."""
    count = work["count"] // parts
    return Work(**{**work, "first": work["first"] + part * count, "count": count})


def multiply(method: str, work: Work) -> None:
    """Run a batch while three children, forked or spawned, run batches, too."""
    fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
    context = fork if method == "fork" else spawn

    async def parent() -> None:
        async with client(work) as opened:
            # The parent has a client, a ledger and a lock when its children start.
            await opened.units()
            children = [
                context.Process(target=run, args=(share(work, part, 4),)) for part in range(1, 4)
            ]
            for child in children:
                child.start()
            await perform(share(work, 0, 4))
            for child in children:
                await asyncio.to_thread(child.join)
        tell({"codes": [child.exitcode for child in children]})

    prepare(work)
    asyncio.run(parent())


def threads(work: Work) -> None:
    """Run three batches in one process: two event loops, one of which has an isolated client."""
    prepare(work)
    others = [
        threading.Thread(target=lambda: asyncio.run(perform(share(work, 1, 3)))),
        threading.Thread(target=lambda: asyncio.run(perform(share(work, 2, 3), isolated=True))),
    ]
    for other in others:
        other.start()
    asyncio.run(perform(share(work, 0, 3)))
    for other in others:
        other.join()


# A web app.


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    work: Work = json.loads(os.environ["WORK"])
    prepare(work)
    async with client(work) as opened:
        app.state.client, app.state.work = opened, work
        if "secret" in work:
            app.router.routes.append(Mount("/webhook", WebhookApp(opened.webhooks)))
        yield


async def smile(request: Request) -> JSONResponse:
    """Make a smile, and answer with the process that made it."""
    number = int(request.query_params["number"])
    opened = cast("Client", request.app.state.client)
    result = await opened.run(job(request.app.state.work, number))
    return JSONResponse({"pid": os.getpid(), "pictures": len(result.images)})


app = Starlette(routes=[Route("/smile", smile)], lifespan=lifespan)


def main(command: str, *arguments: str) -> None:
    match command:
        case "vendor":
            vendor(int(arguments[0]), json.loads(arguments[1]))
        case "work":
            run(json.loads(arguments[0]))
        case "fork":
            multiply(arguments[0], json.loads(arguments[1]))
        case "threads":
            threads(json.loads(arguments[0]))
        case _:
            raise ValueError(command)


if __name__ == "__main__":
    main(*sys.argv[1:])
