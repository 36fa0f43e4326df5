"""Parts of `experiments.bench.learned` beside the sweep: whether learning ever costs anything, in loss and in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, quantiles
from typing import Any

from optforge.baselines import BASELINES
from optforge.experiments.bench.step import model_parameters
from optforge.experiments.programs import usual_rate
from optforge.experiments.programs.rules import LearnedRate
from optforge.experiments.tasks import TASKS, get_task
from optforge.experiments.tasks.file_tasks import FILE_TASKS
from optforge.learned import learn
from optforge.learned.watch import watched
from optforge.primitives import Kind, Program, ProgramOptimizer
from optforge.search.training.train import train
from optforge.search.training.trial import Rule, Trial

OFFLINE = tuple(name for name in TASKS if name not in FILE_TASKS)
TIMED = ("adamw", "momentum", "lion")
BEGINNING, CYCLE, CYCLES = 200, 20, 12  # steps that all learn; one in so many afterwards; how many of these are timed


def _plain(program: Program, params: Any, lr: float) -> ProgramOptimizer:
    return ProgramOptimizer(params, program, lr, compile=True)


METHODS: dict[str, Callable[[Program], Program | Rule]] = {"AdamW": lambda program: program, "optforge": LearnedRate}


def not_worse(tasks: Sequence[str], seeds: int, done: set[tuple[str, str, int]]) -> Iterator[dict[str, Any]]:
    """AdamW at its usual rate, plain and with that rate learned, on tasks of `optforge tasks`: final validation loss.

    Model, data, batches and weight decay are those of `optforge train`; cells in `done`, as (task, method, seed), are
    left out.
    """
    lr, program = usual_rate("adamw"), BASELINES["adamw"].program
    for name in tasks:
        for seed in range(seeds):
            for method, rule in METHODS.items():
                if (name, method, seed) not in done:
                    (outcome,) = train([Trial(rule(program), lr, get_task(name), seed)])
                    yield {"task": name, "method": method, "lr": lr, "seed": seed, "final": outcome.valid}


def cost() -> list[dict[str, Any]]:
    """Time of a compiled step that learns its rate over that of the program's own, and tensors that it keeps for that.

    `beginning` is for steps that all learn, `afterwards` for those after the first 200, most of which rest. For the
    parameters of `experiments.bench.step.gpt_shapes`, on one thread, in CPU time, which other work on the machine moves
    less than wall-clock time; 10th percentile over mean times of twenty steps, of optimizers that take turns.
    """
    rows = []
    for name in TIMED:
        program = BASELINES[name].program
        optimizers = (
            _plain(program, model_parameters(), 1e-3),
            learn(model_parameters(), program, 1e-3, compile=True, every=1),
            learn(model_parameters(), program, 1e-3, compile=True, every=CYCLE),
        )
        times = [[_timed(optimizer.step) for optimizer in optimizers] for _ in range(BEGINNING + CYCLE * CYCLES)]
        cycles = [times[i : i + CYCLE] for i in range(BEGINNING, len(times), CYCLE)]
        plain, beginning, afterwards = (
            quantiles([fmean(column) for column in columns], n=10)[0]
            for columns in zip(*(zip(*cycle, strict=True) for cycle in cycles), strict=True)
        )
        watch = watched(program)
        kept = sum(s.kind is Kind.TENSOR and s.name in watch.extra for s in watch.program.state)
        ratios = {"beginning": beginning / plain, "afterwards": afterwards / plain}
        rows.append({"program": name, "milliseconds": 1e3 * plain, **ratios, "tensors": kept})
    return rows


def _timed(step: Callable[[], Any]) -> float:
    begin = time.process_time()
    step()
    return time.process_time() - begin
