"""Mutations that other packages bring, as entry points of the group ``optforge.mutations``."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points

from optforge.primitives import Program
from optforge.search.space.draft import MIX, Space

GROUP = "optforge.mutations"

Mutation = Callable[[Program, Space, random.Random], Program | None]
"""A changed program, or None where it does not apply. All randomness comes from the generator."""

log = logging.getLogger("optforge")


def with_mutations(names: list[str]) -> tuple[tuple[str, float], ...]:
    """The usual mix, and further mutations as in ``name`` or ``name=frequency``, 1 by default.

    Raises:
        ValueError: for names that no installed package brings, and frequencies that are no positive numbers.
    """
    found = dict(MIX)
    for text in names:
        name, _, frequency = text.partition("=")
        if name not in dict(MIX):
            mutation_of_others(name)
        try:
            found[name] = float(frequency or 1.0)
        except ValueError:
            found[name] = -1.0
        if not 0 < found[name] < 1e6:
            raise ValueError(f"the frequency of a mutation is a positive number, as in {name}=2; got {text!r}")
    return tuple(found.items())


@lru_cache(maxsize=64)
def mutation_of_others(name: str) -> Mutation:
    """The mutation that an installed package brings under a name.

    Raises:
        ValueError: if there is none, or it cannot be loaded.
    """
    points = entry_points(group=GROUP)
    chosen = [point for point in points if point.name == name]
    if not chosen:
        known = ", ".join(sorted({*dict(MIX), *(point.name for point in points)}))
        raise ValueError(f"unknown mutation {name!r}; choose from {known}")
    try:
        found = chosen[0].load()
    except Exception as error:
        raise ValueError(f"the mutation {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"the mutation {name!r} must be a function, not {type(found).__name__}")
    mutation: Mutation = found
    return mutation


def mutate_as_others(name: str, program: Program, space: Space, rng: random.Random) -> Program | None:
    """What the mutation `name` makes of a program, where that lies in the space; None where it fails.

    Raises:
        ValueError: if no installed package brings it.
    """
    mutation = mutation_of_others(name)
    try:
        child = mutation(program, space, rng)
    except Exception as error:  # the search goes on without it
        _tell(name, f"{type(error).__name__}: {error}")
        return None
    if child is None:
        return None
    if not isinstance(child, Program):
        _tell(name, f"it must return a Program or None, not {type(child).__name__}")
        return None
    known = {*space.ops, *(line.op for line in program.body)}
    inside = len(child.body) <= space.max_statements and len(child.state) <= space.max_slots
    return child if inside and known.issuperset(line.op for line in child.body) else None


@lru_cache(maxsize=64)
def _tell(name: str, why: str) -> None:
    """Say once for each reason why a mutation was of no use."""
    log.warning("the mutation %s failed, and the search goes on with others: %s", name, why)


__all__ = ["GROUP", "Mutation", "mutate_as_others", "mutation_of_others", "with_mutations"]
