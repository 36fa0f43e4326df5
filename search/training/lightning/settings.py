"""What Lightning needs to know of a run beyond its trial."""

from __future__ import annotations

from dataclasses import dataclass

from optforge.search.training.guard import Clip
from optforge.search.training.monitor import EVERY

STRATEGIES = ("auto", "ddp", "fsdp")
"""How several devices work together."""


class SettingsError(ValueError):
    """A run cannot be made, or resumed, as it was asked for; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """How a trial is trained with Lightning; the defaults train as the trial says, and change nothing.

    Attributes:
        clip_value: largest magnitude of an element of a gradient, see `search.training.guard.Clip`.
        accumulate: parts of each batch whose gradients are averaged for one step, to save memory.
        devices: how many of them share each part; processes, where there is no accelerator.
        strategy: ``"ddp"`` for a whole model on each device; ``"fsdp"`` divides parameters, gradients and state among
            them; ``"auto"`` is the former where there are several.
        checkpoint_every: steps between checkpoints; 0 for none. The last step has one, too.
        monitor: steps between observations of the optimizer for loggers; 0 for none.

    With clipping or less precision, a step whose gradients are not finite is skipped and counted; otherwise a loss
    that is not finite ends the run.

    Raises:
        SettingsError: for a value that does not exist or fit.
    """

    clip_value: float | None = None
    accumulate: int = 1
    devices: int = 1
    strategy: str = "auto"
    checkpoint_every: int = 0
    monitor: int = EVERY

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise SettingsError(f"at least 1 batch must be accumulated for a step, got {self.accumulate}")
        if min(self.monitor, self.checkpoint_every) < 0:
            raise SettingsError("the steps between observations and between checkpoints must be at least 0")
        if self.strategy not in STRATEGIES:
            raise SettingsError(f"unknown strategy {self.strategy!r}; there are: {', '.join(STRATEGIES)}")
        if self.devices < 1:
            raise SettingsError(f"at least 1 device must train, got {self.devices}")
        try:
            Clip(value=self.clip_value)
        except ValueError as error:
            raise SettingsError(str(error)) from None


PLAIN = Settings()
"""The defaults."""
