"""Suite `step` of the bench: one optimizer step on a small GPT's parameters, against torch's fused AdamW and memory.

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

from baselines import BASELINES
from primitives import ProgramOptimizer

THREADS = 2
BLOCK = 3  # steps timed at once; blocks of all contestants take turns
ROUNDS = 20  # per repeat
STREAM = 20_000_000  # numbers per tensor in the bandwidth measurements
GIGABYTE = 1e9


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


def first_step(program: str) -> tuple[ProgramOptimizer, float]:
    """A compiled optimizer after its first step, and how long that took."""
    optimizer = ProgramOptimizer(model_parameters(), BASELINES[program].program, compile=True)
    begin = time.perf_counter()
    optimizer.step()
    return optimizer, time.perf_counter() - begin


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

    def floors(self, name: str, size: int, passes: dict[str, int]) -> float:
        """Time of `name` as a multiple of the time in which memory moves `size` bytes at its best."""
        bandwidth = [max(passes[p] / self.low[p][i] for p in passes) for i in range(len(self.low[name]))]
        return median(t * b / size for t, b in zip(self.low[name], bandwidth, strict=True))


def measure_step(repeats: int) -> tuple[dict[str, float], Measured, dict[str, float], float]:
    """First-step seconds, times, multiples of the floor, and the bandwidth in bytes per second."""
    with threads(THREADS):
        torch.compile(torch.neg, dynamic=True)(torch.ones(2))  # load the compiler
        adamw, first_adamw = first_step("adamw")
        lion, first_lion = first_step("lion")
        fused = torch.optim.AdamW(model_parameters(), fused=True)
        contestants: dict[str, Callable[[], object]] = {
            "compiled AdamW": adamw.step,
            "compiled Lion": lion.step,
            "fused AdamW": fused.step,
        }
        if importlib.util.find_spec("lion_pytorch"):
            from lion_pytorch import Lion

            contestants["lion-pytorch"] = Lion(model_parameters()).step
        plain = streams()
        passes = {name: size for name, (_, size) in plain.items()}
        measured = Measured(contestants | {name: function for name, (function, _) in plain.items()}, repeats)
    count = sum(math.prod(shape) for shape in gpt_shapes())
    moved = {name: 4 * count * (7 if "AdamW" in name else 5) for name in contestants}
    floors = {name: measured.floors(name, moved[name], passes) for name in contestants}
    best = max(passes[p] / min(measured.low[p]) for p in passes)
    return {"compiled AdamW": first_adamw, "compiled Lion": first_lion}, measured, floors, best
