"""Train many (program, learning rate, seed) members as one: the population evaluator."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from optforge.primitives import Program
from optforge.primitives.routing import can_train
from optforge.search.fitness.evaluator import Fitness, Protocol, Status, summarise
from optforge.search.training import Task
from optforge.search.training.evaluate import Batches, measure
from optforge.search.training.lightning_fit import fit, quiet
from optforge.search.training.loop import Member
from optforge.search.training.one_at_a_time import padded, tell_the_cost
from optforge.search.training.population.gradients import cannot_be_stacked
from optforge.search.training.population.native_code import library
from optforge.search.training.population.training import CURVE_POINTS, PopulationTraining
from optforge.search.training.race import NO_RACE, Behind, Race
from optforge.search.training.task import parameter_shapes

MEMORY = 1 << 30  # bytes of weights, gradients and state at once on a CPU; a constant, so that batches are the same
DEVICE_SHARE = 0.5  # of a GPU's free memory, for the same


@dataclass(frozen=True)
class Outcome:
    """What became of the members of one population.

    Attributes:
        losses: for each split the final loss, ``[members, seeds]``; not finite where training diverged or was broken
            off.
        accuracy: likewise the share of right answers, empty for tasks without classes.
        start: validation loss before training, ``[seeds]``.
        diverged_at: first step whose training loss was not finite, ``[members, seeds]``; -1 where there was none.
        curve: training loss at evenly spaced steps, ``[points, members, seeds]``; NaN after training was broken off.
        valid_curve: validation loss after the same steps, likewise; empty unless it was asked for.
        seconds: wall-clock time of the whole.
        dropped: of each member, why it was not trained to the end; None if it was, or diverged.
        windows: training losses that were compared at each look of a race, ``[steps, seeds, members]``.
    """

    losses: dict[str, Tensor]
    accuracy: dict[str, Tensor]
    start: Tensor
    diverged_at: Tensor
    curve: Tensor
    valid_curve: Tensor
    seconds: float
    dropped: tuple[Behind | None, ...]
    windows: tuple[Tensor, ...]


@dataclass(frozen=True)
class Population:
    """Evaluator that trains all programs, learning rates and seeds of a call in one Lightning run, if memory allows.

    Attributes:
        protocol: how each program is trained.
        race: when members that are behind are dropped; by default never, and fitness is that of
            `search.training.loop.Sequential`. A program whose best rate is dropped comes out worse than it is, or as
            DROPPED.
        reference: program whose best rate members are compared with in a race, beside those of their own program.
        precision: of forward and backward pass, see `search.training.population.gradients.Gradients`.
        memory: bytes that weights, gradients and state of one run may take. Larger batches are cut.
    """

    protocol: Protocol
    race: Race = NO_RACE
    reference: Program | None = None
    precision: str = "float32"
    memory: int | None = None

    def __call__(self, programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        """Fitness of each program, in order; the same in every generation."""
        return [fitness for batch in self._batches(programs) for fitness in self._evaluate(batch)]

    def _batches(self, programs: Sequence[Program]) -> list[list[Program]]:
        room, batches, used = self.memory or memory(), list[list[Program]](), math.inf
        for program in programs:
            need = len(self.protocol.ladder) * member_bytes(self.protocol, program)
            if used + need > room:
                batches, used = [*batches, []], 0
            batches[-1].append(program)
            used += need
        return batches

    def _evaluate(self, programs: Sequence[Program]) -> list[Fitness]:
        protocol = self.protocol
        rungs = len(protocol.ladder)
        standards = self._standards if self.race.looks else ()
        try:
            found = self._train(programs, self.race, standards)
        except Exception as error:  # misfortune is a status: a candidate never takes the search down
            if len(programs) == 1:
                return [Fitness(math.inf, Status.FAILED, f"{type(error).__name__}: {error}"[:300])]
            half = len(programs) // 2
            return self._evaluate(programs[:half]) + self._evaluate(programs[half:])
        each = zip(found.losses["valid"].split(rungs), found.diverged_at.split(rungs), strict=True)
        dropped = [found.dropped[i : i + rungs] for i in range(0, len(found.dropped), rungs)]
        return [summarise(protocol, *of, why) for of, why in zip(each, dropped, strict=True)]

    def _train(self, programs: Sequence[Program], race: Race, standards: Sequence[Tensor]) -> Outcome:
        rules = [self.protocol.rule(program) for program in programs]
        members = [(rule, lr) for rule in rules for lr in self.protocol.ladder]
        return train_members(
            self.protocol.task,
            members,
            self.protocol.seeds,
            steps=self.protocol.steps,
            dtype=self.protocol.dtype,
            race=race,
            standards=standards,
            precision=self.precision,
        )

    @cached_property
    def _standards(self) -> tuple[Tensor, ...]:
        """The reference's losses before each look, ``[steps, seeds]``, at its best rate; empty without a reference."""
        if self.reference is None:
            return ()
        found = self._train([self.reference], self.race.patient(), ())
        fitness = summarise(self.protocol, found.losses["valid"], found.diverged_at)
        if fitness.status is not Status.OK:
            raise ValueError(f"the reference of the race is of no use: {fitness.reason}")
        best = self.protocol.ladder.index(fitness.lr)
        return tuple(window[..., best] for window in found.windows)


def memory() -> int:
    """Bytes that a population's weights, gradients and state may take on this machine's device."""
    return int(DEVICE_SHARE * torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else MEMORY


def member_bytes(protocol: Protocol, program: Program) -> int:
    """Bytes of one member over all seeds: weights, gradients, state, and as much again for its next value."""
    numbers = 0
    for shape in parameter_shapes(protocol.task):
        rule = program if can_train(program, shape) else program.fallback or program
        numbers += 2 * math.prod(shape) + 2 * sum(slot.kind.elements(shape) for slot in rule.live_state)
    return numbers * protocol.dtype.itemsize * len(protocol.seeds)


def train_members(
    task: Task,
    members: Sequence[tuple[Program, float]],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    splits: Sequence[str] = ("valid",),
    race: Race = NO_RACE,
    standards: Sequence[Tensor] = (),
    precision: str = "float32",
    watch: bool = False,
) -> Outcome:
    """Train every member from every seed at once and measure it on `splits`.

    What cannot be stacked (see `gradients.cannot_be_stacked`) is trained one member after the other: to the end,
    whatever the race.

    Args:
        task: what is trained.
        members: programs with their learning rates. Members with the same program next to each other are stepped
            together, and compared in a race, so keep them adjacent.
        seeds: each gives one set of initial weights and batches, the same for all members (common random numbers).
        steps: length of the run; the task's own by default.
        dtype: precision of weights, gradients and optimizer state.
        splits: names of the splits to measure at the end.
        race: when members are dropped. If it has looks, that is also done to members that diverged from any seed.
        standards: losses of a reference before each look of the race, ``[steps, seeds]``; empty if there is none.
        precision: of forward and backward pass, see `search.training.population.gradients.Gradients`.
        watch: whether to measure the validation loss on the way, for `Outcome.valid_curve`.
    """
    begin = time.perf_counter()
    steps = steps or task.steps
    data = task.data()
    if reason := cannot_be_stacked(task):
        tell_the_cost(task.name, reason)
        return _one_at_a_time(task, members, seeds, steps, dtype, splits, race, watch)
    trainer = quiet_trainer()
    device = trainer.strategy.root_device
    native = device.type == "cpu" and library(dtype) is not None
    training = PopulationTraining(task, members, seeds, steps, dtype, race, standards, precision, native,
                                  data.valid if watch else None)  # fmt: skip
    batches = DataLoader(Batches(data.train, task.batch_size, steps, seeds, dtype), batch_size=None)
    with quiet():
        start = measure(task, training.arena[:, :1].to(device), data.valid)[0][0]
    with quiet(), matmul_precision("high" if precision == "tf32" else torch.get_float32_matmul_precision()):
        fit(trainer, training, batches)
    arena = training.arena.to(device)  # Lightning has taken it from there
    with quiet():
        measured = {name: measure(task, arena, getattr(data, name)) for name in splits}
    return Outcome(
        losses={name: training.everyone(loss, dim=0, missing=math.inf) for name, (loss, _) in measured.items()},
        accuracy={name: training.everyone(hits, dim=0) for name, (_, hits) in measured.items() if task.accuracy},
        start=start,
        diverged_at=training.settled().T,
        curve=torch.stack([training.everyone(*point) for point in training.curve]).mT,
        valid_curve=torch.stack([training.everyone(*point) for point in training.valid]).mT
        if watch
        else torch.empty(0),
        seconds=time.perf_counter() - begin,
        dropped=tuple(training.dropped),
        windows=tuple(training.windows),
    )


def _one_at_a_time(
    task: Task,
    members: Sequence[tuple[Program, float]],
    seeds: Sequence[int],
    steps: int,
    dtype: torch.dtype,
    splits: Sequence[str],
    race: Race,
    watch: bool,
) -> Outcome:
    begin, data, device = time.perf_counter(), task.data(), quiet_trainer().strategy.root_device
    points = [i for i in range(steps) if i * CURVE_POINTS // steps != (i + 1) * CURVE_POINTS // steps]
    shape = (len(members), len(seeds))
    start = torch.zeros(len(seeds), dtype=dtype)
    diverged_at = torch.full(shape, -1, dtype=torch.int64)
    losses, valid = (torch.full((n, *shape), math.nan, dtype=dtype) for n in (steps, len(points)))
    nothing = torch.tensor([math.inf, math.nan], dtype=torch.float64)[:, None, None]
    measured = {name: nothing.repeat(1, *shape) for name in splits}
    for m, (program, lr) in enumerate(members):
        for s, seed in enumerate(seeds):
            run = Member(task, program, lr, seed, steps, dtype, device)
            if m == 0:
                start[s] = run.measure(data.valid)[0]
            valid[:, m, s] = torch.tensor(run.train(data.valid if watch else None, points))
            losses[:, m, s], diverged_at[m, s] = padded(run.losses, steps), run.diverged_at
            for name in splits:
                if run.diverged_at < 0:
                    measured[name][:, m, s] = torch.tensor(run.measure(getattr(data, name)))
    return Outcome(
        losses={name: found[0] for name, found in measured.items()},
        accuracy={name: found[1] for name, found in measured.items() if task.accuracy},
        start=start,
        diverged_at=diverged_at,
        curve=losses[points],
        valid_curve=valid if watch else torch.empty(0),
        seconds=time.perf_counter() - begin,
        dropped=(None,) * len(members),
        windows=tuple(losses[first:end].mT for first, end, _ in race.steps(steps)),
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
