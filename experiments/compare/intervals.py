"""Intervals of a mean, and what counts as the loss of a run that failed.

Student's t below `BOOTSTRAP_FROM` values and the BCa bootstrap (Efron 1987, doi:10.2307/2289144) from there on;
`experiments.compare.statistics` has the reasons.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_FROM = 30
RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a mean; `method` is ``"t"``, ``"BCa"``, ``"constant"`` or ``"single run"``.

    A single run has no interval: its bounds are NaN.
    """

    low: float
    high: float
    level: float
    method: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def censor(losses: np.ndarray, diverged: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace failed runs by the loss before training.

    Args:
        losses: final losses, ``[…, seeds]``.
        diverged: whether training became non-finite, of the same shape.
        start: loss before training, ``[seeds]``.

    Returns:
        The losses, and which of them were replaced: those that diverged, are not finite, or lie above the
        start.
    """
    with np.errstate(invalid="ignore"):
        failed = diverged | ~np.isfinite(losses) | (losses > start)
    return np.where(failed, np.broadcast_to(start, losses.shape), losses), failed


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0) -> Interval:
    """Confidence interval of the mean of `values` (finite, independent); `seed` is that of the bootstrap."""
    from scipy import stats

    x = finite(values)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(math.nan, math.nan, level, "single run")
    if constant(x):
        return Interval(mean, mean, level, "constant")
    if len(x) >= BOOTSTRAP_FROM and (found := bootstrap_interval(x, level, seed)) is not None:
        return found
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x))
    return Interval(mean - half, mean + half, level, "t")


def bootstrap_interval(values: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0) -> Interval | None:
    """BCa bootstrap interval of the mean of `values`; None where there is nothing to resample."""
    from scipy import stats

    x = finite(values)
    if len(x) == 1 or constant(x):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        bounds = stats.bootstrap(
            (x,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    if math.isfinite(bounds.low) and math.isfinite(bounds.high):
        return Interval(float(bounds.low), float(bounds.high), level, "BCa")
    return None


def finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The values as float64; `ValueError` unless it is a list of at least one finite number."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"expected a list of at least one loss, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("losses must be finite; replace those of diverged runs first (see censor)")
    return x


def constant(x: np.ndarray) -> bool:
    """Whether the values differ by no more than rounding, so that a variance computed from them means nothing."""
    return bool(np.ptp(x) <= 1e-12 * max(float(np.abs(x).max()), np.finfo(np.float64).tiny))
