"""Killed at any point, again and again: nothing paid is lost, nothing is paid twice.

Real processes, real sockets, a real disk, and SIGKILL. CRASH_KILLS says how often (eight times,
and another forty with `--long`), CRASH_SEED where; both are printed.
"""

import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from perfect_async.sandbox._engine import Picture as Seen
from perfect_async.sandbox._engine import render
from tests.support import crashing
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
FEW = int(os.environ.get("CRASH_KILLS", "8"))
SEED = int(os.environ.get("CRASH_SEED", str(random.randrange(10**6))))
MANY, MOST = 40, 200
PASSED = 120
"""Points that a process which does its work passes, or more of them."""
OPEN = 8
"""Pictures that a process has before it."""


@contextmanager
def program(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process of `tests.support.crashing`, which ends with the test."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.crashing", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def asked(url: str) -> crashing.LedgerReport:
    """The vendor's answer, once it is there."""
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                report: crashing.LedgerReport = json.load(answer)
                return report
        except OSError:
            if time.monotonic() > until:
                raise


@attrs.define
class Story:
    """The log that all processes of the user have written."""

    reported: list[crashing.Line]
    left: list[crashing.Line]

    @classmethod
    def of(cls, path: Path) -> "Story":
        lines: list[crashing.Line] = []
        if path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
        reported = [line for line in lines if line.get("picture")]
        return cls(reported, [line for line in lines if line.get("left")])

    @property
    def done(self) -> dict[str, list[str]]:
        """The files of each finished picture, by its identity."""
        return {line["picture"]: line["files"] for line in self.reported if line["error"] is None}

    @property
    def delivered(self) -> dict[str, set[str]]:
        """The tasks of each finished picture; another process may report the same one again."""
        tasks: dict[str, set[str]] = {}
        for line in self.reported:
            if line["error"] is None:
                tasks.setdefault(line["picture"], set()).add(str(line["task_id"]))
        return tasks

    @property
    def lost(self) -> set[str]:
        """The tasks that were reported as charged for nothing.

        A result that was not saved is not lost: the next process saves it.
        """
        return {
            line["task_id"]
            for line in self.reported
            if line["at_stake"] and line["task_id"] and line["error"] != "NotSaved"
        }

    @property
    def doubts(self) -> Counter[str]:
        """How many creations of each picture were reported as in doubt, by its identity.

        A process that died while it reported a doubt left it to the next one, which may have found
        the task: the last report counts. A job that equals one in doubt has no number, and repeats
        a report.
        """
        last = {line["number"]: line for line in self.reported if line["number"]}
        return Counter(
            line["picture"] for line in last.values() if line["error"] == "SubmissionInDoubt"
        )

    @property
    def phases(self) -> Counter[str]:
        """The states of jobs when a process began."""
        return Counter(label for line in self.left for label in line["left"].values())


@attrs.define
class Crashes:
    """The user, who starts processes, which are killed, until all jobs are done."""

    folder: Path
    url: str
    chance: random.Random
    forkserver: "subprocess.Popen[str]"
    pictures: list[crashing.Picture] = attrs.field(factory=list)
    points: list[str] = attrs.field(factory=list)
    processes: int = 0
    kills: int = 0

    def left(self) -> list[int]:
        done = Story.of(self.folder / "event_log").done
        return [one.number for one in self.pictures if one.identity(self.folder) not in done]

    def process(self, *, killed: bool) -> int:
        """One process and its exit status, which is below 0 if it was killed."""
        left = self.left()
        while killed and len(left) < OPEN:
            self.pictures.append(crashing.Picture(len(self.pictures)))
            left.append(self.pictures[-1].number)
        self.processes += 1
        if not self.points:
            self.points = self.chance.sample(crashing.POINTS, len(crashing.POINTS))
        kill_switch = self.points.pop(), min(9, int(self.chance.expovariate(0.4)) + 1)
        plan: crashing.Plan = {
            "number": self.processes,
            "folder": str(self.folder),
            "url": self.url,
            "pictures": left,
            "delete": kill_switch[0].endswith("delete") or self.chance.random() < 0.5,
            "pause": self.chance.choice([0.0, 0.0, 0.1]),
            # Sometimes running tasks are lost before the next process starts.
            "delay": crashing.LEASE + 0.2 if self.chance.random() < 0.07 else 0.0,
            "kill_switch": kill_switch if killed else ("never", 1),
            "after": (self.chance.randint(1, PASSED), self.chance.uniform(0, 0.05))
            if killed
            else (0, 0.0),
        }
        assert self.forkserver.stdin is not None
        assert self.forkserver.stdout is not None
        self.forkserver.stdin.write(json.dumps(plan) + "\n")
        self.forkserver.stdin.flush()
        status = int(self.forkserver.stdout.readline())
        self.kills += status < 0
        assert status in {0, -9}, f"process {self.processes} ended with {status}"
        return status


def results(picture: crashing.Picture) -> list[set[bytes]]:
    """The vendor's result of a picture, as JPEG and as PNG."""
    seen = Seen("", None, picture.data)
    feature = "ai-smile" if picture.outputs == 1 else "ai-avatar"
    parameters = {
        "expression_type": "smile_with_teeth_visible",
        "template_id": crashing.TEMPLATE,
        "output_count": picture.outputs,
    }
    return [
        {render(feature, parameters, seen, index, png=png) for png in (False, True)}
        for index in range(picture.outputs)
    ]


@pytest.mark.real_time
@pytest.mark.timeout(300 + 10 * max(FEW, MANY))
@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_killed_at_any_point(kills: int, tmp_path: Path) -> None:
    """Every picture has its own result once, and every charge without a result is reported."""
    print(f"CRASH_KILLS={kills} CRASH_SEED={SEED}")
    began, port = time.monotonic(), free_port()
    url = f"http://127.0.0.1:{port}"
    with program("vendor", str(port), str(SEED)), program("forkserver") as forkserver:
        asked(f"{url}/ledger")
        crashes = Crashes(tmp_path, url, random.Random(SEED), forkserver)
        while crashes.kills < kills:
            crashes.process(killed=True)
        assert 0 == crashes.process(killed=False)
        ledger = asked(f"{url}/ledger")
    story = Story.of(tmp_path / "event_log")
    print(f"{crashes.processes} processes, {time.monotonic() - began:.1f} s", dict(story.phases))
    print(Counter(str(line["error"]) for line in story.reported))

    pictures = {one.identity(tmp_path): one for one in crashes.pictures}
    assert pictures.keys() == story.done.keys()
    for identity, files in story.done.items():
        kept = [Path(path).read_bytes() for path in files]
        expected = results(pictures[identity])
        assert len(expected) == len(kept)
        assert all(one in either for one, either in zip(kept, expected, strict=True)), files
    # A process that is killed during a download leaves a partial file.
    saved = list((tmp_path / "out").glob("[!.]*"))
    assert sum(one.outputs for one in crashes.pictures) == len(saved)

    tasks = {task["task_id"]: task for task in ledger["tasks"]}
    delivered = {identity: tasks[one] for identity, (one,) in story.delivered.items()}
    numbers = {identity: one.number for identity, one in pictures.items()}
    assert numbers == {identity: task["picture"] for identity, task in delivered.items()}
    assert {task["state"] for task in delivered.values()} <= {"success", "deleted"}
    # Tasks that were reported as lost have no result at the vendor, which keeps the units of every
    # task but one that its engine failed.
    assert {tasks[one]["state"] for one in story.lost} <= {"expired"}
    named = story.lost | {task["task_id"] for task in delivered.values()}
    unnamed = Counter(
        task["picture"]
        for task in ledger["tasks"]
        if task["state"] != "error" and task["task_id"] not in named
    )
    # Every other charge was reported as one creation in doubt. A doubt may have cost
    # nothing, if the process was killed before its request left, or the engine failed.
    doubts = Counter({numbers[identity]: count for identity, count in story.doubts.items()})
    assert unnamed <= doubts
    assert [] == ledger["violations"]
    assert 0 == ledger["refused"]
    # Many kills met jobs in all common states, and the most met them in rare ones too.
    assert "running" in story.phases
    if kills >= MANY:
        assert {"entered", "uploaded", "creating", "done"} <= story.phases.keys()
    if kills >= MOST:
        assert {"saved", "reported", "ended"} <= story.phases.keys()
