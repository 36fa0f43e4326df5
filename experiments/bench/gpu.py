"""`make bench-gpu`: candidate-steps per second on a CUDA device, against the same device training one at a time.

Without such a device it says so and ends well. Times are wall clock, of a device that is waited for.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from optforge.experiments.bench.figures import RATES, Figure, different_programs
from optforge.experiments.bench.throughput import adamw_loop
from optforge.experiments.files import write_atomic
from optforge.experiments.provenance import provenance
from optforge.experiments.tasks import get_task
from optforge.primitives import Program
from optforge.search.training.population.gradients import PRECISIONS
from optforge.search.training.population.members import train_members

STEPS = 200
COUNTS = (32, 256)  # of each program: a GPU wants thousands of members


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call in seconds, with all that it starts on the device: the median of some."""
    return Timer("f()", globals={"f": function}).blocked_autorange(min_run_time=1.0).median


def throughput(programs: list[Program], counts: Sequence[int], steps: int, device: str = "cuda") -> list[Figure]:
    """Candidate-steps per second on digits with each precision, and their ratio to one candidate at a time."""
    task = get_task("digits")
    inputs, targets = (x.to(device) for x in task.data().train.batch(torch.arange(task.batch_size)))
    with torch.device(device):
        alone = functools.partial(adamw_loop, inputs, targets, steps)
        single = steps / seconds(alone)
    found = [Figure("one candidate, torch.optim.AdamW", single, "candidate-steps/s")]
    for count, precision in itertools.product(counts, PRECISIONS):
        spread = [RATES[0] * (RATES[-1] / RATES[0]) ** (i / max(1, count - 1)) for i in range(count)]
        members = [(p, lr) for p in programs for lr in spread]
        population = functools.partial(train_members, task, members, (0,), steps=steps, precision=precision)
        rate = len(members) * steps / seconds(population)
        name = f"{len(members)} members, {precision}"
        found.append(Figure.at_least(name, rate, "candidate-steps/s", 1e6))
        found.append(Figure.at_least(f"{name} / one candidate", rate / single, "x", 20))
    return found


def main() -> None:
    """Measure, print, and write the figures with device, versions and commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench-gpu.json"), help="where to write the figures")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured.")
        return
    figures = throughput(different_programs(32), COUNTS, STEPS)
    for figure in figures:
        print(f"{figure.name:48} {figure.value:14,.1f} {figure.unit}")
    source = {"device": torch.cuda.get_device_name()} | provenance()
    write_atomic(arguments.json, json.dumps([asdict(figure) | source for figure in figures], indent=1) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
