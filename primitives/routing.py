"""Which program trains which parameter: the program itself, or its fallback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from optforge.primitives.kinds import ProgramError
from optforge.primitives.parameters import is_sharded, shards_refused
from optforge.primitives.program import Program

LARGEST_SIDE = 10_000
"""Longest side of a parameter that gets a square matrix of its own, ``max_precond_dim`` of Vyas et al. 2024, SOAP.

Variant: there, a longer side alone goes without; here the parameter goes to the fallback.
"""

Predicate = Callable[[str, Tensor], bool]
"""Says of a parameter's name and the parameter whether the program itself shall train it; the name may be empty."""


class Route(NamedTuple):
    """Where one parameter goes: `which` is ``"program"`` or ``"fallback"``; `name` is empty if it has none."""

    name: str
    shape: tuple[int, ...]
    which: str


def can_train(program: Program, shape: Sequence[int]) -> bool:
    """Whether the kinds of `program` itself, not its fallback, exist for a parameter of `shape`.

    Square matrices of a side exist if it is no longer than `LARGEST_SIDE`.
    """
    return (len(shape) >= 2 or not program.needs_matrix) and not _too_long(program, shape)


def _too_long(program: Program, shape: Sequence[int]) -> list[int]:
    """Sides of which the program holds square matrices, and that are longer than it may be."""
    sides = [kind.shape(shape)[0] for kind in sorted(program.sides)] if len(shape) >= 2 else []
    return [side for side in sides if side > LARGEST_SIDE]


def route(program: Program, shape: Sequence[int], *, wanted: bool = True) -> Program:
    """The program that trains a parameter of `shape`: itself if it is wanted and can, else its fallback.

    Raises:
        ProgramError: if it would be the fallback and there is none.
    """
    if wanted and can_train(program, shape):
        return program
    if program.fallback is None:
        why = "works on rows and columns" if wanted else "is not to train every parameter"
        if wanted and (long := _too_long(program, shape)):
            why = f"holds square matrices of sides of up to {LARGEST_SIDE:,}, not of {max(long):,}"
        raise ProgramError(
            f"this program {why}, but a parameter has shape {tuple(shape)}; "
            "give the program a fallback for such parameters"
        )
    return program.fallback


def routing(
    program: Program, named_parameters: Iterable[tuple[str, Tensor]], predicate: Predicate | None = None
) -> list[Route]:
    """Where each parameter goes, in order; `predicate` may send more of them to the fallback than their shapes do.

    ``routing(program, model.named_parameters(), lambda name, p: "embed" not in name)`` keeps embeddings out of an
    orthogonalised rule.

    Raises:
        ProgramError: with the parameter's name, if it would go to a fallback that does not exist, or is sharded
            although the program mixes its elements.
    """
    routes = []
    for name, parameter in named_parameters:
        wanted = predicate is None or bool(predicate(name, parameter))
        try:
            chosen = route(program, parameter.shape, wanted=wanted)
            if (chosen.reduces or chosen.needs_matrix) and is_sharded(parameter):
                raise shards_refused(parameter, "this program")
        except ProgramError as error:
            raise ProgramError(f"parameter {name!r}: {error}" if name else str(error)) from None
        routes.append(Route(name, tuple(parameter.shape), "program" if chosen is program else "fallback"))
    return routes
