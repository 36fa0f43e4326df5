"""What can be said about a program without training anything: a few seconds of probing, each answer with a sentence.

The probes are simulations in float64 with default hyperparameters. They can refute a property for certain, and support
it; they prove nothing for all inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from optforge.primitives.analysis.cost import cost
from optforge.primitives.analysis.fingerprint import behave
from optforge.primitives.backends.interpret import Simulation
from optforge.primitives.backends.source import compile_step
from optforge.primitives.builder import Builder
from optforge.primitives.program import MAX_INSTRUCTIONS, Program

SHAPE = (6, 8)
LONG = 10_000  # steps over which the state is watched
_DIMS = (1, 2)  # of one parameter; independent probes are stacked before them
_SCALES = tuple(10.0**k for k in range(-6, 7))
_LR = 1e-3

Gradient = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Certificate:
    """Outcome of the probes.

    Attributes:
        depends_on_gradient: whether other gradients led to other updates.
        descent_cosine: mean cosine between update and exact gradient on noisy quadratics after 30 steps; 1 is
            gradient descent, positive goes downhill. Not a number if updates were.
        finite: whether updates and state stayed finite on all probes of moderate size, exact zeros included.
        bounded_update: whether the update stops growing with the gradient, both towards 1e6 and towards 1e-6.
        largest_update: largest magnitude of an update over gradients of size 1e-6 to 1e6, for a parameter of size 1.
        bounded_state: whether state stayed finite over 10,000 steps and grew by less than a tenth in their second half.
        state_growth: largest state in the second half of 10,000 steps divided by that in the first; 1 without state.
        scaling: ``invariant``, ``linear`` or ``other``: what multiplying all gradients by a constant does to updates.
        exponent: the power of the constant with which the update's size grows (0 invariant, 1 linear).
        state_bytes: optimizer state in bytes for each element of a large matrix, in float32.
    """

    depends_on_gradient: bool
    descent_cosine: float
    finite: bool
    bounded_update: bool
    largest_update: float
    bounded_state: bool
    state_growth: float
    scaling: str
    exponent: float
    state_bytes: float

    def sentences(self) -> list[str]:
        """One sentence for each property, in the order of the attributes."""
        descends = "not a number" if math.isnan(self.descent_cosine) else f"{self.descent_cosine:.3f}"
        downhill = "goes downhill" if self.descent_cosine > 0.01 else "does not go downhill"
        grows = "bounded" if self.bounded_update else "not bounded"
        scaling = {
            "invariant": "Multiplying all gradients by a constant does not change the update.",
            "linear": "Multiplying all gradients by a constant multiplies the update by it.",
        }
        return [
            "The update depends on the gradient." if self.depends_on_gradient
            else "Other gradients do not change the update.",
            f"On noisy quadratics it {downhill}: mean cosine {descends} with the exact gradient.",
            "Updates and state stayed finite on all probes." if self.finite
            else "Updates or state became infinite or not a number on a probe.",
            f"The update is {grows} in the gradient: at most {self.largest_update:.3g} for gradients of size "
            "1e-6 to 1e6 and parameters of size 1.",
            "It has no state." if not self.state_bytes and self.state_growth == 1
            else f"State is {'' if self.bounded_state else 'not '}bounded over {LONG:,} steps: its largest value in "
            f"the second half is {self.state_growth:.3g} times that in the first.",
            scaling.get(self.scaling, f"The update's size is about the gradient's to the power {self.exponent:.2f}."),
            f"State takes {self.state_bytes:.4g} bytes for each element of a large matrix, in float32.",
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """All attributes by name; numbers that JSON cannot hold are None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def certificate(program: Program) -> Certificate:
    """Probe `program` itself; for a fallback program ask separately. Takes a few seconds; deterministic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices of 6 by 8: several threads wait for each other most of the time
    try:
        return _probed(program)
    finally:
        torch.set_num_threads(threads)


def _probed(program: Program) -> Certificate:
    cosine, quadratic_finite = _descent(program)
    largest, bounded = _update_bound(program)
    growth = _state_growth(program)
    exponent, aligned = _scaling(program)
    near = {0: "invariant", 1: "linear"}
    fits = math.isfinite(exponent) and aligned and abs(exponent - round(exponent)) < 0.02
    return Certificate(
        depends_on_gradient=_depends(program),
        descent_cosine=cosine,
        finite=quadratic_finite and behave(program).finite,
        bounded_update=bounded,
        largest_update=largest,
        bounded_state=growth <= 1.1,
        state_growth=growth,
        scaling=near.get(round(exponent), "other") if fits else "other",
        exponent=exponent,
        state_bytes=cost(program, (1024, 1024)).state_bytes,
    )


def _simulate(
    program: Program, p: Tensor, gradient: Gradient, steps: int, *, moves: bool = False
) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
    """Parameter before, update and live state after each step, for a stack of probes ``[probes, *SHAPE]``."""
    live = [s in program.live_state for s in program.state]
    simulation = Simulation(program, _DIMS, compile_step(program))
    for before, (update, state) in simulation.follow(p, gradient, steps, lr=_LR, moves=moves):
        yield before, update, tuple(x for x, keep in zip(state, live, strict=True) if keep)


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _depends(program: Program) -> bool:
    """Whether an update differs between two sequences of gradients; without a reader of gradients none can."""
    if not program.live.names & {"g", "global_norm"} and all(s.init != "g" for s in program.live_state):
        return False
    probes = _noise(1, 8, 2, *SHAPE)
    p = _noise(2, 1, *SHAPE).expand(2, *SHAPE)
    for _, update, _ in _simulate(program, p, lambda step, _: probes[step - 1], len(probes)):
        if not torch.equal(update[0].nan_to_num(), update[1].nan_to_num()):
            return True
    return False


def _descent(program: Program) -> tuple[float, bool]:
    """Mean cosine with the exact gradient of 16 noisy quadratics, and whether all stayed finite."""
    curvature = 10 ** _noise(3, 16, *SHAPE).clamp(-2, 0)
    noise = 0.3 * _noise(4, 60, 16, *SHAPE)
    cosines, finite = [], True
    steps = _simulate(program, _noise(5, 16, *SHAPE), lambda t, p: curvature * p + noise[t - 1], 60, moves=True)
    for step, (p, update, state) in enumerate(steps, 1):
        finite = finite and all(bool(x.isfinite().all()) for x in (update, *state))
        if step > 30:
            exact = curvature * p
            product = (update * exact).sum(_DIMS)
            sizes = torch.linalg.vector_norm(update, dim=_DIMS) * torch.linalg.vector_norm(exact, dim=_DIMS)
            cosines.append(torch.where(sizes == 0, 0.0, product / sizes))
    return float(torch.cat(cosines).mean()), finite


def _update_bound(program: Program) -> tuple[float, bool]:
    """Largest update over all gradient scales, and whether it has stopped growing at both ends."""
    scale = torch.tensor(_SCALES, dtype=torch.float64).view(-1, 1, 1)
    noise, p = _noise(6, 40, *SHAPE), _noise(7, *SHAPE).expand(len(_SCALES), *SHAPE)
    largest = torch.zeros(len(_SCALES), dtype=torch.float64)
    for _, update, _ in _simulate(program, p, lambda step, _: scale * noise[step - 1], len(noise)):
        largest = torch.maximum(largest, update.abs().expand(len(_SCALES), *SHAPE).amax(_DIMS))
    sizes = largest.tolist()
    grows = any(not end <= 1.1 * before for end, before in ((sizes[-1], sizes[-3]), (sizes[0], sizes[2])))
    return (math.nan if math.isnan(sum(sizes)) else max(sizes)), not grows and all(map(math.isfinite, sizes))


def _state_growth(program: Program) -> float:
    """Largest value of a slot in the second half of a long run divided by that in the first, for the slot where this is
    largest; infinite if anything was not finite."""
    if not program.live_state:
        return 1.0
    # the noise repeats, after a prime number of steps, so that all of it has been looked at in either half
    mean, noise, p = _noise(8, 1, *SHAPE), _noise(9, 499, 1, *SHAPE), _noise(10, 1, *SHAPE)
    halves = torch.zeros(2, len(program.live_state), dtype=torch.float64)
    steps = _simulate(_only_state(program), p, lambda step, _: mean + noise[step % len(noise)], LONG)
    for step, (_, _, state) in enumerate(steps):
        if step % 10 == 9:
            sizes = torch.stack([x.abs().max() for x in state])
            if not bool(sizes.isfinite().all()):
                return math.inf
            half = halves[step * 2 // LONG]
            torch.maximum(half, sizes, out=half)
    first, second = halves
    growth = torch.where(second == 0, 0.0, second / first)
    return float(growth.max()) if bool((second > 0).any()) else 1.0


def _only_state(program: Program) -> Program:
    """A program with the same live state that computes nothing else."""
    program = program.pruned()
    if len(program.body) + 2 * len(program.state) > MAX_INSTRUCTIONS:
        return program
    b = Builder()
    value, total = b.append(program), b.g
    for slot in program.state:  # which is what keeps them alive
        total = total + (b.trace(value(slot.name)) if slot.kind.is_square else value(slot.name))
    return b.build(total)


def _scaling(program: Program) -> tuple[float, bool]:
    """Power with which the update's size follows the gradient's, and whether its direction stays the same.

    The parameter is tiny, so that weight decay, which is no function of the gradient, does not blur the answer.
    """
    scale = torch.tensor([1e-2, 1e-1, 1.0, 1e1, 1e2], dtype=torch.float64).view(-1, 1, 1)
    noise, p = _noise(11, 20, *SHAPE), 1e-6 * _noise(12, 1, *SHAPE).expand(5, *SHAPE)
    updates = [u for _, u, _ in _simulate(program, p, lambda step, _: scale * noise[step - 1], len(noise))]
    u = torch.stack([x.expand(5, *SHAPE) for x in updates[10:]], dim=1).flatten(1)
    size = torch.linalg.vector_norm(u, dim=1)
    x, y = scale.flatten().log(), size.log()
    slope = float((x * (y - y.mean())).sum() / x.square().sum())
    straight = (y - y[2] - slope * x).abs().max() < 0.05
    direction = torch.nn.functional.cosine_similarity(u, u[2:3], dim=1, eps=1e-300)
    return slope, bool(straight and (direction > 0.999).all())
