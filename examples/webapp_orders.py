"""The work of `webapp.py`: each visitor's picture from the upload to the end of its hour.

Nothing here knows HTTP. It runs in a task group of the app's, so no request that ends takes any of
it along; and what is on the disk, results and journal, is enough to go on after a crash.
"""

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from perfect_async import Batch, Client, ClientClosed, NotSaved, PerfectError, Smile, SourceLost

MOST = 50  # uploads at a time: all of them are in memory
KEPT = 3600.0  # seconds for which a result can be looked at


class Full(Exception):
    """There are as many open orders as there may be."""


@dataclass(eq=False)
class Order:
    """One visitor's picture: open, or done with its `file`, or failed with its `error`."""

    id: str  # all that a visitor needs to see it, so nobody can guess it
    folder: Path
    born: float  # seconds since 1970
    batch: Batch | None = None
    file: Path | None = None
    error: PerfectError | None = None
    ended: anyio.Event = field(default_factory=anyio.Event)

    def end(self, files: Sequence[Path], error: PerfectError | None) -> None:
        """It is over. The batch holds the upload, and so does an error's traceback."""
        self.file, self.batch = next(iter(files), None), None
        self.error = None if error is None else error.with_traceback(None)
        self.ended.set()


class Orders:
    """All orders of the last hour, their results in `folder`, what they do in `group`."""

    def __init__(self, client: Client, group: TaskGroup, folder: Path) -> None:
        self._client = client
        self._group = group
        self._folder = folder
        self._orders: dict[str, Order] = {}
        folder.mkdir(mode=0o700, exist_ok=True)
        for former in folder.iterdir():
            order = self._orders[former.name] = Order(former.name, former, former.stat().st_mtime)
            if pictures := [path for path in former.iterdir() if path.suffix != ".part"]:
                order.end(pictures, None)
        group.start_soon(self._finish, self._open())
        group.start_soon(self._purge)

    def _open(self) -> list[Order]:
        return [order for order in self._orders.values() if not order.ended.is_set()]

    def find(self, order_id: str) -> Order | None:
        """The order of that id. Whatever else the text is, it is never a path."""
        return self._orders.get(order_id)

    def ahead(self, order: Order) -> int | None:
        """How many open orders came before this one, None if its task exists."""
        if order.batch is None or not order.batch.progress.waiting:
            return None
        return sum(other.born < order.born for other in self._open())

    @contextmanager
    def begin(self) -> Iterator[Order]:
        """A place for an upload, which is given back where the block fails; raises `Full`."""
        if len(self._open()) >= MOST:
            raise Full
        order_id = secrets.token_urlsafe(24)
        order = self._orders[order_id] = Order(order_id, self._folder / order_id, time.time())
        try:
            yield order
        except BaseException:
            del self._orders[order_id]
            raise

    def run(self, order: Order, content: bytes) -> None:
        """Make it smile, whoever waits for that."""
        self._group.start_soon(self._run, order, content)

    async def forget(self, order: Order) -> None:
        """Its id leads nowhere any more, and its result is deleted."""
        self._orders.pop(order.id, None)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(order.folder, ignore_errors=True))

    async def _run(self, order: Order, content: bytes) -> None:
        # By their keys two visitors' equal pictures are two jobs: nobody gets another's result.
        job = Smile(content, key=order.id)
        try:
            await anyio.Path(order.folder).mkdir(mode=0o700)
            async with self._client.batch([job], save_to=order.folder, delete=True) as order.batch:
                async for outcome in order.batch:
                    order.end(outcome.files, outcome.error)
        except PerfectError as error:
            order.end((), error)
        except OSError as error:
            order.end((), NotSaved(f"There is no folder for it: {error}."))

    async def _finish(self, former: list[Order]) -> None:
        """Bring what was in flight when the app died to its end: the journal knows its keys."""
        try:
            async with self._client.resume() as batch:
                async for outcome in batch:
                    if order := self._orders.get(outcome.job.key or ""):
                        order.end(outcome.files, outcome.error)
        except ClientClosed:
            return  # the next start goes on
        for order in former:
            if not order.ended.is_set():
                order.end((), SourceLost("The app stopped before the picture was on its way."))

    async def _purge(self) -> None:
        while True:
            await anyio.sleep(60)
            for order in list(self._orders.values()):
                if order.ended.is_set() and order.born + KEPT < time.time():
                    await self.forget(order)
