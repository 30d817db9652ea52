"""`Value` compares, hashes and shows by fields, like attrs."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._value import Value
from perfect_async.events import Poll, Submit


@attrs.frozen(eq=False, repr=False)
class Point(Value):
    x: int
    label: str = attrs.field(default="", eq=False)
    secret: str = attrs.field(default="s", repr=False)
    url: str = attrs.field(default="u?q", repr=lambda url: url.partition("?")[0])


@attrs.frozen
class Reference:
    x: int
    label: str = attrs.field(default="", eq=False)
    secret: str = attrs.field(default="s", repr=False)
    url: str = attrs.field(default="u?q", repr=lambda url: url.partition("?")[0])


FIELDS = st.tuples(st.integers(0, 1), *[st.sampled_from(["", "a"])] * 3)


@given(FIELDS, FIELDS)
def test_values_behave_like_attrs_classes(
    one: tuple[int, str, str, str], other: tuple[int, str, str, str]
) -> None:
    """Equality, hash and repr honour the options of each field."""
    ours, theirs = (Point(*one), Point(*other)), (Reference(*one), Reference(*other))

    assert (theirs[0] == theirs[1]) is (ours[0] == ours[1])
    assert (theirs[0] != theirs[1]) is (ours[0] != ours[1])
    assert (hash(theirs[0]) == hash(theirs[1])) is (hash(ours[0]) == hash(ours[1]))
    assert repr(theirs[0]).replace("Reference", "Point") == repr(ours[0])


def test_values_of_different_classes_differ() -> None:
    """A poll and a creation with equal fields are not equal."""
    assert Poll(1, 2) != Submit(1, 2)
    assert Poll(1, 2) != (1, 2)
    assert 2 == len({Poll(1, 2), Submit(1, 2), Poll(1, 2)})


def test_values_are_frozen() -> None:
    """Setting a field raises; `attrs.evolve` makes a changed copy."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Point(1).x = 2  # type: ignore[misc]
    assert Point(2) == attrs.evolve(Point(1), x=2)


def test_the_repr_of_a_local_class_has_its_short_name() -> None:
    """The repr leaves out the function that the class is defined in."""

    @attrs.frozen(eq=False, repr=False)
    class Local(Value):
        x: int

    assert "Local(x=1)" == repr(Local(1))
