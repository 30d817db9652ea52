"""What the words of a journal come to, and how they stand on a disk."""

import json
import math
from collections.abc import Iterable

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from perfect_async._journal.model import (
    WORDS,
    Created,
    Creating,
    Damaged,
    Deleted,
    Ended,
    Entered,
    How,
    IllegalEntry,
    JobSnapshot,
    JournalEntry,
    JournalState,
    NotCreated,
    Phase,
    Returned,
    Saved,
    StoredJob,
    Told,
    Uploaded,
    decode,
    encode,
)
from tests.api.test_responses import json_values
from tests.support.searching import examples

ORDER = StoredJob(
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
HOWS: tuple[How, ...] = ("done", "failed", "lost", "doubt", "unsent")


def order(**changes: object) -> StoredJob:
    return attrs.evolve(ORDER, **changes)  # type: ignore[arg-type]


# Of any text: a path on Linux may hold bytes that are no UTF-8, which Python reads as surrogates.
texts = st.text(st.characters(), min_size=1, max_size=20)
orders = st.builds(
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


def words(job: int, at: int = 0, given: StoredJob = ORDER) -> list[JournalEntry]:
    """Every word that there is, about one job."""
    return [
        Entered(job, at, given),
        Uploaded(job, at, "file"),
        Creating(job, at),
        NotCreated(job, at),
        Created(job, at, f"task-{job}"),
        Returned(job, at),
        *(Ended(job, at, how) for how in HOWS),
        Saved(job, at),
        Told(job, at),
        Deleted(job, at),
    ]


any_words = st.builds(
    lambda job, at, given, place: words(job, at, given)[place],
    *(st.integers(1, 2**62), st.integers(0, 2**62), orders, st.integers(0, len(words(1)) - 1)),
)


def spelled(line: str, given: StoredJob = ORDER) -> list[JournalEntry]:
    """The words of job 1 in a line: their names, those of an end by how it ended."""
    named: dict[str, JournalEntry] = {}
    for word in words(1, 7, given):
        named[word.how if isinstance(word, Ended) else type(word).__name__] = word
    return [named[name] for name in line.split()]


# What follows what.


@pytest.mark.parametrize(
    ("expected", "line"),
    [
        (JobSnapshot(1, ORDER), "Entered"),
        (JobSnapshot(1, ORDER, file_id="file"), "Entered Uploaded"),
        (JobSnapshot(1, ORDER, Phase.CREATING, "file", since=7), "Entered Uploaded Creating"),
        (JobSnapshot(1, ORDER, Phase.CREATING, since=7), "Entered Creating Creating"),
        (JobSnapshot(1, ORDER, since=7), "Entered Creating NotCreated"),
        (JobSnapshot(1, ORDER, Phase.RUNNING, None, "task-1", 7), "Entered Creating Created"),
        (JobSnapshot(1, ORDER, since=7), "Entered Creating Created Returned"),
        (
            JobSnapshot(1, ORDER, Phase.DONE, None, "task-1", 7, "done"),
            "Entered Creating Created done",
        ),
        (
            JobSnapshot(1, ORDER, Phase.DONE, None, "task-1", 7, "done", saved=True),
            "Entered Creating Created done Saved",
        ),
        (JobSnapshot(1, ORDER, Phase.ENDED, since=7, how="doubt"), "Entered Creating doubt"),
        (JobSnapshot(1, ORDER, Phase.ENDED, how="unsent"), "Entered unsent"),
        (
            JobSnapshot(1, ORDER, Phase.RUNNING, None, "task-1", 7),
            "Entered Creating doubt Created",
        ),
        (JobSnapshot(1, ORDER, Phase.CREATING, since=7), "Entered Creating doubt Creating"),
        (JobSnapshot(1, ORDER, Phase.ENDED, "file", how="unsent"), "Entered unsent Uploaded"),
        (
            JobSnapshot(1, ORDER, Phase.ENDED, None, "task-1", 7, "lost"),
            "Entered Creating Created done lost",
        ),
        (
            JobSnapshot(1, ORDER, Phase.DONE, None, "task-1", 7, "done"),
            "Entered Creating Created lost done",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words_come_to_this(expected: JobSnapshot, line: str) -> None:
    """A job is known as its words say, one after another."""
    memory = JournalState.fold(spelled(line))

    assert {1: expected} == memory.live
    assert 1 == memory.last


@pytest.mark.parametrize(
    ("over", "delete", "line"),
    [
        (True, False, "Entered failed Told"),
        (True, False, "Entered Creating doubt Told"),
        (True, False, "Entered Creating Created done Told"),
        (True, False, "Entered Creating Created done Saved Told"),
        (True, True, "Entered Creating Created failed Told"),
        # What was never saved is never deleted.
        (True, True, "Entered Creating Created done Told"),
        (False, True, "Entered Creating Created done Saved Told"),
        (False, True, "Entered Creating Created done Saved Deleted"),
        (True, True, "Entered Creating Created done Saved Deleted Told"),
        (True, True, "Entered Creating Created done Saved Told Deleted"),
    ],
)
def test_a_job_is_over_when_nothing_is_left_to_do(over: bool, delete: bool, line: str) -> None:
    """Its end was told, and what was to be deleted is; then it is known no longer."""
    memory = JournalState.fold(spelled(line, order(delete=delete)))

    assert over == (not memory.live)
    assert 1 == memory.last


def test_what_is_over_is_told_once_more() -> None:
    """The last word gives what was known, for whoever keeps a finished job's task."""
    memory = JournalState.fold(spelled("Entered Creating Created done"))

    known = memory.receive(Told(1, 9))

    assert ("task-1", True, True) == (known.task_id, known.told, known.over)
    assert {} == memory.live


@pytest.mark.parametrize(
    "line",
    [
        *("Uploaded", "Told", "done", "Entered Entered", "Entered Told", "Entered Saved"),
        *("Entered NotCreated", "Entered Created", "Entered Returned", "Entered Deleted"),
        *("Entered done", "Entered lost", "Entered doubt", "Entered Creating Uploaded"),
        *("Entered Creating done", "Entered Creating lost", "Entered Creating Told"),
        "Entered Creating Created Creating",
        "Entered Creating Created unsent",
        "Entered Creating Created doubt",
        "Entered Creating Created Told",
        "Entered Creating Created done Creating",
        "Entered Creating Created done Deleted",
        "Entered Creating Created done doubt",
        "Entered Creating Created failed Saved",
        "Entered failed Told Told",
        # Without a task there is no result.
        "Entered unsent done",
        "Entered Creating doubt done",
        "Entered Creating Created Returned failed done",
    ],
)
def test_words_that_cannot_follow_change_nothing(line: str) -> None:
    """Such a word raises, and the memory is as it was."""
    *before, last = spelled(line)
    memory = JournalState.fold(before)

    with pytest.raises(IllegalEntry, match=str(last.job)):
        memory.receive(last)

    assert JournalState.fold(before) == memory
    assert JournalState.fold(before).last == memory.last


@pytest.mark.parametrize("number", [0, -1])
def test_jobs_are_numbered_from_one(number: int) -> None:
    """No other number comes in."""
    with pytest.raises(IllegalEntry):
        JournalState.fold([Entered(number, 0, ORDER)])


@pytest.mark.parametrize("end", ["lost", "failed"])
def test_another_task_has_other_pictures(end: str) -> None:
    """A job that was saved and is created anew is neither saved nor deleted: its new copies are
    not deleted before its new pictures are on the disk.
    """
    line = f"Entered Creating Created done Saved Deleted {end} Creating Created done"

    memory = JournalState.fold(spelled(line, order(delete=True)))

    assert (False, False) == (memory.live[1].saved, memory.live[1].deleted)
    with pytest.raises(IllegalEntry):
        memory.receive(Deleted(1, 9))


def test_memories_are_compared_by_what_lives() -> None:
    """Two that know the same are equal, however they came to it; nothing else equals one."""
    told = JournalState.fold([*spelled("Entered failed Told"), Entered(2, 0, ORDER)])

    assert JournalState.fold([Entered(2, 0, ORDER)]) == told
    assert JournalState() != told
    assert told.live != told
    with pytest.raises(TypeError):
        hash(told)


def test_jobs_live_in_the_order_in_which_they_came() -> None:
    """Whatever is said of them later."""
    memory = JournalState.fold(Entered(number, 0, ORDER) for number in (2, 1, 3))
    memory.receive(Creating(1, 0))
    memory.receive(Uploaded(2, 0, "f"))

    assert [2, 1, 3] == list(memory.live)


class Histories(RuleBasedStateMachine):
    """Any words in any order, of which the illegal ones are refused; and what a disk would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = JournalState()
        self.said: list[JournalEntry] = []
        self.kept: list[JournalEntry] = []

    @rule(job=st.integers(1, 3), place=st.integers(0, 99))
    def says(self, job: int, place: int) -> None:
        """One of the words that may follow."""
        given = order(delete=place % 2 == 1, sure=place % 3 > 0)
        may = [word for word in words(job, place, given) if self._legal(word)]
        word = may[place % len(may)]
        known = self.memory.receive(word)
        self.said.append(word)
        self.kept.append(word)
        if known.over:
            self.kept = [kept for kept in self.kept if kept.job != job]

    def _legal(self, word: JournalEntry) -> bool:
        try:
            self.memory.after(word)
        except IllegalEntry:
            return False
        return True

    @rule(job=st.integers(1, 3))
    def is_told_nonsense(self, job: int) -> None:
        """Each of the words that may not follow."""
        before, last = dict(self.memory.live), self.memory.last
        for word in words(job):
            if not self._legal(word):
                with pytest.raises(IllegalEntry):
                    self.memory.receive(word)
        assert before == self.memory.live
        assert last == self.memory.last

    @invariant()
    def the_past_folds_to_the_present(self) -> None:
        assert self.memory == JournalState.fold(self.said)

    @invariant()
    def what_is_kept_folds_to_the_present(self) -> None:
        assert self.memory == JournalState.fold(decode(*encode(word)) for word in self.kept)
        assert list(self.memory.live) == list(JournalState.fold(self.kept).live)

    @invariant()
    def what_is_known_makes_sense(self) -> None:
        for known in self.memory.live.values():
            assert not known.over
            assert (known.phase in {Phase.DONE, Phase.ENDED}) == (known.how is not None)
            assert (known.phase is Phase.DONE) == (known.how == "done")
            if known.phase in {Phase.RUNNING, Phase.DONE}:
                assert known.task_id is not None
            if known.phase in {Phase.ENTERED, Phase.CREATING}:
                assert known.task_id is None
            assert known.saved or not known.deleted


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=examples(30), stateful_step_count=40)


# On the disk.


@given(any_words)
def test_words_come_back_as_they_were(word: JournalEntry) -> None:
    """What is taken apart is put together again, and is plain ASCII meanwhile."""
    job, at, kind, text = encode(word)

    assert word == decode(job, at, kind, text)
    assert (kind + text).isascii()


def test_every_kind_of_word_is_written_differently() -> None:
    """The table of words is complete, and a word's class is its kind."""
    assert set(WORDS) == {encode(word)[2] for word in words(1)}
    assert {type(word) for word in words(1)} == set(WORDS.values())


def facts(**changes: object) -> dict[str, object]:
    """An order as it is written, but for `changes`; `...` leaves a field out."""
    held = {**attrs.asdict(ORDER), **changes}
    return {name: value for name, value in held.items() if value is not ...}


@pytest.mark.parametrize(
    ("expected", "row"),
    [
        ("no number", (None, 1, "Told", "{}")),
        ("no number", (0, 1, "Told", "{}")),
        ("no number", (True, 1, "Told", "{}")),
        ("no number", (1, "1", "Told", "{}")),
        ("no number", (1, 1.0, "Told", "{}")),
        ("job 1 has a word of an unknown kind", (1, 1, "Bought", "{}")),
        ("job 1 has a word of an unknown kind", (1, 1, None, "{}")),
        ("job 1 has a word of an unknown kind", (1, 1, b"Told", "{}")),
        ("Told of job 3 is no JSON", (3, 1, "Told", "")),
        ("Told of job 3 is no JSON", (3, 1, "Told", "{")),
        ("Told of job 3 is no JSON", (3, 1, "Told", b"{}")),
        ("Told of job 3 is no JSON", (3, 1, "Told", "[" * 100_000)),
        ("Told of job 3 is no object", (3, 1, "Told", "[]")),
        ("Uploaded of job 3: file_id is no text", (3, 1, "Uploaded", "{}")),
        ("Created of job 3: task_id is no text", (3, 1, "Created", '{"task_id":""}')),
        ("Created of job 3: task_id is no text", (3, 1, "Created", '{"task_id":7}')),
        ("Ended of job 3: how is unknown", (3, 1, "Ended", '{"how":"well"}')),
        ("Ended of job 3: how is no text", (3, 1, "Ended", '{"how":null}')),
        ("Entered of job 3: order is no object", (3, 1, "Entered", "{}")),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_damage_is_named(expected: str, row: tuple[object, object, object, object]) -> None:
    """What is no word says what is wrong, and quotes nothing of it."""
    with pytest.raises(Damaged, match=expected) as caught:
        decode(*row)

    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ("identity is no text", {"identity": ...}),
        ("identity is no digest", {"identity": "zz"}),
        ("identity is no digest", {"identity": "a b "}),
        ("sure is neither true nor false", {"sure": 1}),
        ("stem is no text", {"stem": None}),
        ("feature is no text", {"feature": ""}),
        ("units is no number of units", {"units": "1"}),
        ("units is no number of units", {"units": True}),
        ("units is no number of units", {"units": math.nan}),
        ("units is no number of units", {"units": math.inf}),
        ("units is no number of units", {"units": -1}),
        ("units is no number of units", {"units": 10**400}),
        ("outputs is no number of pictures", {"outputs": 1.0}),
        ("outputs is no number of pictures", {"outputs": 0}),
        ("parameters are no pairs", {"parameters": ...}),
        ("parameters are no pairs", {"parameters": {}}),
        ("parameters are no pairs", {"parameters": ["ab"]}),
        ("parameters are no pairs", {"parameters": [["a", "b", "c"]]}),
        ("parameters are no pairs", {"parameters": [["a", None]]}),
        ("parameters are no pairs", {"parameters": [[1, "a"]]}),
        ("key is no text", {"key": ""}),
        ("key is no text", {"key": 7}),
        ("kind is unknown", {"kind": "Path"}),
        ("place is no text", {"place": []}),
        ("digest is no text", {"digest": 1}),
        ("save_to is no text", {"save_to": ""}),
        ("delete is neither true nor false", {"delete": None}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_damage_in_an_order_is_named(expected: str, change: dict[str, object]) -> None:
    """An order is taken as a whole or not at all."""
    text = json.dumps({"order": facts(**change)})

    with pytest.raises(Damaged, match=f"Entered of job 3: {expected}"):
        decode(3, 1, "Entered", text)


cells = json_values | st.binary() | st.sampled_from(sorted(WORDS)) | json_values.map(json.dumps)


@given(cells, cells, cells, cells)
@example(1, 1, "Entered", json.dumps({"order": facts(units=10**400)}))
def test_any_garbage_is_damage(job: object, at: object, kind: object, text: object) -> None:
    """Whatever stands in a row, it is a word or it is damaged."""
    try:
        word = decode(job, at, kind, text)
    except Damaged:
        return
    assert word == decode(*encode(word))


@given(st.sampled_from([field.name for field in attrs.fields(StoredJob)]), json_values)
def test_any_garbage_in_an_order_is_damage(name: str, value: object) -> None:
    """Whatever one field of an order holds, it is one that can be put to use, or is damaged."""
    try:
        word = decode(1, 1, "Entered", json.dumps({"order": facts(**{name: value})}))
    except Damaged:
        return
    assert isinstance(word, Entered)
    assert bytes.fromhex(word.order.identity)
    assert 0 <= word.order.units < math.inf
    assert word == decode(*encode(word))


@given(any_words, st.data())
def test_a_torn_record_is_damage_or_a_word(word: JournalEntry, data: st.DataObject) -> None:
    """A text that was cut off or overwritten is never half a word."""
    job, at, kind, text = encode(word)
    place = data.draw(st.integers(0, len(text) - 1))
    torn = data.draw(st.sampled_from([text[:place], text[:place] + "\0" + text[place + 1 :]]))

    with pytest.raises(Damaged):
        decode(job, at, kind, torn)


def known_places(memory: JournalState) -> Iterable[str]:
    return (repr(known) for known in memory.live.values())


def test_a_repr_tells_no_path_and_no_file() -> None:
    """What goes into logs names neither where a picture lies nor what it is called there."""
    shown = " ".join(known_places(JournalState.fold(spelled("Entered Uploaded"))))

    assert "/photos" not in shown
    assert "'file'" not in shown
