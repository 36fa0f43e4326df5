"""The archive of a search: the programs that nothing betters in fitness, state and length at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from optforge.primitives import Program
from optforge.primitives.analysis.cost import cost
from optforge.search.evolution.standing import Individual

Item = TypeVar("Item")


class Point(NamedTuple):
    """A program on the front.

    Attributes:
        number: of the program in its run.
        fitness: its score, lower is better.
        state_bytes: optimizer state in float32, in bytes per parameter of a 1024 by 1024 matrix.
        statements: without dead ones.
        program: the program itself.
    """

    number: int
    fitness: float
    state_bytes: float
    statements: int
    program: Program

    @property
    def objectives(self) -> tuple[float, float, float]:
        """What the archive minimises."""
        return self.fitness, self.state_bytes, self.statements


def point(individual: Individual) -> Point:
    """Where an evaluated program lies."""
    program = individual.program
    return Point(
        individual.number, individual.score, cost(program).state_bytes, len(program.live.instructions), program
    )


def pareto(items: Iterable[Item], objectives: Callable[[Item], tuple[float, ...]]) -> list[Item]:
    """The items that no other dominates, in ascending order of their objectives; of equals the first.

    An item dominates another that it is nowhere worse than and somewhere better; lower is better. Items with an
    objective that is not finite are left out.
    """
    front: list[tuple[tuple[float, ...], Item]] = []
    found = [(objectives(item), item) for item in items]
    ascending = sorted((pair for pair in found if all(map(math.isfinite, pair[0]))), key=lambda pair: pair[0])
    for own, item in ascending:  # only what comes before it can dominate it, or equal it
        if not any(all(b <= a for a, b in zip(own, other, strict=True)) for other, _ in front):
            front.append((own, item))
    return [item for _, item in front]
