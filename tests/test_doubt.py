"""What the unit history tells of a creation whose answer never came."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perfect_async._doubt import SKEW, Inquiry, Unsettled
from perfect_async._enquiries import Movement
from perfect_async.events import SECOND

SENT = 1_790_000_000 * SECOND
FEATURES = ("ai-smile", "ai-avatar")


def inquiry(feature: str = "ai-smile", features: tuple[str, ...] = FEATURES) -> Inquiry:
    return Inquiry(feature, features, SENT)


def row(task_id: str, after: float = 1.0, action: str = "ai-smile") -> Movement:
    return Movement(SENT + round(after * SECOND), action, task_id)


def nobody(task_id: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("expected", "rows", "known"),
    [
        (Unsettled.NOTHING, [], ""),
        ("a", [row("a")], ""),
        ("a", [row("a", -5)], ""),
        (Unsettled.AMBIGUOUS, [row("a", -5.1)], ""),
        (Unsettled.AMBIGUOUS, [row("a", -60)], ""),
        (Unsettled.NOTHING, [row("a", -60.1)], ""),
        (Unsettled.NOTHING, [row("a")], "a"),
        ("b", [row("b"), row("a")], "a"),
        ("a", [row("a", 9), row("a", 1)], ""),
        (Unsettled.AMBIGUOUS, [row("b"), row("a")], ""),
        (Unsettled.AMBIGUOUS, [row("c"), row("b"), row("a")], "b"),
        (Unsettled.NOTHING, [row("a", action="ai-avatar")], ""),
        (Unsettled.NOTHING, [row("a", action="create-ai-avatar-v2")], ""),
        ("a", [row("a", action="")], ""),
        ("a", [row("a", action="run-task")], ""),
        (Unsettled.AMBIGUOUS, [row("b"), row("a", action="run-task")], ""),
        ("b", [row("b"), row("a", action="ai-avatar")], ""),
        # The vendor's clock may be ahead of ours.
        ("a", [row("a", 3600)], ""),
    ],
)
def test_a_task_is_taken_only_if_it_is_the_only_one(
    expected: str | Unsettled, rows: list[Movement], known: str
) -> None:
    """One unknown id of this feature between the sending and now, or none at all."""
    asked = inquiry()

    asked.read(rows)

    assert expected == asked.verdict(lambda task_id: task_id in known)


def test_known_tasks_are_found_as_well() -> None:
    """What was seen is told, whoever it belongs to."""
    asked = inquiry()
    asked.read([row("b"), row("x", action="ai-avatar"), row("a"), row("old", -61)])

    assert frozenset({"a", "b"}) == asked.found


@pytest.mark.parametrize(
    ("expected", "feature", "action"),
    [
        *((True, "ai-smile", "ai-smile"), (False, "ai-smile", "ai-smile-pro")),
        *((False, "ai-smile-pro", "ai-smile"), (True, "ai-smile-pro", "ai-smile-pro")),
        *((True, "ai-smile", "task"), (True, "ai-smile-pro", "task")),
        *((False, "ai-avatar", "ai-smile-pro"), (False, "ai-avatar", "run-ai-smile")),
    ],
)
def test_a_feature_may_be_named_like_another(expected: bool, feature: str, action: str) -> None:
    """An action that names two features, one within the other, means the longer."""
    asked = inquiry(feature, ("ai-smile", "ai-smile-pro", "ai-avatar"))
    asked.read([row("a", action=action)])

    assert expected == bool(asked.found)


def test_an_action_that_names_two_features_may_be_either() -> None:
    """A task that might be of this feature must not be overlooked."""
    asked = inquiry()
    asked.read([row("b", action="ai-avatar-from-ai-smile"), row("a")])

    assert Unsettled.AMBIGUOUS is asked.verdict(nobody)


# How far to read.


@pytest.mark.parametrize(
    ("more", "pages"),
    [
        (True, [[]]),
        (True, [[row("a")]]),
        (True, [[row("a"), row("b", -60)]]),
        (False, [[row("a"), row("b", -61)]]),
        (False, [[row("a", -61)]]),
        (False, [[row("a")], [row("b", -61)]]),
        (False, [[row("a")], [], [row("b", -61)]]),
        # A little disorder is none.
        (False, [[row("a", -10), row("b", 20), row("c", -90)]]),
        # Sorted the other way round, at once or little by little, within a page or from one to
        # another: what is wanted comes last.
        (True, [[row("a", -500), row("b", -400)]]),
        (True, [[row("a", -500), row("b", -460), row("c", -420), row("d", -380)]]),
        (True, [[row("a", -500), row("b", -499)]]),
        (True, [[row("a", -500)], [row("b", -400)]]),
        # In no order at all.
        (True, [[row("a", -100), row("b", 50), row("c", -100)]]),
    ],
    ids=repr,
)
def test_pages_are_read_until_they_are_older(more: bool, pages: list[list[Movement]]) -> None:
    """Newest first, reading ends with a line before the sending; in another order it does not."""
    asked = inquiry()

    told = [asked.read(page) for page in pages][-1]

    assert more == told


moments = st.integers(-2_000, 300)
histories = st.lists(
    st.tuples(moments, st.sampled_from(["a", "b", "c", "d"]), st.sampled_from([*FEATURES, ""])),
    max_size=20,
)


def read_all(rows: list[Movement], size: int) -> tuple[str | Unsettled, int]:
    """Read page by page as long as that is asked for; the verdict, and how many lines it took."""
    asked, taken = inquiry(), 0
    for start in range(0, len(rows), size):
        page = rows[start : start + size]
        taken += len(page)
        if not asked.read(page):
            break
    return asked.verdict(nobody), taken


@given(histories, st.integers(2, 6), st.booleans(), st.data())
@example([(-500, "b", ""), (-490, "c", ""), (1, "a", "ai-smile")], 2, True, None)
def test_the_verdict_does_not_depend_on_pages_or_order(
    lines: list[tuple[int, str, str]], size: int, ascending: bool, data: st.DataObject | None
) -> None:
    """Sorted either way, up to a skew, and cut anyhow, the history says the same as read whole."""
    disorder = [0] * len(lines)
    if data is not None:
        disorder = data.draw(st.lists(st.integers(0, 30), min_size=len(lines), max_size=20))
    # Lines of the same moment, in ascending order, tell nothing of the order: one page of them.
    keyed = sorted(zip(lines, disorder, strict=False), key=lambda pair: pair[0][0] + pair[1])
    rows = [row(task_id, after, action) for (after, task_id, action), _ in keyed]
    if not ascending:
        rows.reverse()
    elif any(a.at >= b.at for a, b in itertools.pairwise(rows)):
        rows.sort(key=lambda line: line.at)
        rows = [line for i, line in enumerate(rows) if not i or line.at > rows[i - 1].at]
    whole = inquiry()
    whole.read(rows)

    verdict, taken = read_all(rows, size)

    assert whole.verdict(nobody) == verdict
    assert taken <= len(rows)


@given(histories, st.sets(st.sampled_from("abcd")))
@example([(0, "b", "ai-smile"), (-6, "b", "ai-avatar")], set())
def test_adopted_only_if_exactly_one_is_unknown(
    lines: list[tuple[int, str, str]], known: set[str]
) -> None:
    """Whatever the history, a task is taken only where no other one can be meant."""
    rows = [row(task_id, after, action) for after, task_id, action in lines]
    candidates = [
        line
        for line in rows
        if line.at >= SENT - SKEW and line.action != "ai-avatar" and line.task_id not in known
    ]
    may_be = {line.task_id for line in candidates}
    asked = inquiry()
    asked.read(rows)

    verdict = asked.verdict(lambda task_id: task_id in known)

    match len(may_be):
        case 0:
            assert Unsettled.NOTHING is verdict
        case 1:
            [task_id] = may_be
            early = min(line.at for line in candidates) < SENT - 5 * SECOND
            assert (Unsettled.AMBIGUOUS if early else task_id) == verdict
        case _:
            assert Unsettled.AMBIGUOUS is verdict
