"""Behavioural identity: what a program does on fixed probes, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from optforge.primitives.backends.op_loops import SHAPE
from optforge.primitives.backends.together import CHUNK, Array, Ran, Together
from optforge.primitives.program import Program

STEPS = 5
# Values are compared to 34 bits of mantissa, about ten significant digits: far coarser than the rounding by which
# a + b + c and c + b + a differ, far finer than any difference that training could show.
_DROPPED_BITS = 18
_ROW = 8 * SHAPE[0] * SHAPE[1]  # bytes of one value
_RUN = STEPS * _ROW


@dataclass(frozen=True)
class Behaviour:
    """What a program did on the probes.

    Attributes:
        fingerprint: hash of its updates and live state over all steps, 32 hexadecimal digits.
        finite: whether all of them were finite.
        direction: the same hash after dividing the updates, and each slot, by its largest value: equal for programs
            whose updates differ by one positive factor, which a learning rate absorbs. Programs that read the learning
            rate, or have a fallback, keep their fingerprint.
    """

    fingerprint: str
    finite: bool
    direction: str


@cache
def probes() -> list[dict[str, Tensor]]:
    """Signals of each step, in float64. Every element is a case of its own.

    Gradients are 1e-8 to 10 in magnitude and of changing sign, some exactly 0; on the second step all are a thousand
    times smaller, so that their norm is, too. Parameters are within ±1, every fourth within ±4. The step number jumps.
    """
    generator = torch.Generator().manual_seed(20230213)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low

    elements = SHAPE[0] * SHAPE[1]
    exponent = torch.linspace(-8.0, 1.0, elements, dtype=torch.float64).view(SHAPE)
    reach = torch.where(torch.arange(elements) % 4 == 1, 4.0, 1.0).view(SHAPE)
    steps = []
    for i, (step, scale) in enumerate(zip((1, 2, 3, 10, 200), (1, 1e-3, 1, 1, 1), strict=True)):
        g = scale * 10 ** (exponent + uniform(-1, 0, *SHAPE)) * torch.sign(uniform(-0.4, 0.6, *SHAPE))
        g[1, 2] = 0.0  # a weight that never sees a gradient, as behind a constant input or a dead unit
        g[2, 3] *= (i + 1) % 2
        steps.append(
            {
                "g": g,
                "p": reach * uniform(-1, 1, *SHAPE),
                "lr": uniform(0.01, 0.1),
                "step": torch.tensor(float(step), dtype=torch.float64),
                "progress": torch.tensor((i + 0.5) / STEPS, dtype=torch.float64),
                "global_norm": 1.7 * torch.linalg.vector_norm(g),
            }
        )
    return steps


@cache
def together() -> Together:
    """What runs programs on the probes, and remembers."""
    return Together(probes())


def behave(program: Program) -> Behaviour:
    """Run `program` for five steps on the probes, with its default hyperparameters.

    The parameter follows a fixed path of its own instead of the program's updates, so that small rounding differences
    do not grow. State enters the hash by content, not by name or order. Programs with the same fingerprint agree on
    the probes to about ten digits; they may still differ in regimes that the probes never enter (say, a clip at 100).
    """
    return behave_many([program])[0]


def behave_many(programs: Sequence[Program]) -> list[Behaviour]:
    """What `behave` says of each program, much faster for programs that are akin."""
    found: list[Behaviour] = []
    for start in range(0, len(programs), CHUNK):  # more would only take more memory
        chunk = programs[start : start + CHUNK]
        below = iter(behave_many([p.fallback for p in chunk if p.fallback is not None]))
        fallbacks = [None if p.fallback is None else next(below) for p in chunk]
        found += _behaviours(chunk, together()(chunk), fallbacks)
    return found


def _behaviours(
    programs: Sequence[Program], ran: Sequence[Ran], fallbacks: Sequence[Behaviour | None]
) -> list[Behaviour]:
    updates = np.concatenate([r.updates for r in ran])
    memory = np.concatenate([r.memory[-1] for r in ran])
    whole = updates.reshape(len(ran), -1)
    finite, finite_memory = (np.isfinite(x).all(1).tolist() for x in (whole, memory.reshape(-1, _ROW // 8)))
    rows, kept = _digits(updates), _digits(memory)
    with np.errstate(invalid="ignore"):  # infinite by infinite
        directions, shapes = _digits(whole / _size(whole)), _digits(memory / _size(memory))
    found, last = [], 0
    for i, (program, own, fallback) in enumerate(zip(programs, ran, fallbacks, strict=True)):
        places = range(last, last := last + own.memory.shape[1])
        sound = finite[i] and all(finite_memory[places.start : places.stop])
        # as a set, because twins are one slot: so says the key
        parts = [rows[i * _RUN : (i + 1) * _RUN], *sorted({kept[j * _ROW : (j + 1) * _ROW] for j in places})]
        if fallback is not None:
            parts.append(fallback.fingerprint.encode())
            sound = sound and fallback.finite
        fingerprint = direction = _hash(parts)
        if fallback is None and "lr" not in program.live.names:
            scaled = sorted({shapes[j * _ROW : (j + 1) * _ROW] for j in places})
            direction = _hash([directions[i * _RUN : (i + 1) * _RUN], *scaled])
        found.append(Behaviour(fingerprint, sound, direction))
    return found


def _size(rows: Array) -> Array:
    """Largest magnitude in each row, never 0; of shape 1 along all other dimensions."""
    return np.maximum(np.abs(rows).max(tuple(range(1, rows.ndim)), keepdims=True), 1e-300)


def _digits(values: Array) -> bytes:
    """Rounded bits of each value, laid end to end."""
    usable = np.where(np.isnan(values), -1.2345e300, values) + 0.0  # which turns -0.0 into 0.0
    return ((usable.view(np.int64) + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS).tobytes()


def _hash(parts: Sequence[bytes]) -> str:
    return hashlib.blake2b(b"|".join(parts), digest_size=16).hexdigest()
