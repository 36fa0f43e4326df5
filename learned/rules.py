"""How a learned rate follows its derivative: pure functions of what one step has shown.

Each rule maps its memory and the sums of a step to a change of log α; all are free of units except `additive`. With g
the gradient, u the derivative of the step before with respect to its rate, and c = ⟨g, u⟩ / (‖g‖ ‖u‖):

- `additive`: α ← α + κ⟨g, u⟩ (Baydin et al. 2018, Online Learning Rate Adaptation, equation 5, for any update).
  Variant: a step at most halves or doubles α.
- `multiplicative`: log α ← log α + κ c; to first order Baydin's multiplicative rule, equation 8 there.
- `traced`: the same with an average of c that decays by 0.9 a step, against noise of single steps.
- `tower`: κ is itself learned in the same way, and so on upwards (Chandra et al. 2022, Gradient Descent: The Ultimate
  Optimizer). Variant: in log space, with normalised derivatives: log κᵢ ← log κᵢ + κᵢ₊₁ hᵢ₊₁, h₁ = c, hᵢ₊₁ = hᵢ hᵢ⁻.
- `scaled`: online gradient descent with AdaGrad's step on ⟨g, u⟩ / ‖g⁻‖², with g⁻ the gradient before (Gao et al. 2024,
  Gradient Methods with Online Scaling). Variant: the scaling is one number, and moves in units of α.
- `polyak`: `traced`, and from above Polyak's step (f − f*) / ⟨g, u⟩, for which losses must be told (Loizou et al. 2021,
  Stochastic Polyak Step-size, equation 3, with the cap and the step in each other's place). f* begins at 0 and moves
  half the way to the lowest loss after each 100 steps (Hazan and Kakade 2019, Revisiting the Polyak step size,
  algorithm 2). Variants: that is the lowest average over about ten steps, and f moves the next rate.
- `two-sided`: `traced` where the average says something, |c| > 0.1, and from above a cap on the relative change of
  weights, which needs no loss (see `cap`). At a useful rate c is near 0, and a little below: greedy derivatives, of the
  next loss alone, favour small rates (Wu et al. 2018, Understanding Short-Horizon Bias). Those are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from optforge.learned.numeric import Number, kept, of
from optforge.primitives import ProgramError
from optforge.primitives.kinds import SCALES

Memory = dict[str, Number]


class Seen(NamedTuple):
    """Sums over all parameters that a rate governs, each a number (see `learned.numeric`).

    Attributes:
        dot: ⟨g, u⟩; the derivative of the loss with respect to the rate is its negative.
        g2, u2: ‖g‖² and ‖u‖².
        alpha: the rate.
        gu: ⟨g, u⟩ with u of this step.
        loss, lowest: the loss, and the lowest average of losses; of no meaning if none was told.
    """

    dot: Number
    g2: Number
    u2: Number
    alpha: Number
    gu: Number = math.nan
    loss: Number = math.nan
    lowest: Number = math.nan

    @property
    def cosine(self) -> Number:
        """Of gradient and last step, in [-1, 1]."""
        return of(self.dot).divide(self.dot, self.g2**0.5 * self.u2**0.5)


class Rule(NamedTuple):
    """`init()` gives the first memory, ``step(memory, seen, κ)`` a change of log α and the next memory.

    `hyper_lr` and `every` are the defaults of `learned.learn`.
    """

    init: Callable[[], Memory]
    step: Callable[[Mapping[str, Number], Seen, float], tuple[Number, Memory]]
    hyper_lr: float
    every: int = 1


def _zeros(*names: str) -> Callable[[], Memory]:
    return lambda: {name: kept(0.0) for name in names}


def _log_grown(share: Number) -> Number:
    """Change of the logarithm of what grows by a share of itself, between a half and its double."""
    return of(share).log1p(of(share).clip(share, -0.5, 1.0))


def _additive(memory: Mapping[str, Number], seen: Seen, k: float) -> tuple[Number, Memory]:
    return _log_grown(k * seen.dot / seen.alpha), {}


def _multiplicative(memory: Mapping[str, Number], seen: Seen, k: float) -> tuple[Number, Memory]:
    return k * seen.cosine, {}


def _traced(memory: Mapping[str, Number], seen: Seen, k: float) -> tuple[Number, Memory]:
    trace = 0.9 * memory["trace"] + 0.1 * seen.cosine
    weight = 0.9 * memory["weight"] + 0.1  # of what the trace has seen so far
    return k * trace / weight, {"trace": trace, "weight": weight}


def _two_sided(memory: Mapping[str, Number], seen: Seen, k: float) -> tuple[Number, Memory]:
    change, after = _traced(memory, seen, k)
    return of(change).where(abs(change) > k * MARGIN, change, 0.0), after


def _polyak(memory: Mapping[str, Number], seen: Seen, k: float) -> tuple[Number, Memory]:
    change, after = _traced(memory, seen, k)
    do, floor, count = of(seen.dot), memory["floor"], memory["count"] + 1.0
    above = seen.loss - floor
    limit = do.log(do.divide(above, seen.gu)) - do.log(seen.alpha)
    change = do.where((above > 0) & (seen.gu > 0), do.minimum(change, limit), change)
    floor = do.where((count % STAGE == 0) & (seen.lowest > floor), (floor + seen.lowest) / 2, floor)
    return change, {**after, "floor": floor, "count": count}


def _scaled(memory: Mapping[str, Number], seen: Seen, k: float) -> tuple[Number, Memory]:
    h = of(seen.dot).where(memory["g2"] > 0, of(seen.dot).divide(seen.dot, memory["g2"]), 0.0)
    square = memory["square"] + h * h
    return _log_grown(k * h / (square**0.5 + 1e-30)), {"g2": seen.g2, "square": square}


def tower(depth: int) -> Rule:
    """Rates on rates, `depth` of them above α; 1 is `multiplicative`."""
    if not (isinstance(depth, int) and 1 <= depth <= 100):
        raise ProgramError(f"a tower has from 1 to 100 levels, got {depth!r}")
    names = [f"log_rate{i}" for i in range(1, depth)], [f"last{i}" for i in range(1, depth)]

    def step(memory: Mapping[str, Number], seen: Seen, k: float) -> tuple[Number, Memory]:
        h, new = [seen.cosine], {}
        for last in names[1]:
            new[last] = h[-1]
            h.append(h[-1] * memory[last])
        change = k * h.pop()
        for rate in reversed(names[0]):  # from the top, so that each moves by the one above as that is now
            new[rate] = of(change).clip(memory[rate] + change, -5.0, 3.0)
            change = k * of(change).exp(new[rate]) * h.pop()
        return change, new

    return Rule(_zeros(*names[0], *names[1]), step, 0.02)


RULES: dict[str, Rule] = {
    "two-sided": Rule(_zeros("trace", "weight"), _two_sided, 0.3, every=20),
    "multiplicative": Rule(_zeros(), _multiplicative, 0.02),
    "additive": Rule(_zeros(), _additive, 1e-7),
    "traced": Rule(_zeros("trace", "weight"), _traced, 0.02),
    "tower": tower(3),
    "scaled": Rule(_zeros("g2", "square"), _scaled, 0.1),
    "polyak": Rule(_zeros("trace", "weight", "floor", "count"), _polyak, 0.3),
}
"""Rules by name, each with the κ (`hyper_lr`) that is used unless another is given."""


def named_rule(name: str) -> Rule:
    """The rule of this name, of which ``"towerN"`` is a tower of N levels; `ProgramError` if there is none."""
    if isinstance(name, str) and (found := RULES.get(name)):
        return found
    if isinstance(name, str) and (levels := name.removeprefix("tower")) != name and levels.isdecimal():
        return tower(int(levels))
    raise ProgramError(f"cannot use rule {name!r}; choose from: {', '.join(RULES)}, towerN")


STAGE = 100  # steps with one estimate of the lowest loss
MARGIN = 0.1  # averages of cosines within it, on both sides of 0, move nothing
CAP = 0.01  # largest step of a weight matrix, relative to its size, that a rate is lifted to
TRUSTED = 0.05  # the same for the rate that was given
MEMORY_OF_LARGE = 0.99  # by which the largest seen update per rate is forgotten a step


def cap(
    large: Number,
    given: Number,
    relative: Number,
    trusted: Number = TRUSTED,
    falls: Number = False,
    steps: int = 1,
) -> tuple[Number, Number, Number]:
    """Upper bound of log α, and both memories for the next.

    α r ≤ 1 %, with r the median over all matrices of ‖u‖ / ‖p‖: what one step at rate 1 changes of them. Updates of
    rules with averages are largest in the beginning; r counts as what it was at its largest, forgotten slowly, so that
    a rate does not rise just because gradients die down. You et al. 2017 fix this quotient, for each layer; here it
    bounds.

    Somebody chose the first rate, `given`, which says something: α ≤ `given` is allowed, too, unless that ever makes
    more than `trusted`. From then on it counts for nothing, as 0.

    Args:
        large, given: the memories.
        relative: r of this step.
        trusted: largest step of a weight matrix, relative to its size, that the given rate may make.
        falls: whether losses are told and fall, so that only this step counts for that, not the largest one.
        steps: how many have been made since `large` was known.
    """
    do = of(relative)
    large = do.maximum(MEMORY_OF_LARGE**steps * large, relative)
    judged = large if falls is False else do.where(falls, relative, large)
    given = do.where(given * judged > trusted, 0.0, given)
    return do.maximum(math.log(CAP) - do.log(large), do.log(given)), large, given


_DRIFT = 3.0  # in unconstrained space: the furthest that a hyperparameter other than lr moves from where it began
_SHRINK = 0.01  # share of itself by which a group's or a tensor's deviation from its parent shrinks in a step


def towards_parent(own: Number, change: Number) -> Number:
    """A deviation in log space after a step: it shrinks, and moves by `change` where that is finite; at most e² ×."""
    moved = (1 - _SHRINK) * own + change
    return of(moved).clip(of(moved).where(of(moved).isfinite(moved), moved, own), -2.0, 2.0)


def starts(scale: str, value: float) -> bool:
    """Whether a hyperparameter of this value can be moved in the space of its scale: one switched off cannot."""
    return math.isfinite(SCALES[scale].forward(value))


def on_scale(scale: str, value: Number, start: float, change: Number) -> Number:
    """A hyperparameter moved by `change` in the space of its scale (see `primitives.kinds.SCALES`).

    It stays within 3 of its first value there: a factor of 20 for `log`, and of 1 - β for `unit`. One that is switched
    off stays so.
    """
    begin = SCALES[scale].forward(start)
    if not math.isfinite(begin):
        return value
    forward, inverse = _MAPS[scale]
    return inverse(of(change).clip(forward(value) + change, begin - _DRIFT, begin + _DRIFT))


def halfway_back(scale: str, value: Number, start: float) -> Number:
    """A hyperparameter in the middle between its value and its first one, in the space of its scale."""
    forward, _ = _MAPS[scale]
    return on_scale(scale, value, start, (SCALES[scale].forward(start) - forward(value)) / 2)


_MAPS: dict[str, tuple[Callable[[Number], Number], Callable[[Number], Number]]] = {
    "log": (lambda x: of(x).log(x), lambda x: of(x).exp(x)),
    "unit": (lambda x: -of(x).log(1 - x), lambda x: 1 - of(x).exp(-of(x).clip(x, 0.0, 36.0))),  # stays below 1
    "linear": (lambda x: x, lambda x: x),
}

__all__ = [
    "CAP",
    "MARGIN",
    "RULES",
    "TRUSTED",
    "Memory",
    "Rule",
    "Seen",
    "cap",
    "halfway_back",
    "named_rule",
    "on_scale",
    "starts",
    "towards_parent",
    "tower",
]
