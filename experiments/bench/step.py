"""Suite `step` of the bench: one step of every baseline on a small GPT's parameters, against torch and memory.

The floor is what no implementation can avoid: every tensor read once, parameter and state written once, at the best
bandwidth that a plain copy, an update in place and a triad reach in the same process.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from optforge.baselines import BASELINES, Baseline
from optforge.experiments.bench.figures import Figure
from optforge.primitives import Program, ProgramOptimizer
from optforge.primitives.analysis.cost import cost

THREADS = 2
BLOCK = 3  # steps timed at once; blocks of all contestants take turns
ROUNDS = 10  # per repeat
STREAM = 20_000_000  # numbers per tensor in the bandwidth measurements
GIGABYTE = 1e9
ARITHMETIC = 5.0  # operations for each byte moved, above which a rule is bound by its matrix products, not by memory
MOST = dict.fromkeys(("adamw", "lion", "adan", "lars", "rmsprop", "momentum"), 1.5) | {"lamb": 2, "adafactor": 2}
"""Largest multiples of the memory floor."""


def gpt_shapes(width: int = 288, layers: int = 9, vocabulary: int = 3400, context: int = 256) -> list[tuple[int, ...]]:
    """Shapes of the parameters of a GPT without biases whose output layer shares the embedding."""
    d = width
    layer = [(d,), (3 * d, d), (d, d), (d,), (4 * d, d), (d, 4 * d)]
    return [(vocabulary, d), (context, d), *layer * layers, (d,)]


def model_parameters() -> list[nn.Parameter]:
    """Parameters of `gpt_shapes`, with gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in gpt_shapes()]
    for p in parameters:
        p.grad = 1e-3 * torch.randn(p.shape, generator=generator)
    return parameters


def streams() -> dict[str, tuple[Callable[[], Tensor], int]]:
    """The plainest passes over memory, each with the bytes that it reads and writes."""
    x, y, z = (torch.randn(STREAM) for _ in range(3))
    return {
        "copy": (lambda: x.copy_(y), 2 * 4 * STREAM),
        "axpy": (lambda: x.add_(y, alpha=1e-9), 3 * 4 * STREAM),
        "triad": (lambda: torch.add(x, y, alpha=1e-9, out=z), 3 * 4 * STREAM),
    }


def first_step(row: Baseline) -> tuple[ProgramOptimizer, float]:
    """A compiled optimizer after its first step, and how long that took."""
    optimizer = ProgramOptimizer(model_parameters(), row.program, row.lr_range[0], compile=True)
    begin = time.perf_counter()
    optimizer.step()
    return optimizer, time.perf_counter() - begin


def moved_bytes(program: Program) -> float:
    """What a step of the model must at least read and write."""
    return sum(cost(program, shape).moved_bytes * math.prod(shape) for shape in gpt_shapes())


class Times:
    """10th percentiles of the seconds of a call of each contestant, one for each repeat; contestants take turns."""

    def __init__(self, contestants: dict[str, Callable[[], object]], repeats: int) -> None:
        timers = {name: Timer("f()", globals={"f": f}, num_threads=THREADS) for name, f in contestants.items()}
        self.low: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(repeats):
            rounds = [{name: timer.timeit(BLOCK).mean for name, timer in timers.items()} for _ in range(ROUNDS)]
            for name, low in self.low.items():
                low.append(quantiles([times[name] for times in rounds], n=10)[0])

    def ratio(self, over: str, under: str) -> float:
        """How many times as long `over` takes as `under`."""
        return median(a / b for a, b in zip(self.low[over], self.low[under], strict=True))

    def floors(self, name: str, size: float, passes: dict[str, int]) -> float:
        """Time of `name` as a multiple of the time in which memory moves `size` bytes at its best."""
        bandwidth = [max(passes[p] / self.low[p][i] for p in passes) for i in range(len(self.low[name]))]
        return median(t * b / size for t, b in zip(self.low[name], bandwidth, strict=True))


def step(repeats: int) -> list[Figure]:
    """Compiled optimizer steps on 10 million parameters in 57 tensors, with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return _measured(repeats)
    finally:
        torch.set_num_threads(before)


def _measured(repeats: int) -> list[Figure]:
    steps: dict[str, Callable[[], object]] = {}
    first: dict[str, float] = {}
    moved: dict[str, float] = {}
    for name, row in BASELINES.items():
        price = cost(row.program)
        if price.flops < ARITHMETIC * price.moved_bytes:
            optimizer, first[name] = first_step(row)
            steps[f"compiled {name}"], moved[f"compiled {name}"] = optimizer.step, moved_bytes(row.program)
    steps["fused AdamW"] = torch.optim.AdamW(model_parameters(), fused=True).step
    moved["fused AdamW"] = moved["compiled adamw"]
    if importlib.util.find_spec("lion_pytorch"):
        from lion_pytorch import Lion

        steps["lion-pytorch"], moved["lion-pytorch"] = Lion(model_parameters()).step, moved["compiled lion"]
    plain = streams()
    passes = {name: size for name, (_, size) in plain.items()}
    times = Times(steps | {name: function for name, (function, _) in plain.items()}, repeats)
    best = max(passes[p] / min(times.low[p]) for p in passes)
    return [
        Figure.at_most("compiled AdamW / fused AdamW", times.ratio("compiled adamw", "fused AdamW"), "x", 1.05),
        Figure.at_most("compiled Lion / fused AdamW", times.ratio("compiled lion", "fused AdamW"), "x", 0.75),
        *(
            Figure.at_most(f"{name} / memory floor", times.floors(name, moved[name], passes), "x",
                           MOST.get(name.removeprefix("compiled "), math.inf))
            for name in steps
        ),
        Figure.at_most("slowest first step, compilation included", max(first.values()), "s", 1.0),
        Figure("median first step", median(first.values()), "s"),
        Figure("memory bandwidth", best / GIGABYTE, "GB/s"),
    ]  # fmt: skip
