"""Behavioural identity: what a program does on fixed probes, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from primitives.op import Op
from primitives.program import Program, fold
from primitives.together import SHAPE, apply_alone, run_together

STEPS = 5
CHUNK = 1024  # programs at once; more would only take more memory
# Values are compared to 34 bits of mantissa, about ten significant digits: far coarser than the rounding by which
# a + b + c and c + b + a differ, far finer than any difference that training could show.
_DROPPED_BITS = 18
_ROW = 8 * SHAPE[0] * SHAPE[1]


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
def _probes() -> list[dict[str, Tensor]]:
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


def behave(program: Program) -> Behaviour:
    """Run `program` for five steps on the probes, with its default hyperparameters.

    The parameter follows a fixed path of its own instead of the program's updates, so that small rounding differences
    do not grow. State enters the hash by content, not by name or order. Programs with the same fingerprint agree on
    the probes to about ten digits; they may still differ in regimes that the probes never enter (say, a clip at 100).
    """
    hypers = {name: _literal(value) for name, value in program.defaults().items()}
    state: list[Tensor] = []
    seen: list[Tensor] = []
    inputs: dict[str, Tensor] = {}

    def leaf(value: str | float) -> Tensor:
        return inputs[value] if type(value) is str else _literal(value)

    def apply(op: Op, args: list[Tensor], index: int) -> Tensor:
        if not op.reduces:
            return op.function(*args)
        return apply_alone(op, [program.kind_of(a) for a in program.body[index].args], args)

    for signals in _full_probes():
        if not state:
            state = [signals[s.init] if isinstance(s.init, str) else _literal(s.init) for s in program.state]
        inputs = signals | hypers | {s.name: value for s, value in zip(program.state, state, strict=True)}
        update, following, _ = fold(program, leaf, apply)
        state = list(following)  # type: ignore[arg-type]
        seen.append(update)  # type: ignore[arg-type]
    memory = [x for slot, x in zip(program.state, state, strict=True) if slot.name in program.live.names]
    fallback = None if program.fallback is None else behave(program.fallback)
    return _behaviours([program], torch.stack([*seen, *memory]), [len(memory)], [fallback])[0]


def behave_many(programs: Sequence[Program]) -> list[Behaviour]:
    """What `behave` says of each program, to the last bit, several times faster for programs that are akin."""
    found: list[Behaviour] = []
    for start in range(0, len(programs), CHUNK):
        chunk = programs[start : start + CHUNK]
        below = iter(behave_many([p.fallback for p in chunk if p.fallback is not None]))
        fallbacks = [None if p.fallback is None else next(below) for p in chunk]
        values, updates, memory = run_together(chunk, _probes())
        told = values[torch.tensor([i for row in updates for i in row] + [i for row in memory for i in row])]
        found += _behaviours(chunk, told, [len(row) for row in memory], fallbacks)
    return found


@cache
def _full_probes() -> list[dict[str, Tensor]]:
    return [{name: x.expand(SHAPE).contiguous() for name, x in signals.items()} for signals in _probes()]


@lru_cache(maxsize=4096)
def _literal(value: float) -> Tensor:
    return torch.full(SHAPE, value, dtype=torch.float64)


def _behaviours(
    programs: Sequence[Program], values: Tensor, slots: Sequence[int], fallbacks: Sequence[Behaviour | None]
) -> list[Behaviour]:
    """Behaviours from the updates of all steps of all programs, followed by the last memory of all of them.

    `slots` says how many of the latter each program has.
    """
    count = STEPS * len(programs)
    finite = values.isfinite().flatten(1).all(1).tolist()
    rows = _digits(values)
    updates = values[:count].view(len(programs), -1)
    directions = _digits(updates / _size(updates))
    memories = values[count:].flatten(1)
    shapes = _digits(memories / _size(memories))
    found = []
    width = STEPS * _ROW
    last = count
    for i, (program, own, fallback) in enumerate(zip(programs, slots, fallbacks, strict=True)):
        places = range(last, last + own)
        last += own
        whole = all(finite[i * STEPS : (i + 1) * STEPS]) and all(finite[places.start : places.stop])
        # as a set, because twins are one slot: so says the key
        memory = sorted({rows[j * _ROW : (j + 1) * _ROW] for j in places})
        parts = [rows[i * width : (i + 1) * width], *memory]
        if fallback is not None:
            parts.append(fallback.fingerprint.encode())
            whole = whole and fallback.finite
        fingerprint = direction = _hash(parts)
        if fallback is None and "lr" not in program.live.names:
            scaled = sorted({shapes[(j - count) * _ROW : (j - count + 1) * _ROW] for j in places})
            direction = _hash([directions[i * width : (i + 1) * width], *scaled])
        found.append(Behaviour(fingerprint, whole, direction))
    return found


def _size(rows: Tensor) -> Tensor:
    """Largest magnitude in each row, ``[rows, 1]``; never 0."""
    return rows.abs().amax(1, keepdim=True).clamp_(min=1e-300)


def _digits(values: Tensor) -> bytes:
    """Rounded bits of each value, laid end to end."""
    bits = torch.nan_to_num(values, nan=-1.2345e300).add_(0.0).view(torch.int64)  # adding turns -0.0 into 0.0
    return bits.add_(1 << (_DROPPED_BITS - 1)).bitwise_right_shift_(_DROPPED_BITS).numpy().tobytes()


def _hash(parts: Sequence[bytes]) -> str:
    return hashlib.blake2b(b"|".join(parts), digest_size=16).hexdigest()
