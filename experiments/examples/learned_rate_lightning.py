"""A learned learning rate in a LightningModule: ``python -m experiments.examples.learned_rate_lightning``."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optforge.baselines import BASELINES
from optforge.learned import LearnedOptimizer, learn


class Sine(LightningModule):
    """A small network that fits a sine."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))
        self.lr = lr

    def configure_optimizers(self) -> LearnedOptimizer:
        """All that a learned rate takes: `learn` in place of an optimizer of torch."""
        return learn(self.parameters(), BASELINES["adamw"].program, lr=self.lr)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Squared error of one batch; the learned rate is logged beside it."""
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, LearnedOptimizer)
        self.log_dict({"loss": loss, "rate": optimizer.learned_values()["lr"]})
        return loss


def main(steps: int = 300, lr: float = 1e-6) -> tuple[float, float]:
    """Train with Lightning; returns the last loss and the learned rate."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 256)[:, None]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Sine(lr), DataLoader(TensorDataset(x, x.sin()), batch_size=64, shuffle=True))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(f"loss {found['loss']:.4f} after {steps} steps; the rate went from {lr:g} to {found['rate']:.2g}")
    return found["loss"], found["rate"]


if __name__ == "__main__":
    main()
