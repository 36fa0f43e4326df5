"""Train many (program, learning rate, seed) members as one: the population evaluator."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import lightning
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.data import DataLoader, Dataset

from primitives import Program, Task
from primitives.task import Split, batch_indices, initial_model
from search.fitness import Fitness, Protocol, Status, summarise
from search.gradients import Gradients, views
from search.lightning_fit import fit, quiet
from search.native_code import library
from search.sequential import as_dtype
from search.stacked import Plan, StackedRules

CURVE_POINTS = 20
CHUNK = 10  # steps per Lightning batch: its loop costs 0.3 ms a turn, as much as a quarter of a population's step
EVALUATION_ELEMENTS = 2**22  # inputs × members per validation chunk, to bound memory


@dataclass(frozen=True)
class Outcome:
    """What became of the members of one population.

    Attributes:
        losses: for each split the final loss, ``[members, seeds]``; not finite where training diverged.
        accuracy: likewise the share of right answers, empty for tasks without classes.
        start: validation loss before training, ``[seeds]``.
        diverged_at: first step whose training loss was not finite, ``[members, seeds]``; -1 where there was none.
        curve: training loss at evenly spaced steps, ``[points, members, seeds]``.
        seconds: wall-clock time of the whole.
    """

    losses: dict[str, Tensor]
    accuracy: dict[str, Tensor]
    start: Tensor
    diverged_at: Tensor
    curve: Tensor
    seconds: float


@dataclass(frozen=True)
class Population:
    """Evaluator that trains all programs, learning rates and seeds of a call in one Lightning run."""

    protocol: Protocol

    def __call__(self, programs: Sequence[Program]) -> list[Fitness]:
        """Fitness of each program, in order."""
        protocol = self.protocol
        members = [(program, lr) for program in programs for lr in protocol.ladder]
        if not members:
            return []
        try:
            dtype = torch.float64 if protocol.double else torch.float32
            outcome = train_members(protocol.task, members, protocol.seeds, steps=protocol.steps, dtype=dtype)
        except Exception as error:  # misfortune is a status: a candidate never takes the search down
            if len(programs) == 1:
                return [Fitness(math.inf, Status.FAILED, f"{type(error).__name__}: {error}"[:300])]
            half = len(programs) // 2
            return self(programs[:half]) + self(programs[half:])
        rungs = len(protocol.ladder)
        chunks = zip(outcome.losses["valid"].split(rungs), outcome.diverged_at.split(rungs), strict=True)
        return [summarise(protocol, losses, diverged_at) for losses, diverged_at in chunks]


def train_members(
    task: Task,
    members: Sequence[tuple[Program, float]],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    splits: Sequence[str] = ("valid",),
) -> Outcome:
    """Train every member from every seed at once and measure it on `splits`.

    Args:
        task: what is trained.
        members: programs with their learning rates. Members with the same program next to each other are stepped
            together, so keep them adjacent.
        seeds: each gives one set of initial weights and batches, the same for all members (common random numbers).
        steps: length of the run; the task's own by default.
        dtype: precision of weights, gradients and optimizer state.
        splits: names of the splits to measure at the end.
    """
    begin = time.perf_counter()
    steps = steps or task.steps
    training = PopulationTraining(task, members, seeds, steps, dtype)
    data = task.data()
    batches = DataLoader(_Batches(data.train, task.batch_size, steps, seeds, dtype), batch_size=None)
    start = training.measure(data.valid, members=1)[0][0]
    with quiet():
        fit(lightning.Trainer(barebones=True, max_epochs=1, accelerator="auto", devices=1), training, batches)
    measured = {name: training.measure(getattr(data, name)) for name in splits}
    place = torch.tensor(training.plan.order).argsort()  # of each member in the arena
    return Outcome(
        losses={name: loss[place] for name, (loss, _) in measured.items()},
        accuracy={name: accuracy[place] for name, (_, accuracy) in measured.items() if task.accuracy},
        start=start,
        diverged_at=training.diverged_at.T.cpu()[place],
        curve=torch.stack(training.curve).mT.cpu()[:, place],
        seconds=time.perf_counter() - begin,
    )


class PopulationTraining(lightning.LightningModule):
    """Stacked parameters, one vmapped forward and backward pass for all members, each member's rule on its slice.

    All parameters of all members live in one arena ``[seeds, members, elements]``; the model sees views of it.
    """

    def __init__(
        self,
        task: Task,
        members: Sequence[tuple[Program, float]],
        seeds: Sequence[int],
        steps: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.task, self.steps = task, steps
        self.gradients = Gradients(task)
        groups = [(program, [lr for _, lr in run]) for program, run in groupby(members, key=lambda m: m[0])]
        self.plan = Plan(groups, steps, native=library(dtype) is not None)
        models = [initial_model(task, seed).to(dtype) for seed in seeds]
        self.skeleton = [models[0]]  # in a list: its weights are not this module's parameters
        self.names = [name for name, _ in models[0].named_parameters()]
        self.shapes = [p.shape for p in models[0].parameters()]
        flat = torch.stack([nn.utils.parameters_to_vector(m.parameters()).detach() for m in models])
        self.register_buffer("arena", flat[:, None].repeat(1, len(members), 1), persistent=False)
        self.register_buffer(
            "diverged_at",
            torch.full((len(seeds), len(members)), -1, dtype=torch.int64),
            persistent=False,
        )
        self.curve: list[Tensor] = []
        self.arena: Tensor
        self.diverged_at: Tensor

    def on_fit_start(self) -> None:
        """Set up the rules once Lightning has moved the arena to its device."""
        self.skeleton[0].to(self.device)
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
        if index * CURVE_POINTS // self.steps != (index + 1) * CURVE_POINTS // self.steps:
            self.curve.append(losses)
        self.rules.step(index)

    @torch.no_grad()
    def measure(self, split: Split, members: int | None = None) -> tuple[Tensor, Tensor]:
        """Loss and accuracy on a whole split, ``[members, seeds]`` each; of the first `members` only, if given."""
        arena = self.arena[:, :members]
        parameters = dict(zip(self.names, views(arena, self.shapes), strict=True))
        self.skeleton[0].to(arena.device)
        first, _ = split.batch(torch.zeros(1, dtype=torch.int64))
        size = max(1, EVALUATION_ELEMENTS // (first.numel() * arena.shape[0] * arena.shape[1]))
        loss, right = (torch.zeros(arena.shape[:2], dtype=torch.float64, device=arena.device) for _ in range(2))

        def one(p: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            outputs = functional_call(self.skeleton[0], p, (x,))
            hits = (outputs.argmax(-1) == y).double().mean() if self.task.accuracy else x.new_zeros(())
            return self.task.loss(outputs, y), hits

        for indices in torch.arange(len(split)).split(size):
            inputs, targets = (x.to(arena.device) for x in split.batch(indices))
            found = vmap(vmap(one, in_dims=(0, None, None)), in_dims=(0, None, None))(
                parameters, as_dtype(inputs, arena.dtype), targets
            )
            loss += found[0] * len(indices)
            right += found[1] * len(indices)
        return (loss / len(split)).T.cpu(), (right / len(split)).T.cpu()


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """The batches of every seed for the next few steps: inputs ``[steps, seeds, batch, …]`` and targets."""

    def __init__(self, split: Split, batch_size: int, steps: int, seeds: Sequence[int], dtype: torch.dtype) -> None:
        self.split, self.dtype = split, dtype
        indices = torch.stack([batch_indices(len(split), batch_size, steps, seed) for seed in seeds], dim=1)
        self.chunks = indices.split(CHUNK)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.split.batch(self.chunks[number])
        return as_dtype(inputs, self.dtype), targets
