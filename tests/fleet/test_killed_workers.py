"""Worker processes on a real Redis server and a real port, two of which are killed."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from streaq import Worker as Engine

from perfect_async import Avatar, Job, Smile
from perfect_async.fleet import enqueue, make_order
from perfect_async.sandbox import Durations, Sandbox, portrait
from perfect_async.sandbox._server import serve
from tests.support.redis_server import RedisServer
from tests.support.terminal import ROOT, free_port

pytestmark = [pytest.mark.long, pytest.mark.real_time]

REQUESTS, PER_SECOND = 1500, 15
"""Six times the window and three times the rate of the vendor's."""

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
    """Worker processes; each writes its answers to a file of its own."""

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


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "count"), [("smile", 200), ("avatar", 40)])
async def test_everything_is_done_and_paid_once(
    kind: str, count: int, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Of two workers one is killed in the middle, and both at the last job; each is replaced. Every
    picture has its result, and none is paid twice.
    """
    port = free_port()
    sandbox = Sandbox(
        seed=1,
        requests=REQUESTS,
        per_second=PER_SECOND,
        units=10_000,
        origin=f"http://127.0.0.1:{port}",
        # Avatars take as long as three leases of a queue that is not renewed.
        durations={"ai-avatar": Durations.uniform(30.0, 60.0)},
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    orders = []
    for number in range(count):
        picture = disk / f"{number}.jpg"
        picture.write_bytes(portrait(number, size=96))
        orders.append(make_order(job_of(kind, picture), disk / "out"))
    fleet = Fleet(redis_server, tmp_path, port)
    server = asyncio.create_task(serve(sandbox, port=port))
    began = asyncio.get_running_loop().time()
    await enqueue(redis_server.url(), orders)
    with killed_at_the_end(fleet):
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
        async with Engine(redis_url=redis_server.url(), queue_name="perfect_async") as engine:
            while await engine.queue_size():  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.1)
    took = asyncio.get_running_loop().time() - began
    server.cancel()
    await asyncio.wait([server])
    ledger, answers = sandbox.ledger, fleet.answers()
    created = Counter(task.file_name for task in ledger.tasks)
    lost = [task for task in ledger.tasks if task.state != "success"]
    print(
        f"\n{count} {kind}s in {took:.0f} s: "
        f"{len(ledger.tasks)} tasks, {ledger.units_charged} units, "
        f"{sum(ledger.requests.values())} requests, {sum(ledger.refused.values())} refused, "
        f"{len(lost)} lost, answers by worker {dict(Counter(a['worker'] for a in answers))}, "
        f"answered twice {len(answers) - fleet.answered()}"
    )
    for task in lost:
        print(f"lost: {task!r}")
    for answer in answers:
        if not answer["ok"]:
            print(f"failed: {answer}")
    print(fleet.logs()[-3000:])

    assert count == len(created)
    assert {1} == set(created.values())
    assert [] == lost
    assert {True} == {answer["ok"] for answer in answers}
    assert count * (1 if kind == "smile" else 4) == len(list((disk / "out").iterdir()))
    assert 0 == ledger.refused.total()
    assert 0 == ledger.units_wasted
