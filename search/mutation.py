"""Mutations of programs. Every child is well-typed by construction: an edit keeps the kind of what it replaces."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from primitives import OPS, SCALES, Const, Hyper, Instr, Kind, Program, Slot
from primitives.kinds import SIGNALS
from primitives.program import Arg

# Literals that a redraw may pick besides random ones.
_CONSTANTS = (0.5, 1.0, 2.0, 0.1, 0.9, 0.99, 1e-8, math.pi, math.e)


@dataclass(frozen=True)
class Space:
    """Which programs a search may reach.

    Attributes:
        ops: names of the ops that mutations may introduce.
        max_statements: largest body; beyond it statements are only removed or changed.
        max_slots: most state slots.
        signals: inputs that mutations may introduce.
        weights: relative frequency of each mutation.
    """

    ops: tuple[str, ...]
    max_statements: int = 40
    max_slots: int = 4
    signals: tuple[str, ...] = ("g", "p", "lr", "step")
    weights: tuple[tuple[str, float], ...] = (
        ("insert", 3.0),
        ("delete", 2.0),
        ("argument", 3.0),
        ("op", 2.0),
        ("constant", 3.0),
        ("remember", 0.5),
    )
    results: dict[Kind, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = [name for name, _ in self.weights if name not in MUTATIONS]
        if unknown:
            raise ValueError(f"unknown mutation {unknown[0]!r}; choose from {', '.join(MUTATIONS)}")
        results = {kind: tuple(n for n in self.ops if kind in OPS[n].result.values()) for kind in Kind}
        object.__setattr__(self, "results", results)


def mutate(program: Program, space: Space, rng: random.Random, tries: int = 20) -> tuple[Program, str]:
    """A changed copy of `program` and the name of the mutation that made it.

    Draws mutations until one applies and changes the program's text; raises `RuntimeError` if none does in `tries`.
    """
    names = [name for name, _ in space.weights]
    weights = [weight for _, weight in space.weights]
    for _ in range(tries):
        name = rng.choices(names, weights)[0]
        child = MUTATIONS[name](program, space, rng)
        if child is not None and child != program:
            return child, name
    raise RuntimeError(f"no mutation of {', '.join(names)} changed the program in {tries} tries")


class _Draft:
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
        inside = [(i, j) for i, (_, args) in enumerate(self.body) for j in range(len(args))]
        return inside + [(-1, j) for j in range(len(self.outputs))]

    def get(self, place: tuple[int, int]) -> Arg:
        i, j = place
        return self.outputs[j] if i < 0 else self.body[i][1][j]

    def put(self, place: tuple[int, int], arg: Arg) -> None:
        i, j = place
        if i < 0:
            self.outputs[j] = arg
        else:
            self.body[i][1][j] = arg

    def kind(self, arg: Arg) -> Kind:
        if type(arg) is int:
            return self.kinds[arg]
        if type(arg) is Const:
            return Kind.SCALAR
        return SIGNALS.get(arg) or next(  # type: ignore[arg-type]
            (s.kind for s in self.state if s.name == arg), Kind.SCALAR
        )

    def insert(self, at: int, op: str, args: list[Arg], kind: Kind) -> None:
        """Put a statement before position `at`; later registers move up by one."""
        for place in self.places():
            arg = self.get(place)
            if type(arg) is int and arg >= at:
                self.put(place, arg + 1)
        self.body.insert(at, (op, args))
        self.kinds.insert(at, kind)

    def remove(self, at: int) -> None:
        """Drop the statement at position `at`, which nothing may use any more."""
        del self.body[at], self.kinds[at]
        for place in self.places():
            arg = self.get(place)
            if type(arg) is int and arg > at:
                self.put(place, arg - 1)

    def values(self, before: int, space: Space, kind: Kind | None = None) -> list[Arg]:
        """What a statement at position `before` may read, of one kind if given."""
        found: list[Arg] = [i for i in range(before) if kind is None or self.kinds[i] is kind]
        found += [s.name for s in self.state if kind is None or s.kind is kind]
        found += [s for s in space.signals if kind is None or SIGNALS[s] is kind]
        if kind in (None, Kind.SCALAR):
            found += [h.name for h in self.hypers]
        return found

    def build(self) -> Program:
        body = tuple([Instr(op, tuple(args)) for op, args in self.body])
        update, *following = self.outputs
        return Program(tuple(self.state), tuple(self.hypers), body, update, tuple(following), self.program.fallback)


def _draw(draft: _Draft, before: int, space: Space, rng: random.Random, kind: Kind | None = None) -> Arg | None:
    """A random readable value (of one kind, if given); now and then a fresh literal where a scalar may stand."""
    if kind in (None, Kind.SCALAR) and rng.random() < 0.25:
        return Const(_literal(rng))
    values = draft.values(before, space, kind)
    if not values:
        return Const(_literal(rng)) if kind in (None, Kind.SCALAR) else None
    return rng.choice(values)


def _literal(rng: random.Random) -> float:
    if rng.random() < 0.5:
        return rng.choice(_CONSTANTS)
    return round(10 ** rng.uniform(-3, 1), 4) * rng.choice((1, 1, 1, -1))


def _arguments(
    draft: _Draft,
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
            drawn = match if match is not None else _draw(draft, before, space, rng, wanted)
            if drawn is None:
                break
            args.append(drawn)
        if len(args) == row.arity and not pool:
            return args
    return None


def insert(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Insert a statement: on an edge, so that it transforms a value on its way to a use, or (1 in 4) unused."""
    if len(program.body) >= space.max_statements:
        return None
    draft = _Draft(program)
    unused = rng.random() < 0.25
    place = rng.choice(draft.places())
    before = place[0] if place[0] >= 0 else len(draft.body)
    value = draft.get(place)
    kind = draft.kind(value)
    op = rng.choice(space.results[kind] or space.ops)
    args = _arguments(draft, op, kind, before, space, rng, keep=() if unused else (value,))
    if args is None:
        return None
    draft.insert(before, op, args, kind)
    if not unused:
        draft.put((place[0] + 1, place[1]) if place[0] >= 0 else place, before)
    return draft.build()


def delete(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Delete a statement; what used it reads one of its arguments instead, or another value of the same kind."""
    if len(program.body) <= 1:
        return None
    draft = _Draft(program)
    at = rng.randrange(len(draft.body))
    kind = draft.kinds[at]
    own = [a for a in draft.body[at][1] if draft.kind(a) is kind]
    replacement = rng.choice(own) if own else _draw(draft, at, space, rng, kind)
    if replacement is None:
        return None
    for place in draft.places():
        if draft.get(place) == at and type(draft.get(place)) is int:
            draft.put(place, replacement)
    draft.remove(at)
    return draft.build()


def argument(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Make one use (an argument, the update, or a slot's next value) read another value."""
    draft = _Draft(program)
    place = rng.choice(draft.places())
    old = draft.get(place)
    if place[0] < 0:
        new = _draw(draft, len(draft.body), space, rng, draft.kind(old))
    else:
        new = _draw(draft, place[0], space, rng)
        op, args = draft.body[place[0]]
        if new is None:
            return None
        kinds = [draft.kind(a) for a in args]
        kinds[place[1]] = draft.kind(new)
        if OPS[op].result.get(tuple(kinds)) is not draft.kinds[place[0]]:
            new = _draw(draft, place[0], space, rng, draft.kind(old))
    if new is None or new == old:
        return None
    draft.put(place, new)
    return draft.build()


def op(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Replace a statement's op, keeping its arguments as far as the new op takes them."""
    if not program.body:
        return None
    draft = _Draft(program)
    at = rng.randrange(len(draft.body))
    old, args = draft.body[at]
    choices = space.results[draft.kinds[at]]
    if not choices:
        return None
    new = rng.choice(choices)
    if new == old:
        return None
    found = _arguments(draft, new, draft.kinds[at], at, space, rng, keep=args)
    if found is None:
        return None
    draft.body[at] = (new, found)
    return draft.build()


def constant(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Perturb or (1 in 4) redraw a literal or a hyperparameter's default, on the scale it lives on."""
    draft = _Draft(program)
    literals = [place for place in draft.places() if type(draft.get(place)) is Const]
    count = len(literals) + len(draft.hypers)
    if not count:
        return None
    choice = rng.randrange(count)
    redraw = rng.random() < 0.25
    if choice < len(literals):
        value = draft.get(literals[choice]).value  # type: ignore[union-attr]
        if redraw or value == 0:
            value = _literal(rng)
        else:
            value = float(f"{value * math.exp(rng.gauss(0, 0.5)):.4g}") * (-1 if rng.random() < 0.05 else 1)
        draft.put(literals[choice], Const(value))
    else:
        at = choice - len(literals)
        old = draft.hypers[at]
        draft.hypers[at] = Hyper(old.name, _perturb(old, redraw, rng), old.scale)
    return draft.build()


def _perturb(hyper: Hyper, redraw: bool, rng: random.Random) -> float:
    """Another default: a normal step in the scale's unconstrained space, or a fresh value."""
    scale = SCALES[hyper.scale]
    start = scale.forward(hyper.default)
    if redraw or not math.isfinite(start):
        fresh = {
            "unit": 1 - 10 ** rng.uniform(-4, 0),
            "log": 10 ** rng.uniform(-9, 0),
            "linear": rng.gauss(0, 1),
        }
        value = fresh[hyper.scale]
    else:
        value = scale.inverse(start + rng.gauss(0, 0.7))
    value = 1 - float(f"{1 - value:.3g}") if hyper.scale == "unit" else float(f"{value:.3g}")
    return value if scale.contains(value) else hyper.default


def remember(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Give the program another slot: an average of some value, read in that value's place."""
    if len(program.state) >= space.max_slots or len(program.body) >= space.max_statements:
        return None
    draft = _Draft(program)
    places = [place for place in draft.places() if draft.kind(draft.get(place)) is Kind.TENSOR]
    place = rng.choice(places)
    before = place[0] if place[0] >= 0 else len(draft.body)
    value = draft.get(place)
    name = next(n for n in (f"s{i}" for i in range(len(program.names) + 1)) if n not in program.names)
    decay = Const(round(10 ** rng.uniform(-3, 0), 4))
    draft.insert(before, "lerp", [name, value, decay], Kind.TENSOR)
    draft.put((place[0] + 1, place[1]) if place[0] >= 0 else place, before)
    draft.state.append(Slot(name))
    draft.outputs.append(before)
    return draft.build()


MUTATIONS: dict[str, Callable[[Program, Space, random.Random], Program | None]] = {
    f.__name__: f for f in (insert, delete, argument, op, constant, remember)
}
