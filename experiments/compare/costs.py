"""What an optimizer costs on a task's model: time of a step, memory beyond its state, time to compile."""

from __future__ import annotations

import time
import weakref
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optforge.experiments.compare.comparison import Costs
from optforge.experiments.programs.rules import LearnedRate
from optforge.primitives import Program, ProgramOptimizer
from optforge.primitives.backends.compiled import kernel
from optforge.search.training import Task
from optforge.search.training.loop import device
from optforge.search.training.task import batch_indices, initial_model

STEPS = 12
"""Training steps that are timed, after `WARM` that are not."""
WARM = 3


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that come into being and go again while it is on; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in before | self._seen:
                self._watch(x)
        return found

    def _watch(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)

        def gone() -> None:
            self.held -= size
            self._seen.discard(key)

        weakref.finalize(storage, gone)


def measure_costs(task: Task, rule: Program | LearnedRate, lr: float, compiling: bool = True) -> Costs:
    """Costs of training the task's model with `rule` on this machine's device.

    Times are medians of `STEPS` steps. The peak is that of the plain step, which makes a tensor for each statement; a
    compiled one works in place. Compiling is timed where there is a compiler, if
    `compiling`: it depends on the program far more than on the task.
    """
    where = device()
    model = initial_model(task, 0).to(where)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if isinstance(rule, Program):
        optimizer: Optimizer = ProgramOptimizer(parameters, rule, lr, total_steps=STEPS + WARM)
    else:
        optimizer = rule.optimizer(parameters, lr, STEPS + WARM)
    data = task.data().train
    step_ms, rule_ms = [], []
    for number, indices in enumerate(batch_indices(len(data), task.batch_size, STEPS + WARM, 0)):
        begin = _now()
        inputs, targets = (x.to(where) for x in data.batch(indices))
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        middle = _now()
        optimizer.step()
        end = _now()
        if number >= WARM:
            step_ms.append(1e3 * (end - begin))
            rule_ms.append(1e3 * (end - middle))
    with PeakMemory() as memory:
        optimizer.step()
    count = sum(p.numel() for p in parameters)
    seconds = _compile_seconds(parameters, rule, lr) if compiling and isinstance(rule, Program) else None
    return Costs(median(step_ms), median(rule_ms), memory.peak / count, seconds)


def _now() -> float:
    """Seconds, when the device has done all that it was given."""
    if device().type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _compile_seconds(parameters: list[torch.nn.Parameter], program: Program, lr: float) -> float | None:
    """Time of the first compiled step less that of the second; None if it cannot be compiled here."""
    times = []
    kernel.cache_clear()  # another optimizer, or task, may have compiled the same program
    try:
        optimizer = ProgramOptimizer(parameters, program, lr, compile=True, total_steps=STEPS + WARM)
        for _ in range(2):
            begin = _now()
            optimizer.step()
            times.append(_now() - begin)
    except Exception:  # no compiler, or one that fails: the program still trains without
        return None
    return max(0.0, times[0] - times[1])
