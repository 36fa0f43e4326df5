"""Suite `monitor` of the bench: what watching an optimizer costs, as a share of a training step, in processor time.

A step is forward, backward and update of a task's model under AdamW, in a plain loop, or in a training run with
Lightning and TensorBoard, where what is observed is also written. At the default interval every step has the hooks, and
one in `EVERY` is observed. Each part is measured where it stands out, and costs are medians of differences between
neighbours in time: hooks around a step that does nothing, observations around the update alone.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import nn

from optforge.baselines import BASELINES, AdamW
from optforge.experiments.bench.figures import Figure, cpu_seconds
from optforge.experiments.tasks import TASKS
from optforge.search.training.monitor import EVERY, Monitor
from optforge.search.training.task import batch_indices, initial_model

BLOCKS = {"digits": 200, "charlm": 10}
"""Tasks, with the steps that are timed at once."""

NEVER = 10**12


class Cost(NamedTuple):
    """Seconds of a step, of the hooks in every step, and of an observation."""

    step: float
    hooks: float
    observation: float

    @property
    def share(self) -> float:
        """Cost of watching at the default interval, as a share of a step."""
        return (self.hooks + self.observation / EVERY) / self.step


def monitor(repeats: int) -> list[Figure]:
    """What watching an optimizer adds to a training step, at the default interval: medians over `repeats` rounds."""
    idle = nn.Parameter(torch.zeros(1))  # without a gradient, so that a step does nothing
    hooks = _difference(torch.optim.SGD([idle]), NEVER, 2000, repeats)
    costs = {f"{name}, plain loop": _plain_loop(name, block, repeats, hooks) for name, block in BLOCKS.items()}
    costs["digits, Lightning and TensorBoard"] = _training_run(repeats)
    return [
        *(Figure.at_most(f"watching, {name}", 100 * cost.share, "% of a step", 3) for name, cost in costs.items()),
        *(Figure(f"one observation, {name}", 1e6 * cost.observation, "us of CPU") for name, cost in costs.items()),
    ]


def _plain_loop(name: str, block: int, repeats: int, hooks: float) -> Cost:
    task = TASKS[name]
    model, train = initial_model(task, 0), task.data().train
    optimizer = AdamW(model.parameters(), lr=1e-5)
    batches = itertools.cycle([train.batch(i) for i in batch_indices(len(train), task.batch_size, 64, 0)])

    def step() -> None:
        inputs, targets = next(batches)
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()

    whole = median([cpu_seconds(step, block) for _ in range(repeats + 1)][1:])  # the first warms up
    return Cost(whole, hooks, _difference(optimizer, 1, block, repeats) - hooks)


def _training_run(repeats: int, steps: int = 1000) -> Cost:
    from optforge.experiments.training.train import train, training_of

    def run(monitor: int) -> float:
        trial, settings = training_of(TASKS["digits"], BASELINES["adamw"].program, steps=steps, monitor=monitor)
        with tempfile.TemporaryDirectory() as folder:
            whole = functools.partial(train, trial, settings, folder=Path(folder))
            return cpu_seconds(whole, 1) / steps

    rounds = [(run(0), run(1)) for _ in range(repeats + 1)][1:]
    # the hooks are there without observations as well, for the learning rate
    return Cost(median(off for off, _ in rounds), 0.0, median(on - off for off, on in rounds))


def _difference(optimizer: torch.optim.Optimizer, every: int, count: int, repeats: int) -> float:
    """What a monitor adds to the update, in seconds."""

    def watched() -> float:
        watcher = Monitor(optimizer, every)
        optimizer.step()  # the first is always observed
        seconds = cpu_seconds(optimizer.step, count)
        watcher.remove()
        return seconds

    rounds = [(cpu_seconds(optimizer.step, count), watched()) for _ in range(repeats + 1)][1:]
    return median(on - off for off, on in rounds)
