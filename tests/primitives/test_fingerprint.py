"""Fingerprints: one at a time and many together say the same, and what the interpreter says."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import programs, random_gradients, seeds, seen_in_update, train, value_of_kind
from torch import Tensor

from optforge.baselines import BASELINES
from optforge.experiments.programs.random_programs import random_program
from optforge.primitives import Builder, Const, Instr, Kind, Program, Slot, subset
from optforge.primitives.analysis.fingerprint import Behaviour, behave, behave_many, probes
from optforge.primitives.backends.interpret import Simulation
from optforge.primitives.backends.op_loops import SHAPE, calls_of
from optforge.primitives.backends.together import Together
from optforge.primitives.op import Op
from optforge.primitives.ops import OPS
from optforge.search.space.mutation import Space, mutate

LION, ADAMW = BASELINES["lion"].program, BASELINES["adamw"].program


@given(st.lists(programs(), min_size=1, max_size=8))
@settings(max_examples=50)
def test_many_together_say_what_each_says_alone(several: list[Program]) -> None:
    assert behave_many(several) == [behave(p) for p in several]


def test_a_thousand_relatives_together() -> None:
    """Bits must not depend on what was computed before or beside a program: over the whole table."""
    rng, space = random.Random(5), Space(subset("all"))
    several = [random_program(rng, subset("all")) for _ in range(500)]
    program = ADAMW
    for i in range(500):
        program, _ = mutate(program if i % 20 else ADAMW, space, rng)
        several.append(program)
    fresh = Together(probes())
    for program, ran in zip(several, fresh(several), strict=True):
        for first, second in zip(ran, Together(probes())([program])[0], strict=True):
            np.testing.assert_array_equal(first, second)


def test_order_and_repetition() -> None:
    assert behave_many([]) == []
    assert behave_many([LION, ADAMW, LION]) == [behave(LION), behave(ADAMW), behave(LION)]


def test_a_graph_that_grows_too_large_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optforge.primitives.backends.together._MOST", 1)
    together = Together(probes())
    first = together([LION, ADAMW])
    assert all(np.array_equal(a.updates, b.updates) for a, b in zip(together([LION, ADAMW]), first, strict=True))


def test_numbers_are_not_taken_for_statements() -> None:
    """In the graph of all programs, the literal 1.0 and the first statement must stay two things."""
    several = []
    for value in range(40):
        b = Builder()
        several.append(b.build(b.g * float(value) + b.sign(b.neg(b.sin(b.g)))))
    assert len({x.fingerprint for x in behave_many(several)}) == 40


@pytest.mark.parametrize("op", sorted(OPS))
def test_ops_mean_in_cpp_what_they_mean_in_torch(op: str) -> None:
    """On all kinds of arguments, and where they are infinite or no numbers."""
    for kinds in OPS[op].result:
        b = Builder()
        args = [value_of_kind(b, kind) for kind in kinds]
        if all(kind is Kind.TENSOR for kind in kinds):
            args = [b.g, b.p, b.lr * b.p][: len(args)]
        program = b.build(seen_in_update(b, b.op(op, *args), OPS[op].result[kinds]))
        together = Together(probes())
        (found,) = together([program])
        expected = together.alone(program).updates
        # 1e-14: lerp cancels, and torch fuses its multiplication with its addition
        np.testing.assert_allclose(found.updates, expected, rtol=1e-12, atol=1e-14)


def test_without_a_compiler_torch_runs_each(monkeypatch: pytest.MonkeyPatch) -> None:
    several = [ADAMW, LION, BASELINES["adafactor"].program]
    compiled = Together(probes())(several)
    monkeypatch.setattr("optforge.primitives.backends.together.loops", lambda: None)
    for first, second in zip(compiled, Together(probes())(several), strict=True):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def interpreted(program: Program) -> list[Tensor]:
    """Updates on the probes as the interpreter gives them."""
    simulation = Simulation(program)
    return [simulation.step(signals).update.expand(SHAPE) for signals in probes()]


@given(programs(max_body=6, fallback=False))
@settings(max_examples=80)
def test_agrees_with_the_interpreter(program: Program) -> None:
    (ran,) = Together(probes())([program])
    for update, expected in zip(ran.updates, interpreted(program), strict=True):
        if expected.isfinite().all() and expected.abs().max() < 1e6:  # beyond lie the sines of huge numbers
            np.testing.assert_allclose(update, expected, rtol=1e-7, atol=1e-9)


@given(seeds)
@settings(max_examples=10)
def test_follows_its_own_updates(seed: int) -> None:
    """With `follow`, the run is a training run."""
    start, *gradients = random_gradients(SHAPE, 12, seed)
    several = [LION.with_defaults(weight_decay=0.1), ADAMW]
    steps = []
    for step, g in enumerate(gradients, 1):
        numbers = {"lr": 0.01, "step": step, "progress": step / 100, "global_norm": float(g.norm())}
        steps.append({"g": g, "p": start} | {n: torch.tensor(x, dtype=torch.float64) for n, x in numbers.items()})
    for program, ran in zip(several, Together(steps, follow=True)(several), strict=True):
        p = start.clone()
        for update, expected in zip(ran.updates, train(program, start, gradients).parameters, strict=True):
            p = p - 0.01 * torch.from_numpy(update)
            torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-13)


def test_names_order_and_dead_code_do_not_matter() -> None:
    first = Program((Slot("a"), Slot("b", init="p")), (), (Instr("add", ("a", "b")),), 0, ("g", "b"))
    second = Program(
        (Slot("y", init="p"), Slot("dead", Kind.ROW), Slot("z")), (),
        (Instr("row_mean", ("g",)), Instr("add", ("y", "z"))), 1, ("y", 0, "g"),
    )  # fmt: skip
    assert behave(first) == behave(second)
    assert behave(first).finite


def test_rounding_does_not_matter_but_a_billionth_does() -> None:
    def scaled(*factors: float) -> Behaviour:
        b = Builder()
        update = b.g
        for factor in factors:
            update = update * factor
        return behave(b.build(update))

    assert scaled(0.1, 0.3) == scaled(0.3, 0.1)
    assert scaled(0.03) != scaled(0.03 * (1 + 1e-9))


def test_a_learning_rate_factor_changes_the_fingerprint_but_not_the_direction() -> None:
    def adam(rate: float, size: float, power: float = 1.0) -> Behaviour:
        b = Builder()
        m, v = b.slot("m"), b.slot("v")
        m.next, v.next = b.lerp(m, b.g * size, 0.1), b.lerp(v, b.square(b.g), 0.01)
        return behave(b.build(m.next / (b.sqrt(v.next) ** power + 1e-8) * rate))

    first, others = adam(1.0, 1.0), [adam(3.7, 1.0), adam(1.0, 1e-3), adam(0.1, 10.0)]
    assert len({x.fingerprint for x in (first, *others)}) == 4 and first.finite
    assert {x.direction for x in others} == {first.direction}
    for different in (adam(-1.0, 1.0), adam(1.0, 1.0, 1.001), behave(ADAMW)):
        assert different.direction != first.direction


def test_a_program_that_reads_the_rate_is_not_the_same_at_another() -> None:
    def decayed(size: float) -> Behaviour:
        b = Builder()
        return behave(b.build((b.g + b.lr * b.p) * size))

    assert decayed(1.0).direction != decayed(2.0).direction


def test_zero_has_no_sign() -> None:
    b = Builder()
    c = Builder()
    assert behave(b.build(b.g * 0.0)) == behave(c.build(c.neg(c.g * 0.0)))


@pytest.mark.parametrize("op", ["log", "reciprocal", "arccosh"])
def test_what_is_not_finite_is_told(op: str) -> None:
    p = Program((), (), (Instr(op, ("g",)), Instr("add", (0, "g"))), 1, ())
    assert not behave(p).finite
    assert not behave_many([p])[0].finite
    safe = Program((), (), (*p.body, Instr("mul", ("g", Const(2.0)))), 2, (), p)
    assert not behave(safe).finite, "nor is one whose fallback is not"


def test_ops_of_four_arguments_are_left_to_torch() -> None:
    row = Op("sum4", 4, "{0} + {1} + {2} + {3}", None, domain=("real",) * 4, source="test")
    assert calls_of(row) == [] and calls_of(OPS["lerp"]) == [("lerp", ())]
