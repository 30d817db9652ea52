"""`reuse=True` on a shared key: several processes are given one job, and it is bought once."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfect_async import (
    Avatar,
    Client,
    ClientClosed,
    Done,
    Feature,
    Job,
    PerfectError,
    Placeholder,
    Result,
    Smile,
    Studio,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskExpired,
    TaskFailed,
    WaitTimeout,
)
from perfect_async._files.images import inspect
from perfect_async._ledger.local import LocalLedger, open_local
from perfect_async._ledger.rows import LedgerUnavailable, host_digest, key_digest
from perfect_async._runtime import driver as drivers
from perfect_async._runtime.sharing import submission
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async._time import SLOT
from perfect_async.events import (
    DoneRow,
    IntentRow,
    LedgerRow,
    MemberRow,
    SharedLimits,
    TaskKind,
    TaskRow,
)
from perfect_async.models import Source
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait
from tests.support.sandboxed import FACE, KEY, STYLE, client, smile, smiles, vendor
from tests.support.searching import examples
from tests.support.virtual_time import run

MINUTE = 60_000_000
URL = "https://pictures.example/"


def member(sandbox: Sandbox, folder: Path, **settings: object) -> Client:
    """Make a client that becomes a member of its own in the ledger in `folder`."""
    # All clients of a loop on one key would share a driver, which is found here.
    drivers._drivers.clear()
    return client(sandbox, **{"share": str(folder), "reuse": True, **settings})


async def members(sandbox: Sandbox, folder: Path, count: int, **settings: object) -> list[Client]:
    return [await member(sandbox, folder, **settings).open() for _ in range(count)]


async def close_all(clients: list[Client]) -> None:
    for each in clients:
        await each.close()


def created(sandbox: Sandbox) -> int:
    return sum(sandbox.ledger.tasks_by_state.values())


class Stranger:
    """A member of the ledger without a client, which writes given rows."""

    def __init__(self, folder: Path) -> None:
        base = "https://yce-api-01.makeupar.com"
        now = asyncio.get_running_loop().time
        self.store: LocalLedger = open_local(
            folder, host_digest(base), key_digest(KEY), clock=lambda: round(now() * 1e9)
        )

    async def write(self, *rows: LedgerRow) -> None:
        snapshot = await self.store.take(1.0)
        assert snapshot is not None
        limits = SharedLimits(250, 5 * MINUTE, 5, 10_000_000)
        me = MemberRow(self.store.member, 1, limits, snapshot.now, 0, 0, 0, False, 0, 44, 1, 0)
        assert await self.store.publish([me, *rows])

    async def intent(self, job: Job, state: str, task_id: str = "", age: int = 0) -> None:
        spec = await spec_of(job)
        now = round(asyncio.get_running_loop().time() * 1e6)
        await self.write(
            IntentRow(
                self.store.member, 1, spec[0], spec[1], job.feature, now - age, state, task_id
            )
        )


async def spec_of(job: Job) -> tuple[str, str]:
    first, *more = [await inspect(each.source, job) for each in job.inputs]
    found = submission(JobSpec.of(job, first, PLAIN, *more))
    return found.identity, found.digest


AVATAR = Avatar("https://pictures.example/a.jpg", template_id=STYLE, output_count=4)


async def run_apart(clients: list[Client], job: Job, apart: float) -> list[Result]:
    """Let each of `clients` run `job`, each `apart` seconds after the one before."""
    results: list[Result] = []

    async def run(each: Client, after: float) -> None:
        await asyncio.sleep(after)
        results.append(await each.run(job))

    async with asyncio.TaskGroup() as group:
        for number, each in enumerate(clients):
            group.create_task(run(each, number * apart))
    return results


@pytest.mark.parametrize(
    ("job", "apart"),
    [
        pytest.param(
            job,
            apart,
            id=f"{name}-{apart}",
            # Each job and each time once; all their combinations with --long.
            marks=[] if name == "url" or apart == 0.2 else [pytest.mark.long],
        )
        for name, job in (("url", smile()), ("bytes", Smile(FACE)), ("avatar", AVATAR))
        for apart in (0.0, 0.2, 3.0, 60.0)
    ],
)
async def test_many_members_buy_a_job_once(job: Job, apart: float, tmp_path: Path) -> None:
    """Members that are given one job together or one after another create one task, and all get
    its result; one of them pays.
    """
    sandbox = vendor()
    clients = await members(sandbox, tmp_path, 5)
    results = await run_apart(clients, job, apart)
    spent = [each.statistics().units.charged for each in clients]
    await close_all(clients)

    assert 5 == len(results)
    assert 1 == len({result.task_id for result in results})
    assert 1 == created(sandbox)
    assert job.units == sum(spent)
    assert [] == sandbox.ledger.violations


@given(
    starts=st.lists(st.floats(0, 40), min_size=2, max_size=5),
    patience=st.lists(st.none() | st.floats(0.5, 20), min_size=5, max_size=5),
    leaves=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=examples(20))
def test_no_schedule_buys_a_job_twice(
    starts: list[float], patience: list[float | None], leaves: int, seed: int
) -> None:
    """One task is created whenever members run the job, stop waiting or leave."""

    async def scenario(folder: Path) -> int:
        sandbox = vendor(seed=seed, faults=Faults(dropped={"poll": 0.05}))
        clients = await members(sandbox, folder, len(starts), drain=0.0)

        async def run(number: int) -> None:
            await asyncio.sleep(starts[number])
            # A member stops waiting, or finds a task whose owner has gone.
            with suppress(WaitTimeout, TaskExpired, TaskAbandoned, ClientClosed, SubmissionInDoubt):
                await clients[number].run(smile(), timeout=patience[number])
            if number == leaves:
                await clients[number].close()

        async with asyncio.TaskGroup() as group:
            for number in range(len(starts)):
                group.create_task(run(number))
        await close_all(clients)
        return created(sandbox)

    with TemporaryDirectory() as folder:
        assert run(scenario, Path(folder)) <= 1


async def test_a_batch_given_to_two_members_is_bought_once(tmp_path: Path) -> None:
    """Two members that run the same 20 jobs create 20 tasks, and each gets 20 results."""
    sandbox = vendor()
    clients = await members(sandbox, tmp_path, 2)

    async def run(each: Client) -> list[bool]:
        async with each.batch(smiles(20)) as batch:
            return [outcome.ok async for outcome in batch]

    async with asyncio.TaskGroup() as group:
        ran = [group.create_task(run(each)) for each in clients]
    await close_all(clients)

    assert [[True] * 20] * 2 == [each.result() for each in ran]
    assert 20 == created(sandbox)
    assert 0 == sandbox.ledger.refused.total()


async def test_a_finished_job_is_fetched_by_a_later_process(tmp_path: Path) -> None:
    """A process that starts after the first one has left fetches the result for one request."""
    sandbox = vendor()
    async with member(sandbox, tmp_path) as first:
        before = await first.run(smile())
    requests = len(sandbox.ledger.log)
    async with member(sandbox, tmp_path) as second, second.batch([smile()]) as batch:
        [outcome] = [outcome async for outcome in batch]

    assert isinstance(outcome, Done)
    assert before.task_id == outcome.task_id
    assert 0.0 == outcome.units
    assert requests + 1 == len(sandbox.ledger.log)


@pytest.mark.parametrize("reuse", [None, False])
async def test_without_reuse_a_finished_job_is_bought_again(
    reuse: bool | None, tmp_path: Path
) -> None:
    """A client without `reuse=True` gets no old result."""
    sandbox = vendor()
    async with member(sandbox, tmp_path) as first:
        await first.run(smile())
    async with member(sandbox, tmp_path, reuse=reuse) as second:
        await second.run(smile())

    assert 2 == created(sandbox)


async def test_another_digest_is_another_job(tmp_path: Path) -> None:
    """Two pictures under one key are two jobs."""
    sandbox = vendor()
    async with member(sandbox, tmp_path) as first:
        await first.run(Smile("https://pictures.example/1.jpg", key="same"))
    async with member(sandbox, tmp_path) as second:
        await second.run(Smile("https://pictures.example/2.jpg", key="same"))

    assert 2 == created(sandbox)


async def test_a_dead_members_task_is_adopted(tmp_path: Path) -> None:
    """The task of a process that was killed is kept alive by whoever runs its job again, and its
    units are told by that one.
    """
    sandbox = vendor(durations={"ai-smile": Durations.fixed(40.0)})
    job = smile()
    async with client(sandbox, share=None) as other:
        with pytest.raises(PerfectError):
            await other.run(job, timeout=5)
        [task] = sandbox.ledger.tasks
        task_id = task.task_id
        stranger = Stranger(tmp_path)
        await stranger.intent(job, "accepted", task_id, age=5_000_000)
        await stranger.store.aclose()
        async with member(sandbox, tmp_path) as second, second.batch([job]) as batch:
            [outcome] = [outcome async for outcome in batch]

    assert isinstance(outcome, Done)
    assert (task_id, 1.0) == (outcome.task_id, outcome.units)
    assert 1 == created(sandbox)


@pytest.mark.parametrize("state", ["sent", "doubt"])
async def test_a_creation_without_an_outcome_is_a_doubt(state: str, tmp_path: Path) -> None:
    """The job of a process that died during its creation is not bought again without consent."""
    sandbox = vendor()
    stranger = Stranger(tmp_path)
    await stranger.intent(smile(), state, age=MINUTE)
    await stranger.store.aclose()
    async with member(sandbox, tmp_path) as second:
        with pytest.raises(SubmissionInDoubt) as raised:
            await second.run(smile())
        assert 1.0 == raised.value.units_at_stake
        assert 0 == created(sandbox)
        await second.run(smile(), buy_in_doubt=True)

    assert 1 == created(sandbox)


async def test_a_creation_under_way_is_waited_for(tmp_path: Path) -> None:
    """A member waits for another's creation, and buys the job if the vendor refuses it."""
    sandbox = vendor()
    stranger = Stranger(tmp_path)
    await stranger.intent(smile(), "sent")
    async with member(sandbox, tmp_path) as second, asyncio.TaskGroup() as group:
        run = group.create_task(second.run(smile()))
        await asyncio.sleep(20)
        assert 0 == created(sandbox)
        assert not run.done()
        await stranger.intent(smile(), "refused")
    await stranger.store.aclose()

    assert 1 == created(sandbox)


async def test_a_wait_for_a_stopped_process_ends(tmp_path: Path) -> None:
    """A creation of a living process that has no answer for five minutes is in doubt."""
    sandbox = vendor()
    stranger = Stranger(tmp_path)
    await stranger.intent(smile(), "sent")
    began = asyncio.get_running_loop().time()
    async with member(sandbox, tmp_path) as second:
        with pytest.raises(SubmissionInDoubt):
            await second.run(smile())
    await stranger.store.aclose()

    assert 300 <= asyncio.get_running_loop().time() - began <= 302


async def test_a_caller_that_gives_up_leaves_nothing(tmp_path: Path) -> None:
    """A job whose caller stops waiting for another process is not bought later."""
    sandbox = vendor()
    stranger = Stranger(tmp_path)
    await stranger.intent(smile(), "sent")
    async with member(sandbox, tmp_path) as second:
        with pytest.raises(TimeoutError):
            await second.run(smile(), timeout=3)
        await stranger.intent(smile(), "refused")
        await asyncio.sleep(5)
        assert 0 == second.statistics().running
    await stranger.store.aclose()

    assert 0 == created(sandbox)


async def test_a_failed_job_may_be_bought_again(tmp_path: Path) -> None:
    """A failure of the engine returns the units, so the job counts as not bought."""
    sandbox = vendor(faults=Faults(by_picture={"https://pictures.example/0.jpg": "error_no_face"}))
    for _ in range(2):
        async with member(sandbox, tmp_path) as each:
            with pytest.raises(TaskFailed):
                await each.run(smile())

    assert 2 == created(sandbox)


async def test_an_engine_failure_is_tried_again_by_its_owner(tmp_path: Path) -> None:
    """The owner tries its failed task again, and a second member waits."""
    sandbox = vendor(faults=Faults(engine_errors=1.0, engine_error_codes=("error_inference",)))
    clients = await members(sandbox, tmp_path, 2)
    async with asyncio.TaskGroup() as group:
        ran = [group.create_task(failure(each)) for each in clients]
    await close_all(clients)

    assert {TaskFailed} == {type(each.result()) for each in ran}


async def failure(each: Client) -> PerfectError:
    with pytest.raises(PerfectError) as raised:
        await each.run(smile())
    return raised.value


async def test_a_result_that_is_gone_is_bought_again(tmp_path: Path) -> None:
    """A job is bought again if the vendor no longer has its finished task."""
    sandbox = vendor()
    async with member(sandbox, tmp_path) as first:
        result = await first.run(smile())
        await first.delete(result.task_id)
    async with member(sandbox, tmp_path) as second:
        again = await second.run(smile())

    assert result.task_id != again.task_id
    assert 2 == created(sandbox)


async def test_a_lost_task_is_not_bought_again_without_consent(tmp_path: Path) -> None:
    """Running the job of a lost task again raises an error, and sends nothing."""
    sandbox = vendor()
    stranger = Stranger(tmp_path)
    await stranger.intent(smile(), "accepted", "no-such-task", age=MINUTE)
    await stranger.store.aclose()
    async with member(sandbox, tmp_path) as second:
        with pytest.raises(TaskExpired) as raised:
            await second.run(smile())
        assert 1.0 == raised.value.units_at_stake
        assert 0 == created(sandbox)
        await second.run(smile(), buy_in_doubt=True)

    assert 1 == created(sandbox)


async def test_a_ledger_that_does_not_answer_lets_nothing_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is not created while the ledger cannot say whether it is bought."""
    real = LocalLedger.find_intents
    until = asyncio.get_running_loop().time() + 10

    async def find(
        self: LocalLedger, identity: str, digest: str
    ) -> tuple[IntentRow | DoneRow, ...]:
        if asyncio.get_running_loop().time() < until:
            raise LedgerUnavailable("it does not answer")
        return await real(self, identity, digest)

    monkeypatch.setattr(LocalLedger, "find_intents", find)
    sandbox = vendor()
    async with member(sandbox, tmp_path) as first, asyncio.TaskGroup() as group:
        run = group.create_task(first.run(smile()))
        await asyncio.sleep(9)
        assert 0 == created(sandbox)
        await run

    assert 1 == created(sandbox)


async def test_a_creation_that_was_not_sent_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent of a step that does not count ends as refused."""
    real, lost = LocalLedger.publish, list[LedgerRow]()

    async def publish(self: LocalLedger, rows: Sequence[LedgerRow]) -> bool:
        intents = [row for row in rows if isinstance(row, IntentRow)]
        if intents and not lost:
            lost.extend(intents)
            await self.release()
            return False
        return await real(self, rows)

    monkeypatch.setattr(LocalLedger, "publish", publish)
    sandbox = vendor()
    async with member(sandbox, tmp_path) as first:
        result = await first.run(smile())
    found = await Stranger(tmp_path).store.find_intents(*await spec_of(smile()))
    states = {row.state for row in found if isinstance(row, IntentRow)}

    assert 1 == created(sandbox)
    assert {"refused", "accepted"} == states
    assert [result.task_id] == [row.task_id for row in found if isinstance(row, DoneRow)]


# Any feature.


def skin(**more: object) -> Feature:
    """An analysis of a face, by path and version."""
    given = {"version": "v2.1", "units": 9, "src": FACE, **more}
    return Feature("skin-analysis", {"dst_actions": ["acne"], "format": "json"}, **given)  # type: ignore[arg-type]


def ring(src: Source, *rings: Source, finger: int = 0) -> Feature:
    """A try-on of rings."""
    infos = [
        {"name": Placeholder("ref", index), "parameter": {"ring_wearing_finger": finger}}
        for index in range(len(rings))
    ]
    params = {"source_info": {"name": Placeholder("src")}, "object_infos": infos}
    return Feature("2d-vto/ring", params, src=src, ref=rings)


@pytest.mark.parametrize("apart", [0.0, 3.0, 60.0])
@pytest.mark.parametrize(
    "job",
    [skin(), ring(portrait(1), portrait(2), portrait(3)), ring(URL + "1", URL + "2")],
    ids=["one", "several", "urls"],
)
async def test_many_members_buy_any_feature_once(job: Job, apart: float, tmp_path: Path) -> None:
    """Members that run one job of any feature create one task, and all get its answer."""
    sandbox = vendor()
    clients = await members(sandbox, tmp_path, 3)
    results = await run_apart(clients, job, apart)
    await close_all(clients)

    [task] = sandbox.ledger.tasks
    assert {task.task_id} == {result.task_id for result in results}
    # A result has new signatures each time that it is asked for.
    assert all(isinstance(result.raw, dict) for result in results)
    assert 1 == len({len(result.outputs) for result in results})
    assert [] == sandbox.ledger.violations


async def test_jobs_with_another_input_are_bought(tmp_path: Path) -> None:
    """Another picture, place or parameter makes another job."""
    sandbox = vendor()
    faces = [portrait(number) for number in range(3)]
    jobs = [
        ring(faces[0], faces[1], faces[2]),
        ring(faces[0], faces[2], faces[1]),
        ring(faces[1], faces[0], faces[2]),
        ring(faces[0], faces[1]),
        ring(faces[0], faces[1], faces[2], finger=1),
    ]
    for job in jobs:
        async with member(sandbox, tmp_path) as each:
            await each.run(job)

    assert len(jobs) == created(sandbox)


async def test_a_waiting_member_uploads_pictures_once(tmp_path: Path) -> None:
    """A member that waits for another's task, and then buys its own, uploads nothing again."""
    sandbox = vendor(faults=Faults(engine_errors=1.0, engine_error_codes=("error_inference",)))
    clients = await members(sandbox, tmp_path, 2, engine_retries=0)
    job = ring(portrait(1), portrait(2), portrait(3))

    async def run(each: Client) -> None:
        with pytest.raises(TaskFailed):
            await each.run(job)

    async with asyncio.TaskGroup() as group:
        for each in clients:
            group.create_task(run(each))
    await close_all(clients)

    assert 2 == created(sandbox)
    assert 6 == sandbox.ledger.requests["upload"]
    assert [] == sandbox.ledger.violations


async def test_a_dead_members_feature_is_adopted(tmp_path: Path) -> None:
    """The next run of its job keeps the task of a killed process alive."""
    sandbox = vendor(durations={"skin-analysis@v2.1": Durations.fixed(40.0)})
    async with client(sandbox, share=None) as other:
        task = await other.submit(skin(), timeout=5)
        stranger = Stranger(tmp_path)
        await stranger.intent(skin(), "accepted", task.id, age=5_000_000)
        await stranger.store.aclose()
        async with member(sandbox, tmp_path) as second:
            result = await second.run(skin())

    assert task.id == result.task_id
    assert 1 == created(sandbox)


@pytest.mark.parametrize("gone", [True, False], ids=["killed", "stopped"])
@pytest.mark.parametrize("name", ["skin-analysis@v2.1", "2d-vto/ring", "ai-studio"])
async def test_a_feature_is_rescued_by_path_and_version(
    name: str, gone: bool, tmp_path: Path
) -> None:
    """Another member polls the task of a killed or stopped one at its path and version."""
    jobs = {
        "skin-analysis@v2.1": skin(),
        "2d-vto/ring": ring(portrait(1), portrait(2)),
        "ai-studio": Studio(FACE, STYLE, 2),
    }
    lasting = {name: Durations.fixed(60.0), "ai-smile": Durations.fixed(90.0)}
    sandbox = vendor(durations=lasting)
    async with client(sandbox, share=None, drain=0.0) as owner:
        task = await owner.submit(jobs[name], timeout=10)
    now = round(asyncio.get_running_loop().time() * 1e6)
    due, end = now + 5_000_000, now + 2 * MINUTE
    kind = TaskKind(name, 1)
    row = TaskRow("", 1, kind, now, now, end, due // SLOT, end // SLOT, 0, task.id, now)
    stranger = Stranger(tmp_path)
    await stranger.write(attrs.evolve(row, member=stranger.store.member))
    if gone:
        await stranger.store.aclose()
    async with member(sandbox, tmp_path) as other:
        await other.run(smile())
    await stranger.store.aclose()

    [found] = [each for each in sandbox.ledger.tasks if each.task_id == task.id]
    assert (name, "success") == (found.feature, found.state)
    assert found.polls >= 5
    assert {"success": 2} == sandbox.ledger.tasks_by_state
