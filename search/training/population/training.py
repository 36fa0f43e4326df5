"""The training run of a population: all members' parameters in one arena, stepped together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import lightning
import torch
from torch import Tensor, nn

from optforge.primitives import Program
from optforge.search.training import Task
from optforge.search.training.loop import CURVE_POINTS
from optforge.search.training.population.evaluate import CHUNK, measure
from optforge.search.training.population.gradients import Gradients
from optforge.search.training.population.stacked import Plan, StackedRules
from optforge.search.training.task import Split, initial_model, trainable


class PopulationTraining(lightning.LightningModule):
    """Stacked parameters, forward and backward pass for all members in few calls, each member's rule on its slice.

    All parameters of all members live in one arena ``[seeds, places, elements]``; the model sees views of it.
    """

    def __init__(
        self,
        task: Task,
        members: Sequence[tuple[Program, float]],
        seeds: Sequence[int],
        steps: int,
        dtype: torch.dtype,
        precision: str,
        native: bool,
        watched: Split | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.steps = steps
        self.gradients = Gradients(task, precision)
        groups = [(program, [lr for _, lr in run]) for program, run in groupby(members, key=lambda m: m[0])]
        self.plan = Plan(groups, steps, native)
        models = [initial_model(task, seed).to(dtype) for seed in seeds]
        self.shapes = [p.shape for p in trainable(models[0]).values()]
        flat = torch.stack([nn.utils.parameters_to_vector(trainable(m).values()).detach() for m in models])
        never = torch.full((len(seeds), len(members)), -1, dtype=torch.int64)
        self.register_buffer("arena", flat[:, None].repeat(1, len(members), 1), persistent=False)
        self.register_buffer("diverged_at", never, persistent=False)
        self.arena: Tensor
        self.diverged_at: Tensor
        self.curve: list[Tensor] = []  # training losses, ``[seeds, places]``
        self.task, self.watched = task, watched
        self.valid: list[Tensor] = []  # losses of `watched` after the steps of the curve, likewise

    def on_fit_start(self) -> None:
        """Set up the rules once Lightning has moved the arena to its device."""
        self.gradient = torch.zeros_like(self.arena)
        self.rules = StackedRules(self.plan, self.shapes, self.arena, self.gradient)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """No torch optimizer: the members' own rules are the optimizers."""
        return []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """A few steps of every member, on batches ``[steps, seeds, batch, …]``."""
        for offset, (inputs, targets) in enumerate(zip(*batch, strict=True)):
            self.step(inputs, targets, batch_idx * CHUNK + offset)

    def step(self, inputs: Tensor, targets: Tensor, index: int) -> None:
        """Step `index` (from 0) of every member, on its seed's batch."""
        losses = self.gradients(self.arena, inputs, targets, self.gradient)
        self.diverged_at.masked_fill_(~losses.isfinite() & (self.diverged_at < 0), index)
        point = index * CURVE_POINTS // self.steps != (index + 1) * CURVE_POINTS // self.steps
        if point:
            self.curve.append(losses)
        self.rules.step(index)
        if point and self.watched is not None:
            self.valid.append(measure(self.task, self.arena, self.watched)[0].T)

    def by_member(self, x: Tensor, dim: int) -> Tensor:
        """Values by place, along `dim`, as values by member, on the CPU."""
        return x.cpu().index_select(dim, torch.tensor(self.plan.order).argsort())
