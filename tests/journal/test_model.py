"""The entries of a journal: their fold to a state, and their form in a file."""

import json
import math
from collections.abc import Iterable

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from perfect_async._journal.model import (
    ENTRY_TYPES,
    MOST,
    Created,
    Creating,
    Damaged,
    Deleted,
    Ended,
    EndKind,
    Entered,
    IllegalEntry,
    JobSnapshot,
    JournalEntry,
    JournalState,
    NotCreated,
    Phase,
    Reported,
    Returned,
    Saved,
    StoredInput,
    StoredJob,
    Uploaded,
    decode,
    encode,
)
from tests.api.test_responses import json_values
from tests.support.journals import fold
from tests.support.searching import examples

STORED = StoredJob(
    identity="ab" * 32,
    sure=True,
    stem="me",
    feature="ai-smile",
    units=1.0,
    outputs=1,
    parameters=(("expression", "closed_mouth_smile"),),
    key=None,
    kind="path",
    place="/photos/me.jpg",
    digest="cd" * 32,
    save_to=None,
    delete=False,
)

END_KINDS: tuple[EndKind, ...] = ("done", "failed", "lost", "doubt", "unsent")


def stored(**changes: object) -> StoredJob:
    return attrs.evolve(STORED, **changes)  # type: ignore[arg-type]


# Any text: Python reads bytes in a Linux path that are not UTF-8 as surrogates.
texts = st.text(st.characters(), min_size=1, max_size=20)
stored_jobs = st.builds(
    StoredJob,
    identity=st.binary(min_size=32, max_size=32).map(bytes.hex),
    sure=st.booleans(),
    stem=st.text(st.characters(), max_size=20),
    feature=texts,
    units=st.floats(0, 1e6) | st.integers(0, 100).map(float),
    outputs=st.integers(1, 200),
    parameters=st.lists(st.tuples(texts, texts | st.integers())).map(tuple),
    key=st.none() | texts,
    kind=st.sampled_from(["path", "url", "file", "bytes"]),
    place=st.none() | texts,
    digest=st.none() | texts,
    save_to=st.none() | texts,
    delete=st.booleans(),
)


def entries(job: int, at: int = 0, given: StoredJob = STORED) -> list[JournalEntry]:
    """Return every kind of entry, for one job."""
    return [
        Entered(job, at, given),
        Uploaded(job, at, "file"),
        Creating(job, at),
        NotCreated(job, at),
        Created(job, at, f"task-{job}"),
        Returned(job, at),
        *(Ended(job, at, end) for end in END_KINDS),
        Saved(job, at),
        Reported(job, at),
        Deleted(job, at),
    ]


any_entries = st.builds(
    lambda job, at, given, place: entries(job, at, given)[place],
    *(
        st.integers(1, MOST),
        st.integers(0, MOST),
        stored_jobs,
        st.integers(0, len(entries(1)) - 1),
    ),
)


def entries_named(line: str, given: StoredJob = STORED) -> list[JournalEntry]:
    """Return the entries of job 1 that `line` names; ends are named by their kind."""
    named: dict[str, JournalEntry] = {}
    for entry in entries(1, 7, given):
        named[entry.end if isinstance(entry, Ended) else type(entry).__name__] = entry
    return [named[name] for name in line.split()]


# Transitions.


@pytest.mark.parametrize(
    ("expected", "line"),
    [
        (JobSnapshot(1, STORED), "Entered"),
        (JobSnapshot(1, STORED, file_id="file"), "Entered Uploaded"),
        (JobSnapshot(1, STORED, Phase.CREATING, "file", since=7), "Entered Uploaded Creating"),
        (JobSnapshot(1, STORED, Phase.CREATING, since=7), "Entered Creating Creating"),
        (JobSnapshot(1, STORED, since=7), "Entered Creating NotCreated"),
        (JobSnapshot(1, STORED, Phase.RUNNING, None, "task-1", 7), "Entered Creating Created"),
        (JobSnapshot(1, STORED, since=7), "Entered Creating Created Returned"),
        (
            JobSnapshot(1, STORED, Phase.DONE, None, "task-1", 7, "done"),
            "Entered Creating Created done",
        ),
        (
            JobSnapshot(1, STORED, Phase.DONE, None, "task-1", 7, "done", saved=True),
            "Entered Creating Created done Saved",
        ),
        (JobSnapshot(1, STORED, Phase.ENDED, since=7, end="doubt"), "Entered Creating doubt"),
        (JobSnapshot(1, STORED, Phase.ENDED, end="unsent"), "Entered unsent"),
        (
            JobSnapshot(1, STORED, Phase.RUNNING, None, "task-1", 7),
            "Entered Creating doubt Created",
        ),
        (JobSnapshot(1, STORED, Phase.CREATING, since=7), "Entered Creating doubt Creating"),
        (JobSnapshot(1, STORED, Phase.ENDED, "file", end="unsent"), "Entered unsent Uploaded"),
        (
            JobSnapshot(1, STORED, Phase.ENDED, None, "task-1", 7, "lost"),
            "Entered Creating Created done lost",
        ),
        (
            JobSnapshot(1, STORED, Phase.DONE, None, "task-1", 7, "done"),
            "Entered Creating Created lost done",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_entries_fold_to_the_state(expected: JobSnapshot, line: str) -> None:
    """The state of a job is the fold of its entries."""
    state = fold(entries_named(line))

    assert {1: expected} == state.live
    assert 1 == state.last


@pytest.mark.parametrize(
    ("over", "delete", "line"),
    [
        (True, False, "Entered failed Reported"),
        (True, False, "Entered Creating doubt Reported"),
        (True, False, "Entered Creating Created done Reported"),
        (True, False, "Entered Creating Created done Saved Reported"),
        (True, True, "Entered Creating Created failed Reported"),
        # Copies of an unsaved result are never deleted.
        (True, True, "Entered Creating Created done Reported"),
        (False, True, "Entered Creating Created done Saved Reported"),
        (False, True, "Entered Creating Created done Saved Deleted"),
        (True, True, "Entered Creating Created done Saved Deleted Reported"),
        (True, True, "Entered Creating Created done Saved Reported Deleted"),
    ],
)
def test_a_job_is_over_when_nothing_is_left_to_do(over: bool, delete: bool, line: str) -> None:
    """A job is over, and dropped, once its end was reported and its copies are deleted."""
    state = fold(entries_named(line, stored(delete=delete)))

    assert over == (not state.live)
    assert 1 == state.last


def test_the_last_entry_returns_the_state() -> None:
    """`receive` returns the final state of a job that is over."""
    state = fold(entries_named("Entered Creating Created done"))

    snapshot = state.receive(Reported(1, 9))

    assert ("task-1", True, True) == (snapshot.task_id, snapshot.reported, snapshot.over)
    assert {} == state.live


@pytest.mark.parametrize(
    "line",
    [
        *("Uploaded", "Reported", "done", "Entered Entered", "Entered Reported", "Entered Saved"),
        *("Entered NotCreated", "Entered Created", "Entered Returned", "Entered Deleted"),
        *("Entered done", "Entered lost", "Entered doubt", "Entered Creating Uploaded"),
        *("Entered Creating done", "Entered Creating lost", "Entered Creating Reported"),
        "Entered Creating Created Creating",
        "Entered Creating Created unsent",
        "Entered Creating Created doubt",
        "Entered Creating Created Reported",
        "Entered Creating Created done Creating",
        "Entered Creating Created done Deleted",
        "Entered Creating Created done doubt",
        "Entered Creating Created failed Saved",
        "Entered failed Reported Reported",
        # A job without a task has no result.
        "Entered unsent done",
        "Entered Creating doubt done",
        "Entered Creating Created Returned failed done",
    ],
)
def test_illegal_entries_change_nothing(line: str) -> None:
    """An illegal entry raises, and the state is unchanged."""
    *before, last = entries_named(line)
    state = fold(before)

    with pytest.raises(IllegalEntry, match=str(last.job)):
        state.receive(last)

    assert fold(before) == state
    assert fold(before).last == state.last


@pytest.mark.parametrize("number", [0, -1])
def test_jobs_are_numbered_from_one(number: int) -> None:
    """A job with a number below 1 is refused."""
    with pytest.raises(IllegalEntry):
        fold([Entered(number, 0, STORED)])


@pytest.mark.parametrize("end", ["lost", "failed"])
def test_a_new_task_has_new_results(end: str) -> None:
    """A saved job that is created again is neither saved nor deleted, so that the new copies stay
    until the new results are saved.
    """
    line = f"Entered Creating Created done Saved Deleted {end} Creating Created done"

    state = fold(entries_named(line, stored(delete=True)))

    assert (False, False) == (state.live[1].saved, state.live[1].deleted)
    with pytest.raises(IllegalEntry):
        state.receive(Deleted(1, 9))


def test_states_are_compared_by_their_live_jobs() -> None:
    """States with the same live jobs are equal, also after different entries."""
    state_after = fold([*entries_named("Entered failed Reported"), Entered(2, 0, STORED)])

    assert fold([Entered(2, 0, STORED)]) == state_after
    assert JournalState() != state_after
    assert state_after.live != state_after
    with pytest.raises(TypeError):
        hash(state_after)


def test_the_last_creation_has_the_row_in_the_ledger() -> None:
    """A later creation has another row, or none."""
    state = fold([*entries_named("Entered"), Creating(1, 5, "intent a 1")])
    assert (5, "intent a 1") == (state.live[1].since, state.live[1].intent)

    state.receive(Creating(1, 6, "intent a 2"))
    assert (6, "intent a 2") == (state.live[1].since, state.live[1].intent)

    state.receive(Ended(1, 7, "doubt"))
    assert "intent a 2" == state.live[1].intent

    state.receive(Creating(1, 8))
    assert "" == state.live[1].intent


def test_live_jobs_are_in_the_order_of_submission() -> None:
    """Later entries do not change the order of jobs."""
    state = fold(Entered(number, 0, STORED) for number in (2, 1, 3))
    state.receive(Creating(1, 0))
    state.receive(Uploaded(2, 0, "f"))

    assert [2, 1, 3] == list(state.live)


class Histories(RuleBasedStateMachine):
    """Any entries in any order: illegal ones are refused, and the file folds to the same state."""

    def __init__(self) -> None:
        super().__init__()
        self.state = JournalState()
        self.appended: list[JournalEntry] = []
        self.kept: list[JournalEntry] = []

    @rule(job=st.integers(1, 3), place=st.integers(0, 99))
    def appends(self, job: int, place: int) -> None:
        """Append one of the legal entries."""
        given = stored(delete=place % 2 == 1, sure=place % 3 > 0)
        may = [entry for entry in entries(job, place, given) if self._legal(entry)]
        entry = may[place % len(may)]
        snapshot = self.state.receive(entry)
        self.appended.append(entry)
        self.kept.append(entry)
        if snapshot.over:
            self.kept = [kept for kept in self.kept if kept.job != job]

    def _legal(self, entry: JournalEntry) -> bool:
        try:
            self.state.after(entry)
        except IllegalEntry:
            return False
        return True

    @rule(job=st.integers(1, 3))
    def refuses_illegal_entries(self, job: int) -> None:
        """Try each of the illegal entries."""
        before, last = dict(self.state.live), self.state.last
        for entry in entries(job):
            if not self._legal(entry):
                with pytest.raises(IllegalEntry):
                    self.state.receive(entry)
        assert before == self.state.live
        assert last == self.state.last

    @invariant()
    def all_entries_fold_to_the_state(self) -> None:
        assert self.state == fold(self.appended)

    @invariant()
    def kept_entries_fold_to_the_state(self) -> None:
        assert self.state == fold(decode(*encode(entry)) for entry in self.kept)
        assert list(self.state.live) == list(fold(self.kept).live)

    @invariant()
    def live_jobs_are_consistent(self) -> None:
        for snapshot in self.state.live.values():
            assert not snapshot.over
            assert (snapshot.phase in {Phase.DONE, Phase.ENDED}) == (snapshot.end is not None)
            assert (snapshot.phase is Phase.DONE) == (snapshot.end == "done")
            if snapshot.phase in {Phase.RUNNING, Phase.DONE}:
                assert snapshot.task_id is not None
            if snapshot.phase in {Phase.ENTERED, Phase.CREATING}:
                assert snapshot.task_id is None
            assert snapshot.saved or not snapshot.deleted


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=examples(30), stateful_step_count=30)


# As rows of a file.


@given(any_entries)
def test_entries_survive_encoding(entry: JournalEntry) -> None:
    """Decoding returns the encoded entry, and the encoded form is plain ASCII."""
    job, at, kind, text = encode(entry)

    assert entry == decode(job, at, kind, text)
    assert (kind + text).isascii()


@pytest.mark.parametrize(
    ("expected", "entry"),
    [
        (("Uploaded", '{"file_id":"f"}'), Uploaded(1, 7, "f")),
        (("Creating", "{}"), Creating(1, 7)),
        (("NotCreated", "{}"), NotCreated(1, 7)),
        (("Created", '{"task_id":"t"}'), Created(1, 7, "t")),
        (("Returned", "{}"), Returned(1, 7)),
        (("Ended", '{"how":"lost"}'), Ended(1, 7, "lost")),
        (("Saved", "{}"), Saved(1, 7)),
        (("Told", "{}"), Reported(1, 7)),
        (("Deleted", "{}"), Deleted(1, 7)),
        (
            (
                "Entered",
                '{"order":{"identity":"' + "ab" * 32 + '","sure":true,"stem":"me",'
                '"feature":"ai-smile","units":1.0,"outputs":1,'
                '"parameters":[["expression","closed_mouth_smile"]],"key":null,"kind":"path",'
                '"place":"/photos/me.jpg","digest":"' + "cd" * 32 + '","save_to":null,'
                '"delete":false}}',
            ),
            Entered(1, 7, STORED),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_format_of_a_file_does_not_change(
    expected: tuple[str, str], entry: JournalEntry
) -> None:
    """Entries are encoded exactly as version 0.1 wrote them."""
    assert (1, 7, *expected) == encode(entry)
    assert entry == decode(1, 7, *expected)


def test_a_creation_on_a_shared_key_names_its_row() -> None:
    """Version 0.1 ignores the field, and its own entries have none."""
    row = 1, 7, "Creating", '{"intent":"a 1"}'

    assert row == encode(Creating(1, 7, "a 1"))
    assert Creating(1, 7, "a 1") == decode(*row)


def test_every_kind_of_entry_has_a_name() -> None:
    """The table of entry types is complete, and encoding uses its names."""
    assert set(ENTRY_TYPES) == {encode(entry)[2] for entry in entries(1)}
    assert {type(entry) for entry in entries(1)} == set(ENTRY_TYPES.values())


def stored_fields(**changes: object) -> dict[str, object]:
    """Return the fields of a stored job with `changes`; `...` leaves a field out."""
    held = {**attrs.asdict(STORED), **changes}
    return {name: value for name, value in held.items() if value is not ...}


@pytest.mark.parametrize(
    ("expected", "row"),
    [
        ("not a number", (None, 1, "Told", "{}")),
        ("out of range", (0, 1, "Told", "{}")),
        ("out of range", (2**53 + 1, 1, "Told", "{}")),
        ("out of range", (1, 2**53 + 1, "Told", "{}")),
        ("out of range", (1, -1, "Told", "{}")),
        ("not a number", (True, 1, "Told", "{}")),
        ("not a number", (1, "1", "Told", "{}")),
        ("not a number", (1, 1.0, "Told", "{}")),
        ("job 1 has an entry of an unknown kind", (1, 1, "Bought", "{}")),
        ("job 1 has an entry of an unknown kind", (1, 1, None, "{}")),
        ("job 1 has an entry of an unknown kind", (1, 1, b"Told", "{}")),
        ("Told of job 3 is not JSON", (3, 1, "Told", "")),
        ("Told of job 3 is not JSON", (3, 1, "Told", "{")),
        ("Told of job 3 is not JSON", (3, 1, "Told", b"{}")),
        ("Told of job 3 is not JSON", (3, 1, "Told", "[" * 100_000)),
        ("Told of job 3 is not an object", (3, 1, "Told", "[]")),
        ("Uploaded of job 3: file_id is not text", (3, 1, "Uploaded", "{}")),
        ("Creating of job 3: intent is not text", (3, 1, "Creating", '{"intent":7}')),
        ("Created of job 3: task_id is not text", (3, 1, "Created", '{"task_id":""}')),
        ("Created of job 3: task_id is not text", (3, 1, "Created", '{"task_id":7}')),
        ("Ended of job 3: how is unknown", (3, 1, "Ended", '{"how":"well"}')),
        ("Ended of job 3: how is not text", (3, 1, "Ended", '{"how":null}')),
        ("Entered of job 3: order is not an object", (3, 1, "Entered", "{}")),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_problem_of_a_bad_row_is_named(
    expected: str, row: tuple[object, object, object, object]
) -> None:
    """The error for a bad row names the problem and quotes nothing."""
    with pytest.raises(Damaged, match=expected) as caught:
        decode(*row)

    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ("identity is not text", {"identity": ...}),
        ("identity is not a digest", {"identity": "zz"}),
        ("identity is not a digest", {"identity": "a b "}),
        ("sure is neither true nor false", {"sure": 1}),
        ("stem is not text", {"stem": None}),
        ("feature is not text", {"feature": ""}),
        ("units is not a number of units", {"units": "1"}),
        ("units is not a number of units", {"units": True}),
        ("units is not a number of units", {"units": math.nan}),
        ("units is not a number of units", {"units": math.inf}),
        ("units is not a number of units", {"units": -1}),
        ("units is not a number of units", {"units": 10**400}),
        ("outputs is not a number of pictures", {"outputs": 1.0}),
        ("outputs is not a number of pictures", {"outputs": 0}),
        ("outputs is not a number of pictures", {"outputs": 10_001}),
        ("parameters is not a list of pairs", {"parameters": ...}),
        ("parameters is not a list of pairs", {"parameters": {}}),
        ("parameters is not a list of pairs", {"parameters": ["ab"]}),
        ("parameters is not a list of pairs", {"parameters": [["a", "b", "c"]]}),
        ("parameters is not a list of pairs", {"parameters": [["a", None]]}),
        ("parameters is not a list of pairs", {"parameters": [[1, "a"]]}),
        ("key is not text", {"key": ""}),
        ("key is not text", {"key": 7}),
        ("kind is unknown", {"kind": "Path"}),
        ("place is not text", {"place": []}),
        ("digest is not text", {"digest": 1}),
        ("save_to is not text", {"save_to": ""}),
        ("delete is neither true nor false", {"delete": None}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_problem_of_a_stored_job_is_named(expected: str, change: dict[str, object]) -> None:
    """A stored job with one bad field is refused."""
    text = json.dumps({"order": stored_fields(**change)})

    with pytest.raises(Damaged, match=f"Entered of job 3: {expected}"):
        decode(3, 1, "Entered", text)


cells = (
    json_values | st.binary() | st.sampled_from(sorted(ENTRY_TYPES)) | json_values.map(json.dumps)
)


@given(cells, cells, cells, cells)
@example(1, 1, "Entered", json.dumps({"order": stored_fields(units=10**400)}))
def test_any_row_is_an_entry_or_damaged(
    job: object, at: object, kind: object, text: object
) -> None:
    """Any row is an entry or raises `Damaged`."""
    try:
        entry = decode(job, at, kind, text)
    except Damaged:
        return
    assert entry == decode(*encode(entry))


@given(st.sampled_from([field.name for field in attrs.fields(StoredJob)]), json_values)
def test_any_field_of_a_stored_job_is_usable_or_damaged(name: str, value: object) -> None:
    """Any value of a field of a stored job is usable or raises `Damaged`."""
    try:
        entry = decode(1, 1, "Entered", json.dumps({"order": stored_fields(**{name: value})}))
    except Damaged:
        return
    assert isinstance(entry, Entered)
    assert bytes.fromhex(entry.stored.identity)
    assert 0 <= entry.stored.units < math.inf
    assert entry == decode(*encode(entry))


@given(any_entries, st.data())
def test_a_torn_row_is_damaged(entry: JournalEntry, data: st.DataObject) -> None:
    """A text that was cut off or overwritten raises `Damaged`."""
    job, at, kind, text = encode(entry)
    place = data.draw(st.integers(0, len(text) - 1))
    torn = data.draw(st.sampled_from([text[:place], text[:place] + "\0" + text[place + 1 :]]))

    with pytest.raises(Damaged):
        decode(job, at, kind, torn)


def snapshot_reprs(state: JournalState) -> Iterable[str]:
    return (repr(snapshot) for snapshot in state.live.values())


def test_a_repr_shows_no_path_and_no_file_id() -> None:
    """A repr, which may be logged, shows neither the path of a picture nor its file id."""
    shown = " ".join(snapshot_reprs(fold(entries_named("Entered Uploaded"))))

    assert "/photos" not in shown
    assert "'file'" not in shown


# Several inputs.

INPUTS = (StoredInput("file", "f", None), StoredInput("url", None, "ab" * 32))


def test_several_inputs_survive_encoding() -> None:
    """Each input and the id of each upload survive encoding."""
    order = stored(more=INPUTS)
    entries: list[JournalEntry] = [
        Entered(1, 0, order),
        Uploaded(1, 1, "a"),
        Uploaded(1, 2, "b", 2),
    ]
    read = [decode(*encode(entry)) for entry in entries]
    state = fold(read)

    assert entries == read
    assert ("a", ((2, "b"),), ("a", "b", "f")) == (
        state.live[1].file_id,
        state.live[1].more_ids,
        state.live[1].file_ids,
    )


def test_one_input_is_encoded_as_before() -> None:
    """A job with one input is encoded as former versions wrote it."""
    *_, text = encode(Entered(1, 0, STORED))
    *_, uploaded = encode(Uploaded(1, 1, "a"))

    assert "more" not in json.loads(text)["order"]
    assert {"file_id": "a"} == json.loads(uploaded)
    assert [(STORED.kind, STORED.place, STORED.digest)] == [
        (each.kind, each.place, each.digest) for each in STORED.inputs
    ]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Uploaded", {"file_id": "a", "number": -1}),
        ("Uploaded", {"file_id": "a", "number": "1"}),
        ("Uploaded", {"file_id": "a", "number": 10**6}),
        ("Entered", {"more": 3}),
        ("Entered", {"more": [3]}),
        ("Entered", {"more": [{"kind": "disk", "place": None, "digest": None}]}),
    ],
)
def test_wrong_inputs_are_damaged(kind: str, changes: dict[str, object]) -> None:
    """A value that is not an input raises `Damaged`."""
    _, _, _, text = encode(Entered(1, 0, STORED))
    held = {"order": {**json.loads(text)["order"], **changes}} if kind == "Entered" else changes
    with pytest.raises(Damaged):
        decode(1, 0, kind, json.dumps(held))


def test_a_digest_identifies_all_pictures() -> None:
    """The digest covers all pictures; a signed URL or no picture gives None."""
    one = StoredInput("path", "/a", "cd" * 32)
    both = stored(more=(StoredInput("file", "f", None),)).source_digest

    assert STORED.source_digest == one.digest
    assert both not in {None, one.digest}
    assert None is stored(more=INPUTS).source_digest
    assert (None, ()) == (
        stored(kind="none", place=None, digest=None).source_digest,
        stored(kind="none", place=None, digest=None).inputs,
    )
