"""The learning rate as a parameter: hypergradient descent for any program.

A step with rate α moves the parameters by −α·u. The loss that the *next* step sees therefore depends on α,
with derivative ∂L/∂α = −⟨g, u⟩: next gradient times last update. No second backward pass is needed. (Baydin
et al. 2018, Online Learning Rate Adaptation with Hypergradient Descent, the rule for a general update; the
idea is Almeida's, 1999.)

Two rules follow that derivative downhill:

- `additive`, α ← α + κ⟨g, u⟩, is Baydin's. Its useful κ depends on the size of the gradients, of the updates
  and of the model, over many orders of magnitude. Variant: one step at most halves or doubles the rate, where
  the original can jump to any value, also below zero.
- `multiplicative`, α ← α·exp(κ·cos(g, u)), is the same descent on log α with the derivative normalised by the
  lengths of both vectors. κ has no unit: one step changes the rate by at most the factor e^κ. Variant:
  Baydin's multiplicative rule has 1 + κ·cos in place of the exponential: the same to first order in κ.

What this does not do. The derivative looks one step ahead only: noise and curvature make short-sighted rates
too small in the long run (Wu et al. 2018, Understanding Short-Horizon Bias). Nor is there a cap: a rate that
is far too large falls by at most e^κ a step, and a network that the first such step has destroyed stays so.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from primitives import Program, ProgramError, ProgramOptimizer
from primitives.interpret import Stepped
from primitives.numbers import Numbers
from primitives.source import compile_step

WHAT = ("lr",)
PER = ("global",)
RULES: dict[str, float] = {"multiplicative": 0.02, "additive": 1e-7}
"""Names of the rules, each with the κ (`hyper_lr`) that is used unless another is given."""

_LIMIT = math.log(1e12)  # the factor stays within 1e-12 and 1e12, so that the rate is positive and finite
_DERIVATIVE = "update"  # a key of the optimizer's state that no slot can have, because the word is reserved


class LearnedOptimizer(ProgramOptimizer):
    """A program trained with a learning rate that it learns on the way; see the module for the rules.

    The rate of a step is ``group["lr"] · factor``. The factor starts at 1, is the same for all parameters,
    and is brought up to date once a step, before any parameter moves. A scheduler or a user may change
    ``group["lr"]`` as ever: the derivative takes its share into account. Where a gradient or its product with
    the last update is not finite, the factor stays as it is. It costs one buffer of the parameters' size, and
    no synchronisation with the device.

    Each parameter group holds, and `state_dict` saves, `log_factor` (0-dimensional, equal in all groups),
    `base_lr` (the group's rate at construction) and `applied_lr` (the rate before the factor at the last
    step). A checkpoint of a plain `ProgramOptimizer` loads too; learning then starts from the factor 1.

    Args:
        params, program, lr, options: as for `ProgramOptimizer`. Rates must be positive.
        what: hyperparameters to learn; so far ``("lr",)``.
        per: what has a value of its own; so far ``"global"``.
        rule: ``"multiplicative"`` or ``"additive"``.
        hyper_lr: κ of the rule; by default 0.02 and 1e-7. 0 switches learning off.

    Raises:
        ProgramError: at construction, for anything that is unknown or out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        program: Program,
        lr: float = 1e-3,
        *,
        what: Sequence[str] = WHAT,
        per: str = "global",
        rule: str = "multiplicative",
        hyper_lr: float | None = None,
        **options: Any,
    ) -> None:
        names = [what] if isinstance(what, str) else list(what)
        for name in names:
            _choose("learn", name, WHAT)
        if not names:
            raise ProgramError(f"nothing to learn was named; choose from: {', '.join(WHAT)}")
        _choose("learn per", per, PER)
        _choose("use rule", rule, RULES)
        self.rule = rule
        self.hyper_lr = RULES[rule] if hyper_lr is None else hyper_lr
        if not (isinstance(self.hyper_lr, int | float) and 0 <= self.hyper_lr < math.inf):
            raise ProgramError(f"hyper_lr must be a finite number of at least 0, got {hyper_lr!r}")
        if options.get("compile"):
            raise ProgramError("learning the rate needs the update itself, which a compiled step does not keep")
        self.hypergradient: Tensor | None = None
        """Derivative of the last step's loss with respect to the learned rate of the step before, or None."""
        super().__init__(params, program, lr, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `ProgramOptimizer` does; it takes over the factor learned so far."""
        lr = param_group.get("lr", self.defaults["lr"])
        if not isinstance(lr, Tensor) and isinstance(lr, int | float) and not lr > 0:
            raise ProgramError(f"lr must be positive to be learned, got {lr!r}")
        super().add_param_group(param_group)
        self._complete(self.param_groups[-1])

    def __getstate__(self) -> dict[str, Any]:
        own = ("rule", "hyper_lr", "hypergradient")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._complete(group)

    def _complete(self, group: dict[str, Any]) -> None:
        first = self.param_groups[0]
        group.setdefault("log_factor", first.get("log_factor", torch.zeros((), dtype=torch.float64)))
        group.setdefault("base_lr", float(group["lr"]))
        group.setdefault("applied_lr", float(group["lr"]))

    def learned_values(self) -> dict[str, float]:
        """Each learned quantity by name: `lr` is the first group's rate before a scheduler's share in it."""
        first = self.param_groups[0]
        return {"lr": first["base_lr"] * math.exp(float(first["log_factor"]))}

    def _rate(self, group: dict[str, Any]) -> Tensor:
        return super()._rate(group) * group["log_factor"].exp()

    def _before_step(self) -> None:
        """Move the factor, once for all parameters of this step."""
        self.hypergradient = None
        base = self.param_groups[0]["base_lr"]
        sums = self._products(base)
        if sums is not None:
            dot, gradient_square, update_square = sums
            self.hypergradient = -dot
            old = self.param_groups[0]["log_factor"].to(dot.device)
            if self.rule == "additive":
                change = torch.log1p((self.hyper_lr * dot / (base * old.exp())).clamp(-0.5, 1.0))
            else:
                change = self.hyper_lr * dot / (gradient_square.sqrt() * update_square.sqrt())
            usable = torch.isfinite(dot) & torch.isfinite(change)
            new = torch.where(usable, old + change, old).clamp(-_LIMIT, _LIMIT)
            for group in self.param_groups:
                group["log_factor"] = new  # not in place: a state_dict may hold the old one
        for group in self.param_groups:
            group["applied_lr"] = float(group["lr"])

    def _products(self, base: float) -> tuple[Tensor, Tensor, Tensor] | None:
        """⟨g, u⟩, ⟨g, g⟩ and ⟨u, u⟩ over all parameters that the last step moved, or None if there are none.

        `u` is the derivative of that step with respect to the learned rate: a group whose applied rate is a
        multiple of `base` counts with that multiple. Derivatives are dropped once used, so that a parameter
        that skips a step (it has no gradient) does not count in the next.
        """
        dots: list[Tensor] = []
        for group in self.param_groups:
            share = group["applied_lr"] / base
            for p in group["params"]:
                u = self.state[p].pop(_DERIVATIVE, None) if p in self.state else None
                if u is None or p.grad is None:
                    continue
                g, u = (_flat(-p.grad if group["maximize"] else p.grad), _flat(u))
                dots.append(torch.stack((share * (g @ u), g @ g, share**2 * (u @ u))).double())
        if not dots:
            return None
        dot, gradient_square, update_square = torch.stack([d.to(dots[0].device) for d in dots]).sum(0)
        return dot, gradient_square, update_square

    def _execute(self, p: Tensor, program: Program, inputs: dict[str, Tensor], numbers: Numbers) -> Stepped:
        """The step itself; keeps its derivative with respect to the rate, d(lr·update)/d(lr), for the next one.

        That is the update, unless the update reads the signal `lr`; then forward-mode differentiation gives it.
        """
        if "lr" not in program.live.names:
            stepped = super()._execute(p, program, inputs, numbers)
            fresh = type(program.update) is int  # a result of this step; a name would be changed by others
            self.state[p][_DERIVATIVE] = stepped.update if fresh else stepped.update.clone()
            return stepped

        def moved(lr: Tensor) -> tuple[Tensor, Stepped]:
            stepped = compile_step(program)({**numbers.values, **inputs, "lr": lr}, range(inputs["g"].ndim))
            return lr * stepped.update, stepped

        _load_forward_mode()
        rate = numbers.values["lr"]
        _, derivative, stepped = torch.func.jvp(moved, (rate,), (torch.ones_like(rate),), has_aux=True)  # type: ignore[misc]
        self.state[p][_DERIVATIVE] = derivative.detach().to(inputs["g"].dtype)
        return Stepped(*stepped)


def learn(
    params: ParamsT,
    program: Program,
    lr: float = 1e-3,
    *,
    what: Sequence[str] = WHAT,
    per: str = "global",
    rule: str = "multiplicative",
    hyper_lr: float | None = None,
    **options: Any,
) -> LearnedOptimizer:
    """An optimizer for `params` that applies `program` and learns its learning rate, starting from `lr`.

    ::

        optimizer = learn(model.parameters(), BASELINES["adamw"].program, lr=1e-4)

    The arguments are those of `LearnedOptimizer`.
    """
    return LearnedOptimizer(params, program, lr, what=what, per=per, rule=rule, hyper_lr=hyper_lr, **options)


@functools.cache
def _load_forward_mode() -> None:
    """Let torch set up forward-mode differentiation, which makes use of what it has itself deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is (deprecated|not supported)", DeprecationWarning)
        torch.func.jvp(torch.square, (torch.ones(()),), (torch.ones(()),))


def _choose(verb: str, name: object, known: Sequence[str] | dict[str, float]) -> None:
    if name not in known:
        raise ProgramError(f"cannot {verb} {name!r}; choose from: {', '.join(known)}")


def _flat(x: Tensor) -> Tensor:
    """As a vector of at least single precision, so that half-precision gradients do not overflow."""
    return x.reshape(-1).to(torch.promote_types(x.dtype, torch.float32))


__all__ = ["RULES", "LearnedOptimizer", "learn"]
