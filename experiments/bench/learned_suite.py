"""Parts of `experiments.bench.learned` beside the sweep: whether learning ever costs anything, in loss and in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import quantiles
from typing import Any

from baselines import BASELINES
from experiments.bench.step import model_parameters, threads
from experiments.programs import usual_rate
from experiments.tasks import TASKS, get_task
from experiments.tasks.file_tasks import FILE_TASKS
from experiments.training.train import train
from learned import learn
from learned.watch import watched
from primitives import Kind, Program, ProgramOptimizer

OFFLINE = tuple(name for name in TASKS if name not in FILE_TASKS)
TIMED = ("adamw", "momentum", "lion")
ROUNDS = 60


def _plain(program: Program, params: Any, lr: float) -> ProgramOptimizer:
    return ProgramOptimizer(params, program, lr, compile=True)


def _learned(program: Program, params: Any, lr: float) -> ProgramOptimizer:
    return learn(params, program, lr, compile=True)


MAKERS: dict[str, Callable[[Program, Any, float], ProgramOptimizer]] = {"AdamW": _plain, "optforge two-sided": _learned}


def not_worse(tasks: Sequence[str], seeds: int, done: set[tuple[str, str, int]]) -> Iterator[dict[str, Any]]:
    """AdamW at its usual rate, plain and with that rate learned, on tasks of `optforge tasks`: final validation loss.

    Model, data, batches and weight decay are those of `optforge train`; cells in `done`, as (task, method, seed), are
    left out.
    """
    lr, program = usual_rate("adamw"), BASELINES["adamw"].program
    for name in tasks:
        for seed in range(seeds):
            for method, make in MAKERS.items():
                if (name, method, seed) not in done:
                    result = train(
                        get_task(name), lambda params, lr, make=make: make(program, params, lr), lr, seed=seed
                    )
                    yield {"task": name, "method": method, "lr": lr, "seed": seed, "final": result.valid_loss}


def cost() -> list[dict[str, Any]]:
    """Time of a compiled step that learns its rate over that of the program's own, and tensors that it keeps for that.

    For the parameters of `experiments.bench.step.gpt_shapes`, on one thread, in CPU time, which other work on the
    machine moves less than wall-clock time; 10th percentile of steps that take turns.
    """
    rows = []
    with threads(1):
        for name in TIMED:
            program = BASELINES[name].program
            steps = {method: make(program, model_parameters(), 1e-3).step for method, make in MAKERS.items()}
            times: dict[str, list[float]] = {method: [] for method in steps}
            for _ in range(ROUNDS):
                for method, step in steps.items():
                    begin = time.process_time()
                    step()
                    times[method].append(time.process_time() - begin)
            plain, learned = (quantiles(times[method][2:], n=10)[0] for method in MAKERS)
            watch = watched(program)
            kept = sum(s.kind is Kind.TENSOR and s.name in watch.extra for s in watch.program.state)
            rows.append({"program": name, "milliseconds": 1e3 * plain, "ratio": learned / plain, "tensors": kept})
    return rows
