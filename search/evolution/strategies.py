"""How candidates come about: evolution, and the controls without which a discovery means little.

All strategies share the loop, the duplicate detection and the budget; what differs is one row of this table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from optforge.primitives import OPS, Kind, Program
from optforge.primitives.program import Arg
from optforge.search.space.draft import Draft, Space, draw, fresh_value
from optforge.search.space.mutation import mutate

Child = Callable[[Program, Space, random.Random, Callable[[], Program]], tuple[Program, str]]


def mutated(program: Program, space: Space, rng: random.Random, mate: Callable[[], Program]) -> tuple[Program, str]:
    """A mutation of `program`, by the space's mix."""
    return mutate(program, space, rng, mate=mate)


def drawn(program: Program, space: Space, rng: random.Random, mate: Callable[[], Program]) -> tuple[Program, str]:
    """A program with as many statements, slots and hyperparameters as `program`, all drawn anew."""
    draft = Draft(program)
    count, draft.body, draft.kinds = len(draft.body), [], []
    while len(draft.body) < count:
        op = rng.choice(space.ops)
        there = {Kind.SCALAR, Kind.ROW, Kind.COL, Kind.TENSOR, *draft.kinds, *(slot.kind for slot in draft.state)}
        signatures = [kinds for kinds in OPS[op].result if there.issuperset(kinds)]  # square matrices are rare
        if not signatures:
            continue
        signature = rng.choice(signatures)
        args: list[Arg] = []
        for kind in signature:
            value = draw(draft, len(draft.body), space, rng, kind)
            if value is not None:
                args.append(value)
        if len(args) == len(signature):
            draft.body.append((op, args))
            draft.kinds.append(OPS[op].result[signature])
    kinds = [Kind.TENSOR, *(slot.kind for slot in draft.state)]
    own = ["g", *(slot.name for slot in draft.state)]  # where nothing of the kind was drawn
    draft.outputs = [
        draw(draft, count, space, rng, kind) or name for kind, name in zip(kinds, own, strict=True)
    ]  # fmt: skip
    draft.hypers = [replace(h, default=fresh_value(h.scale, rng)) for h in draft.hypers]
    return draft.build(), "drawn"


class Strategy(NamedTuple):
    """One way to search.

    Attributes:
        summary: what it does, in a few words.
        child: how a candidate is made from a parent.
        weights: the mix of mutations, if it is not the space's own.
        sees_fitness: whether selection knows how well programs trained; otherwise each has a random rank for life,
            which amounts to the population's fitness in random order.
    """

    summary: str
    child: Child = mutated
    weights: tuple[tuple[str, float], ...] | None = None
    sees_fitness: bool = True


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "evolution": Strategy("mutations of the fittest"),
        "random": Strategy("random programs of the start program's size", child=drawn),
        "constants": Strategy("evolution of literals and hyperparameters only", weights=(("constant", 1.0),)),
        "shuffled": Strategy("evolution with the fitness of others", sees_fitness=False),
    }
)
