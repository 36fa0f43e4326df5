"""`make bench-gpu`: candidate-steps per second on a CUDA device, against the same device training one at a time.

Without such a device it says so and ends well. Times are wall clock, of a device that is waited for.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch

from optforge.experiments.bench.suites import LADDER, Figure, adamw_loop, different_programs
from optforge.experiments.files import write_atomic
from optforge.experiments.provenance import provenance
from optforge.experiments.tasks import get_task
from optforge.primitives import Program
from optforge.search.training.population.gradients import PRECISIONS
from optforge.search.training.population.members import train_members

STEPS = 200
RATES = (32, 256)  # of each program: a GPU wants thousands of members


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call, in seconds, with all that it starts on the device."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begin = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - begin


def throughput(
    programs: list[Program], rates: Sequence[int], repeats: int, steps: int, device: str = "cuda"
) -> list[Figure]:
    """Candidate-steps per second on digits with each precision, and their ratio to one candidate at a time."""
    task = get_task("digits")
    inputs, targets = (x.to(device) for x in task.data().train.batch(torch.arange(task.batch_size)))
    with torch.device(device):
        alone = functools.partial(adamw_loop, inputs, targets, steps)
        alone()
        single = steps / median(seconds(alone) for _ in range(repeats))
    found = [Figure("one candidate, torch.optim.AdamW", single, "candidate-steps/s")]
    for count, precision in itertools.product(rates, PRECISIONS):
        spread = [LADDER[0] * (LADDER[-1] / LADDER[0]) ** (i / max(1, count - 1)) for i in range(count)]
        members = [(p, lr) for p in programs for lr in spread]
        population = functools.partial(train_members, task, members, (0,), steps=steps, precision=precision)
        population()  # warm up
        rate = len(members) * steps / median(seconds(population) for _ in range(repeats))
        name = f"{len(members)} members, {precision}"
        found.append(Figure.at_least(name, rate, "candidate-steps/s", 1e6))
        found.append(Figure.at_least(f"{name} / one candidate", rate / single, "x", 20))
    return found


def main() -> None:
    """Measure, print, and write the figures with device, versions and commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measurement (default: 3)")
    parser.add_argument("--json", type=Path, default=Path("bench-gpu.json"), help="where to write the figures")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured.")
        return
    figures = throughput(different_programs(32), RATES, arguments.repeats, STEPS)
    for figure in figures:
        print(f"{figure.name:48} {figure.value:14,.1f} {figure.unit}")
    source = {"device": torch.cuda.get_device_name()} | provenance()
    write_atomic(arguments.json, json.dumps([asdict(figure) | source for figure in figures], indent=1) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
