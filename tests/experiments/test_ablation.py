"""Ablation finds statements without effect, and keeps those that matter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support.evaluators import SMALL

from optforge.baselines import BASELINES
from optforge.experiments.compare.ablation import ablate
from optforge.primitives import Builder, Program
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status
from optforge.search.fitness.sweep import Sweep

LION = BASELINES["lion"].program


def test_a_planted_statement_without_effect_goes_and_the_sign_stays() -> None:
    b = Builder()
    m = b.slot("m")
    clipped = b.clip(b.g, 1e6)  # never active
    m.next = b.lerp(m, clipped, 0.1)
    program = b.build(b.sign(m.next))
    evaluator = Sweep(SMALL, rates=(1e-3, 3e-3, 1e-2), seeds=(0, 1, 2, 3), steps=40, precision="float64")
    found = ablate(program, evaluator)
    by_op = {e.statement.split(" = ")[1].split("(")[0]: e for e in found.effects}
    assert by_op["clip"].difference == pytest.approx(0, abs=1e-12)
    assert by_op["clip"].harmless
    assert by_op["sign"].difference > 0.01 and not by_op["sign"].harmless
    assert any("clip" in text for text in found.removed)
    assert "sign" in str(found.program) and "clip" not in str(found.program)


def fixed(losses: dict[int, tuple[float, ...]]) -> Evaluator:
    """An evaluator whose losses depend on the number of statements alone."""

    def evaluate(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        values = [losses.get(len(p.body), (float("inf"),) * 3) for p in programs]
        return [
            Fitness(sum(v) / len(v), Status.OK if v[0] < 1e9 else Status.DIVERGED, "toy", by_seed=v) for v in values
        ]

    return evaluate


def test_an_insignificant_but_large_loss_is_not_accepted() -> None:
    full = len(LION.body)
    noisy = fixed({full: (1.0, 1.0, 1.0), full - 1: (0.5, 0.9, 9.0), full - 2: (0.5, 0.9, 9.0)})
    found = ablate(LION, noisy)
    assert found.removed == () and found.program == LION and found.interval is None
    assert all(e.interval is None or e.interval.low <= 0 for e in found.effects)


def test_a_program_that_does_not_train_and_a_single_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="does not train: toy"):
        ablate(LION, fixed({}))
    with pytest.raises(ValueError, match="at least two"):
        ablate(LION, fixed({len(LION.body): (1.0,)}))


def test_a_statement_that_could_not_be_evaluated_is_not_said_to_be_needed_for_training() -> None:
    def evaluate(programs: Sequence[Program]) -> list[Fitness]:
        whole = Fitness(1.0, Status.OK, by_seed=(1.0, 1.0, 1.0))
        return [
            whole if len(p.body) == len(LION.body) else Fitness(float("inf"), Status.FAILED, "memory ran out")
            for p in programs
        ]

    found = ablate(LION, evaluate)
    assert {(e.failed, e.interval, e.harmless) for e in found.effects} == {("memory ran out", None, False)}


def two_needed(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
    """Worse only if both statements of a pair that do the same are missing."""
    found = []
    for program in programs:
        ops = [op for op, _ in program.body]
        loss = 1.0 if "sign" in ops or "tanh" in ops else 2.0
        found.append(Fitness(loss, Status.OK, by_seed=(loss, loss + 1e-4, loss - 1e-4)))
    return found


def test_of_two_statements_that_do_the_same_one_stays() -> None:
    b = Builder()
    program = b.build(b.abs(b.tanh(b.sign(b.cube(b.g)))))
    found = ablate(program, two_needed)
    assert all(effect.harmless for effect in found.effects)
    left = [op for op, _ in found.program.body]
    assert len(left) == 1 and left[0] in ("sign", "tanh")
    assert len(found.removed) == 3


def test_a_matrix_statement_can_go_and_the_fallback_stays() -> None:
    muon = BASELINES["muon"].program
    found = ablate(muon, fixed({n: (1.0, 1.0, 1.0) for n in range(1, 40)}))
    assert "orthogonalise" not in str(found.program)
    assert found.program.fallback == muon.fallback or not found.program.needs_matrix
