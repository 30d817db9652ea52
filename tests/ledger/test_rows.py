"""The rows of a ledger: their text, how long they are kept, and the names of ledgers."""

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._ledger import rows
from perfect_async._ledger.rows import (
    MOST,
    LedgerUnavailable,
    MemberStatus,
    believable,
    decode,
    encode,
    host_digest,
    job_name,
    kept_until,
    kept_when_gone,
    key,
    key_digest,
    longest_period,
    series,
    status,
    task_id,
)
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.events import (
    DoneRow,
    DurationRow,
    IntentRow,
    LedgerRow,
    MemberRow,
    PlanRow,
    RequestRow,
    SharedLimits,
    TaskKind,
    TaskRow,
)
from tests.api.test_responses import json_values

PERIOD = 300 * SECOND
LIMITS = SharedLimits(250, PERIOD, 5, 10 * SECOND)
SMILE = TaskKind("ai-smile", 1, (1, 2))
MEMBER = MemberRow("m", 7, LIMITS, 5, work=3, running=2)
REQUEST = RequestRow("m", 1, 5)
TASK = TaskRow("m", 1, SMILE, 1, 2, 300 * SECOND, 4, 5, task_id="t")
DURATION = DurationRow("m", 1, SMILE, 1, 2)
PLAN = PlanRow(1, 176, 3)
INTENT = IntentRow("m", 1, "i", "d", "ai-smile", 9)
DONE = DoneRow("i", "d", "ai-smile", "t", 9)
ALL = (MEMBER, REQUEST, TASK, DURATION, PLAN, INTENT, DONE)

times = st.integers(-MOST, MOST)
counts = st.integers(0, MOST)
names = st.text(min_size=1, max_size=40)
texts = st.text(max_size=40)
kinds = st.one_of(
    st.builds(TaskKind, names, st.integers(1, 10_000)),
    st.builds(
        TaskKind,
        names,
        st.integers(1, 10_000),
        st.tuples(counts, counts).map(lambda pair: (min(pair), max(pair))),
    ),
)
limits = st.builds(SharedLimits, *[st.integers(1, MOST)] * 4)
member_rows = st.builds(
    MemberRow, names, counts, limits, times, counts, counts, times, st.booleans(), *[counts] * 3
)
request_rows = st.builds(
    RequestRow,
    *(names, times, times, st.booleans(), st.none() | times),
    st.sampled_from(["", "accepted", "refused", "failed"]),
    st.none() | counts,
)
task_rows = st.builds(
    lambda row, polls: attrs.evolve(row, last=max(-MOST, min(MOST, row.next + polls))),
    st.builds(
        TaskRow,
        *(names, times, kinds, times, times, times, times, st.just(0), times, texts, times),
        *[st.booleans()] * 3,
    ),
    st.integers(-1000, 10_000_000),
)
duration_rows = st.builds(DurationRow, names, times, kinds, counts, st.none() | counts)
plan_rows = st.builds(PlanRow, counts, st.integers(1, MOST), counts)
intent_rows = st.builds(
    IntentRow,
    *(names, times, texts, texts, texts, times),
    st.sampled_from(["sent", "accepted", "refused", "doubt"]),
    texts,
)
done_rows = st.builds(DoneRow, texts, texts, texts, texts, times)
all_rows: st.SearchStrategy[LedgerRow] = st.one_of(
    *(member_rows, request_rows, task_rows, duration_rows, plan_rows, intent_rows, done_rows)
)


@given(all_rows)
def test_a_row_is_read_as_it_was_written(row: LedgerRow) -> None:
    """Every row can be encoded and decoded."""
    text = encode(row)

    assert row == decode(text)
    assert text.isascii()


@pytest.mark.parametrize("row", ALL, ids=lambda row: type(row).__name__)
def test_rows_are_flat(row: LedgerRow) -> None:
    """A row is one array of plain values that begins with the format and the kind."""
    array = json.loads(encode(row))

    assert [1, type(row).__name__.removesuffix("Row").lower()] == array[:2]
    assert set() == {type(value) for value in array} - {int, str, bool, type(None)}


@given(json_values | st.text() | st.integers() | st.binary())
def test_anything_else_is_dropped(value: object) -> None:
    """Text that is not a row is None, and never an error."""
    assert decode(value) is None
    assert decode(json.dumps(value, default=str)) is None


@given(st.sampled_from(ALL), st.data())
def test_a_row_with_one_wrong_value_is_dropped_or_another_row(
    row: LedgerRow, data: st.DataObject
) -> None:
    """A damaged row is dropped, or is a valid other row."""
    array = json.loads(encode(row))
    array[data.draw(st.integers(0, len(array) - 1))] = data.draw(json_values)

    found = decode(json.dumps(array))

    assert found is None or json.loads(encode(found)) == array


@pytest.mark.parametrize("row", ALL, ids=lambda row: type(row).__name__)
def test_a_row_of_another_length_is_dropped(row: LedgerRow) -> None:
    """Another version wrote a row with a field more or less."""
    array = json.loads(encode(row))

    assert [None, None] == [decode(json.dumps(each)) for each in (array[:-1], [*array, 0])]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "7", "null", "{}", "[]", "[1]", '["1","plan",1,2,3]', '[true,"plan",1,2,3]'),
        *('[2,"plan",1,2,3]', "[1,7,1,2,3]", '[1,["plan"],1,2,3]', '[1,"plans",1,2,3]'),
        *("[" * 100_000, f'[1,"plan",1,2,{"9" * 5000}]', '[1,"plan",1,2,NaN]'),
    ],
    ids=lambda text: text[:20],
)
def test_other_text_is_dropped(text: str) -> None:
    """No text raises; it may be of another version, a damaged file or another program."""
    assert decode(text) is None


@pytest.mark.parametrize(
    "row",
    [
        attrs.evolve(PLAN, cycle=0),
        attrs.evolve(PLAN, epoch=-1),
        attrs.evolve(PLAN, guard=MOST + 1),
        attrs.evolve(MEMBER, member=""),
        attrs.evolve(MEMBER, limits=attrs.evolve(LIMITS, requests=0)),
        attrs.evolve(MEMBER, stepped_at=NEVER),
        attrs.evolve(REQUEST, outcome="lost"),
        attrs.evolve(REQUEST, retry_after=-1),
        attrs.evolve(TASK, last=TASK.next + 11 * 24 * 3600 * 20),
        attrs.evolve(TASK, kind=TaskKind("ai-smile", 0)),
        attrs.evolve(TASK, kind=TaskKind("ai-smile", 1, (2, 1))),
        attrs.evolve(INTENT, state=""),
        attrs.evolve(DONE, task_id="x" * 5000),
    ],
    ids=str,
)
def test_a_row_with_an_absurd_value_is_dropped(row: LedgerRow) -> None:
    """An absurd value would harm every member that reads it."""
    assert decode(encode(row)) is None


@pytest.mark.parametrize("row", ALL, ids=lambda row: type(row).__name__)
def test_a_present_row_is_believable(row: LedgerRow) -> None:
    """A row of a member whose clock is a little ahead is believable too."""
    row = attrs.evolve(row, cycle=168) if isinstance(row, MemberRow) else row

    assert believable(row, 0)
    assert believable(row, 3600 * SECOND)


@pytest.mark.parametrize(
    "row",
    [
        attrs.evolve(MEMBER, cycle=168, stepped_at=61 * SECOND),
        attrs.evolve(MEMBER, cycle=168, waited_at=MOST),
        attrs.evolve(MEMBER, cycle=0),
        attrs.evolve(MEMBER, cycle=MOST),
        attrs.evolve(MEMBER, cycle=168, guard=MOST),
        attrs.evolve(MEMBER, cycle=168, limits=attrs.evolve(LIMITS, period=MOST)),
        attrs.evolve(MEMBER, cycle=168, limits=attrs.evolve(LIMITS, lease=1)),
        attrs.evolve(REQUEST, left=MOST),
        attrs.evolve(REQUEST, answered=MOST),
        attrs.evolve(REQUEST, answered=6, outcome="refused", retry_after=MOST),
        attrs.evolve(TASK, renewed=MOST),
        attrs.evolve(TASK, cap=MOST),
        attrs.evolve(TASK, next=MOST, last=MOST),
        attrs.evolve(TASK, next=-MOST),
        attrs.evolve(TASK, low=MOST),
        attrs.evolve(DURATION, high=MOST),
        attrs.evolve(PLAN, cycle=MOST),
        attrs.evolve(PLAN, guard=MOST),
        attrs.evolve(INTENT, sent=MOST),
        attrs.evolve(DONE, at=MOST),
    ],
)
def test_a_row_of_another_clock_or_of_absurd_length_is_not_believed(row: LedgerRow) -> None:
    """Counting it could use up all memory, or block every member for ever."""
    assert not believable(row, 0)


def test_a_row_replaces_the_one_with_its_key() -> None:
    """The key names a member, its request, task, duration or intent, the plan, or a job."""
    found = [key(row) for row in ALL]

    assert [
        *("member m", "request m 1", "task m 1", "duration m 1", "plan"),
        *("intent m 1", "done 1 i d"),
    ] == found


@given(texts, texts, texts, texts)
def test_jobs_with_other_names_are_other_jobs(one: str, two: str, three: str, four: str) -> None:
    """Two jobs are the same only if identity and digest are equal."""
    assert (one, two) == (three, four) or job_name(one, two) != job_name(three, four)


def test_rows_that_name_a_task() -> None:
    """Tasks, intents and done jobs name a task; the other rows do not."""
    assert ["", "", "t", "", "", "", "t"] == [task_id(row) for row in ALL]


def test_durations_are_counted_by_kind() -> None:
    """The oldest durations of each kind are dropped, and no other rows."""
    assert ["", "", "", "1 ai-smile", "", "", ""] == [series(row) for row in ALL]


@pytest.mark.parametrize(
    ("row", "until"),
    [
        (MEMBER, NEVER),
        (PLAN, NEVER),
        (DURATION, NEVER),
        (REQUEST, NEVER),
        (attrs.evolve(REQUEST, answered=6), 6 + 302 * SECOND),
        (TASK, 1200 * SECOND),
        (attrs.evolve(TASK, ended=True), 100 + 120 * SECOND),
        (INTENT, 9 + 86_400 * SECOND),
        (DONE, 9 + 86_400 * SECOND),
    ],
    ids=str,
)
def test_how_long_rows_are_kept(row: LedgerRow, until: int) -> None:
    """Each row is kept for as long as a member may need it."""
    assert until == kept_until(row, 100, period=PERIOD)


def test_an_ended_task_is_kept_longer_than_a_member_may_be_away() -> None:
    """A member that was away briefly, and reads only new rows, reads each end of a task."""
    ended = attrs.evolve(TASK, ended=True)

    assert rows.AWAY < kept_until(ended, 0, period=1)


def test_requests_of_the_dead_count_until_they_can_no_longer_arrive() -> None:
    """An unanswered request of a dead member is kept for its timeout and a period."""
    assert 360 * SECOND + 7 == kept_when_gone(7, period=PERIOD)


def test_the_longest_period_counts() -> None:
    """Requests are kept for the longest period of any member."""
    longer = attrs.evolve(MEMBER, limits=attrs.evolve(LIMITS, period=PERIOD * 2))

    assert PERIOD * 2 == longest_period([REQUEST, longer, MEMBER], 1)
    assert 5 == longest_period([REQUEST], 5)


def test_a_reason_may_be_an_ordinary_one() -> None:
    """`LedgerUnavailable` has a text, and says whether that is worth a warning."""
    assert "no room" == str(LedgerUnavailable("no room"))
    assert [False, True] == [
        LedgerUnavailable("no room").ordinary,
        LedgerUnavailable("no room", ordinary=True).ordinary,
    ]


def test_the_status_of_a_member_has_an_age() -> None:
    """It is the time since the member wrote; a time slightly ahead counts as now."""
    assert MemberStatus("m", 7, 3, 2, 95) == status(MEMBER, 100)
    assert 0 == status(MEMBER, 1).age


def test_the_two_names_of_the_vendor_are_one_host() -> None:
    """Both names of the vendor's host have one ledger, with or without the port of https."""
    found = {
        host_digest(url)
        for url in (
            "https://yce-api-01.makeupar.com",
            "https://yce-api-01.perfectcorp.com",
            "https://yce-api-01.makeupar.com:443/prefix",
        )
    }

    assert 1 == len(found)


def test_hosts_differ_by_their_ports() -> None:
    """Two servers on one machine have two ledgers."""
    urls = [
        *("http://127.0.0.1:8000", "http://127.0.0.1:8001/x", "http://127.0.0.1"),
        *("https://127.0.0.1", "http://[::1]:8000", "http://[::1]", "https://example.com"),
    ]

    assert len(urls) == len({host_digest(url) for url in urls})
    assert host_digest(urls[0]) == host_digest(f"{urls[0]}/path")
    assert 16 == len(host_digest(urls[0]))


def test_a_key_has_a_name_that_does_not_show_it() -> None:
    """The name of a key's ledger is 16 digits of a digest."""
    assert 16 == len(key_digest("secret"))
    assert key_digest("secret") != key_digest("secret2")
    assert "secret" not in key_digest("secret")


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (IntentRow("m", 1, "i", "d", "f", 5), ("sent",)),
        (DoneRow("i", "d", "f", "t", 5), ("at",)),
        (DurationRow("m", 1, TaskKind("f"), 5, 6), ()),
        (PlanRow(1, 176, 6), ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_shifting_a_row_changes_only_its_times(row: LedgerRow, fields: tuple[str, ...]) -> None:
    """A row in another member's time can be shifted back."""
    moved = rows.shifted(row, 20 * SLOT)

    back = attrs.evolve(moved, **dict.fromkeys(fields, 5))  # type: ignore[arg-type] # its times
    assert back == row
    assert all(5 + 20 * SLOT == getattr(moved, name) for name in fields)
    assert row == rows.shifted(moved, -20 * SLOT)
