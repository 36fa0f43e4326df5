"""The funnel: from the many programs that trained well on one small task to the few that do so on others.

A search selects on one task, its *proxy*. Each further stage trains what is left on other tasks and keeps the best, and
the last one, *meta-validation*, keeps nothing back: no program is ever chosen by it, so that it says how much of the
gain on the proxy holds elsewhere. Chen et al. 2023 (arXiv:2302.06675, §2.3) select from their search in this way, and
call it meta-overfitting when only the proxy still improves. Here are the rules; `experiments.searching.funnel_run`
trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from optforge.search.evolution.standing import Individual
from optforge.search.fitness.evaluator import BOUND, FLOOR

GRID = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-8, 1))
"""Learning rates in half-decades from 1e-4 to 1: other tasks than the proxy need other rates."""


PATIENCE = 3
"""How often the proxy must improve without meta-validation before that counts as meta-overfitting."""


@dataclass(frozen=True)
class Stage:
    """One stage: what is left is trained on each of the tasks, and the best go on.

    Attributes:
        name: as reports call it.
        tasks: their names; a program's score is the mean over them of `relative`.
        steps: length of each run; 0 for the task's own.
        seeds: of initial weights and batches, the same for all programs. Later stages have others, and more of them.
        keep: how many go on; 0 for all.
        ladder: learning rates; each program, and AdamW, counts with its best on each task.

    Raises:
        ValueError: for a negative number, no seeds, or a ladder that does not ascend.
    """

    name: str
    tasks: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...]
    keep: int
    ladder: tuple[float, ...] = GRID

    def __post_init__(self) -> None:
        if self.steps < 0 or self.keep < 0:
            raise ValueError(f"stage {self.name}: steps and keep must not be negative, got {self.steps}, {self.keep}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"stage {self.name}: at least one seed and no repeats are needed, got {self.seeds}")
        if not self.ladder or list(self.ladder) != sorted(set(self.ladder)):
            raise ValueError(f"stage {self.name}: the ladder must ascend without repeats, got {self.ladder}")


def check_unseen(stages: Sequence[Stage], proxies: Sequence[str]) -> None:
    """Raise `ValueError` unless the last stage's tasks and seeds are in no stage before it, nor its tasks proxies."""
    if not stages:
        return
    *before, last = stages
    if seen := set(last.tasks) & {*proxies, *(task for stage in before for task in stage.tasks)}:
        raise ValueError(f"{last.name} needs tasks that nothing was selected by; it repeats {', '.join(sorted(seen))}")
    if seeds := set(last.seeds) & {seed for stage in before for seed in stage.seeds}:
        raise ValueError(f"{last.name} needs fresh seeds; it repeats {sorted(seeds)}")


def relative(losses: Sequence[float], reference: Sequence[float], start: float) -> tuple[float, ...]:
    """Losses as seen from those of tuned AdamW on the same seeds; 0 is AdamW's own, and negative is better.

    For each seed log((loss + floor) / (reference + floor)), in nats, clipped to ±`BOUND`, so that no task outweighs the
    others by its scale, nor by being lost or solved. A loss that is not finite counts as the bound.

    Args:
        losses: of the program at its best learning rate, by seed; empty where it could not be trained.
        reference: AdamW's at its best, by seed; finite.
        start: mean loss before training, positive; `FLOOR` of it is the floor.

    Raises:
        ValueError: if the reference is no reference, or the seeds differ in number.
    """
    if not reference or not all(map(math.isfinite, (*reference, start))) or start <= 0:
        raise ValueError(f"AdamW's losses must be finite, the loss before training positive; got {reference}, {start}")
    if not losses:
        return (BOUND,) * len(reference)
    floor = FLOOR * start
    return tuple(_position(loss, own, floor) for loss, own in zip(losses, reference, strict=True))


def _position(loss: float, reference: float, floor: float) -> float:
    if not math.isfinite(loss):
        return BOUND
    # below 0 only by rounding: all tasks of a funnel have losses that are 0 at best
    ratio = (max(loss, 0.0) + floor) / (max(reference, 0.0) + floor)
    return min(BOUND, max(-BOUND, math.log(ratio)))


def by_seed(tasks: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Mean over tasks for each seed, from values ``[tasks][seeds]``."""
    return tuple(math.fsum(values) / len(tasks) for values in zip(*tasks, strict=True))


def select(scores: Mapping[int, float], keep: int) -> list[int]:
    """Numbers of the `keep` programs with the lowest scores (all for 0), best first; of equals the older."""
    order = sorted(scores, key=lambda number: (scores[number], number))
    return order[:keep] if keep else order


class Checkpoint(NamedTuple):
    """A look at a search after `trained` programs: its best so far, and the youngest that could be trained at all.

    The best is what selection made of the proxy; the youngest, chosen by nothing but its number, is a fair draw of what
    the search generates, for correlations.
    """

    trained: int
    best: Individual
    youngest: Individual


def checkpoints(history: Sequence[Individual], every: int) -> list[Checkpoint]:
    """Looks after every `every` programs, and after the last; none before a program could be trained.

    What is looked at depends on the history alone, so that a resumed run looks at the same.
    """
    if every < 1:
        raise ValueError(f"checkpoints need at least 1 program between them, got {every}")
    bests = list(accumulate(history, _better))
    youngest = list(accumulate(history, _trained))
    looks = {*range(every, len(history) + 1, every), len(history)} - {0}
    found = [Checkpoint(n, bests[n - 1], youngest[n - 1]) for n in sorted(looks)]
    return [look for look in found if math.isfinite(look.best.score)]


def _better(before: Individual, after: Individual) -> Individual:
    return after if after.score < before.score else before


def _trained(before: Individual, after: Individual) -> Individual:
    return after if math.isfinite(after.score) else before


def overfitting_point(
    curve: Sequence[tuple[int, float, float]], *, patience: int = PATIENCE, smallest: float = 0.01
) -> int | None:
    """From how many trained programs on only the proxy improved; None if meta-validation kept up with it.

    Args:
        curve: programs trained, the best score so far on the proxy, and that program's on meta-validation, ascending.
        patience: how often the proxy must improve after the point, without meta-validation, for it to count.
        smallest: improvement of meta-validation that counts as one, in nats of `relative`.
    """
    lowest, at, gains, last = math.inf, None, 0, math.inf
    for trained, proxy, meta in curve:
        if meta < lowest - smallest or at is None:
            lowest, at, gains = meta, trained, 0
        elif proxy < last:
            gains += 1
        last = min(last, proxy)
    return at if gains >= patience else None
