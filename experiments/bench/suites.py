"""`make bench`: how fast the search is, as ratios measured in one run; writes ``bench.json``.

Each figure is a median of several repeats in which both sides of a ratio take turns, because a shared machine drifts.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from optforge.baselines import BASELINES
from optforge.experiments.files import write_atomic
from optforge.experiments.provenance import provenance
from optforge.experiments.tasks import get_task
from optforge.primitives import Program, subset

LADDER = (1e-4, 1e-3, 1e-2, 1e-1)
WIDE = tuple(10 ** (-4 + i / 5) for i in range(16))
STEPS = 200


@dataclass(frozen=True)
class Figure:
    """One measured number: `met` says whether it reached its target, None if it has none."""

    name: str
    value: float
    unit: str
    target: float | None = None
    met: bool | None = None

    @classmethod
    def at_least(cls, name: str, value: float, unit: str, target: float) -> Figure:
        """A figure that should be at least `target`."""
        return cls(name, value, unit, target, value >= target)

    @classmethod
    def at_most(cls, name: str, value: float, unit: str, target: float) -> Figure:
        """A figure that should be at most `target`; infinity is no target."""
        return cls(name, value, unit, target, value <= target) if target < math.inf else cls(name, value, unit)


def cpu_seconds(function: Callable[[], object]) -> float:
    """Processor time of one call, in seconds."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def throughput(repeats: int) -> list[Figure]:
    """Candidate-steps per CPU-second of the population evaluator, against two ways of training one at a time."""
    from optforge.search.training.population.members import train_members

    programs = different_programs(32)
    members = [(p, lr) for p in programs for lr in LADDER]
    task = get_task("digits")
    train = task.data().train
    inputs, targets = train.batch(torch.arange(64))
    loop = functools.partial(adamw_loop, inputs, targets, 1000)
    population = functools.partial(train_members, task, members, (0,), steps=STEPS)
    train_set, valid_set = (TensorDataset(*s.batch(torch.arange(len(s)))) for s in (train, task.data().valid))
    fit = functools.partial(lightning_fit, train_set, valid_set, STEPS)
    bare = functools.partial(lightning_fit, train_set, valid_set, STEPS, bare=True)
    large = functools.partial(train_members, task, [(p, lr) for p in programs for lr in WIDE], (0,), steps=STEPS)
    loop(), fit(), bare(), population(), large()  # warm up
    rates, over_loop, over_fit, over_bare, large_over_loop, elsewhere = [], [], [], [], [], []
    for _ in range(repeats):
        sequential = 1000 / cpu_seconds(loop)
        rates.append(len(members) * STEPS / cpu_seconds(population))
        single = STEPS / cpu_seconds(fit)
        over_loop.append(rates[-1] / sequential)
        over_fit.append(rates[-1] / single)
        over_bare.append(rates[-1] * cpu_seconds(bare) / STEPS)
        large_over_loop.append(len(programs) * len(WIDE) * STEPS / cpu_seconds(large) / sequential)
        elsewhere.append(outside_of_gradients(population))
    return [
        Figure("population evaluator, 32 programs x 4 rates", median(rates), "candidate-steps/CPU-s"),
        Figure.at_least("population / plain torch.optim.AdamW loop", median(over_loop), "x", 10),
        Figure("the same with 512 members, 32 programs x 16 rates", median(large_over_loop), "x"),
        Figure.at_most(
            "outside of forward and backward pass, 128 members", 100 * median(elsewhere), "% of the time", 40
        ),
        Figure.at_least("population / one Lightning fit per candidate", median(over_fit), "x", 40),
        Figure("population / one bare Lightning fit per candidate", median(over_bare), "x"),
    ]


def outside_of_gradients(population: Callable[[], object]) -> float:
    """Share of a population's processor time that is spent outside of forward and backward passes."""
    from optforge.search.training.population.gradients import Gradients

    inside, original = [0.0], Gradients.__call__

    def timed(*args: Any) -> Tensor:
        begin = time.process_time()
        losses = original(*args)
        inside[0] += time.process_time() - begin
        return losses

    with mock.patch.object(Gradients, "__call__", timed):
        total = cpu_seconds(population)
    return 1 - inside[0] / total


def different_programs(count: int) -> list[Program]:
    """Programs of a young search: AdamW and mutations of it that train, all of different behaviour."""
    from optforge.search.duplicates.cache import DuplicateCache
    from optforge.search.evolution.evolution import Evolution
    from optforge.search.space.mutation import Space

    evolution = Evolution((BASELINES["adamw"].program,), Space(subset("lion45", "protected")), batch=count)
    candidates, _ = evolution.ask([], DuplicateCache(), 0)
    return [c.program for c in candidates]


def adamw_loop(inputs: Tensor, targets: Tensor, steps: int) -> None:
    """The plain way to train one candidate: MLP 64-32-10 with `torch.optim.AdamW`."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def lightning_fit(train: TensorDataset, valid: TensorDataset, steps: int, bare: bool = False) -> None:
    """The same as a Lightning user writes it: automatic optimization, shuffled batches, validation after each epoch.

    The Trainer has its defaults (log files, checkpoints; only the progress bar is off), or, if `bare`, nothing at all:
    no logs, no checkpoints, no summary, no validation.
    """
    import lightning
    from torch.utils.data import DataLoader

    from optforge.search.training.lightning_fit import quiet

    class Single(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.log("valid", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    batches = DataLoader(train, batch_size=64, shuffle=True)
    with quiet(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", UserWarning)  # of few batches per epoch and of CSV in place of TensorBoard
        if bare:
            lightning.Trainer(barebones=True, max_steps=steps, accelerator="cpu").fit(Single(), batches)
        else:
            trainer = lightning.Trainer(
                max_steps=steps,
                accelerator="cpu",
                default_root_dir=folder,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Single(), batches, DataLoader(valid, batch_size=len(valid)))


def children(repeats: int) -> list[Figure]:
    """Children per second, from mutation to the decision whether to train, in a population that evolves."""
    from optforge.primitives.analysis.fingerprint import behave, together
    from optforge.search.duplicates.cache import DuplicateCache, Verdict
    from optforge.search.evolution.evolution import Evolution, Individual
    from optforge.search.space.mutation import Space

    rates, fingerprinted = [], []
    behave(BASELINES["adamw"].program)  # compiles
    for repeat in range(repeats):
        together.cache_clear()
        space = Space(subset("lion45", "protected", "statistics", "masks", "smooth"))
        evolution = Evolution((BASELINES["adamw"].program,), space, seed=repeat, batch=32)
        cache, history = DuplicateCache(), list[Individual]()
        rng = random.Random(repeat)
        made = judged = 0
        begin = time.process_time()
        for batch in range(30):
            candidates, counts = evolution.ask(history, cache, batch)
            history += [Individual(c.number, batch, c.program, rng.random()) for c in candidates]
            made += counts.total()
            judged += counts.total() - counts[Verdict.SAME_KEY] - counts[Verdict.IGNORES_GRADIENT]
        seconds = time.process_time() - begin
        rates.append(made / seconds)
        fingerprinted.append(judged / made)
    return [
        Figure.at_least("children, mutation to cache decision", median(rates), "1/CPU-s", 5000),
        Figure("of which needed a fingerprint", median(fingerprinted), "share"),
    ]


def keys(repeats: int) -> list[Figure]:
    """Construction with all checks, and structural keys, on AdamW and on programs of a young search."""
    from optforge.primitives.key import structural_key

    def rate(programs: list[Program]) -> float:
        def many() -> None:
            for p in programs:
                structural_key(Program(p.state, p.hypers, p.body, p.update, p.next_state))

        many()
        return median(len(programs) / cpu_seconds(many) for _ in range(repeats))

    adamw = rate([BASELINES["adamw"].program] * 1000)
    return [
        Figure.at_least("construct, check and key AdamW", adamw, "1/CPU-s", 10_000),
        Figure("the same on mutations of AdamW", rate(chains(2000)), "1/CPU-s"),
    ]


def fingerprints(repeats: int) -> list[Figure]:
    """Fingerprints of programs on chains of mutations from AdamW, all at once and one at a time."""
    from optforge.primitives.analysis import fingerprint

    programs = chains(4000)
    fingerprint.behave_many(programs[:100])

    def rate(function: Callable[[], object], count: int) -> float:
        fingerprint.together.cache_clear()  # and what it has computed
        return count / cpu_seconds(function)

    together, ratios = [], []
    for _ in range(repeats):
        together.append(rate(lambda: fingerprint.behave_many(programs), len(programs)))
        alone = rate(lambda: [fingerprint.behave(p) for p in programs[:400]], 400)
        ratios.append(together[-1] / alone)
    return [
        Figure.at_least("fingerprints, batched over programs", median(together), "1/CPU-s", 5000),
        Figure("batched / one at a time", median(ratios), "x"),
    ]


def chains(count: int) -> list[Program]:
    """Programs on chains of twenty mutations from AdamW, over the whole op table."""
    from optforge.experiments.bench.fingerprint_study import draw_programs

    return draw_programs(2 * count, seed=0)[1]


def step(repeats: int) -> list[Figure]:
    """Compiled optimizer steps on 10 million parameters in 57 tensors, with two threads."""
    from optforge.experiments.bench.step import GIGABYTE, measure_step

    first, times, floors, bandwidth = measure_step(repeats)
    most = dict.fromkeys(("adamw", "lion", "adan", "lars", "rmsprop", "momentum"), 1.5) | {"lamb": 2, "adafactor": 2}
    return [
        Figure.at_most("compiled AdamW / fused AdamW", times.ratio("compiled adamw", "fused AdamW"), "x", 1.05),
        Figure.at_most("compiled Lion / fused AdamW", times.ratio("compiled lion", "fused AdamW"), "x", 0.75),
        Figure("compiled AdamW / fused AdamW, medians", times.median_ratio("compiled adamw", "fused AdamW"), "x"),
        Figure("compiled Lion / fused AdamW, medians", times.median_ratio("compiled lion", "fused AdamW"), "x"),
        *(
            Figure.at_most(f"{name} / memory floor", value, "x", most.get(name.removeprefix("compiled "), math.inf))
            for name, value in floors.items()
        ),
        Figure.at_most("slowest first step, compilation included", max(first.values()), "s", 1.0),
        Figure("median first step", median(first.values()), "s"),
        Figure("memory bandwidth", bandwidth / GIGABYTE, "GB/s"),
    ]


def monitor(repeats: int) -> list[Figure]:
    """What watching an optimizer adds to a training step, at the default interval."""
    from optforge.experiments.bench.monitor import measure_monitor

    costs = measure_monitor(repeats)
    return [
        *(Figure.at_most(f"watching, {name}", 100 * cost.share, "% of a step", 3) for name, cost in costs.items()),
        *(Figure(f"one observation, {name}", 1e6 * cost.observation, "us of CPU") for name, cost in costs.items()),
    ]


def driver(repeats: int) -> list[Figure]:
    """Results per CPU-second that the driver of a search takes in, from workers that answer at once; memory, disk."""
    from optforge.experiments.bench.driver import measure_driver

    return [Figure.at_least(*row) if row[3] else Figure(*row[:3]) for row in measure_driver(repeats)]


def workers(repeats: int) -> list[Figure]:
    """Training on digits in two local processes against one."""
    from optforge.experiments.bench.driver import measure_workers

    return [Figure.at_least(*row) for row in measure_workers(repeats)]


SUITES: dict[str, Callable[[int], list[Figure]]] = {
    f.__name__: f for f in (throughput, children, keys, fingerprints, step, monitor, driver, workers)
}


def main() -> None:
    """Run the chosen suites, print a table and write the figures with versions and hardware."""
    parser = argparse.ArgumentParser(prog="python -m optforge.experiments.bench", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"any of {', '.join(SUITES)}; all by default")
    parser.add_argument("--repeats", type=int, default=7, help="repeats of each measurement (default: 7)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where to write (default: bench.json)")
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(SUITES):
        parser.error(f"unknown suite {sorted(unknown)[0]!r}; choose from {', '.join(SUITES)}")
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for name in arguments.suites or SUITES:
        for figure in SUITES[name](arguments.repeats):
            figures.append(figure)
            target = (
                "" if figure.target is None else f"   target {figure.target:g}: {'met' if figure.met else 'MISSED'}"
            )
            print(f"{figure.name:48} {figure.value:12,.2f} {figure.unit:22}{target}", flush=True)
    source = provenance()
    rows = [asdict(figure) | source for figure in figures]
    write_atomic(arguments.json, json.dumps(rows, indent=1) + "\n")
    print(f"written to {arguments.json}")
