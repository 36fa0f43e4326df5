"""Learning-rate schedules as torch schedulers, and how a rate changes with the batch size.

Every schedule multiplies the rate that each parameter group has when the schedule is made, so that it composes with any
optimizer, with groups of different rates, and with a learned rate. Call ``scheduler.step()`` after each step of the
optimizer. The factor of a step depends on nothing but the step's number: there is no drift, and `state_dict` holds all.

Warm-up is an argument of every schedule: for ``warmup_steps`` steps the factor is 1/W, 2/W, …, 1 (Goyal et al. 2017,
§2.2, gradual warm-up; variant: from 1/W, because a first step of rate 0 does nothing). What follows is counted from the
end of the warm-up, unless stated otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import MappingProxyType

from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import Optimizer

Factor = Callable[[int], float]
"""What multiplies the rate of a step, from the number of steps made before it."""


def constant(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> LRScheduler:
    """Factor 1."""
    _check(total_steps, warmup_steps)
    return _scheduler(optimizer, warmup_steps, _one)


def warmup(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> LRScheduler:
    """Linear warm-up, over a tenth of all steps unless `warmup_steps` says otherwise, then factor 1."""
    _check(total_steps, warmup_steps)
    return constant(optimizer, total_steps, warmup_steps or max(1, total_steps // 10))


def cosine(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, floor: float = 0.0) -> LRScheduler:
    """Half a cosine from 1 to `floor`, which the end reaches: Loshchilov & Hutter 2017 (SGDR), equation 5, no restart.

    The factor after t of T steps is ``floor + (1 - floor) · (1 + cos(π t/T)) / 2``.
    """
    _check(total_steps, warmup_steps)
    _check_share("floor", floor)
    span = max(1, total_steps - warmup_steps)
    return _scheduler(optimizer, warmup_steps, partial(_half_cosine, span, floor))


def linear(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> LRScheduler:
    """A straight line from 1 to 0, which the end reaches: ``1 - t/T`` after t of T steps.

    Found best of the usual decays by Defazio et al. 2023 (arXiv:2310.07831) and Bergsma et al. 2025 (arXiv:2502.15938).
    """
    _check(total_steps, warmup_steps)
    span = max(1, total_steps - warmup_steps)
    return _scheduler(optimizer, warmup_steps, partial(_line, span, span))


def step(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, step_size: int | None = None, gamma: float = 0.1
) -> LRScheduler:
    """Times `gamma` after every `step_size` steps, by default a third of what follows the warm-up.

    A tenth after each third is what image classifiers were long trained with (Goyal et al. 2017, §5.1).
    """
    _check(total_steps, warmup_steps)
    _check_share("gamma", gamma)
    size = math.ceil((total_steps - warmup_steps) / 3) if step_size is None else step_size
    if size < 1 and step_size is not None:
        raise ValueError(f"step_size must be at least 1, got {step_size}")
    return _scheduler(optimizer, warmup_steps, partial(_power, gamma, max(1, size)))


def exponential(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, gamma: float | None = None
) -> LRScheduler:
    """Times `gamma` after every step; by default so that the end of the run reaches a hundredth."""
    _check(total_steps, warmup_steps)
    if gamma is None:
        gamma = 0.01 ** (1 / max(1, total_steps - warmup_steps))
    _check_share("gamma", gamma)
    return _scheduler(optimizer, warmup_steps, partial(_power, gamma, 1))


def inverse_square_root(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> LRScheduler:
    """``√(W/s)`` in step s = 1, 2, …, counted from the start of the warm-up of W steps.

    Vaswani et al. 2017, equation 3, without its factor: there the largest rate is ``(width · W)^-½``, here it is the
    optimizer's own. Without warm-up, W is 1.
    """
    _check(total_steps, warmup_steps)
    return _scheduler(optimizer, warmup_steps, partial(_inverse_root, warmup_steps))


def wsd(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, decay_steps: int | None = None) -> LRScheduler:
    """Warm-up, stable, decay: factor 1, then a straight line over the last `decay_steps` to 0, which the end reaches.

    Hu et al. 2024 (MiniCPM, arXiv:2404.06395), whose tenth of all steps is the default for the decay. Variant: a line
    (Hägele et al. 2024, arXiv:2405.18392) in place of an exponential, which never arrives.
    """
    _check(total_steps, warmup_steps)
    decay = min(total_steps - warmup_steps, max(1, total_steps // 10)) if decay_steps is None else decay_steps
    if not 0 <= decay <= total_steps - warmup_steps:
        raise ValueError(
            f"decay_steps must lie between 0 and {total_steps - warmup_steps}, the steps after the warm-up, got {decay}"
        )
    return _scheduler(optimizer, warmup_steps, partial(_line, total_steps - warmup_steps, decay))


SCHEDULES: MappingProxyType[str, Callable[..., LRScheduler]] = MappingProxyType(
    {
        "constant": constant,
        "warmup": warmup,
        "cosine": cosine,
        "linear": linear,
        "step": step,
        "exponential": exponential,
        "inverse-square-root": inverse_square_root,
        "wsd": wsd,
    }
)
"""Schedules by name; each takes ``(optimizer, total_steps, warmup_steps=0, …)``."""


def linear_scaling(lr: float, ratio: float) -> float:
    """Rate for batches `ratio` times as large, ``ratio · lr``: Goyal et al. 2017, §2.1, for SGD."""
    _check_ratio(ratio)
    return ratio * lr


def square_root_scaling(
    lr: float, ratio: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> dict[str, float | tuple[float, float]]:
    """`lr`, `betas` and `eps` of Adam for batches `ratio` times as large: Malladi et al. 2022, arXiv:2205.10287.

    Their square root scaling rule for Adam: the rate grows with ``√ratio``, averages forget as fast for each example as
    before (``1 - ratio · (1 - β)``), and epsilon keeps its size relative to the gradients' noise (``eps / √ratio``).

    Raises:
        ValueError: if the ratio is not positive, or so large that a β would be negative.
    """
    _check_ratio(ratio)
    scaled = tuple(1 - ratio * (1 - beta) for beta in betas)
    if min(scaled) < 0:
        raise ValueError(f"betas {betas} cannot be scaled to batches {ratio:g} times as large: they would be {scaled}")
    return {"lr": math.sqrt(ratio) * lr, "betas": (scaled[0], scaled[1]), "eps": eps / math.sqrt(ratio)}


def _scheduler(optimizer: Optimizer, warmup_steps: int, after: Factor) -> LRScheduler:
    """Of functions of this module with their arguments, which pickles hold, as they hold no function in a function."""
    return LambdaLR(optimizer, partial(_factor, warmup_steps, after))


def _factor(warmup_steps: int, after: Factor, done: int) -> float:
    return (done + 1) / warmup_steps if done < warmup_steps else after(done - warmup_steps)


def _one(done: int) -> float:
    return 1.0


def _half_cosine(span: int, floor: float, done: int) -> float:
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1, done / span))) / 2


def _power(gamma: float, size: int, done: int) -> float:
    return float(gamma ** (done // size))


def _inverse_root(warmup_steps: int, done: int) -> float:
    return math.sqrt(max(1, warmup_steps) / (warmup_steps + done + 1))


def _line(end: int, decay: int, done: int) -> float:
    return min(1.0, max(0, end - done) / decay) if decay else 1.0


def _check(total_steps: int, warmup_steps: int) -> None:
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps must lie between 0 and the {total_steps} steps of the run, got {warmup_steps}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < math.inf:
        raise ValueError(f"the ratio of batch sizes must be a positive number, got {ratio}")
