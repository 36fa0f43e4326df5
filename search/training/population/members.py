"""Train many (program, learning rate, seed) members as one: the population engine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from optforge.primitives import Program
from optforge.primitives.routing import can_train
from optforge.search.training.lightning.fit import fit, quiet
from optforge.search.training.loop import ending
from optforge.search.training.population.evaluate import Batches, measure
from optforge.search.training.population.native_code import library
from optforge.search.training.population.training import PopulationTraining
from optforge.search.training.task import Task, measured_part, parameter_shapes
from optforge.search.training.trial import Outcome, Trial

MEMORY = 1 << 30  # bytes of weights, gradients and state at once on a CPU; a constant, so that batches are the same
DEVICE_SHARE = 0.5  # of a GPU's free memory, for the same


@dataclass(frozen=True)
class Measured:
    """What became of the members of one population.

    Attributes:
        losses: for each split the final loss, ``[members, seeds]``; not finite where training diverged.
        accuracy: likewise the share of right answers, empty for tasks without classes.
        start: validation loss before training, ``[seeds]``.
        diverged_at: first step whose training loss was not finite, ``[members, seeds]``; -1 where there was none.
        curve: training loss at evenly spaced steps, ``[points, members, seeds]``; not finite after it diverged.
        valid_curve: validation loss after the same steps, likewise; empty unless it was asked for.
        seconds: wall-clock time of the whole.
    """

    losses: dict[str, Tensor]
    accuracy: dict[str, Tensor]
    start: Tensor
    diverged_at: Tensor
    curve: Tensor
    valid_curve: Tensor
    seconds: float

    def outcome(self, member: int, seed: int) -> Outcome:
        """The outcome of one member from one seed (its index)."""
        loss = {name: float(found[member, seed]) for name, found in self.losses.items()}
        at = int(self.diverged_at[member, seed])
        step = at + 1 if at >= 0 else None
        return Outcome(
            *ending(loss, step),
            loss=loss,
            accuracy={name: float(found[member, seed]) for name, found in self.accuracy.items()},
            start=float(self.start[seed]),
            step=step,
            curve=tuple(self.curve[:, member, seed].tolist()),
            valid_curve=tuple(self.valid_curve[:, member, seed].tolist()) if self.valid_curve.numel() else (),
            seconds=self.seconds / self.diverged_at.numel(),
        )


def train_population(trials: Sequence[Trial]) -> list[Outcome]:
    """Outcomes of trials that differ in program, rate and seed only, trained as one; see `train_members`.

    Each program and rate must come with the same seeds.
    """
    first = trials[0]
    members = list(dict.fromkeys((trial.program, trial.lr) for trial in trials))
    seeds = list(dict.fromkeys(trial.seed for trial in trials))
    found = train_members(
        first.task, members, seeds, steps=first.steps, dtype=first.dtype, splits=first.splits,
        precision=first.precision.replace("float64", "float32"), watch=first.watch,
    )  # fmt: skip
    rows = {member: index for index, member in enumerate(members)}
    columns = {seed: index for index, seed in enumerate(seeds)}
    return [found.outcome(rows[t.program, t.lr], columns[t.seed]) for t in trials]


def memory() -> int:
    """Bytes that a population's weights, gradients and state may take on this machine's device."""
    return int(DEVICE_SHARE * torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else MEMORY


def trial_bytes(trial: Trial) -> int:
    """Bytes of one run: weights, gradients, state, and as much again for its next value."""
    numbers, program = 0, trial.program
    for shape in parameter_shapes(trial.task):
        rule = program if can_train(program, shape) else program.fallback or program
        numbers += 2 * math.prod(shape) + 2 * sum(slot.kind.elements(shape) for slot in rule.live_state)
    return numbers * trial.dtype.itemsize


def train_members(
    task: Task,
    members: Sequence[tuple[Program, float]],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    splits: Sequence[str] = ("valid",),
    precision: str = "float32",
    watch: bool = False,
) -> Measured:
    """Train every member from every seed at once and measure it on `splits`.

    Args:
        task: what is trained; its model must be one that can be stacked (see `gradients.cannot_be_stacked`).
        members: programs with their learning rates. Members with the same program next to each other are stepped
            together, so keep them adjacent.
        seeds: each gives one set of initial weights and batches, the same for all members (common random numbers).
        steps: length of the run; the task's own by default.
        dtype: precision of weights, gradients and optimizer state.
        splits: names of the splits to measure at the end.
        precision: of forward and backward pass, see `search.training.population.gradients.Gradients`.
        watch: whether to measure the validation loss on the way, for `Measured.valid_curve`.
    """
    begin = time.perf_counter()
    steps = steps or task.steps
    data = task.data()
    trainer = quiet_trainer()
    device = trainer.strategy.root_device
    native = device.type == "cpu" and library(dtype) is not None
    training = PopulationTraining(task, members, seeds, steps, dtype, precision, native,
                                  data.valid if watch else None)  # fmt: skip
    batches = DataLoader(Batches(data.train, task.batch_size, steps, seeds, dtype), batch_size=None)
    with quiet():
        start = measure(task, training.arena[:, :1].to(device), data.valid)[0][0]
    with quiet(), matmul_precision("high" if precision == "tf32" else torch.get_float32_matmul_precision()):
        fit(trainer, training, batches)
    arena = training.arena.to(device)  # Lightning has taken it from there
    with quiet():
        measured = {name: measure(task, arena, measured_part(task, name)) for name in splits}
    return Measured(
        losses={name: training.by_member(loss, dim=0) for name, (loss, _) in measured.items()},
        accuracy={name: training.by_member(hits, dim=0) for name, (_, hits) in measured.items() if task.accuracy},
        start=start,
        diverged_at=training.by_member(training.diverged_at, dim=1).T,
        curve=training.by_member(torch.stack(training.curve), dim=2).mT,
        valid_curve=training.by_member(torch.stack(training.valid), dim=2).mT if watch else torch.empty(0),
        seconds=time.perf_counter() - begin,
    )


def quiet_trainer() -> lightning.Trainer:
    """A Trainer that trains and does nothing else, on the GPU if there is one."""
    with quiet():
        return lightning.Trainer(barebones=True, max_epochs=1, accelerator="auto", devices=1)


@contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    """Set how float32 matrix products are rounded on CUDA ("highest", or "high" for TF32), and set it back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
