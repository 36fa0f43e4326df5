"""Options of a program's optimizer and of its parameter groups: what they are by default, and which are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from primitives.kinds import ProgramError
from primitives.program import Program, check_hypers


def with_fallback(program: Program) -> list[Program]:
    """The program, and its fallback if it has one."""
    return [p for p in (program, program.fallback) if p is not None]


def merged_hypers(program: Program, values: dict[str, Any]) -> dict[str, float]:
    """Defaults of the program and its fallback, overridden by `values`; a name they share has one value.

    Raises:
        ProgramError: for values that neither has, or that are out of range.
    """
    merged: dict[str, float] = {}
    for part in reversed(with_fallback(program)):
        merged |= part.defaults()
    if unknown := sorted(values.keys() - merged.keys()):
        known = ", ".join(merged) or "none"
        raise ProgramError(f"unknown hyperparameter {unknown[0]!r}; this program has: {known}")
    for part in with_fallback(program):
        own = {name: value for name, value in values.items() if name in part.defaults()}
        merged |= {name: value for name, value in check_hypers(part, own).items() if name in own}
    return merged


def check_group(program: Program, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a parameter group whose options are unknown or out of range.

    Raises:
        ProgramError: naming the option.
    """
    options = {**group}
    for name in ("params", "param_names", "name", "initial_lr"):  # schedulers leave initial_lr in groups
        options.pop(name, None)
    lr = options.pop("lr", defaults["lr"])
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ProgramError(f"lr must be one number, got a tensor of shape {tuple(lr.shape)}")
    value = lr.item() if isinstance(lr, Tensor) else lr
    if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
        raise ProgramError(f"lr must be a finite number of at least 0, got {lr!r}")
    maximize = options.pop("maximize", defaults["maximize"])
    if not isinstance(maximize, bool):
        raise ProgramError(f"maximize must be True or False, got {maximize!r}")
    aside = options.pop("use_fallback", False)
    if not isinstance(aside, bool):
        raise ProgramError(f"use_fallback must be True or False, got {aside!r}")
    if options.pop("differentiable", defaults["differentiable"]) != defaults["differentiable"]:
        raise ProgramError("differentiable holds for the whole optimizer, not for one group")
    merged_hypers(program, options)
