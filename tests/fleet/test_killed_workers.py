"""Worker processes on a real Redis server and a real port, two of which are killed."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from streaq import Worker as Engine

from perfect_async import Avatar, Job, Smile
from perfect_async.fleet import Order, enqueue, make_order
from perfect_async.sandbox import Durations, Sandbox, portrait
from perfect_async.sandbox._charges import TaskRecord
from perfect_async.sandbox._server import serve
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.terminal import ROOT

pytestmark = [pytest.mark.long, pytest.mark.minutes, pytest.mark.real_time]

REQUESTS, PER_SECOND = 1500, 15
"""Six times the vendor's window and three times its rate."""

BUYER = """
import asyncio, json, sys
from pathlib import Path
from perfect_async import Client, Limits, Smile

share, folder, requests, per_second = sys.argv[1:]

async def main():
    limits = Limits(int(requests), 300.0, int(per_second))
    jobs = [Smile(path) for path in sorted(Path(folder).glob("*.jpg"))]
    async with Client("key", limits=limits, share=share, reuse=True) as client:
        async with client.batch(jobs) as batch:
            async for outcome in batch:
                source = str(outcome.job.source)
                print(json.dumps({"source": source, "ok": outcome.ok, "task": outcome.task_id}))

asyncio.run(main())
"""

WORKER = """
import asyncio, json, logging, os, sys
from perfect_async import Client, Limits
from perfect_async.fleet import Worker

logging.basicConfig(level="WARNING")
redis, folder, requests, per_second = sys.argv[1:]

def client():
    limits = Limits(int(requests), 300.0, int(per_second))
    return Client("key", limits=limits, share=redis, reuse=True)

def answered(order, answer):
    print(json.dumps({"source": order["source"], **answer}), flush=True)

asyncio.run(Worker(redis, [folder], make_client=client, on_answer=answered).run())
"""


class Fleet:
    """Worker processes; each writes its answers to its own file."""

    def __init__(self, redis: RedisServer, folder: Path, port: int) -> None:
        self._redis, self._folder, self._port = redis, folder, port
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        command = [sys.executable, "-c", WORKER, self._redis.url(), str(self._folder / "disk")]
        command += [str(REQUESTS), str(PER_SECOND)]
        variables = {"PYTHONPATH": str(ROOT), "YOUCAM_BASE_URL": f"http://127.0.0.1:{self._port}"}
        log = (self._folder / f"{name}.log").open("wb")
        with log, (self._folder / f"{name}.out").open("wb") as out:
            self.workers[name] = subprocess.Popen(
                command, stdout=out, stderr=log, env={**os.environ, **variables}
            )

    def kill(self, name: str) -> None:
        process = self.workers.pop(name)
        process.kill()
        process.wait()

    def answers(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for file in sorted(self._folder.glob("*.out")):
            # The last line of a killed worker may be cut off.
            for line in file.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    found.append({"worker": file.stem, **json.loads(line)})
        return found

    def answered(self) -> int:
        return len({answer["source"] for answer in self.answers()})

    async def until(self, count: int) -> None:
        while self.answered() < count:
            await asyncio.sleep(0.1)
            assert all(process.poll() is None for process in self.workers.values()), self.logs()

    def logs(self) -> str:
        files = sorted(self._folder.glob("*.log"))
        return "\n".join(f"{file.name}: {file.read_text()}" for file in files)


@contextlib.contextmanager
def killed_at_the_end(fleet: Fleet) -> Iterator[None]:
    try:
        yield
    finally:
        for name in list(fleet.workers):
            fleet.kill(name)


def job_of(kind: str, picture: Path) -> Job:
    if kind == "smile":
        return Smile(picture)
    return Avatar(picture, template_id="male_studio_00", output_count=4)


class Run:
    """A sandbox on a port, a disk with pictures, and workers."""

    def __init__(self, redis: RedisServer, folder: Path, kind: str, count: int) -> None:
        port = free_port()
        self.port, self.redis, self.count, self.kind = port, redis, count, kind
        self.sandbox = Sandbox(
            seed=1,
            requests=REQUESTS,
            per_second=PER_SECOND,
            units=10_000,
            origin=f"http://127.0.0.1:{port}",
            # Avatars last several times as long as an order may be without a heartbeat.
            durations={"ai-avatar": Durations.uniform(30.0, 60.0)},
        )
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.orders: list[Order] = []
        for number in range(count):
            picture = self.disk / f"{number}.jpg"
            picture.write_bytes(portrait(number, size=96))
            self.orders.append(make_order(job_of(kind, picture), self.disk / "out"))
        self.fleet = Fleet(redis, folder, port)
        self.took = 0.0

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[Fleet]:
        """Serve the sandbox, and fill the queue; afterwards wait until the queue is empty."""
        server = asyncio.create_task(serve(self.sandbox, port=self.port))
        began = asyncio.get_running_loop().time()
        await enqueue(self.redis.url(), self.orders)
        with killed_at_the_end(self.fleet):
            yield self.fleet
            async with Engine(redis_url=self.redis.url(), queue_name="perfect_async") as engine:
                while await engine.queue_size():  # noqa: ASYNC110 - other processes
                    await asyncio.sleep(0.1)
        self.took = asyncio.get_running_loop().time() - began
        server.cancel()
        await asyncio.wait([server])

    def report(self) -> list[TaskRecord]:
        """Print a summary, and return the lost tasks."""
        ledger, answers = self.sandbox.ledger, self.fleet.answers()
        lost = [task for task in ledger.tasks if task.state != "success"]
        print(
            f"\n{self.count} {self.kind}s in {self.took:.0f} s: "
            f"{len(ledger.tasks)} tasks, {ledger.units_charged} units, "
            f"{sum(ledger.requests.values())} requests, {sum(ledger.refused.values())} refused, "
            f"{len(lost)} lost, answers by worker {dict(Counter(a['worker'] for a in answers))}, "
            f"answered twice {len(answers) - self.fleet.answered()}"
        )
        for task in lost:
            print(f"lost: {task!r}")
        for answer in answers:
            if not answer["ok"]:
                print(f"failed: {answer}")
        print(self.fleet.logs())
        return lost

    def check(self, most: int) -> None:
        """Check that each picture was paid once, and is done or, for at most `most`, lost.

        A process may end, or be stopped, between a creation and its answer; the task's id is then
        unknown. A busy machine may also be late with the polls for a task that it took over.
        """
        lost, ledger = self.report(), self.sandbox.ledger
        created = Counter(task.file_name for task in ledger.tasks)
        answers = {str(answer["source"]): answer for answer in self.fleet.answers()}
        failed = {Path(source).name for source, answer in answers.items() if not answer["ok"]}
        pictures = 1 if self.kind == "smile" else 4

        assert self.count == len(created) == len(answers)
        assert {1} == set(created.values())
        assert failed == {task.file_name for task in lost}
        assert len(lost) <= most
        assert (self.count - len(lost)) * pictures == len(list((self.disk / "out").iterdir()))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "count"), [("smile", 200), ("avatar", 40)])
async def test_everything_is_done_and_paid_once(
    kind: str, count: int, redis_server: RedisServer, tmp_path: Path
) -> None:
    """One of two workers is killed in the middle, and both at the last job; each is replaced. The
    new workers take over the running tasks.
    """
    run = Run(redis_server, tmp_path, kind, count)
    async with run.served() as fleet:
        fleet.start("a")
        fleet.start("b")
        await fleet.until(count // 2)
        fleet.kill("a")
        fleet.start("c")
        await fleet.until(count - 1)
        fleet.kill("b")
        fleet.kill("c")
        fleet.start("d")
        await fleet.until(count)

    run.check(most=3)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [4, 20])
async def test_a_stopped_worker_pays_for_nothing_twice(
    seconds: int, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A worker process is stopped for longer than its heartbeat and those of its orders last."""
    run = Run(redis_server, tmp_path, "smile", 80)
    async with run.served() as fleet:
        fleet.start("a")
        fleet.start("b")
        await fleet.until(20)
        fleet.workers["a"].send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        fleet.workers["a"].send_signal(signal.SIGCONT)
        await fleet.until(80)

    run.check(most=6)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ["machine", "redis"])
async def test_processes_with_the_same_pictures_buy_each_once(
    place: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Four processes that start at once buy each picture once, and each gets all results."""
    run = Run(redis_server, tmp_path, "smile", 40)
    share = "machine" if place == "machine" else redis_server.url()
    server = asyncio.create_task(serve(run.sandbox, port=run.port))
    command = [sys.executable, "-c", BUYER, share, str(run.disk), str(REQUESTS), str(PER_SECOND)]
    variables = {"PYTHONPATH": str(ROOT), "YOUCAM_BASE_URL": f"http://127.0.0.1:{run.port}"}
    processes = [
        await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, env={**os.environ, **variables}
        )
        for _ in range(4)
    ]
    outputs = [(await process.communicate())[0] for process in processes]
    server.cancel()
    await asyncio.wait([server])
    reports = [[json.loads(line) for line in out.splitlines()] for out in outputs]
    ledger = run.sandbox.ledger
    print(f"\n{len(ledger.tasks)} tasks, {sum(ledger.requests.values())} requests")

    assert [40] * 4 == [sum(outcome["ok"] for outcome in each) for each in reports]
    assert 40 == len({outcome["task"] for each in reports for outcome in each})
    assert 40 == len(ledger.tasks)
    assert 0 == ledger.refused.total()
