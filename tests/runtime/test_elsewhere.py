"""The purchase of one job according to the rows of a ledger."""

import attrs
import pytest

from perfect_async._ledger.rows import key
from perfect_async._runtime.elsewhere import (
    LostCreation,
    Purchase,
    Recorded,
    Submission,
    bought,
    recorded,
)
from perfect_async.events import DoneRow, IntentRow

JOB = Submission("identity", "digest", "ai-smile", once=True)
LIVING = frozenset({"alive"})
NOW = 1_000_000_000
MINUTE = 60_000_000


def intent(state: str, *, member: str = "alive", age: int = 0, task_id: str = "") -> IntentRow:
    return IntentRow(member, age, "identity", "digest", "ai-smile", NOW - age, state, task_id)


def done(task_id: str = "done", age: int = 0) -> DoneRow:
    return DoneRow("identity", "digest", "ai-smile", task_id, NOW - age)


def said(*rows: IntentRow | DoneRow, job: Submission = JOB) -> tuple[Purchase, str, int] | None:
    found = bought(job, rows, LIVING, NOW)
    return None if found is None else (found.purchase, found.task_id, found.age)


def test_a_job_without_a_purchase() -> None:
    """A job without a row, or with a refused creation, is not bought."""
    assert said() is None
    assert said(intent("refused")) is None


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (intent("sent", age=5), (Purchase.SENT, "", 5)),
        (intent("sent", member="dead", age=5), (Purchase.IN_DOUBT, "", 5)),
        (intent("sent", age=6 * MINUTE), (Purchase.IN_DOUBT, "", 6 * MINUTE)),
        (intent("doubt", age=5), (Purchase.IN_DOUBT, "", 5)),
        (intent("accepted", task_id="task", age=5), (Purchase.CREATED, "task", 5)),
        (done(age=5), (Purchase.DONE, "done", 5)),
    ],
)
def test_each_state_of_a_creation(
    row: IntentRow | DoneRow, expected: tuple[Purchase, str, int]
) -> None:
    """Each state of a creation has its own result."""
    assert expected == said(row)


def test_the_newest_creation_decides() -> None:
    """A later creation decides, whatever the outcome of an older one."""
    old, new = intent("doubt", age=9), intent("accepted", task_id="new", age=5)

    assert (Purchase.CREATED, "new", 5) == said(old, new) == said(new, old)
    assert (Purchase.CREATED, "new", 5) == said(new, intent("refused", age=1))


def test_a_result_decides_first() -> None:
    """A finished task can be fetched even if a later creation is in doubt."""
    assert (Purchase.DONE, "b", 1) == said(done("a", 2), done("b", 1), intent("doubt"))


def test_consent_passes_over_doubts_only() -> None:
    """A caller who agrees to a second charge still gets a task that is known."""
    job = attrs.evolve(JOB, consents=True)

    assert said(intent("doubt"), intent("sent", member="dead"), job=job) is None
    assert (Purchase.SENT, "", 0) == said(intent("sent"), job=job)
    known = intent("accepted", task_id="task", age=9)
    assert (Purchase.CREATED, "task", 9) == said(intent("doubt"), known, job=job)


def test_a_result_that_is_gone_does_not_count() -> None:
    """A task that the vendor no longer has is ignored, as a creation and as a result."""
    rows = done("gone"), intent("accepted", task_id="gone")

    assert said(*rows, job=attrs.evolve(JOB, gone="gone")) is None
    assert said(*rows, job=attrs.evolve(JOB, gone="other")) is not None


def test_a_creation_names_its_process() -> None:
    """A creation names its process; a result does not."""
    created, fetched = bought(JOB, [intent("doubt")], (), NOW), bought(JOB, [done()], (), NOW)

    assert created is not None
    assert "alive" == created.member
    assert fetched is not None
    assert "" == fetched.member


# The task of a creation of a former process.

OWN = intent("sent", member="dead", age=MINUTE)
OTHER = intent("accepted", member="other", age=MINUTE - 1, task_id="other")


def recorded_for(*rows: IntentRow | DoneRow, name: str = key(OWN)) -> Recorded:
    return recorded(LostCreation(0, JOB, name), rows, OWN.sent)


def test_the_row_of_a_creation_names_its_task() -> None:
    """The task of the creation's own row is certain, whatever other rows there are."""
    own = attrs.evolve(OWN, state="accepted", task_id="own")

    assert Recorded(own) == recorded_for(own) == recorded_for(OTHER, own, done("own"))


@pytest.mark.parametrize("state", ["sent", "doubt"])
def test_a_row_without_an_answer_leaves_the_doubt(state: str) -> None:
    """Tasks of other rows belong to other creations."""
    assert Recorded() == recorded_for(attrs.evolve(OWN, state=state), OTHER, done("other"))


@pytest.mark.parametrize("row", [None, attrs.evolve(OWN, state="refused", task_id="own")])
def test_tasks_that_may_be_those_of_a_creation(row: IntentRow | None) -> None:
    """Without an own row, newer tasks of the job are candidates; none is certain."""
    old = intent("accepted", member="old", age=2 * MINUTE, task_id="old")
    gone = intent("refused", member="gone", task_id="gone")
    rows: list[IntentRow | DoneRow] = [
        OTHER,
        old,
        gone,
        done("other", 5),
        done("later", 5),
        intent("sent", member="x"),
    ]
    rows += [] if row is None else [row]

    assert Recorded(candidates=("other", "later")) == recorded_for(*rows)
    assert Recorded() == recorded_for()
    # The creation of a former version has no name.
    assert Recorded(candidates=("other",)) == recorded_for(OTHER, name="")


@pytest.mark.parametrize(
    "job",
    [
        attrs.evolve(JOB, identity="another"),
        attrs.evolve(JOB, digest="another"),
        attrs.evolve(JOB, feature="another"),
    ],
)
def test_another_job_has_no_task_for_a_creation(job: Submission) -> None:
    """Identity, digest and feature must all be the same."""
    own = attrs.evolve(OWN, state="accepted", task_id="own")

    assert Recorded() == recorded(LostCreation(0, job, key(OWN)), [own, OTHER], OWN.sent)
