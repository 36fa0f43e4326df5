"""Single runs as `optforge train` makes them, with everything that is reported of one within reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optforge.baselines import averaged, is_schedule_free
from optforge.experiments.training.moves import History
from optforge.experiments.training.train import train as train_trial
from optforge.experiments.training.train import training_of
from optforge.learned.meta.weights import Learned
from optforge.primitives import Program
from optforge.search.training import Task
from optforge.search.training.trial import Outcome, Rule


@dataclass(frozen=True)
class Made(Rule):
    """A rule of any function that makes an optimizer, as the classes of `torch.optim` do."""

    factory: Callable[..., Optimizer]

    @property
    def text(self) -> str:
        return repr(self.factory)

    def optimizer(self, params: Iterable[Tensor], lr: float, steps: int) -> Optimizer:
        return self.factory(params, lr=lr)

    def evaluated(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        return averaged(optimizer) if is_schedule_free(optimizer) else nullcontext()


@dataclass(frozen=True)
class Trained:
    """An outcome and what was noted beside it."""

    outcome: Outcome
    noted: Mapping[str, Any]

    @property
    def curve(self) -> list[float]:
        return self.noted["curve"]

    @property
    def valid_curve(self) -> list[tuple[int, float]]:
        return self.noted["valid_curve"]

    @property
    def learned(self) -> dict[str, float]:
        return self.noted["learned"]

    @property
    def steps(self) -> int:
        return len(self.curve)

    def loss(self, split: str = "valid") -> float:
        return self.outcome.loss[split]


def train(
    task: Task,
    rule: Program | Learned | Callable[..., Optimizer],
    lr: float = 1e-3,
    *,
    folder: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> Trained:
    """Train once; `options` are those of `training_of`."""
    what = rule if isinstance(rule, Program | Learned) else Made(rule)
    trial, settings = training_of(task, what, lr, **options)
    history = History()
    outcome = train_trial(trial, settings, folder=folder, history=history, progress=progress, resume=resume)
    run = history.run
    noted = {"curve": run.losses, "valid_curve": run.valid_curve, "learned": history.learned, "moves": history.moves}
    return Trained(outcome, noted | {"skipped": run.tally.skipped, "clipped": int(run.tally.clipped)})
