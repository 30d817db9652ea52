"""The client: construction, opening and closing, one job, and the other calls."""

import asyncio
import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Literal, cast

import anyio
import httpx
import pytest

from perfect_async import (
    Avatar,
    BadAnswer,
    Client,
    ClientClosed,
    ConfigurationError,
    FileId,
    Job,
    JobRefused,
    Limits,
    PictureRefused,
    Polling,
    RequestRefused,
    ResultUnreadable,
    ServiceUnavailable,
    Smile,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskExpired,
    TaskFailed,
    TaskTimedOut,
    Unauthorized,
    UnitsExhausted,
    WaitTimeout,
)
from perfect_async._runtime.driver import _drivers
from perfect_async.sandbox import Durations, Faults, Scripted, portrait
from tests.support.sandboxed import (
    FACE,
    KEY,
    STYLE,
    Between,
    avatar,
    client,
    clock,
    later,
    smile,
    smiles,
    vendor,
)
from tests.support.virtual_time import VirtualTimeLoop, run


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's environment out of the tests."""
    monkeypatch.delenv("YOUCAM_API_KEY", raising=False)
    monkeypatch.delenv("YOUCAM_BASE_URL", raising=False)


# Construction.

Trick = Literal["lose", "drop", "hang", "gateway", "nonsense", "html"]

BAD_KEYS = [
    "",
    " ",
    "sk-s3cret ",
    " sk-s3cret",
    "sk\ns3cret",
    "\nsk-s3cret",
    "sk s3cret",
    "sk\ts3cret",
    "sk\x00s3cret",
    "sk-s3cret\x7f",
    "sk-s3crét",
    "Bearer sk-s3cret",
    "bearer sk-s3cret",
]


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.parametrize("by", ["argument", "variable"])
def test_keys_that_no_header_can_carry_are_refused(
    key: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that cannot be sent is refused at once, by an error that names the variable."""
    if by == "variable" and "\0" not in key:
        monkeypatch.setenv("YOUCAM_API_KEY", key)
        given = None
    else:
        given = key

    with pytest.raises(ConfigurationError, match="YOUCAM_API_KEY") as caught:
        Client(given)

    assert "s3cr" not in str(caught.value)
    assert "s3cr" not in repr(caught.value)


def test_a_missing_key_is_an_error() -> None:
    """The error says which variable to set."""
    with pytest.raises(ConfigurationError, match="is missing: set YOUCAM_API_KEY"):
        Client()


def test_a_refused_key_is_in_no_frame_of_the_package() -> None:
    """A traceback with locals, as error reporters send it, shows no key."""
    with pytest.raises(ConfigurationError) as caught:
        Client("Bearer sk-s3cret")
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in shown.stack if "perfect_async" in frame.filename]

    assert ours
    assert not [frame for frame in ours if "s3cret" in repr(frame.locals)]


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": ""},
        {"base_url": "ftp://a.example"},
        {"base_url": "a.example"},
        {"base_url": "https://joe:pass@a.example"},
        {"base_url": "https://a.example?x=1"},
        {"drain": -1},
        {"drain": float("nan")},
        {"drain": float("inf")},
        {"drain": None},
        {"drain": "30"},
        {"engine_retries": -1},
        {"engine_retries": 1.5},
        {"engine_retries": True},
        {"limits": Limits(requests=20)},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    """A setting that cannot work is refused at construction, not when the first job waits."""
    with pytest.raises(ConfigurationError):
        Client(KEY, **settings)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"drain": "30"}, "drain is '30' (str); it must"),
        ({"drain": -1}, "drain is -1; it must"),
        ({"engine_retries": True}, "engine_retries is True; it must"),
        ({"limits": 5}, "limits is 5; it must"),
        ({"fit": "yes"}, "fit is 'yes' (str); it must"),
    ],
)
def test_a_message_shows_the_type_of_a_wrong_value(settings: dict[str, Any], shown: str) -> None:
    """Text and a number look different, since the wrong type is often the mistake."""
    with pytest.raises(ConfigurationError) as caught:
        Client(KEY, **settings)
    assert shown in str(caught.value)


def test_a_key_of_another_type_is_not_called_missing() -> None:
    """The message names the type and not the value, which may be a secret."""
    with pytest.raises(ConfigurationError, match="is of the type int, and must be text") as caught:
        Client(5551234)  # type: ignore[arg-type]
    assert "5551234" not in str(caught.value)


async def test_wrong_types_of_calls_are_refused_with_the_right_one(tmp_path: Path) -> None:
    """A job where jobs belong, a number as a path, and the name of a file as a folder."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(ConfigurationError, match="pass an iterable of jobs"):
            await c.estimate(smile())  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"result\.save\(.*smiling\.jpg'\) writes one"):
            await c.run(smile(), save_to=tmp_path / "smiling.jpg")
        assert not sandbox.ledger.requests["submit"]
        result = await c.run(smile(), save_to=f"{tmp_path}/smiling.jpg/")
        assert 1 == len(result.files)
        assert 1 == len((await c.run(smile(2), save_to=tmp_path / "smiling.jpg")).files)
        with pytest.raises(ConfigurationError, match="save cannot write to 5: pass the path"):
            await result.save(5)  # type: ignore[arg-type]


def test_variables_are_the_defaults_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable counts if the argument is not given."""
    monkeypatch.setenv("YOUCAM_API_KEY", KEY)
    monkeypatch.setenv("YOUCAM_BASE_URL", "https://Other.example/")

    assert "<Client https://other.example unopened>" == repr(Client())
    assert "<Client https://a.example unopened>" == repr(Client(base_url="https://a.example"))
    monkeypatch.setenv("YOUCAM_BASE_URL", "")
    assert "<Client https://yce-api-01.makeupar.com unopened>" == repr(Client())


@pytest.mark.parametrize("path", ["/s2s", "/s2s/v2.0", "/s2s/v2.1/"])
def test_a_base_with_the_path_of_the_api_is_refused(path: str) -> None:
    """Every request to it would answer 404, and a proxy's own path still works."""
    with pytest.raises(ConfigurationError, match="leave the path out"):
        Client(KEY, base_url=f"https://a.example{path}")
    assert "a.example/proxy " in repr(Client(KEY, base_url="https://a.example/proxy"))


async def test_an_interval_over_the_lease_loses_no_task() -> None:
    """`interval` and an `insured` over `give_up_after` delay no poll that keeps a task alive."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(45.0)})
    async with client(sandbox, polling=Polling(interval=20, insured=1000)) as c:
        await asyncio.gather(*(c.run(each) for each in smiles(5)))
    assert {"success": 5} == dict(sandbox.ledger.tasks_by_state)


async def test_the_headers_of_requests() -> None:
    """API calls have the key and the package's name and version; storage never gets the key."""
    seen: list[httpx.Request] = []

    async def see(request: httpx.Request) -> None:
        seen.append(request)

    sandbox = vendor()
    async with client(sandbox, transport=Between(sandbox.transport(), see)) as c:
        await c.run(Smile(FACE))
    api = [each for each in seen if each.url.host == "yce-api-01.makeupar.com"]

    assert {f"Bearer {KEY}"} == {each.headers["authorization"] for each in api}
    assert all(each.headers["user-agent"].startswith("perfect_async/0") for each in api)
    assert [False] == ["authorization" in each.headers for each in seen if each not in api]


# Opening and closing.


async def test_a_client_is_opened_and_closed_in_different_tasks() -> None:
    """Fixtures, notebooks and containers open in one task and close in another."""
    c = client(vendor())
    await asyncio.gather(c.open())
    result = await asyncio.gather(c.run(smile()))
    await asyncio.gather(c.close())

    assert 1 == len(result[0].images)
    assert repr(c).endswith(" closed>")


async def test_an_unopened_client_says_how_to_open_it() -> None:
    """Every call of an unopened client raises an error that says how to open it."""
    c = client(vendor())

    with pytest.raises(ConfigurationError, match="not open"):
        await c.run(smile())
    with pytest.raises(ConfigurationError, match="not open"):
        await c.units()
    with pytest.raises(ConfigurationError, match="not open"):
        await c.delete("x")
    with pytest.raises(ConfigurationError, match="not open"):
        async with c.batch([smile()]):
            pass
    with pytest.raises(ConfigurationError, match="not open"):
        await anext(c.templates())
    assert 0 == c.statistics().running
    await c.close()


async def test_a_client_is_opened_once() -> None:
    """Opening twice raises an error, also during the opening; closing twice does nothing."""
    c = client(vendor())
    first = asyncio.ensure_future(c.open())
    await asyncio.sleep(0)
    with pytest.raises(ConfigurationError, match="open already"):
        await c.open()
    assert c is await first
    with pytest.raises(ConfigurationError, match="open already"):
        await c.open()
    await c.close()
    await c.close()
    with pytest.raises(ConfigurationError, match="was closed"):
        await c.open()


async def test_a_closed_client_refuses_every_call(tmp_path: Path) -> None:
    """A closed client refuses all calls, the saving of its results included."""
    async with client(vendor()) as c:
        result = await c.run(smile())
    batch = c.batch([smile()])

    with pytest.raises(ClientClosed):
        await c.run(smile())
    with pytest.raises(ClientClosed):
        await batch.__aenter__()
    with pytest.raises(ClientClosed, match="was not downloaded"):
        await result.save(tmp_path / "results")


async def test_a_result_that_is_read_after_its_client_says_how_to_fetch_it(
    tmp_path: Path,
) -> None:
    """The task was paid for, so the error does not say that nothing was bought."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(smile())

    for call in (result.read, result.images[0].read, lambda: result.save(tmp_path)):
        with pytest.raises(ClientClosed) as caught:
            await call()
        assert "Nothing was bought" not in str(caught.value)
        fetching = f"`await client.attach(Smile, {result.task_id!r})`"
        assert fetching in caught.value.hint
        assert "inside `async with`" in caught.value.hint

    async with client(sandbox) as c:
        again = await c.attach(Smile, result.task_id)
        assert 1 == len(await again.read())
    assert 1 == sandbox.ledger.units_charged


def test_a_client_belongs_to_its_loop() -> None:
    """Calls from another loop are refused."""
    sandbox = vendor()
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        c = runner.run(client(sandbox).open())
        with pytest.raises(ConfigurationError, match="another event loop"):
            run(c.run, smile())
        with pytest.raises(ConfigurationError, match="another event loop"):
            run(c.close)
        runner.run(c.close())


async def test_a_client_is_not_used_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process does not use its parent's connections and ledger."""
    async with client(vendor()) as c:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            with pytest.raises(ConfigurationError, match="before a fork"):
                await c.run(smile())
            with pytest.raises(ConfigurationError, match="before a fork"):
                await c.close()


def test_opening_needs_a_running_loop() -> None:
    """Opening without asyncio, under trio for example, raises an error that says so."""
    opening = client(vendor()).open()

    with pytest.raises(ConfigurationError, match="running asyncio event loop"):
        opening.send(None)


def test_a_client_that_is_never_closed_is_a_warning() -> None:
    """A forgotten client causes a warning, and leaves nothing behind in the loop."""

    async def forget() -> None:
        c = await client(vendor()).open()
        task = asyncio.ensure_future(c.run(smile()))
        await asyncio.sleep(3)
        assert not task.done()

    with pytest.warns(ResourceWarning, match="was never closed"):  # noqa: PT031
        run(forget)
        gc.collect()


@pytest.mark.parametrize("holder", ["globals()", "vars(codecs)", "vars(builtins)"])
def test_a_client_that_is_open_at_the_interpreters_end_is_silent(holder: str) -> None:
    """It neither warns nor fails."""
    script = f"""
import asyncio, builtins, codecs
from perfect_async import Client
from perfect_async.sandbox import Sandbox
async def main():
    return await Client("k", transport=Sandbox().transport()).open()
{holder}["kept"] = asyncio.new_event_loop().run_until_complete(main())
"""
    found = subprocess.run(
        [sys.executable, "-W", "default", "-W", "ignore::ResourceWarning:asyncio", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )

    assert ("", "") == (found.stdout, found.stderr)


async def test_an_opening_that_is_cancelled() -> None:
    """It leaves nothing behind, and the client can be opened again."""
    c = client(vendor())
    opening = asyncio.ensure_future(c.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    for _ in range(5):
        await asyncio.sleep(0)
    assert {asyncio.current_task()} == asyncio.all_tasks()

    async with c:
        await c.run(smile())


async def test_the_second_of_two_opens_if_the_first_is_cancelled() -> None:
    """A cancelled opening does not affect another client's."""
    sandbox = vendor()
    one, other = client(sandbox), client(sandbox)
    opening = [asyncio.ensure_future(each.open()) for each in (one, other)]
    await asyncio.sleep(0)
    opening[0].cancel()
    await asyncio.wait(opening)

    assert (await other.run(smile())).images
    assert repr(one).endswith(" unopened>")
    await other.close()


async def test_two_clients_on_one_key_share_the_window() -> None:
    """Together they keep the limits, whichever of them closes first."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(4.0)})
    one, other = client(sandbox, drain=100), client(sandbox, drain=100)
    await asyncio.gather(one.open(), other.open())

    async def use(c: Client, count: int) -> int:
        async with c.batch(smiles(count)) as batch:
            return sum([outcome.ok async for outcome in batch])

    async def use_and_close(c: Client, count: int) -> int:
        done = await use(c, count)
        await c.close()
        return done

    few, many = await asyncio.gather(use_and_close(one, 30), use(other, 90))
    assert one.statistics() == other.statistics()
    await other.close()

    assert (30, 90) == (few, many)
    assert 120 == sandbox.ledger.tasks_by_state["success"]
    assert 0 == sum(sandbox.ledger.refused.values())
    assert sandbox.ledger.max_in_window(300) <= 250
    assert sandbox.ledger.max_in_window(1) <= 5
    assert 120 == other.statistics().done


async def test_two_clients_that_open_at_once_can_both_be_used() -> None:
    """The second one waits until the driver has started."""
    sandbox = vendor()

    async def one() -> int:
        async with client(sandbox) as c, c.batch([smile()]) as batch:
            return sum([outcome.ok async for outcome in batch])

    assert [1] * 3 == list(await asyncio.gather(one(), one(), one()))


async def test_a_closing_client_abandons_only_its_own_tasks() -> None:
    """The tasks of the other client on the key go on."""
    sandbox = vendor()
    stays = await client(sandbox).open()
    leaves = await client(sandbox, drain=0).open()
    kept = asyncio.ensure_future(stays.run(smile(1)))
    lost = asyncio.ensure_future(leaves.run(smile(2)))
    never = asyncio.ensure_future(leaves.units())
    await asyncio.sleep(4)
    await leaves.close()

    with pytest.raises(TaskAbandoned, match="closed"):
        await lost
    assert (await kept).images
    assert None is not (await never).balance
    assert 1.0 == stays.statistics().units.at_stake
    await stays.close()


def test_two_loops_on_one_key_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A second loop cannot share the first one's window, and the log says what to do."""
    there, done = threading.Event(), threading.Event()

    async def stay() -> None:
        async with client(vendor()):
            there.set()
            while not done.is_set():  # noqa: ASYNC110 - the other side is a thread
                await asyncio.sleep(0.01)

    async def come() -> None:
        async with client(vendor()):
            pass

    thread = threading.Thread(target=asyncio.run, args=[stay()])
    thread.start()
    there.wait(5)
    try:
        with caplog.at_level(logging.WARNING, "perfect_async"):
            run(come)
    finally:
        done.set()
        thread.join()

    assert ["perfect_async"] == [record.name for record in caplog.records]
    assert "split(n)" in caplog.text


async def test_keys_and_hosts_have_drivers_of_their_own() -> None:
    """Another key, or another host, has another window."""
    sandbox = vendor()
    async with (
        client(sandbox) as one,
        Client("another-key", transport=sandbox.transport()) as other,
        client(sandbox, base_url="https://yce-api-01.perfectcorp.com") as third,
    ):
        await one.run(smile())

        done = [each.statistics().done for each in (one, other, third)]
        alive = [driver for driver in _drivers.values() if driver.alive]

    assert [1, 0, 0] == done
    assert 3 == len(alive)


# One job.


async def test_a_smile_from_a_file_to_a_file(tmp_path: Path) -> None:
    """A picture is uploaded, made to smile, and saved under its own name."""
    source = tmp_path / "me.jpg"
    source.write_bytes(FACE)
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(Smile(source))
        paths = await result.save(f"{tmp_path}/out/")

    assert [path for path in paths if path.is_file()] == paths
    assert [True] == [path.name.startswith("me-") for path in paths]
    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)
    assert [] == sandbox.ledger.violations


async def test_an_avatar_has_all_its_pictures(tmp_path: Path) -> None:
    """The partial results of a running task are not taken for all of them."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(Avatar(FACE, template_id=STYLE, output_count=6))
        paths = await result.save(tmp_path)

    assert 6 == len(set(paths)) == len(result.images)
    assert 2 == sandbox.ledger.units_charged


async def test_a_fresh_url_after_two_hours(tmp_path: Path) -> None:
    """A result can be saved after its URLs have expired, since new ones are asked for."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(smile())
        await asyncio.sleep(3 * 3600)
        assert [True] == [path.is_file() for path in await result.save(tmp_path)]
        await asyncio.sleep(30 * 3600)
        with pytest.raises(TaskExpired):
            await result.save(tmp_path)

    assert 1 == sandbox.ledger.units_charged


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"task_status": "running"}, BadAnswer),
        ({"task_status": "error", "error": "error_pose"}, TaskFailed),
        ({"task_status": "success", "results": {}}, ResultUnreadable),
    ],
    ids=["running", "error", "empty"],
)
async def test_a_finished_task_that_changes_is_an_error(
    body: object, error: type[Exception], tmp_path: Path
) -> None:
    """A finished task that has another state when it is asked again raises an error."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(smile())
        await asyncio.sleep(3 * 3600)
        sandbox.script("poll", (200, {"status": 200, "data": body}))
        with pytest.raises(error):
            await result.save(tmp_path / "results")
        sandbox.script("poll", (403, {"status": 403, "error": "no"}))
        with pytest.raises(RequestRefused, match="403"):
            await result.save(tmp_path / "results")


async def test_a_file_id_is_used_unchanged() -> None:
    """A `FileId` that the vendor does not know costs nothing."""
    sandbox = vendor()
    async with (
        client(sandbox) as c,
        httpx.AsyncClient(transport=sandbox.transport(), base_url="https://v.example") as other,
    ):
        body = {"content_type": "image/jpeg", "file_name": "a.jpg", "file_size": len(FACE)}
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = await other.post("/s2s/v2.0/file", json={"files": [body]}, headers=headers)
        file = answer.json()["data"]["files"][0]
        put = file["requests"][0]
        await other.put(put["url"], headers=put["headers"], content=FACE)
        assert (await c.run(Smile(FileId(file["file_id"])))).images
        with pytest.raises(RequestRefused, match="400"):
            await c.run(Smile(FileId("unknown")))

    assert 1 == sandbox.ledger.units_charged


async def test_urls_are_percent_encoded() -> None:
    """Raw spaces and other scripts in a picture's URL are percent-encoded for the vendor."""
    sandbox = vendor()
    async with client(sandbox) as c:
        await c.run(Smile("https://a.example/my pictures/ä.jpg"))

    assert ["https://a.example/my%20pictures/%C3%A4.jpg"] == [
        task.source for task in sandbox.ledger.tasks
    ]


class OddPath(os.PathLike[str]):
    """A path of the user's own class that fails when it is converted to text."""

    def __fspath__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (Smile("/nowhere/at.all"), PictureRefused),
        (Smile(b"no picture"), PictureRefused),
        (Smile("http://joe:pass@a.example/b.jpg"), PictureRefused),
        (Smile(OddPath()), JobRefused),
        ("a.jpg", JobRefused),
        (None, JobRefused),
        (Job(), JobRefused),
    ],
    ids=["missing", "none", "credentials", "odd", "text", "None", "general"],
)
async def test_bad_jobs_are_refused_before_anything_is_sent(
    job: Job, error: type[JobRefused]
) -> None:
    """A job that the vendor would refuse costs no request."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(error, match="Nothing was sent"):
            await c.run(job)

    assert 0 == sum(sandbox.ledger.requests.values())


async def test_timeouts_bound_the_waiting_and_not_the_task() -> None:
    """`WaitTimeout` has the task's id, and the task is kept alive to its end."""
    sandbox = vendor()
    async with client(sandbox) as c:
        began = clock()
        with pytest.raises(WaitTimeout) as caught:
            await c.run(smile(), timeout=3.0)
        assert 3.0 == clock() - began
        assert [task.task_id for task in sandbox.ledger.tasks] == [caught.value.task_id]
        assert 1.0 == caught.value.units_at_stake
        again = f"`await client.attach(Smile, {caught.value.task_id!r})` waits for it again."
        assert caught.value.hint.endswith(again)

    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)


async def test_a_wait_for_the_window_is_visible(caplog: pytest.LogCaptureFixture) -> None:
    """The statistics, one line of the log and the error name a window that is full."""
    caplog.set_level("INFO", "perfect_async")
    sandbox = vendor()
    async with client(sandbox, limits=Limits(requests=90)) as c:
        for _ in range(88):
            await c.units()
        waiting = asyncio.ensure_future(c.run(smile(), timeout=20))
        await asyncio.sleep(10)
        wait = c.statistics().window_wait
        with pytest.raises(WaitTimeout) as caught:
            await waiting

    assert 200 < wait < 300
    # The wait ended 10 s later.
    [left] = re.findall(r"window of the key is full for about (\d+) s", caught.value.message)
    assert wait - 10 == pytest.approx(float(left), abs=1)
    assert "The job was not sent and costs nothing." == caught.value.hint
    assert (None, 0.0) == (caught.value.task_id, caught.value.units_at_stake)
    assert 1 == caplog.text.count("The request window of this key is full: 88 of its 90 requests")
    assert "was not sent: The caller no longer waits for this job, 0 units" in caplog.text
    assert "failed" not in caplog.text


async def test_the_time_left_of_a_batch_shrinks_while_it_waits_for_the_window() -> None:
    """A minute of waiting is a minute less, although nothing is sent or answered in it."""
    async with client(vendor(), limits=Limits(requests=90)) as c:
        for _ in range(88):
            await c.units()
        async with c.batch([smile()]) as batch:
            await asyncio.sleep(10)
            before = batch.progress.eta
            await asyncio.sleep(60)
            after = batch.progress.eta
            batch.stop()

    assert before is not None
    assert after == pytest.approx(before - 60, abs=1)


@pytest.mark.parametrize("timeout", [0, 0.05])
async def test_a_wait_that_ends_before_the_creation(timeout: float) -> None:
    """A job that is not created before its timeout is cancelled."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(WaitTimeout) as caught:
            await c.run(Smile(FACE), timeout=timeout)
        await asyncio.sleep(60)

    assert (None, 0.0) == (caught.value.task_id, caught.value.units_at_stake)
    assert 0 == sandbox.ledger.units_charged


async def test_a_wait_that_ends_during_the_creation() -> None:
    """While the creation has no answer its units are at stake, and the id is unknown."""
    sandbox = vendor(latency=2.0)
    async with client(sandbox) as c:
        with pytest.raises(WaitTimeout) as caught:
            await c.run(smile(), timeout=1.0)

    assert (None, 1.0) == (caught.value.task_id, caught.value.units_at_stake)
    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "3"])
async def test_a_timeout_must_be_a_number(timeout: float) -> None:
    """A timeout is a number of seconds, or None."""
    async with client(vendor()) as c:
        with pytest.raises(ConfigurationError, match="timeout"):
            await c.run(smile(), timeout=timeout)


async def test_two_hundred_callers_at_once() -> None:
    """Every caller gets a result, and the limits hold."""
    sandbox = vendor()
    async with client(sandbox) as c:
        results = await asyncio.gather(*(c.run(smile(number)) for number in range(200)))

    assert 200 == len({result.task_id for result in results})
    assert 0 == sum(sandbox.ledger.refused.values())
    assert 0 == sandbox.ledger.units_wasted


# The other calls.


async def test_templates_over_all_pages() -> None:
    """The list is read page by page, and its URLs are safe to fetch."""
    sandbox = vendor()
    async with client(sandbox) as c:
        found = [template async for template in c.templates()]
        some = c.templates()
        await anext(some)
        await some.aclose()  # type: ignore[attr-defined]

    assert 71 == len({template.id for template in found})
    assert 5 == sandbox.ledger.requests["template"]
    assert all(t.thumb and t.thumb.isascii() and " " not in t.thumb for t in found)


async def test_a_list_without_an_end_is_an_error() -> None:
    """A repeated token ends the list, and a list with ever new tokens is an error."""
    sandbox = vendor(requests=100_000, per_second=100)
    page = {"templates": [{"id": "male_1"}], "next_token": "again"}
    async with client(sandbox, limits=Limits(100_000, 300, 100)) as c:
        sandbox.script("template", *[(200, {"data": page})] * 2)
        assert 2 == len([template async for template in c.templates()])
        pages = [{"templates": [], "next_token": str(number)} for number in range(501)]
        sandbox.script("template", *[(200, {"data": each}) for each in pages])
        with pytest.raises(BadAnswer, match="goes on"):
            assert [] == [template async for template in c.templates()]


@pytest.mark.parametrize(("units", "balance"), [(100.0, 99.0), (float("inf"), None), (1.0, 0.0)])
async def test_the_balance(units: float, balance: float | None) -> None:
    """The balance is the sum of the grants, and unknown if there are none."""
    async with client(vendor(units=units)) as c:
        await c.run(smile())

        assert balance == (await c.units()).balance


async def test_estimates_by_the_price_list() -> None:
    """The units come from the vendor's price list, and no job is sent."""
    sandbox = vendor()
    jobs = [smile(1), smile(2), avatar(5)]
    async with client(sandbox) as c:
        one = await c.estimate(jobs)
        other = await c.estimate(later(iter(jobs)))
        with pytest.raises(JobRefused):
            await c.estimate([smile(), "b.jpg"])  # type: ignore[list-item]

    assert one == other
    assert (3, 4.0, False) == (one.jobs, one.units, one.documented)
    assert {"ai-smile": 2.0, "ai-avatar": 2.0} == one.by_feature
    assert 0 == sandbox.ledger.units_charged


async def test_estimates_use_observed_durations() -> None:
    """Documented durations count until a task has ended, and observed ones after that."""
    jobs = [smile(1), smile(2)]
    async with client(vendor()) as c:
        before = await c.estimate(jobs)
        await c.run(smile())
        after = await c.estimate(jobs)
        nothing = await c.estimate([])
        other = await c.estimate([*jobs, avatar(5)])

    assert (False, True) == (before.measured, after.measured)
    assert 12.5 <= before.seconds < 25
    assert 7 < after.seconds < 16
    assert (0.0, True) == (nothing.seconds, nothing.measured)
    assert not other.measured
    assert other.seconds >= 120


async def test_the_history_lists_charges() -> None:
    """Each charge has its task and its units, the newest first, over several pages."""
    sandbox = vendor(units=100)
    async with client(sandbox) as c:
        async with c.batch(smiles(34)) as batch:
            outcomes = [outcome async for outcome in batch]
        entries = [entry async for entry in c.history()]

    assert {outcome.task_id for outcome in outcomes} == {each.target_id for each in entries}
    assert {1.0} == {abs(each.units or 0.0) for each in entries}
    times = [each.at for each in entries if each.at is not None]
    assert len(outcomes) == len(times)
    assert times[0] == max(times)


async def test_estimates_fall_back_to_documented_prices() -> None:
    """They are used for features that the list does not name, and the estimate says so."""
    sandbox = vendor()
    rows = [
        {"description": "by the second", "amount": 3, "unit": "second", "proc_unit": 1},
        {"amount": 5, "unit": "result_image", "proc_unit": 1},
    ]
    rows[0]["run_task_url"] = "/s2s/v2.0/task/ai-smile"
    async with client(sandbox) as c:
        # A page without a known price is not the last one.
        for token, page in (("2", rows[1:]), (None, rows)):
            answer = {"result": {"next_token": token, "skus": page}}
            sandbox.script("feature_cost", (200, answer))
        estimate = await c.estimate(iter([smile(), avatar(9)]))

    assert (4.0, True) == (estimate.units, estimate.documented)
    assert 2 == sandbox.ledger.requests["feature_cost"]


async def test_deleting_a_task(tmp_path: Path) -> None:
    """Only a finished task can be deleted, and its pictures are gone at once."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(smile())
        await c.delete(result.task_id)
        with pytest.raises(RequestRefused, match="OperationNotSupport"):
            await c.delete(result.task_id)
        running = asyncio.ensure_future(c.run(smile()))
        await asyncio.sleep(4)
        with pytest.raises(RequestRefused, match="OperationInvalid"):
            await c.delete(sandbox.ledger.tasks[1].task_id)
        assert (await running).images
        with pytest.raises(TaskExpired):
            await result.save(tmp_path / "results")


async def test_a_query_without_an_answer_is_repeated() -> None:
    """A query is sent several times before its error is raised."""
    sandbox = vendor(faults=Faults(bad_gateway={"credit": 1.0}))
    async with client(sandbox) as c:
        with pytest.raises(ServiceUnavailable, match="502"):
            await c.units()

    assert 7 == sandbox.ledger.requests["credit"]


async def test_statistics() -> None:
    """The counts are those of the sandbox's ledger."""
    sandbox = vendor(faults=Faults(by_picture={"https://pictures.example/3.jpg": "error_pose"}))
    async with client(sandbox) as c:
        await asyncio.gather(*(c.run(smile(n)) for n in range(5)), return_exceptions=True)
        found = c.statistics()

    assert (4, 1, 0) == (found.done, found.failed, found.running)
    assert (5.0, 1.0, 0.0) == (found.units.charged, found.units.returned, found.units.at_stake)
    assert sandbox.ledger.requests["poll"] == found.requests["poll"]
    assert 5 == found.requests["submit"]
    assert (True, None) == (found.reached, found.last_failure)


async def test_statistics_of_a_vendor_that_does_not_answer() -> None:
    """Until a request is answered, the last failure says why."""
    sandbox = vendor()
    sandbox.script("credit", "refuse", "refuse", (500, {"status": 500, "error": "x"}))
    async with client(sandbox) as c:
        first = found = c.statistics()
        async with anyio.create_task_group() as group:
            group.start_soon(c.units)
            await anyio.sleep(0.1)
            found = c.statistics()
        last = c.statistics()

    assert (False, None) == (first.reached, first.last_failure)
    assert (False, "ServiceUnavailable") == (found.reached, type(found.last_failure).__name__)
    assert (True, None) == (last.reached, last.last_failure)


# Failures at the vendor.


@pytest.mark.parametrize("code", ["error_no_face", "ERROR_POSE", "face alignment failed"])
async def test_a_final_failure_of_the_engine(code: str) -> None:
    """The error has the vendor's code, and the units are returned."""
    sandbox = vendor(faults=Faults(engine_errors=1.0, engine_error_codes=(code,)))
    async with client(sandbox, engine_retries=2) as c:
        with pytest.raises(TaskFailed) as caught:
            await c.run(smile())
        assert 0.0 == c.statistics().units.at_stake

    assert (code.lower(), False) == (caught.value.code, caught.value.passing)
    assert sandbox.ledger.tasks[0].task_id == caught.value.task_id
    assert (1, 1) == (sandbox.ledger.units_charged, sandbox.ledger.units_returned)


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize(
    "code", ["error_inference", "error_upload", "error_download_image", "unknown_internal_error"]
)
async def test_an_engine_failure_that_may_pass(code: str, retries: int) -> None:
    """It is tried again as often as `engine_retries` says."""
    sandbox = vendor(faults=Faults(engine_errors=1.0, engine_error_codes=(code,)))
    async with client(sandbox, engine_retries=retries) as c:
        with pytest.raises(TaskFailed) as caught:
            await c.run(Smile(FACE))

    assert caught.value.passing
    assert sandbox.ledger.tasks[-1].task_id == caught.value.task_id
    assert 1 + retries == sandbox.ledger.units_charged == sandbox.ledger.units_returned
    assert 1 == sandbox.ledger.requests["file"]


async def test_an_unknown_task_is_polled_once_more() -> None:
    """One `InvalidTaskId` within the lease is not believed; a second one is."""
    unknown = (400, {"status": 400, "error": "no", "error_code": "InvalidTaskId"})
    sandbox = vendor()
    async with client(sandbox) as c:
        sandbox.script("poll", unknown)
        assert (await c.run(smile())).images
        sandbox.script("poll", unknown, unknown)
        with pytest.raises(TaskExpired, match="may have been charged") as caught:
            await c.run(smile())

        assert 1.0 == caught.value.units_at_stake == c.statistics().units.at_stake
    assert 1 == sandbox.ledger.tasks_by_state["success"]


async def test_the_vendors_own_time_limit() -> None:
    """A task that timed out at the vendor has ended, although the status is a 500."""
    sandbox = vendor(faults=Faults(timeouts=1.0))
    async with client(sandbox) as c:
        with pytest.raises(TaskTimedOut) as caught:
            await c.run(avatar(8))

    assert 2.0 == caught.value.units_at_stake == sandbox.ledger.units_wasted
    assert 1 == len(sandbox.ledger.tasks)


async def test_a_task_that_never_ends() -> None:
    """It is abandoned at `give_up_after`, and its units are at stake."""
    sandbox = vendor(faults=Faults(stuck=1.0))
    async with client(sandbox, polling=Polling(give_up_after=100)) as c:
        began = clock()
        with pytest.raises(TaskAbandoned, match="100 s") as caught:
            await c.run(smile())

    assert 100 == pytest.approx(clock() - began, abs=1)
    assert 1.0 == caught.value.units_at_stake


@pytest.mark.parametrize("fault", ["hang", "dropped", "bad_gateway", "malformed"])
async def test_failed_polls_are_repeated_within_the_lease(fault: str) -> None:
    """A poll that hangs, is dropped, or gets a 502 or malformed answer is repeated."""
    faults = Faults(**{fault: {"poll": 0.3}})  # type: ignore[arg-type]
    sandbox = vendor(faults=faults, seed=3)
    async with client(sandbox) as c:
        results = await asyncio.gather(*(c.run(smile(n)) for n in range(6)))

    assert 6 == len(results)
    assert 0 == sandbox.ledger.units_wasted
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize("trick", ["lose", "drop", "hang", "gateway", "nonsense", "html"])
async def test_a_creation_whose_answer_is_lost(trick: Trick) -> None:
    """The task may exist, so the job is in doubt and never created again."""
    written: dict[str, Scripted] = {
        "gateway": (503, {"status": 503, "error": "later"}),
        "nonsense": (200, {"status": 200, "data": {}}),
        "html": (200, "<html>"),
    }
    sandbox = vendor()
    sandbox.script("task", written.get(trick, cast("Scripted", trick)))
    async with client(sandbox) as c:
        with pytest.raises(SubmissionInDoubt, match="no usable answer came back") as caught:
            await c.run(avatar(5))
        await asyncio.sleep(100)

        assert 2.0 == caught.value.units_at_stake == c.statistics().units.at_stake
    assert 1 == sandbox.ledger.requests["task"]


LIMITED: Scripted = (429, {"status": 429, "error": "Too many requests"})


@pytest.mark.parametrize("trick", ["refuse", LIMITED], ids=["unconnected", "429"])
async def test_a_creation_that_was_not_executed(trick: Scripted) -> None:
    """If there certainly is no task, it is created again and charged once."""
    sandbox = vendor()
    sandbox.script("task", trick, trick)
    async with client(sandbox) as c:
        outcome = asyncio.ensure_future(c.run(smile()))
        await asyncio.sleep(0.5)
        assert (await outcome).images

    assert 1 == sandbox.ledger.units_charged


async def test_a_creation_that_was_refused_has_nothing_at_stake() -> None:
    """A job that waits to be created again has no units at stake."""
    sandbox = vendor()
    sandbox.script("task", LIMITED, LIMITED, LIMITED)
    async with client(sandbox) as c:
        with pytest.raises(WaitTimeout) as caught:
            await c.run(smile(), timeout=0.9)

    assert (None, 0.0) == (caught.value.task_id, caught.value.units_at_stake)


async def test_a_key_that_is_refused() -> None:
    """A 401 fails every job that was not created, and no more requests are sent."""
    sandbox = vendor(api_keys=["another"])
    async with client(sandbox) as c:
        errors = await asyncio.gather(*(c.run(smile(n)) for n in range(20)), return_exceptions=True)
        sent = sandbox.ledger.requests["task"]
        with pytest.raises(Unauthorized, match="new client"):
            await c.run(smile())

    assert {Unauthorized} == {type(error) for error in errors}
    assert 21 > len({id(error) for error in errors}) > 19
    assert sent == sandbox.ledger.requests["task"] <= 5
    assert all(KEY not in str(error) for error in errors)


async def test_a_balance_that_does_not_cover() -> None:
    """Jobs that cost at least as much as the refused one fail unsent; cheaper ones go on."""
    sandbox = vendor(units=2)
    async with client(sandbox) as c:
        dear = asyncio.gather(*(c.run(avatar(12)) for _ in range(4)), return_exceptions=True)
        await asyncio.sleep(5)
        cheap = await c.run(smile())
        with pytest.raises(UnitsExhausted, match="Nothing was charged"):
            await c.run(avatar(12))

    assert cheap.images
    assert {UnitsExhausted} == {type(error) for error in await dear}
    assert 1 == sandbox.ledger.units_charged
    assert sandbox.ledger.requests["task"] <= 5


# Uploads and downloads.


@pytest.mark.parametrize(
    "settings",
    [
        {"files_per_call": 3},
        {"files_per_call": 1},
        {"universal_path": False},
        {"header_style": "list"},
        {"header_style": "numbers"},
        {"task_ids": "base64"},
        {"polling_interval": 1000},
        {"window": "fixed"},
    ],
    ids=str,
)
async def test_readings_of_the_contract(settings: dict[str, Any]) -> None:
    """Jobs succeed with every reading of what the contract leaves open."""
    sandbox = vendor(**settings)
    jobs: list[Job] = [Smile(portrait(n, size=96)) for n in range(8)]
    jobs += [Avatar(portrait(n, size=96), template_id=STYLE) for n in range(4)]
    async with client(sandbox) as c:
        results = await asyncio.gather(*map(c.run, jobs))

    # One request finds out that the common path is missing.
    asked = ["unknown: unknown path POST /s2s/v2.0/file"] if "universal_path" in settings else []
    assert 12 == len(results)
    assert asked == sandbox.ledger.violations
    assert 12 == sandbox.ledger.units_charged


@pytest.mark.parametrize("fault", ["dropped", "bad_gateway", "refused_connections"])
async def test_uploads_that_fail_are_sent_again(fault: str) -> None:
    """An upload costs nothing, so it is repeated."""
    faults = Faults(**{fault: {"upload": 0.4}})  # type: ignore[arg-type]
    sandbox = vendor(faults=faults, seed=1)
    async with client(sandbox) as c:
        results = await asyncio.gather(*(c.run(Smile(FACE, key=str(n))) for n in range(6)))

    assert 6 == len(results)


async def test_an_upload_host_that_is_down() -> None:
    """After six tries the job fails, and nothing is bought."""
    sandbox = vendor(faults=Faults(bad_gateway={"upload": 1.0}))
    async with client(sandbox) as c:
        with pytest.raises(ServiceUnavailable, match="upload"):
            await c.run(Smile(FACE))

    assert 6 == sandbox.ledger.requests["upload"]
    assert 0 == sandbox.ledger.units_charged


async def test_a_file_that_changes_during_the_upload(tmp_path: Path) -> None:
    """A picture other than the inspected one is never uploaded whole."""
    source = tmp_path / "me.jpg"
    source.write_bytes(FACE)
    sandbox = vendor()

    async def change(request: httpx.Request) -> None:
        if request.url.path == "/s2s/v2.0/file":
            await anyio.Path(source).write_bytes(FACE[:-9] + bytes(9))

    async with client(sandbox, transport=Between(sandbox.transport(), change)) as c:
        with pytest.raises(PictureRefused, match="changed"):
            await c.run(Smile(source))

    assert 0 == sandbox.ledger.units_charged


async def test_a_hanging_upload_host_delays_no_poll() -> None:
    """Polls find a connection while every upload hangs."""
    sandbox = vendor(faults=Faults(hang={"upload": 1.0}, hang_seconds=500.0))
    async with client(sandbox, drain=0) as c:
        hanging = [asyncio.ensure_future(c.run(Smile(FACE, key=f"slow {n}"))) for n in range(20)]
        await asyncio.sleep(1)
        results = await asyncio.gather(*(c.run(smile(n)) for n in range(5)))
        assert 5 == len(results)
        assert 0 == c.statistics().late
    ends = await asyncio.gather(*hanging, return_exceptions=True)

    assert {ClientClosed} == {type(end) for end in ends}
    assert 0 == sandbox.ledger.units_wasted


HOSTILE = [
    "http://storage.example/a",
    "https://127.0.0.1/a",
    "https://10.0.0.1/a",
    "https://169.254.169.254/latest",
    "https://joe:pass@storage.example/a",
    "https://localhost/a",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("url", HOSTILE)
async def test_unsafe_upload_urls_are_not_followed(url: str) -> None:
    """No picture is sent to a host that the vendor should not name."""
    sandbox = vendor()
    put = {"method": "PUT", "url": url, "headers": {"Content-Length": str(len(FACE))}}
    file = {"file_id": "f", "requests": [put]}
    sandbox.script("file", *[(200, {"status": 200, "data": {"files": [file]}})] * 9)
    seen: list[str] = []

    async def see(request: httpx.Request) -> None:
        seen.append(request.url.host)

    async with client(sandbox, transport=Between(sandbox.transport(), see)) as c:
        with pytest.raises(BadAnswer, match="not followed"):
            await c.run(Smile(FACE))

    assert {"yce-api-01.makeupar.com"} == set(seen)
    assert 0 == sandbox.ledger.units_charged


@pytest.mark.parametrize("url", [url for url in HOSTILE if url.startswith("http")])
async def test_unsafe_result_urls_are_not_followed(url: str, tmp_path: Path) -> None:
    """Nothing is fetched from a host that the vendor should not name."""
    sandbox = vendor()
    data = {"task_status": "success", "results": {"url": url}}
    async with client(sandbox) as c:
        sandbox.script("poll", *[(200, {"status": 200, "data": data})])
        result = await c.run(smile())
        with pytest.raises(BadAnswer, match="not followed"):
            await result.save(tmp_path)

    assert [] == os.listdir(tmp_path)  # noqa: PTH208 - not in the loop


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    """A storage host that redirects gets no picture and no download."""

    async def redirect(request: httpx.Request) -> httpx.Response | None:
        if request.url.host.endswith("sandbox.example"):
            return httpx.Response(302, headers={"location": "https://elsewhere.example/"})
        return None

    sandbox = vendor()
    async with client(sandbox, transport=Between(sandbox.transport(), redirect)) as c:
        result = await c.run(smile())
        with pytest.raises(BadAnswer, match="redirects"):
            await result.save(tmp_path)
        with pytest.raises(BadAnswer, match="redirects"):
            await c.run(Smile(FACE))


async def test_clients_one_after_another_spend_one_window() -> None:
    """A client counts the requests of the one before it on the same transport."""
    sandbox = vendor()
    way = sandbox.transport()
    spent = []
    for _ in range(40):
        async with Client(KEY, transport=way) as c:
            spent.append(c.statistics().requests_in_window)
            await c.units()
            await c.run(Smile(portrait(1, size=64)))

    assert not sandbox.ledger.refused
    assert 0 == spent[0]
    assert 200 < max(spent) < 250


async def test_another_transport_has_another_window() -> None:
    """Requests on another transport do not count, since it may lead to another vendor."""
    async with Client(KEY, transport=vendor().transport()) as c:
        await c.units()
    async with Client(KEY, transport=vendor().transport()) as c:
        assert 0 == c.statistics().requests_in_window


@pytest.mark.parametrize("answer", [(404, {"status": 404, "error": "no"}), (200, {"result": 7})])
async def test_estimates_without_an_answer_of_the_price_list(answer: Scripted) -> None:
    """If the price list cannot be read, the documented prices are used."""
    sandbox = vendor()
    sandbox.script("feature_cost", answer)
    async with client(sandbox) as c:
        estimate = await c.estimate([smile(), avatar(9)])

    assert (4.0, True) == (estimate.units, estimate.documented)


@pytest.mark.parametrize("name", ["limits", "polling", "timeouts", "transport"])
def test_settings_of_a_wrong_type_are_refused(name: str) -> None:
    """A setting of a wrong type is refused at construction."""
    with pytest.raises(ConfigurationError, match=rf"{name} is '5' \(str\)"):
        Client(KEY, **{name: "5"})  # type: ignore[arg-type]


async def test_attaching_without_an_id_says_what_a_missing_id_means() -> None:
    """The `task_id` of an error is None if its job was not sent."""
    async with client(vendor()) as c:
        with pytest.raises(ConfigurationError, match="no task is known") as caught:
            await c.attach(Smile, None)  # type: ignore[arg-type]
    assert "correct the setting" not in str(caught.value)
    assert "not sent, which costs nothing" in caught.value.hint


@pytest.mark.parametrize("task_id", ["", None, 5])
async def test_deleting_needs_a_task_id(task_id: object) -> None:
    """A value that cannot be a task id is refused without a request."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(ConfigurationError, match="task_id is"):
            await c.delete(cast("str", task_id))

    assert 0 == sandbox.ledger.requests.total()


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("sure", [True, False])
async def test_an_outcome_that_nobody_took_is_forgotten_after_a_day(
    fails: bool, sure: bool, tmp_path: Path
) -> None:
    """An outcome that nobody took is kept for `resume` for as long as the vendor has its result."""
    sandbox = vendor(faults=Faults(engine_errors=float(fails)))
    signed = Smile("https://pictures.example/1.jpg?X-Amz-Signature=abc")

    c = client(sandbox, journal=tmp_path / "jobs.db", engine_retries=0)
    async with c:
        assert c._session is not None
        journal = c._session.channel.journal.writer
        assert journal is not None
        with pytest.raises(WaitTimeout):
            await c.run(smile() if sure else signed, timeout=3)
        await anyio.sleep(60)
        assert 1 == len(journal.state.live)
        await anyio.sleep(25 * 3600)
        async with c.batch([smile(1), smile(2)]) as batch:
            async for _ in batch:
                pass
        await anyio.sleep(60)
        assert {} == journal.state.live


# Results that cannot be read.

UNREADABLE = {"status": 200, "data": {"task_status": "success", "results": {"score": 7}}}


async def test_a_result_that_cannot_be_read_is_raised_with_the_answer() -> None:
    """The error has the task's id and the vendor's answer, and the task is polled no more."""
    sandbox = vendor()
    sandbox.script("poll", (200, UNREADABLE))
    async with client(sandbox) as c:
        with pytest.raises(ResultUnreadable) as caught:
            await c.run(smile())
        await anyio.sleep(60)

    [task] = sandbox.ledger.tasks
    assert task.task_id == caught.value.task_id
    assert {"score": 7} == caught.value.raw
    assert 1.0 == caught.value.units_at_stake
    assert 1 == sandbox.ledger.requests["poll"]


async def test_a_result_that_cannot_be_read_fails_its_job_alone() -> None:
    """The other jobs of the batch go on, and the outcome has the units."""
    sandbox = vendor()
    sandbox.script("poll", (200, UNREADABLE))
    async with client(sandbox) as c, c.batch(smiles(3), ordered=True) as batch:
        outcomes = [outcome async for outcome in batch]

    assert [False, True, True] == [outcome.ok for outcome in outcomes]
    error = outcomes[0].error
    assert isinstance(error, ResultUnreadable)
    assert outcomes[0].task_id == error.task_id
    assert error.task_id in {task.task_id for task in sandbox.ledger.tasks}
    assert {"score": 7} == error.raw
    assert 1.0 == outcomes[0].units


async def test_a_null_among_the_pictures_leaves_the_others(tmp_path: Path) -> None:
    """The readable pictures of the result are returned and saved."""
    sandbox = vendor()
    inner = sandbox.transport()

    async def drop_second(request: httpx.Request) -> httpx.Response | None:
        if request.method != "GET" or "/task/" not in request.url.path:
            return None
        answer = await inner.handle_async_request(request)
        found = json.loads(await answer.aread())
        if found["data"]["task_status"] == "success":
            found["data"]["results"]["output"][1] = None
        return httpx.Response(200, json=found)

    async with client(sandbox, transport=Between(inner, drop_second)) as c:
        result = await c.run(avatar(3))
        paths = await result.save(tmp_path)

    assert ["0.jpg", "2.jpg"] == [httpx.URL(each.url).path[-5:] for each in result.images]
    assert 2 == len(paths)
