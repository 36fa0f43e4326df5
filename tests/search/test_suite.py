"""Scores on several tasks: relative to a reference, on new seeds, whatever the scale of a program's updates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from optforge.baselines import BASELINES
from optforge.experiments.tasks import TASKS
from optforge.primitives import Builder, Program, parse_program
from optforge.search.fitness.evaluator import BOUND, FLOOR, Fitness, Status
from optforge.search.fitness.step_size import step_sizes
from optforge.search.fitness.suite import (
    RELATIVE_RATES,
    Suite,
    UnusableTask,
    best_of_neighbours,
    generation_seed,
)
from optforge.search.fitness.sweep import Sweep
from optforge.search.training.loop import evaluate, train_alone
from optforge.search.training.schedule import scheduled
from optforge.search.training.task import initial_model
from optforge.search.training.train import Engine
from optforge.search.training.trial import Outcome, Rule, Trial

ADAMW, LION, MUON = (BASELINES[name].program for name in ("adamw", "lion", "muon"))
SHRINKING = parse_program("optforge 1\nx0 = mul(p, 0.1)\nx1 = mul(g, 1e-6)\nx2 = add(x0, x1)\nupdate x2\n")
NAMES = ("proxy-teacher", "proxy-curves")


def sweeps(*names: str, steps: int = 30, engine: Engine | None = None) -> tuple[Sweep, ...]:
    return tuple(Sweep(TASKS[n], RELATIVE_RATES[1:4], (0,), steps, "cosine", 2, engine=engine) for n in names)


def made_up(by_rate: dict[str, tuple[float, ...]], start: float) -> Engine:
    """An engine whose losses are given by the ops of a program: lists for `sign` and for the reference."""

    def engine(trials: Sequence[Trial]) -> list[Outcome]:
        found, seen = [], Counter[Program | Rule]()
        for trial in trials:
            losses = by_rate["sign" if "sign" in {op for op, _ in trial.program.body} else "reference"]
            loss = losses[seen[trial.rule]]
            seen[trial.rule] += 1
            status = Status.OK if math.isfinite(loss) else Status.DIVERGED
            found.append(Outcome(status, loss={"valid": loss}, start=start))
        return found

    return engine


def scores(by_rate: dict[str, tuple[float, ...]]) -> Fitness:
    """Of Lion beside AdamW with these losses."""
    (found,) = Suite(sweeps("proxy-teacher", engine=made_up(by_rate, initial_loss("proxy-teacher"))), ADAMW)([LION])
    return found


def test_reference_scores_zero_and_order_is_kept() -> None:
    suite = Suite(sweeps(*NAMES), ADAMW)
    found = suite([LION, ADAMW, MUON])
    assert found[1].score == 0 and all(part.score == 0 for part in found[1].parts)
    again = suite([MUON, LION])
    assert [f.score for f in again] == pytest.approx([found[2].score, found[0].score], abs=1e-5)
    assert [part.task for part in found[0].parts] == list(NAMES)
    assert found[0].score == pytest.approx(sum(p.score for p in found[0].parts) / 2)


def test_population_agrees_with_the_plain_loop() -> None:
    both = [
        Suite(tuple(replace(s, precision="float64") for s in sweeps(*NAMES, steps=12, engine=engine)), ADAMW)(
            [LION, MUON]
        )
        for engine in (None, train_alone)
    ]
    for a, b in zip(*both, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-6)
        assert a.lr == pytest.approx(b.lr)


def test_every_generation_has_its_own_seed() -> None:
    suite = Suite(sweeps("proxy-teacher"), ADAMW)
    first, same, other = (suite([LION], n)[0] for n in (0, 0, 1))
    assert first == same and first.score != other.score
    assert len({generation_seed(s, n) for s in range(20) for n in range(-3, 200)}) == 20 * 203
    assert all(generation_seed(0, n) > 10_000 for n in range(-3, 200))  # comparisons use lower ones


@pytest.mark.parametrize("factor", [1e-6, 50.0])
def test_score_does_not_depend_on_the_scale_of_updates(factor: float) -> None:
    suite = Suite(sweeps(*NAMES), LION)
    plain, scaled = suite([ADAMW, scheduled(ADAMW, "constant", 30, scale=factor)])
    assert scaled.score == pytest.approx(plain.score, abs=1e-3)
    assert scaled.lr == pytest.approx(plain.lr / factor, rel=1e-3)


def test_score_is_the_log_ratio_at_each_ones_best_pair_of_rates() -> None:
    start = initial_loss("proxy-teacher")
    floor = FLOOR * start
    found = scores({"sign": (0.1, 0.2, 0.02), "reference": (0.3, 0.1, 0.4)})
    own = (math.log(0.2 + floor) + math.log(0.02 + floor)) / 2
    reference = (math.log(0.3 + floor) + math.log(0.1 + floor)) / 2
    assert found.score == pytest.approx(max(-BOUND, own - reference))
    assert found.parts[0].by_rate == (0.1, 0.2, 0.02) and found.edge


def test_diverged_rate_counts_as_the_start_and_hopeless_programs_as_the_bound() -> None:
    start = initial_loss("proxy-teacher")
    one = scores({"sign": (math.inf, 0.5, math.inf), "reference": (0.5, 0.5, 0.5)})
    expected = (math.log(start * (1 + FLOOR)) - math.log(0.5 + FLOOR * start)) / 2
    assert one.status is Status.OK and one.score == pytest.approx(expected)
    none = scores({"sign": (math.inf,) * 3, "reference": (0.01,) * 3})
    assert none.status is Status.DIVERGED and none.score == math.inf
    assert none.parts[0].score == BOUND and math.isnan(none.parts[0].lr)


def test_best_of_neighbours_ignores_a_lucky_point() -> None:
    assert best_of_neighbours([5.0, 1.0, 5.0, 2.0, 2.0, 5.0]) == (2.0, 3)
    assert best_of_neighbours([3.0, 2.0, 4.0]) == (2.5, 1)
    assert best_of_neighbours([7.0]) == (7.0, 0)


def test_program_that_fails_takes_nobody_with_it() -> None:
    b = Builder()
    bare = b.build(b.centralise(b.g))  # needs matrices, and has no fallback for biases
    good, bad = Suite(sweeps("proxy-teacher"), ADAMW)([LION, bare])
    assert good.status is Status.OK and bad.status is Status.FAILED and "fallback" in bad.reason


def test_reference_that_cannot_train_is_an_error() -> None:
    b = Builder()
    with pytest.raises(ValueError, match="the reference cannot be trained on proxy-teacher"):
        Suite(sweeps("proxy-teacher"), b.build(b.log(b.neg(b.abs(b.g)) - 1.0)))([LION])
    with pytest.raises(ValueError, match="at least one task"):
        Suite((), ADAMW)


def test_task_whose_loss_is_no_number_is_an_error() -> None:
    (sweep,) = sweeps("proxy-teacher")
    task = replace(sweep.task, loss=lambda outputs, targets: (outputs - targets).square().mean() - 100.0)
    with pytest.raises(UnusableTask, match="the loss of proxy-teacher before training must be positive, got -"):
        Suite((replace(sweep, task=task),), ADAMW)([LION])


def test_frozen_parameters_have_no_part_in_the_size_of_steps() -> None:
    def frozen() -> torch.nn.Module:
        model = TASKS["proxy-teacher"].model()
        for p in list(model.parameters())[:2]:
            p.requires_grad_(False)
        return model

    b = Builder()
    task = replace(TASKS["proxy-teacher"], model=frozen)
    p = torch.cat([p.flatten() for p in initial_model(task, 3).parameters() if p.requires_grad]).detach().double()
    (found,) = step_sizes(task, [b.build(b.sign(b.g))], 3, steps=1)
    assert found == pytest.approx(math.sqrt(len(p)) / float(p.norm()), rel=1e-6)


def test_step_size_of_sign_descent_is_the_root_of_the_number_of_parameters() -> None:
    b = Builder()
    task = TASKS["quadratic"]
    sign = b.build(b.sign(b.g))
    p = torch.cat([p.flatten() for p in initial_model(task, 3).parameters()]).detach().double()
    expected = math.sqrt(len(p)) / float(p.norm())
    c = Builder()
    nothing = c.build(c.g - c.g)
    assert step_sizes(task, [sign, nothing], 3) == pytest.approx([expected, 1.0], rel=1e-6)


def initial_loss(name: str) -> float:
    model = initial_model(TASKS[name], generation_seed(0, 0))
    return evaluate(model, TASKS[name], TASKS[name].data().valid)[0]


def test_steps_and_schedule_are_the_sweeps() -> None:
    (sweep,) = sweeps("proxy-teacher", steps=20)
    decayed, constant = (Suite((replace(sweep, schedule=name),), ADAMW)([LION])[0] for name in ("cosine", "constant"))
    assert decayed.parts[0].by_rate != constant.parts[0].by_rate


def test_cut_programs_keep_the_score_of_the_tasks_they_were_trained_on() -> None:
    whole = Suite(sweeps(*NAMES), ADAMW)([LION, SHRINKING, MUON])
    cut = Suite(sweeps(*NAMES), ADAMW, margins=((1, 0.4),))([LION, SHRINKING, MUON], bounds=[0.1] * 3)
    assert [len(f.parts) for f in cut] == [2, 1, 2]
    assert cut[1].score == pytest.approx(whole[1].parts[0].score) and cut[1].score > 0.5
    for a, b in ((cut[0], whole[0]), (cut[2], whole[2])):
        assert a.score == pytest.approx(b.score, abs=1e-4)
    one = Suite(sweeps(*NAMES), ADAMW, margins=((1, 0.0),))([LION, LION], bounds=[-1.0, math.inf])
    assert [len(f.parts) for f in one] == [1, 2]
    hopeless = Suite(sweeps(*NAMES), ADAMW, margins=((1, 0.0),))([SHRINKING], bounds=[math.inf])
    assert [len(f.parts) for f in hopeless] == [1]


def test_cut_of_a_program_does_not_depend_on_its_company() -> None:
    suite = Suite(sweeps(*NAMES), ADAMW, margins=((1, 0.02),))
    together = suite([LION, SHRINKING, MUON, ADAMW], bounds=[0.0] * 4)
    apart = [suite([program], bounds=[0.0])[0] for program in (LION, SHRINKING, MUON, ADAMW)]
    assert [len(f.parts) for f in together] == [len(f.parts) for f in apart]
    assert [f.score for f in together] == pytest.approx([f.score for f in apart], abs=1e-4)


def test_bounded_programs_are_trained_at_three_rates_of_later_tasks() -> None:
    names = ("proxy-teacher", "proxy-curves", "proxy-autoencoder", "proxy-deep")
    suite = Suite(
        tuple(Sweep(TASKS[n], RELATIVE_RATES, (0,), 30, "cosine", 2) for n in names), ADAMW, margins=((1, 1.0),)
    )
    (whole, _), (narrow, elite) = suite([LION, MUON]), suite([LION, MUON], bounds=[0.1, math.inf])
    trained = [[k for k, loss in enumerate(part.by_rate) if loss < math.inf] for part in narrow.parts]
    assert trained[:3] == [[0, 1, 2, 3, 4]] * 3
    assert trained[3] in ([0, 1, 2], [1, 2, 3], [2, 3, 4])
    for part, other in zip(narrow.parts, whole.parts, strict=True):
        known = [(a, b) for a, b in zip(part.by_rate, other.by_rate, strict=True) if a < math.inf]
        assert [a for a, _ in known] == pytest.approx([b for _, b in known], rel=1e-3)
    assert narrow.parts[3].score == pytest.approx(whole.parts[3].score, abs=0.01)
    assert all(loss < math.inf for part in elite.parts for loss in part.by_rate)
