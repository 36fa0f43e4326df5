"""Suite `step` of the bench: one step of every baseline on a small GPT's parameters, against torch and memory.

The floor is what no implementation can avoid: every tensor read once, parameter and state written once, at the best
bandwidth that a plain copy, an update in place and a triad reach in the same process.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles

import torch
from torch import Tensor, nn

from optforge.baselines import BASELINES, Baseline
from optforge.primitives import Program, ProgramOptimizer
from optforge.primitives.analysis.cost import cost

THREADS = 2
BLOCK = 3  # steps timed at once; blocks of all contestants take turns
ROUNDS = 20  # per repeat
STREAM = 20_000_000  # numbers per tensor in the bandwidth measurements
GIGABYTE = 1e9
ARITHMETIC = 5.0  # operations for each byte moved, above which a rule is bound by its matrix products, not by memory


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with `count` threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def streams() -> dict[str, tuple[Callable[[], Tensor], int]]:
    """The plainest passes over memory, each with the bytes that it reads and writes."""
    x, y, z = (torch.randn(STREAM) for _ in range(3))
    return {
        "copy": (lambda: x.copy_(y), 2 * 4 * STREAM),
        "axpy": (lambda: x.add_(y, alpha=1e-9), 3 * 4 * STREAM),
        "triad": (lambda: torch.add(x, y, alpha=1e-9, out=z), 3 * 4 * STREAM),
    }


def seconds(function: Callable[[], object]) -> float:
    """Time of one call, the mean over a block."""
    begin = time.perf_counter()
    for _ in range(BLOCK):
        function()
    return (time.perf_counter() - begin) / BLOCK


def first_step(row: Baseline) -> tuple[ProgramOptimizer, float]:
    """A compiled optimizer after its first step, and how long that took."""
    optimizer = ProgramOptimizer(model_parameters(), row.program, row.lr_range[0], compile=True)
    begin = time.perf_counter()
    optimizer.step()
    return optimizer, time.perf_counter() - begin


def moved_bytes(program: Program) -> float:
    """What a step of the model must at least read and write."""
    return sum(cost(program, shape).moved_bytes * math.prod(shape) for shape in gpt_shapes())


class Measured:
    """Times of the contestants: `ratios` of medians and 10th percentiles, one per repeat, as medians over repeats."""

    def __init__(self, contestants: dict[str, Callable[[], object]], repeats: int) -> None:
        self.low: dict[str, list[float]] = {name: [] for name in contestants}
        self.middle: dict[str, list[float]] = {name: [] for name in contestants}
        for function in contestants.values():
            seconds(function)
        for _ in range(repeats):
            times: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(ROUNDS):
                for name, function in contestants.items():
                    times[name].append(seconds(function))
            for name, measured in times.items():
                self.low[name].append(quantiles(measured, n=10)[0])
                self.middle[name].append(median(measured))

    def ratio(self, over: str, under: str) -> float:
        """How many times as long `over` takes as `under`, by the 10th percentile."""
        return median(a / b for a, b in zip(self.low[over], self.low[under], strict=True))

    def median_ratio(self, over: str, under: str) -> float:
        """The same by the medians, which other work on the machine moves more."""
        return median(a / b for a, b in zip(self.middle[over], self.middle[under], strict=True))

    def floors(self, name: str, size: float, passes: dict[str, int]) -> float:
        """Time of `name` as a multiple of the time in which memory moves `size` bytes at its best."""
        bandwidth = [max(passes[p] / self.low[p][i] for p in passes) for i in range(len(self.low[name]))]
        return median(t * b / size for t, b in zip(self.low[name], bandwidth, strict=True))


def measure_step(repeats: int) -> tuple[dict[str, float], Measured, dict[str, float], float]:
    """First-step seconds of compiled rows, times, multiples of the floor, and the bandwidth in bytes per second."""
    with threads(THREADS):
        steps: dict[str, Callable[[], object]] = {}
        first: dict[str, float] = {}
        bound_by_memory = {
            name: row.program for name, row in BASELINES.items()
            if (c := cost(row.program)).flops < ARITHMETIC * c.moved_bytes
        }  # fmt: skip
        moved = {f"compiled {name}": moved_bytes(program) for name, program in bound_by_memory.items()}
        for name in moved:
            optimizer, first[name] = first_step(BASELINES[name.removeprefix("compiled ")])
            steps[name] = optimizer.step
        steps["fused AdamW"] = torch.optim.AdamW(model_parameters(), fused=True).step
        moved["fused AdamW"] = moved["compiled adamw"]
        if importlib.util.find_spec("lion_pytorch"):
            from lion_pytorch import Lion

            steps["lion-pytorch"], moved["lion-pytorch"] = Lion(model_parameters()).step, moved["compiled lion"]
        plain = streams()
        passes = {name: size for name, (_, size) in plain.items()}
        measured = Measured(steps | {name: function for name, (function, _) in plain.items()}, repeats)
    floors = {name: measured.floors(name, moved[name], passes) for name in steps}
    best = max(passes[p] / min(measured.low[p]) for p in passes)
    return first, measured, floors, best
