"""Running the funnel over a search: further tasks for its best programs, then what the proxy said of other tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optforge.baselines import BASELINES
from optforge.experiments.compare.fingerprints import task_named
from optforge.experiments.compare.statistics import mean_interval
from optforge.experiments.files import finite_or_null, write_atomic
from optforge.experiments.rundirs import FUNNEL_RESULT
from optforge.experiments.searching.presets import SCHEDULE, WARMUP
from optforge.experiments.tasks import TASKS, get_task
from optforge.primitives import Program
from optforge.search.fitness.evaluator import Status
from optforge.search.fitness.sweep import Sweep
from optforge.search.funnel import (
    Checkpoint,
    Stage,
    by_seed,
    check_unseen,
    checkpoints,
    overfitting_point,
    relative,
    select,
)
from optforge.search.training.asking import Asking, Train, answer

if TYPE_CHECKING:
    from optforge.search.evolution.standing import Individual

ENTRANTS = 24
"""Best programs of a search, on fresh seeds of its own tasks, that the funnel begins with."""

LARGE_MODEL = 20_000
"""Parameters from which on a task counts as large."""

LOOKS = 16
"""Checkpoints of a search that meta-validation looks at, about."""

STAGES = (
    Stage("small tasks", ("digits-conv", "digits-autoencoder", "noisy-quadratic"), 0, (10, 11, 12), keep=8),
    Stage("text", ("charlm",), 60, (20,), keep=5),
    Stage("meta-validation", ("mnist1d", "breast-cancer", "rosenbrock"), 0, (30, 31, 32), keep=0),
)
"""What follows the probes and the search itself, on a CPU. Searches count their seeds from 0, comparisons from 1000."""


@dataclass(frozen=True)
class Passage:
    """What became of the programs that entered a stage.

    Attributes:
        stage: which.
        scores: of each by seed, mean over tasks of `search.funnel.relative`; lower is better, AdamW has 0.
        by_task: of each its mean over seeds on each task.
        passed: numbers of those that go on, best first.
    """

    stage: Stage
    scores: Mapping[int, tuple[float, ...]]
    by_task: Mapping[int, Mapping[str, float]]
    passed: tuple[int, ...]

    def mean(self, number: int) -> float:
        """Score of a program, mean over its seeds."""
        return math.fsum(self.scores[number]) / len(self.scores[number])


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of the proxy with another score, over so many programs; and its p value.

    Both NaN for fewer than three programs, or where all have the same score.
    """

    programs: int
    rho: float
    p: float


@dataclass(frozen=True)
class Funnel:
    """What the funnel found.

    Attributes:
        selecting: the stages that chose, in order.
        meta: meta-validation of the survivors and of the checkpoints' programs; None without such a stage.
        looks: checkpoints of the search.
        overfitting: after how many trained programs only the proxy still improved; None if it never came to that.
        correlations: of the proxy, with each stage's scores over what entered it, and with meta-validation over the
            youngest programs of the checkpoints, which nothing selected.
    """

    selecting: tuple[Passage, ...]
    meta: Passage | None
    looks: tuple[Checkpoint, ...]
    overfitting: int | None
    correlations: Mapping[str, Correlation]

    @property
    def survivors(self) -> tuple[int, ...]:
        """Numbers of the programs that passed every stage, best of the last one first."""
        return self.selecting[-1].passed if self.selecting else ()

    def as_json(self) -> dict[str, Any]:
        """Everything, in JSON's own types."""
        curve = [] if self.meta is None else [_look_json(look, self.meta) for look in self.looks]
        return finite_or_null({
            "stages": [_passage_json(p) for p in (*self.selecting, self.meta) if p is not None],
            "survivors": list(self.survivors),
            "curve": curve,
            "overfitting": self.overfitting,
            "correlations": {name: asdict(c) for name, c in self.correlations.items()},
        })  # fmt: skip


def stages_for(proxies: Sequence[str]) -> tuple[Stage, ...]:
    """`STAGES` without the tasks that the search itself scores on; none at all if meta-validation has no other task."""
    others = set(TASKS) - set(proxies)
    if not others & set(STAGES[-1].tasks):
        return ()
    found = [replace(stage, tasks=tuple(task for task in stage.tasks if task in others)) for stage in STAGES]
    return tuple(stage for stage in found if stage.tasks)


def is_large(task: str) -> bool:
    """Whether a run on a task takes long, by the size of its model."""
    return sum(p.numel() for p in get_task(task).model().parameters()) > LARGE_MODEL


def run_funnel(
    run_dir: Path,
    train: Train,
    proxies: Sequence[str],
    entrants: Mapping[int, Program],
    history: Sequence[Individual],
    *,
    stages: Sequence[Stage] | None = None,
    every: int = 0,
) -> Funnel:
    """Send a search's best programs through the stages; writes ``funnel.json`` and returns what is in it.

    What `train` finds in its store is not trained again, so that a repetition, after an interruption or with a longer
    history, trains only what is new.

    Args:
        run_dir: of the search.
        train: what trains, see `search.training.trainer.Trainer`.
        proxies: tasks of the search.
        entrants: by number, the programs that enter the first stage.
        history: all individuals of the search, for the checkpoints.
        stages: those after the search, `stages_for` by default; the last is meta-validation, which selects nothing.
        every: programs between checkpoints; by default so many that there are about `LOOKS`.

    Raises:
        ValueError: if meta-validation is not unseen (`check_unseen`), or AdamW cannot be trained on a task.
    """
    stages = stages_for(proxies) if stages is None else tuple(stages)
    check_unseen(stages, proxies)
    looks = checkpoints(history, every or max(1, len(history) // LOOKS)) if stages else []
    found = answer(_passed(stages, dict(entrants), history, looks), train)
    write_atomic(run_dir / FUNNEL_RESULT, json.dumps(found.as_json(), indent=1, allow_nan=False) + "\n")
    return found


def _passed(
    stages: Sequence[Stage], left: dict[int, Program], history: Sequence[Individual], looks: list[Checkpoint]
) -> Asking[Funnel]:
    *selecting, last = stages or (None,)
    scores = {individual.number: individual.score for individual in history}
    passages: list[Passage] = []
    correlations: dict[str, Correlation] = {}
    meta = None
    for stage in selecting:
        assert stage is not None
        passage = yield from enter(stage, left)
        correlations[stage.name] = correlation([(scores[n], passage.mean(n)) for n in left])
        left = {number: left[number] for number in passage.passed}
        passages.append(passage)
    if last is not None:
        sampled = {i.number: i.program for look in looks for i in (look.best, look.youngest)}
        meta = yield from enter(last, left | sampled)
        youngest = sorted({look.youngest.number for look in looks})
        correlations[last.name] = correlation([(scores[n], meta.mean(n)) for n in youngest])
    point = None if meta is None else overfitting_point(curve(looks, meta))
    return Funnel(tuple(passages), meta, tuple(looks), point, correlations)


def enter(stage: Stage, programs: Mapping[int, Program]) -> Asking[Passage]:
    """One stage: every program and AdamW trained on all its tasks, at every rate from every seed."""
    distinct = {program.key: program.pruned() for program in (BASELINES["adamw"].program, *programs.values())}
    sweeps = [stage_sweep(stage, task) for task in stage.tasks]
    asked = [sweep.trials(program) for sweep in sweeps for program in distinct.values()]
    outcomes = list((yield [trial for trials in asked for trial in trials]))
    values: dict[int, dict[str, tuple[float, ...]]] = {number: {} for number in programs}
    for task, sweep in zip(stage.tasks, sweeps, strict=True):
        size = len(sweep.rates) * len(sweep.seeds)
        own = {key: outcomes[i * size : (i + 1) * size] for i, key in enumerate(distinct)}
        del outcomes[: size * len(distinct)]
        fitness = {key: sweep.fitness(found) for key, found in own.items()}
        reference = fitness[BASELINES["adamw"].program.key]
        if reference.status is not Status.OK:
            raise ValueError(f"AdamW cannot be trained on {task}, so nothing can be set beside it: {reference.reason}")
        first = own[BASELINES["adamw"].program.key][: len(sweep.seeds)]
        start = math.fsum(outcome.start for outcome in first) / len(first)
        for number, program in programs.items():
            values[number][task] = relative(fitness[program.key].by_seed, reference.by_seed, start)
    found = {number: by_seed(list(tasks.values())) for number, tasks in values.items()}
    means = {number: math.fsum(score) / len(score) for number, score in found.items()}
    by_task = {n: {t: math.fsum(v) / len(v) for t, v in tasks.items()} for n, tasks in values.items()}
    return Passage(stage, found, by_task, tuple(select(means, stage.keep)))


def stage_sweep(stage: Stage, name: str) -> Sweep:
    """How programs are trained on one of a stage's tasks."""
    task = task_named(name)
    steps = stage.steps or task.steps
    return Sweep(task, stage.ladder, stage.seeds, steps, SCHEDULE, round(WARMUP * steps))


def curve(looks: Sequence[Checkpoint], meta: Passage) -> list[tuple[int, float, float]]:
    """At each checkpoint, programs trained, best score on the proxy, and that program's on meta-validation."""
    return [(look.trained, look.best.score, meta.mean(look.best.number)) for look in looks]


def correlation(pairs: Sequence[tuple[float, float]]) -> Correlation:
    """Spearman's rank correlation of pairs of scores."""
    from scipy.stats import spearmanr

    columns = list(zip(*pairs, strict=True))
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in columns):
        return Correlation(len(pairs), math.nan, math.nan)
    found = spearmanr(*columns)
    return Correlation(len(pairs), float(found.statistic), float(found.pvalue))


def _look_json(look: Checkpoint, meta: Passage) -> dict[str, Any]:
    number = look.best.number
    interval = mean_interval(meta.scores[number])
    row = {"trained": look.trained, "number": number, "proxy": look.best.score, "meta": meta.mean(number)}
    return row | {"low": interval.low, "high": interval.high}


def _passage_json(passage: Passage) -> dict[str, Any]:
    rows = {
        number: {"score": passage.mean(number), "by_seed": by, "by_task": passage.by_task[number]}
        for number, by in passage.scores.items()
    }
    return asdict(passage.stage) | {"entered": len(rows), "passed": list(passage.passed), "scores": rows}
