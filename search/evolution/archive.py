"""The archive of a search: the programs that nothing betters in fitness, state and length at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from optforge.primitives import Program
from optforge.primitives.analysis.cost import cost
from optforge.search.evolution.evolution import Individual


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


def point(individual: Individual) -> Point:
    """Where an evaluated program lies."""
    program = individual.program
    return Point(
        individual.number, individual.score, cost(program).state_bytes, len(program.live.instructions), program
    )


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that no other dominates, best fitness first; of equals the one with the lowest number.

    A point dominates another that it is nowhere worse than and somewhere better. Scores that are not finite are left
    out.
    """
    front: list[Point] = []
    ascending = sorted((p for p in points if math.isfinite(p.fitness)), key=lambda p: (*p[1:4], p.number))
    for candidate in ascending:  # only what comes before it can dominate it, or equal it
        if not any(p.state_bytes <= candidate.state_bytes and p.statements <= candidate.statements for p in front):
            front.append(candidate)
    return front
