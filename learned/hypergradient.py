"""The learning rate as a parameter: hypergradient descent for any program.

A step with rate α moves the parameters by -α·u. The loss that the *next* step sees therefore depends on α,
with derivative ∂L/∂α = -⟨g, u⟩: next gradient times last update. No second backward pass is needed. (Baydin
et al. 2018, Online Learning Rate Adaptation with Hypergradient Descent, for a general update; the idea is
Almeida's, 1999.) Other hyperparameters follow in the same way, with the derivative of the update with respect to
them in place of u (see `learned.derivative`).

`learned.watch` measures these products in the step itself, and `learned.rules` says how a rate follows them, which
`learned.following` does. Variant: what a step shows moves the rate of the next one, not its own, so that one pass over
memory does everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.learned.choices import WHAT, chosen
from optforge.learned.following import FollowingOptimizer
from optforge.learned.group_state import complete
from optforge.learned.measured import Moved
from optforge.learned.numeric import quiet
from optforge.learned.rules import RULES, starts
from optforge.primitives import Program, ProgramError
from optforge.primitives.parameters import is_sharded


class LearnedOptimizer(FollowingOptimizer):
    """A program trained with hyperparameters that it learns on the way; see the module for how.

    The rate of a step is ``group["lr"] · global · group · tensor``: the scheduler's value times learned factors, which
    begin at 1 and live apart from it, as logarithms. The factor of a group or a tensor learns how it differs from its
    parent's, and shrinks towards it. A step that shows what is not finite changes nothing that is learned. Costs no
    synchronisation with the device.

    With the rule ``two-sided``, the rate is also bounded from above before the first step, and gradients of more than
    10 times their usual norm are scaled down to it. Where ``step(closure)`` tells the loss, it falls back to the given
    rate if that does better (see `learned.losses`); of other rules only `polyak` listens. A loss or a gradient that is
    not finite gets one RuntimeWarning (on a CPU, where it is known at once).

    Args:
        params, program, lr, options: as for `ProgramOptimizer`. Rates must be positive.
        what: what to learn: ``lr``, and names of the program's hyperparameters, which move on their own scale.
        per: what has a learning rate of its own: ``"global"``, ``"group"`` or ``"tensor"``.
        rule: a key of `learned.rules.RULES`, or ``"towerN"`` for a tower of N levels.
        hyper_lr: κ of the rule; by default that of its row. 0 switches learning off.
        every: after the first 200 steps, learn from one in so many, which makes the others as fast as the program's own
            if only `lr` is learned; by default that of the rule's row then, else 1.

    Raises:
        ProgramError: at construction, for anything that is unknown or out of range, or for sharded parameters.

    Attributes:
        hypergradient: derivative of the last step's loss with respect to the learned rate of the step before, or None.
    """

    def __init__(
        self,
        params: ParamsT,
        program: Program,
        lr: float = 1e-3,
        *,
        what: Sequence[str] = WHAT,
        per: str = "global",
        rule: str = "two-sided",
        hyper_lr: float | None = None,
        every: int | None = None,
        **options: Any,
    ) -> None:
        self.what, self.per, self.rule, self.hyper_lr, self.every = chosen(what, per, rule, hyper_lr, every)
        if options.get("differentiable"):
            raise ProgramError("learned rates are no functions of the inputs; choose learning or differentiable")
        self._start()
        self.hypergradient = None
        if isinstance(program, Program):
            self._watched(program)  # refuses names, before torch takes over
        super().__init__(params, program, lr, **options)

    def _start(self) -> None:
        super()._start()
        self._probed, self._heard, self._norm_known, self._warned, self._seen_binds = False, False, False, False, 0
        self._moved, self._measured = None, None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `ProgramOptimizer` does; it takes over what has been learned so far."""
        lr, own = param_group.get("lr", self.defaults["lr"]), set(param_group)
        if (isinstance(lr, int | float) or (isinstance(lr, Tensor) and lr.numel() == 1)) and not lr > 0:
            raise ProgramError(f"lr must be positive to be learned, got {lr!r}")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
        except ProgramError:
            self.param_groups.pop()
            raise
        self._complete(group)
        for name in self._others:
            if len(self.param_groups) > 1 and name not in own and name in self.param_groups[0]:
                group[name] = self.param_groups[0][name]

    def _check(self, group: dict[str, Any]) -> None:
        if any(is_sharded(p) for p in group["params"]):
            raise ProgramError("a rate cannot be learned from shards of parameters; learn it without sharding them")
        for hyper in self._hypers():
            if hyper.name in self.what and not starts(hyper.scale, value := float(group[hyper.name])):
                raise ProgramError(f"{hyper.name} is {value:g}, and would stay so; learn from another value")

    def __getstate__(self) -> dict[str, Any]:
        own = ("per", "rule", "hyper_lr", "every", "hypergradient")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._complete(group)

    def _complete(self, group: dict[str, Any]) -> None:
        complete(group, self.param_groups[0], self.rule, self.what, float(self.defaults["lr"]))

    def learned_values(self) -> dict[str, float]:
        """Each learned quantity by name: `lr` is the first group's rate before a scheduler's share in it."""
        first = self.param_groups[0]
        rate = first["base_lr"] * math.exp(float(first["learning"]["log"]))
        return {name: rate if name == "lr" else float(first[name]) for name in self.what}

    def learned_rates(self) -> dict[str, float]:
        """The rate of each group or tensor as learned, ``lr/NAME``; nothing, if all have the same."""
        found = {}
        for number, group in enumerate(self.param_groups) if self.per != "global" else ():
            rate = group["base_lr"] * math.exp(float(group["learning"]["log"]))
            if self.per == "group":
                found[f"lr/group{number}"] = rate
                continue
            names = group.get("param_names", [f"group{number}.{i}" for i in range(len(group["params"]))])
            for name, p in zip(names, group["params"], strict=True):
                factor = self.state[p].get(self._watch(p).factor, 1.0) if p in self.state else 1.0
                found[f"lr/{name}"] = rate * float(factor)
        return found

    # a step

    def _rate(self, group: dict[str, Any]) -> Tensor:
        return super()._rate(group) * group["log_factor"].exp()

    @quiet
    def _before_step(self, ready: list[list[Tensor]]) -> None:
        """What must be known before the first parameter moves: how large the gradients and the first step are."""
        self._until = self._until_learning()
        self.resting = self._until > 1
        super()._before_step(ready)
        if self._moved is None or not self._moved.holds(ready):
            self._moved, self._measured = Moved(ready), None
        for group in self.param_groups:
            group["log_factor"] = group["learning"]["log"]
        if self.rule == "polyak" and self.hyper_lr and not self._heard:
            raise ProgramError(
                "rule 'polyak' needs the loss: call optimizer.step(closure), in one process, and return one number"
            )
        if self._guarded:
            self._guard(self._moved)

    def _move(self, ready: list[list[Tensor]]) -> None:
        super()._move(ready)
        self.hypergradient = None
        assert self._moved is not None
        now = self.param_groups[0]["learning"]["steps"]
        steps = {"steps": now + 1}
        if self._until == 0:
            self._learn(self._moved)
            steps["moved"] = now
        for group in self.param_groups:
            group["applied_lr"] = float(group["lr"])
            group["learning"] = group["learning"] | steps
        self._heard = False


def learn(
    params: ParamsT,
    program: Program,
    lr: float = 1e-3,
    *,
    what: Sequence[str] = WHAT,
    per: str = "global",
    rule: str = "two-sided",
    hyper_lr: float | None = None,
    every: int | None = None,
    **options: Any,
) -> LearnedOptimizer:
    """An optimizer for `params` that applies `program` and learns its learning rate, starting from `lr`.

    ::

        optimizer = learn(model.parameters(), BASELINES["adamw"].program, lr=1e-4)

    The arguments are those of `LearnedOptimizer`.
    """
    return LearnedOptimizer(
        params, program, lr, what=what, per=per, rule=rule, hyper_lr=hyper_lr, every=every, **options
    )


__all__ = ["RULES", "LearnedOptimizer", "learn"]
