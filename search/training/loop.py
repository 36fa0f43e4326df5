"""The slow, obvious evaluator. It defines what fitness is; every other evaluator is tested against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from optforge.primitives import Program, ProgramOptimizer
from optforge.search.fitness.evaluator import Fitness, Protocol, summarise
from optforge.search.training import Task
from optforge.search.training.task import Split, batch_indices, initial_model, trainable

EVALUATION_ELEMENTS = 2**22  # inputs × members per validation chunk, to bound memory


@dataclass(frozen=True)
class Sequential:
    """Trains one program at one learning rate from one seed at a time, in a plain loop."""

    protocol: Protocol

    def __call__(self, programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        """Fitness of each program, in order; the same in every generation."""
        return [self._fitness(self.protocol.rule(program)) for program in programs]

    def _fitness(self, program: Program) -> Fitness:
        protocol = self.protocol
        runs = [[self._train(program, lr, seed) for seed in protocol.seeds] for lr in protocol.ladder]
        losses = torch.tensor([[loss for loss, _ in row] for row in runs], dtype=torch.float64)
        return summarise(protocol, losses, torch.tensor([[when for _, when in row] for row in runs]))

    def _train(self, program: Program, lr: float, seed: int) -> tuple[float, int]:
        protocol, task = self.protocol, self.protocol.task
        run = Member(task, program, lr, seed, protocol.steps, protocol.dtype, torch.device("cpu"))
        run.train(None, ())
        return run.measure(task.data().valid)[0], run.diverged_at


class Member:
    """One run: a program and a rate from one seed.

    Args:
        task, program, lr, seed: what is trained.
        steps: length of the run.
        dtype: of weights and state.
        device: where.

    Attributes:
        losses: training loss of each step before it, until one is not finite.
        diverged_at: the step, counted from 0, whose loss was not finite; -1 if there was none.
    """

    def __init__(
        self, task: Task, program: Program, lr: float, seed: int, steps: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.task, self.seed, self.steps, self.dtype, self.device = task, seed, steps, dtype, device
        self.model = initial_model(task, seed).to(device, dtype)
        self.optimizer = ProgramOptimizer(trainable(self.model).values(), program, lr, total_steps=steps)
        self.losses: list[float] = []
        self.diverged_at = -1

    def train(self, watched: Split | None, points: Sequence[int]) -> list[float]:
        """Train to the end, or until the loss diverges; loss on `watched` after the steps `points`, NaN after that."""
        train, seen = self.task.data().train, dict.fromkeys(points, math.nan)
        for index, at in enumerate(batch_indices(len(train), self.task.batch_size, self.steps, self.seed)):
            inputs, targets = (x.to(self.device) for x in train.batch(at))
            loss = self.task.loss(self.model(as_dtype(inputs, self.dtype)), targets)
            self.losses.append(float(loss.detach()))
            if not math.isfinite(self.losses[-1]):
                self.diverged_at = index
                break
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if watched is not None and index in seen:
                seen[index] = self.measure(watched)[0]
        return list(seen.values())

    def measure(self, split: Split) -> tuple[float, float]:
        """Loss and accuracy on a whole split; the accuracy is 0 for tasks without classes."""
        return measure_alone(self.task, self.model, split, self.dtype, self.device)


@torch.no_grad()
def measure_alone(
    task: Task, model: nn.Module, split: Split, dtype: torch.dtype, device: torch.device
) -> tuple[float, float]:
    """Loss and accuracy of a model on a whole split; the accuracy is 0 for tasks without classes."""
    first, _ = split.batch(torch.zeros(1, dtype=torch.int64))
    size = max(1, EVALUATION_ELEMENTS // max(1, first.numel()))
    loss = right = 0.0
    for at in torch.arange(len(split)).split(size):
        inputs, targets = (x.to(device) for x in split.batch(at))
        outputs = model(as_dtype(inputs, dtype))
        loss += float(task.loss(outputs, targets)) * len(at)
        if task.accuracy:
            right += float((outputs.argmax(-1) == targets).double().mean()) * len(at)
    return loss / len(split), right / len(split)


def as_dtype(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inputs in the precision of the run; indices (tokens) stay what they are."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs
