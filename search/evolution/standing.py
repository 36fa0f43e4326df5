"""What is believed of programs whose scores are noisy: posterior means, and who is worth another evaluation.

A score is that of one seed. The best of many on one seed each are the lucky ones, so that the best are evaluated again
on the seeds of later batches, and all are compared by the mean of a posterior: normal noise around a program's own
value, whose variance is that between evaluations of one program, and normal values around the mean of the better half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pvariance
from typing import NamedTuple

from optforge.primitives import Program

NOISE, WEIGHT = 0.015, 4
"""Standard deviation of a score between seeds as measured on the proxies, and how many evaluations that counts as."""

ELITES = 3
"""How many times as many programs as are evaluated again compete for it; those with the fewest evaluations win."""


class Individual(NamedTuple):
    """An evaluated program. Lower scores are better; infinite if it could not be trained.

    Attributes:
        number: of the program.
        batch: in which it was first evaluated.
        program: the program.
        score: of its first evaluation.
        again: batch and score of each later one.
    """

    number: int
    batch: int
    program: Program
    score: float
    again: tuple[tuple[int, float], ...] = ()

    def scores(self, last: int | None = None) -> list[float]:
        """All its scores, or those of batches up to `last`."""
        return [self.score, *(score for batch, score in self.again if last is None or batch <= last)]


def standings(individuals: Sequence[Individual], last: int | None = None) -> list[float]:
    """Posterior mean of each individual's score, from evaluations of batches up to `last`.

    Without repeated evaluations the order is that of the scores.
    """
    found = [individual.scores(last) for individual in individuals]
    if not any(len(scores) > 1 for scores in found):
        return [scores[0] for scores in found]
    finite = [scores for scores in found if all(map(math.isfinite, scores))]
    if not finite:
        return [math.inf for _ in found]
    noise = noise_variance(finite)
    better = sorted(map(fmean, finite))[: max(2, (len(finite) + 1) // 2)]
    centre = fmean(better)
    spread = max(pvariance(better) - noise, 0.1 * noise)
    return [_posterior(scores, centre, spread, noise) for scores in found]


def noise_variance(scores: Sequence[Sequence[float]]) -> float:
    """Variance between evaluations of one program, pooled over programs; from `NOISE` where little is known."""
    squares, degrees = WEIGHT * NOISE**2, WEIGHT
    for own in scores:
        if len(own) > 1:
            squares += len(own) * pvariance(own)
            degrees += len(own) - 1
    return squares / degrees


def worth_repeating(individuals: Sequence[Individual], count: int, last: int | None = None) -> list[Individual]:
    """The `count` elites with the fewest evaluations, the better of equals first; fewer if there are not so many."""
    order = sorted(
        zip(standings(individuals, last), individuals, strict=True), key=lambda pair: (pair[0], pair[1].number)
    )
    elites = [individual for standing, individual in order if math.isfinite(standing)][: ELITES * count]
    return sorted(elites, key=lambda individual: len(individual.scores(last)))[:count]


def _posterior(scores: Sequence[float], centre: float, spread: float, noise: float) -> float:
    if not all(map(math.isfinite, scores)):
        return math.inf
    weight = spread / (spread + noise / len(scores))
    return centre + weight * (fmean(scores) - centre)


__all__ = ["Individual", "noise_variance", "standings", "worth_repeating"]
