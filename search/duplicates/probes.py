"""Cheap simulated steps that show, before training, that a program cannot work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from optforge.primitives import OPS, Const, Kind, Program
from optforge.primitives.backends.interpret import Simulation
from optforge.primitives.backends.op_loops import SHAPE
from optforge.primitives.backends.together import Ran, Together
from optforge.primitives.program import Arg

_HORIZONS = (3, 6, 12)
_FASTER = 1.15
_BOUNDED = frozenset(("sign", "tanh", "sin", "cos", "arctan"))  # whatever they are given


def explode(programs: Sequence[Program]) -> list[bool]:
    """Whether each program's state grows faster than any power of the number of steps, under gradients of one size.

    A sum that grows in proportion to the steps, as AdaGrad's, passes; a slot that is multiplied by 1.1 in every step
    does not. Most programs are cleared by looking at them; the others are run for 12 steps, and from 6 to 12 a slot
    must not grow by a factor 1.15 more than from 3 to 6, or cease to be finite.
    """
    pairs = [(p, suspects(p)) for p in programs]
    ran = iter(_together()([p for p, slots in pairs if slots]))
    return [bool(slots) and _grows(p, slots, next(ran)) for p, slots in pairs]


def _grows(program: Program, slots: Sequence[str], ran: Ran) -> bool:
    which = [i for i, slot in enumerate(program.live_state) if slot.name in slots]
    sizes = np.abs(ran.memory[[horizon - 1 for horizon in _HORIZONS]][:, which]).max((2, 3))
    return any(_geometric(*each) for each in sizes.T.tolist())


def _geometric(first: float, second: float, third: float) -> bool:
    if not math.isfinite(third):
        return True
    return third > 2 * second and third * first > _FASTER * second * second


@cache
def _together() -> Together:
    return Together(_steady())


@cache
def _steady() -> list[dict[str, Tensor]]:
    """Signals of 12 steps: gradients that hardly change, so that sums grow evenly, and a parameter that stays."""
    generator = torch.Generator().manual_seed(45)
    mean, p = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    steps = []
    for step in range(1, _HORIZONS[-1] + 1):
        g = 0.3 * mean + 0.02 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        numbers = {"lr": 0.01, "step": float(step), "progress": step / 200, "global_norm": float(g.norm())}
        steps.append({"g": g, "p": p} | {n: torch.tensor(x, dtype=torch.float64) for n, x in numbers.items()})
    return steps


def suspects(program: Program) -> list[str]:
    """Live tensor slots that are not plainly an average, a sum or a copy of what depends on no slot but such ones."""
    slots = {slot.name: 1 << i for i, slot in enumerate(program.live_state)}
    reads: dict[Arg, int] = {}  # of each value the slots that enter it, as bits
    reads.update(slots)
    if not slots:
        return []
    for index in program.live.instructions:
        op, args = program.body[index]
        bits = 0
        if op not in _BOUNDED:
            for arg in args:
                bits |= reads.get(arg, 0)
        reads[index] = bits
    following = dict(zip((s.name for s in program.state), program.next_state, strict=True))
    others = {bit: _others(program, following[name], name, bit, reads) for name, bit in slots.items()}
    cleared, before = 0, -1
    while cleared != before:
        before = cleared
        cleared = sum(bit for bit, needs in others.items() if needs >= 0 and not needs & ~before)
    return [s.name for s in program.live_state if s.kind is Kind.TENSOR and not slots[s.name] & cleared]


def _others(program: Program, arg: Arg, slot: str, bit: int, reads: dict[Arg, int]) -> int:
    """The slots besides `slot` that enter `arg`, if `slot` enters it with a weight of at most 1; else -1."""
    if arg == slot:
        return 0
    if not reads.get(arg, 0) & bit:
        return reads.get(arg, 0)
    op, args = program.body[arg]  # type: ignore[index]
    if op in ("add", "sub", "max", "min"):
        inner = args if op in ("max", "min") or not all(reads.get(a, 0) & bit for a in args) else ()
    elif op == "lerp":
        inner = args[:2] if 0 <= _number(program, args[2]) <= 1 else ()
    elif op == "mul":
        inner = tuple(b for a, b in (args, args[::-1]) if abs(_number(program, a)) <= 1)[:1]
    else:
        inner = ()
    found = [_others(program, a, slot, bit, reads) for a in inner]
    if not found or min(found) < 0:
        return -1
    bits = 0
    for needs in found:
        bits |= needs
    return bits


def _number(program: Program, arg: Arg) -> float:
    """The value of a literal, a hyperparameter, or a statement that reads nothing else; NaN of anything else."""
    if type(arg) is Const:
        return arg.value
    if type(arg) is str:
        return next((h.default for h in program.hypers if h.name == arg), math.nan)
    op, args = program.body[arg]  # type: ignore[index]
    numbers = [_number(program, a) for a in args] if program.kind_of(arg) is Kind.SCALAR else [math.nan]
    return math.nan if any(map(math.isnan, numbers)) else _value(op, *numbers)


@lru_cache(maxsize=65536)
def _value(op: str, *numbers: float) -> float:
    return float(OPS[op].function(*(torch.tensor(n, dtype=torch.float64) for n in numbers)))


def descends(program: Program, steps: int = 12) -> bool:
    """Whether updates go downhill, on the mean, on four noisy quadratics whose parameter follows them."""
    generator = torch.Generator().manual_seed(46)

    def normal() -> Tensor:
        return torch.randn((4, 5, 6), generator=generator, dtype=torch.float64)

    curvature, start = 10 ** normal().clamp(-2, 0), normal()
    path = Simulation(program, dims=(1, 2)).follow(
        start, lambda _, p: curvature * p + 0.1 * normal(), steps, lr=1e-3, total=200
    )
    cosines = []
    for p, (update, _) in path:
        exact = curvature * p
        cosines.append(torch.nn.functional.cosine_similarity(update.expand_as(p).flatten(1), exact.flatten(1), dim=1))
    return float(torch.stack(cosines[steps // 2 :]).mean()) > 0.0
