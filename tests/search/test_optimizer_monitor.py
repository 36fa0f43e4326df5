"""The callback beside any Lightning module: with Lightning's own clipping, accumulation, scaler and manual steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader

from optforge.baselines import AdamW
from optforge.search.training.lightning.fit import quiet
from optforge.search.training.lightning.monitor import OptimizerMonitor


class Recorder(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        assert step is not None
        assert not self.seen.get(step, {}).keys() & metrics.keys(), "logged twice"
        self.seen.setdefault(step, {}).update(metrics)

    def of(self, tag: str) -> dict[int, float]:
        return {step: scalars[tag] for step, scalars in self.seen.items() if tag in scalars}


class Module(LightningModule):
    """One weight whose gradient is the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Two(Module):
    """Two optimizers, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
            self.manual_backward(((self.weight + 2 * self.bias) * batch).sum())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.weight], lr=0.5), AdamW([self.bias], lr=0.25)


def fit(module: LightningModule, values: list[float], callback: OptimizerMonitor, **options: Any) -> Recorder:
    logger = Recorder()
    with quiet():
        trainer = Trainer(
            max_steps=options.pop("max_steps", len(values)), logger=options.pop("logger", logger), callbacks=[callback],
            accelerator="cpu", log_every_n_steps=2, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, **options,
        )  # fmt: skip
        trainer.fit(module, DataLoader(torch.tensor(values)[:, None], batch_size=None))  # type: ignore[arg-type]
    return logger


VALUES = [1.0, 3.0, 2.0, 5.0, 4.0, 0.5]


def test_rates_and_observations_have_their_own_intervals() -> None:
    logger = fit(Module(), VALUES, OptimizerMonitor(every=3))
    assert logger.of("optimizer/lr") == {1: 0.5, 2: 0.5, 4: 0.5, 6: 0.5}
    assert logger.of("optimizer/grad_norm") == {1: 1.0, 3: 2.0, 6: 0.5}
    assert logger.of("optimizer/update_norm") == {1: 0.5, 3: 1.0, 6: 0.25}
    assert set(logger.of("optimizer/trust_ratio/weight")) == {1, 3, 6}


def test_clipping_of_the_trainer_is_counted() -> None:
    logger = fit(Module(), VALUES, OptimizerMonitor(every=3), gradient_clip_val=2.5)
    assert logger.of("optimizer/grad_norm_before_clip") == {1: 1.0, 3: 2.0, 6: 0.5}
    assert logger.of("optimizer/clipped_share") == pytest.approx({1: 0.0, 3: 1 / 2, 6: 2 / 3})
    assert logger.of("optimizer/skipped_share") == {1: 0.0, 3: 0.0, 6: 0.0}


def test_clipping_by_value_too() -> None:
    options: dict[str, Any] = {"gradient_clip_val": 2.5, "gradient_clip_algorithm": "value"}
    logger = fit(Module(), VALUES, OptimizerMonitor(every=2), **options)
    assert logger.of("optimizer/grad_norm_before_clip") == {1: 1.0, 2: 3.0, 4: 5.0, 6: 0.5}
    assert logger.of("optimizer/grad_norm") == {1: 1.0, 2: 2.5, 4: 2.5, 6: 0.5}
    assert logger.of("optimizer/clipped_share") == pytest.approx({1: 0.0, 2: 1.0, 4: 1 / 2, 6: 1 / 2})


def test_steps_that_a_scaler_skips_are_counted() -> None:
    """Steps 1, 3 and 4 overflow; the optimizer made the others, its first, second and third."""
    values = [math.inf, 1.0, math.inf, math.inf, 2.0, 3.0]
    precision = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=4.0))
    logger = fit(Module(), values, OptimizerMonitor(every=1), plugins=[precision], gradient_clip_val=2.5)
    assert logger.of("optimizer/grad_norm_before_clip") == {2: 1.0, 5: 2.0, 6: 3.0}
    assert logger.of("optimizer/skipped_share") == pytest.approx({2: 1 / 2, 5: 2 / 3, 6: 0.0})
    assert logger.of("optimizer/clipped_share") == {2: 0.0, 5: 0.0, 6: 1.0}


def test_accumulated_batches_are_one_step() -> None:
    logger = fit(Module(), VALUES, OptimizerMonitor(every=1), max_steps=3, accumulate_grad_batches=2)
    assert logger.of("optimizer/grad_norm") == {1: 2.0, 2: 3.5, 3: 2.25}
    assert logger.of("optimizer/lr") == {1: 0.5, 2: 0.5}


def test_several_optimizers_by_hand() -> None:
    logger = fit(Two(), VALUES[:3], OptimizerMonitor(every=1), max_steps=6)
    assert logger.of("optimizer0/grad_norm") == {2: 1.0, 4: 3.0, 6: 2.0}
    assert logger.of("optimizer1/grad_norm") == {2: 2.0, 4: 6.0, 6: 4.0}
    assert set(logger.of("optimizer1/momentum_norm")) == {2, 4, 6} and not logger.of("optimizer0/momentum_norm")
    assert logger.of("optimizer0/lr") == {2: 0.5, 4: 0.5, 6: 0.5}
    assert set(logger.of("optimizer1/skipped_share").values()) == {0.0}


def test_nothing_is_observed_without_a_logger_and_nothing_remains() -> None:
    module, callback = Module(), OptimizerMonitor(every=1)
    fit(module, VALUES, callback, logger=False)
    assert callback.monitors == []
    callback = OptimizerMonitor(every=1)
    fit(module, VALUES, callback)
    assert not callback.monitors[0].optimizer._optimizer_step_pre_hooks  # type: ignore[attr-defined]


def test_hooks_are_taken_off_after_an_error() -> None:
    class Broken(Module):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 2:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    callback = OptimizerMonitor(every=1)
    with pytest.raises(RuntimeError, match="broken"):
        fit(Broken(), VALUES, callback)
    assert not callback.monitors[0].optimizer._optimizer_step_pre_hooks  # type: ignore[attr-defined]


def test_a_callback_serves_again() -> None:
    callback = OptimizerMonitor(every=2)
    first, second = (fit(Module(), VALUES, callback, gradient_clip_val=2.5) for _ in range(2))
    assert first.seen == second.seen and first.seen


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="every must be a number of steps, or 0 for none, got -1"):
        OptimizerMonitor(every=-1)
