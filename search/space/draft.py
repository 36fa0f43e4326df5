"""Programs taken apart for editing: the space they live in, places to edit, and what may be drawn for a place."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from optforge.primitives import OPS, Const, Instr, Kind, Program
from optforge.primitives.blocks import BLOCKS
from optforge.primitives.kinds import SIGNALS
from optforge.primitives.program import Arg

# Literals that a redraw may pick besides random ones.
_CONSTANTS = (0.5, 1.0, 2.0, 0.1, 0.9, 0.99, 1e-8, math.pi, math.e)

MIX: tuple[tuple[str, float], ...] = (
    ("insert", 3.0),
    ("delete", 2.0),
    ("argument", 3.0),
    ("op", 2.0),
    ("constant", 3.0),
    ("remember", 0.5),
    ("splice", 0.5),
    ("swap_slots", 0.25),
    ("crossover", 0.5),
    ("transform", 5.0),
)
"""Relative frequency of each mutation."""


@dataclass(frozen=True)
class Space:
    """Which programs a search may reach.

    Attributes:
        ops: names of the ops that mutations may introduce.
        max_statements: largest body; beyond it statements are only removed or changed.
        max_slots: most state slots.
        signals: inputs that mutations may introduce.
        blocks: names of `primitives.blocks.BLOCKS` that may be spliced in, as far as their ops and signals are allowed.
        weights: relative frequency of each mutation, of `MIX` or of others (see `search.space.plugins`).
        prior: relative frequency of ops where one is drawn; 1 for those that are not named.
    """

    ops: tuple[str, ...]
    max_statements: int = 40
    max_slots: int = 4
    signals: tuple[str, ...] = ("g", "p", "lr", "step")
    blocks: tuple[str, ...] = tuple(BLOCKS)
    weights: tuple[tuple[str, float], ...] = MIX
    prior: tuple[tuple[str, float], ...] = ()
    results: dict[Kind, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    unary: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _shares: dict[str, float] = field(init=False, repr=False, compare=False)
    mutations: tuple[str, ...] = field(init=False, repr=False, compare=False)
    cumulative: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known: dict[str, Collection[str]] = {"signal": SIGNALS, "block": BLOCKS}
        chosen = {"signal": self.signals, "block": self.blocks}
        for what, names in chosen.items():
            for name in names:
                if name not in known[what]:
                    raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(known[what])}")
        if self.max_statements < 1 or self.max_slots < 0:
            raise ValueError(
                "a program needs room for at least 1 statement and 0 slots, got "
                f"{self.max_statements} and {self.max_slots}"
            )
        results = {kind: tuple(n for n in self.ops if kind in OPS[n].result.values()) for kind in Kind}
        object.__setattr__(self, "results", results)
        object.__setattr__(
            self, "unary", tuple(n for n in self.ops if OPS[n].result.get((Kind.TENSOR,)) is Kind.TENSOR)
        )
        object.__setattr__(self, "_shares", dict.fromkeys(self.ops, 1.0) | dict(self.prior))
        object.__setattr__(self, "mutations", tuple(name for name, _ in self.weights))
        object.__setattr__(self, "cumulative", tuple(accumulate(weight for _, weight in self.weights)))

    def pick(self, ops: Sequence[str], rng: random.Random) -> str:
        """One of `ops`, by their prior."""
        return rng.choices(ops, [self._shares[name] for name in ops])[0]


class Draft:
    """A program taken apart for editing.

    Its uses are numbered places that hold an argument: ``(statement, position)``, then ``(-1, 0)`` for the update and
    ``(-1, 1 + i)`` for the next value of slot i.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.body = [(op, list(args)) for op, args in program.body]
        self.outputs: list[Arg] = [program.update, *program.next_state]
        self.state, self.hypers = list(program.state), list(program.hypers)
        self.kinds = list(program.kinds)

    def places(self) -> list[tuple[int, int]]:
        """All places."""
        inside = [(i, j) for i, (_, args) in enumerate(self.body) for j in range(len(args))]
        return inside + [(-1, j) for j in range(len(self.outputs))]

    def get(self, place: tuple[int, int]) -> Arg:
        """The argument at a place."""
        i, j = place
        return self.outputs[j] if i < 0 else self.body[i][1][j]

    def put(self, place: tuple[int, int], arg: Arg) -> None:
        """Replace the argument at a place."""
        i, j = place
        if i < 0:
            self.outputs[j] = arg
        else:
            self.body[i][1][j] = arg

    def kind(self, arg: Arg) -> Kind:
        """Kind of a readable value."""
        if type(arg) is int:
            return self.kinds[arg]
        if type(arg) is Const:
            return Kind.SCALAR
        return SIGNALS.get(arg) or next(  # type: ignore[arg-type]
            (s.kind for s in self.state if s.name == arg), Kind.SCALAR
        )

    def insert(self, at: int, op: str, args: list[Arg], kind: Kind) -> None:
        """Put a statement before position `at`; later registers move up by one."""
        self._shift(at, 1)
        self.body.insert(at, (op, args))
        self.kinds.insert(at, kind)

    def remove(self, at: int) -> None:
        """Drop the statement at position `at`, which nothing may use any more."""
        del self.body[at], self.kinds[at]
        self._shift(at, -1)

    def _shift(self, at: int, by: int) -> None:
        """Renumber the registers from `at` on wherever they are read, which is from there on only."""
        for args in (*[args for _, args in self.body[at:]], self.outputs):
            for j, arg in enumerate(args):
                if type(arg) is int and arg >= at:
                    args[j] = arg + by

    def values(self, before: int, space: Space, kind: Kind | None = None) -> list[Arg]:
        """What a statement at position `before` may read, of one kind if given."""
        found: list[Arg] = [i for i in range(before) if kind is None or self.kinds[i] is kind]
        found += [s.name for s in self.state if kind is None or s.kind is kind]
        found += [s for s in space.signals if kind is None or SIGNALS[s] is kind]
        if kind in (None, Kind.SCALAR):
            found += [h.name for h in self.hypers]
        return found

    def free_name(self) -> str:
        """A name for another slot."""
        taken = {s.name for s in self.state} | {h.name for h in self.hypers}
        return next(n for n in (f"s{i}" for i in range(len(taken) + 1)) if n not in taken)

    def build(self) -> Program:
        """The edited program, checked again.

        Where it has come to work on rows, columns or matrices, parameters that are none get what it was edited from.
        """
        before = self.program
        body = tuple([Instr(op, tuple(args)) for op, args in self.body])
        update, *following = self.outputs
        made = Program(tuple(self.state), tuple(self.hypers), body, update, tuple(following), before.fallback)
        if made.fallback is None and made.needs_matrix and not before.needs_matrix:
            return replace(made, fallback=before.pruned())
        return made


def draw(draft: Draft, before: int, space: Space, rng: random.Random, kind: Kind | None = None) -> Arg | None:
    """A random readable value (of one kind, if given); now and then a fresh literal where a scalar may stand."""
    if kind in (None, Kind.SCALAR) and rng.random() < 0.25:
        return Const(literal(rng))
    values = draft.values(before, space, kind)
    if not values:
        return Const(literal(rng)) if kind in (None, Kind.SCALAR) else None
    return rng.choice(values)


def literal(rng: random.Random) -> float:
    """A random literal: a familiar one, or any between a thousandth and ten, one in four negative."""
    if rng.random() < 0.5:
        return rng.choice(_CONSTANTS)
    return round(10 ** rng.uniform(-3, 1), 4) * rng.choice((1, 1, 1, -1))


def fresh_value(scale: str, rng: random.Random) -> float:
    """A random value for a hyperparameter on `scale`."""
    fresh = {"unit": 1 - 10 ** rng.uniform(-4, 0), "log": 10 ** rng.uniform(-9, 0), "linear": rng.gauss(0, 1)}
    return rounded(fresh[scale], scale)


def nudged(value: float, scale: str, by: float) -> float:
    """`value` times e to the power of `by`; on the unit scale that holds for its odds, value / (1 - value).

    So a share near 0 is moved by a factor of itself, and one near 1 by a factor of its distance from 1. Both scales
    leave 0, which is off, where it is. On the linear scale `by` is added.
    """
    if scale == "linear":
        return value + by
    if scale == "unit":
        odds = value / (1 - value) * math.exp(by)
        return min(odds / (1 + odds), 1 - 2**-53)
    return min(value * math.exp(by), sys.float_info.max)


def rounded(value: float, scale: str) -> float:
    """`value` to three digits, of its distance from 1 on the unit scale."""
    return 1 - float(f"{1 - value:.3g}") if scale == "unit" else float(f"{value:.3g}")


def arguments(
    draft: Draft,
    op: str,
    kind: Kind,
    before: int,
    space: Space,
    rng: random.Random,
    keep: Sequence[Arg] = (),
) -> list[Arg] | None:
    """Arguments with which `op` at position `before` gives `kind`; `keep` are used first, if that is possible."""
    row = OPS[op]
    kept = list(keep[: row.arity])
    rng.shuffle(kept)
    signatures = [s for s, result in row.result.items() if result is kind]
    rng.shuffle(signatures)
    for signature in signatures:
        pool, args = list(kept), []
        for wanted in signature:
            match = next((a for a in pool if draft.kind(a) is wanted), None)
            if match is not None:
                pool.remove(match)
            drawn = match if match is not None else draw(draft, before, space, rng, wanted)
            if drawn is None:
                break
            args.append(drawn)
        if len(args) == row.arity and not pool:
            return args
    return None
