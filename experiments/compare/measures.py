"""What a comparison says beside means and tests: power, tunability, sensitivity, time to target, profiles.

- **Power.** From the spread of the paired differences over the seeds that were run, the chance that a true difference
  of a given size is called one. It is computed at α divided by the number of pairs, the first and strictest of Holm's
  levels, so that it is a promise and not a hope. t test: scipy's noncentral t distribution.
- **Best of k.** Lowest tuning loss among the first k trials. Trials are nested: a budget of k is the beginning of every
  larger one, so this is what tuning with that budget would have found.
- **Width.** Decades of learning rate around the tuned one in which the tuning loss has lost no more than `TOLERANCE` of
  what training gains. Beyond the rates that were tried it is not known to go on, and not counted.
- **Time to target.** First measured step whose validation loss is at most the target; a run that never gets there, or
  fails, is censored: it counts as longer than all others and is never left out.
- **Performance profile.** Dolan & Moré 2002 (doi:10.1007/s101070100263): for each factor τ, the share of problems (a
  task, horizon and seed) on which the loss is within τ of the best one there. Losses are taken above a floor of `FLOOR`
  times the loss before training, so that a solved problem is no contest of rounding errors. Problems on which a loss is
  negative, or all is 0, have no ratios and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from optforge.experiments.compare.comparison import Run

POWER = 0.8
TOLERANCE = 0.05
FLOOR = 1e-3


def power(spread: float, count: int, effect: float, alpha: float = 0.05) -> float:
    """Chance that a two-sided paired t test finds a true mean difference of `effect`, in (0, 1].

    Args:
        spread: standard deviation of the paired differences.
        count: number of pairs of runs.
        effect: the true difference, in the unit of `spread`.
        alpha: level of the test.
    """
    from scipy import stats

    if count < 2 or math.isnan(spread):
        return math.nan
    if spread == 0:
        return 1.0 if effect else alpha
    critical, shift = stats.t.ppf(1 - alpha / 2, count - 1), abs(effect) / spread * math.sqrt(count)
    found = stats.nct.sf(critical, count - 1, shift) + stats.nct.cdf(-critical, count - 1, shift)
    return float(found) if math.isfinite(found) else 1.0  # far in the tail scipy gives up


def detectable(spread: float, count: int, alpha: float = 0.05, wanted: float = POWER) -> float:
    """Smallest true difference that is found with a chance of `wanted`, in the unit of `spread`; see `power`."""
    from scipy import optimize

    if count < 2 or not spread:
        return math.nan if count < 2 else 0.0
    high = 1.0
    while power(1.0, count, high, alpha) < wanted:
        high *= 2
    return spread * float(optimize.brentq(lambda x: power(1.0, count, x, alpha) - wanted, 0.0, high))


def best_of(losses: Sequence[float]) -> list[float]:
    """Lowest of the first k losses, for k = 1, 2, …"""
    return list(accumulate(losses, min))


def width(rates: Sequence[float], losses: Sequence[float], start: float) -> float:
    """Decades of learning rate around the best in which the loss is near the best one; see the head of this file.

    Args:
        rates: ascending.
        losses: mean loss at each, failed runs counted as `start`.
        start: loss before training; where no rate is better than that, there is no width (NaN).
    """
    best = int(np.argmin(losses))
    if losses[best] >= start:
        return math.nan
    allowed = losses[best] + TOLERANCE * (start - losses[best])
    x = np.log10(rates)
    ends = []
    for direction in (-1, 1):
        at = best
        while 0 <= at + direction < len(rates) and losses[at + direction] <= allowed:
            at += direction
        end = x[at]
        if 0 <= (past := at + direction) < len(rates):  # on the line to the first one that is not near
            end += (allowed - losses[at]) / (losses[past] - losses[at]) * (x[past] - x[at])
        ends.append(end)
    return float(ends[1] - ends[0])


def steps_to_target(curve: Sequence[float], steps: int, target: float) -> float:
    """First of the evenly spaced points of a run's validation losses that reaches `target`, in steps; else infinite."""
    for point, loss in enumerate(curve, 1):
        if loss <= target:
            return -(-point * steps // len(curve))
    return math.inf


def times_to_target(runs: Sequence[Run], steps: int, target: float) -> list[float]:
    """`steps_to_target` of each run; a run that failed never gets there."""
    return [math.inf if run.failed else steps_to_target(run.valid_curve, steps, target) for run in runs]


def median_or_censored(values: Sequence[float]) -> float:
    """Median of times of which some are infinite; infinite where half of them are."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def profile(losses: Mapping[str, Sequence[float]], starts: Sequence[float]) -> dict[str, list[float]]:
    """For each optimizer, on each problem, how many times the best loss its own is; sorted, this is its profile.

    Args:
        losses: finite loss on each problem in the same order, by optimizer.
        starts: loss before training on each problem.

    Returns:
        Finite ratios, as many for each optimizer; fewer than problems where some have none.
    """
    found = np.array(list(losses.values()), dtype=np.float64)
    above = found + FLOOR * np.abs(np.asarray(starts, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = above / above.min(axis=0)
    ratios = ratios[:, ((found >= 0) & np.isfinite(ratios)).all(axis=0)]
    return {name: sorted(row) for name, row in zip(losses, ratios.tolist(), strict=True)}
