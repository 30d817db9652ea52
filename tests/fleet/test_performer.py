"""Orders: their checks, and that each is bought once, in virtual time."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async import (
    Avatar,
    Client,
    ClientClosed,
    ConfigurationError,
    Feature,
    FileId,
    Job,
    JobRefused,
    NotSaved,
    Smile,
    Unauthorized,
)
from perfect_async._api.tasks import FEATURES
from perfect_async._runtime import driver as drivers
from perfect_async.fleet import Order, Performer, make_order
from perfect_async.sandbox import Faults, Sandbox
from tests.support.sandboxed import FACE, STYLE, client, vendor


def through_json(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as a queue delivers it."""
    return cast("dict[str, Any]", json.loads(json.dumps(message)))


class OrderHarness:
    """A shared disk with pictures, and performers on one ledger."""

    def __init__(self, folder: Path, faults: Faults | None = None) -> None:
        self.sandbox: Sandbox = vendor(faults=faults)
        self.ledger = folder / "ledger"
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.picture = self.disk / "a.jpg"
        self.picture.write_bytes(FACE)
        self.out = self.disk / "out"

    def client(self, **settings: object) -> Client:
        # One driver serves all clients of a loop with the same key; this is its registry.
        drivers._drivers.clear()
        given = {"share": str(self.ledger), "reuse": True, **settings}
        return client(self.sandbox, **given)

    def order(self, **changes: object) -> dict[str, Any]:
        order = make_order(Smile(self.picture), self.out)
        order.update(changes)
        return through_json(order)

    async def perform(self, order: object) -> dict[str, Any]:
        async with self.client() as opened:
            answer = await Performer(opened, [self.disk]).perform(cast("Order", order))
        return through_json(answer)

    @property
    def created(self) -> int:
        return len(self.sandbox.ledger.tasks)


@pytest.fixture
def harness(tmp_path: Path) -> OrderHarness:
    return OrderHarness(tmp_path)


async def test_an_order_is_performed(harness: OrderHarness) -> None:
    """The answer has the paths of the saved files and the units."""
    answer = await harness.perform(harness.order())

    assert answer["ok"]
    [file] = answer["files"]
    [saved] = harness.out.iterdir()
    assert str(saved) == file
    assert saved.read_bytes().startswith(b"\xff\xd8\xff")
    assert (1.0, None) == (answer["units"], answer["error"])


async def test_a_second_delivery_pays_nothing(harness: OrderHarness) -> None:
    """Another worker gives the same answer and the same file for the same order."""
    first = await harness.perform(harness.order())
    second = await harness.perform(harness.order())

    assert first == second
    assert 1 == harness.created
    assert 1 == len(list(harness.out.iterdir()))


async def test_concurrent_deliveries_are_one_task(harness: OrderHarness) -> None:
    """Three workers with the same order buy one task and save one file."""
    clients = [await harness.client().open() for _ in range(3)]
    performers = [Performer(each, [harness.disk]) for each in clients]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(each.perform(harness.order())) for each in performers]
    for each in clients:
        await each.close()

    assert 1 == len({json.dumps(each.result()) for each in running})
    assert 1 == harness.created == len(list(harness.out.iterdir()))


async def test_an_order_may_be_an_avatar_of_a_url(harness: OrderHarness) -> None:
    """Parameters, a key and a URL are part of the order."""
    job = Avatar("https://pictures.example/a.jpg", STYLE, output_count=8, key="customer 7")
    answer = await harness.perform(make_order(job, harness.out))

    assert 8 == len(answer["files"])
    assert 2.0 == answer["units"]


@pytest.mark.parametrize("kind", FEATURES.values())
async def test_an_order_may_be_of_any_class(harness: OrderHarness, kind: type[Job]) -> None:
    """Each typed feature makes an order, and two deliveries buy one task."""
    fields = {"source": harness.picture, "template_id": STYLE, "output_count": 2}
    names = {field.name for field in attrs.fields(cast("type[attrs.AttrsInstance]", kind))}
    make = cast("Callable[..., Job]", kind)
    job = make(**{name: value for name, value in fields.items() if name in names})
    order = through_json(make_order(job, harness.out))
    first, second = await harness.perform(order), await harness.perform(order)

    assert first["ok"], first
    assert first == second
    assert (job.outputs, 1) == (len(first["files"]), harness.created)


async def test_a_task_that_fails_is_an_answer(tmp_path: Path) -> None:
    """The answer has the engine's code, so the queue need not try again."""
    digest = hashlib.sha256(FACE).hexdigest()
    harness = OrderHarness(tmp_path, faults=Faults(by_picture={digest: "error_no_face"}))
    answer = await harness.perform(harness.order())

    assert not answer["ok"]
    assert ("TaskFailed", "error_no_face") == (answer["error"]["kind"], answer["error"]["code"])
    assert (0.0, []) == (answer["error"]["units_at_stake"], answer["files"])


async def test_a_doubt_is_an_answer(tmp_path: Path) -> None:
    """The answer has the units at stake, and the creation is not sent again."""
    harness = OrderHarness(tmp_path, faults=Faults(lost_creations=1.0))
    first = await harness.perform(harness.order())
    second = await harness.perform(harness.order())

    assert "SubmissionInDoubt" == first["error"]["kind"] == second["error"]["kind"]
    assert 1.0 == first["error"]["units_at_stake"]
    assert isinstance(first["error"]["candidates"], list)
    assert 1 == harness.created


@pytest.mark.parametrize(
    "changes",
    [
        {"feature": "ai-unknown"},
        {"feature": ["ai-smile"]},
        {"feature": None},
        {"bytes": "aGVsbG8="},
        {"source": ""},
        {"source": "a.jpg"},
        {"source": "../a.jpg"},
        {"source": "file:///etc/passwd"},
        {"source": "ftp://pictures.example/a.jpg"},
        {"source": "/etc/passwd"},
        {"source": "/dev/zero"},
        {"source": "/disk\0/a.jpg"},
        {"source": {"$type": "bytes"}},
        {"source": "x" * 5000},
        {"save_to": "/tmp"},
        {"save_to": "out"},
        {"save_to": None},
        {"save_to": "https://pictures.example/"},
        {"key": ""},
        {"key": 7},
        {"key": " "},
        {"parameters": []},
        {"parameters": {"expression": "angry"}},
        {"parameters": {"source": "/etc/passwd"}},
        {"parameters": {"key": "a"}},
        {"parameters": {"expression": True}},
        {"parameters": {"expression": ["smile_with_teeth_visible"]}},
        {"feature": "ai-avatar", "parameters": {}},
        {"feature": "ai-avatar", "parameters": {"template_id": STYLE, "output_count": 10**9}},
        {"feature": "ai-avatar", "parameters": {"template_id": STYLE, "output_count": "4"}},
        {"digest": "0" * 64},
        {"digest": "0"},
        {"digest": 5},
        {"source": "https://pictures.example/a.jpg", "digest": "0" * 64},
    ],
    ids=lambda changes: str(changes)[:120],
)
async def test_a_hostile_order_is_refused(changes: dict[str, Any], harness: OrderHarness) -> None:
    """No order can read, write or buy anything beyond what is allowed."""
    answer = await harness.perform(harness.order(**changes))

    assert "JobRefused" == answer["error"]["kind"]
    assert [] == harness.sandbox.ledger.log
    assert not harness.out.exists() or [] == list(harness.out.iterdir())


@pytest.mark.parametrize("order", [None, [], "order", 5, b"{}"], ids=str)
async def test_another_message_is_refused(order: object, harness: OrderHarness) -> None:
    """A message that is not an order gets an answer, too."""
    assert "JobRefused" == (await harness.perform(order))["error"]["kind"]


@pytest.mark.parametrize("place", ["source", "save_to"])
async def test_links_out_of_the_folders_are_refused(
    place: str, harness: OrderHarness, tmp_path: Path
) -> None:
    """A link to a place outside of the folders is refused, and so is `..`."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.jpg").write_bytes(FACE)
    (harness.disk / "link").symlink_to(outside)
    tail = "a.jpg" if place == "source" else ""
    for path in (harness.disk / "link" / tail, harness.disk / ".." / "outside" / tail):
        answer = await harness.perform(harness.order(**{place: str(path)}))
        assert "JobRefused" == answer["error"]["kind"]
    assert 0 == harness.created
    assert ["a.jpg"] == [each.name for each in outside.iterdir()]


async def test_a_picture_that_changed_is_refused(harness: OrderHarness) -> None:
    """An order with a digest is only for the picture with that digest."""
    digest = hashlib.sha256(FACE).hexdigest()
    assert (await harness.perform(harness.order(digest=digest)))["ok"]
    harness.picture.write_bytes(FACE + b"\0")
    assert not (await harness.perform(harness.order(digest=digest)))["ok"]


async def test_a_missing_picture_and_an_unusable_folder_are_answers(harness: OrderHarness) -> None:
    """The answers name the picture and the folder."""
    missing = await harness.perform(harness.order(source=str(harness.disk / "b.jpg")))
    digest = hashlib.sha256(FACE).hexdigest()
    gone = await harness.perform(harness.order(source=str(harness.disk / "b.jpg"), digest=digest))
    blocked = await harness.perform(harness.order(save_to=str(harness.picture / "out")))

    assert ["PictureRefused", "JobRefused", "JobRefused"] == [
        each["error"]["kind"] for each in (missing, gone, blocked)
    ]


async def test_a_result_that_cannot_be_saved_is_delivered_again(
    harness: OrderHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is not acknowledged, and the next delivery saves the paid result."""
    from perfect_async import Result

    async def full(_: Result, __: str) -> list[Path]:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Result, "save", full)
        with pytest.raises(NotSaved, match="No space left") as raised:
            await harness.perform(harness.order())
    answer = await harness.perform(harness.order())

    assert 1.0 == raised.value.units_at_stake
    assert answer["ok"]
    assert 1 == harness.created


async def test_stopping_returns_orders_without_a_task(harness: OrderHarness) -> None:
    """An order with a running task is performed; waiting and new orders are returned."""
    for number in range(60):
        (harness.disk / f"{number}.jpg").write_bytes(FACE + bytes([number]))
    orders = [harness.order(source=str(harness.disk / f"{number}.jpg")) for number in range(60)]
    ended: list[object] = []

    async def perform(order: dict[str, Any]) -> None:
        try:
            ended.append((await performer.perform(order))["ok"])
        except ClientClosed as exc:
            ended.append(type(exc))

    async with harness.client() as opened:
        performer = Performer(opened, [harness.disk])
        async with asyncio.TaskGroup() as group:
            for order in orders:
                group.create_task(perform(order))
            await asyncio.sleep(5)
            performer.stop()
        await perform(orders[0])
    done = ended.count(True)

    assert 61 == len(ended)
    assert 0 < done < 60
    assert {True, ClientClosed} == set(ended)
    assert done == harness.created == len(list(harness.out.iterdir()))


async def test_a_wrong_key_is_not_an_answer(harness: OrderHarness) -> None:
    """An error that every order would have is raised, so that no order is acknowledged."""
    harness.sandbox.script("task", (401, {"status": 401, "error": "Invalid token"}))
    with pytest.raises(Unauthorized):
        await harness.perform(harness.order())


async def test_a_performer_needs_a_folder(harness: OrderHarness) -> None:
    """A performer without folders raises `ConfigurationError`."""
    with pytest.raises(ConfigurationError, match="folders"):
        Performer(harness.client(), [])


@pytest.mark.parametrize(
    "job", [Smile(b"bytes"), Smile("a.jpg"), Smile(FileId("f")), Smile(Path("a.jpg"))], ids=str
)
def test_a_local_source_makes_no_order(job: Smile) -> None:
    """Bytes and a relative path cannot be read by other machines."""
    with pytest.raises(JobRefused, match="absolute path or an http"):
        make_order(job, "/out")


@pytest.mark.parametrize(
    "job",
    [
        Feature("skin-analysis", src="/in/a.jpg"),
        Feature("ai-smile", src="/in/a.jpg"),
    ],
    ids=["path", "name of a class"],
)
async def test_other_features_make_no_order(job: Job, harness: OrderHarness) -> None:
    """A worker accepts only features whose fields it can check."""
    with pytest.raises(
        JobRefused, match=r"for a Feature; it must be one of Smile, Avatar, Studio\."
    ):
        make_order(job, "/out")
    answer = await harness.perform(harness.order(feature="skin-analysis@v2.1"))

    assert "an order cannot be for the feature 'skin-analysis@v2.1'" in answer["error"]["message"]


def test_an_order_has_these_fields() -> None:
    """An order has the documented fields."""
    digest = "0" * 64

    assert {
        "feature": "ai-smile",
        "source": "/in/a.jpg",
        "parameters": {"expression": "smile_with_teeth_visible"},
        "save_to": "/out",
        "key": "k",
        "digest": digest,
    } == make_order(Smile(Path("/in/a.jpg"), key="k"), Path("/out"), digest=digest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = ("feature", "source", "parameters", "key", "save_to", "digest")


@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON)
    | st.fixed_dictionaries(
        {"feature": st.sampled_from(["ai-smile", "ai-avatar"]), "source": st.just("/in/a.jpg")},
        optional=dict.fromkeys(FIELDS[2:], JSON),
    )
)
def test_any_json_is_an_order_or_is_refused(order: dict[str, Any]) -> None:
    """Any JSON raises nothing but `JobRefused`."""
    from perfect_async.fleet import _read

    try:
        read = _read(order)
    except JobRefused:
        return
    assert Path(read.save_to).is_absolute()
