"""The harness judged by cases with a known answer: the same optimizer twice, a bad constant, a planted improvement."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.comparisons import regression

from optforge.baselines import BASELINES
from optforge.experiments.compare.measures import power
from optforge.experiments.compare.plan import Plan, Row
from optforge.experiments.compare.run import conduct
from optforge.experiments.compare.statistics import Verdict, compare_pairs
from optforge.primitives import Const, Instr, Program, print_program
from optforge.search.training.population.members import train_members
from optforge.search.training.train import train

ADAMW = BASELINES["adamw"].program
REPEATS, SEEDS = 100, 10


def rewritten(program: Program) -> Program:
    """The same rule in other words, so that rounding differs: the update is tripled and divided by three."""
    n = len(program.body)
    body = (*program.body, Instr("mul", (program.update, Const(3.0))), Instr("div", (n, Const(3.0))))
    return Program(program.state, program.hypers, body, n + 1, program.next_state)


@pytest.fixture(scope="module")
def runs() -> dict[str, np.ndarray]:
    """Test losses of real trainings, a hundred comparisons of ten seeds each: AdamW twice, and one that differs."""
    programs = {"adamw": ADAMW, "again": rewritten(ADAMW), "other": ADAMW.with_defaults(beta1=0.893)}
    members = [(program, 0.05) for program in programs.values()]
    found = train_members(regression(), members, range(5000, 5000 + REPEATS * SEEDS), splits=("test",)).losses["test"]
    return {name: losses.numpy().reshape(REPEATS, SEEDS) for name, losses in zip(programs, found, strict=True)}


def test_adamw_against_adamw_is_equivalent_in_real_trainings(runs: dict[str, np.ndarray]) -> None:
    assert np.any(runs["adamw"] != runs["again"])  # not the same numbers, or this would test nothing
    pairs = [compare_pairs({"a": a, "b": b})[0] for a, b in zip(runs["adamw"], runs["again"], strict=True)]
    assert sum(pair.verdict is Verdict.EQUIVALENT for pair in pairs) >= 95


def test_adamw_against_adamw_is_equivalent_in_noise() -> None:
    """As where sums are not computed in the same order every time: independent noise of 0.4 % on each run."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(REPEATS):
        hard = rng.lognormal(0.0, 0.3, SEEDS)
        a, b = (hard * (1 + rng.normal(0, 0.004, SEEDS)) for _ in range(2))
        found += compare_pairs({"a": a, "b": b})[0].verdict is Verdict.EQUIVALENT
    assert found >= 95


def test_two_optimizers_that_do_not_differ_are_rarely_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("bootstrap_interval", "detectable"):  # which no verdict looks at
        monkeypatch.setattr(f"optforge.experiments.compare.statistics.{slow}", lambda *_: math.nan)
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(400):
        pairs = compare_pairs({name: 1 + rng.normal(0, 0.05, SEEDS) for name in "abc"})
        told += any(pair.verdict in (Verdict.BETTER, Verdict.WORSE) for pair in pairs)
    assert told / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("seeds", [5, 10])
def test_planted_two_percent_is_found_with_the_promised_power(runs: dict[str, np.ndarray], seeds: int) -> None:
    """Real paired differences between two optimizers, shifted so that the true one is 2 % of the loss."""
    base, other = runs["adamw"], runs["other"]
    planted = other - other.mean() + 0.98 * base.mean()
    effect = 0.02 * base.mean()
    pairs = [compare_pairs({"planted": a[:seeds], "adamw": b[:seeds]}, smallest_effect=1e-4)[0]
             for a, b in zip(planted, base, strict=True)]  # fmt: skip
    found = np.mean([pair.verdict is Verdict.BETTER for pair in pairs])
    promised = power(float((planted - base).std(ddof=1)), seeds, effect)
    assert 0.2 < promised < 0.95  # neither empty nor a certainty
    assert abs(found - promised) < 3 * math.sqrt(promised * (1 - promised) / REPEATS)
    # each report's own promise, from the spread of its own seeds, is right on average
    own = np.mean([power(pair.spread, seeds, effect) for pair in pairs])
    assert abs(own - promised) < 0.15


def test_a_bad_constant_loses_through_the_whole_harness() -> None:
    """Tuned as AdamW is, in the learning rate alone, which cannot mend a weight decay of 20."""
    bad, task = ADAMW.with_defaults(weight_decay=20.0), regression()
    rows = tuple(Row(name, print_program(p), 0.05) for name, p in (("adamw", ADAMW), ("same", ADAMW), ("bad", bad)))
    plan = Plan(rows, ("regression",), trials=4, dimensions=1, seeds=6)
    (found,) = conduct(plan, train, lambda name: task, costs=False).comparisons
    verdicts = {(pair.first, pair.second): pair.verdict for pair in found.pairs}
    assert verdicts["same", "bad"] is verdicts["adamw", "bad"] is Verdict.BETTER
    losses = {name: [run.counted for run in found.entry(name).runs] for name in ("adamw", "same")}
    assert losses["adamw"] == losses["same"] and compare_pairs(losses)[0].verdict is Verdict.EQUIVALENT
    assert len({len(entry.tuning.trials) for entry in found.entries}) == 1
