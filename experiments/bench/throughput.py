"""Suite `throughput` of the bench: candidate-steps per CPU-second of a population, against a plain loop and by rule."""

from __future__ import annotations

import functools
from statistics import median

import torch
from torch import Tensor, nn

from optforge.baselines import BASELINES
from optforge.experiments.bench.figures import RATES, Figure, cpu_seconds, different_programs
from optforge.experiments.tasks import get_task
from optforge.primitives import Program
from optforge.search.training.task import Task

STEPS = 200
LARGE = tuple(10 ** (-4 + i / 5) for i in range(16))


def throughput(repeats: int) -> list[Figure]:
    """Population against plain loop on digits, and matrix rows against element-wise rows on a 40-32-32-10 MLP."""
    return [*over_loop(repeats), *matrix_rows(repeats)]


def over_loop(repeats: int) -> list[Figure]:
    """Speed of a population on digits, and how many times that of training one candidate in a loop."""
    task, programs = get_task("digits"), different_programs(32)
    inputs, targets = task.data().train.batch(torch.arange(64))
    loop = functools.partial(adamw_loop, inputs, targets, 1000)
    loop(), population_rate(task, programs), population_rate(task, programs, LARGE)  # warm up
    rates, ratios, large = [], [], []
    for _ in range(repeats):
        single = 1000 / cpu_seconds(loop)
        rates.append(population_rate(task, programs))
        ratios.append(rates[-1] / single)
        large.append(population_rate(task, programs, LARGE) / single)
    return [
        Figure("population, 32 programs x 4 rates", median(rates), "candidate-steps/CPU-s"),
        Figure.at_least("population / plain torch.optim.AdamW loop", median(ratios), "x", 15),
        Figure("the same, 32 programs x 16 rates", median(large), "x"),
    ]


def matrix_rows(repeats: int) -> list[Figure]:
    """Speed of a population of all baselines that work on matrices, over that of as many that work on elements."""
    task = get_task("proxy-curves")
    programs = [row.program for row in BASELINES.values()]
    matrix = [p for p in programs if p.needs_matrix]
    elementwise = [p for p in programs if not p.needs_matrix and not p.reduces][-len(matrix) :]
    population_rate(task, matrix), population_rate(task, elementwise)  # warm up
    pairs = [(population_rate(task, matrix), population_rate(task, elementwise)) for _ in range(repeats)]
    return [
        Figure("population of matrix rows", median(m for m, _ in pairs), "candidate-steps/CPU-s"),
        Figure("population of element-wise rows", median(e for _, e in pairs), "candidate-steps/CPU-s"),
        Figure.at_least("matrix rows / element-wise rows", median(m / e for m, e in pairs), "x", 0.6),
    ]


def population_rate(task: Task, programs: list[Program], rates: tuple[float, ...] = RATES) -> float:
    """Candidate-steps per CPU-second of training all `programs` at all `rates` together."""
    from optforge.search.training.population.members import train_members

    members = [(p, lr) for p in programs for lr in rates]
    return len(members) * STEPS / cpu_seconds(lambda: train_members(task, members, (0,), steps=STEPS))


def adamw_loop(inputs: Tensor, targets: Tensor, steps: int) -> None:
    """The plain way to train one candidate: MLP 64-32-10 with `torch.optim.AdamW`."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
