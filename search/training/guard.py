"""Steps with clipped gradients, and none with gradients that are not finite, for any optimizer and any precision."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim.optimizer import Optimizer

from optforge.primitives.parameters import whole

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


@dataclass
class _Round:
    """The guards that share a scaler, and those that have made or skipped a step since its scale was last updated."""

    guards: WeakSet[Guard] = field(default_factory=WeakSet)
    done: WeakSet[Guard] = field(default_factory=WeakSet)


_ROUNDS: WeakKeyDictionary[torch.amp.GradScaler, _Round] = WeakKeyDictionary()


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

    Guards may share a scaler, as those of the two optimizers of a GAN. Its scale is updated once all of them have
    stepped, or when `scale` is called for one that has.

    Args:
        optimizer: any, for sparse gradients, too; gradients must be whole, so call `step` once for each accumulated
            gradient.
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
        if scaler is not None:
            _ROUNDS.setdefault(scaler, _Round()).guards.add(self)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on."""
        if self.scaler is None:
            return loss
        if self in self._round.done:
            self._update()
        return self.scaler.scale(loss)

    @property
    def _round(self) -> _Round:
        assert self.scaler is not None
        return _ROUNDS.setdefault(self.scaler, _Round(WeakSet([self])))

    def _update(self) -> None:
        assert self.scaler is not None
        self.scaler.update()
        self._round.done.clear()

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
    def step(self) -> bool:
        """Make a step, or skip it; returns whether it was made.

        Raises:
            FloatingPointError: for the last of `patience` skipped steps in a row.
        """
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaler = self.scaler if params else None  # which cannot do without gradients, as after a batch left out
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        held = [one for one in map(_held, params) if one.grad.numel()]
        norm = get_total_norm([one.grad for one in held])
        self.tally.norm = float(whole(norm))
        self.tally.steps += 1
        finite = math.isfinite(self.tally.norm)
        if finite:
            self.tally.clipped += bool(held) and self._clip(held, norm)
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
        if scaler is not None:
            self._round.done.add(self)
            if self._round.done >= self._round.guards:
                self._update()
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if not finite:
            self._skipped()
        return finite

    def _clip(self, held: list[Any], norm: Tensor) -> bool:
        clipped = False
        if self.clip.norm is not None:
            clipped = float(whole(norm)) > self.clip.norm
            clip_grads_with_norm_(held, self.clip.norm, norm)
        if self.clip.value is not None:
            largest = get_total_norm([one.grad for one in held], math.inf)
            clipped |= float(whole(largest)) > self.clip.value
            clip_grad_value_(held, self.clip.value)
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


class _Held(NamedTuple):
    """What torch's functions for clipping read of a parameter."""

    grad: Tensor


def _held(p: Tensor) -> _Held:
    """The gradient of `p`; of a sparse one its elements, which are summed up first where some come twice."""
    if p.grad is not None and p.grad.layout is torch.sparse_coo:
        p.grad = p.grad.coalesce()
    assert p.grad is not None
    return _Held(p.grad if p.grad.layout is torch.strided else p.grad.values())
