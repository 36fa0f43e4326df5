"""The builder and the named blocks."""

from __future__ import annotations

import pytest
import torch
from support.strategies import assert_same, numbers, train

from optforge.baselines import BASELINES
from optforge.primitives import OPS, Builder, Const, Instr, Kind, Program, ProgramError, execute
from optforge.primitives.blocks import (
    BLOCKS,
    cautious,
    debias,
    distance,
    heavy_ball,
    momentum,
    on_sphere,
    rms_normalise,
    trust_ratio,
)

G, P = torch.tensor([[1.0, -2.0], [0.0, 4.0]], dtype=torch.float64), torch.full((2, 2), 3.0, dtype=torch.float64)


def update(program: Program, **scalars: float) -> list[list[float]]:
    """Update of a stateless program for `G` and `P`."""
    signals = numbers({"lr": 0.1, "step": 1, "progress": 0, "global_norm": 1} | scalars)
    return execute(program, {"g": G, "p": P} | signals | numbers(program.defaults())).update.tolist()


@pytest.mark.parametrize(
    ("write", "instruction"),
    [
        (lambda b: b.g + 2, Instr("add", ("g", Const(2.0)))),
        (lambda b: 2 + b.g, Instr("add", (Const(2.0), "g"))),
        (lambda b: b.g - b.p, Instr("sub", ("g", "p"))),
        (lambda b: 1 - b.g, Instr("sub", (Const(1.0), "g"))),
        (lambda b: b.g * b.lr, Instr("mul", ("g", "lr"))),
        (lambda b: 3 * b.g, Instr("mul", (Const(3.0), "g"))),
        (lambda b: b.g / b.p, Instr("div", ("g", "p"))),
        (lambda b: 1 / b.g, Instr("div", (Const(1.0), "g"))),
        (lambda b: b.g**2, Instr("pow", ("g", Const(2.0)))),
        (lambda b: -b.g, Instr("neg", ("g",))),
        (lambda b: b.max(b.g, 0.0), Instr("max", ("g", Const(0.0)))),
    ],
)
def test_arithmetic_writes_statements(write: object, instruction: Instr) -> None:
    b = Builder()
    program = b.build(write(b))  # type: ignore[operator]
    assert program.body == (instruction,)
    assert program.update == 0


def test_equal_expressions_become_one_statement() -> None:
    b = Builder()
    program = b.build(b.square(b.g) + b.square(b.g))
    assert program.body == (Instr("square", ("g",)), Instr("add", (0, 0)))


def test_every_op_of_the_table_is_a_method() -> None:
    b = Builder()
    for name, op in OPS.items():
        assert b.__getattr__(name)(*[b.g] * op.arity).arg == len(b._body) - 1
    with pytest.raises(AttributeError, match="no attribute or op 'adam'"):
        b.adam(b.g)


def test_slots_and_hypers_are_declared() -> None:
    b = Builder()
    decay = b.hyper("decay", 0.9, "unit")
    count = b.slot("count", Kind.SCALAR, 1.0)
    count.next = count * decay
    program = b.build(b.g * count)
    assert [(s.name, s.kind, s.init) for s in program.state] == [("count", Kind.SCALAR, 1.0)]
    assert program.defaults() == {"decay": 0.9}
    assert program.next_state == (0,)


def test_misuse_is_refused_in_words() -> None:
    b = Builder()
    b.slot("m")
    with pytest.raises(ProgramError, match=r"slot 'm' has no next value; assign its \.next"):
        b.build(b.g)
    with pytest.raises(ProgramError, match="another builder"):
        b.add(b.g, Builder().g)
    for value in ("g", True, None, [1.0]):
        with pytest.raises(ProgramError, match="expected an expression or a number"):
            b.add(b.g, value)  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="norm does not accept"):
        c = Builder()
        c.build(c.g * c.norm(c.lr))
    d = Builder()
    d.hyper("a", 1.0)
    d.hyper("a", 2.0)
    with pytest.raises(ProgramError, match="hyper 'a' is named twice"):
        d.build(d.g)


def test_blocks_are_listed_by_name() -> None:
    assert {"momentum", "sign", "rms_normalise", "trust_ratio", "debias", "decoupled_weight_decay"} <= set(BLOCKS)


def test_momentum_and_debias_by_hand() -> None:
    """A debiased average of a constant gradient is that gradient at every step."""
    b = Builder()
    average = momentum(b, b.slot("m"), b.g, 0.9)
    program = b.build(debias(b, average, 0.9))
    run = train(program, P, [G] * 3, lr=1.0)
    torch.testing.assert_close(run.parameters[-1], P - 3 * G, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run.states[-1][0], (1 - 0.9**3) * G, rtol=1e-12, atol=1e-12)


def test_heavy_ball_by_hand() -> None:
    b = Builder()
    program = b.build(heavy_ball(b, b.slot("m"), b.g, 0.5))
    run = train(program, P, [G] * 3, lr=1.0)
    torch.testing.assert_close(run.parameters[-1], P - (1 + 1.5 + 1.75) * G)


def test_rms_normalise_has_epsilon_outside_the_root() -> None:
    b = Builder()
    assert update(b.build(rms_normalise(b, b.g, b.square(b.p), 1.0))) == [[0.25, -0.5], [0.0, 1.0]]


def test_trust_ratio_by_hand() -> None:
    b = Builder()
    program = b.build(b.g * trust_ratio(b, b.g))
    ratio = 6 / 21**0.5
    torch.testing.assert_close(torch.tensor(update(program), dtype=torch.float64), G * ratio)


@pytest.mark.parametrize("zero", ["p", "g"])
def test_trust_ratio_is_one_where_a_norm_is_zero(zero: str) -> None:
    b = Builder()
    program = b.build(b.p * 0 + trust_ratio(b, b.g))
    result = execute(program, {"g": G, "p": P} | {zero: torch.zeros_like(G)}).update
    assert result.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_sign_and_decoupled_weight_decay_by_hand() -> None:
    b = Builder()
    program = b.build(BLOCKS["decoupled_weight_decay"](b, BLOCKS["sign"](b, b.g), b.hyper("wd", 0.5, "log")))
    assert update(program) == [[2.5, 0.5], [1.5, 2.5]]


def test_cautious_by_hand() -> None:
    """One of four elements points against the gradient, one has no sign: half of them stay, at twice their size."""
    b = Builder()
    program = b.build(cautious(b, b.p))
    g = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
    p = torch.tensor([[0.5, 0.7], [0.9, 4.0]], dtype=torch.float64)
    assert execute(program, {"g": g, "p": p}).update.tolist() == [[1.0, 0.0], [0.0, 8.0]]
    assert execute(program, {"g": -p, "p": p}).update.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_distance_from_the_start_by_hand() -> None:
    b = Builder()
    program = b.build(b.g * (1.0 + distance(b, b.slot("start", init="p"))))
    g = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    run = train(program, torch.zeros_like(g), [g] * 3, lr=1.0)
    assert [p.norm().item() for p in run.parameters] == pytest.approx([5.0, 5 + 5 * 6, 35 + 5 * 36])
    assert_same(run.states[-1][0], torch.zeros_like(g))


def test_steps_on_a_sphere_by_hand_and_norms_stay() -> None:
    """W of norm 5 goes 5/2 along the direction, and is scaled back."""
    b = Builder()
    program = b.build(on_sphere(b, b.g))
    p, g = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[-8.0, 0.0]], dtype=torch.float64)
    ahead = torch.tensor([[5.5, 4.0]], dtype=torch.float64)
    run = train(program, p, [g] * 50, lr=0.5)
    torch.testing.assert_close(run.parameters[0], 5 * ahead / ahead.norm())
    assert run.parameters[-1].norm().item() == pytest.approx(5.0, rel=1e-12)
    for rest in (train(program, p, [g], lr=0.0), train(program, p, [0 * g], lr=0.5)):
        torch.testing.assert_close(rest.parameters[0], p)
    assert_same(train(program, 0 * p, [g], lr=0.5).parameters[0], 0 * p)


@pytest.mark.parametrize("name", ["adamw", "lion", "soap"])
def test_append_keeps_the_program(name: str) -> None:
    program, b = BASELINES[name].program, Builder()
    value = b.append(program)
    assert b.build(value(program.update), program.fallback).key == program.key


def test_append_reads_other_values_in_place_of_signals() -> None:
    first, b = Builder(), Builder()
    program = first.build(first.g * 2.0 + first.p)
    value = b.append(program, {"g": -b.g})
    assert update(b.build(value(program.update))) == (P - 2 * G).tolist()
    assert update(b.build(value(program.update) + value("g") * value(Const(3.0)))) == (P - 5 * G).tolist()


def test_append_refuses_names_that_are_taken() -> None:
    program, b = BASELINES["lion"].program, Builder()
    b.hyper("beta1", 0.5)
    value = b.append(program)
    with pytest.raises(ProgramError, match="'beta1' is named twice"):
        b.build(value(program.update))
