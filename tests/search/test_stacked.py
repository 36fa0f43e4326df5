"""Stepping a whole population at once equals stepping each member alone, whatever the programs share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stacked import ADAMW, LION, MUON, relatives
from support.strategies import ARENA_OPS, programs
from torch import Tensor

from optforge.baselines import BASELINES
from optforge.primitives import OPS, Builder, Const, Instr, Kind, Program, Slot, execute
from optforge.primitives.backends.interpret import initial_slot
from optforge.primitives.blocks import every
from optforge.primitives.routing import route
from optforge.search.training.population.native_code import encode
from optforge.search.training.population.stacked import Plan, StackedRules

SHAPES = [torch.Size((3, 2)), torch.Size((4,)), torch.Size(()), torch.Size((2, 2, 3))]
ELEMENTS, STEPS, SEEDS = 23, 4, 2


def together(
    groups: list[tuple[Program, list[float]]],
    gradients: list[Tensor],
    start: Tensor,
    native: bool = False,
    replays: bool = False,
) -> dict[int, Tensor]:
    """Parameters of members after training in one arena, ``[seeds, elements]``."""
    plan = Plan(groups, STEPS, native)
    arena, buffer = start[:, plan.order].clone(), torch.zeros_like(start)
    rules = StackedRules(plan, SHAPES, arena, buffer)
    for index, gradient in enumerate(gradients):
        if rules.merged is not None:
            rules.merged.replays = replays  # as on CUDA
        buffer.copy_(gradient[:, plan.order])
        rules.step(index)
    return {member: arena[:, place] for place, member in enumerate(plan.order)}


def alone(program: Program, lr: float, gradients: list[Tensor], start: Tensor) -> Tensor:
    """One member, ``[elements]``, parameter by parameter with the interpreter."""
    sizes = [s.numel() for s in SHAPES]
    pieces = [x.clone().view(s) for x, s in zip(start.split(sizes), SHAPES, strict=True)]
    states: list[list[Tensor]] = [[] for _ in pieces]
    ways = [route(program, shape) for shape in SHAPES]
    for index, gradient in enumerate(gradients):
        signals = {
            "lr": torch.tensor(lr, dtype=torch.float64),
            "step": torch.tensor(index + 1.0, dtype=torch.float64),
            "progress": torch.tensor((index + 1) / STEPS, dtype=torch.float64),
            "global_norm": torch.linalg.vector_norm(gradient),
        }
        for i, (p, g) in enumerate(zip(pieces, gradient.split(sizes), strict=True)):
            g, way = g.view(p.shape), ways[i]
            hypers = {n: torch.tensor(v, dtype=torch.float64) for n, v in way.defaults().items()}
            if not states[i]:
                states[i] = [initial_slot(s, p, g) for s in way.state]
            named = {s.name: x for s, x in zip(way.state, states[i], strict=True)}
            update, following = execute(way, signals | hypers | named | {"g": g, "p": p})
            states[i] = [x.expand(old.shape).clone() for x, old in zip(following, states[i], strict=True)]
            p.sub_(lr * update)
    return torch.cat([p.reshape(-1) for p in pieces])


def disturbed(program: Program) -> Program:
    """The same program, but for the last digits of every statement's result."""
    place = {i: 2 * i + 1 for i in range(len(program.body))}
    moved = lambda x: place.get(x, x) if isinstance(x, int) else x  # noqa: E731
    body: list[Instr] = []
    for i, line in enumerate(program.body):
        body += [
            Instr(line.op, tuple(map(moved, line.args))),
            Instr("mul", (2 * i, Const(1.0 + (i % 7 - 3.5) * 1e-13))),
        ]
    fallback = program.fallback and disturbed(program.fallback)
    following = tuple(map(moved, program.next_state))
    return Program(program.state, program.hypers, tuple(body), moved(program.update), following, fallback)


def check(chosen: list[Program], rates: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = [(program, rates[: 1 + i % len(rates)]) for i, program in enumerate(chosen)]
    members = [(program, lr) for program, some in groups for lr in some]
    shape = (SEEDS, len(members), ELEMENTS)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]
    ways = [together(groups, gradients, start, native) for native in (False, True)]
    ways.append(together(groups, gradients, start, replays=True))
    for s in range(SEEDS):
        for m, (program, lr) in enumerate(members):
            given = (lr, [g[s, m] for g in gradients], start[s, m])
            expected, close = alone(program, *given), {"rtol": 1e-7, "atol": 1e-9}
            good = expected.isfinite() & (expected.abs() < 1e6)
            for found in (way[m][s] for way in ways):
                if not torch.allclose(found[good], expected[good], **close):  # but for what no two roundings agree on
                    good &= torch.isclose(alone(disturbed(program), *given), expected, **close)
                    torch.testing.assert_close(found[good], expected[good], **close)
                assert (found.isfinite() | ~good).all()


@pytest.mark.parametrize("slots", ["a b", "b a"])
def test_a_slot_that_becomes_what_another_was(slots: str) -> None:
    state = tuple(Slot(name, Kind.TENSOR, init=0.0) for name in slots.split())
    following = tuple({"a": 0, "b": "a"}[slot.name] for slot in state)
    check([Program(state, (), (Instr("add", ("g", "b")),), 0, following), LION], [0.01, 0.3], 0)


# Whether an arbitrary number is due is a matter of its last digit: there is a test of what is due below.
SMOOTH_OPS = [name for name in ARENA_OPS if name != "due"]


@given(
    st.lists(programs(ops=SMOOTH_OPS, kinds=(Kind.SCALAR, Kind.TENSOR)), min_size=1, max_size=4), st.integers(0, 999)
)
def test_any_programs_together(chosen: list[Program], seed: int) -> None:
    check(chosen, [0.01, 0.3], seed)


@settings(max_examples=25)
@given(st.sampled_from([ADAMW, LION]), st.integers(0, 10**6), st.integers(2, 10))
def test_relatives_together(program: Program, seed: int, count: int) -> None:
    check(relatives(program, seed, count), [0.02, 0.1, 0.5], seed)


def test_programs_that_differ_in_numbers_alone_share_every_statement() -> None:
    variants = [ADAMW.with_defaults(beta1=b, eps=e) for b, e in ((0.9, 1e-8), (0.8, 1e-6), (0.5, 1e-3))]
    check(variants, [0.01, 0.1], 0)
    plan = Plan([(v, [0.1, 0.2]) for v in variants], STEPS)
    arena = torch.zeros(1, 6, ELEMENTS)
    merged = StackedRules(plan, SHAPES, arena, torch.zeros_like(arena)).merged
    one = StackedRules(Plan([(ADAMW, [0.1])], STEPS), SHAPES, arena[:, :1], arena[:, :1]).merged
    assert merged is not None and one is not None
    assert len(merged.lines) == len(one.lines)
    assert len(merged.updates) == 1 and len(merged.slots) == 2


def test_a_slot_that_trades_places_or_copies_an_input() -> None:
    b = Builder()
    m, n, last, old = b.slot("m"), b.slot("n", init="p"), b.slot("last"), b.slot("old", init="g")
    m.next, n.next, last.next, old.next = n, m + b.g, b.g, b.p
    swapping = b.build(m + 2.0 * n + last * old)
    check([swapping, LION, swapping.with_defaults()], [0.1], 3)


def test_like_statements_of_one_program_stay_apart() -> None:
    b = Builder()
    fast, slow = b.slot("fast"), b.slot("slow")
    fast.next, slow.next = b.lerp(fast, b.g, 0.5), b.lerp(slow, b.g, 0.01)
    c = Builder()
    slow2, fast2 = c.slot("slow"), c.slot("fast")
    slow2.next, fast2.next = c.lerp(slow2, c.g, 0.02), c.lerp(fast2, c.g, 0.4)
    check([b.build(fast.next - 2.0 * slow.next), c.build(fast2.next - 2.0 * slow2.next)], [0.1, 1.0], 5)


def test_members_of_programs_over_rows_keep_their_state_when_others_go() -> None:
    b = Builder()
    row, m = b.slot("row", Kind.ROW), b.slot("m")
    row.next, m.next = b.lerp(row, b.row_mean(b.square(b.g)), 0.3), b.lerp(m, b.g, 0.1)
    check([b.build(m.next / (b.sqrt(row.next) + 0.1), fallback=ADAMW), LION, ADAMW], [0.1, 0.2], 0)


def test_matrices_orthogonalised_in_cxx_are_those_of_torch() -> None:
    b = Builder()
    m = b.slot("m", init="g")
    m.next = b.lerp(m, b.g, 0.3)
    scaled = b.sqrt(b.rows(b.g)) * b.orthogonalise(m.next) + b.orthogonalise(b.g) / b.cols(b.g) + b.norm(m) * b.p
    own = [b.build(scaled, fallback=ADAMW), MUON, b.build(b.orthogonalise(b.g - b.mean(b.g)), fallback=LION)]
    assert all(encode(program) is not None for program in own)
    check([*own, ADAMW], [0.02, 0.1], 0)


def test_zero_matrix_stays_zero_in_cxx() -> None:
    plan = Plan([(MUON, [0.1])], STEPS, native=True)
    arena = torch.zeros(1, 1, ELEMENTS, dtype=torch.float64)
    StackedRules(plan, SHAPES, arena, torch.zeros_like(arena)).step(0)
    assert plan.native == 1 and not arena.any()


def test_square_matrices_of_members_are_their_own_and_stay_when_others_go() -> None:
    programs = [BASELINES[name].program.with_defaults(every=2.0) for name in ("soap", "shampoo")]
    check([*programs, LION], [0.1, 0.2], 3)


def test_cxx_takes_what_it_can_and_torch_the_rest() -> None:
    b = Builder()
    rare = b.build(b.centralise(b.g), fallback=LION)
    plan = Plan([(rare, [0.1]), (ADAMW, [0.1, 0.2]), (LION, [0.3])], STEPS, native=True)
    assert (plan.native, plan.merged, plan.order) == (2, 0, [1, 2, 3, 0])
    plan = Plan([(rare, [0.1]), (ADAMW, [0.1, 0.2]), (LION, [0.3])], STEPS)
    assert (plan.native, plan.merged) == (0, 2)


def test_every_flat_op_has_a_loop_in_cxx() -> None:
    for name in ARENA_OPS:
        b = Builder()
        program = b.build(b.g + getattr(b, name)(*[b.g + 0.5 * i for i in range(OPS[name].arity)]))
        assert encode(program) is not None, name


def test_what_is_due_in_some_steps_only() -> None:
    b = Builder()
    m, kept = b.slot("m"), b.slot("kept")
    m.next = b.lerp(m, b.g, 0.1)
    update = every(b, 2.0, m.next * 3.0, kept)
    check([b.build(update + b.choose(b.step, b.g, b.p)), ADAMW], [0.01, 0.3], 0)
