"""What is computed only when it is due: the same results, from less work, in every engine."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from support.strategies import assert_same, numbers, programs, random_gradients, seeds, train
from torch import Tensor, nn

from optforge.primitives import Builder, Const, Instr, Kind, Program, ProgramOptimizer, execute, linalg
from optforge.primitives.analysis.cost import cost
from optforge.primitives.backends.source import compile_step
from optforge.primitives.blocks import every
from optforge.primitives.lazy import laziness
from optforge.primitives.program import Arg

STEPS = 9


def refreshed(k: float = 3.0) -> Program:
    """Roots of an average every k steps, a basis every two, and a switch after four."""
    b = Builder()
    period = b.hyper("every", k, "log")
    left, root = b.slot("l", Kind.LEFT), b.slot("root", Kind.LEFT, 1.0)
    right, basis = b.slot("r", Kind.RIGHT, 1.0), b.slot("q", Kind.RIGHT, 1.0)
    left.next, right.next = b.lerp(left, b.row_gram(b.g), 0.1), b.lerp(right, b.col_gram(b.g), 0.1)
    every(b, period, b.inverse_root4(left.next, 1e-6), root)
    every(b, 2.0, b.basis(right.next, basis, 1e-6), basis)
    direction = b.choose(b.less(b.step, 5.0), b.tanh(b.g), b.cube(b.g))
    return b.build(b.matmul(b.matmul(root.next, direction), basis.next))


def test_due_by_hand() -> None:
    b = Builder()
    program = b.build(b.g * b.due(b.step, b.hyper("k", 3.0)))

    def at(step: float, k: float) -> float:
        return execute(program, {"g": torch.ones(()).double(), **numbers({"step": step, "k": k})}).update.item()

    assert [at(step, 3.0) for step in range(1, 9)] == [1, 0, 0, 1, 0, 0, 1, 0]
    assert [at(step, 2.5) for step in range(1, 9)] == [1, 0, 0, 1, 0, 1, 0, 0]
    for k in (1.0, 0.0, -7.0):
        assert [at(step, k) for step in range(1, 5)] == [1, 1, 1, 1]
    assert [at(step, 1e40) for step in (1, 2, 1e6)] == [1, 0, 0]


def optimised(start: Tensor, gradients: list[Tensor], program: Program, **options: bool) -> list[Tensor]:
    """The parameter after each step."""
    p = nn.Parameter(start.clone())
    optimizer, path = ProgramOptimizer([p], program, lr=0.01, **options), []  # type: ignore[arg-type]
    for p.grad in gradients:
        optimizer.step()
        path.append(p.detach().clone())
    return path


def test_every_engine_computes_what_the_interpreter_does() -> None:
    start, *gradients = random_gradients((4, 5), STEPS, seed=1)
    whole = train(refreshed(), start, gradients)
    lazy = train(refreshed(), start, gradients, step_function=lambda p, i, d: compile_step(p)(i, d))
    torch.testing.assert_close(lazy.parameters, whole.parameters, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(optimised(start, gradients, refreshed()), whole.parameters, rtol=1e-13, atol=1e-15)
    other = train(refreshed(2.0), start, gradients).parameters[-1]
    assert (other - whole.parameters[-1]).abs().max() > 1e-4, "how often makes no difference"


@pytest.mark.slow
def test_a_compiled_step_has_one_form_with_what_is_due_and_one_without() -> None:
    start, *gradients = random_gradients((4, 5), STEPS, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler, of itself
        compiled = optimised(start, gradients, refreshed(), compile=True)
    torch.testing.assert_close(compiled, train(refreshed(), start, gradients).parameters, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_what_is_not_due_is_not_computed(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def root(*args: object) -> Tensor:
        calls.append(args)
        return whole(*args)  # type: ignore[arg-type]

    whole = linalg.inverse_root
    monkeypatch.setattr(linalg, "inverse_root", root)
    start, *gradients = random_gradients((4, 5), STEPS, seed=1)
    optimised(start, gradients, refreshed(float(k)))
    assert len(calls) == len(range(0, STEPS, k))


def test_a_slot_that_is_kept_is_the_same_tensor_and_one_that_is_chosen_is_no_others() -> None:
    """What a step may return without copying, and what it may not."""
    b = Builder()
    m, q = b.slot("m"), b.slot("q")
    m.next = b.choose(b.due(b.step, 2.0), b.g, q)
    every(b, 2.0, b.p, q)
    p, program = nn.Parameter(torch.ones(3)), b.build(m.next + q.next)
    optimizer = ProgramOptimizer([p], program, lr=0.1)
    for t in range(4):
        before = dict(optimizer.state[p])
        p.grad = torch.full((3,), float(t))
        optimizer.step()
        state = optimizer.state[p]
        assert (before.get("q") is state["q"]) == (t % 2 == 1)
        places = {x.data_ptr() for x in (state["m"], state["q"], p, p.grad)}
        assert len(places) == 4


def test_step_numbers_are_exact_in_half_precision() -> None:
    """300 is no number of bfloat16."""
    b = Builder()
    m = b.slot("m")
    every(b, 299.0, b.g, m)
    start, gradients = torch.zeros(2, dtype=torch.bfloat16), [torch.full((2,), float(t)) for t in range(1, 303)]
    p = nn.Parameter(start)
    optimizer = ProgramOptimizer([p], b.build(m.next), lr=1e-3)
    seen = []
    for g in gradients:
        p.grad = g.to(torch.bfloat16)
        optimizer.step()
        seen.append(optimizer.state[p]["m"][0].item())
    assert seen == [1.0] * 299 + [torch.tensor(300.0).bfloat16().item()] * 3


def test_cost_counts_the_share_of_steps() -> None:
    """Of the root, and of writing it, a k-th a step."""
    one, ten = (cost(refreshed(float(k)), (8, 8)) for k in (1, 10))
    root = 30 * 4 * 2 * 8**3
    assert one.flops - ten.flops == pytest.approx(0.9 * root / 64)
    assert one.moved_bytes - ten.moved_bytes == pytest.approx(0.9 * 4 * 64 / 64)
    assert one.state_bytes == ten.state_bytes


def test_what_serves_something_else_is_not_left_out() -> None:
    b = Builder()
    m, n = b.slot("m"), b.slot("n")
    x = b.tanh(b.g)
    every(b, 5.0, b.exp(x), m)
    every(b, 7.0, b.exp(x) * b.sin(x), n)
    program = b.build(m.next + n.next)
    lazy = laziness(program)
    guarded = {program.body[i].op for i in lazy.guards}
    assert len(lazy.conditions) == 2 and guarded == {"sin", "mul"}
    b = Builder()
    of_elements = b.build(b.choose(b.g, b.sin(b.p), b.cos(b.p)))
    assert not laziness(of_elements).choices, "each element chooses for itself"


def every_second_step(program: Program) -> Program:
    """`program` with an update and new state in every second step only."""
    body = [*program.body, Instr("due", ("step", Const(2.0)))]

    def chosen(new: Arg, old: Arg) -> int:
        body.append(Instr("choose", (len(program.body), new, old)))
        return len(body) - 1

    update = chosen(program.update, "g")
    following = [chosen(arg, slot.name) for slot, arg in zip(program.state, program.next_state, strict=True)]
    return Program(program.state, program.hypers, tuple(body), update, tuple(following))


@settings(max_examples=60)
@given(programs(max_body=20), seeds)
def test_random_programs_are_the_same_with_less_work(program: Program, seed: int) -> None:
    program = every_second_step(program)
    assert laziness(program).choices
    start, *gradients = random_gradients((3, 4), 4, seed)
    one = train(program, start, gradients)
    other = train(program, start, gradients, step_function=lambda p, i, d: compile_step(p)(i, d))
    assert_same(other.parameters, one.parameters)
    assert_same(other.states, one.states)
