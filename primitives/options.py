"""Options of a program's optimizer and of its parameter groups: what they are by default, and which are refused."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from optforge.primitives.kinds import ProgramError
from optforge.primitives.program import Program, check_hypers


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


_OPTIONS = ("lr", "maximize", "use_fallback", "differentiable", "compile", "state_dtype", "total_steps", "where")


def is_note(name: str, known: Collection[str]) -> bool:
    """Whether a group's entry `name` is a note that others keep there, as torch's optimizers let them.

    Schedulers leave ``initial_lr`` and ``max_lr``, libraries ``lr_scale`` and ``layer_id``. What is `known`, what
    changes the steps of an optimizer of torch, and what looks like either, is no note.
    """
    options = {*known, *torch_options(), "learning_rate"}
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.8)
    return name not in options and (not near or f"_{near[0]}_" in f"_{name}_")  # as max_momentum is of momentum


@cache
def torch_options() -> frozenset[str]:
    """Options of torch's optimizers, without those that choose among implementations of one and the same step."""
    kinds = [c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, Optimizer)]
    names = {name for c in kinds for name in inspect.signature(c).parameters}
    return frozenset(names - {"foreach", "fused", "capturable"})


def check_group(program: Program, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a parameter group whose options are unknown or out of range.

    Raises:
        ProgramError: naming the option.
    """
    known = {*merged_hypers(program, {}), *_OPTIONS}
    options = {n: value for n, value in group.items() if n not in ("params", "param_names") and not is_note(n, known)}
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
