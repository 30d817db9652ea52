"""The orders of `webapp.py`: each visitor's picture from its upload until its result is deleted.

This module knows nothing of HTTP. Its tasks run in a task group of the app, so they outlive the
request that started them. After a crash it continues from the results and the journal on the disk.
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

MAX_UPLOADS = 50  # uploads at a time, since each is in memory
RESULT_LIFETIME = 3600.0  # seconds until a result is deleted


class TooManyUploads(Exception):
    """The limit of open orders is reached."""


@dataclass(eq=False)
class Order:
    """One visitor's picture: open, or done with its `file`, or failed with its `error`."""

    id: str  # cannot be guessed, since it is all that a visitor needs to see the result
    folder: Path
    created_at: float  # seconds since 1970
    batch: Batch | None = None
    file: Path | None = None
    error: PerfectError | None = None
    ended: anyio.Event = field(default_factory=anyio.Event)

    def end(self, files: Sequence[Path], error: PerfectError | None) -> None:
        """Record the end. The batch and the error's traceback hold the upload, so both go."""
        self.file, self.batch = next(iter(files), None), None
        self.error = None if error is None else error.with_traceback(None)
        self.ended.set()


class Orders:
    """The orders of the last hour: their results are in `folder`, their tasks in `group`."""

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
        """Return the order with that id; the text is never used as a path."""
        return self._orders.get(order_id)

    def ahead(self, order: Order) -> int | None:
        """Return the number of open orders before this one, None once its task exists."""
        if order.batch is None or not order.batch.progress.waiting:
            return None
        return sum(other.created_at < order.created_at for other in self._open())

    @contextmanager
    def reserve(self) -> Iterator[Order]:
        """Reserve a place for an upload; free it where the block fails. Raises `TooManyUploads`."""
        if len(self._open()) >= MAX_UPLOADS:
            raise TooManyUploads
        order_id = secrets.token_urlsafe(24)
        order = self._orders[order_id] = Order(order_id, self._folder / order_id, time.time())
        try:
            yield order
        except BaseException:
            del self._orders[order_id]
            raise

    def start(self, order: Order, content: bytes) -> None:
        """Start the job of an uploaded picture."""
        self._group.start_soon(self._run, order, content)

    async def delete(self, order: Order) -> None:
        """Delete the order and its result."""
        self._orders.pop(order.id, None)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(order.folder, ignore_errors=True))

    async def _run(self, order: Order, content: bytes) -> None:
        # The key makes equal pictures of two visitors two jobs: each gets a result of its own.
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
        """Finish the orders that were open when the app died; the journal has their keys."""
        try:
            async with self._client.resume() as batch:
                async for outcome in batch:
                    if order := self._orders.get(outcome.job.key or ""):
                        order.end(outcome.files, outcome.error)
        except ClientClosed:
            return  # the next start continues
        for order in former:
            if not order.ended.is_set():
                order.end((), SourceLost("The app stopped before the picture was sent."))

    async def _purge(self) -> None:
        while True:
            await anyio.sleep(60)
            for order in list(self._orders.values()):
                if order.ended.is_set() and order.created_at + RESULT_LIFETIME < time.time():
                    await self.delete(order)
