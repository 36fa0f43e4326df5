"""The comparison harness: fair by construction, and right about optimizers whose rank is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from support.comparisons import regression

from optforge.baselines import BASELINES
from optforge.experiments.compare import batches, compare, ladder
from optforge.experiments.compare.comparison import LADDER, SEEDS, TUNE_SEEDS, Comparison, Protocol, finite_or_null
from optforge.experiments.compare.ladder import widen
from optforge.experiments.compare.statistics import Verdict
from optforge.experiments.programs import unique_names
from optforge.primitives import Builder, Kind, Program, ProgramOptimizer
from optforge.search.training import Task
from optforge.search.training.population import members as members_module
from optforge.search.training.task import batch_indices, initial_model

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program
NARROW = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


class Locked:
    """A split that must not be looked at."""

    def __len__(self) -> int:
        raise AssertionError("the test split was touched")

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("the test split was touched")


def rule(write: Callable[[Builder], object]) -> Program:
    b = Builder()
    return b.build(write(b))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result() -> Comparison:
    """Two AdamWs, one with a deliberately bad constant, and one rule that climbs."""
    bad = ADAMW.with_defaults(weight_decay=20.0)
    climb = rule(lambda b: -b.g)
    programs = [("adamw", ADAMW), ("adamw", ADAMW), ("bad", bad), ("climb", climb)]
    return compare(programs, regression(), ladder=NARROW, seeds=range(2000, 2006))


def test_adamw_against_itself_is_equivalent_and_differs_by_exactly_zero(result: Comparison) -> None:
    pair = next(p for p in result.pairs if (p.first, p.second) == ("adamw", "adamw (2)"))
    assert pair.difference == 0.0
    assert pair.verdict is Verdict.EQUIVALENT
    first, second = result.entry("adamw"), result.entry("adamw (2)")
    assert first.tuning == second.tuning and first.runs == second.runs


def test_bad_constant_is_found_worse_and_said_so(result: Comparison) -> None:
    pair = next(p for p in result.pairs if (p.first, p.second) == ("adamw", "bad"))
    assert pair.verdict is Verdict.BETTER and pair.interval.high < 0
    assert result.verdict.startswith("On regression, bad, best of 2 by tuning loss,")
    assert "is worse than adamw (by" in result.verdict


def test_climbing_counts_as_the_loss_before_training(result: Comparison) -> None:
    climb = result.entry("climb")
    assert climb.diverged == 6
    assert climb.mean == pytest.approx(sum(run.start for run in climb.runs) / 6)
    assert all(run.test > run.start or not math.isfinite(run.test) for run in climb.runs)
    assert "climb 6 of 6" in result.verdict


def test_all_start_from_the_same_weights_and_tune_on_the_same_rates(result: Comparison) -> None:
    assert len({tuple(run.start for run in e.runs) for e in result.entries}) == 1
    assert len({e.tuning.rates for e in result.entries}) == 1
    assert result.entry("climb").edge and not result.entry("adamw").edge
    for entry in result.entries:
        means = [sum(row) / len(row) for row in entry.tuning.counted]
        assert entry.lr == entry.tuning.rates[means.index(min(means))] and entry.tuning.loss == min(means)


def test_reported_run_equals_training_with_torch(result: Comparison) -> None:
    entry, task = result.entry("adamw"), regression()
    run = entry.runs[2]
    model = initial_model(task, run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=entry.lr)
    data = task.data()
    for indices in batch_indices(len(data.train), task.batch_size, task.steps, run.seed):
        inputs, targets = data.train.batch(indices)
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        test, valid = (float(task.loss(model(s.batch(torch.arange(32))[0]), s.batch(torch.arange(32))[1]))
                       for s in (data.test, data.valid))  # fmt: skip
    assert run.test == pytest.approx(test, rel=1e-4) and run.valid == pytest.approx(valid, rel=1e-4)


def test_state_is_that_of_the_optimizer_on_the_model_of_the_task() -> None:
    entrants = [(name, BASELINES[name].program) for name in ("adafactor", "adamw")]
    comparison = compare(entrants, regression(steps=5), ladder=NARROW, tune_seeds=(1,), seeds=(2, 3))
    for name, program in entrants:
        model = nn.Linear(6, 1)
        optimizer = ProgramOptimizer(model.parameters(), program)
        model(torch.ones(1, 6)).sum().backward()
        optimizer.step()
        held = sum(x.nbytes for state in optimizer.state.values() for key, x in state.items() if key != "step")
        assert held > 0 and comparison.entry(name).state_bytes == pytest.approx(held / 7)


def test_tuning_looks_at_tuning_seeds_and_validation_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[set[int], tuple[str, ...]]] = []
    original = members_module.train_members

    def spy(task: Task, members: object, seeds: object, **options: object) -> object:
        calls.append((set(seeds), tuple(options["splits"])))  # type: ignore[call-overload, arg-type]
        return original(task, members, seeds, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(members_module, "train_members", spy)
    compare([("adamw", ADAMW)], regression(steps=5), ladder=NARROW, tune_seeds=(7, 8), seeds=(9, 10, 11))
    *tuning, final = calls
    assert tuning and all(seeds <= {7, 8} and splits == ("valid",) for seeds, splits in tuning)
    assert final[0] == {9, 10, 11} and "test" in final[1]


def test_test_split_is_read_in_the_reported_runs_only() -> None:
    task = regression(Locked(), steps=5)
    protocol = Protocol(task, NARROW, (1,), (2,), 5)
    (tuning,) = ladder.tune([ADAMW], protocol, 7)
    assert all(math.isfinite(loss) for row in tuning.losses for loss in row)
    with pytest.raises(AssertionError, match="test split was touched"):
        compare([("adamw", ADAMW)], task, ladder=NARROW, tune_seeds=(1,), seeds=(2,))


def test_default_seeds_and_ladder() -> None:
    assert not set(SEEDS) & set(TUNE_SEEDS) and len(SEEDS) >= 10
    assert LADDER[0] == 1e-5 and LADDER[-1] == 1 and len(LADDER) == 21


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 2, 3)}, r"tuning has not seen; in both: \[1, 2\]"),
        ({"seeds": (5, 5)}, "no repeats"),
        ({"seeds": ()}, "at least one seed"),
        ({"ladder": (0.1, 1.0)}, "at least 3"),
        ({"ladder": (1.0, 0.1, 0.01)}, "ascend"),
        ({"ladder": (0.0, 0.1, 0.2)}, "positive"),
        ({"steps": 0}, "number of steps"),
    ],
)
def test_unsound_protocols_are_refused(changes: dict[str, object], message: str) -> None:
    good = {"task": regression(), "ladder": NARROW, "tune_seeds": (1, 2), "seeds": (3, 4), "steps": 5}
    with pytest.raises(ValueError, match=message):
        Protocol(**(good | changes))  # type: ignore[arg-type]


def test_widening_by_hand() -> None:
    quarter = tuple(10 ** (k / 4) for k in range(-8, 1))  # 0.01 … 1
    assert widen(quarter, {quarter[3]}) == ()
    assert widen(quarter, {quarter[-1]}) == pytest.approx([10**0.25, 10**0.5, 10**0.75, 10])
    assert widen(quarter, {quarter[0], quarter[3]}) == pytest.approx([10**-3, 10**-2.75, 10**-2.5, 10**-2.25])
    assert widen((1.0, 100.0, 10000.0), {1.0, 10000.0}) == (0.01, 1e6)


def test_ladder_is_widened_for_everyone_and_an_end_is_flagged() -> None:
    low = (1e-3, 3e-3, 1e-2)
    outcome = compare([("adamw", ADAMW), ("lion", LION)], regression(), ladder=low, tune_seeds=(0,), seeds=(1, 2))
    rates = outcome.entry("adamw").tuning.rates
    assert rates == outcome.entry("lion").tuning.rates
    assert len(rates) > 3 and rates[0] == 1e-3 and rates[-1] > 0.09
    assert not any(e.edge for e in outcome.entries)

    hopeless = compare([("adamw", ADAMW)], regression(), ladder=(1e-9, 1e-8, 1e-7), tune_seeds=(0,), seeds=(1, 2))
    assert hopeless.entry("adamw").edge and len(hopeless.entry("adamw").tuning.rates) == 5
    assert "adamw lies at the boundary of the widened learning-rate grid" in hopeless.verdict


def test_small_batches_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = Protocol(regression(steps=5), NARROW, (1, 2), (3,), 5)
    members = [(program, lr) for program in (ADAMW, LION) for lr in NARROW]

    def train(limit: int) -> tuple[batches.Results, list[int]]:
        monkeypatch.setattr(batches, "MAX_RUNS", limit)
        done: list[int] = []
        found = batches.train_all(
            protocol, members, (1, 2, 5), ("valid", "test"), 7, "", lambda what, d, t: done.append(d)
        )
        return found, done

    (whole, once), (parts, often) = train(128), train(4)
    assert once == [0, 30] and len(often) == 10 and often[-1] == 30
    for a, b in (
        (whole.start, parts.start),
        (whole.curve, parts.curve),
        *((whole.losses[n], parts.losses[n]) for n in ("valid", "test")),
    ):
        assert a.shape == b.shape
        assert b == pytest.approx(a, rel=1e-5)
    assert whole.curve.shape == (10, 3, 5) and whole.losses["test"].shape == (10, 3)


def test_programs_that_cannot_train_the_model_are_refused() -> None:
    b = Builder()
    slot = b.slot("rows", Kind.ROW)
    slot.next = b.lerp(slot, b.row_mean(b.g), 0.1)
    with pytest.raises(ValueError, match=r"mine works on rows and columns, but the model has .* shape \(1,\)"):
        compare([("mine", b.build(b.g * slot))], regression(), ladder=NARROW)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([], regression())


def test_what_others_are_tested_against_is_a_reference_also_with_tuned_constants() -> None:
    tuned = BASELINES["adamw"].program.with_defaults(eps=1e-6)
    programs = [("found 1", BASELINES["lion"].program), ("found 2", BASELINES["sgd"].program), ("adamw", tuned)]
    found = compare(programs, regression(), ladder=(1e-3, 1e-2, 1e-1), seeds=(5, 6), steps=3, against=("adamw",))
    assert [e.reference for e in found.entries] == [False, False, True]
    assert "best of 2 by tuning loss" in found.verdict and "adamw (by" in found.verdict


def test_names_are_made_unique() -> None:
    assert unique_names(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


def test_numbers_that_are_not_finite_become_null() -> None:
    assert finite_or_null({1: (math.nan, [math.inf, 2.0]), "x": None}) == {"1": [None, [None, 2.0]], "x": None}
