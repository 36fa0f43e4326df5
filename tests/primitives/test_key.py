"""The structural key: what it ignores, what it sees, and that equal keys mean equal behaviour."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations, product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.strategies import (
    ELEMENTWISE_OPS,
    assert_same,
    flat_programs,
    programs,
    random_gradients,
    seeds,
    shapes_for,
    train,
)

from optforge.baselines import BASELINES
from optforge.primitives import OPS, Builder, Const, Hyper, Instr, Kind, Program, Slot, parse_program
from optforge.primitives.program import Arg


def read(*lines: str) -> Program:
    """A program from its text, without the header."""
    return parse_program("\n".join(["optforge 1", *lines]))


# Rewritings that change a program's text and nothing else. Each takes and returns a Program.


def rebuild(p: Program, body: list[Instr], place: dict[int, int], **changes: object) -> Program:
    """`p` with another body, in which old register i is found at place[i]; `body` already uses new numbers."""

    def move(arg: Arg) -> Arg:
        return place[arg] if type(arg) is int else arg

    parts = {
        "state": p.state,
        "hypers": p.hypers,
        "update": move(p.update),
        "next_state": tuple(map(move, p.next_state)),
        "fallback": p.fallback,
    }
    return Program(body=tuple(body), **parts | changes)  # type: ignore[arg-type]


def shuffle_statements(p: Program, rng: random.Random) -> Program:
    """Any other order in which each statement still follows what it reads."""
    place: dict[int, int] = {}
    body: list[Instr] = []
    waiting = set(range(len(p.body)))
    while waiting:
        ready = [i for i in waiting if all(a in place for a in p.body[i].args if type(a) is int)]
        i = rng.choice(ready)
        waiting.remove(i)
        body.append(Instr(p.body[i].op, tuple(place[a] if type(a) is int else a for a in p.body[i].args)))
        place[i] = len(body) - 1
    return rebuild(p, body, place)


def swap_arguments(p: Program, rng: random.Random) -> Program:
    """Commutative statements with their arguments the other way round."""
    flip = [OPS[op].commutative and rng.random() < 0.7 for op, _ in p.body]
    body = [Instr(op, args[::-1]) if f else Instr(op, args) for f, (op, args) in zip(flip, p.body, strict=True)]
    return rebuild(p, body, {i: i for i in range(len(body))})


def repeat_statements(p: Program, rng: random.Random) -> Program:
    """Some statements written twice; later readers take either copy."""
    copies: dict[int, list[int]] = {}
    body: list[Instr] = []
    for i, (op, args) in enumerate(p.body):
        copies[i] = []
        for _ in range(rng.choice([1, 1, 2])):
            body.append(Instr(op, tuple(rng.choice(copies[a]) if type(a) is int else a for a in args)))
            copies[i].append(len(body) - 1)
    return rebuild(p, body, {i: rng.choice(places) for i, places in copies.items()})


def add_dead_code(p: Program, rng: random.Random) -> Program:
    """Statements that nobody reads, and slots that feed only themselves or each other, or are overwritten unread."""
    taken = set(p.names)
    new = [name for name in ("dead_a", "dead_b", "dead_c", "dead_d") if name not in taken]
    place: dict[int, int] = {}
    body: list[Instr] = []
    for i, (op, args) in enumerate(p.body):
        if rng.random() < 0.5:
            body.append(Instr(rng.choice(["neg", "square", "norm"]), (rng.choice(["g", "p"]),)))
        body.append(Instr(op, tuple(place[a] if type(a) is int else a for a in args)))
        place[i] = len(body) - 1
    a, b, c, d = new
    body += [Instr("add", (a, "g")), Instr("mul", (d, c))]
    state = (Slot(a), *p.state, Slot(b, Kind.TENSOR, 0.5), Slot(c), Slot(d))
    values = tuple(place[x] if type(x) is int else x for x in p.next_state)
    following = (len(body) - 2, *values, "p", d, len(body) - 1)
    hypers = (*p.hypers, Hyper("dead_hyper", 0.3)) if "dead_hyper" not in taken else p.hypers
    return rebuild(p, body, place, state=state, next_state=following, hypers=hypers)


def rename(p: Program, rng: random.Random) -> Program:
    """Other names for slots and hyperparameters, in another order."""
    old = [s.name for s in p.state] + [h.name for h in p.hypers]
    fresh = [f"{rng.choice('abcz')}_{i}" for i in rng.sample(range(1000), len(old))]
    names = dict(zip(old, fresh, strict=True))

    def new(arg: Arg) -> Arg:
        return names.get(arg, arg) if type(arg) is str else arg

    order, hyper_order = (rng.sample(range(n), n) for n in (len(p.state), len(p.hypers)))
    state = [Slot(names[s.name], s.kind, s.init) for s in p.state]
    hypers = [Hyper(names[h.name], h.default, h.scale) for h in p.hypers]
    return Program(
        tuple(state[i] for i in order),
        tuple(hypers[i] for i in hyper_order),
        tuple(Instr(op, tuple(map(new, args))) for op, args in p.body),
        new(p.update),
        tuple(new(p.next_state[i]) for i in order),
        p.fallback,
    )


def inline_hypers(p: Program, rng: random.Random) -> Program:
    """Hyperparameters at their defaults written as literals, where the text allows it."""
    values = p.defaults()

    def literal(arg: Arg) -> Arg:
        return Const(values[arg]) if type(arg) is str and arg in values and rng.random() < 0.7 else arg

    body = [Instr(op, tuple(map(literal, args))) for op, args in p.body]
    return rebuild(p, body, {i: i for i in range(len(body))}, next_state=tuple(map(literal, p.next_state)))


def double_slots(p: Program, rng: random.Random) -> Program:
    """A slot kept twice; whoever reads it reads either."""
    if not p.state or "twin" in p.names:
        return p
    chosen = rng.randrange(len(p.state))
    old = p.state[chosen]

    def either(arg: Arg) -> Arg:
        return rng.choice([old.name, "twin"]) if arg == old.name else arg

    body = [Instr(op, tuple(map(either, args))) for op, args in p.body]
    following = (*map(either, p.next_state), either(p.next_state[chosen]))
    state = (*p.state, Slot("twin", old.kind, old.init))
    same = {i: i for i in range(len(body))}
    return rebuild(p, body, same, state=state, next_state=following, update=either(p.update))


REWRITINGS = (
    shuffle_statements, swap_arguments, repeat_statements, add_dead_code, rename, inline_hypers, double_slots
)  # fmt: skip


@pytest.mark.parametrize("rewrite", REWRITINGS, ids=lambda f: f.__name__)
@given(p=programs(), seed=seeds)
def test_key_ignores(rewrite: object, p: Program, seed: int) -> None:
    assert rewrite(p, random.Random(seed)).key == p.key  # type: ignore[operator]


@given(programs(), seeds)
def test_key_ignores_all_of_it_together(p: Program, seed: int) -> None:
    rng = random.Random(seed)
    other = p
    for rewrite in rng.sample(REWRITINGS, len(REWRITINGS)):
        other = rewrite(other, rng)
    assert other.key == p.key


@given(st.data())
def test_equal_keys_mean_equal_trajectories(data: st.DataObject) -> None:
    """Over 20 steps and to the last bit, which also says that the rewritings above are what they claim to be."""
    p = data.draw(programs(fallback=False))
    rng = random.Random(data.draw(seeds))
    other = p
    for rewrite in rng.sample(REWRITINGS, len(REWRITINGS)):
        other = rewrite(other, rng)
    start, *gradients = random_gradients(data.draw(shapes_for(p)), 20, rng.randrange(1000))
    assert other.key == p.key
    assert_same(train(other, start, gradients).parameters, train(p, start, gradients).parameters)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("rewrite", REWRITINGS, ids=lambda f: f.__name__)
def test_key_of_baselines_ignores(name: str, rewrite: object) -> None:
    p = BASELINES[name].program
    for seed in range(5):
        assert rewrite(p, random.Random(seed)).key == p.key  # type: ignore[operator]


# What it must see.

DIFFERENT = {
    "p": read("update p"),
    "neg": read("x0 = neg(g)", "update x0"),
    "difference": read("x0 = sub(g, p)", "update x0"),
    "difference, swapped": read("x0 = sub(p, g)", "update x0"),
    "constant": read("x0 = mul(g, 0.5)", "update x0"),
    "other constant": read("x0 = mul(g, 0.5000000000000001)", "update x0"),
    "lr in place of it": read("x0 = mul(g, lr)", "update x0"),
    "step in place of it": read("x0 = mul(g, step)", "update x0"),
    "progress in place of it": read("x0 = mul(g, progress)", "update x0"),
    "average": read("slot m = 0 tensor", "x0 = lerp(m, g, 0.1)", "update x0", "next m = x0"),
    "momentum of another start": read("slot m = 1 tensor", "x0 = lerp(m, g, 0.1)", "update x0", "next m = x0"),
    "momentum from p": read("slot m = p tensor", "x0 = lerp(m, g, 0.1)", "update x0", "next m = x0"),
    "momentum from g": read("slot m = g tensor", "x0 = lerp(m, g, 0.1)", "update x0", "next m = x0"),
    "momentum, late": read("slot m = 0 tensor", "x0 = lerp(m, g, 0.1)", "update m", "next m = x0"),
    "last gradient": read("slot m = 0 tensor", "update m", "next m = g"),
    "constant slot": read("slot m = 0 tensor", "x0 = lerp(m, g, 0.1)", "update x0", "next m = m"),
    "gradient before last": read("slot m = 0 tensor", "slot n = 0 tensor", "update m", "next m = n", "next n = g"),
    "scalar slot": read("slot s = 2 scalar", "x0 = mul(g, s)", "update x0", "next s = s"),
    "other scalar slot": read("slot s = 3 scalar", "x0 = mul(g, s)", "update x0", "next s = s"),
    "two slots swap": read("slot a = 1 tensor", "slot b = 2 tensor", "update a", "next a = b", "next b = a"),
    "two slots swap, other first": read(
        "slot a = 2 tensor", "slot b = 1 tensor", "update a", "next a = b", "next b = a"
    ),
    "rows": read("slot r = 0 row", "x0 = row_mean(g)", "x1 = mul(g, r)", "update x1", "next r = x0"),
    "columns": read("slot r = 0 col", "x0 = col_mean(g)", "x1 = mul(g, r)", "update x1", "next r = x0"),
    "row constant": read("slot r = 0 row", "x0 = add(g, r)", "update x0", "next r = r"),
    "column constant": read("slot r = 0 col", "x0 = add(g, r)", "update x0", "next r = r"),
    "fallback": read("x0 = centralise(g)", "update x0", "fallback", "update g"),
    "other fallback": read("x0 = centralise(g)", "update x0", "fallback", "update p"),
    "no fallback": read("x0 = centralise(g)", "update x0"),
    "minus infinity": read("x0 = mul(-1.0, 0.0)", "x1 = div(1.0, x0)", "x2 = mul(g, x1)", "update x2"),
    "infinity": read("x0 = div(1.0, 0.0)", "x1 = mul(g, x0)", "update x1"),
    **{name: row.program for name, row in BASELINES.items()},
    "adamw, other beta": BASELINES["adamw"].program.with_defaults(beta1=0.91),
}


def test_keys_of_different_programs_differ() -> None:
    for (name, p), (other, q) in combinations(DIFFERENT.items(), 2):
        assert p.key != q.key, (name, other)


def test_keys_are_32_hexadecimal_digits_and_the_same_in_every_process() -> None:
    """Keys are stored in ledgers and compared between workers."""
    assert all(len(p.key) == 32 and int(p.key, 16) >= 0 for p in DIFFERENT.values())
    code = "from optforge.baselines import BASELINES; print(*[row.program.key for row in BASELINES.values()])"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [row.program.key for row in BASELINES.values()]


def test_roles_of_slots_matter_and_their_names_do_not() -> None:
    adamw = BASELINES["adamw"].program
    names: dict[Arg, Arg] = {"m": "v", "v": "m"}
    body = tuple(Instr(op, tuple(names.get(a, a) for a in args)) for op, args in adamw.body)
    swapped = Program(adamw.state, adamw.hypers, body, adamw.update, adamw.next_state[::-1])
    assert swapped != adamw
    assert swapped.key == adamw.key
    roles = Program(adamw.state, adamw.hypers, adamw.body, adamw.update, adamw.next_state[::-1])
    assert roles.key != adamw.key


def test_equal_slots_with_calls_on_them_alone() -> None:
    """While slots are not yet told apart, expressions over nothing but slots must not be taken for numbers."""
    p = read("slot a = 0.5 tensor", "slot b = 0.5 tensor", "x0 = square(a)", "x1 = neg(b)", "x2 = add(x0, x1)",
             "update x2", "next a = x0", "next b = x1")  # fmt: skip
    assert p.key != read("slot a = 0.5 tensor", "x0 = square(a)", "update x0", "next a = x0").key


def test_slots_that_hold_the_same_value_are_one() -> None:
    one = read("slot a = 0 tensor", "x0 = lerp(a, g, 0.1)", "x1 = add(x0, x0)", "update x1", "next a = x0")
    two = read("slot a = 0 tensor", "slot b = 0 tensor", "x0 = lerp(a, g, 0.1)", "x1 = lerp(b, g, 0.1)",
               "x2 = add(x0, x1)", "update x2", "next a = x0", "next b = x1")  # fmt: skip
    assert one.key == two.key


def test_constants_are_folded() -> None:
    assert read("x0 = sub(1.0, 0.25)", "x1 = mul(g, x0)", "update x1").key == read("x0 = mul(g, 0.75)", "update x0").key


def test_fallback_that_is_never_used_is_dead() -> None:
    assert read("update g", "fallback", "update p").key == read("update g").key


# Exhaustively, over a small space: within a class of equal keys all programs behave alike.


def small_programs() -> Iterator[Program]:
    """All programs of one slot, two statements and few ops whose update is the last statement."""
    leaves: tuple[Arg, ...] = ("g", "m", "p", Const(2.0))
    ops = ("add", "sub", "mul", "lerp", "neg", "max")
    for first, second in product(ops, repeat=2):
        args = (leaves[:2], leaves, (Const(0.25),))
        later = ((0, "m"), (0, "g", "m", Const(2.0)), (Const(0.25), 0))
        for a, b in product(product(*args[: OPS[first].arity]), product(*later[: OPS[second].arity])):
            for following in (0, 1, "m"):
                yield Program((Slot("m"),), (), (Instr(first, a), Instr(second, b)), 1, (following,))


def trajectory(p: Program, steps: int = 20) -> torch.Tensor:
    start, *gradients = random_gradients((3,), steps, 11)
    return torch.stack(train(p, start, gradients, lr=0.125).parameters)


def test_equal_keys_mean_equal_trajectories_in_a_whole_small_space() -> None:
    classes: dict[str, list[Program]] = defaultdict(list)
    for p in small_programs():
        classes[p.key].append(p)
    shared = [group for group in classes.values() if len(group) > 1]
    assert len(classes) > 500 and len(shared) > 100
    for group in shared:
        first, *rest = {(p.body, p.next_state): p for p in group}.values()
        expected = trajectory(first)
        for other in random.Random(0).sample(rest, min(len(rest), 3)):
            assert_same(trajectory(other), expected)


@given(st.data())
@settings(max_examples=100)
def test_changes_that_matter_change_the_key(data: st.DataObject) -> None:
    """Change one thing at random. If training shows a difference, so must the key."""
    p = data.draw(flat_programs(ELEMENTWISE_OPS, max_body=6))
    assume(p.live.instructions)
    at = data.draw(st.sampled_from(p.live.instructions))
    op, args = p.body[at]
    what = data.draw(st.sampled_from(["op", "argument", "next", "init"]))
    body, state, following = list(p.body), p.state, p.next_state
    if what == "op":
        same = [name for name in ELEMENTWISE_OPS if OPS[name].arity == OPS[op].arity]
        body[at] = Instr(data.draw(st.sampled_from(same)), args)
    elif what == "argument":
        i = data.draw(st.integers(0, len(args) - 1))
        alike = [a for a in (*p.names, *range(at)) if p.kind_of(a) is p.kind_of(args[i])]
        body[at] = Instr(op, (*args[:i], data.draw(st.sampled_from(alike or [args[i]])), *args[i + 1 :]))
    elif state and what == "next":
        i = data.draw(st.integers(0, len(state) - 1))
        alike = [a for a in (*p.names, *range(len(body))) if p.kind_of(a) is state[i].kind]
        following = (*following[:i], data.draw(st.sampled_from(alike)), *following[i + 1 :])
    elif state:
        state = (Slot(state[0].name, state[0].kind, 0.625), *state[1:])
    other = Program(state, p.hypers, tuple(body), p.update, following)
    start, *gradients = random_gradients((4,), 5, 3)
    one, two = (torch.stack(train(x, start, gradients).parameters) for x in (p, other))
    if not torch.allclose(one, two, rtol=0, atol=0, equal_nan=True):
        assert p.key != other.key


def test_builder_and_text_give_the_same_key() -> None:
    b = Builder()
    m = b.slot("m")
    m.next = b.lerp(m, b.g, 0.1)
    assert b.build(m.next).key == DIFFERENT["average"].key
