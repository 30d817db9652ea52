"""A set whose keys expire."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._time import TtlSet


def test_a_key_is_held_from_its_addition_until_it_expires() -> None:
    """`holds` changes nothing; a key is held for `age` microseconds after `add`."""
    keys = TtlSet(10)

    assert not keys.holds("a", 0)
    assert not keys.holds("a", 0)
    keys.add("a", 0)
    assert keys.holds("a", 10)
    assert not keys.holds("a", 11)
    assert "<TtlSet 1 of 4096 keys>" == repr(keys)


def test_a_key_is_removed_once() -> None:
    """`remove` returns True once; False for a removed, an unknown and an expired key."""
    keys = TtlSet(10)
    keys.add("a", 0)
    keys.add("b", 0)

    assert [True, False, False] == [keys.remove("a", 10), keys.remove("a", 10), keys.remove("c", 0)]
    assert not keys.remove("b", 11)
    assert 0 == len(keys)


def test_the_oldest_key_is_dropped_first() -> None:
    """A set of two keys drops the oldest for a third; adding a key again makes it the newest."""
    keys = TtlSet(1, most=2)
    for name in ("a", "b", "a", "c"):
        keys.add(name, 0)

    assert [True, False, True] == [keys.holds(name, 0) for name in "abc"]


def test_a_set_keeps_4096_keys_by_default() -> None:
    """The set keeps the newest 4096 keys of 4106."""
    keys = TtlSet(10**6)
    for number in range(4106):
        keys.add(str(number), number)

    assert 4096 == len(keys)
    assert not keys.holds("9", 4106)
    assert keys.holds("10", 4106)


def test_expired_keys_are_dropped() -> None:
    """An addition drops all expired keys, not only the oldest one."""
    keys = TtlSet(10)
    for now in range(5):
        keys.add(str(now), now)
    keys.add("late", 14)

    assert 2 == len(keys)


@pytest.mark.parametrize(("most", "age"), [(0, 1), (1, 0)])
def test_a_set_needs_room_and_an_age(most: int, age: int) -> None:
    """A set that could never hold a key is refused."""
    with pytest.raises(ValueError, match="must be at least 1"):
        TtlSet(age, most)


@given(
    st.integers(1, 4),
    st.integers(1, 10),
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "ask"]), st.sampled_from("abcdef"), st.integers(0, 6)
        )
    ),
)
def test_the_set_agrees_with_a_model(
    most: int, age: int, steps: list[tuple[str, str, int]]
) -> None:
    """After any steps the set holds the same keys as an ordered dict, and at most `most`."""
    keys = TtlSet(age, most)
    model: OrderedDict[str, int] = OrderedDict()
    now = 0
    for step, name, passed in steps:
        now += passed
        if step == "add":
            keys.add(name, now)
            model[name] = now
            model.move_to_end(name)
            for old in [key for key, at in model.items() if now - at > age]:
                del model[old]
            while len(model) > most:
                model.popitem(last=False)
        elif step == "remove":
            at = model.pop(name, None)
            assert (at is not None and now - at <= age) == keys.remove(name, now)
        assert [name in model and now - model[name] <= age for name in "abcdef"] == [
            keys.holds(name, now) for name in "abcdef"
        ]
        assert len(keys) == len(model) <= most
