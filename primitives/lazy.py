"""What of a step is computed only when it is due.

``choose(c, x, y)`` means x where c is positive and y elsewhere. Where c is one number for all parameters, such as
``due(step, 10)``, it decides a whole step, so that what only serves the other side need not be computed. Compiled
steps, generated code, exports and costs ask here; the interpreter computes both sides, which gives the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from optforge.primitives.kinds import SHARED_SIGNALS
from optforge.primitives.program import Arg, Const, Program

Guard = tuple[int, bool]  # number of a condition; whether it must be true or false


class Lazy(NamedTuple):
    """Which statements depend on a condition.

    Attributes:
        conditions: each a number for all parameters; true if it is positive.
        choices: live ``choose`` statements of which one side is taken whole: the number of their condition.
        guards: live statements that only serve one side, and when it is taken.
    """

    conditions: tuple[Arg, ...]
    choices: Mapping[int, int]
    guards: Mapping[int, Guard]


EAGER = Lazy((), {}, {})
"""Nothing depends on anything."""


@lru_cache(maxsize=1024)
def laziness(program: Program) -> Lazy:
    """The conditions of `program`, and what they spare."""
    conditions: dict[Arg, int] = {}
    choices: dict[int, int] = {}
    for index in program.live.instructions:
        op, args = program.body[index]
        if op != "choose" or index in program.shared or not _is_shared(program, args[0]):
            continue
        if all(program.kind_of(a) is program.kinds[index] for a in args[1:]):
            choices[index] = conditions.setdefault(args[0], len(conditions))
    if not choices:
        return EAGER
    wanted: dict[int, set[Guard | None]] = {index: set() for index in program.live.instructions}
    following = (a for s, a in zip(program.state, program.next_state, strict=True) if s.name in program.live.names)
    for arg in (program.update, *following):
        if type(arg) is int:
            wanted[arg].add(None)
    for index in reversed(program.live.instructions):
        own = wanted[index].copy().pop() if len(wanted[index]) == 1 else None
        sides = {1: True, 2: False} if index in choices else {}
        for position, arg in enumerate(program.body[index].args):
            if type(arg) is int:
                wanted[arg].add((choices[index], sides[position]) if position in sides else own)
    guards = {
        index: guard
        for index, by in wanted.items()
        if len(by) == 1 and (guard := next(iter(by))) is not None and index not in program.shared
    }
    return Lazy(tuple(conditions), choices, guards)


def share(program: Program, condition: Arg, taken: bool = True) -> float:
    """In which share of steps a condition is true (or not `taken`), with default hyperparameters.

    Known of ``due(step, k)`` with k a literal or a hyperparameter; anything else counts as always needed.
    """
    if type(condition) is not int or program.body[condition].op != "due":
        return 1.0
    step, every = program.body[condition].args
    period = every.value if type(every) is Const else program.defaults().get(str(every))
    if step != "step" or period is None:
        return 1.0
    often = 1.0 / max(period, 1.0)
    return often if taken else 1.0 - often


def _is_shared(program: Program, arg: Arg) -> bool:
    if type(arg) is int:
        return arg in program.shared
    return type(arg) is Const or arg in SHARED_SIGNALS or any(h.name == arg for h in program.hypers)
