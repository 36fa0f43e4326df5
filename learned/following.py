"""How what is learned follows what a step has measured, in those steps that count.

A rate moves most in the beginning; later on most steps may rest, and cost what they cost without learning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optforge.learned.guarded_optimizer import GuardedOptimizer
from optforge.learned.measured import Measured, Moved, placed
from optforge.learned.numeric import Number, kept, near, of, quiet, total
from optforge.learned.rules import Seen, named_rule, on_scale, towards_parent
from optforge.learned.spikes import follow

_LIMIT = math.log(1e12)  # a factor stays within 1e-12 and 1e12, so that a rate is positive and finite
_NOISE = 1e-12  # of a step's square, below which that of its derivative is rounding; of a decay's, on its scale
_HYPER_SHARE = 0.1  # of κ, for these
_BEGINNING = 200  # steps that all count


class FollowingOptimizer(GuardedOptimizer):
    """Moves factors of rates, and other hyperparameters, by the derivatives that its steps measure.

    Subclasses set `per` and `every` as `learned.learn` has them, and call `_learn` after each step that counts.
    """

    per: str
    every: int
    hypergradient: Tensor | None
    _moved: Moved | None  # the parameters of this step
    _seen_binds: int  # how often something was put in another place, as of the sums that are known

    def _until_learning(self) -> int:
        """How many steps are between this one and one that moves what is learned, for which the last two measure."""
        first = self.param_groups[0]["learning"]
        beginning = first["steps"] < _BEGINNING or float(first["rising"])
        return 0 if beginning else self.every - 1 - first["steps"] % self.every

    def _stride(self) -> int:
        """Steps since what is learned has moved."""
        first = self.param_groups[0]["learning"]
        return max(1, first["steps"] - first["moved"])

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


__all__ = ["FollowingOptimizer"]
