"""The state of a learned rate, and the rule by which it moves: pure functions of what one step has shown.

A step with rate α moves the parameters by −α u. With g the gradient of the next batch, the derivative of that loss with
respect to α is −⟨g, u⟩ (Baydin et al. 2018, Online Learning Rate Adaptation with Hypergradient Descent, for any
update). Variant: log α follows the cosine of g and u, averaged over about ten steps, so that units cancel, and

- averages within ±0.1 move nothing. At a useful rate they are near 0, and a little below: greedy derivatives, of the
  next loss alone, favour small rates (Wu et al. 2018, Understanding Short-Horizon Bias);
- α is capped by the relative change of weights that a step makes (You et al. 2017 fix that quotient, here it bounds).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optforge.primitives.kinds import SCALES

MARGIN = 0.1  # averages of cosines within it, on both sides of 0, move nothing
CAP = 0.01  # usual largest change of a weight matrix in a step, relative to its size, that a rate is lifted to
TRUST = 5.0  # times the cap, which steps with the given rate may make
_MEMORY = 0.9  # of averaged cosines, a learning step
_FORGET = 0.99  # by which the largest recent change is forgotten, a step
_LIMIT = math.log(1e12)  # a factor stays within 1e-12 and 1e12, so that a rate is positive and finite
_DRIFT = 3.0  # in unconstrained space: the furthest that a hyperparameter other than lr moves from where it began

_ZERO, _ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


class LearnedRate(NamedTuple):
    """What is kept of a learned rate, in each parameter group; all groups share all but the first three fields.

    The rate of a step is ``scheduled · exp(log)``. Tensors are 0-dimensional, float64, and never written in place.

    Attributes:
        peak: largest value of ``group["lr"]`` so far.
        scheduled: value of ``group["lr"]`` in the last step.
        start: first values of learned hyperparameters other than `lr`.
        steps, moved: number of steps, and of those before the last one that learned.
        log: logarithm of the learned factor.
        used: the same in the last step.
        trace, weight: decaying sum of cosines, and of their weights.
        largest: largest recent relative change of weights, by a step with factor 1 at the peak of the schedule.
        trusted: 1 while the given rate, which is the factor 1, counts as a sound choice, else 0.
        level: the largest share of its peak that a schedule had left at, or after, the last lift.
    """

    peak: float
    scheduled: float
    start: dict[str, float]
    steps: int = 0
    moved: int = 0
    log: Tensor = _ZERO
    used: Tensor = _ZERO
    trace: Tensor = _ZERO
    weight: Tensor = _ZERO
    largest: Tensor = _ZERO
    trusted: Tensor = _ONE
    level: Tensor = _ZERO

    def on(self, device: torch.device) -> LearnedRate:
        """The same with its tensors on a device."""
        if self.log.device == device:
            return self
        moved: dict[str, Any] = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in self._asdict().items()}
        return LearnedRate(**moved)


def averaged(trace: Tensor, weight: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Average of cosines that forgets a tenth in each step, and both sums that it consists of."""
    trace, weight = _MEMORY * trace + (1 - _MEMORY) * cosine, _MEMORY * weight + (1 - _MEMORY)
    return trace / weight, trace, weight


def follow(rate: LearnedRate, cosine: Tensor, hyper_lr: float, share: float = 1.0) -> LearnedRate:
    """The rate after a step that has made this cosine with the gradient after it.

    Args:
        rate: before.
        cosine: of gradient and last step; one that is not finite moves nothing.
        hyper_lr: κ, the change of the logarithm for an average cosine of 1.
        share: what a schedule has left of its peak in that step. A lift counts only if it is more than what the
            schedule has taken since the last one: else the peak would rise just because the schedule falls.
    """
    mean, trace, weight = averaged(rate.trace, rate.weight, cosine)
    change = torch.where(mean.abs() > MARGIN, hyper_lr * mean, 0.0)
    now = torch.full_like(rate.log, share)
    level = torch.maximum(rate.level, now)
    lifts = (change > 0) & (change >= (level / now).log())
    change = torch.where(lifts, change, change.clamp(max=0.0))
    # greedy derivatives favour small rates: they do not undercut a trusted one
    change = torch.where(rate.trusted > 0, torch.maximum(change, -rate.log.clamp(0.0, _LIMIT)), change)
    usable = cosine.isfinite() & change.isfinite()
    log, level = (rate.log + change).clamp(-_LIMIT, _LIMIT), torch.where(lifts, now, level)
    after = {"log": log, "level": level, "trace": trace, "weight": weight}
    kept = {name: torch.where(usable, x, getattr(rate, name)) for name, x in after.items()}
    return LearnedRate(**rate._asdict() | kept)


def capped(rate: LearnedRate, change: Tensor, cap: float, steps: int = 1) -> LearnedRate:
    """The rate lowered to its cap, at which a step changes weights by no more than a share `cap` of their size.

    Updates of rules with averages are largest in the beginning; changes count as what they were at their largest,
    which is forgotten over about a hundred steps, so that a rate does not rise just because gradients die down. The
    given rate may be larger, as long as it never changes weights by more than five times as much.

    Args:
        rate: before.
        change: relative change of weights by this step, had its factor been 1 and the schedule at its peak.
        cap: see above.
        steps: how many have been made since the last call.
    """
    known = _FORGET**steps * rate.largest
    largest = torch.where(change.isfinite(), torch.maximum(known, change), rate.largest)
    trusted = torch.where(largest > TRUST * cap, 0.0, rate.trusted)
    bound = (cap / largest).log()
    bound = torch.where(trusted > 0, bound.clamp(min=0.0), bound)
    return rate._replace(log=torch.minimum(rate.log, bound), largest=largest, trusted=trusted)


def on_scale(scale: str, value: Tensor, start: float, change: Tensor) -> Tensor:
    """A hyperparameter moved by `change` in the space of its scale (see `primitives.kinds.SCALES`).

    It stays within 3 of its first value there: a factor of 20 for `log`, and of 1 - β for `unit`.
    """
    begin, (forward, inverse) = SCALES[scale].forward(start), _MAPS[scale]
    return inverse((forward(value) + change).clamp(begin - _DRIFT, begin + _DRIFT))


_Map = Callable[[Tensor], Tensor]
_MAPS: dict[str, tuple[_Map, _Map]] = {
    "log": (torch.log, torch.exp),
    "unit": (lambda x: -(1 - x).log(), lambda x: 1 - (-x.clamp(0.0, 36.0)).exp()),  # stays below 1
    "linear": (lambda x: x, lambda x: x),
}
