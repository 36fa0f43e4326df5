"""The slow, obvious evaluator. It defines what fitness is; every other evaluator is tested against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from primitives import Program, ProgramOptimizer
from primitives.task import batch_indices, initial_model
from search.fitness import Fitness, Protocol, summarise


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
        dtype = protocol.dtype
        data = task.data()
        model = initial_model(task, seed).to(dtype)
        optimizer = ProgramOptimizer(model.parameters(), program, lr=lr, total_steps=protocol.steps)
        diverged_at = -1
        for step, indices in enumerate(batch_indices(len(data.train), task.batch_size, protocol.steps, seed)):
            inputs, targets = data.train.batch(indices)
            loss = task.loss(model(as_dtype(inputs, dtype)), targets)
            if diverged_at < 0 and not bool(loss.isfinite()):
                diverged_at = step
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            inputs, targets = data.valid.batch(torch.arange(len(data.valid)))
            return float(task.loss(model(as_dtype(inputs, dtype)), targets)), diverged_at


def as_dtype(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inputs in the precision of the run; indices (tokens) stay what they are."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs
