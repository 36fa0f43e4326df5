"""Schedules and clipping as part of an update rule, so that a population of rules can train with them.

A program sees the learning rate, the step and the norm of all gradients as signals. A schedule is therefore a
rewriting: the update is multiplied by the factor of the step, and whatever read the learning rate reads it times the
factor. Clipping is one as well: whatever read the gradient reads the clipped one. What is rewritten trains as the
original does with a torch scheduler and with gradients clipped beforehand, in every evaluator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType

from optforge.primitives import Builder, Program
from optforge.primitives.builder import Expr


def _constant(b: Builder, after: Expr, steps: int) -> Expr | None:
    return None


def _cosine(b: Builder, after: Expr, steps: int) -> Expr | None:
    return 0.5 * (1 + b.cos(math.pi / steps * after))


def _linear(b: Builder, after: Expr, steps: int) -> Expr | None:
    return (steps - after) / steps


def _wsd(b: Builder, after: Expr, steps: int) -> Expr | None:
    decay = min(steps, max(1, steps // 10))
    return b.min(1.0, (steps - after) / decay)


SCHEDULES: MappingProxyType[str, Callable[[Builder, Expr, int], Expr | None]] = MappingProxyType(
    {"cosine": _cosine, "linear": _linear, "wsd": _wsd, "constant": _constant}
)
"""Factors by name, from the steps made since the warm-up and their number; `torch_schedules` says what they are.

The decay of ``wsd`` takes a tenth of what follows the warm-up.
"""


def scheduled(
    program: Program, schedule: str, steps: int, warmup: int = 0, clip: float = 0.0, scale: float = 1.0
) -> Program:
    """`program` with a schedule of its learning rate over a run of `steps`, and with clipped gradients.

    Args:
        program: the rule; its fallback is rewritten likewise.
        schedule: a name in `SCHEDULES`.
        steps: length of the run.
        warmup: steps over which the factor rises from 1/warmup to 1, before the schedule begins.
        clip: largest Euclidean norm of the gradients of all parameters together; 0 for no limit. A slot that begins
            as a copy of the first gradient begins as it is, not clipped.
        scale: what multiplies the learning rate in every step.

    Raises:
        ValueError: for an unknown schedule or a warm-up that leaves no step.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; there are: {', '.join(SCHEDULES)}")
    if not 0 <= warmup < steps:
        raise ValueError(f"the warm-up must be shorter than the run of {steps} steps, got {warmup}")
    b = Builder()
    factor = SCHEDULES[schedule](b, b.max(b.step - (1 + warmup), 0.0), steps - warmup)
    if warmup:
        rise = b.min(b.step / warmup, 1.0)
        factor = rise if factor is None else rise * factor
    if scale != 1:
        factor = b.mul(1.0 if factor is None else factor, scale)
    instead: dict[str, Expr] = {}
    if factor is not None:
        instead["lr"] = b.lr * factor
    if clip:
        instead |= {"g": b.clip_norm(b.g, b.global_norm, clip), "global_norm": b.min(b.global_norm, clip)}
    if not instead:
        return program
    fallback = program.fallback and scheduled(program.fallback, schedule, steps, warmup, clip, scale)
    update = b.append(program, instead)(program.update)
    return b.build(update if factor is None else factor * update, fallback).pruned()
