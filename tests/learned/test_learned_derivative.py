"""Derivatives of programs against torch.func, forward and reverse, in float64."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from support.strategies import MATRIX_SHAPES, programs, random_inputs, seeds, seen_in_update

from optforge.baselines import BASELINES
from optforge.learned.derivative import Extended, derivative, differentiate
from optforge.primitives import OPS, Builder, Kind, Op, Program, ProgramError, execute, parse_program, print_program
from optforge.primitives.backends.interpret import initial_slot
from optforge.primitives.backends.source import compile_step
from optforge.primitives.ops import DOMAINS, register

with warnings.catch_warnings():  # torch sets up forward mode with what it has itself deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.func.jvp(torch.square, (torch.ones(()),), (torch.ones(()),))


@pytest.mark.parametrize("name", sorted(OPS))
def test_each_row(name):
    """All arguments move at once, each by a direction of its own: f(a + t·d), at t = 0, against jvp."""
    for kinds in OPS[name].result:
        if len(set(kinds)) == 1 or OPS[name].reduces:
            check_derivative(OPS[name], kinds)


def check_derivative(row: Op, kinds: Sequence[Kind]) -> None:
    generator = torch.Generator().manual_seed(1)
    args = [
        DOMAINS[d](torch.randn(k.shape((3, 4)), generator=generator).double())
        for d, k in zip(row.domain, kinds, strict=True)
    ]
    if row.name == "pow":
        args[0] = args[0].abs() + 0.1
    if row.name == "exp_clip":
        args[0] *= 8  # it clips far out
    if row.name.startswith("inverse_root"):
        args[0] = args[0] @ args[0].T + torch.eye(len(args[0]))
    moves = [torch.randn(a.shape, generator=generator).double() for a in args]

    b = Builder()
    slots = [b.slot(f"a{i}", k) for i, k in enumerate(kinds)]
    dots = [b.slot(f"d{i}", k) for i, k in enumerate(kinds)]
    for slot in (*slots, *dots):
        slot.next = slot
    result = row.result[tuple(kinds)]
    program = b.build(b.g + seen_in_update(b, b.op(row.name, *slots), result))
    live = Extended(Program(program.state, (), program.body, program.update, program.next_state))
    found = differentiate(live, "lr", {f"a{i}": live.slots[f"d{i}"] for i in range(len(kinds))})
    value = found.get(live.update.arg)
    differential = live.build(live.g * 0.0 if value is None else live.g * 0.0 + value)

    expected = torch.func.jvp(lambda *a: row.function(*a, dims=(0, 1)), tuple(args), tuple(moves))[1]
    p = torch.randn(3, 4, generator=generator).double()
    inputs = {"g": torch.zeros(3, 4, dtype=torch.float64), "p": p, "lr": torch.ones(()).double()}
    inputs |= {f"a{i}": a for i, a in enumerate(args)} | {f"d{i}": m for i, m in enumerate(moves)}
    got = execute(differential, inputs).update
    seen = {Kind.LEFT: lambda: expected @ p, Kind.RIGHT: lambda: p @ expected}.get(result, lambda: p * expected)()
    torch.testing.assert_close(got, seen.detach(), rtol=1e-9, atol=1e-12)


SINC = Op("sinc", 1, "torch.sinc({0})", None, domain=("real",), source="sin(pi x) / (pi x)", flops=20)


def test_a_row_from_elsewhere_needs_no_derivative_of_its_own():
    register([SINC])
    try:
        b = Builder()
        a = b.hyper("a", 0.3)
        program = b.build(b.sinc(a * b.g) * b.p)
        first = derivative(program, "a")
        second = derivative(first, "a")
        assert {"jvp_sinc"} <= {op for op, _ in first.body} and "jvp_sinc" not in OPS
        g, p = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        z = torch.pi * 0.3 * g
        slope = torch.pi * g * (z.cos() / z - z.sin() / z**2) * p
        inputs = {"g": g, "p": p, "a": torch.tensor(0.3, dtype=torch.float64)}
        torch.testing.assert_close(execute(first, inputs).update, slope, rtol=1e-9, atol=1e-12)
        curve = (torch.pi * g) ** 2 * (-z.sin() / z - 2 * z.cos() / z**2 + 2 * z.sin() / z**3) * p
        torch.testing.assert_close(execute(second, inputs).update, curve, rtol=1e-8, atol=1e-10)
        assert parse_program(print_program(first)) == first, "its text names the row that others find, too"
        stack = execute(first, {"g": g[:, None], "p": p[:, None], "a": inputs["a"]}, dims=(1,)).update
        torch.testing.assert_close(stack[:, 0], slope, rtol=1e-9, atol=1e-12)
    finally:
        del OPS["sinc"]
    with pytest.raises(ProgramError, match="unknown op 'jvp_sing'"):
        parse_program("optforge 1\nx0 = jvp_sing(g, p)\nupdate x0")
    assert OPS["jvp_orthogonalise"].needs_matrix and not OPS["jvp_orthogonalise"].sympy


def test_wrong_derivatives_are_found_by_jvp():
    wrong = dataclasses.replace(OPS["tanh"], derivative=lambda b, r, x: (1.0 - r,))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPS, "tanh", wrong)
        check_derivative(OPS["tanh"], (Kind.TENSOR,))
    with pytest.raises(ProgramError, match="op 'sinc' must have a function as its derivative, or None, not 3"):
        register([dataclasses.replace(SINC, derivative=3)])


def _update(program: Program, inputs: dict[str, torch.Tensor], shape: tuple[int, ...]):
    """The update as a function of everything that it reads."""
    run = compile_step(program)
    return lambda values: run({**inputs, **values}, range(len(shape))).update.expand(shape)


@settings(max_examples=60)
@given(programs(ops=sorted(OPS), fallback=False), seeds)
def test_random_programs(program, seed):
    """With respect to each hyperparameter: forward mode, and reverse mode under a random weighting."""
    shape = MATRIX_SHAPES[seed % len(MATRIX_SHAPES)]
    inputs = random_inputs(program, shape, seed)
    for name, default in program.defaults().items():
        f = _update(program, inputs, shape)
        value = {name: torch.tensor(default, dtype=torch.float64)}
        _, expected = torch.func.jvp(f, (value,), ({name: torch.ones((), dtype=torch.float64)},))
        try:
            result = derivative(program, name)
        except ProgramError as error:
            assert "does not depend" in str(error)
            assert not expected.nan_to_num(0).any()
            continue
        got = execute(result, inputs, range(len(shape))).update.expand(shape)
        w = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view(shape)
        back = torch.func.grad(lambda v, f=f, w=w: (w * f(v)).sum())(value)[name]
        fits = torch.isfinite(expected) & torch.isfinite(got) & (got.abs() < 1e100) & torch.isfinite(f(value))
        if not (fits.all() and torch.isfinite(back)):
            continue  # such as logarithms of negative numbers
        torch.testing.assert_close(got, expected.detach(), rtol=1e-6, atol=1e-9 * (1 + expected.abs().max().item()))
        torch.testing.assert_close((w * got).sum(), back, rtol=1e-6, atol=1e-9 * (1 + expected.abs().max().item()))


@pytest.mark.parametrize(
    ("name", "hyper"),
    [("adamw", "beta1"), ("nadam", "beta1"), ("lamb", "beta1"), ("momentum", "momentum"), ("adan", "beta1"),
     ("lars", "momentum"), ("rmsprop", "alpha"), ("muon", "momentum"), ("shampoo", "beta1"), ("shampoo", "beta2"),
     ("soap", "beta1"), ("soap", "beta2")],
)  # fmt: skip
def test_memory_is_the_derivative_through_all_steps(name, hyper):
    """β moves the state in every step; against reverse mode through the unrolled run, with given gradients."""
    program = BASELINES[name].program
    result = derivative(program, hyper, memory=True)
    generator = torch.Generator().manual_seed(0)
    p, *gs = torch.randn(6, 3, 4, dtype=torch.float64, generator=generator)

    def inputs(step):
        signals = {"lr": 0.01, "step": step, "progress": 0.5, "global_norm": 1.0} | program.defaults()
        return {n: torch.tensor(v, dtype=torch.float64) for n, v in signals.items()}

    def last(value):
        state = {s.name: initial_slot(s, p, gs[0]) for s in program.state}
        for step, g in enumerate(gs, 1):
            update, new = compile_step(program)({**inputs(step), hyper: value, **state, "g": g, "p": p}, (0, 1))
            state = dict(zip(state, new, strict=True))
        return update

    value = torch.tensor(program.defaults()[hyper], dtype=torch.float64)
    _, expected = torch.func.jvp(last, (value,), (torch.ones_like(value),))
    state = {s.name: initial_slot(s, p, gs[0]) for s in result.state}
    for step, g in enumerate(gs, 1):
        update, new = execute(result, {**inputs(step), **state, "g": g, "p": p})
        state = {s.name: x.expand(s.kind.shape((3, 4))) for s, x in zip(result.state, new, strict=True)}
    torch.testing.assert_close(update, expected.detach(), rtol=1e-9, atol=1e-12)


def test_one_buffer_for_beta1_of_adamw():
    extra = len(derivative(BASELINES["adamw"].program, "beta1", memory=True).state)
    assert extra - len(BASELINES["adamw"].program.state) == 1


def test_what_has_no_derivative_is_a_sentence():
    with pytest.raises(ProgramError, match="cannot learn 'gamma'; choose from: lr, beta1"):
        derivative(BASELINES["adamw"].program, "gamma")
    with pytest.raises(ProgramError, match="through signs only"):
        derivative(BASELINES["lion"].program, "beta1")
