"""What notifications say, and the two memories that make them harmless."""

import json
import re
from collections import OrderedDict
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._api.notices import EARLY_FOR, MOST, SEEN_FOR, Early, Notification, Seen
from perfect_async._api.notices import read_notification as read
from perfect_async._time import SECOND

ID = "msg_1"
GOOD = {"created_at": 1761112848, "data": {"task_id": "abc-_9", "task_status": "success"}}
AT = datetime(2025, 10, 22, 6, 0, 48, tzinfo=UTC)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "task_id", "task_status", "created_at", "x"]), inner
        )
    ),
)


def body(**changes: object) -> bytes:
    """The body of the contract page with `changes` to its data."""
    return json.dumps({**GOOD, "data": {**GOOD["data"], **changes}}).encode()  # type: ignore[dict-item]


# What is said.


@pytest.mark.parametrize("status", ["success", "error"])
def test_a_notification_is_read(status: str) -> None:
    """The contract's body gives task, status and time, and has no flaw."""
    assert Notification(ID, AT, "abc-_9", status) == read(ID, body(task_status=status))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("1761112848", AT),
        (1761112848.5, AT.replace(microsecond=500_000)),
        (None, None),
        ("yesterday", None),
        (True, None),
        (10**400, None),
        (1e300, None),
        (-1e300, None),
        ([], None),
    ],
)
def test_the_time_is_only_told(said: object, expected: datetime | None) -> None:
    """A time that makes no sense takes nothing from the rest."""
    found = read(ID, json.dumps({**GOOD, "created_at": said}).encode())

    assert Notification(ID, expected, "abc-_9", "success") == found


def test_the_time_may_be_absent() -> None:
    """A body without `created_at` says the rest."""
    assert Notification(ID, None, "abc-_9", "success") == read(
        ID, json.dumps({"data": GOOD["data"]}).encode()
    )


def test_more_than_is_known_is_ignored() -> None:
    """Fields that the contract does not name change nothing, nor does a byte order mark."""
    more = {**GOOD, "type": "task", "data": {**GOOD["data"], "feature": 7}}  # type: ignore[dict-item]

    assert read(ID, body()) == read(ID, b"\xef\xbb\xbf" + json.dumps(more).encode())


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        (b"", "the body is not JSON"),
        (b"ok", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"9" * 5000, "the body is not JSON"),
        (b"null", "the body is not an object"),
        (b"[]", "the body is not an object"),
        (b"{}", "data is missing"),
        (b'{"data":null}', "data is not an object"),
        (b'{"data":[]}', "data is not an object"),
        (b'{"data":{"task_status":"success"}}', "data.task_id is missing"),
        (b'{"data":{"task_id":"a"}}', "data.task_status is missing"),
        (body(task_id=7), "data.task_id is no usable id"),
        (body(task_id=None), "data.task_id is no usable id"),
        (body(task_id=["a"]), "data.task_id is no usable id"),
        (body(task_id=""), "data.task_id is no usable id"),
        (body(task_id=" "), "data.task_id is no usable id"),
        (body(task_id="a\nb"), "data.task_id is no usable id"),
        (body(task_id="\ud800"), "data.task_id is no usable id"),
        (body(task_id="a" * 1025), "data.task_id is no usable id"),
        (body(task_status="running"), "data.task_status is neither success nor error"),
        (body(task_status="SUCCESS"), "data.task_status is neither success nor error"),
        (body(task_status=None), "data.task_status is neither success nor error"),
        (body(task_status=["success"]), "data.task_status is neither success nor error"),
    ],
)
def test_what_is_not_understood_is_a_value(content: bytes, flaw: str) -> None:
    """A body that says nothing usable gives a notification without task, and the flaw in words."""
    found = read(ID, content)

    assert (ID, None, None, flaw) == (found.id, found.task_id, found.status, found.flaw)


def test_the_longest_id() -> None:
    """1024 characters are an id still."""
    assert "a" * 1024 == read(ID, body(task_id="a" * 1024)).task_id


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read(content: bytes) -> None:
    """Whatever the bytes are, there is a value, whole or with a flaw that quotes nothing."""
    found = read(ID, content)

    whole = found.task_id is not None and found.status is not None and found.flaw is None
    empty = found.task_id is None and found.status is None and found.flaw is not None
    assert whole or empty
    assert found.flaw is None or re.fullmatch(r"[A-Za-z_. ]+", found.flaw)


# What was seen.


def test_an_id_is_known_once_it_was_added() -> None:
    """Asking changes nothing; adding does."""
    seen = Seen()

    assert not seen.knows(ID, 0)
    assert not seen.knows(ID, 0)
    seen.add(ID, 0)
    assert seen.knows(ID, SEEN_FOR)
    assert not seen.knows(ID, SEEN_FOR + 1)
    assert "<Seen 1 ids>" == repr(seen)


def test_no_replay_outlives_the_memory() -> None:
    """What passes as fresh 300 s ahead of the clock does so for 600 s, and is known for longer."""
    assert 600 * SECOND < SEEN_FOR


def test_the_oldest_leaves_first() -> None:
    """With room for two, the third pushes the first out; adding again makes an id new."""
    seen = Seen(most=2)
    for name in ("a", "b", "a", "c"):
        seen.add(name, 0)

    assert [True, False, True] == [seen.knows(name, 0) for name in "abc"]


def test_the_usual_bound() -> None:
    """However many ids come, 4096 are kept."""
    seen = Seen()
    for number in range(MOST + 10):
        seen.add(str(number), number)

    assert MOST == len(seen)
    assert not seen.knows("9", MOST + 10)
    assert seen.knows("10", MOST + 10)


def test_the_old_are_let_go_of() -> None:
    """An addition takes out whatever is past its age, so a quiet receiver keeps nothing."""
    seen = Seen(age=10)
    for now in range(5):
        seen.add(str(now), now)
    seen.add("late", 14)

    assert 2 == len(seen)


# What came early.


def test_early_news_is_taken_once() -> None:
    """What was said of an unknown task is there for its creation, with its time, and then gone."""
    early = Early()
    early.put("t", "error", 5)
    early.put("t", "success", 7)

    assert "<Early 1 tasks>" == repr(early)
    assert None is early.take("other", 7)
    assert ("success", 7) == early.take("t", 8)
    assert None is early.take("t", 8)
    assert 0 == len(early)


def test_early_news_grows_old() -> None:
    """News of a task whose creation was never answered is forgotten, and taken out when asked."""
    early = Early()
    early.put("t", "success", 0)
    early.put("u", "success", 0)

    assert ("success", 0) == early.take("t", EARLY_FOR)
    assert None is early.take("u", EARLY_FOR + 1)
    assert 0 == len(early)


@pytest.mark.parametrize(("most", "age"), [(0, 1), (1, 0)])
def test_a_memory_has_room(most: int, age: int) -> None:
    """A memory without room or time is a mistake."""
    with pytest.raises(ValueError, match="remembers nothing"):
        Seen(most, age)
    with pytest.raises(ValueError, match="remembers nothing"):
        Early(most, age)


@given(
    st.integers(1, 4),
    st.integers(1, 10),
    st.lists(
        st.tuples(
            st.sampled_from(["put", "take", "ask"]), st.sampled_from("abcdef"), st.integers(0, 6)
        )
    ),
)
def test_the_memories_against_a_list(
    most: int, age: int, steps: list[tuple[str, str, int]]
) -> None:
    """Both remember just what a list of everything says they should, and never more than `most`."""
    seen, early = Seen(most, age), Early(most, age)
    ids: OrderedDict[str, int] = OrderedDict()
    tasks: OrderedDict[str, int] = OrderedDict()
    now = 0
    for step, name, passed in steps:
        now += passed
        if step == "put":
            seen.add(name, now)
            early.put(name, "error", now)
            for kept in (ids, tasks):
                kept[name] = now
                kept.move_to_end(name)
                for old in [key for key, at in kept.items() if now - at > age]:
                    del kept[old]
                while len(kept) > most:
                    kept.popitem(last=False)
        elif step == "take":
            at = tasks.pop(name, None)
            fresh = at is not None and now - at <= age
            assert (("error", at) if fresh else None) == early.take(name, now)
        assert [name in ids and now - ids[name] <= age for name in "abcdef"] == [
            seen.knows(name, now) for name in "abcdef"
        ]
        assert len(seen) <= most
        assert len(tasks) == len(early) <= most
