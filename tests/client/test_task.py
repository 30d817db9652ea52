"""Tasks: the return value of `submit`, its state, and how little depends on it."""

import asyncio
import gc
from pathlib import Path

import httpx
import pytest

from perfect_async import (
    Client,
    ConfigurationError,
    JobEvent,
    JobRefused,
    Limits,
    NotSaved,
    Polling,
    Result,
    Smile,
    SubmissionInDoubt,
    Task,
    TaskAbandoned,
    TaskExpired,
    TaskFailed,
    TaskStatus,
    TaskTimedOut,
    Unauthorized,
    WaitTimeout,
)
from perfect_async.sandbox import Durations, Faults, Sandbox
from tests.support.journaled import JournalHarness, adds_up, all_of, done, faces, job, resumed
from tests.support.sandboxed import FACE, Between, avatar, client, clock, smile, vendor

MP = pytest.MonkeyPatch


async def kinds(task: Task) -> list[str]:
    """The kinds of the job's events, with polls in a row as one."""
    told = [event.kind async for event in task.events()]
    return [kind for index, kind in enumerate(told) if kind != "polled" or told[index - 1] != kind]


def files_in(folder: Path) -> tuple[Path, ...]:
    return tuple(folder.iterdir())


def polls(sandbox: Sandbox) -> int:
    return sum(task.polls for task in sandbox.ledger.tasks)


# Submitting.


async def test_submit_returns_once_the_vendor_has_accepted() -> None:
    """The task is returned long before it has ended, and has its id."""
    sandbox = vendor()
    async with client(sandbox) as c:
        began = clock()
        task = await c.submit(Smile(FACE))
        assert clock() - began < 2
        assert "running" == task.state
        assert sandbox.ledger.tasks[0].task_id == task.id
        assert Smile(FACE) == task.job
        assert 1 == sandbox.ledger.units_charged

        result = await task

        assert clock() - began >= 8
        assert ("done", task.id, 1) == (task.state, result.task_id, len(result.images))


async def test_a_task_is_awaited_by_several_callers_and_again() -> None:
    """Every caller gets the same result, at any time."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(smile())
        first, second = await asyncio.gather(task.result(), task.result(timeout=60))
        assert first is second is await task
    assert first is await task  # also when the client is closed
    assert 1 == sandbox.ledger.units_charged


async def test_a_timeout_of_the_result_stops_nothing() -> None:
    """`result(timeout=)` bounds only the wait, and can be called again."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(smile())
        with pytest.raises(WaitTimeout, match="had not ended after 3 s") as caught:
            await task.result(timeout=3)
        assert (task.id, 1.0) == (caught.value.task_id, caught.value.units_at_stake)
        assert "running" == task.state
        assert task.id == (await task.result(timeout=30)).task_id


@pytest.mark.parametrize("timeout", [-1, "3", float("nan")])
async def test_a_wrong_timeout_is_refused(timeout: float) -> None:
    """A timeout that is not a number of seconds is refused, by the task and by the client."""
    async with client(vendor()) as c:
        task = await c.submit(smile())
        with pytest.raises(ConfigurationError, match="timeout is"):
            await task.result(timeout)
        with pytest.raises(ConfigurationError, match="timeout is"):
            _ = await c.submit(smile(2), timeout)
        _ = await task


async def test_an_await_that_is_cancelled_stops_nothing() -> None:
    """The client and other callers still have the task of a cancelled caller."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(smile())
        waiting = asyncio.ensure_future(task.result())
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert 1 == len((await task).images)


async def test_a_dropped_task_loses_nothing(tmp_path: Path) -> None:
    """The task is kept to its end, and saved if that was asked for."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(40.0)})
    async with client(sandbox, drain=60.0) as c:
        _ = await c.submit(smile(), save_to=tmp_path / "out")
        gc.collect()
        await asyncio.sleep(50)
        assert 1 == len(list((tmp_path / "out").iterdir()))
    assert {"success": 1} == sandbox.ledger.tasks_by_state
    assert 0 == sandbox.ledger.units_wasted


async def test_a_dropped_task_is_tried_again() -> None:
    """A failure that may pass is tried again, although nobody awaits the task."""
    sandbox = vendor()
    sandbox.script("poll", (200, {"status": 200, "data": {"task_status": "running"}}))
    async with client(sandbox) as c:
        task = await c.submit(smile())
        first = task.id
        sandbox.script("poll", failure())
        result = await task
        assert first != task.id == result.task_id
        assert ["queued", "submitted", "polled", "submitted", "polled", "finished"] == (
            await kinds(task)
        )


def failure(code: str = "error_inference") -> tuple[int, object]:
    return 200, {"status": 200, "data": {"task_status": "error", "error": code}}


async def test_closing_waits_for_submitted_tasks(tmp_path: Path) -> None:
    """A closing client drains submitted tasks and saves their results."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(smile(), save_to=tmp_path)
    assert "done" == task.state
    assert (await task).files == files_in(tmp_path)


async def test_a_task_that_outlasts_its_client_is_abandoned() -> None:
    """A task that still runs after the drain raises an error with the units at stake."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(400.0)})
    async with client(sandbox, drain=5.0) as c:
        task = await c.submit(smile())
    assert "failed" == task.state
    with pytest.raises(TaskAbandoned) as caught:
        _ = await task
    assert (task.id, 1.0) == (caught.value.task_id, caught.value.units_at_stake)


# Jobs that are not accepted.


async def test_submit_raises_a_refusal() -> None:
    """A job without a task raises its error at once."""
    sandbox = vendor()
    async with client(sandbox) as c:
        sandbox.script("task", (401, {"status": 401, "error_code": "InvalidApiKey"}))
        with pytest.raises(Unauthorized):
            _ = await c.submit(smile())
    async with client(vendor()) as c:
        with pytest.raises(JobRefused, match="is not a job"):
            _ = await c.submit("a.jpg")  # type: ignore[arg-type]
        with pytest.raises(JobRefused):
            _ = await c.submit(Smile(b"text"))


async def test_submit_raises_a_doubt() -> None:
    """A creation without an answer has no task to return."""
    sandbox = vendor()
    async with client(sandbox) as c:
        sandbox.script("task", "lose")
        with pytest.raises(SubmissionInDoubt):
            _ = await c.submit(smile())
        with pytest.raises(SubmissionInDoubt):
            _ = await c.submit(smile())
        assert 1 == sandbox.ledger.units_charged
        task = await c.submit(smile(), buy_in_doubt=True)
        _ = await task
        assert 2 == sandbox.ledger.units_charged


async def test_the_timeout_of_submit_ends_at_the_acceptance() -> None:
    """A job that waits for too long is not sent; one that was accepted goes on."""
    sandbox = vendor(requests=30, period=60.0, durations={"ai-smile": Durations.fixed(30.0)})
    limits, polling = Limits(30, 60.0, 5), Polling(give_up_after=40.0, insured=40.0)
    async with client(sandbox, limits=limits, polling=polling) as c:
        tasks = [await c.submit(smile(number), timeout=5) for number in range(2)]
        others = await asyncio.gather(
            *(c.submit(smile(number), timeout=5) for number in range(2, 12)),
            return_exceptions=True,
        )
        refused = [each for each in others if isinstance(each, WaitTimeout)]
        assert refused
        assert {(None, 0.0)} == {(each.task_id, each.units_at_stake) for each in refused}
        assert "The vendor had not accepted the job after 5 s." in str(refused[0])
        tasks += [each for each in others if isinstance(each, Task)]
        await asyncio.gather(*tasks)
        assert len(tasks) == sandbox.ledger.units_charged
        assert 12 == len(tasks) + len(refused)


async def test_a_caller_who_is_cancelled_before_the_acceptance() -> None:
    """A job whose `submit` is cancelled before it was sent is not sent."""
    sandbox = vendor()
    async with client(sandbox) as c:
        waiting = asyncio.ensure_future(c.submit(Smile(FACE)))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait([waiting])
        await asyncio.sleep(5)
    assert 0 == sandbox.ledger.units_charged


# States and events.


async def test_events_from_the_beginning_to_the_end() -> None:
    """A reader gets all events in order at any time, with their times and the task."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(Smile(FACE))
        events = [event async for event in task.events()]
        assert ["queued", "uploaded", "submitted"] == [event.kind for event in events[:3]]
        assert ["polled"] * (len(events) - 4) == [event.kind for event in events[3:-1]]
        assert len(events) - 4 == polls(sandbox)
        last = events[-1]
        assert isinstance(last, JobEvent)
        assert ("finished", task.id, Smile(FACE)) == (last.kind, last.task_id, last.job)
        assert [None, None, task.id] == [event.task_id for event in events[:3]]
        assert 8 <= (last.at - events[2].at).total_seconds() <= 12
        assert sorted(event.at for event in events) == [event.at for event in events]
        assert events == [event async for event in task.events()]
    assert events == [event async for event in task.events()]


async def test_events_of_a_url_have_no_upload() -> None:
    """A picture that the vendor fetches itself is not uploaded."""
    async with client(vendor()) as c:
        task = await c.submit(smile())
        assert ["queued", "submitted", "polled", "finished"] == await kinds(task)


async def test_leaving_the_events_early_is_fine() -> None:
    """Reading some of the events leaves the others for later."""
    async with client(vendor()) as c:
        task = await c.submit(smile())
        async for event in task.events():
            if event.kind == "submitted":
                break
        _ = await task
        assert "finished" == (await kinds(task))[-1]


async def test_equal_jobs_have_a_task_object_each() -> None:
    """An equal job shares the vendor's task, has events of its own, and costs nothing."""
    sandbox = vendor()
    async with client(sandbox) as c:
        first = await c.submit(smile())
        second = await c.submit(smile())
        assert first.id == second.id
        results = await first, await second
        assert [1.0, 0.0] == [result.units for result in results]
        assert ["queued", "submitted", "polled", "finished"] == await kinds(second)
    assert 1 == sandbox.ledger.units_charged


async def test_the_repr_of_a_task() -> None:
    """It has the id, the kind of job and the state, but no URL, key or secret."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(Smile("https://a.example/me.jpg?sig=s3cret", key="k3y"))
        assert f"<Task '{task.id}' of Smile running>" == repr(task)
        _ = await task
        assert repr(task).startswith(f"<Task '{task.id}' of Smile done: 1 picture in ")
        pair = await c.submit(avatar(2))
        await pair
        assert "done: 2 pictures in" in repr(pair)
        bad = await c.submit(smile(7))
        sandbox.script("poll", failure("error_no_face"))
        with pytest.raises(TaskFailed):
            await bad
        assert f"<Task '{bad.id}' of Smile failed: 'TaskFailed'>" == repr(bad)
        assert "failed" == bad.state
        assert "<Task 'elsewhere' not followed yet>" == repr(c.task(Smile, "elsewhere"))
        for each in (task, pair, bad):
            assert "s3cret" not in repr(each)
            assert "://" not in repr(each)
            assert "k3y" not in repr(each)


async def test_a_task_that_is_created_again_waits_for_its_turn() -> None:
    """After a failure of the engine the job is "preparing" until it runs again."""
    sandbox = vendor()
    states: list[str] = []

    async def watch(request: httpx.Request) -> httpx.Response | None:
        if request.method == "POST" and "/task/" in request.url.path and tasks:
            states.append(tasks[0].state)
        return None

    tasks: list[Task] = []
    async with client(sandbox, transport=Between(sandbox.transport(), watch)) as c:
        tasks.append(await c.submit(Smile(FACE)))
        sandbox.script("poll", failure())
        await tasks[0]
    assert ["preparing"] == states


async def test_each_caller_raises_an_error_of_its_own() -> None:
    """Two callers of a failed task do not share a traceback."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(smile(), engine_retries=0)
        sandbox.script("poll", failure())
        errors = await asyncio.gather(task.result(), task.result(), return_exceptions=True)
        assert all(isinstance(error, TaskFailed) for error in errors)
        assert errors[0] is not errors[1]


# Saving.


async def test_a_task_is_done_when_its_files_are_there(tmp_path: Path) -> None:
    """With `save_to` the result names its files, and `delete` removes the vendor's copies."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(Smile(FACE), save_to=str(tmp_path / "out"), delete=True)
        result = await task
        assert list((tmp_path / "out").iterdir()) == list(result.files)
    assert {"deleted": 1} == sandbox.ledger.tasks_by_state


async def test_a_result_that_cannot_be_saved_is_a_failure(tmp_path: Path) -> None:
    """It raises `NotSaved`, and the pictures can still be fetched by the task's id."""
    sandbox, folder = vendor(), tmp_path / "out"
    async with client(sandbox) as c:
        task = await c.submit(smile(), save_to=folder)
        folder.rmdir()
        folder.write_text("in the way")
        with pytest.raises(NotSaved) as caught:
            _ = await task
        assert task.id == caught.value.task_id
        assert isinstance(await c.attach(Smile, task.id), Result)


async def test_folders_that_cannot_be_written_cost_nothing(tmp_path: Path) -> None:
    """A `save_to` that is a file is refused before anything is sent, and so is `delete` alone."""
    sandbox = vendor()
    (tmp_path / "file").write_text("here")
    async with client(sandbox) as c:
        for call in (c.submit, c.run):
            with pytest.raises(ConfigurationError):
                _ = await call(smile(), save_to=tmp_path / "file")
            with pytest.raises(ConfigurationError, match="delete needs save_to"):
                _ = await call(smile(), delete=True)
            with pytest.raises(ConfigurationError, match="save_to"):
                _ = await call(smile(), save_to="")
    assert 0 == sandbox.ledger.units_charged


# Ids from elsewhere.


async def test_a_task_of_an_id_from_elsewhere() -> None:
    """It costs no request until it is awaited, and is kept alive to its end after that."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(30.0)})
    async with client(sandbox) as owner, client(sandbox, base_url="https://b.example") as c:
        mine = await owner.submit(smile())
        before = sandbox.ledger.requests.total()
        task = c.task(Smile, mine.id)
        assert before == sandbox.ledger.requests.total()
        assert (mine.id, None, "running") == (task.id, task.job, task.state)
        result = await task
        assert (mine.id, None, 0.0) == (result.task_id, result.job, result.units)
        assert "done" == task.state
        assert ["polled", "finished"] == await kinds(task)


async def test_the_events_of_an_id_from_elsewhere_keep_it_alive() -> None:
    """Reading the events follows the task, as awaiting does."""
    sandbox = vendor()
    async with client(sandbox) as owner, client(sandbox, base_url="https://b.example") as c:
        mine = await owner.submit(smile())
        assert ["polled", "finished"] == await kinds(c.task(Smile, mine.id))


async def test_an_id_of_the_same_client_shares_its_task() -> None:
    """A task object of this client's own task causes no more polls."""
    sandbox = vendor()
    async with client(sandbox) as c:
        mine = await c.submit(smile())
        other = c.task(Smile, mine.id)
        results = await asyncio.gather(mine, other, other.result())
        assert {mine.id} == {result.task_id for result in results}
        assert 1 == len(sandbox.ledger.tasks)


async def test_a_wrong_feature_and_a_wrong_id_are_refused() -> None:
    """`task` and `status` refuse them at once."""
    async with client(vendor()) as c:
        with pytest.raises(ConfigurationError, match="is not a feature"):
            _ = c.task(str, "id")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="task_id is"):
            _ = c.task(Smile, "")
        with pytest.raises(ConfigurationError, match="is not a feature"):
            await c.status(str, "id")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="task_id is"):
            await c.status(Smile, 7)  # type: ignore[arg-type]
        with pytest.raises(TaskExpired):
            _ = await c.task(Smile, "unknown")


async def test_tasks_need_an_open_client() -> None:
    """An unopened or closed client returns no task."""
    c = client(vendor())
    with pytest.raises(ConfigurationError, match="not open"):
        _ = c.task(Smile, "id")
    with pytest.raises(ConfigurationError, match="not open"):
        _ = await c.submit(smile())


# Asking for the status.


async def test_status_is_one_request() -> None:
    """The task is not polled any more for it."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(60.0)})
    async with client(sandbox) as owner, client(sandbox, base_url="https://b.example") as c:
        mine = await owner.submit(smile())
        before = c.statistics()
        assert TaskStatus(mine.id, "running") == await c.status(Smile, mine.id)
        assert 0 == c.statistics().running
        assert {**before.requests, "ask": 1} == c.statistics().requests
        await asyncio.sleep(30)
        assert {**before.requests, "ask": 1} == c.statistics().requests
        result = await mine
        status = await c.status(Smile, mine.id)
        assert ("success", None) == (status.status, status.error)
        assert result.raw is not None
        assert type(result.raw) is type(status.results)
        assert "http" not in repr(status)
        assert "http" not in repr(result).replace(result.images[0].url.partition("?")[0], "")


async def test_status_of_a_failure() -> None:
    """A failed task has the error that waiting for it would raise."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(smile())
        sandbox.script("poll", failure("error_no_face"))
        status = await c.status(Smile, task.id)
        assert "error" == status.status
        assert isinstance(status.error, TaskFailed)
        assert "error_no_face" == status.error.code
        _ = await task


async def test_status_of_a_task_that_timed_out() -> None:
    """The vendor's own time limit is final, and is not asked again."""
    sandbox = vendor()
    async with client(sandbox) as c:
        task = await c.submit(smile())
        sandbox.script("poll", (500, {"status": 500, "error": "Task execution timed out"}))
        began = clock()
        status = await c.status(Smile, task.id)
        assert isinstance(status.error, TaskTimedOut)
        assert clock() - began < 2
        _ = await task


async def test_status_of_an_unknown_task() -> None:
    """A task that the vendor does not know is `TaskExpired`."""
    async with client(vendor()) as c:
        with pytest.raises(TaskExpired):
            await c.status(Smile, "unknown")


async def test_status_of_results_that_cannot_be_read() -> None:
    """The vendor's answer is in `results`, beside the error."""
    sandbox = vendor()
    odd = {"status": 200, "data": {"task_status": "success", "results": {"strange": 1}}}
    async with client(sandbox) as c:
        task = await c.submit(smile())
        sandbox.script("poll", (200, odd))
        status = await c.status(Smile, task.id)
        assert ("success", {"strange": 1}) == (status.status, status.results)
        assert status.error is not None
        _ = await task


# Options of one job.


@pytest.mark.parametrize("call", ["submit", "run", "batch"])
async def test_one_job_is_given_up_sooner(call: str) -> None:
    """`give_up_after` of a job counts instead of the client's."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(300.0)})
    async with client(sandbox) as c:
        began = clock()
        with pytest.raises(TaskAbandoned, match="had not ended after 20 s"):
            _ = await called(c, call, give_up_after=20)
        assert 20 <= clock() - began <= 25
        assert 0 == c.statistics().running


@pytest.mark.parametrize("call", ["submit", "run", "batch"])
@pytest.mark.parametrize("tries", [0, 2])
async def test_one_job_is_tried_again_as_often_as_it_says(call: str, tries: int) -> None:
    """`engine_retries` of a job counts instead of the client's."""
    sandbox = vendor(faults=Faults(engine_errors=1.0, engine_error_codes=("error_inference",)))
    async with client(sandbox) as c:
        with pytest.raises(TaskFailed):
            _ = await called(c, call, engine_retries=tries)
    assert 1 + tries == len(sandbox.ledger.tasks)
    assert 0 == sandbox.ledger.units_charged - sandbox.ledger.units_returned


async def called(c: Client, call: str, **options: float) -> Result:
    """The result of one smile by `submit`, `run` or `batch`."""
    given: dict[str, object] = dict(options)
    if call == "submit":
        return await (await c.submit(smile(), **given))  # type: ignore[arg-type]
    if call == "run":
        return await c.run(smile(), **given)  # type: ignore[arg-type]
    [outcome] = await all_of(c.batch([smile()], **given))  # type: ignore[arg-type]
    return outcome.unwrap()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("give_up_after", 5),
        ("give_up_after", 601),
        ("give_up_after", "20"),
        ("engine_retries", -1),
        ("engine_retries", True),
        ("engine_retries", 1.5),
    ],
)
async def test_wrong_options_are_refused(option: str, value: object) -> None:
    """They are refused before anything is sent, and the error says what they may be."""
    sandbox = vendor()
    async with client(sandbox) as c:
        for call in ("submit", "run", "batch"):
            with pytest.raises(ConfigurationError, match=option):
                _ = await called(c, call, **{option: value})  # type: ignore[arg-type]
    assert 0 == sandbox.ledger.units_charged


async def test_run_saves_its_result(tmp_path: Path) -> None:
    """With `save_to` and `delete` the files are there, and the vendor's copies are gone."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(Smile(FACE), 60, save_to=tmp_path, delete=True)
        assert files_in(tmp_path) == result.files
        assert (Smile(FACE), 1.0) == (result.job, result.units)
        assert result.duration is not None
        assert 8 <= result.duration <= 12
    assert {"deleted": 1} == sandbox.ledger.tasks_by_state


async def test_run_saves_a_result_after_its_timeout(tmp_path: Path) -> None:
    """After a timeout the task goes on, and its result is saved."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(WaitTimeout):
            await c.run(Smile(FACE), 4, save_to=tmp_path)
        assert () == files_in(tmp_path)
        await asyncio.sleep(10)
        assert 1 == len(files_in(tmp_path))


# With a journal.


async def test_a_task_that_nobody_awaited_comes_again(tmp_path: Path, monkeypatch: MP) -> None:
    """`resume` yields submitted jobs whose results nobody took, and no others."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        _ = await c.submit(job(1))
        _ = await (await c.submit(job(2)))
    async with harness.client() as c:
        outcomes = await resumed(c)
        assert ["1"] == [outcome.job.key for outcome in done(outcomes)]
        adds_up(c, harness.sandbox, elsewhere=1.0)
    assert 2 == harness.sandbox.ledger.units_charged


async def test_a_crash_after_submit(tmp_path: Path, monkeypatch: MP) -> None:
    """The next process goes on with the task, and saves it in the same folder."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(30.0)})
    c = await harness.client().open()
    _ = await c.submit(job(1), save_to=harness.out)
    await asyncio.sleep(5)
    await harness.crash(c)
    async with harness.client() as c:
        [outcome] = done(await resumed(c))
        assert outcome.files == outcome.result.files
        assert [1] == faces(outcome.files)
    assert 1 == harness.sandbox.ledger.units_charged


async def test_a_former_task_is_taken_by_its_id(tmp_path: Path, monkeypatch: MP) -> None:
    """It returns the result, even if its former folder cannot be used."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(30.0)})
    c = await harness.client().open()
    task = await c.submit(job(1), save_to=harness.out)
    await asyncio.sleep(3)
    await harness.crash(c)
    harness.out.rmdir()
    harness.out.write_text("in the way")
    async with harness.client() as c:
        again = c.task(Smile, task.id)
        result = await again
        assert (task.id, ()) == (result.task_id, result.files)
        assert "1" == (again.job and again.job.key)
        assert [] == await resumed(c)
    assert 1 == harness.sandbox.ledger.units_charged


async def test_a_finished_job_is_a_task_that_is_done(tmp_path: Path, monkeypatch: MP) -> None:
    """An equal job of a former process is not bought again, and its task is done at once."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        await c.run(job(1), save_to=harness.out)
    async with harness.client() as c:
        task = await c.submit(job(1), save_to=harness.out)
        result = await task
        assert "done" == task.state
        assert [1] == faces(result.files)
        assert (0.0, None) == (result.units, result.raw)
    assert 1 == harness.sandbox.ledger.units_charged
