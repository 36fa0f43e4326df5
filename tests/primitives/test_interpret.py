"""One meaning, four runners: interpreter, generated step, torch optimizer, and the arena of many parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import (
    ELEMENTWISE_OPS,
    assert_same,
    flat_programs,
    numbers,
    programs,
    random_gradients,
    random_inputs,
    random_tensor,
    seeds,
    shapes_for,
    total_programs,
    train,
)
from torch import Tensor

from optforge.baselines import BASELINES
from optforge.primitives import Instr, Kind, Program, ProgramOptimizer, Slot, execute, parse_program
from optforge.primitives.backends.interpret import Stepped, initial_slot
from optforge.primitives.backends.source import compile_step
from optforge.search.training.population.stacked import Plan, StackedRules


def generated(program: Program, inputs: Mapping[str, Tensor], dims: Sequence[int]) -> Stepped:
    return compile_step(program)(inputs, dims)


# By hand.


def test_heavy_ball_in_numbers() -> None:
    program = parse_program("optforge 1\nslot m = 1 tensor\nx0 = mul(m, 0.5)\nx1 = add(x0, g)\nupdate x1\nnext m = x1")
    p = torch.tensor([10.0, 20.0], dtype=torch.float64)
    run = train(program, p, [torch.tensor([1.0, -1.0], dtype=torch.float64)] * 2, lr=2.0)
    assert [x.tolist() for x in run.parameters] == [[7.0, 21.0], [3.5, 23.5]]
    assert [x.tolist() for (x,) in run.states] == [[1.5, -0.5], [1.75, -1.25]]


def test_a_step_reads_slots_as_they_were_before_it() -> None:
    program = parse_program("optforge 1\nslot a = 1 tensor\nslot b = 2 tensor\nupdate a\nnext a = b\nnext b = a")
    g = torch.zeros(1, dtype=torch.float64)
    run = train(program, g, [g] * 3, lr=1.0)
    assert [x.item() for x in run.parameters] == [-1.0, -3.0, -4.0]


@pytest.mark.parametrize("runner", [execute, generated])
def test_dead_slots_keep_their_value_and_dead_statements_do_not_run(runner: object) -> None:
    program = Program((Slot("m"), Slot("n")), (), (Instr("neg", ("g",)), Instr("log", ("g",))), 0, (1, "g"))
    inputs = random_inputs(program, (3,), 0)
    stepped = runner(program, inputs, (0,))  # type: ignore[operator]
    assert_same(stepped.state, (inputs["m"], inputs["n"]))


def test_slot_shapes() -> None:
    shape = (2, 3, 4)
    got = {kind: kind.shape(shape) for kind in Kind}
    assert got == {
        Kind.SCALAR: (1, 1, 1), Kind.ROW: (2, 1, 1), Kind.COL: (1, 3, 4), Kind.TENSOR: shape, Kind.LEFT: (2, 2, 1),
        Kind.RIGHT: (12, 3, 4),
    }  # fmt: skip
    assert [kind.shape(()) for kind in Kind] == [()] * 6
    assert [kind.shape((5,)) for kind in Kind] == [(1,), (5,), (1,), (5,), (1,), (1,)]
    assert [kind.elements((3, 7)) for kind in Kind] == [1, 3, 7, 21, 9, 49]


def test_initial_slots() -> None:
    p, g = torch.ones(2, 3, 4), torch.full((2, 3, 4), 5.0)
    for kind, side in ((Kind.LEFT, 2), (Kind.RIGHT, 12)):
        square = initial_slot(Slot("m", kind, 3.0), p, g)
        assert_same(square.reshape(side, side), 3 * torch.eye(side))
        assert_same(initial_slot(Slot("m", kind, 3.0), torch.ones(7, 2, 3, 4), g, lead=1)[6], square)
    copy = initial_slot(Slot("m", init="p"), p, g)
    assert_same(copy, p)
    assert copy.data_ptr() != p.data_ptr()
    assert_same(initial_slot(Slot("m", init="g"), p, g), g)
    assert_same(initial_slot(Slot("m", Kind.ROW, 2.0), p, g), torch.full((2, 1, 1), 2.0))
    assert_same(initial_slot(Slot("m", Kind.ROW, 2.0), p, g, lead=1), torch.full((2, 3, 1), 2.0))


def test_shared_numbers_are_computed_in_double_and_rounded_once() -> None:
    """1 - 0.999 in single precision is off by 5e-5 of itself; bias corrections must not be."""
    program = parse_program(
        "optforge 1\nhyper b = 0.999 unit\nx0 = pow(b, step)\nx1 = sub(1.0, x0)\nx2 = div(g, x1)\nupdate x2"
    )
    inputs = {"g": torch.ones(3), "step": torch.tensor(1.0, dtype=torch.float64)} | numbers(program.defaults())
    expected = torch.ones(3) / torch.tensor(1 - 0.999, dtype=torch.float64).float()
    for runner in (execute, generated):
        assert_same(runner(program, inputs, (0,)).update, expected)


# The interpreter and the generated step.


@given(st.data(), programs(), seeds, st.sampled_from([torch.float64, torch.float32]))
def test_generated_step_equals_interpreter(data: st.DataObject, p: Program, seed: int, dtype: torch.dtype) -> None:
    shape = data.draw(shapes_for(p))
    inputs = random_inputs(p, shape, seed, dtype)
    assert_same(compile_step(p)(inputs, range(len(shape))), execute(p, inputs))


@given(st.data(), programs(), seeds)
def test_results_have_the_declared_kinds(data: st.DataObject, p: Program, seed: int) -> None:
    shape = data.draw(shapes_for(p))
    for dtype in (torch.float64, torch.float32):
        update, state = execute(p, random_inputs(p, shape, seed, dtype))
        assert update.shape == shape and update.dtype == dtype
        for slot, value in zip(p.state, state, strict=True):
            assert value.expand(slot.kind.shape(shape)).dtype == dtype


@given(st.data(), flat_programs(ELEMENTWISE_OPS), seeds)
def test_stack_of_parameters_equals_one_at_a_time(data: st.DataObject, p: Program, seed: int) -> None:
    shape = data.draw(shapes_for(p).filter(lambda s: s != ()))
    own = ("g", "p", *(s.name for s in p.state))
    first = random_inputs(p, shape, seed)
    ones = [{name: random_inputs(p, shape, seed + i)[name] for name in own} for i in range(3)]
    stack = {name: torch.stack([one[name] for one in ones]) for name in own}
    together = execute(p, first | stack, range(1, 1 + len(shape)))
    for one, update in zip(ones, together.update, strict=True):
        alone = execute(p, first | one)
        torch.testing.assert_close(update, alone.update, rtol=1e-9, atol=1e-12, equal_nan=True)


# The torch optimizer.


@given(st.data(), programs(fallback=False), seeds)
def test_torch_face_equals_interpreter(data: st.DataObject, program: Program, seed: int) -> None:
    shape = data.draw(shapes_for(program))
    start, *gradients = random_gradients(shape, 4, seed)
    reference = train(program, start, gradients, lr=0.05, total_steps=9)
    stepped = train(program, start, gradients, lr=0.05, total_steps=9, step_function=generated)
    assert_same(stepped, reference)
    p = torch.nn.Parameter(start.clone())
    optimizer = ProgramOptimizer([p], program, lr=0.05, total_steps=9)
    for g, expected, state in zip(gradients, reference.parameters, reference.states, strict=True):
        p.grad = g.clone()
        optimizer.step()
        assert_same(p.detach(), expected)
        assert_same(p.grad, g)
        assert_same(tuple(optimizer.state[p][s.name] for s in program.live_state), state)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (4, 3)])
def test_torch_face_equals_interpreter_for_baselines(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    program = BASELINES[name].program
    if program.needs_matrix and len(shape) < 2:
        assert program.fallback is not None
        program = program.fallback
    start, *gradients = random_gradients(shape, 6, 1, dtype)
    p = torch.nn.Parameter(start.clone())
    optimizer = ProgramOptimizer([p], BASELINES[name].program, lr=0.01)
    for g, expected in zip(gradients, train(program, start, gradients).parameters, strict=True):
        p.grad = g
        optimizer.step()
        assert_same(p.detach(), expected)
    assert all(v.dtype == dtype for n, v in optimizer.state[p].items() if n != "step")


# The arena.

SHAPES = ((3, 2), (5,), (1,), (2, 2, 2))
SIZES = [prod(s) for s in SHAPES]
LEAD = (2, 3)  # seeds, members


def train_arena(program: Program, starts: Tensor, gradients: Sequence[Tensor], lr: Tensor, steps: int) -> Tensor:
    """Train all parameters of all members at once, ``[seeds, members, elements]``, as the population evaluator does."""
    arena, buffer = starts.clone(), torch.zeros_like(starts)
    rules = StackedRules(
        Plan([(program, lr.flatten().tolist())], steps), [torch.Size(s) for s in SHAPES], arena, buffer
    )
    for index, g in enumerate(gradients):
        buffer.copy_(g)
        rules.step(index)
    return arena


def train_separately(program: Program, starts: Tensor, gradients: Sequence[Tensor], lr: Tensor, steps: int) -> Tensor:
    """The same with the interpreter: one parameter of one member of one seed at a time."""
    result = torch.empty_like(starts)
    for seed in range(LEAD[0]):
        for member in range(LEAD[1]):
            norms = [torch.linalg.vector_norm(g[seed, member]) for g in gradients]
            for i, (p, shape) in enumerate(zip(starts[seed, member].split(SIZES), SHAPES, strict=True)):
                own = [g[seed, member].split(SIZES)[i].view(shape) for g in gradients]
                p = p.reshape(shape)
                state = {s.name: initial_slot(s, p, own[0]) for s in program.state}
                for step, (g, norm) in enumerate(zip(own, norms, strict=True), 1):
                    signals = numbers({"lr": float(lr[member]), "step": step, "progress": step / steps})
                    inputs = signals | numbers(program.defaults()) | {"global_norm": norm, "g": g, "p": p} | state
                    update, following = execute(program, inputs)
                    for s, value in zip(program.state, following, strict=True):
                        state[s.name] = value.expand(s.kind.shape(shape))
                    p = p - lr[member] * update
                result[seed, member].split(SIZES)[i].copy_(p.flatten())
    return result


def compare_arena(program: Program, seed: int, steps: int, rtol: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    starts, *gradients = [random_tensor((*LEAD, sum(SIZES)), generator) for _ in range(steps + 1)]
    lr = torch.tensor([[0.1], [0.01], [0.003]], dtype=torch.float64)
    got = train_arena(program, starts, gradients, lr, 2 * steps)
    expected = train_separately(program, starts, gradients, lr, 2 * steps)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=0 if rtol == 0 else 1e-12, equal_nan=True)


@given(
    flat_programs(("add", "sub", "mul", "neg", "abs", "sign", "max", "lerp", "less", "agree", "clip", "sqrt_abs")),
    seeds,
)
def test_arena_equals_interpreter_exactly_where_arithmetic_is_exact(program: Program, seed: int) -> None:
    compare_arena(program, seed, steps=3, rtol=0)


@given(total_programs(max_body=6), seeds)
@example(
    parse_program(
        "optforge 1\nslot s = 1 scalar\nx0 = norm(g)\nx1 = lerp(s, x0, 0.1)\nx2 = mul(g, x1)\nupdate x2\nnext s = x1"
    ),
    0,
)
@example(parse_program("optforge 1\nslot s = 1 scalar\nx0 = mul(g, s)\nupdate x0\nnext s = step"), 0)
@example(
    parse_program(
        "optforge 1\nx0 = dot(g, p)\nx1 = mul(lr, global_norm)\nx2 = add(x0, x1)\nx3 = mul(g, x2)\nupdate x3"
    ),
    0,
)
@example(parse_program("optforge 1\nslot m = g tensor\nslot n = p tensor\nupdate m\nnext m = n\nnext n = m"), 0)
def test_arena_equals_interpreter(program: Program, seed: int) -> None:
    compare_arena(program, seed, steps=2, rtol=1e-8)


@pytest.mark.parametrize("name", [name for name, row in BASELINES.items() if not row.program.needs_matrix])
def test_arena_equals_interpreter_for_baselines(name: str) -> None:
    compare_arena(BASELINES[name].program, seed=1, steps=10, rtol=1e-11)


def test_generated_code_contains_no_text_of_the_program() -> None:
    """Names in a program are data; they must not reach the source, whatever they are."""
    program = parse_program("optforge 1\nhyper torch = 0.5 linear\nslot math = 0 tensor\nslot dims = 0 tensor\n"
                            "x0 = mul(math, torch)\nx1 = add(x0, dims)\nupdate x1\n"
                            "next math = g\nnext dims = p")  # fmt: skip
    inputs = random_inputs(program, (3,), 0)
    assert_same(compile_step(program)(inputs, (0,)), execute(program, inputs))
    compare_arena(program, seed=0, steps=3, rtol=0)
