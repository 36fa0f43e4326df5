"""The comparison harness: fair by construction, and right about optimizers whose rank is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.comparisons import regression
from torch import nn

from optforge.baselines import BASELINES
from optforge.experiments.compare import compare
from optforge.experiments.compare.comparison import SEEDS, TUNE_SEEDS, Comparison, Protocol
from optforge.experiments.compare.plan import FACTORS, Plan, Row
from optforge.experiments.compare.reduction import tuning
from optforge.experiments.compare.run import conduct, rows
from optforge.experiments.compare.statistics import Verdict, compare_pairs
from optforge.experiments.errors import FailedError
from optforge.experiments.files import finite_or_null
from optforge.experiments.programs import unique_names
from optforge.primitives import Builder, Kind, Program, ProgramOptimizer, print_program
from optforge.search.training.asking import answer
from optforge.search.training.task import batch_indices, initial_model
from optforge.search.training.train import train
from optforge.search.training.trainer import Trainer
from optforge.search.training.trial import Outcome, Trial

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program
SMALL: dict[str, Any] = {"trials": 4, "dimensions": 1, "schedule": "constant", "warmup": 0.0}


class Locked:
    """A split that must not be looked at."""

    def __len__(self) -> int:
        raise AssertionError("the test split was touched")

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("the test split was touched")


def rule(write: Callable[[Builder], object]) -> Program:
    b = Builder()
    return b.build(write(b))  # type: ignore[arg-type]


def of(*entrants: tuple[str, Program], task: Any = None, **settings: Any) -> Comparison:
    """The comparison on one task."""
    (found,) = compare(*entrants, tasks=task or regression(), costs=False, **(SMALL | settings)).comparisons
    return found


@pytest.fixture(scope="module")
def result() -> Comparison:
    """Two AdamWs, one with a deliberately bad constant, and one rule that climbs."""
    bad = ADAMW.with_defaults(weight_decay=20.0)
    climb = rule(lambda b: -b.g)
    return of(("adamw", ADAMW), ("adamw", ADAMW), ("bad", bad), ("climb", climb), trials=8, seeds=6)


def test_adamw_against_itself_is_equivalent_and_differs_by_exactly_zero(result: Comparison) -> None:
    first, second = result.entry("adamw"), result.entry("adamw (2)")
    (pair,) = compare_pairs({entry.name: [run.counted for run in entry.runs] for entry in (first, second)})
    assert pair.difference == 0.0 and pair.verdict is Verdict.EQUIVALENT
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


def test_all_start_from_the_same_weights_and_tune_at_the_same_places(result: Comparison) -> None:
    assert len({tuple(run.start for run in e.runs) for e in result.entries}) == 1
    assert len({len(e.tuning.trials) for e in result.entries}) == 1
    for entry in result.entries:
        best = min(entry.tuning.trials, key=lambda trial: trial.loss)
        assert (entry.lr, entry.tuning.loss) == (best.values["lr"], best.loss)
        assert entry.tuning.rates == pytest.approx([entry.lr * factor for factor in FACTORS])


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
    comparison = of(*entrants, task=regression(steps=5), trials=1, seeds=2, widenings=0)
    for name, program in entrants:
        model = nn.Linear(6, 1)
        optimizer = ProgramOptimizer(model.parameters(), program)
        model(torch.ones(1, 6)).sum().backward()
        optimizer.step()
        held = sum(x.nbytes for state in optimizer.state.values() for key, x in state.items() if key != "step")
        assert held > 0 and comparison.entry(name).state_bytes == pytest.approx(held / 7)


def test_tuning_looks_at_tuning_seeds_and_validation_data_alone() -> None:
    asked: list[Trial] = []

    def spy(trials: Sequence[Trial]) -> list[Outcome]:
        asked.extend(trials)
        return train(trials)

    of(("adamw", ADAMW), ("lion", LION), task=regression(steps=5), seeds=3, train=spy)
    reported = [trial for trial in asked if "test" in trial.splits]
    assert {trial.seed for trial in reported} == set(SEEDS[:3]) and len(reported) == 6
    assert {trial.seed for trial in asked if trial not in reported} == set(TUNE_SEEDS)
    assert all(trial.splits == ("valid",) for trial in asked if trial not in reported)


def test_test_split_is_read_in_the_reported_runs_only() -> None:
    task = regression(Locked(), steps=5)
    plan = Plan(rows([("adamw", ADAMW)]), (task.name,), **SMALL)
    tuned = answer(tuning(plan, plan.protocol(task, 1.0)), train)
    assert all(math.isfinite(loss) for setting in tuned.settings[0] for loss in setting.losses)
    with pytest.raises(FailedError, match=r"a run on .* broke.*test split was touched"):
        of(("adamw", ADAMW), task=task)


def test_default_seeds() -> None:
    assert not set(SEEDS) & set(TUNE_SEEDS) and len(SEEDS) >= 10


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
    good = {"task": regression(), "ladder": FACTORS, "tune_seeds": (1, 2), "seeds": (3, 4), "steps": 5}
    with pytest.raises(ValueError, match=message):
        Protocol(**(good | changes))  # type: ignore[arg-type]


def test_ranges_are_widened_for_everyone_and_an_end_is_flagged() -> None:
    both = tuple(Row(name, print_program(BASELINES[name].program), 1e-6) for name in ("adamw", "lion"))
    plan, task = Plan(both, ("regression",), trials=16, dimensions=1, tune_seeds=1, seeds=2), regression()
    tuned = answer(tuning(plan, plan.protocol(task, 1.0)), train)
    widest = answer(tuning(replace(plan, widenings=9), plan.protocol(task, 1.0)), train)
    for found, most in ((tuned, 2), (widest, 9)):
        counts = {len(settings) for settings in found.settings}
        assert len(counts) == 1 and 16 < counts.pop() <= 16 + most * plan.extra
    assert tuned.at_edge(0) == ("lr",) and not widest.at_edge(0)
    assert widest.winner(0).loss < tuned.winner(0).loss
    (found,) = conduct(plan, train, lambda name: task, costs=False).comparisons
    assert found.entry("adamw").edge and "learning rate of adamw" in found.verdict
    assert "lies at the boundary of the widened ranges" in found.verdict


def test_small_batches_give_the_same_numbers() -> None:
    seen: list[tuple[int, int]] = []
    entrants, task = (("adamw", ADAMW), ("lion", LION)), regression(steps=5)
    whole = of(*entrants, task=task, seeds=3)
    parts = of(*entrants, task=task, seeds=3, train=Trainer(progress=lambda *now: seen.append(now), most=4))
    assert seen[0] == (0, 16) and (16, 16) in seen and len(seen) > 8
    for a, b in zip(whole.entries, parts.entries, strict=True):
        assert a.tuning.loss == pytest.approx(b.tuning.loss, rel=1e-5)
        for mine, other in zip(a.runs, b.runs, strict=True):
            assert (mine.start, mine.test, *mine.curve) == pytest.approx(
                (other.start, other.test, *other.curve), rel=1e-5
            )


def test_programs_that_cannot_train_the_model_are_refused() -> None:
    b = Builder()
    slot = b.slot("rows", Kind.ROW)
    slot.next = b.lerp(slot, b.row_mean(b.g), 0.1)
    with pytest.raises(ValueError, match=r"mine works on rows and columns, but the model has .* shape \(1,\)"):
        of(("mine", b.build(b.g * slot)))
    with pytest.raises(ValueError, match="nothing to compare"):
        of()


def test_names_are_made_unique() -> None:
    assert unique_names(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


def test_numbers_that_are_not_finite_become_null() -> None:
    assert finite_or_null({1: (math.nan, [math.inf, 2.0]), "x": None}) == {"1": [None, [None, 2.0]], "x": None}
