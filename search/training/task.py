"""What a training problem is: data, a model, a loss. Instances live in `experiments.tasks`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

TRAIN_MEASURED = 1280


class Split(Protocol):
    """One part of a data set, addressed by example."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples `indices`; both keep the leading shape of `indices`."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """Examples held as two tensors with the same first dimension."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples `indices`."""
        return self.inputs[indices], self.targets[indices]


class Splits(NamedTuple):
    """Training data, validation data (selects), and test data (touched only by final reports)."""

    train: Split
    valid: Split
    test: Split


@dataclass(frozen=True)
class Task:
    """A training problem.

    Attributes:
        name: how the command line refers to it.
        summary: one line on data and model.
        model: makes a freshly initialised model from torch's global random state. Its forward pass takes one batch of
            inputs; it must be a pure function of parameters and inputs (no dropout, no batch statistics), so that
            many members can be trained as one. What does not require gradients is not trained.
        data: loads the splits; called once, then cached by the callable itself.
        loss: mean loss of a batch from outputs and targets, in nats where it is a cross-entropy.
        metric: name and unit of the loss.
        steps: length of one training run.
        batch_size: examples per step.
        licence: of the data.
        accuracy: whether targets are class indices, so that accuracy is meaningful.
        target: validation loss that AdamW reaches in `steps` steps from its default settings, rounded up; None where
            that was not measured. What "time to target" refers to.
    """

    name: str
    summary: str
    model: Callable[[], nn.Module]
    data: Callable[[], Splits]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: str
    steps: int
    batch_size: int
    licence: str
    accuracy: bool = False
    target: float | None = None


def initial_model(task: Task, seed: int) -> nn.Module:
    """The task's model with the weights that `seed` gives; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_model(task)


def new_model(task: Task) -> nn.Module:
    """A model with weights from the present random state; a first example gives lazy modules their shapes."""
    model = task.model()
    if any(is_lazy(x) for x in (*model.parameters(), *model.buffers())):
        inputs, _ = task.data().train.batch(torch.zeros(1, dtype=torch.int64))
        with torch.no_grad():
            model(inputs)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `model` that are trained, by name: those that require gradients and have elements."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}


@lru_cache(maxsize=64)
def parameter_shapes(task: Task) -> tuple[torch.Size, ...]:
    """Shapes of the parameters of the task's model, in order."""
    return tuple(p.shape for p in initial_model(task, 0).parameters())


def parameter_count(task: Task) -> int:
    """Number of parameters of the task's model."""
    return sum(math.prod(shape) for shape in parameter_shapes(task))


def measured_part(task: Task, name: str) -> Split:
    """The examples of a split on which losses are measured: all, but of the training split at most `TRAIN_MEASURED`.

    These are evenly spaced. A training split may be as large as a corpus.
    """
    split: Split = getattr(task.data(), name)
    if name != "train" or len(split) <= TRAIN_MEASURED:
        return split
    spaced = torch.linspace(0, len(split) - 1, TRAIN_MEASURED, dtype=torch.float64).round().long()
    return TensorSplit(*split.batch(spaced))


def batch_indices(examples: int, batch_size: int, steps: int, seed: int) -> Tensor:
    """Which examples each step sees, ``[steps, batch_size]``: shuffled epochs laid end to end.

    Depends on nothing but its arguments, so that every optimizer sees the same batches in the same order. A batch that
    holds all examples has them in theirs.
    """
    if batch_size == examples:  # no order among them
        return torch.arange(examples).expand(steps, -1)
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * batch_size // examples)
    order = torch.cat([torch.randperm(examples, generator=generator) for _ in range(epochs)])
    return order[: steps * batch_size].view(steps, batch_size)
