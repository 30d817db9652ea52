"""`examples/webapp.py` in virtual time, route by route, against the sandbox."""

import base64
import functools
import gc
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from examples import webapp, webapp_orders
from perfect_async import Client, Polling
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait

Site: TypeAlias = Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]

FACE = portrait(1, 96)
JPEG = {"Content-Type": "image/jpeg"}
SECRET = "whsec_" + base64.b64encode(b"the secret of the console").decode()


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox(latency=0.15, durations={"ai-smile": Durations.fixed(8.0)})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the app keeps what it keeps."""
    monkeypatch.setattr(webapp, "FOLDER", tmp_path / "smiles")
    return tmp_path / "smiles"


@pytest.fixture
def site(sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The running app, a new one each time, and somebody who visits it."""
    monkeypatch.delenv("YOUCAM_WEBHOOK_SECRET", raising=False)
    # An app that ends in these tests is one that dies: nothing is waited for.
    polling = Polling(give_up_after=300.0)
    made = functools.partial(
        Client, "key", transport=sandbox.transport(), polling=polling, drain=0.0
    )
    monkeypatch.setattr(webapp, "Client", made)

    @asynccontextmanager
    async def running() -> AsyncIterator[httpx.AsyncClient]:
        app = webapp.create_app()
        async with app.router.lifespan_context(app), visitor(app) as http:
            yield http

    return running


def visitor(app: Starlette) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://app.test", timeout=None)


async def upload(http: httpx.AsyncClient, content: bytes = FACE) -> httpx.Response:
    return await http.post("/smiles", content=content, headers=JPEG)


async def states_of(http: httpx.AsyncClient, place: str) -> list[dict[str, Any]]:
    """What the events of an order say until they end."""
    answer = await http.get(f"{place}/events")
    assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
    said = [text for text in answer.text.split("\n\n") if text not in {"", ":"}]
    return [json.loads(text.removeprefix("data: ")) for text in said]


def orders_of(http: httpx.AsyncClient) -> webapp_orders.Orders:
    """What the app behind `http` keeps."""
    transport = http._transport
    assert isinstance(transport, httpx.ASGITransport)
    assert isinstance(transport.app, Starlette)
    orders = transport.app.state.orders
    assert isinstance(orders, webapp_orders.Orders)
    return orders


def results(folder: Path) -> list[Path]:
    return sorted((folder / "results").rglob("*.*"))


async def test_an_upload_becomes_a_smile(site: Site, sandbox: Sandbox) -> None:
    """202 with a location, states while it is made, and the picture with its type."""
    async with site() as http:
        taken = await upload(http)
        place = taken.headers["location"]
        early = await http.get(f"{place}/result")
        states = await states_of(http, place)
        done = await http.get(place)
        picture = await http.get(f"{place}/result")

    order = taken.json()["id"]
    assert (202, f"/smiles/{order}") == (taken.status_code, place)
    assert (409, "It is not done yet.") == (early.status_code, early.json()["message"])
    assert ["waiting", "running", "done"] == [each["state"] for each in states]
    assert {"id": order, "state": "done"} == done.json()
    assert (200, "image/jpeg") == (picture.status_code, picture.headers["content-type"])
    assert picture.content.startswith(b"\xff\xd8\xff")
    assert picture.content != FACE
    assert [] == sandbox.ledger.violations


async def test_what_every_answer_says(site: Site) -> None:
    """Nothing is kept by caches, framed, sniffed or embedded elsewhere, errors included."""
    async with site() as http:
        taken = await upload(http)
        place = taken.headers["location"]
        answers = [await http.get(path) for path in ("/", place, f"{place}/events", "/nowhere")]
        answers.append(await http.get(f"{place}/result"))

    for answer in [taken, *answers]:
        assert webapp.HEADERS.items() <= {k.title(): v for k, v in answer.headers.items()}.items()
    assert "no-store" == taken.headers["cache-control"]
    assert "frame-ancestors 'none'" in taken.headers["content-security-policy"]


async def test_the_page_needs_nothing_from_elsewhere(site: Site) -> None:
    """One page without foreign addresses; its script and style are those of its policy."""
    async with site() as http:
        answer = await http.get("/")

    assert (200, "text/html; charset=utf-8") == (answer.status_code, answer.headers["content-type"])
    assert [] == re.findall(r"https?:|//[a-z]|@import|innerHTML|\son[a-z]+=", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


async def test_a_visitor_who_leaves_at_once(site: Site, folder: Path, sandbox: Sandbox) -> None:
    """Once the picture is read the request is not needed: cancelled, it takes nothing along."""
    async with site() as http:
        with anyio.move_on_after(0.1) as gone:
            await upload(http)
        await anyio.sleep(20)

    assert gone.cancelled_caught
    assert 1 == len(results(folder))
    assert 0 == sandbox.ledger.units_wasted


async def test_a_visitor_who_comes_back(site: Site) -> None:
    """Events that nobody hears to the end cost nothing: the result is there later."""
    async with site() as http:
        place = (await upload(http)).headers["location"]
        with anyio.move_on_after(3.0) as gone:
            await states_of(http, place)
        await anyio.sleep(20)
        states = await states_of(http, place)
        picture = await http.get(f"{place}/result")

    assert gone.cancelled_caught
    assert ["done"] == [each["state"] for each in states]
    assert 200 == picture.status_code


async def test_an_upload_that_breaks_off(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a picture is none: its place is free again, and nothing of it is left."""
    monkeypatch.setattr(webapp_orders, "MAX_UPLOADS", 1)
    pieces = [{"type": "http.request", "body": FACE[:99], "more_body": True}]

    async def receive() -> MutableMapping[str, Any]:
        return pieces.pop() if pieces else {"type": "http.disconnect"}

    async def send(_: MutableMapping[str, Any]) -> None: ...

    async with site() as http:
        transport = http._transport
        assert isinstance(transport, httpx.ASGITransport)
        scope = {"type": "http", "method": "POST", "path": "/smiles", "query_string": b""}
        scope["headers"] = [(b"content-type", b"image/jpeg")]
        await transport.app(scope, receive, send)
        taken = await upload(http)

    assert 202 == taken.status_code
    assert 1 == len(list((folder / "results").iterdir()))


@pytest.mark.parametrize(
    ("content", "headers", "expected"),
    [
        (b"not a picture", JPEG, (422, "jpg, png, heic")),
        (b"", JPEG, (422, "empty")),
        (FACE, {}, (415, "That is no picture.")),
        (FACE, {"Content-Type": "text/plain"}, (415, "That is no picture.")),
        (FACE, {"Content-Type": "multipart/form-data; boundary=image/"}, (415, "no picture")),
        (FACE + bytes(10 * 1024 * 1024), JPEG, (413, "over 10 MB")),
    ],
)
async def test_what_is_wrong_at_once(
    site: Site, folder: Path, content: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """The reason comes with the answer to the upload, and nothing of a refused one is kept."""
    async with site() as http:
        answer = await http.post("/smiles", content=content, headers=headers)
        kept = list((folder / "results").iterdir())

    assert expected[0] == answer.status_code
    assert expected[1] in answer.json()["message"]
    assert [] == kept


async def test_a_type_that_lies(site: Site, folder: Path) -> None:
    """What an upload calls itself goes nowhere: its bytes count."""
    async with site() as http:
        lying = {"Content-Type": "image/../../etc/passwd"}
        answer = await http.post("/smiles", content=FACE, headers=lying)
        await states_of(http, answer.headers["location"])

    assert [".jpg"] == [path.suffix for path in results(folder)]


async def test_an_upload_without_a_length(site: Site) -> None:
    """What is too long is refused when it is, not when it ends."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 20 * 1024 * 1024:
            sent += 1024 * 1024
            yield bytes(1024 * 1024)

    async with site() as http:
        answer = await http.post("/smiles", content=endless(), headers=JPEG)

    assert 413 == answer.status_code
    assert sent < 12 * 1024 * 1024


async def test_an_upload_that_never_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trickles has the place for two minutes, not for ever."""
    monkeypatch.setattr(webapp_orders, "MAX_UPLOADS", 1)

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b"\xff"
            await anyio.sleep(10)

    async with site() as http:
        began = anyio.current_time()
        slow = await http.post("/smiles", content=trickle(), headers=JPEG)
        lasted = anyio.current_time() - began
        taken = await upload(http)

    assert [408, 202] == [slow.status_code, taken.status_code]
    assert webapp.UPLOAD_TIMEOUT == pytest.approx(lasted)


async def test_more_than_visitors_may_cost(
    site: Site, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the ceiling uploads are refused at once, and nothing is sent."""
    monkeypatch.setattr(webapp, "MAX_UNITS", 0.0)

    async with site() as http:
        answer = await upload(http)

    assert (503, "CeilingReached") == (answer.status_code, answer.json()["error"])
    assert answer.json()["message"] is None
    assert 0 == sandbox.ledger.requests["task"]


async def test_more_uploads_than_memory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past so many open orders an upload is asked to come again; it then finds a place."""
    monkeypatch.setattr(webapp_orders, "MAX_UPLOADS", 2)

    async with site() as http:
        first, second = await upload(http), await upload(http)
        third = await upload(http)
        await states_of(http, first.headers["location"])
        await states_of(http, second.headers["location"])
        again = await upload(http)

    assert [202, 202, 503, 202] == [a.status_code for a in (first, second, third, again)]
    assert "30" == third.headers["retry-after"]


async def test_many_uploads_share_the_window(site: Site, sandbox: Sandbox) -> None:
    """Thirty at once are all served in turn, and each sees how many are before it."""
    ends: list[str] = []
    ahead: dict[int, list[int]] = {number: [] for number in range(30)}

    async def one(http: httpx.AsyncClient, number: int) -> None:
        place = (await upload(http, portrait(number, 64))).headers["location"]
        while True:
            states = await states_of(http, place)
            ahead[number] += [each["ahead"] for each in states if each["state"] == "waiting"]
            if states[-1]["state"] in {"done", "failed"}:
                break
        ends.append(states[-1]["state"])

    async with site() as http, anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(one, http, number)

    assert ["done"] * 30 == ends
    for seen in ahead.values():
        assert sorted(seen, reverse=True) == seen
    # Several may begin between two looks, so not every number is seen.
    numbers = {number for seen in ahead.values() for number in seen}
    assert 20 <= len(numbers)
    assert 25 <= max(numbers)
    assert 0 == sandbox.ledger.refused.total()
    assert 0 == sandbox.ledger.units_wasted


async def test_equal_pictures_of_two_visitors(site: Site, sandbox: Sandbox) -> None:
    """Each has an order, a task and a file of its own, although the journal knows the picture."""
    async with site() as http:
        first, second = await upload(http), await upload(http)
        await states_of(http, first.headers["location"])
        await states_of(http, second.headers["location"])

    assert first.json()["id"] != second.json()["id"]
    assert 2 == len(sandbox.ledger.tasks)


async def test_the_vendor_keeps_nothing(site: Site, sandbox: Sandbox) -> None:
    """Once the result is here, the upload and the result there are deleted."""
    async with site() as http:
        await states_of(http, (await upload(http)).headers["location"])
        await anyio.sleep(30)

    assert 1 == sandbox.ledger.requests["delete"]
    assert 0 == sandbox.ledger.refused.total()


async def test_the_upload_is_let_go(site: Site) -> None:
    """An order that is over, well or not, does not keep its picture in memory."""
    good, bad = bytes(bytearray(FACE)), bytes(bytearray(FACE[:500]))

    async with site() as http:
        for picture in (good, bad):
            with orders_of(http).reserve() as order:
                pass
            orders_of(http).start(order, picture)
            await order.ended.wait()
            await anyio.sleep(60)
            gc.collect()
            holders = {type(each).__module__ for each in gc.get_referrers(picture)}
            # This test, and the engine to which it was sent.
            assert holders <= {"builtins", "perfect_async.sandbox._engine"}


async def test_a_picture_without_a_face(site: Site, sandbox: Sandbox) -> None:
    """A failure of the engine is reported with its reason, without the vendor's task id."""
    sandbox.faults = Faults(engine_errors=1.0, engine_error_codes=("error_no_face",))

    async with site() as http:
        place = (await upload(http)).headers["location"]
        last = (await states_of(http, place))[-1]
        picture = await http.get(f"{place}/result")

    assert ("failed", "TaskFailed") == (last["state"], last["error"])
    assert "error_no_face" in last["message"]
    assert sandbox.ledger.tasks[0].task_id not in picture.text
    assert 422 == picture.status_code


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        (
            "task",
            (400, {"error": "x", "error_code": "CreditInsufficiency"}),
            (402, "UnitsExhausted"),
        ),
        ("task", (401, {"error": "x", "error_code": "InvalidApiKey"}), (503, "Unauthorized")),
        ("task", (400, {"error": "x", "error_code": "BadRequest"}), (502, "RequestRefused")),
        ("poll", (500, {"error": "Task execution timed out"}), (502, "TaskTimedOut")),
    ],
)
async def test_what_the_visitor_cannot_fix(
    site: Site, sandbox: Sandbox, kind: str, answer: tuple[int, object], expected: tuple[int, str]
) -> None:
    """Failures of key, balance and vendor are reported by their name alone."""
    sandbox.script(kind, answer)

    async with site() as http:
        place = (await upload(http)).headers["location"]
        last = (await states_of(http, place))[-1]
        picture = await http.get(f"{place}/result")

    assert ("failed", expected[1], None) == (last["state"], last["error"], last["message"])
    assert expected == (picture.status_code, picture.json()["error"])


async def test_a_disk_that_takes_nothing(site: Site, folder: Path) -> None:
    """A folder that cannot be made fails the upload, not the app."""
    async with site() as http:
        (folder / "results").rmdir()
        answer = await upload(http)
        (folder / "results").mkdir()
        again = await upload(http)

    assert (500, "NotSaved") == (answer.status_code, answer.json()["error"])
    assert 202 == again.status_code


@pytest.mark.parametrize(
    "hostile",
    [
        *("%2e%2e", "..%2f..%2fjournal", "%00", "results", "journal", "*", "a" * 9000),
        *("<script>", "%ff", "id%0d%0aX-Evil: 1", "'; DROP TABLE"),
    ],
)
@pytest.mark.parametrize("rest", ["", "/result", "/events"])
async def test_ids_that_are_none(site: Site, hostile: str, rest: str) -> None:
    """An id that was never given out leads nowhere, and is not repeated."""
    async with site() as http:
        answer = await http.get(f"/smiles/{hostile}{rest}")

    assert 404 == answer.status_code
    assert {"error": "Not Found", "message": "Not Found"} == answer.json()


async def test_ids_cannot_be_guessed(site: Site) -> None:
    """192 bits of the system's chance each."""
    async with site() as http:
        ids = {(await upload(http, portrait(n, 32))).json()["id"] for n in range(3)}

    assert 3 == len(ids)
    assert {32} == {len(each) for each in ids}


async def test_a_stream_ends_before_a_proxy_ends_it(site: Site, sandbox: Sandbox) -> None:
    """A browser that asks again hears how it stands."""
    sandbox.faults = Faults(stuck=1.0)

    async with site() as http:
        place = (await upload(http)).headers["location"]
        began = anyio.current_time()
        await states_of(http, place)
        lasted = anyio.current_time() - began
        states = await states_of(http, place)

    assert webapp.STREAM_SECONDS == pytest.approx(lasted, abs=0.1)
    assert ["running"] == [each["state"] for each in states]


async def test_a_result_is_deleted_after_its_hour(site: Site, folder: Path) -> None:
    """Then its id leads nowhere; one that is younger stays, and one that still runs, too."""
    async with site() as http:
        old = (await upload(http)).headers["location"]
        await states_of(http, old)
        young = (await upload(http)).headers["location"]
        await states_of(http, young)
        order = orders_of(http).find(old.rpartition("/")[2])
        assert order is not None
        order.created_at -= webapp_orders.RESULT_LIFETIME
        await anyio.sleep(61)
        answers = [(await http.get(f"{place}/result")).status_code for place in (old, young)]

    assert [404, 200] == answers
    assert [young.rpartition("/")[2]] == [path.name for path in (folder / "results").iterdir()]


async def test_what_is_in_flight_when_the_app_dies(site: Site, sandbox: Sandbox) -> None:
    """The next one finishes it under the same id, and pays for nothing again."""
    async with site() as http:
        place = (await upload(http)).headers["location"]
        await anyio.sleep(4)
    assert 1 == sandbox.ledger.tasks_by_state["running"]

    async with site() as http:
        states = await states_of(http, place)
        picture = await http.get(f"{place}/result")

    assert ["running", "done"] == [each["state"] for each in states]
    assert 200 == picture.status_code
    assert 1 == len(sandbox.ledger.tasks)


async def test_an_app_that_dies_twice(site: Site, sandbox: Sandbox) -> None:
    """One that ends while it finishes what the one before left leaves it to the next."""
    async with site() as http:
        place = (await upload(http)).headers["location"]
        await anyio.sleep(3)
    async with site():
        await anyio.sleep(2)

    async with site() as http:
        states = await states_of(http, place)

    assert "done" == states[-1]["state"]
    assert 1 == len(sandbox.ledger.tasks)


async def test_what_was_not_sent_when_the_app_died(site: Site, sandbox: Sandbox) -> None:
    """A picture that was in memory alone is lost, and its visitor sees that."""
    async with site() as http:
        with anyio.move_on_after(0.1):
            await upload(http)
    [lost] = [path.name for path in (webapp.FOLDER / "results").iterdir()]

    async with site() as http:
        states = await states_of(http, f"/smiles/{lost}")

    assert ("failed", "SourceLost") == (states[-1]["state"], states[-1]["error"])
    assert 0 == len(sandbox.ledger.tasks)


async def test_results_outlive_the_app(site: Site, folder: Path) -> None:
    """What was done stays to be seen for the rest of its hour."""
    async with site() as http:
        place = (await upload(http)).headers["location"]
        await states_of(http, place)
        await anyio.sleep(20)
    before = results(folder)

    async with site() as http:
        picture = await http.get(f"{place}/result")
    os.utime(before[0].parent, (0, 0))
    async with site() as http:
        await anyio.sleep(61)
        gone = await http.get(f"{place}/result")

    assert [200, 404] == [picture.status_code, gone.status_code]
    assert [] == results(folder)


async def test_the_folder_is_ours_alone(site: Site, folder: Path) -> None:
    """Nobody else on the machine looks at journal, ids or faces."""
    async with site():
        mode = (await anyio.Path(folder).stat()).st_mode

    assert 0o700 == mode & 0o777


async def test_the_webhook_without_a_secret(site: Site) -> None:
    """There is none."""
    async with site() as http:
        assert 404 == (await http.post("/webhook", content=b"{}")).status_code


async def test_the_webhook_is_mounted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a secret in the environment it takes POSTs, and believes none that is not signed."""
    monkeypatch.setenv("YOUCAM_WEBHOOK_SECRET", SECRET)
    async with site() as http:
        answers = [await http.get("/webhook"), await http.post("/webhook", content=b"{}")]

    assert [405, 400] == [answer.status_code for answer in answers]
