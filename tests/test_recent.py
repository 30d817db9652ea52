"""`Recent` remembers the newest entries, and not many more."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from perfect_async._recent import Recent

KEYS = st.sampled_from("abcdefgh")


@given(st.integers(1, 4), st.lists(st.tuples(KEYS, st.integers(0, 2))))
def test_the_newest_entries_are_known(least: int, entries: list[tuple[str, int]]) -> None:
    """At least the newest keys are known, by their newest values, and at most twice as many."""
    recent, model = Recent[int](least), dict[str, int]()
    for key, value in entries:
        recent.put(key, value)
        model.pop(key, None)
        model[key] = value

    known = [key for key in model if key in recent]
    assert [*model][-least:] == known[-least:]
    assert len(known) <= 2 * least
    assert [model[key] for key in known] == [recent.get(key, -1) for key in known]
    assert all(recent.get(key, -1) == -1 for key in model.keys() - known)


def test_all_keys_of_a_value_are_forgotten() -> None:
    """Keys of one value are forgotten, the old ones too, and those of others are not."""
    recent = Recent[str](2)
    for key, value in (("a", "x"), ("b", "y"), ("c", "x")):
        recent.put(key, value)
    recent.forget("x")

    assert [False, True, False] == [key in recent for key in "abc"]
    assert ["", "y"] == [recent.get(key, "") for key in "ab"]


def test_a_former_value_does_not_come_back() -> None:
    """A key whose value is forgotten is not known by an older value either."""
    recent = Recent[str](2)
    for key, value in (("a", "x"), ("b", "x"), ("a", "y")):
        recent.put(key, value)
    recent.forget("y")

    assert [False, True] == [key in recent for key in "ab"]


def test_a_newer_value_stays() -> None:
    """A key is not forgotten for a value that it had before."""
    recent = Recent[str](2)
    for key, value in (("a", "x"), ("b", "x"), ("a", "y")):
        recent.put(key, value)
    recent.forget("x")

    assert ["y", ""] == [recent.get(key, "") for key in "ab"]


def test_a_full_mapping_does_not_grow() -> None:
    """Once it is full, thousands of new entries take no more memory than the first ones."""
    keys = [f"{number:04d}" for number in range(10_000)]
    recent, full, most = Recent[None](500), 0, 0
    tracemalloc.start()
    for number, key in enumerate(keys, 1):
        recent.put(key, None)
        most = max(most, tracemalloc.get_traced_memory()[0])
        if number == 1_000:
            full = most
    tracemalloc.stop()

    assert most <= full + 1_000
