"""What is learned, of what, and by which rule: the arguments of `learned.learn`, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from optforge.learned.rules import named_rule
from optforge.primitives import ProgramError

WHAT = ("lr",)
PER = ("global", "group", "tensor")


class Choices(NamedTuple):
    """The arguments of `learned.learn` with these names, defaults filled in."""

    what: tuple[str, ...]
    per: str
    rule: str
    hyper_lr: float
    every: int


def chosen(what: str | Sequence[str], per: str, rule: str, hyper_lr: float | None, every: int | None) -> Choices:
    """The choices, of which `hyper_lr` and `every` are those of the rule where they are None.

    Raises:
        ProgramError: for names that do not exist, nothing to learn, or numbers out of range.
    """
    named = [what] if isinstance(what, str) else list(what) if isinstance(what, Iterable) else [what]
    if not all(isinstance(name, str) for name in named):
        raise ProgramError(f"what to learn must be a name or names of hyperparameters, got {what!r}")
    names = tuple(dict.fromkeys(named))
    if not names:
        raise ProgramError("nothing to learn was named; choose lr or hyperparameters of the program")
    if per not in PER:
        raise ProgramError(f"cannot learn per {per!r}; choose from: {', '.join(PER)}")
    usual = named_rule(rule)
    speed = usual.hyper_lr if hyper_lr is None else hyper_lr
    if isinstance(speed, bool) or not (isinstance(speed, int | float) and 0 <= speed < math.inf):
        raise ProgramError(f"hyper_lr must be a finite number of at least 0, got {hyper_lr!r}")
    steps = (usual.every if names == WHAT else 1) if every is None else every
    if isinstance(steps, bool) or not (isinstance(steps, int) and steps >= 1):
        raise ProgramError(f"every must be a whole number of steps, at least 1, got {every!r}")
    return Choices(names, per, rule, speed, steps)


__all__ = ["PER", "WHAT", "Choices", "chosen"]
