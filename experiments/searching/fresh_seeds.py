"""The best programs of a search, scored once more on seeds that nothing was selected by, and on unseen tasks.

The best of thousands on one seed each are the lucky ones (the winner's curse); only fresh seeds tell by how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optforge.experiments.report.document import Table, number
from optforge.primitives import Program
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status

if TYPE_CHECKING:
    from optforge.search.training.executors.pool import Executor

SEEDS = 3
"""Generations of the evaluator that no search uses: they are numbered below 0."""

UNSEEN = ("mnist1d", "digits-autoencoder")
"""Tasks that finalists are scored on beside the search's own, as far as it did not use them."""


@dataclass(frozen=True)
class FreshScore:
    """Score of a program on fresh seeds.

    Attributes:
        by_seed: mean over tasks, for each seed; infinite where the program could not be trained.
        by_task: for each task its scores by seed.
    """

    by_seed: tuple[float, ...]
    by_task: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, fitnesses: Sequence[Fitness]) -> FreshScore:
        """From one fitness for each seed."""
        tasks = [part.task for part in fitnesses[0].parts]
        by_task = {t: tuple(p.score for f in fitnesses for p in f.parts if p.task == t) for t in tasks}
        return cls(tuple(f.score for f in fitnesses), by_task)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.by_seed) / len(self.by_seed)

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN for one seed."""
        return standard_error(self.by_seed)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of `values`; NaN for fewer than two, or where one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1) / len(values))


def fresh_scores(
    executor: Executor, programs: Sequence[Program], batch: int, seeds: int = SEEDS, first: int = 1
) -> list[FreshScore]:
    """Scores of `programs`, in order, on so many fresh seeds, from number `first`; at most `batch` train together."""
    pieces = [programs[i : i + batch] for i in range(0, len(programs), batch)]
    jobs = [[executor.submit(piece, -seed) for piece in pieces] for seed in range(first, first + seeds)]
    found = [[fitness for job in row for fitness in executor.result(job)] for row in jobs]
    return [FreshScore.of(each) for each in zip(*found, strict=True)]


def loss_ratios(executor: Executor, batch: int) -> Evaluator:
    """An evaluator for ablation: losses over AdamW's, as the geometric mean over tasks, on seeds that chose nothing."""

    def evaluate(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        found = []
        for scores in fresh_scores(executor, programs, batch, first=SEEDS + 1):
            ratios = tuple(math.exp(score) for score in scores.by_seed)
            trains = all(map(math.isfinite, scores.by_seed))
            status, reason = (Status.OK, "") if trains else (Status.DIVERGED, "it diverged on every task of a seed")
            found.append(Fitness(math.fsum(ratios) / len(ratios), status, reason, by_seed=ratios))
        return found

    return evaluate


def fresh_table(rows: Sequence[tuple[str, float | None, FreshScore, FreshScore | None]]) -> Table:
    """A row for each program: its name, score in the search (None for references), on fresh seeds and unseen tasks."""
    unseen = list(rows[0][3].by_task) if rows and rows[0][3] is not None else []
    found = []
    for name, score, fresh, other in rows:
        row = [name, "–" if score is None else number(score), _with_error(fresh.by_seed)]
        found.append((*row, *(_with_error(other.by_task.get(task, ())) for task in unseen if other is not None)))
    seeds = len(rows[0][2].by_seed) if rows else 0
    title = (
        f"Log ratio to AdamW's loss, each at its own best rate, ± standard error over {seeds} fresh seeds (< 0 better)"
    )
    return Table(title, ("program", "in the search", "the search's tasks", *unseen), tuple(found))


def _with_error(values: Sequence[float]) -> str:
    if not values or not all(map(math.isfinite, values)):
        return "diverged"
    error = standard_error(values)
    return number(math.fsum(values) / len(values)) + ("" if math.isnan(error) else f" ± {error:.2g}")
