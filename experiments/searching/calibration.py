"""Whether proxies rank optimizers as larger tasks do: known optimizers, tuned alike, on both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FEWEST = 4
"""Optimizers that a rank correlation needs at least."""

RESAMPLES = 2_000
"""Bootstrap samples of optimizers for the interval of a rank correlation."""

MISJUDGED = 1 / 3
"""Share of the number of optimizers by which ranks must differ for one to be called misjudged."""


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        names: of the optimizers.
        proxies: score of each on each proxy, by task; the mean log ratio to AdamW over seeds.
        larger: the same on larger tasks.
        rho: Spearman's rank correlation of mean proxy scores with mean scores on larger tasks.
        low, high: its 95 % interval, by bootstrap over optimizers.
        by_task: rank correlation of the mean proxy score with each larger task.
        reliability: rank correlation of the mean scores over two halves of the proxies, stepped up to their full number
            by Spearman and Brown's formula.
    """

    names: tuple[str, ...]
    proxies: Mapping[str, tuple[float, ...]]
    larger: Mapping[str, tuple[float, ...]]
    rho: float
    low: float
    high: float
    by_task: Mapping[str, float]
    reliability: float

    @property
    def misjudged(self) -> list[tuple[str, int, int]]:
        """Optimizers whose ranks differ most, with their rank on proxies and on larger tasks, counted from 1."""
        ours, theirs = _ranks(means(self.proxies)), _ranks(means(self.larger))
        found = [(n, int(a) + 1, int(b) + 1) for n, a, b in zip(self.names, ours, theirs, strict=True)]
        return [row for row in found if abs(row[1] - row[2]) >= MISJUDGED * len(self.names)]

    def as_json(self) -> dict[str, Any]:
        """Everything, in JSON's own types but for numbers that are not finite."""
        return asdict(self) | {"misjudged": self.misjudged}


def calibrate(
    names: Sequence[str], proxies: Mapping[str, Sequence[float]], larger: Mapping[str, Sequence[float]]
) -> Calibration:
    """Compare rankings, from scores by task of the same optimizers in the same order.

    Raises:
        ValueError: for fewer than `FEWEST` optimizers, or no task on either side.
    """
    if len(names) < FEWEST or not proxies or not larger:
        raise ValueError(
            f"a calibration needs {FEWEST} optimizers and tasks on both sides, got {len(names)} optimizers"
        )
    ours, theirs = means(proxies), means(larger)
    rng = np.random.default_rng(0)
    samples = [rng.integers(len(names), size=len(names)) for _ in range(RESAMPLES)]
    drawn = [rho for at in samples if math.isfinite(rho := spearman(ours[at], theirs[at]))]
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (math.nan, math.nan)
    return Calibration(
        names=tuple(names),
        proxies={task: tuple(scores) for task, scores in proxies.items()},
        larger={task: tuple(scores) for task, scores in larger.items()},
        rho=spearman(ours, theirs),
        low=float(low),
        high=float(high),
        by_task={task: spearman(ours, np.array(scores)) for task, scores in larger.items()},
        reliability=_reliability(proxies),
    )


def means(scores: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Mean over tasks of each optimizer's score."""
    found: np.ndarray = np.mean(list(scores.values()), axis=0)
    return found


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where all of one side are equal."""
    from scipy.stats import spearmanr

    if len(set(a.tolist())) < 2 or len(set(b.tolist())) < 2:
        return math.nan
    return float(spearmanr(a, b).statistic)


def _reliability(proxies: Mapping[str, Sequence[float]]) -> float:
    tasks = list(proxies)
    if len(tasks) < 2:
        return math.nan
    halves = [means({t: proxies[t] for t in tasks[first::2]}) for first in (0, 1)]
    rho = spearman(*halves)
    return 2 * rho / (1 + rho) if rho > -1 else math.nan


def _ranks(scores: np.ndarray) -> np.ndarray:
    return scores.argsort(kind="stable").argsort(kind="stable")


__all__ = ["FEWEST", "Calibration", "calibrate", "means", "spearman"]
