"""What the SDK is for, whole: a bad night through client and sandbox, and the benchmarks."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import pytest
from _pytest.mark import ParameterSet

from benchmarks import table
from benchmarks.faults import night
from benchmarks.loads import BEYOND, FOOLING, LOADS, Load, bound
from benchmarks.model import Outcome, simulate
from benchmarks.table import COLUMNS, EVERY, Case, Run, fooled, one, ratios, ways
from perfect_async.models import Polling


def long(*values: object) -> ParameterSet:
    """Parameters that are used with `--long` only."""
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize(("seed", "jobs"), [(2, 90), long(1, 500), long(2, 500), long(3, 500)])
@pytest.mark.timeout(900)
async def test_a_bad_night_costs_only_the_tasks_that_never_end(seed: int, jobs: int) -> None:
    """Mixed jobs with engine errors, stuck tasks, hanging and failing polls all end as they
    should.
    """
    result = await night(seed, jobs)

    assert () == result.problems
    assert jobs == result.outcomes.total()
    assert {"Done", "TaskFailed", "TaskAbandoned"} == set(result.outcomes)
    assert 0.88 * jobs < result.outcomes["Done"]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("load", [0, long(1), long(8)], ids=lambda load: LOADS[load].name)
def test_steady_loads_lose_nothing(load: int, name: str) -> None:
    """With any insurance nothing is lost or refused, and the time is near the reference."""
    column = COLUMNS[name]

    run = one(Case(load, column.insured, column.warm, seed=7))

    assert (0, 0) == (run.lost, run.refused)
    assert 1.0 <= run.ratio < 1.25 * column.reference[load]
    assert len(LOADS[load].durations(random.Random(7))) + 150 * column.warm == run.tasks


def some(load: Load, insured: float, *, known: int = 0) -> Outcome:
    """The first forty jobs of a load."""
    rng = random.Random(7)
    durations = load.durations(rng)[:40]
    return simulate(
        durations,
        seed=7,
        polling=Polling(insured=insured),
        job=load.job,
        known=load.known(7, known),
        slowdown=load.slowdown and attrs.evolve(load.slowdown(rng), at=20),
    )


@pytest.mark.parametrize(
    "known", [pytest.param(0, id="cold"), pytest.param(60, id="warm", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("load", FOOLING, ids=lambda load: load.name)
def test_the_default_loses_nothing_up_to_120_s(load: Load, known: int) -> None:
    """Durations that change up to 120 s lose nothing, whatever was observed before."""
    run = some(load, Polling().insured, known=known)

    assert (0, 0) == (run.lost, run.refused)


@pytest.mark.parametrize("load", [BEYOND[0], *map(long, BEYOND[1:])], ids=lambda load: load.name)
def test_the_strict_setting_loses_nothing(load: Load) -> None:
    """If every task is insured until it is given up, no slowdown costs one."""
    run = some(load, Polling().give_up_after)

    assert (0, 0) == (run.lost, run.refused)


def test_the_durations_known_are_of_other_seeds() -> None:
    """150 are known from before the load, the same for a seed and never the load's own."""
    for load in EVERY:
        known = load.known(1)
        assert 150 == len(known)
        assert known == load.known(1) != load.known(2)
        assert not {*known} & {*load.durations(random.Random(1))} - {600.0, 240.0}
    assert 60 > max(FOOLING[1].known(1))


def test_a_column_names_its_failures(capsys: pytest.CaptureFixture[str]) -> None:
    """It names a mean over the tolerance, a loss and a refusal, and nothing that is better."""
    column = COLUMNS["strict"]
    rows = [[Run(1.04 * mean, 50, 0, 0)] for mean in column.reference]
    assert [] == ratios(column, rows)

    rows[0] = [Run(4.0, 50, 0, 0), Run(5.52, 50, 0, 0)]
    rows[1] = [Run(1.0, 200, 1, 0), Run(1.0, 200, 2, 4)]
    wrong = ratios(column, rows)

    assert [
        "strict, 50 smiles: 4.760, which is over 4.746",
        "strict, 200 smiles: 3 lost, 4 refused",
    ] == wrong
    assert (
        "50 smiles                   4.760  5.520       4.52     1.053" in capsys.readouterr().out
    )


def test_with_30_s_insured_only_the_small_batch_has_a_target() -> None:
    """The design's last column insured nothing, so only 50 smiles have a target."""
    column = COLUMNS["30"]
    rows = [[Run(1.64, 50, 0, 0)], *[[Run(9.0, 200, 0, 0)] for _ in LOADS[1:]]]

    assert [] == ratios(column, rows)
    assert 1 == len(ratios(column, [[Run(1.66, 50, 0, 0)], *rows[1:]]))


def test_losses_beyond_the_insurance_are_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """A slowdown beyond it is reported; a refusal is a failure."""
    told = ways(["strict", "cold", "30"])
    assert ["strict", "strict, warm", "insured 120, cold", "insured 30, warm"] == [
        column.title for column in told
    ]
    lossy = [[Run(9.0, 100, 5, 0)] for _ in told]

    wrong = fooled(told, [lossy for _ in (*FOOLING, *BEYOND)])

    assert 3 * len(FOOLING) + 2 * len(BEYOND) == len(wrong)
    assert [] == [line for line in wrong if line.startswith("insured 30")]
    assert "5 of     100" in capsys.readouterr().out
    refused = [[Run(9.0, 100, 0, 1)] for _ in told]
    assert 4 * len(EVERY[9:]) == len(fooled(told, [refused for _ in EVERY[9:]]))


def test_a_certificate_counts_the_tasks_of_every_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It uses seeds that the table does not use; one task in 10,000 may be lost."""
    asked: list[Case] = []
    lossy = {0}

    @contextmanager
    def made(cases: Sequence[Case]) -> Iterator[Iterator[Run]]:
        asked[:] = cases
        yield (Run(1.5, 400, int(case.seed == 10_000 and case.load in lossy), 0) for case in cases)

    monkeypatch.setattr(table, "measured", made)

    assert 0 == table.main(["--certify", "1000"])
    assert {(30, True)} == {(case.insured, case.warm) for case in asked}
    assert [20, 5, 1, 5, 1, 5, 5, 5] == [*Counter(case.load for case in asked).values()]
    assert 10_000 == min(case.seed for case in asked)
    assert "all                            47    18800     1       0.532" in capsys.readouterr().out
    lossy |= {1, 2}
    assert 1 == table.main(["--certify", "1000"])
    assert "not as it should be: more than 1 of 10,000" in capsys.readouterr().out


def test_an_unknown_column_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before anything is measured."""
    with pytest.raises(SystemExit) as left:
        table.main(["--columns", "strict,loose"])

    assert 2 == left.value.code
    assert "'loose' is none of strict, cold, warm, 30" in capsys.readouterr().err


def test_the_lower_bound_of_the_time() -> None:
    """A window holds 250 requests, a second five; the others wait for the next window."""
    assert 12.0 == bound([12.0])
    # 1 registration, 5 creations, 5 polls, at 5 a second: the longest task takes longer.
    assert 9.0 == bound([9.0] * 5)
    # 10 registrations, 200 creations and 400 polls: two windows are full, and 110 requests are
    # left.
    assert 600 + 110 / 5 == bound([15.0] * 200)
