"""The arguments of `learned.learn`, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from optforge.primitives import Program, ProgramError
from optforge.primitives.options import merged_hypers

WHAT = ("lr",)
EVERY = 20  # steps, of which one learns, where others can rest
_OF_OPTIMIZERS = ("where", "compile", "state_dtype", "total_steps")


def chosen(what: str | Sequence[str], hyper_lr: float, cap: float | None, every: int | None) -> tuple[Any, ...]:
    """The same, defaults filled in; `ProgramError` for no names, nothing to learn, or numbers out of range."""
    named = [what] if isinstance(what, str) else list(what) if isinstance(what, Iterable) else [what]
    if not all(isinstance(name, str) for name in named):
        raise ProgramError(f"what to learn must be a name or names of hyperparameters, got {what!r}")
    names = tuple(dict.fromkeys(named))
    if not names:
        raise ProgramError("nothing to learn was named; choose lr or hyperparameters of the program")
    if isinstance(hyper_lr, bool) or not (isinstance(hyper_lr, int | float) and 0 <= hyper_lr < math.inf):
        raise ProgramError(f"hyper_lr must be a finite number of at least 0, got {hyper_lr!r}")
    if cap is not None and (isinstance(cap, bool) or not (isinstance(cap, int | float) and 0 < cap < math.inf)):
        raise ProgramError(f"cap must be a positive number, as 0.01 for 1 % of the weights, or None, got {cap!r}")
    steps = (EVERY if names == WHAT else 1) if every is None else every
    if isinstance(steps, bool) or not (isinstance(steps, int) and steps >= 1):
        raise ProgramError(f"every must be a whole number of steps, at least 1, got {every!r}")
    return names, hyper_lr, cap, steps


def split(program: Program, lr: Any, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Defaults of parameter groups, and options of the program's optimizer, from what `ProgramOptimizer` takes."""
    if not isinstance(program, Program):
        raise ProgramError(f"expected a Program, got {type(program).__name__}; BASELINES[name].program is one")
    if options.pop("differentiable", False):
        raise ProgramError("learned rates are no functions of the inputs; choose learning or differentiable")
    passed_on = {name: options.pop(name) for name in _OF_OPTIMIZERS if name in options}
    groups = {"lr": lr, "maximize": options.pop("maximize", False), "differentiable": False}
    return groups | merged_hypers(program, options), passed_on
