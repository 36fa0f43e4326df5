"""Steps with clipped gradients, and none with gradients that are not finite, for any optimizer and any precision."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim.optimizer import Optimizer

from primitives.parameters import whole

log = logging.getLogger("optforge")


@dataclass(frozen=True)
class Clip:
    """How gradients are clipped before a step; with both limits, by norm first.

    Attributes:
        norm: largest Euclidean norm of all gradients together: Pascanu et al. 2013, algorithm 1.
        value: largest magnitude of an element: Mikolov 2012.

    Raises:
        ValueError: if a limit is not a positive number.
    """

    norm: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("norm", self.norm), ("value", self.value)):
            if limit is not None and not 0 < limit < math.inf:
                raise ValueError(f"the limit of a gradient's {name} must be a positive number, got {limit}")


@dataclass
class Tally:
    """Counts of attempted steps: `skipped` ones left the parameters as they were, `clipped` ones were made.

    `norm` is that of the latest gradients, before clipping. It and `clipped` may be 0-dimensional tensors, so that
    counting need not wait for the device.
    """

    steps: int = 0
    skipped: int = 0
    clipped: int | Tensor = 0
    norm: float | Tensor | None = None


class Guard:
    """Make steps of an optimizer whose gradients are finite, clipped; skip, count and report all others.

    ::

        guard = Guard(optimizer, Clip(norm=1.0), GradScaler("cuda"))
        for inputs, targets in batches:
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = loss_of(model(inputs), targets)
            guard.scale(loss).backward()
            if guard.step():
                scheduler.step()

    A step is skipped if any gradient is infinite or not a number, by overflow in half precision or otherwise. Neither
    parameters nor state change then, not even the state's step number; each is told to the logger `optforge`, with
    level WARNING. A scaler lowers its scale (Micikevicius et al. 2018, §3.2).

    Args:
        optimizer: any; gradients must be whole, so call `step` once for each accumulated gradient.
        clip: limits of gradients, which hold after unscaling.
        scaler: of the loss, for float16.
        patience: after so many skipped steps in a row the weights themselves are past help.

    The Euclidean norm of all gradients decides, one number that is read from the device each step; where it overflows
    although no gradient does, the step is skipped as well.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        clip: Clip = Clip(),
        scaler: torch.amp.GradScaler | None = None,
        *,
        patience: int = 50,
    ) -> None:
        self.optimizer, self.clip, self.scaler, self.patience = optimizer, clip, scaler, patience
        self.tally = Tally()
        self._in_a_row = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def state_dict(self) -> dict[str, Any]:
        """All counts, and the state of the scaler."""
        tally = self.tally
        counts = {"steps": tally.steps, "skipped": tally.skipped, "clipped": int(tally.clipped), "row": self._in_a_row}
        return counts | {"scaler": None if self.scaler is None else self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the counts and the scale that `state_dict` gave."""
        tally = self.tally
        tally.steps, tally.skipped, tally.clipped = (state_dict[name] for name in ("steps", "skipped", "clipped"))
        self._in_a_row = state_dict["row"]
        if self.scaler is not None and state_dict["scaler"]:
            self.scaler.load_state_dict(state_dict["scaler"])

    @torch.no_grad()
    def step(self, loss: float | Tensor | None = None) -> bool:
        """Make a step, or skip it; returns whether it was made.

        Args:
            loss: of this step, unscaled, for optimizers that make use of it; they get it as what a closure returns.

        Raises:
            FloatingPointError: for the last of `patience` skipped steps in a row.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in params])
        self.tally.norm = float(whole(norm))
        self.tally.steps += 1
        finite = math.isfinite(self.tally.norm)
        if finite:
            self.tally.clipped += self._clip(params, norm)
            told = () if loss is None else (lambda: loss,)  # gradients are there already: it computes nothing
            if self.scaler is None:
                self.optimizer.step(*told)
            else:
                self.scaler.step(self.optimizer, *told)
        if self.scaler is not None:
            self.scaler.update()
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if not finite:
            self._skipped()
        return finite

    def _clip(self, params: list[Tensor], norm: Tensor) -> bool:
        clipped = False
        if self.clip.norm is not None:
            clipped = float(whole(norm)) > self.clip.norm
            clip_grads_with_norm_(params, self.clip.norm, norm)
        if self.clip.value is not None:
            largest = get_total_norm([p.grad for p in params if p.grad is not None], math.inf)
            clipped |= float(whole(largest)) > self.clip.value
            clip_grad_value_(params, self.clip.value)
        return clipped

    def _skipped(self) -> None:
        tally = self.tally
        tally.skipped += 1
        scale = "" if self.scaler is None else f", the loss is now scaled by {self.scaler.get_scale():g}"
        log.warning(
            "step %d skipped: gradients are not finite (%d of %d skipped so far%s)",
            tally.steps, tally.skipped, tally.steps, scale,
        )  # fmt: skip
        if self._in_a_row >= self.patience:
            raise FloatingPointError(
                f"the gradients of {self._in_a_row} steps in a row were not finite; go back to an earlier checkpoint, "
                "with a smaller learning rate or in higher precision"
            )
