"""Derivatives of programs against torch.func, forward and reverse, in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from strategies import MATRIX_SHAPES, programs, random_inputs, seeds

from baselines import BASELINES
from learned.derivative import COMPOSED, CONSTANT, LINEAR, PARTIAL, Extended, derivative, differentiate
from primitives import OPS, Builder, Kind, Program, ProgramError, execute, subset
from primitives.ops import DOMAINS
from primitives.source import compile_step

WITHOUT = {"orthogonalise", "block_mean", *subset("preconditioners", "lazy")}
with warnings.catch_warnings():  # torch sets up forward mode with what it has itself deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.func.jvp(torch.square, (torch.ones(()),), (torch.ones(()),))


def test_every_row_has_a_derivative_or_is_known_to_have_none():
    assert set(OPS) == set(PARTIAL) | set(COMPOSED) | LINEAR | CONSTANT | {"dot"} | WITHOUT


@pytest.mark.parametrize("name", sorted(set(OPS) - WITHOUT))
def test_each_row(name):
    """All arguments move at once, each by a direction of its own: f(a + t·d), at t = 0, against jvp."""
    row = OPS[name]
    flat = [kinds for kinds in row.result if not any(kind.is_square for kind in kinds)]
    kinds = max(flat, key=lambda k: (row.result[k], sum(k)))
    generator = torch.Generator().manual_seed(1)
    shape = {Kind.TENSOR: (3, 4), Kind.ROW: (3, 1), Kind.COL: (1, 4), Kind.SCALAR: (1, 1)}
    args = [
        DOMAINS[d](torch.randn(shape[k], generator=generator).double()) for d, k in zip(row.domain, kinds, strict=True)
    ]
    if name == "pow":
        args[0] = args[0].abs() + 0.1
    if name == "exp_clip":
        args[0] *= 8  # it clips far out
    moves = [torch.randn(a.shape, generator=generator).double() for a in args]

    b = Builder()
    slots = [b.slot(f"a{i}", k) for i, k in enumerate(kinds)]
    dots = [b.slot(f"d{i}", k) for i, k in enumerate(kinds)]
    for slot in (*slots, *dots):
        slot.next = slot
    program = b.build(b.g + b.op(name, *slots))
    live = Extended(Program(program.state, (), program.body, program.update, program.next_state))
    found = differentiate(live, "lr", {f"a{i}": live.slots[f"d{i}"] for i in range(len(kinds))})
    value = found.get(live.update.arg)
    result = live.build(live.g * 0.0 if value is None else live.g * 0.0 + value)

    f = lambda *a: torch.zeros(3, 4, dtype=torch.float64) + row.function(*a, dims=(0, 1))  # noqa: E731
    expected = torch.func.jvp(f, tuple(args), tuple(moves))[1]
    inputs = {"g": torch.zeros(3, 4, dtype=torch.float64), "p": torch.zeros(3, 4, dtype=torch.float64)}
    inputs |= {f"a{i}": a for i, a in enumerate(args)} | {f"d{i}": m for i, m in enumerate(moves)}
    got = execute(result, inputs | {"lr": torch.ones(()).double()}).update
    torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-12)


def _update(program: Program, inputs: dict[str, torch.Tensor], shape: tuple[int, ...]):
    """The update as a function of everything that it reads."""
    run = compile_step(program)
    return lambda values: run({**inputs, **values}, range(len(shape))).update.expand(shape)


@settings(max_examples=60)
@given(programs(ops=sorted(set(OPS) - WITHOUT), fallback=False), seeds)
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


@pytest.mark.parametrize("name", ["adamw", "nadam", "lamb", "momentum", "adan", "lars", "rmsprop"])
def test_memory_is_the_derivative_through_all_steps(name):
    """β moves the state in every step; against reverse mode through the unrolled run, with given gradients."""
    program = BASELINES[name].program
    hyper = next(h for h in program.defaults() if h.startswith(("beta", "momentum", "alpha")))
    result = derivative(program, hyper, memory=True)
    generator = torch.Generator().manual_seed(0)
    p, *gs = torch.randn(6, 3, 4, dtype=torch.float64, generator=generator)
    start = {s.name: torch.zeros(3, 4, dtype=torch.float64) if s.kind is Kind.TENSOR else torch.zeros(1, 1).double()
             for s in program.state}  # fmt: skip

    def inputs(step):
        signals = {"lr": 0.01, "step": step, "progress": 0.5, "global_norm": 1.0} | program.defaults()
        return {n: torch.tensor(v, dtype=torch.float64) for n, v in signals.items()}

    def last(value):
        state = {s.name: gs[0] if s.init == "g" else start[s.name] for s in program.state}
        for step, g in enumerate(gs, 1):
            update, new = compile_step(program)({**inputs(step), hyper: value, **state, "g": g, "p": p}, (0, 1))
            state = dict(zip(state, new, strict=True))
        return update

    value = torch.tensor(program.defaults()[hyper], dtype=torch.float64)
    _, expected = torch.func.jvp(last, (value,), (torch.ones_like(value),))
    state = {s.name: gs[0] if s.init == "g" else torch.zeros(3, 4).double() for s in result.state}
    for step, g in enumerate(gs, 1):
        update, new = execute(result, {**inputs(step), **state, "g": g, "p": p})
        state = {s.name: x.expand(3, 4) for s, x in zip(result.state, new, strict=True)}
    torch.testing.assert_close(update, expected.detach(), rtol=1e-9, atol=1e-12)


def test_one_buffer_for_beta1_of_adamw():
    extra = len(derivative(BASELINES["adamw"].program, "beta1", memory=True).state)
    assert extra - len(BASELINES["adamw"].program.state) == 1


def test_what_has_no_derivative_is_a_sentence():
    with pytest.raises(ProgramError, match="cannot learn 'gamma'; choose from: lr, beta1"):
        derivative(BASELINES["adamw"].program, "gamma")
    with pytest.raises(ProgramError, match="through signs only"):
        derivative(BASELINES["lion"].program, "beta1")
    with pytest.raises(ProgramError, match="op 'orthogonalise' has no derivative"):
        derivative(BASELINES["muon"].program, "momentum")
