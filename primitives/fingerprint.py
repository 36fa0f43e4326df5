"""Behavioural identity: what a program does on fixed probes, hashed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from primitives.interpret import initial_slot
from primitives.ops import Op
from primitives.program import Program, fold

STEPS = 5
SHAPE = (4, 6)
# Values are compared to 34 bits of mantissa, about ten significant digits: far coarser than the rounding by which
# a + b + c and c + b + a differ, far finer than any difference that training could show.
_DROPPED_BITS = 18


@dataclass(frozen=True)
class Behaviour:
    """What a program did on the probes.

    Attributes:
        fingerprint: hash of its updates and live state over all steps, 32 hexadecimal digits.
        finite: whether all of them were finite.
    """

    fingerprint: str
    finite: bool


@cache
def _probes() -> list[dict[str, Tensor]]:
    """Signals of each step, in float64: gradients of 1e-8 to 10 in magnitude and of changing sign, some exactly 0."""
    generator = torch.Generator().manual_seed(20230213)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low

    exponent = torch.linspace(-8.0, 1.0, SHAPE[0] * SHAPE[1], dtype=torch.float64).view(SHAPE)
    steps = []
    for step in range(1, STEPS + 1):
        g = 10 ** (exponent + uniform(-1, 0, *SHAPE)) * torch.sign(uniform(-0.4, 0.6, *SHAPE))
        g[1, 2] = 0.0  # a weight that never sees a gradient, as behind a constant input or a dead unit
        g[2, 3] *= step % 2
        steps.append(
            {
                "g": g,
                "p": uniform(-1, 1, *SHAPE),
                "lr": uniform(0.01, 0.1),
                "step": torch.tensor(float(step), dtype=torch.float64),
                "progress": torch.tensor(step / (2.0 * STEPS), dtype=torch.float64),
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
    hypers = {n: _literal(v) for n, v in program.defaults().items()}
    live = [i for i, slot in enumerate(program.state) if slot.name in program.live.names]
    state: list[Tensor] = []
    seen: list[Tensor] = []
    inputs: dict[str, Tensor] = {}

    def leaf(value: str | float) -> Tensor:
        return inputs[value] if type(value) is str else _literal(value)

    def apply(op: Op, args: list[Tensor], _: int) -> Tensor:
        return op.function(*args, dims=(0, 1))  # all in float64, so nothing needs rounding

    for signals in _probes():
        if not state:
            state = [initial_slot(s, signals["p"], signals["g"]) for s in program.state]
        inputs = signals | hypers | {s.name: value for s, value in zip(program.state, state, strict=True)}
        update, following, _ = fold(program, leaf, apply)
        state = list(following)  # type: ignore[arg-type]
        seen.append(update)  # type: ignore[arg-type]
    values = torch.stack([u.expand(SHAPE) for u in seen])
    memory = [torch.broadcast_to(state[i], SHAPE) for i in live]
    finite = bool(torch.isfinite(torch.cat([values.flatten(), *(m.flatten() for m in memory)])).all())
    parts = [_round(values), *sorted(_round(m) for m in memory)]
    if program.fallback is not None:
        other = behave(program.fallback)
        parts.append(other.fingerprint.encode())
        finite = finite and other.finite
    return Behaviour(hashlib.blake2b(b"|".join(parts), digest_size=16).hexdigest(), finite)


@lru_cache(maxsize=4096)
def _literal(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _round(x: Tensor) -> bytes:
    bits = torch.nan_to_num(x, nan=-1.2345e300).add(0.0).contiguous().view(torch.int64)
    return ((bits + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS).numpy().tobytes()
