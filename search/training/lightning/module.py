"""The Lightning module of a trial: the loop's steps, its curves, its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from optforge.search.training import loop
from optforge.search.training.guard import Clip, Guard, Tally
from optforge.search.training.lightning.settings import Settings, SettingsError
from optforge.search.training.task import batch_indices, initial_model, trainable
from optforge.search.training.trial import Outcome, Trial

MIXED = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names of precisions."""

_KEPT = ("losses", "valid_curve", "start", "seconds")  # of the run, in checkpoints


class TrainingRun(LightningModule):
    """A trial on its way to an outcome.

    Args:
        trial: what is trained.
        settings: how.
        checkpoint: file for checkpoints.

    Attributes:
        losses: training loss of each step that was begun.
        parts: losses of the batches of a step that is under way; empty after it.
        valid_curve: pairs of a number of steps and the validation loss after them, if the trial is watched.
        optimizer: the trial's.
        guard: what makes its steps, or None if it does so itself.
        tally: counts of the guard.
        log_every: steps between training losses that are logged, about 100 in all.
    """

    def __init__(self, trial: Trial, settings: Settings, checkpoint: Path | None = None) -> None:
        super().__init__()
        self.trial, self.settings, self.checkpoint = trial, settings, checkpoint
        self.model = initial_model(trial.task, trial.seed).to(trial.dtype)
        self.guard: Guard | None = None
        self.optimizer, self.scheduler = self._make()
        clip = Clip(trial.clip or None, settings.clip_value)
        if clip != Clip() or trial.precision in MIXED:
            scaler = GradScaler(loop.device().type) if trial.precision == "fp16" else None
            self.guard = Guard(self.optimizer, clip, scaler)
        self.tally = Tally() if self.guard is None else self.guard.tally
        self.log_every = max(1, trial.steps // 100)
        self.losses: list[float] = []
        self.valid_curve: list[tuple[int, float]] = []
        self.start = math.nan
        self.seconds = 0.0  # of the loop, with those before the checkpoint it went on from
        self._points = {index + 1 for index in loop.curve_points(trial.steps)} if trial.watch else set()
        self._began = 0.0
        self.parts: list[float] = []
        self._diverged, self._skipped = False, False
        self._reason = ""
        self._measured: loop.Measured | None = None

    def _make(self) -> tuple[Optimizer, LRScheduler | None]:
        optimizer = loop.optimizer_of(self.trial, trainable(self.model).values())
        return optimizer, loop.scheduler_of(self.trial, optimizer)

    def plugins(self) -> list[Any]:
        """Lightning's plugin for less precision than 32 bits, if asked for, whose scaler is that of the guard."""
        name: Any = MIXED.get(self.trial.precision)
        if self.guard is None or name is None:
            return []
        return [MixedPrecision(name, loop.device().type, self.guard.scaler)]  # the name alone is bfloat16 on any CPU

    def configure_model(self) -> None:
        """Divide parameters, gradients and state among the devices, if asked to: each layer, then the rest."""
        if self.settings.strategy != "fsdp":
            return
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for layer in _layers(self.model):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh, reshard_after_forward=True)  # weights may be exchanged between passes
        self.optimizer, self.scheduler = self._make()  # the parameters are others now
        if self.guard is not None:
            self.guard.optimizer = self.optimizer

    def configure_optimizers(self) -> Any:
        """The optimizer of all parameters, and its schedule if there is one."""
        if self.scheduler is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def train_dataloader(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that are left, of which each device takes its share."""
        return self.batches(self.global_rank, self.trainer.world_size)

    def batches(self, process: int = 0, processes: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of the batches that are left; of several processes each has every so many examples."""
        trial, parts = self.trial, self.settings.accumulate
        train, size = trial.task.data().train, trial.task.batch_size
        indices = batch_indices(len(train), size, trial.steps, trial.seed).reshape(-1, size // parts)
        return (train.batch(at[process::processes]) for at in indices[len(self.losses) * parts :])

    def on_train_start(self) -> None:
        """Measure where training begins, and begin to measure time."""
        if not self.losses:
            self.start = self._valid()[0]
        self._began = time.perf_counter() - self.seconds

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, 0-dimensional; one that is not finite ends the run after this step, unless guarded."""
        inputs, targets = batch
        dtype = self.trial.dtype
        loss: Tensor = self.trial.task.loss(self.model(loop.as_dtype(inputs, dtype)).to(dtype), targets)
        self.parts.append(float(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")))
        lost = self.guard is None and not math.isfinite(self.parts[-1])
        if lost or len(self.parts) == self.settings.accumulate:
            self.losses.append(sum(self.parts) / len(self.parts))
            self.parts.clear()
        if lost:
            self._diverged = self.trainer.should_stop = True
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step as Lightning makes it, or as the guard does, which may skip it."""
        assert optimizer_closure is not None
        if self.guard is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        optimizer_closure()
        try:
            self._skipped = not self.guard.step()
        except FloatingPointError:
            self._diverged = self.trainer.should_stop = True
            self._reason = f"the gradients of many steps up to step {len(self.losses)} were not finite"

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Go on in the schedule; a step that was skipped does not count."""
        if not self._skipped:
            scheduler.step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log losses, look at the validation data and keep a checkpoint when it is time."""
        if self.parts:
            return
        step, scalars = len(self.losses), {}
        if step % self.log_every == 0 or step == 1:
            scalars["loss/train"] = self.losses[-1]
        if step in self._points and not self._diverged:
            scalars["loss/valid"], accuracy = self._valid()
            scalars |= {} if accuracy is None else {"accuracy/valid": accuracy}
            self.valid_curve.append((step, scalars["loss/valid"]))
        if scalars:
            for logger in self.loggers:
                logger.log_metrics(scalars, step)
        every = self.settings.checkpoint_every
        due = every > 0 and (step % every == 0 or step == self.trial.steps)
        if self.checkpoint is not None and due and not self._diverged:
            self.trainer.save_checkpoint(self.checkpoint)

    def on_train_end(self) -> None:
        """Measure the final weights, while they are where they were trained."""
        self.seconds = time.perf_counter() - self._began
        if not self._diverged:
            self._measured = loop.measure(self.trial, self.model, self.optimizer)

    def outcome(self) -> Outcome:
        """What came of the trial, once Lightning has ended."""
        if self._measured is None and not self._diverged:  # nothing was left to train after the last checkpoint
            self._measured = loop.measure(self.trial, self.model, self.optimizer)
        watched = [loss for _, loss in self.valid_curve]
        found = loop.outcome_of(self.trial, self.losses, watched, self._measured, self.start, self.seconds)
        return replace(found, reason=self._reason or found.reason)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add curves and counts; weights, optimizer, schedule, callbacks and place among the batches Lightning adds."""
        self.seconds = time.perf_counter() - self._began
        kept = {name: getattr(self, name) for name in _KEPT} | {"steps": self.trial.steps}
        checkpoint["optforge"] = kept | {"guard": None if self.guard is None else self.guard.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take curves and counts back.

        Raises:
            SettingsError: if the checkpoint is that of another training, or of a run of another length.
        """
        kept = checkpoint.get("optforge")
        if kept is None or kept["steps"] != self.trial.steps:
            told = "is not one of optforge train" if kept is None else f"is of a run of {kept['steps']} steps"
            raise SettingsError(f"the checkpoint {told}; go on with the options that the run was begun with")
        for name in _KEPT:
            setattr(self, name, kept[name])
        if self.guard is not None:
            self.guard.load_state_dict(kept["guard"])

    def _valid(self) -> tuple[float, float | None]:
        with loop.evaluated(self.trial, self.optimizer):
            return loop.evaluate(self.model, self.trial.task, self.trial.task.data().valid)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules with parameters in the outermost sequences of `module`, such as the blocks of a transformer."""
    for child in module.children():
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            yield from _layers(child)
        elif next(child.parameters(), None) is not None:
            yield child
