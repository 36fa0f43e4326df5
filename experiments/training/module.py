"""The Lightning module of a training run: the loop's steps, its curves, its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from optforge.baselines import averaged, is_schedule_free
from optforge.experiments.errors import UserError
from optforge.experiments.progress import Report
from optforge.experiments.tasks.transformers import Block
from optforge.experiments.training.batches import RunBatches
from optforge.experiments.training.moves import moves
from optforge.experiments.training.options import PLAIN, RunOptions, device_type
from optforge.experiments.training.results import TRAINED
from optforge.learned import LearnedOptimizer
from optforge.search.training import Split, Task
from optforge.search.training.loop import evaluate
from optforge.search.training.task import initial_model

Factory = Callable[..., Optimizer]
"""Makes an optimizer of parameters and the keyword `lr`, as the classes of `torch.optim` do."""

_KEPT = ("curve", "valid_curve", "moves", "noted", "seconds")  # of the run, in checkpoints


class TrainingRun(LightningModule):
    """A task's model on its batches under one optimizer; keeps the curves of the run.

    Args:
        task: data, model and loss.
        factory: makes the optimizer.
        lr: learning rate given to it.
        seed: of the initial weights (see `search.training.task.initial_model`) and of the order of batches.
        steps: length of the run; about 100 points of the training curve and 10 of the validation curve are
            logged.
        options: schedule, clipping, accumulation, precision, devices and checkpoints.
        full_batch: make every batch the whole training split.
        checkpoint: file for checkpoints.
        report: is told the steps done and the latest loss.

    Attributes:
        measured: loss and accuracy of the final weights on each split, once training has ended.
        seconds: wall-clock time of the loop, with that before the checkpoint it went on from.
    """

    def __init__(
        self,
        task: Task,
        factory: Factory,
        lr: float,
        seed: int,
        steps: int,
        options: RunOptions = PLAIN,
        *,
        full_batch: bool = False,
        checkpoint: Path | None = None,
        report: Report = lambda done, words: None,
    ) -> None:
        super().__init__()
        self.task, self.steps, self.options, self.report = task, steps, options, report
        self.model = initial_model(task, seed)
        self.splits = task.data()
        self.batches = RunBatches(task, self.splits.train, steps * options.accumulate, seed, full_batch)
        self.make_optimizer = lambda: factory(self.model.parameters(), lr=lr, **options.hypers)
        self.optimizer = self.make_optimizer()
        self.guard, self.scheduler = options.guard(self.optimizer), options.scheduler(self.optimizer, steps)
        self.checkpoint = checkpoint
        self.log_every, self.validate_every = max(1, steps // 100), max(1, steps // 10)
        self.curve: list[float] = []
        self.valid_curve: list[tuple[int, float]] = []
        self.moves: list[tuple[int, str]] = []  # of what is learned
        self.noted = learned_values(self.optimizer)
        self.diverged = ""
        self.seconds = 0.0
        self.measured: list[tuple[float, float | None]] = []
        self._began = 0.0
        self._losses: list[float] = []  # of the batches of the present step
        self._skipped = False

    def precision(self) -> MixedPrecision | None:
        """Lightning's plugin for less precision than 32 bits, whose scaler is that of the guard."""
        name: Any = self.options.lightning_precision
        if self.guard is None or name == "32-true":
            return None
        return MixedPrecision(name, device_type(), self.guard.scaler)  # the name alone means bfloat16 on any CPU

    def configure_model(self) -> None:
        """Divide parameters, gradients and state among the devices, if asked to: each block, then the rest."""
        if self.options.strategy != "fsdp":
            return
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for module in self.model.modules():
            if isinstance(module, Block):
                fully_shard(module, mesh=mesh)
        fully_shard(self.model, mesh=mesh, reshard_after_forward=True)  # weights may be exchanged between passes
        self.optimizer = self.make_optimizer()  # the parameters are others now
        self.scheduler = self.options.scheduler(self.optimizer, self.steps)
        if self.guard is not None:
            self.guard.optimizer = self.optimizer

    def configure_optimizers(self) -> Any:
        """The optimizer of all parameters, and its schedule if there is one."""
        if self.scheduler is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def train_dataloader(self) -> RunBatches:
        """The batches, of which each device takes its share."""
        self.batches.share = self.global_rank, self.trainer.world_size
        return self.batches

    def on_train_start(self) -> None:
        """Begin to measure time."""
        self._began = time.perf_counter() - self.seconds

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, 0-dimensional; one that is not finite ends the run after this step, unless guarded."""
        inputs, targets = batch
        loss: Tensor = self.task.loss(self.model(inputs).float(), targets)
        self._losses.append(float(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")))
        lost = self.guard is None and not math.isfinite(self._losses[-1])
        if lost or len(self._losses) == self.options.accumulate:
            self.curve.append(sum(self._losses) / len(self._losses))
            self._losses.clear()
        if lost:
            self._end(f"the training loss was {self.curve[-1]} at step {len(self.curve)} of {self.steps}")
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
            self._end(f"the gradients of many steps up to step {len(self.curve)} of {self.steps} were not finite")

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Go on in the schedule; a step that was skipped does not count."""
        if not self._skipped:
            scheduler.step()

    def _end(self, reason: str) -> None:
        self.diverged = f"{reason}; try a smaller lr"
        self.trainer.should_stop = True

    def evaluate(self, split: Split, limit: int | None = None) -> tuple[float, float | None]:
        """Loss and accuracy on `split`, of the averaged weights where it is them that the optimizer trains."""
        with averaged(self.optimizer) if is_schedule_free(self.optimizer) else nullcontext():
            return evaluate(self.model, self.task, split, limit)

    def measure(self) -> list[tuple[float, float | None]]:
        """Loss and accuracy on each split."""
        return [self.evaluate(self.splits.train, TRAINED), *map(self.evaluate, self.splits[1:])]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the curves, look at the validation data and keep a checkpoint when it is time."""
        if self._losses:
            return
        step, scalars = len(self.curve), {}
        if step == 1 or step % self.log_every == 0 or self.device.type == "cpu":  # elsewhere to look is to wait
            self._explain(step)
        if step % self.log_every == 0 or step == 1:
            learned = "".join(f", {name} {value:.2g}" for name, value in learned_values(self.optimizer).items())
            self.report(step, f"loss {self.curve[-1]:.4f}{learned}")
            scalars["loss/train"] = self.curve[-1]
        if step % self.validate_every == 0:
            scalars["loss/valid"], accuracy = self.evaluate(self.splits.valid)
            scalars |= {} if accuracy is None else {"accuracy/valid": accuracy}
            self.valid_curve.append((step, scalars["loss/valid"]))
        if scalars:
            for logger in self.loggers:
                logger.log_metrics(scalars, step)
        every = self.options.checkpoint_every
        due = every > 0 and (step % every == 0 or step == self.steps)
        if self.checkpoint is not None and due and not self.diverged:
            self.trainer.save_checkpoint(self.checkpoint)

    def _explain(self, step: int) -> None:
        """Note why what is learned moved, in TensorBoard as text."""
        if not isinstance(self.optimizer, LearnedOptimizer):
            return
        for sentence in moves(self.optimizer, self.noted):
            self.moves.append((step, sentence))
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("learned/moves", sentence, step)

    def on_train_end(self) -> None:
        """Measure the final weights, while they are where they were trained."""
        self.seconds = time.perf_counter() - self._began
        self.measured = self.measure()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the curves and counts; weights, optimizer, schedule and place among the batches Lightning adds."""
        self.seconds = time.perf_counter() - self._began
        kept = {name: getattr(self, name) for name in _KEPT} | {"steps": self.steps}
        checkpoint["optforge"] = kept | {"guard": None if self.guard is None else self.guard.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the curves and counts back.

        Raises:
            UserError: if the checkpoint is that of another training, or of a run of another length.
        """
        kept = checkpoint.get("optforge")
        if kept is None or kept["steps"] != self.steps:
            told = "is not one of optforge train" if kept is None else f"is of a run of {kept['steps']} steps"
            raise UserError(f"the checkpoint {told}; go on with the options that the run was begun with")
        for name in _KEPT:
            setattr(self, name, kept[name])
        if self.guard is not None:
            self.guard.load_state_dict(kept["guard"])


def learned_values(optimizer: object) -> dict[str, float]:
    """Current value of everything that an optimizer learns; empty for those that learn nothing."""
    values: Callable[[], dict[str, float]] = getattr(optimizer, "learned_values", dict)
    return values()
