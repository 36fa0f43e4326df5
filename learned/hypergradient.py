"""The learning rate as a parameter: hypergradient descent for any program.

A step with rate α moves the parameters by -α·u. The loss that the *next* step sees therefore depends on α,
with derivative ∂L/∂α = -⟨g, u⟩: next gradient times last update. No second backward pass is needed. (Baydin
et al. 2018, Online Learning Rate Adaptation with Hypergradient Descent, for a general update; the idea is
Almeida's, 1999.) Other hyperparameters follow in the same way, with the derivative of the update with respect to
them in place of u (see `learned.derivative`).

`learned.watch` measures these products in the step itself, and `learned.rules` says how a rate follows them. Variant:
what a step shows moves the rate of the next one, not its own, so that one pass over memory does everything. A rate
moves most in the beginning; later on most steps may rest, and cost what they cost without learning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from learned.choices import WHAT, chosen
from learned.group_state import complete
from learned.guarded_optimizer import GuardedOptimizer
from learned.measured import Measured, Moved, placed
from learned.numeric import Number, kept, near, of, quiet, total
from learned.rules import RULES, Seen, named_rule, on_scale, starts, towards_parent
from learned.spikes import follow
from primitives import Program, ProgramError
from primitives.parameters import is_sharded

_LIMIT = math.log(1e12)  # a factor stays within 1e-12 and 1e12, so that a rate is positive and finite
_NOISE = 1e-12  # of a step's square, below which that of its derivative is rounding; of a decay's, on its scale
_HYPER_SHARE = 0.1  # of κ, for these
_BEGINNING = 200  # steps that all count


class LearnedOptimizer(GuardedOptimizer):
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
        ProgramError: at construction, for anything that is unknown or out of range, or for sharded parameters; in a
            step, if no parameter has a gradient.
    """

    _moved: Moved | None

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
        self.hypergradient: Tensor | None = None
        """Derivative of the last step's loss with respect to the learned rate of the step before, or None."""
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
        if any(self._dtype(p) is torch.float16 for p in group["params"]):
            raise ProgramError(
                "float16 cannot hold the sums that a rate is learned from: pass state_dtype=torch.float32, or keep the "
                "parameters in float32 and compute in float16 with torch.autocast"
            )
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
        if not any(self._ready):
            raise ProgramError("no parameter has a gradient: call loss.backward() before optimizer.step()")
        if self._moved is None or not self._moved.holds(ready):
            self._moved, self._measured = Moved(ready), None
        for group in self.param_groups:
            group["log_factor"] = group["learning"]["log"]
        if self.rule == "polyak" and self.hyper_lr and not self._heard:
            raise ProgramError("rule 'polyak' needs the loss: call optimizer.step(closure), in one process")
        if self._guarded:
            self._guard(self._moved)

    def _until_learning(self) -> int:
        """How many steps are between this one and one that moves what is learned, for which the last two measure."""
        first = self.param_groups[0]["learning"]
        beginning = first["steps"] < _BEGINNING or float(first["rising"])
        return 0 if beginning else self.every - 1 - first["steps"] % self.every

    def _stride(self) -> int:
        """Steps since what is learned has moved."""
        first = self.param_groups[0]["learning"]
        return max(1, first["steps"] - first["moved"])

    def _step(self) -> None:
        super()._step()
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

    @quiet
    def _learn(self, moved: Moved) -> None:
        """Move what is learned, by what the step has measured: for the next one."""
        base, device = self.param_groups[0]["base_lr"], moved.device
        if self._measured is None or not self._measured.kept or self._binds != self._seen_binds:
            states = [self.state[p] for p in moved.params]
            if self._measured is None or not self._measured.holds(states):
                self._measured = Measured(states, [self._watch(p) for p in moved.params], self.compile)
            self._seen_binds = self._binds
        states = self._measured.states
        sums, old = self._measured.rows(), self._measured.begun()
        if (g2 := total(sums["g2"])) != g2 and isinstance(g2, float):  # infinite may be a square that has overflowed
            self._warn("gradients, as of a loss of nan, are")
        if self._guarded and not self._norm_known:
            usual = near(self.param_groups[0]["learning"]["norm"], device)
            self._share(norm=follow(usual, total(sums["g2"]) ** 0.5, self._stride()))
        if old == []:
            return
        applied = [group["applied_lr"] / base for group in self.param_groups]
        share = moved.of_groups(applied)  # of the program's step
        numbers, watches, whole = moved.numbers, self._measured.watches, sums
        if old is not None:
            sums, share = {name: row[old] for name, row in sums.items()}, share[old]
            states, watches, numbers = [states[i] for i in old], [watches[i] for i in old], [numbers[i] for i in old]
        fresh = sums["stale"] == 0
        sums = {name: of(row).where(fresh, row, 0.0) for name, row in sums.items()}
        if "lr" in self.what:
            factors = []
            if self.per == "tensor":
                factors = [state[watch.factor] for state, watch in zip(states, watches, strict=True)]
                flat = torch.cat([f.view(1).to(device) for f in factors])
                share = share * near(flat.double(), device)
            dot, gu, u2 = share * sums["dot"], share * sums["gu"], share * share * sums["u2"]
            self._learn_rate(dot, sums["g2"], u2, gu, numbers, factors)
            if self._guarded:
                self._bound_from_above(moved, *(whole[name] for name in ("n2", "p2", "g2")))
        for name in self._others:
            have = [k for k, watch in enumerate(watches) if f"dot {name}" in watch.sums]
            if have and self.hyper_lr:
                own = near(placed(have, device), device)
                dot = total((share * sums[f"dot {name}"])[own])
                u2_own = total((share * share * sums[f"u2 {name}"])[own])
                step2 = total((share * share * sums["u2"])[own])
                cosine = Seen(dot, total(sums["g2"][own]), u2_own, None).cosine
                self._learn_hyper(name, cosine, of(cosine).divide(u2_own, step2))

    def _learn_rate(
        self, dot: Number, g2: Number, u2: Number, gu: Number, numbers: Sequence[int], factors: Sequence[Tensor]
    ) -> None:
        """Move the factors by the sums of each parameter, ``[n]``, given the numbers of their groups."""
        first, rule = self.param_groups[0], named_rule(self.rule)
        assert self._moved is not None
        device = self._moved.device
        memory = {name: near(value, device) for name, value in first["learning"]["memory"].items()}
        own = [near(group["learning"]["own"], device) for group in self.param_groups]
        common = near(first["learning"]["common"], device)
        do = of(common)
        told = self._losses(device)
        alpha = first["base_lr"] * do.exp(common)
        seen = Seen(total(dot), total(g2), total(u2), alpha, total(gu), told.last, told.lowest_loss)
        self.hypergradient = kept(-seen.dot)
        change, after = rule.step(memory, seen, self.hyper_lr)
        if self._guarded:  # greedy derivatives favour small rates: they do not undercut a trusted one
            trusted = near(first["learning"]["given"], device) > 0
            change = do.where(trusted, do.maximum(change, -do.clip(common, 0.0, _LIMIT)), change)
        usable = do.isfinite(seen.dot) & do.isfinite(change) & do.isfinite(sum(after.values(), change))
        new = {k: kept(do.where(usable, v, memory[k])) for k, v in after.items()}
        common = do.where(usable & (self.hyper_lr > 0), do.clip(common + change, -_LIMIT, _LIMIT), common)
        deviates = 0.1 * self.hyper_lr if self.per != "global" else 0.0
        for number, group in enumerate(self.param_groups):
            mine = [k for k, of in enumerate(numbers) if of == number] if deviates else []
            if mine:
                at = near(placed(mine, device), device)
                cosine = Seen(total(dot[at]), total(g2[at]), total(u2[at]), None).cosine
                own[number] = towards_parent(own[number], deviates * (cosine - seen.cosine))
            log = kept(do.clip(common + own[number], -_LIMIT, _LIMIT))
            learned = {"memory": new, "own": kept(own[number]), "common": kept(common), "log": log}
            group["learning"] = group["learning"] | learned
        if factors and deviates:
            logs = near(torch.cat([f.view(1).to(device) for f in factors]).double().log(), device)
            moved: Any = of(logs).exp(towards_parent(logs, deviates * (Seen(dot, g2, u2, None).cosine - seen.cosine)))
            for factor, value in zip(factors, moved, strict=True):
                factor.fill_(value) if factor.device == device else factor.copy_(kept(value))

    def _learn_hyper(self, name: str, cosine: Number, share: Number) -> None:
        """Move a hyperparameter in the space of its scale (see `primitives.kinds.SCALES`).

        `share` is the square of the derivative's norm over that of the step. Where the derivative with respect to a
        decay is 0, what is left of its terms, which are 1 / (1 - β) times the step, is rounding.
        """
        scale = self.scale(name)
        assert self._moved is not None
        do, device = of(cosine), self._moved.device
        for group in self.param_groups:
            value = near(torch.as_tensor(group[name], dtype=torch.float64), device)
            known = (share * (1 - value) ** 2 if scale == "unit" else share) > _NOISE
            move = do.where(do.isfinite(cosine) & known, _HYPER_SHARE * self.hyper_lr * cosine, 0.0)
            group[name] = kept(on_scale(scale, value, group["learning"]["start"][name], move))


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
