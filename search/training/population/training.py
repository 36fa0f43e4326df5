"""The training run of a population: all members' parameters in one arena, stepped together."""

from __future__ import annotations

import math
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
from optforge.search.training.race import Behind, Look, Race
from optforge.search.training.task import Split, initial_model, trainable

SPARE = 8  # places are given up in multiples of this, so that few sizes of graphs are recorded


class PopulationTraining(lightning.LightningModule):
    """Stacked parameters, forward and backward pass for all members in few calls, each member's rule on its slice.

    All parameters of all members live in one arena ``[seeds, places, elements]``; the model sees views of it. Members
    that are dropped give up their places.
    """

    def __init__(
        self,
        task: Task,
        members: Sequence[tuple[Program, float]],
        seeds: Sequence[int],
        steps: int,
        dtype: torch.dtype,
        race: Race,
        standards: Sequence[Tensor],
        precision: str,
        native: bool,
        watched: Split | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.steps, self.race, self.standards = steps, race, standards
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
        self._settled = never.clone()  # by member, of those whose places are gone
        self.dropped: list[Behind | None] = [None] * len(members)
        self.curve: list[tuple[Tensor, int, list[int]]] = []
        self.task, self.watched = task, watched
        self.valid: list[tuple[Tensor, int, list[int]]] = []  # loss of `watched` after the steps of the curve
        self.windows: list[Tensor] = []
        self._recent: list[Tensor] = []
        self._looks = race.steps(steps)

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
            self.curve.append((losses, 1, self.plan.order))
        self.rules.step(index)
        if point and self.watched is not None:
            self.valid.append((measure(self.task, self.arena, self.watched)[0].T, 1, self.plan.order))
        if self._looks:
            self._watch(losses, index)

    def _watch(self, losses: Tensor, index: int) -> None:
        first, end, look = self._looks[0]
        if index == 0:
            self._start = losses[:, 0]  # the same for all: nothing has been trained
        if index >= first:
            self._recent.append(losses)
        if index + 1 == end:
            recent = torch.stack(self._recent)
            self.windows.append(self.everyone(recent, dim=2))
            self._looks, self._recent = self._looks[1:], []
            self._drop(look, recent, end)

    def _drop(self, look: Look, recent: Tensor, step: int) -> None:
        """Take members out of the race that are behind or have diverged, and others into their places."""
        order = self.plan.order
        out = (self.diverged_at >= 0).any(dim=0).cpu() | torch.tensor([self.dropped[m] is not None for m in order])
        recent = recent.cpu().masked_fill(out, math.inf)
        standard = self.standards[len(self.windows) - 1] if self.standards else None
        found = self.race.behind(step, look, recent, self._start, self.plan.sizes, standard)
        for place, why in found.items():
            self.dropped[order[place]] = why
            out[place] = True
        stay, free = (~out).nonzero()[:, 0].tolist(), out.nonzero()[:, 0].tolist()
        places = sorted(stay + free[: -len(stay) % SPARE or (SPARE if not stay else 0)])
        if len(places) < len(order):
            self.settled()
            self.arena, self.diverged_at = self.arena[:, places], self.diverged_at[:, places]
            self.gradient = torch.zeros_like(self.arena)
            self.rules = self.rules.only(places, self.arena, self.gradient)
            self.plan = self.rules.plan

    def settled(self) -> Tensor:
        """First step whose loss was not finite of each member, ``[seeds, members]``."""
        self._settled[:, self.plan.order] = self.diverged_at.cpu()
        return self._settled

    def everyone(self, x: Tensor, dim: int, order: Sequence[int] | None = None, missing: float = math.nan) -> Tensor:
        """Values by place as values by member; `missing` for members that have no place, or should not.

        Args:
            x: has one entry for each place along `dim`.
            dim: which dimension.
            order: the member in each place, by default the present one, without those that were dropped meanwhile.
            missing: what stands for the others.
        """
        wanted = [m for m in self.plan.order if self.dropped[m] is None] if order is None else order
        at = {member: place for place, member in enumerate(order or self.plan.order)}
        shape = list(x.shape)
        shape[dim] = len(self.dropped)
        found = torch.full(shape, missing, dtype=x.dtype)
        index = torch.tensor(wanted, dtype=torch.int64)
        return found.index_copy(dim, index, x.cpu().index_select(dim, torch.tensor([at[m] for m in wanted]).long()))
