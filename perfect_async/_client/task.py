"""Handles of single jobs: `Task` for users, and `TrackedJob` inside the client.

The client keeps a `TrackedJob` to its end whether anybody waits for it or not, so dropping a `Task`
loses nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING

import anyio

from perfect_async._client import settings
from perfect_async._client.results import Done, Result
from perfect_async._client.settings import attach_call
from perfect_async._log import type_name
from perfect_async._runtime.handle import JobHandle
from perfect_async.errors import (
    ClientClosed,
    NotSaved,
    PerfectError,
    WaitTimeout,
    copy_error,
    quoted,
)
from perfect_async.models import Job
from perfect_async.reports import JobEvent, JobEventKind, TaskState

if TYPE_CHECKING:
    from perfect_async._client.session import ClientSession


class TrackedJob:
    """One job that the client has accepted: its events, and its end once its pictures are saved.

    `saves`: whether they are saved if the options of the job have a folder. `task_id` is the job's
    last task. `accepted` is set once the vendor has accepted the task or the job has ended, `ended`
    together with `ending`.
    """

    def __init__(self, session: ClientSession, handle: JobHandle, *, saves: bool = True) -> None:
        self.session = session
        self._folder = handle.spec.options.save_to if saves else None
        self.handle = handle
        self.task_id = handle.task_id
        self.accepted = anyio.Event()
        self.ended = anyio.Event()
        self.ending: Result | PerfectError | None = None
        self.events: list[JobEvent] = []
        self._news = anyio.Event()
        self._saving = self._reported = False
        if handle.spec.job is not None:
            self._note("queued")
            if handle.task_id is not None:
                self._note("submitted")
        handle.observe(self._note)
        handle.subscribe(self._changed)
        self._changed()

    @property
    def state(self) -> TaskState:
        """The state of the job, as in `Task`."""
        if self.ending is not None:
            return "done" if isinstance(self.ending, Result) else "failed"
        handle = self.handle.leader or self.handle
        if handle.task_id is not None or handle.ending is not None:
            return "running"
        return "preparing" if handle.submitting or handle.preparing else "queued"

    def _note(self, kind: JobEventKind) -> None:
        self.events.append(self.session.emit(kind, self.handle.spec.job, self.handle.task_id))
        news, self._news = self._news, anyio.Event()
        news.set()

    def _changed(self) -> None:
        """Handle a change of the handle."""
        handle, session = self.handle, self.session
        if handle.task_id is not None:
            self.task_id = handle.task_id
            self.accepted.set()
        if handle.ending is None or self._saving or self.ending is not None:
            return
        if self._folder is None or not session.driver.alive:
            self.end()
        else:
            self._saving = True
            session.retention.begin(handle)
            session.driver.start(self._save)

    async def _save(self) -> None:
        try:
            outcome = await self.session.save_outcome(self.handle)
            self._end(outcome.result if isinstance(outcome, Done) else outcome.error)
        finally:
            # The driver may end before it is saved; the journal records that.
            self.end()
            self.session.delete_unused()

    def end(self) -> None:
        """End as the handle ended, unless the job has ended already."""
        if self.ending is None:
            error = self.handle.ending
            self._end(error if isinstance(error, PerfectError) else self._result())

    def _result(self) -> Result:
        return self.session.result(self.handle)

    def end_with_thread(self, error: ClientClosed) -> None:
        """End the job after the thread of an isolated client has ended with `error`.

        Raises the error of an abandoned job if the thread did not end the job's handle.
        """
        if self.handle.ending is None:
            raise self.handle.abandoned(error.__cause__) from error.__cause__
        self.end()

    def unwrap(self) -> Result:
        """Return the result, or raise a copy of the error."""
        if isinstance(self.ending, PerfectError):
            raise copy_error(self.ending)
        if self.ending is None:
            raise AssertionError(self)
        return self.ending

    def _end(self, ending: Result | PerfectError) -> None:
        self.ending = ending
        self._note("finished")
        self.accepted.set()
        self.ended.set()

    async def event(self, index: int) -> JobEvent | None:
        """Return the event of this `index` once it has happened; None after the last one."""
        while len(self.events) <= index:
            if self.ended.is_set():
                return None
            await self._news.wait()
        return self.events[index]

    def report(self) -> None:
        """Record that a caller has the outcome, so that `resume` does not yield it again."""
        if not self._reported and not isinstance(self.ending, NotSaved):
            self._reported = True
            self.handle.entry.reported()

    def timed_out(self, timeout: float, what: str) -> WaitTimeout:
        """Return the error for a wait of `timeout` seconds that ended without success."""
        return wait_timeout(timeout, what, self.handle, self.handle.failure)


def wait_timeout(
    timeout: float,
    what: str,
    handle: JobHandle | None,
    failure: PerfectError | None,
    window_wait: float = 0.0,
) -> WaitTimeout:
    """Return the error for a wait of `timeout` seconds; `failure` is the last request's error.

    `window_wait`: the seconds for which the key's request window would still have been full.
    """
    why = "" if failure is None else f" The last request failed: {failure.message}"
    unsent = handle is None or (handle.task_id is None and not handle.submitting)
    if unsent and window_wait >= 1:
        why = f" The request window of the key is full for about {window_wait:.0f} s more.{why}"
    error = WaitTimeout(
        f"{what} after {timeout:g} s.{why}",
        task_id=None if handle is None else handle.task_id,
        units_at_stake=0.0 if handle is None else handle.at_stake,
    )
    if handle is None or unsent:
        error.hint = "The job was not sent and costs nothing."
    elif handle.task_id is None:
        error.hint = (
            "Its creation was sent and has no answer yet; run the same job again to wait for it, "
            "which buys it once."
        )
    else:
        again = attach_call(handle.spec.feature, handle.task_id)
        error.hint = f"The task goes on while the client is open; `{again}` waits for it again."
    error.__cause__ = failure and copy_error(failure)
    return error


class Task:
    """A task at the vendor: `Client.submit` and `Client.task` return one.

        task = await client.submit(Smile("selfie.jpg"))
        print(task.id, task.state)
        result = await task                    # or: await task.result(timeout=60)

    - `id`: the vendor's id. It changes if the engine failed and the task was created again.
    - `job`: the job; None if only the id is known.
    - `state`: "queued", "preparing", "running", "done" or "failed".

    Several callers may await a task, each as often as it likes. Dropping the `Task`, or cancelling
    a caller, loses nothing: the client keeps the task alive to its end and saves its result if
    `save_to` was given. With a journal, an outcome that nobody took is in the next process's
    `Client.resume`.
    """

    def __init__(
        self,
        session: ClientSession,
        task_id: str,
        attach: Callable[[], Awaitable[TrackedJob]],
        tracked: TrackedJob | None = None,
    ) -> None:
        self._session = session
        self._id = task_id
        self._attach = attach
        self._tracked = tracked

    def __repr__(self) -> str:
        # May run in another thread than the task's, so it only reads.
        tracked = self._tracked
        if tracked is None:
            return f"<Task {quoted(self.id)} not followed yet>"
        job = "" if self.job is None else f" of {type(self.job).__name__}"
        how: str = tracked.state
        match tracked.ending:
            case PerfectError() as error:
                how = f"failed: {type_name(error)}"
            case Result(images=images, duration=duration):
                lasted = "" if duration is None else f" in {duration:.1f} s"
                what = "picture" if tracked.handle.spec.pictures_only else "file"
                how = f"done: {len(images)} {what}{'s' * (len(images) != 1)}{lasted}"
            case None:
                pass
        return f"<Task {quoted(self.id)}{job} {how}>"

    def __await__(self) -> Generator[object, None, Result]:
        return self.result().__await__()

    @property
    def id(self) -> str:
        """The vendor's id. It changes if the engine failed and the task was created again."""
        tracked = self._tracked
        return self._id if tracked is None or tracked.task_id is None else tracked.task_id

    @property
    def job(self) -> Job | None:
        """The job of the task; None if only its id is known."""
        return None if self._tracked is None else self._tracked.handle.spec.job

    @property
    def state(self) -> TaskState:
        """The state of the task as the client knows it; no request.

        - "queued": the job waits for its turn.
        - "preparing": its picture is being uploaded, or its creation was sent.
        - "running": the vendor has the task, or its result is being saved. A task of `Client.task`
          is "running" until its first answer.
        - "done", "failed": the job has ended.
        """
        return "running" if self._tracked is None else self._tracked.state

    async def result(self, timeout: float | None = None) -> Result:
        """Wait for the pictures and return them.

            try:
                result = await task.result(timeout=60)
            except WaitTimeout:
                ...                            # the task goes on; call `result` again at any time

        `timeout` is how many seconds to wait; None waits to the end. The first call on a task of
        `Client.task` keeps the task alive from then on, as `Client.attach` does. Raises the error
        of the job, as `Client.run` does, and `WaitTimeout`.
        """
        if timeout is not None:
            settings.number("timeout", timeout)
        self._session.executor.check()
        tracked = self._tracked
        if tracked is None or tracked.ending is None:
            try:
                await self._session.executor.call(partial(self._wait, timeout))
            except ClientClosed as exc:
                # The thread of an isolated client ended before the task.
                if self._tracked is None:
                    raise
                self._tracked.end_with_thread(exc)
            tracked = self._tracked
        if tracked is None:
            raise AssertionError(self)
        # Reported last, since a caller that is cancelled before has no result.
        self._session.executor.soon(tracked.report)
        return tracked.unwrap()

    async def events(self) -> AsyncGenerator[JobEvent]:
        """Yield the events of the job from its beginning to its end, as they happen.

            async for event in task.events():
                print(event.kind)              # queued, uploaded, submitted, polled, ..., finished

        Each call starts with the first event, and you may leave the loop early. The events of a
        task that the client did not create start with its next poll, and iterating keeps the task
        alive as `result` does. The last event is "finished", whether the job is done or failed;
        `state` says which.
        """
        index = 0
        while (event := await self._event(index)) is not None:
            yield event
            index += 1

    async def _event(self, index: int) -> JobEvent | None:
        self._session.executor.check()
        tracked = self._tracked
        if tracked is not None and tracked.ended.is_set():
            # Works also after the thread of an isolated client has ended.
            return tracked.events[index] if index < len(tracked.events) else None

        async def wait() -> JobEvent | None:
            return await (await self._follow()).event(index)

        return await self._session.executor.call(wait)

    async def _wait(self, timeout: float | None) -> None:
        tracked = await self._follow()
        with anyio.move_on_after(timeout):
            await tracked.ended.wait()
        if tracked.ending is None and timeout is not None:
            raise tracked.timed_out(timeout, "The task had not ended")

    async def _follow(self) -> TrackedJob:
        """Return the tracked job; the first call for an id from elsewhere makes it."""
        tracked = self._tracked
        if tracked is None:
            # Two callers at once make two tracked jobs of one task, which is harmless.
            tracked = self._tracked = await self._attach()
        return tracked
