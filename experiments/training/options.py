"""How a training run trains, beyond its task, optimizer and learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from optforge.experiments.errors import UserError, unknown
from optforge.search.training.guard import Clip, Guard
from optforge.search.training.monitor import EVERY
from optforge.search.training.torch_schedules import SCHEDULES

PRECISIONS: Mapping[str, str] = MappingProxyType({"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"})
"""What may be asked for, and Lightning's name of it, which may be asked for as well."""

STRATEGIES = ("auto", "ddp", "fsdp")
"""How several devices work together."""


@dataclass(frozen=True)
class RunOptions:
    """Options of one run; the defaults train as the optimizer says, and change nothing.

    Attributes:
        schedule: of the learning rate, one of `search.training.torch_schedules.SCHEDULES`.
        warmup: steps in which the rate rises linearly, before the schedule begins.
        clip_norm, clip_value: limits of the gradients, see `search.training.guard.Clip`.
        accumulate: batches whose gradients are averaged for one step.
        precision: ``"32"``, or ``"bf16"`` and ``"fp16"`` for autocast of the model; weights, gradients, state and
            losses stay in float32. float16 scales the loss.
        monitor: steps between observations of the optimizer for TensorBoard; 0 for none.
        hypers: values of the optimizer's hyperparameters by name, in place of its defaults.
        devices: how many of them share each batch; processes, where there is no accelerator.
        strategy: ``"ddp"`` for a whole model on each device; ``"fsdp"`` divides parameters, gradients and state among
            them; ``"auto"`` is the former where there are several.
        checkpoint_every: steps between checkpoints; 0 for none. The last step has one, too.

    With clipping or less precision, a step whose gradients are not finite is skipped and counted; otherwise a loss
    that is not finite ends the run.

    Raises:
        UserError: for a value that does not exist or fit.
    """

    schedule: str = "constant"
    warmup: int = 0
    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    precision: str = "32"
    monitor: int = EVERY
    hypers: Mapping[str, float] = field(default_factory=dict)
    devices: int = 1
    strategy: str = "auto"
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.precision not in {*PRECISIONS, *PRECISIONS.values()}:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.accumulate < 1:
            raise UserError(f"at least 1 batch must be accumulated for a step, got {self.accumulate}")
        if min(self.monitor, self.warmup, self.checkpoint_every) < 0:
            raise UserError("the steps of the warm-up, between observations and between checkpoints must be at least 0")
        if self.strategy not in STRATEGIES:
            raise unknown("strategy", self.strategy, STRATEGIES)
        if self.devices < 1:
            raise UserError(f"at least 1 device must train, got {self.devices}")
        if self.strategy == "fsdp" and self.lightning_precision == "16-mixed":
            raise UserError("the loss scale of fp16 does not go with fsdp; use --precision bf16")
        try:
            Clip(self.clip_norm, self.clip_value)
        except ValueError as error:
            raise UserError(str(error)) from None

    @property
    def lightning_precision(self) -> str:
        """Lightning's name of the precision."""
        return PRECISIONS.get(self.precision, self.precision)

    def scheduler(self, optimizer: Optimizer, steps: int) -> LRScheduler | None:
        """The schedule of a run of so many steps, or None if the rate stays as it is."""
        if self.warmup > steps:
            raise UserError(f"a warm-up of {self.warmup} steps does not fit into a run of {steps}")
        if self.schedule == "constant" and not self.warmup:
            return None
        return SCHEDULES[self.schedule](optimizer, steps, self.warmup)

    def guard(self, optimizer: Optimizer) -> Guard | None:
        """What makes the optimizer's steps, or None if it does so itself."""
        clip = Clip(self.clip_norm, self.clip_value)
        if clip == Clip() and self.lightning_precision == "32-true":
            return None
        return Guard(optimizer, clip, GradScaler(device_type()) if self.lightning_precision == "16-mixed" else None)


PLAIN = RunOptions()
"""The defaults."""


def device_type() -> str:
    """Type of the device that a run uses, as in ``torch.autocast(device_type())``."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type
