"""Mutations of programs. Every child is well-typed by construction: an edit keeps the kind of what it replaces."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from optforge.primitives import OPS, SCALES, Const, Hyper, Kind, Program, Slot
from optforge.primitives.program import Arg
from optforge.search.space.draft import Draft, Space, arguments, draw, fresh_value, literal, nudged, rounded
from optforge.search.space.plugins import Mutation, mutate_as_others
from optforge.search.space.recombination import crossover, put_block, splice, swap_slots


def mutate(
    program: Program,
    space: Space,
    rng: random.Random,
    tries: int = 20,
    mate: Callable[[], Program] | None = None,
) -> tuple[Program, str]:
    """A changed copy of `program` and the name of the mutation that made it.

    Draws mutations until one applies and changes the program's text; raises `RuntimeError` if none does in `tries`.
    A crossover asks `mate` for the other parent; without one it crosses the program with itself.
    """
    for _ in range(tries):
        name = rng.choices(space.mutations, cum_weights=space.cumulative)[0]
        if name == "crossover":
            child = crossover(program, program if mate is None else mate(), space, rng)
        else:
            own = MUTATIONS.get(name)
            child = mutate_as_others(name, program, space, rng) if own is None else own(program, space, rng)
        if child is not None and child != program:
            return child, name
    raise RuntimeError(f"no mutation of {', '.join(space.mutations)} changed the program in {tries} tries")


def insert(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Insert a statement: on an edge, so that it transforms a value on its way to a use, or (1 in 4) unused."""
    if len(program.body) >= space.max_statements:
        return None
    draft = Draft(program)
    unused = rng.random() < 0.25
    place = rng.choice(draft.places())
    before = place[0] if place[0] >= 0 else len(draft.body)
    value = draft.get(place)
    kind = draft.kind(value)
    op = space.pick(space.results[kind] or space.ops, rng)
    args = arguments(draft, op, kind, before, space, rng, keep=() if unused else (value,))
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
    draft = Draft(program)
    at = rng.randrange(len(draft.body))
    kind = draft.kinds[at]
    own = [a for a in draft.body[at][1] if draft.kind(a) is kind]
    replacement = rng.choice(own) if own else draw(draft, at, space, rng, kind)
    if replacement is None:
        return None
    for place in draft.places():
        if draft.get(place) == at and type(draft.get(place)) is int:
            draft.put(place, replacement)
    draft.remove(at)
    return draft.build()


def argument(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Make one use (an argument, the update, or a slot's next value) read another value."""
    draft = Draft(program)
    place = rng.choice(draft.places())
    old = draft.get(place)
    if place[0] < 0:
        new = draw(draft, len(draft.body), space, rng, draft.kind(old))
    else:
        new = draw(draft, place[0], space, rng)
        op, args = draft.body[place[0]]
        if new is None:
            return None
        kinds = [draft.kind(a) for a in args]
        kinds[place[1]] = draft.kind(new)
        if OPS[op].result.get(tuple(kinds)) is not draft.kinds[place[0]]:
            new = draw(draft, place[0], space, rng, draft.kind(old))
    if new is None or new == old:
        return None
    draft.put(place, new)
    return draft.build()


def op(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Replace a statement's op, keeping its arguments as far as the new op takes them."""
    if not program.body:
        return None
    draft = Draft(program)
    at = rng.randrange(len(draft.body))
    old, args = draft.body[at]
    choices = space.results[draft.kinds[at]]
    if not choices:
        return None
    new = space.pick(choices, rng)
    if new == old:
        return None
    found = arguments(draft, new, draft.kinds[at], at, space, rng, keep=args)
    if found is None:
        return None
    draft.body[at] = (new, found)
    return draft.build()


def constant(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Perturb or (1 in 4) redraw a literal or a hyperparameter's default, on the scale it lives on."""
    draft = Draft(program)
    literals = [place for place in draft.places() if type(draft.get(place)) is Const]
    count = len(literals) + len(draft.hypers)
    if not count:
        return None
    choice = rng.randrange(count)
    redraw = rng.random() < 0.25
    if choice < len(literals):
        value = draft.get(literals[choice]).value  # type: ignore[union-attr]
        if redraw or value == 0:
            value = literal(rng)
        else:
            value = float(f"{value * math.exp(rng.gauss(0, 0.5)):.4g}") * (-1 if rng.random() < 0.05 else 1)
        draft.put(literals[choice], Const(value))
    else:
        at = choice - len(literals)
        old = draft.hypers[at]
        draft.hypers[at] = Hyper(old.name, _perturb(old, redraw, rng), old.scale)
    return draft.build()


def _perturb(hyper: Hyper, redraw: bool, rng: random.Random) -> float:
    """Another default: one near by, or a fresh value."""
    if redraw or (hyper.default == 0 and hyper.scale != "linear"):  # what is off has no neighbours
        return fresh_value(hyper.scale, rng)
    value = rounded(nudged(hyper.default, hyper.scale, rng.gauss(0, 0.7)), hyper.scale)
    return value if SCALES[hyper.scale].contains(value) else hyper.default


def transform(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Put a unary op (1 in 2) or a block behind a value on the way of the gradient to the update, for all who read it.

    There the known rules differ: in what is done to the gradient, to its average, to the direction that is made of it,
    and to the update. What slots become stays as it was.
    """
    way = _way(program, rng)
    if not way:
        return None
    draft, value = Draft(program), rng.choice(way)
    before = value + 1 if type(value) is int else 0
    if rng.random() < 0.5 and space.unary:
        if len(program.body) >= space.max_statements:
            return None
        draft.insert(before, space.pick(space.unary, rng), [value], Kind.TENSOR)
        found: Arg | None = before
    else:
        found = put_block(draft, value, before, space, rng)
    if found is None:
        return None
    end = before + len(draft.body) - len(program.body)
    for i, j in draft.places():
        if (i >= end or (i, j) == (-1, 0)) and draft.get((i, j)) == value:
            draft.put((i, j), found)
    return draft.build()


def _way(program: Program, rng: random.Random) -> list[Arg]:
    """Values from the update back to the gradient or a slot, always through a random argument that the gradient enters.

    Slots are left out.
    """
    following = dict(zip((s.name for s in program.state), program.next_state, strict=True))
    entered: set[Arg] = {"g", *(s.name for s in program.live_state if s.init == "g")}
    before = -1
    while len(entered) > before:
        before = len(entered)
        entered.update(i for i in program.live.instructions if not entered.isdisjoint(program.body[i].args))
        entered.update(s.name for s in program.live_state if following[s.name] in entered)
    way, value = list[Arg](), program.update
    while value in entered and program.kind_of(value) is Kind.TENSOR:
        if type(value) is not int:
            return [*way, value] if value == "g" else way
        way.append(value)
        value = rng.choice([a for a in program.body[value].args if a in entered])
    return way


def remember(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Give the program another slot: an average of some value, read in that value's place."""
    if len(program.state) >= space.max_slots or len(program.body) >= space.max_statements:
        return None
    draft = Draft(program)
    places = [place for place in draft.places() if draft.kind(draft.get(place)) is Kind.TENSOR]
    place = rng.choice(places)
    before = place[0] if place[0] >= 0 else len(draft.body)
    value = draft.get(place)
    name = draft.free_name()
    decay = Const(round(10 ** rng.uniform(-3, 0), 4))
    draft.insert(before, "lerp", [name, value, decay], Kind.TENSOR)
    draft.put((place[0] + 1, place[1]) if place[0] >= 0 else place, before)
    draft.state.append(Slot(name))
    draft.outputs.append(before)
    return draft.build()


MUTATIONS: dict[str, Mutation] = {
    f.__name__: f for f in (insert, delete, argument, op, constant, remember, splice, swap_slots, transform)
}
"""All that need one parent only."""
