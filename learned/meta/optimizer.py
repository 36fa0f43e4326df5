"""Learned rules as `torch.optim.Optimizer`."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from optforge.learned.meta.weights import Learned, load
from optforge.learned.rate import averaged
from optforge.primitives import ProgramError
from optforge.primitives.parameters import with_gradients

HYPER_RATE = 0.02
"""κ that is usual for a learned rate on top of a meta-trained rule."""


class MetaOptimizer(Optimizer):
    """Train with a meta-trained rule: ``p ← p − lr · update``.

    ::

        optimizer = MetaOptimizer(model.parameters(), "lstm-classifiers")

    Args:
        params: parameters or groups of them, in float32 or float64; a group may have its own `lr`.
        learned: a rule with its weights, the name of shipped ones, or a file (see `learned.meta.weights.load`).
        lr: multiplies the update. 1 is what the rule was trained with.
        learn_lr: κ with which a further factor of all rates is learned on the way, by the hypergradient of the loss
            with respect to it (see `learned.rate`); 0 for none, 0.02 is usual. Costs one copy of the parameters, for
            the last step.

    Raises:
        ProgramError: at construction for weights that do not fit and rates out of range; in `step`, before anything
            has moved, for gradients that are sparse, complex or not finite.
    """

    def __init__(
        self,
        params: ParamsT,
        learned: Learned | str | Path = "lstm-classifiers",
        lr: float = 1.0,
        learn_lr: float = 0.0,
    ) -> None:
        self.learned = learned if isinstance(learned, Learned) else load(learned)
        if isinstance(learn_lr, bool) or not (isinstance(learn_lr, int | float) and 0 <= learn_lr < math.inf):
            raise ProgramError(f"learn_lr must be a finite number of at least 0, got {learn_lr!r}")
        self.learn_lr = float(learn_lr)
        self._weights: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, refusing rates that are negative or not finite, and other dtypes."""
        lr = param_group.get("lr", self.defaults["lr"])
        if isinstance(lr, bool) or not (isinstance(lr, int | float) and 0 <= lr < math.inf):
            raise ProgramError(f"lr must be a finite number of at least 0, got {lr!r}; 1 is what the rule learned")
        if param_group.get("maximize"):
            raise ProgramError("learned rules minimise; in place of maximize=True, change the sign of the loss")
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dtype not in (torch.float32, torch.float64):
                self.param_groups.pop()
                raise ProgramError(
                    f"learned rules train parameters in float32 or float64, got {p.dtype}; for mixed precision keep "
                    "the parameters in float32 and use autocast"
                )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"learned": self.learned, "learn_lr": self.learn_lr}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._weights = {}

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with what must agree when it is loaded: the kind of rule and its settings."""
        return super().state_dict() | {"rule": {"name": self.learned.rule.name, **self.learned.rule.settings}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does; `ProgramError`, before anything changes, if another rule left the checkpoint."""
        rule = self.learned.rule
        theirs, ours = state_dict.get("rule"), {"name": rule.name, **rule.settings}
        if theirs != ours:
            names = [k for k in ours if theirs is None or theirs.get(k) != ours[k]]
            raise ProgramError(f"this checkpoint is not of this learned rule: it differs in {', '.join(names)}")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "rule"})

    @torch._disable_dynamo  # as of hand-written optimizers: torch.compile mixes up what has the same shapes
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = with_gradients(self.param_groups)
        if not any(ready):
            return loss
        for group in self.param_groups:
            if not math.isfinite(group["lr"]):
                raise ProgramError(f"lr has become {group['lr']}; it must be a finite number, and nothing has moved")
        self._check(list(chain.from_iterable(ready)))
        factor = self._factor(ready) if self.learn_lr else 1.0
        for group, params in zip(self.param_groups, ready, strict=True):
            together: dict[tuple[float, torch.dtype, torch.device], list[Tensor]] = {}
            for p in params:
                state = self.state[p]
                if not state:
                    state |= {"step": torch.zeros((), dtype=torch.float32), **self.learned.rule.init(p)}
                state["step"] += 1
                together.setdefault((state["step"].item(), p.dtype, p.device), []).append(p)
            for (step, dtype, device), some in together.items():
                self._move(some, step, self._cast(dtype, device), group["lr"] * factor)
        return loss

    def _move(self, params: list[Tensor], step: float, weights: dict[str, Tensor], lr: float) -> None:
        rule = self.learned.rule
        states = [{k: v for k, v in self.state[p].items() if k not in ("step", "last")} for p in params]
        at = torch.tensor(step, dtype=torch.float64)
        updates, after = rule.step(weights, params, [p.grad for p in params], states, at)  # type: ignore[misc]
        for p, update, state in zip(params, updates, after, strict=True):
            # slices of a common tensor would be saved with all of it
            self.state[p].update({k: v.clone() for k, v in state.items()})
            p.sub_(lr * update)
            if self.learn_lr:
                self.state[p]["last"] = lr * update

    def _cast(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        if (dtype, device) not in self._weights:
            self._weights[dtype, device] = {k: w.to(device, dtype) for k, w in self.learned.weights.items()}
        return self._weights[dtype, device]

    @staticmethod
    def _check(params: list[Tensor]) -> None:
        for number, p in enumerate(params):
            if not torch.isfinite(p.grad).all():  # type: ignore[arg-type]
                raise ProgramError(
                    f"the gradient of parameter {number} of shape {tuple(p.shape)} is not finite, and would stay in "
                    "the memory of the rule; nothing has moved: leave this step out, or lower lr"
                )

    def learned_values(self) -> dict[str, float]:
        """The first group's learning rate as learned; nothing, if none is."""
        first = self.param_groups[0]
        return {"lr": float(first["lr"]) * self.learned_factor} if self.learn_lr else {}

    @property
    def learned_factor(self) -> float:
        """What `learn_lr` has made of all rates so far; 1 at first."""
        return math.exp(self.param_groups[0].get(FIELD, (0.0,))[0])

    def _factor(self, ready: list[list[Tensor]]) -> float:
        """The learned factor of this step: it follows the cosine of these gradients and the last step."""
        log, trace, weight = self.param_groups[0].setdefault(FIELD, (0.0, 0.0, 0.0))
        sums = torch.zeros(3, dtype=torch.float64)
        for p in chain.from_iterable(ready):
            last = self.state[p].get("last")
            if last is not None:
                g, u = p.grad.double(), last.double()  # type: ignore[union-attr]
                sums += torch.stack([(g * u).sum(), g.square().sum(), u.square().sum()]).cpu()
        dot, g2, u2 = sums.tolist()
        if g2 * u2 > 0:
            mean, trace, weight = averaged(trace, weight, dot / math.sqrt(g2 * u2))
            if math.isfinite(mean):
                log = min(max(log + self.learn_lr * mean, -_LIMIT), _LIMIT)
                self.param_groups[0][FIELD] = (log, trace, weight)
        return self.learned_factor


FIELD = "learned:factor"
"""Key of the first group for the logarithm of the learned factor, and what `learned.rate.averaged` keeps."""

_LIMIT = math.log(1e6)

__all__ = ["HYPER_RATE", "MetaOptimizer"]
