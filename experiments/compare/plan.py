"""What a comparison has to train: from a plan and the results so far, the jobs that can be done now.

Nothing here trains or waits. Which jobs there are, and what is in each, follows from the plan and from results alone,
so that any number of processes agree about it, and a comparison that was interrupted goes on to the same end.

A job is a few configurations of one optimizer on one task, trained as one population. First all optimizers are tuned;
where a winner lies in the outer tenth of a range, that range is widened, and every optimizer gets as many more trials.
Then follow the reported runs, the learning rates around the tuned one, and costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from optforge.experiments.compare.batches import ROOM
from optforge.experiments.compare.comparison import SEEDS, TUNE_SEEDS, Protocol, Trial
from optforge.experiments.compare.spaces import RATE, Space, configured, spaces
from optforge.experiments.compare.tuning import Point, proposals
from optforge.primitives import Program, parse_program
from optforge.search.training import Task
from optforge.search.training.schedule import SCHEDULES

FACTORS = tuple(float(f"{10 ** (k / 4):.4g}") for k in range(-4, 5))
"""Of the tuned learning rate, at which sensitivity is measured: quarter-decades up to one decade away."""

BLOCK = 8
"""Trials trained as one population, where there is room for their models; larger ones train one at a time."""

MOST_RUNS, MOST_TIMES, MOST_STEPS = 10_000, 1_000, 10_000_000
"""Of trials and of seeds, of a horizon, and of steps: more is a slip, and would fill the memory before any training."""

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """An optimizer in a plan: unique name, program as text, centre of its learning rate, whether it is a control."""

    name: str
    text: str
    rate: float
    control: bool = False

    @property
    def program(self) -> Program:
        """The update rule."""
        return _parsed(self.text)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Program:
    return parse_program(text)


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison is determined by; it is kept as JSON.

    Attributes:
        rows: the optimizers.
        tasks: names of tasks, as `optforge tasks` has them.
        horizons: lengths of runs, as multiples of each task's own.
        steps: of each run at horizon 1; None for the task's own.
        trials: configurations tried for each optimizer before any widening.
        dimensions: at most so many quantities are tuned.
        sampler: ``"qmc"`` or ``"tpe"``.
        seeds: number of reported runs of each optimizer.
        tune_seeds: number of runs of each configuration.
        schedule, warmup, clip: of the learning rate; warm-up as a share of the run; largest norm of gradients.
        smallest_effect: share of the loss below which a difference does not matter.
        widenings: how often ranges may be widened.
        room: parameters of models that are trained at once, over all runs of a population; a GPU wants many.
        origins: what is known of programs that a search found, for the report.
        fingerprints: of each task, hashes of what it is (see `experiments.compare.fingerprints`), so that no
            result of another task is taken for one of its own; empty in plans from before there were any.
    """

    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    horizons: tuple[float, ...] = (1.0,)
    steps: int | None = None
    trials: int = 16
    dimensions: int = 3
    sampler: str = "qmc"
    seeds: int = 10
    tune_seeds: int = 2
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float = 0.0
    smallest_effect: float = 0.01
    widenings: int = 2
    room: int = ROOM
    origins: tuple[dict[str, Any], ...] = ()
    fingerprints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The plan in JSON's own types."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Plan:
        """The plan that `as_json` wrote; ValueError, KeyError or TypeError for another object."""
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**{**found, **lists, "rows": tuple(Row(**row) for row in found["rows"])})

    @property
    def extra(self) -> int:
        """Trials that each optimizer gets when a range is widened."""
        return max(1, self.trials // 4)

    @property
    def units(self) -> list[tuple[str, float]]:
        """Every task with every horizon."""
        return [(task, horizon) for task in self.tasks for horizon in self.horizons]

    def protocol(self, task: Task, horizon: float) -> Protocol:
        """The protocol of one unit."""
        steps = max(1, round(horizon * (task.steps if self.steps is None else self.steps)))
        return Protocol(
            task, FACTORS, tuple(range(TUNE_SEEDS[0], TUNE_SEEDS[0] + self.tune_seeds)),
            tuple(range(SEEDS[0], SEEDS[0] + self.seeds)), steps, self.smallest_effect, widenings=self.widenings,
            trials=self.trials, dimensions=len(self.spaces()[0].dimensions), sampler=self.sampler,
            schedule=self.schedule, warmup=min(steps - 1, round(self.warmup * steps)), clip=self.clip, horizon=horizon,
        )  # fmt: skip

    def spaces(self) -> list[Space]:
        """Where each optimizer is tuned at first."""
        rows = self.rows
        rates, controls = [row.rate for row in rows], [row.control for row in rows]
        return spaces([row.program for row in rows], rates, self.dimensions, controls)


@dataclass(frozen=True)
class Job:
    """Something to be trained: `kind` is ``tune``, ``final``, ``rates`` or ``costs``.

    `points` are the configurations' coordinates, only where they are tuned.
    """

    name: str
    kind: str
    task: str
    horizon: float
    row: int
    configurations: tuple[dict[str, float], ...]
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """Where tuning of one unit stands: trials, space and winner of each optimizer, and what has to be trained now."""

    trials: tuple[tuple[Trial, ...], ...]
    spaces: tuple[Space, ...]
    jobs: tuple[Job, ...]

    def winner(self, row: int) -> Trial:
        """The trial with the lowest loss, the earlier of equals."""
        return min(self.trials[row], key=lambda trial: trial.loss)

    def at_edge(self, row: int) -> tuple[str, ...]:
        """Names of the quantities of which the winner lies in the outer tenth of the range."""
        space = self.spaces[row]
        return tuple(space.dimensions[index].name for index, _ in space.edges(self.winner(row).at))


def pending(plan: Plan, results: Results, blocks: Mapping[str, int]) -> list[Job]:
    """The jobs that can be done now and are not in `results`; `blocks` is how many trials of each task make a job."""
    found: list[Job] = []
    for task, horizon in plan.units:
        tuned = tuning(plan, task, horizon, results, blocks[task])
        found += tuned.jobs or [job for job in _after(plan, task, horizon, tuned) if job.name not in results]
    return found


def tuning(plan: Plan, task: str, horizon: float, results: Results, block: int) -> Tuned:
    """Where tuning of one unit stands."""
    rows = range(len(plan.rows))
    current = plan.spaces()
    strips: list[tuple[Space, ...]] = [() for _ in rows]
    trials: list[list[Trial]] = [[] for _ in rows]
    for widened in range(plan.widenings + 1):
        count = plan.extra if widened else plan.trials
        jobs: list[Job] = []
        for row in rows:
            first = 0
            while first < count:
                name = f"{task} {horizon:g} tune {row} {widened} {first}"
                if name in results:
                    known = [Trial.from_json(trial) for trial in results[name]["trials"]]
                    trials[row] += known
                    first += len(known)
                    continue
                number = first + (plan.trials + (widened - 1) * plan.extra if widened else 0)
                parts = (plan.sampler == "qmc" and strips[row]) or (current[row],)
                points = _points(plan, number, min(block, count - first), parts, current[row], trials[row])
                values = tuple(current[row].values(at) for at in points)
                jobs.append(Job(name, "tune", task, horizon, row, values, points))
                if plan.sampler == "tpe":
                    break  # the next block learns from this one
                first += block
        tuned = Tuned(tuple(map(tuple, trials)), tuple(current), tuple(jobs))
        if jobs or widened == plan.widenings:
            return tuned
        edges = [current[row].edges(tuned.winner(row).at) for row in rows]
        if not any(edges):
            return tuned
        for row in rows:
            current[row], strips[row] = current[row].widened(edges[row])
    return tuned


def _points(
    plan: Plan, first: int, count: int, parts: Sequence[Space], whole: Space, trials: Sequence[Trial]
) -> tuple[Point, ...]:
    """Coordinates of trials `first` to `first + count`; they take turns among `parts`. Trial 0 is the centre."""
    dimensions = len(whole.dimensions)
    centre = whole.place((0.5,) * dimensions)
    if plan.sampler == "tpe":
        tried = [(whole.place(trial.at), trial.loss) for trial in trials]
        begin = [] if trials else [centre]
        found = [*begin, *proposals("tpe", dimensions, count - len(begin), 0, tried)]
    else:
        sequence = (centre, *_sequence(dimensions, first + count - 1))
        found = list(sequence[first : first + count])
    return tuple(tuple(parts[k % len(parts)].inside(point)) for k, point in enumerate(found))


@lru_cache(maxsize=64)
def _sequence(dimensions: int, count: int) -> tuple[Point, ...]:
    """The same for every optimizer: a point is the same place in everybody's ranges."""
    return tuple(proposals("qmc", dimensions, count, 0))


def _after(plan: Plan, task: str, horizon: float, tuned: Tuned) -> list[Job]:
    """What follows once a unit is tuned."""
    jobs = []
    for row in range(len(plan.rows)):
        best = tuned.winner(row).values
        unit = f"{task} {horizon:g}"
        around = tuple(best | {RATE: float(f"{best[RATE] * factor:.10g}")} for factor in FACTORS if factor != 1)
        jobs.append(Job(f"{unit} final {row}", "final", task, horizon, row, (best,)))
        jobs.append(Job(f"{unit} rates {row}", "rates", task, horizon, row, around))
        if horizon == plan.horizons[0]:
            jobs.append(Job(f"{task} costs {row}", "costs", task, horizon, row, (best,)))
    return jobs


def rule(plan: Plan, job: Job, configuration: Mapping[str, float]) -> Program:
    """The program of a job's optimizer with these hyperparameters, not yet scheduled."""
    return configured(plan.rows[job.row].program, configuration)


def block_size(plan: Plan, parameters: int) -> int:
    """How many trials of a model of so many parameters are trained as one population; one where each learns of all."""
    return BLOCK if plan.sampler == "qmc" and BLOCK * plan.tune_seeds * parameters <= plan.room else 1


def check_plan(plan: Plan) -> None:
    """Raise `ValueError` for a plan that makes no comparison."""
    if not plan.rows or not plan.tasks:
        raise ValueError("there is nothing to compare; name at least one optimizer and one task")
    if plan.sampler not in ("qmc", "tpe"):
        raise ValueError(f"unknown sampler {plan.sampler!r}; there are: qmc, tpe")
    if min(plan.trials, plan.seeds, plan.tune_seeds, plan.dimensions) < 1:
        raise ValueError("trials, seeds, tuning seeds and dimensions must be at least 1")
    if max(plan.trials, plan.seeds, plan.tune_seeds) > MOST_RUNS:
        raise ValueError(f"trials, seeds and tuning seeds must be at most {MOST_RUNS:,}; name fewer")
    if not plan.horizons or any(not (math.isfinite(h) and h > 0) for h in plan.horizons):
        raise ValueError(f"horizons are positive multiples of a task's own number of steps, got {plan.horizons}")
    if max(plan.horizons) > MOST_TIMES or (plan.steps or 0) * max(plan.horizons) > MOST_STEPS:
        raise ValueError(f"horizons must be at most {MOST_TIMES:,}, and steps with them at most {MOST_STEPS:,}")
    if not (0 <= plan.warmup < 1 and 0 <= plan.clip < math.inf):
        raise ValueError("warm-up is a share of the run below 1, clipping a norm of at least 0")
    if plan.schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {plan.schedule!r}; there are: {', '.join(SCHEDULES)}")
