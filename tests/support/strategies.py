"""Random well-typed programs and random inputs for them, and a plain training loop to run them in.

Programs are right by construction: an operation is drawn from the table together with one of the tuples of kinds that
it accepts, and its arguments from what is readable with these kinds. Much of what is drawn is dead, on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from optforge.primitives import OPS, SCALES, SIGNALS, Builder, Const, Hyper, Instr, Kind, Program, Slot, execute
from optforge.primitives.backends.interpret import Stepped, initial_slot
from optforge.primitives.builder import Expr
from optforge.primitives.kinds import RESERVED

ALL_OPS = tuple(OPS)
ARENA_OPS = tuple(name for name, op in OPS.items() if not op.needs_matrix)  # elementwise, or over a whole parameter
TOTAL_OPS = tuple(name for name in ARENA_OPS if set(OPS[name].domain) == {"real"})  # finite for moderate arguments
ELEMENTWISE_OPS = tuple(name for name, op in OPS.items() if not op.reduces)

FLAT_KINDS = (Kind.SCALAR, Kind.TENSOR)
MATRIX_SHAPES = ((3, 4), (4, 3), (1, 5), (5, 1), (2, 3, 2))
SHAPES = ((), (1,), (5,), *MATRIX_SHAPES)

# Names that a careless reader of the text form could take for something else, beside plain ones.
_TRICKY = (
    "x",
    "x_1",
    "e5",
    "e",
    "n",
    "na",
    "infinity",
    "true",
    "tensor",
    "row",
    "unit",
    "log",
    "add",
    "lerp",
    "gg",
    "k",
)
_PLAIN = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=40).filter(
    lambda s: s[0].isalpha() and s not in SIGNALS and s not in RESERVED and not (s[0] == "x" and s[1:].isdigit())
)
names = st.sampled_from(_TRICKY) | _PLAIN

finite_floats = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)
constants = (
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 0.1, 0.9, 1e-8, 1e-30, 1e22, math.pi])
    | st.floats(-4, 4, allow_nan=False).map(lambda x: x + 0.0)
    | finite_floats
)


@st.composite
def hypers(draw: st.DrawFn, name: str) -> Hyper:
    """A hyperparameter of any scale, with any default of its range."""
    scale = draw(st.sampled_from(sorted(SCALES)))
    default = {
        "log": st.just(0.0) | st.floats(1e-12, 1e3),
        "unit": st.just(0.0) | st.floats(0, 1, exclude_max=True),
        "linear": finite_floats | st.floats(-3, 3),
    }[scale]
    return Hyper(name, draw(default), scale)


@st.composite
def slots(draw: st.DrawFn, name: str, kinds: Sequence[Kind] = tuple(Kind)) -> Slot:
    """A slot of one of `kinds`, starting from a number or a copy."""
    kind = draw(st.sampled_from(kinds))
    init = st.just(0.0) | st.floats(-2, 2)
    return Slot(name, kind, draw(init | st.sampled_from(["p", "g"]) if kind is Kind.TENSOR else init))


@st.composite
def programs(
    draw: st.DrawFn,
    ops: Sequence[str] = ALL_OPS,
    kinds: Sequence[Kind] = tuple(Kind),
    max_body: int = 12,
    max_state: int = 4,
    fallback: bool = True,
) -> Program:
    """Any well-typed program over `ops` whose slots are of `kinds`."""
    count, hyper_count = draw(st.integers(0, max_state)), draw(st.integers(0, 3))
    labels = draw(st.lists(names, min_size=count + hyper_count, max_size=count + hyper_count, unique=True))
    state = tuple(draw(slots(name, kinds)) for name in labels[:count])
    own = tuple(draw(hypers(name)) for name in labels[count:])
    readable: dict[Kind, list[int | str]] = {kind: [] for kind in Kind}
    for name, kind in [*((s.name, s.kind) for s in state), *((h.name, Kind.SCALAR) for h in own), *SIGNALS.items()]:
        readable[kind].append(name)

    def argument(kind: Kind) -> int | str | Const:
        if kind is Kind.SCALAR and draw(st.booleans()):
            return Const(draw(constants))
        pool = readable[kind]
        return draw(st.sampled_from(pool[:2]) | st.sampled_from(pool))

    joining = [name for name in ops if OPS[name].arity > 1] or ops  # drawn more often: they keep what came before alive
    body: list[Instr] = []
    for _ in range(draw(st.integers(0, max_body))):
        op = OPS[draw(st.sampled_from(joining) | st.sampled_from(ops))]
        possible = [found for found in op.result if all(readable[kind] for kind in found)]
        if not possible:
            continue
        whole = [found for found in possible if op.result[found] is Kind.TENSOR] or possible
        found = draw(st.sampled_from(whole) | st.sampled_from(possible))
        body.append(Instr(op.name, tuple(argument(kind) for kind in found)))
        readable[op.result[found]].insert(0, len(body) - 1)  # the youngest first: they are drawn most
    update = argument(Kind.TENSOR)
    following = tuple(argument(slot.kind) for slot in state)
    second = draw(st.none() | flat_programs(max_body=4, fallback=False)) if fallback else None
    return Program(state, own, tuple(body), update, following, second)


def flat_programs(ops: Sequence[str] = ARENA_OPS, **options: object) -> st.SearchStrategy[Program]:
    """Programs without rows, columns and matrices: for parameters of any shape, and for arenas."""
    return programs(ops, FLAT_KINDS, **{"fallback": False} | options)  # type: ignore[arg-type]


def total_programs(**options: object) -> st.SearchStrategy[Program]:
    """Flat programs over operations that are defined for all real numbers."""
    return flat_programs(TOTAL_OPS, **options)


def shapes_for(program: Program) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of parameters that `program` itself, not its fallback, can train."""
    return st.sampled_from(MATRIX_SHAPES if program.needs_matrix else SHAPES)


seeds = st.integers(0, 2**31)


def random_tensor(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, and a few exact zeros, with which special cases begin."""
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(tuple(shape), generator=generator) < 0.05, 0.0, x).to(dtype)


def random_inputs(
    program: Program, shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A value for everything that `program` may read, state included, for one parameter of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {"g": random_tensor(shape, generator, dtype), "p": random_tensor(shape, generator, dtype)}
    for name, kind in SIGNALS.items():
        if kind is Kind.SCALAR:
            inputs[name] = torch.rand((), generator=generator, dtype=torch.float64)
    inputs["step"] = torch.tensor(float(1 + seed % 5), dtype=torch.float64)
    for slot in program.state:
        inputs[slot.name] = random_tensor(slot.kind.shape(shape), generator, dtype)
    return inputs | numbers(program.defaults())


def numbers(values: Mapping[str, float]) -> dict[str, Tensor]:
    """Plain numbers as programs want them: 0-dimensional and float64."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def value_of_kind(b: Builder, kind: Kind) -> Expr:
    """Some value of `kind` that changes with the gradient, or with the step."""
    return {
        Kind.SCALAR: lambda: b.step, Kind.TENSOR: lambda: b.g, Kind.ROW: lambda: b.row_mean(b.g),
        Kind.COL: lambda: b.col_mean(b.g), Kind.LEFT: lambda: b.row_gram(b.g), Kind.RIGHT: lambda: b.col_gram(b.g),
    }[kind]()  # fmt: skip


def seen_in_update(b: Builder, x: Expr, kind: Kind) -> Expr:
    """A tensor that `x`, of `kind`, enters."""
    return {Kind.LEFT: lambda: b.matmul(x, b.p), Kind.RIGHT: lambda: b.matmul(b.p, x)}.get(kind, lambda: b.p * x)()


class Run(NamedTuple):
    """Parameter and slots (live ones only) after each step of a run."""

    parameters: list[Tensor]
    states: list[tuple[Tensor, ...]]


StepFunction = Callable[[Program, Mapping[str, Tensor], Sequence[int]], Stepped]


def train(
    program: Program,
    start: Tensor,
    gradients: Sequence[Tensor],
    lr: float = 0.01,
    total_steps: int = 100,
    step_function: StepFunction = execute,
) -> Run:
    """Train one parameter on given gradients: the loop of the docstrings, in the most obvious way."""
    p, values = start.clone(), numbers(program.defaults())
    state = {s.name: initial_slot(s, start, gradients[0]) for s in program.state}
    run = Run([], [])
    for step, g in enumerate(gradients, 1):
        signals = numbers({"lr": lr, "step": step, "progress": step / total_steps})
        signals["global_norm"] = torch.linalg.vector_norm(g).double()
        update, following = step_function(program, {**signals, **values, **state, "g": g, "p": p}, range(p.ndim))
        state = {
            s.name: value.to(p.dtype).expand(s.kind.shape(p.shape)).clone()
            for s, value in zip(program.state, following, strict=True)
        }
        rate = torch.tensor(lr, dtype=torch.float64).to(p.dtype)  # a shared number is rounded where it meets a tensor
        p = p - rate * update
        run.parameters.append(p)
        run.states.append(tuple(state[s.name] for s in program.live_state))
    return run


def random_gradients(shape: Sequence[int], steps: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """`steps` gradients for one parameter of `shape`, preceded by a starting point for it."""
    generator = torch.Generator().manual_seed(seed)
    return [random_tensor(shape, generator, dtype) for _ in range(steps + 1)]


def assert_same(got: object, expected: object) -> None:
    """Equal to the last bit, shapes and dtypes included; not-a-number equals itself."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
