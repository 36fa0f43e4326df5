"""A Lightning callback that shows what the optimizers of a training run do, in TensorBoard or any other logger."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import Optimizer

from optforge.search.training.guard import Tally
from optforge.search.training.monitor import EVERY, Monitor


class OptimizerMonitor(Callback):
    """Log the scalars of a `search.training.monitor.Monitor` for each optimizer, under ``optimizer/…``.

    ::

        Trainer(callbacks=[OptimizerMonitor()], gradient_clip_val=1.0, precision="16-mixed")

    Learning rates are logged every ``trainer.log_every_n_steps`` steps, everything else every `every` steps; both
    against ``trainer.global_step``. With several optimizers the tags begin with ``optimizer0/``, ``optimizer1/``, ….
    Nothing is observed without a logger.

    Args:
        every: steps between observations; 0 for learning rates alone.
        tally: counts of skipped and clipped steps, for modules that step with a guard (`search.training.guard`);
            by default the trainer's own clipping and loss scaling are counted.
    """

    def __init__(self, every: int = EVERY, tally: Tally | None = None) -> None:
        if every < 0:
            raise ValueError(f"every must be a number of steps, or 0 for none, got {every}")
        self.every, self.given = every, tally
        self.monitors: list[Monitor] = []
        self._logged = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to observe."""
        self._logged = trainer.global_step
        optimizers = trainer.optimizers if trainer.loggers else []
        self.monitors = [
            Monitor(
                optimizer,
                self.every,
                names=pl_module.named_parameters(),
                tally=self.given or Tally(),
                prefix="optimizer" if len(optimizers) == 1 else f"optimizer{number}",
            )
            for number, optimizer in enumerate(optimizers)
        ]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Count attempted and clipped steps: gradients are whole and unscaled here, and not clipped yet."""
        for monitor in self.monitors:
            if monitor.optimizer is optimizer and self.given is None and monitor.tally is not None:
                tally = monitor.tally
                tally.skipped = tally.steps - monitor.steps  # of all before this one
                tally.steps += 1
                if limit := trainer.gradient_clip_val:
                    kind = math.inf if trainer.gradient_clip_algorithm == "value" else 2.0
                    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                    size = get_total_norm(grads, kind)
                    tally.clipped = tally.clipped + (torch.isfinite(size) & (size > limit)).int()
                    tally.norm = size if kind == 2.0 else get_total_norm(grads) if monitor.due else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log what was observed in the step that this batch completed, if it did."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._logged:
            return
        self._logged = step
        for monitor in self.monitors:
            scalars = monitor.take()
            if step == 1 or step % every == 0:
                scalars |= monitor.rates()
            if scalars:
                for logger in trainer.loggers:
                    logger.log_metrics(scalars, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off the optimizers."""
        for monitor in self.monitors:
            monitor.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same after an interruption."""
        self.on_train_end(trainer, pl_module)
