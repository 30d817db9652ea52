"""The unit history, and the search in it for a task whose creation was never answered."""

import itertools
import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perfect_async._api.history import (
    SKEW,
    HistorySearch,
    Movement,
    Unresolved,
    history,
    read_entries,
    read_history,
)
from perfect_async._api.tasks import Request, Response
from perfect_async._time import SECOND
from perfect_async.errors import BadAnswer, PerfectError, ServiceUnavailable
from perfect_async.reports import HistoryEntry
from tests.api.test_responses import bodies, json_values

# The request and its answer.


def reply(value: object, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode(), "17")


def test_a_page_is_requested_by_its_token() -> None:
    """The first page sends no token, since the vendor answers null with 400."""
    path, size = "/s2s/v1.0/client/credit/history", ("page_size", "30")

    assert Request("GET", path, (size,)) == history(None)
    assert Request("GET", path, (size, ("starting_token", "n"))) == history("n")


def test_an_error_is_raised() -> None:
    """A failed reply is raised as its error."""
    with pytest.raises(ServiceUnavailable):
        read_history(reply({}, 503))


def movement(**changes: object) -> dict[str, object]:
    moved = [{"id": 1, "amount": -1, "amount_dec": -1.0}]
    row = {"id": 9, "timestamp": 1_790_812_800_123, "action": "AI Smile", "target_id": "t"}
    return row | {"info": {"credits": moved}} | changes


def page(*rows: object) -> Response:
    return reply({"result": {"history": list(rows), "next_token": "n"}})


def test_entries_are_read() -> None:
    """An entry has its time, its action, the sum of its units, and its task or order."""
    parts = [{"amount": -9, "amount_dec": -0.1}, {"amount": -2}, {"id": 3}]

    [entry], token = read_entries(page(movement(info={"credits": parts})))

    assert "n" == token
    assert datetime(2026, 10, 1, 0, 0, 0, 123_000, UTC) == entry.at
    assert ("AI Smile", -2.1, "t") == (entry.action, entry.units, entry.target_id)


@pytest.mark.parametrize("info", [None, {}, {"credits": None}, {"credits": [{"id": 1}]}])
def test_unreadable_values_of_an_entry_are_none(info: object) -> None:
    """An entry is kept although none of its values can be read."""
    [entry], _ = read_entries(page({"timestamp": {}, "target_id": None, "info": info}))

    assert HistoryEntry(None, "", None, None) == entry


def test_the_history_is_read() -> None:
    """A page has its movements, with times in microseconds, and the next page's token."""
    rows = [
        movement(),
        movement(timestamp="1790812800000", action=" ai_avatar--create ", target_id=7),
        movement(action=None),
    ]

    found = read_history(reply({"result": {"history": rows, "next_token": "n"}}))

    assert (
        (
            Movement(1_790_812_800_123_000, "ai-smile", "t"),
            Movement(1_790_812_800_000_000, "ai-avatar-create", "7"),
            Movement(1_790_812_800_123_000, "", "t"),
        ),
        "n",
    ) == found


@pytest.mark.parametrize("action", ["renew", "SIGN_UP_GIFT", "api_subscription_credits", "expire"])
@pytest.mark.parametrize("target_id", [None, "", "an order", "t"], ids=repr)
def test_purchases_are_left_out(action: str, target_id: object) -> None:
    """Rows of bought or expired units are not about tasks, whatever their target."""
    row = movement(target_id=target_id, action=action, timestamp=None)

    found = read_history(reply({"result": {"history": [row, movement()], "next_token": ""}}))

    assert ((Movement(1_790_812_800_123_000, "ai-smile", "t"),), None) == found


@pytest.mark.parametrize(
    "changes",
    [
        *({"timestamp": None}, {"timestamp": "soon"}, {"timestamp": 1.5}),
        *({"timestamp": -1_790_812_800_123}, {"timestamp": 1_790_812_800}),
        *({"target_id": []}, {"target_id": "a\nb"}, {"target_id": "a" * 1025}),
        *({"target_id": None}, {"target_id": ""}, {"target_id": "  "}, {"target_id": ...}),
    ],
    ids=repr,
)
def test_a_row_that_is_not_understood_is_none(changes: dict[str, object]) -> None:
    """A row without a readable time and task may be about any task, so it is not left out."""
    row = {name: value for name, value in movement(**changes).items() if value is not ...}

    found, _ = read_history(reply({"result": {"history": [row]}}))

    assert (None,) == found


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("result is missing", {}),
        ("result.history is missing", {"result": {}}),
        (r"result.history\[0\] is not an object", {"result": {"history": ["a"]}}),
    ],
)
def test_a_malformed_history_page_is_refused_by_path(expected: str, value: object) -> None:
    """A page that is not a list of rows raises; it does not count as empty."""
    with pytest.raises(BadAnswer, match=expected):
        read_history(reply(value))


movements = st.fixed_dictionaries(
    {"timestamp": json_values | st.integers(), "action": json_values, "target_id": json_values}
)


@given(st.lists(movements))
def test_no_row_but_purchases_is_left_out(rows: list[dict[str, object]]) -> None:
    """Any history is refused, or every row that is no purchase is read."""
    try:
        found, _ = read_history(reply({"result": {"history": rows}}))
    except BadAnswer:
        return

    assert len(rows) == len(found)
    assert all(line.action.strip("-") == line.action for line in found if line is not None)


@given(
    st.sampled_from([200, 400, 503]),
    bodies
    | st.lists(movements).map(lambda rows: json.dumps({"result": {"history": rows}}).encode()),
)
def test_any_page_is_read_or_refused(status: int, content: bytes) -> None:
    """For any bytes, the reader returns rows or raises a `PerfectError`."""
    try:
        read_history(Response(status, content))
    except PerfectError as error:
        assert error.__context__ is None  # noqa: PT017 -- it may also not raise


# The search.

SENT = 1_790_000_000 * SECOND
FEATURES = ("ai-smile", "ai-avatar")


def search(feature: str = "ai-smile", features: tuple[str, ...] = FEATURES) -> HistorySearch:
    return HistorySearch(feature, features, SENT)


def row(task_id: str, after: float = 1.0, action: str = "ai-smile") -> Movement:
    return Movement(SENT + round(after * SECOND), action, task_id)


HOUR = 3600 * SECOND


def verdict(
    searched: HistorySearch, known: str = "", *, others_in_doubt: bool = False
) -> str | Unresolved:
    return searched.verdict(
        lambda task_id: task_id in known, now=SENT + HOUR, others_in_doubt=others_in_doubt
    )


@pytest.mark.parametrize(
    ("expected", "rows", "known"),
    [
        (Unresolved.NOTHING, [], ""),
        ("a", [row("a")], ""),
        ("a", [row("a", action="api-ai-smile")], ""),
        ("a", [row("a", action="smile")], ""),
        ("a", [row("a", action="api-smile")], ""),
        ("a", [row("a", -5)], ""),
        (Unresolved.AMBIGUOUS, [row("a", -5.1)], ""),
        (Unresolved.AMBIGUOUS, [row("a", -60)], ""),
        # The vendor's clock may be behind ours, so a task from before the sending counts.
        (Unresolved.AMBIGUOUS, [row("a", -90)], ""),
        (Unresolved.NOTHING, [row("a", -90)], "a"),
        (Unresolved.NOTHING, [row("a", -181)], ""),
        (Unresolved.AMBIGUOUS, [row("a", 9), row("a", -90)], ""),
        (Unresolved.NOTHING, [row("a")], "a"),
        ("b", [row("b"), row("a")], "a"),
        ("a", [row("a", 9), row("a", 1)], ""),
        ("a", [row("a", 9, action="refund"), row("a", 1)], ""),
        (Unresolved.AMBIGUOUS, [row("b"), row("a")], ""),
        (Unresolved.AMBIGUOUS, [row("c"), row("b"), row("a")], "b"),
        (Unresolved.NOTHING, [row("a", action="ai-avatar")], ""),
        (Unresolved.NOTHING, [row("a", action="create-ai-avatar-v2")], ""),
        (Unresolved.NOTHING, [row("a", action="api-photo-enhance")], ""),
        # An action that names no feature may belong to any task.
        (Unresolved.AMBIGUOUS, [row("a", action="")], ""),
        (Unresolved.AMBIGUOUS, [row("a", action="consume")], ""),
        (Unresolved.AMBIGUOUS, [row("b"), row("a", action="run-task")], ""),
        ("b", [row("b"), row("a", action="ai-avatar")], ""),
        # A row from the future and a row that cannot be read keep the creation in doubt.
        ("a", [row("a", 3660)], ""),
        (Unresolved.AMBIGUOUS, [row("a", 3661)], ""),
        (Unresolved.AMBIGUOUS, [None], ""),
        (Unresolved.AMBIGUOUS, [row("a"), None], ""),
    ],
)
def test_a_task_is_picked_only_if_no_other_is_possible(
    expected: str | Unresolved, rows: list[Movement | None], known: str
) -> None:
    """The verdict is the one unknown task of this feature between the sending and now, or none."""
    searched = search()

    searched.read(rows)

    assert expected == verdict(searched, known)


def test_no_task_is_picked_while_another_creation_is_in_doubt() -> None:
    """The only unknown task may be that of another creation in doubt."""
    searched = search()
    searched.read([row("a")])

    assert Unresolved.AMBIGUOUS is verdict(searched, others_in_doubt=True)


def test_candidates_are_the_unknown_tasks() -> None:
    """Unknown tasks are listed oldest first, including those from shortly before the sending."""
    searched = search()
    searched.read(
        [
            *(row("b", 2, "consume"), row("x", action="ai-avatar"), row("mine"), row("a", 1)),
            *(row("before", -90), row("wig", -90, "wig"), row("old", -300)),
        ]
    )

    assert ("before", "a", "b") == searched.candidates(lambda task_id: task_id == "mine")
    assert frozenset({"a", "b", "mine"}) == searched.found


@pytest.mark.parametrize(
    ("expected", "feature", "action"),
    [
        *((True, "ai-smile", "ai-smile"), (False, "ai-smile", "ai-smile-pro")),
        *((False, "ai-smile-pro", "ai-smile"), (True, "ai-smile-pro", "ai-smile-pro")),
        *((True, "ai-smile", "task"), (True, "ai-smile-pro", "task")),
        *((False, "ai-avatar", "ai-smile-pro"), (False, "ai-avatar", "run-ai-smile")),
    ],
)
def test_an_action_means_the_longer_of_nested_names(
    expected: bool, feature: str, action: str
) -> None:
    """The action "ai-smile-pro" belongs to that feature and not to "ai-smile"."""
    searched = search(feature, ("ai-smile", "ai-smile-pro", "ai-avatar"))
    searched.read([row("a", action=action)])

    assert expected == bool(searched.found)


def test_an_action_that_names_two_features_may_be_either() -> None:
    """A task of such an action is a candidate for both features."""
    searched = search()
    searched.read([row("b", action="ai-avatar-from-ai-smile"), row("a")])

    assert Unresolved.AMBIGUOUS is verdict(searched)


# How far to read.


@pytest.mark.parametrize(
    ("more", "pages"),
    [
        (True, [[]]),
        (True, [[row("a")]]),
        (True, [[row("a"), row("b", -180)]]),
        (False, [[row("a"), row("b", -181)]]),
        (False, [[row("a", -181)]]),
        (False, [[row("a")], [row("b", -181)]]),
        (False, [[row("a")], [], [row("b", -181)]]),
        # Small disorder counts as newest first.
        (False, [[row("a", -10), row("b", 20), row("c", -190)]]),
        # Oldest first, in large or small steps, within a page or across pages: the wanted rows
        # come last.
        (True, [[row("a", -500), row("b", -400)]]),
        (True, [[row("a", -500), row("b", -460), row("c", -420), row("d", -380)]]),
        (True, [[row("a", -500), row("b", -499)]]),
        (True, [[row("a", -500)], [row("b", -400)]]),
        # In no order.
        (True, [[row("a", -100), row("b", 50), row("c", -100)]]),
    ],
    ids=repr,
)
def test_pages_are_read_until_they_are_older(more: bool, pages: list[list[Movement]]) -> None:
    """Newest first, reading ends with a row before the sending; in other orders it goes on."""
    searched = search()

    needs_more = [searched.read(page) for page in pages][-1]

    assert more == needs_more


moments = st.integers(-2_000, 300)
histories = st.lists(
    st.tuples(moments, st.sampled_from(["a", "b", "c", "d"]), st.sampled_from([*FEATURES, ""])),
    max_size=20,
)


def read_all(rows: list[Movement], size: int) -> tuple[str | Unresolved, int]:
    """Read page by page while more is needed; return the verdict and the number of rows read."""
    searched, taken = search(), 0
    for start in range(0, len(rows), size):
        page = rows[start : start + size]
        taken += len(page)
        if not searched.read(page):
            break
    return verdict(searched), taken


@given(histories, st.integers(2, 6), st.booleans(), st.data())
@example([(-500, "b", ""), (-490, "c", ""), (1, "a", "ai-smile")], 2, True, None)
def test_the_verdict_does_not_depend_on_pages_or_order(
    lines: list[tuple[int, str, str]], size: int, ascending: bool, data: st.DataObject | None
) -> None:
    """Reading in pages, in either order with small disorder, gives the verdict of the whole."""
    disorder = [0] * len(lines)
    if data is not None:
        disorder = data.draw(st.lists(st.integers(0, 30), min_size=len(lines), max_size=20))
    # Equal times at the start of an ascending history do not show its order, so times are distinct.
    keyed = sorted(zip(lines, disorder, strict=False), key=lambda pair: pair[0][0] + pair[1])
    rows = [row(task_id, after, action) for (after, task_id, action), _ in keyed]
    if not ascending:
        rows.reverse()
    elif any(a.at >= b.at for a, b in itertools.pairwise(rows)):
        rows.sort(key=lambda line: line.at)
        rows = [line for i, line in enumerate(rows) if not i or line.at > rows[i - 1].at]
    whole = search()
    whole.read(rows)

    found, taken = read_all(rows, size)

    assert verdict(whole) == found
    assert taken <= len(rows)


@given(histories, st.sets(st.sampled_from("abcd")))
@example([(0, "b", "ai-smile"), (-6, "b", "ai-avatar")], set())
def test_a_task_is_picked_only_if_exactly_one_is_unknown(
    lines: list[tuple[int, str, str]], known: set[str]
) -> None:
    """For any history, a task is picked only if it is the one candidate."""
    rows = [row(task_id, after, action) for after, task_id, action in lines]
    candidates = [
        line
        for line in rows
        if line.at >= SENT - 3 * SKEW and line.action != "ai-avatar" and line.task_id not in known
    ]
    possible = {line.task_id for line in candidates}
    searched = search()
    searched.read(rows)

    found = verdict(searched, "".join(known))

    if not possible:
        assert Unresolved.NOTHING is found
    elif isinstance(found, str):
        assert possible == {found}
        assert min(line.at for line in candidates) >= SENT - 5 * SECOND
        assert any(line.action == "ai-smile" for line in candidates)


def test_a_feature_without_a_class_is_named_by_its_path() -> None:
    """Its action has hyphens for slashes, and any published action may mean it."""
    ours = HistorySearch("2d-vto/ring@v2.1", ["ai-smile"], SENT)
    ours.read([row("a", 1, "api-2d-vto-ring"), row("b", 2, "ai-smile")])
    other = HistorySearch("sod", ["ai-smile"], SENT)
    other.read([row("a", 1, "background-removal"), row("b", 2, "ai-smile")])

    assert "a" == verdict(ours)
    assert Unresolved.AMBIGUOUS is verdict(other)
    assert ("a",) == other.candidates(lambda _: False)


@pytest.mark.parametrize("features", [FEATURES, (*FEATURES, "hair-changer")])
def test_a_class_does_not_tell_the_action_of_a_feature(features: tuple[str, ...]) -> None:
    """A published action may be that of a feature with another path, also if it has a class."""
    searched = search("hair-changer", features)
    searched.read([row("a", action="api-hair-style")])

    assert {"a"} == searched.found
    assert Unresolved.AMBIGUOUS is verdict(searched)
