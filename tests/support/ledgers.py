"""A process that is a member of a ledger and performs the commands on its standard input.

    python -m tests.support.ledgers FOLDER

Each line is a command with numbers, and is answered by one line of JSON. `take`, `publish`,
`release` and `leave` call the ledger; `count N` adds N to the epoch of the plan, one step at a
time; `churn N` performs N steps that may be refused; `fork` opens a ledger in a forked child, which
answers from then on.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from perfect_async._ledger.local import LocalLedger, open_local
from perfect_async._ledger.rows import LedgerUnavailable
from perfect_async.events import LedgerRow, MemberRow, PlanRow, RequestRow, SharedLimits

ROOT = Path(__file__).parents[2]
LIMITS = SharedLimits(250, 300_000_000, 5, 10_000_000)


def own_rows(member: str, *numbers: int) -> list[LedgerRow]:
    """Return the present row of a member, and its requests with these numbers."""
    now = time.monotonic_ns() // 1000
    return [
        MemberRow(member, os.getpid(), LIMITS, now, running=len(numbers)),
        *(RequestRow(member, number, now) for number in numbers),
    ]


class Member:
    """A member in its own process."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ledgers", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.name = self.answer()

    def send(self, command: str) -> None:
        """Send a command without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def answer(self) -> object:
        """Wait for the answer to a command."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def do(self, command: str) -> object:
        """Send a command and return its answer."""
        self.send(command)
        return self.answer()

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop the process, like Ctrl-Z."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue a stopped process."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process if it still runs."""
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def members(folder: Path, count: int) -> Iterator[list[Member]]:
    """Start `count` members at the same time."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Member(folder))) for _ in range(count)]


async def count(ledger: LocalLedger, steps: int) -> int:
    """Add `steps` to the epoch of the plan, which is correct only with a lock."""
    epoch = 0
    for _ in range(steps):
        snapshot = await ledger.take(30.0)
        assert snapshot is not None
        epoch = max(epoch, *(row.epoch for row in snapshot.rows if isinstance(row, PlanRow)), 0) + 1
        assert await ledger.publish([*own_rows(ledger.member), PlanRow(epoch, 176, 3)])
        await asyncio.sleep(0.0005)
    return epoch


async def churn(ledger: LocalLedger, steps: int) -> int:
    """Perform steps that may be refused, and return the number of refusals."""
    refused = 0
    for _ in range(steps):
        try:
            snapshot = await ledger.take(5.0)
            refused += snapshot is None or not await ledger.publish(own_rows(ledger.member, 1))
        except LedgerUnavailable:
            # The ledger was deleted while it was created; a later call succeeds.
            refused += 1
        await asyncio.sleep(0.001)
    return refused


async def obey(ledger: LocalLedger, command: str, *numbers: int) -> object:
    """Perform a command and return its answer."""
    match command:
        case "take":
            snapshot = await ledger.take(numbers[0] / 1000 if numbers else 5.0)
            if snapshot is None:
                return None
            return {
                "members": [row.member for row in snapshot.rows if isinstance(row, MemberRow)],
                "requests": [row.number for row in snapshot.rows if isinstance(row, RequestRow)],
                "gone": snapshot.gone,
                "afresh": snapshot.afresh,
            }
        case "publish":
            return await ledger.publish(own_rows(ledger.member, *numbers))
        case "release":
            await ledger.release()
            return None
        case "leave":
            await ledger.aclose()
            return None
        case "churn":
            return await churn(ledger, *numbers)
        case "count":
            return await count(ledger, *numbers)
        case _:
            raise ValueError(command)


def main(folder: Path) -> None:
    """Perform commands until the end of the input."""
    ledger = open_local(folder, "host", "key")
    print(json.dumps(ledger.member), flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "fork":
            if os.fork():
                # The child has the pipes.
                signal.pause()
            inherited, ledger = ledger, open_local(folder, "host", "key")
            try:
                asyncio.run(inherited.take(0))
            except LedgerUnavailable as exc:
                answer: object = [ledger.member, str(exc), os.getpid()]
            else:
                answer = "the ledger of the parent can be used in the child"
        else:
            answer = asyncio.run(obey(ledger, command, *map(int, numbers)))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
