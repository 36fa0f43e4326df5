"""What a learned rate is guarded with: a cap, a scale for gradients far too large, and losses, if any are told.

None of it costs a pass over memory in a usual step (see `learned.spikes` and `learned.rules.cap`).
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from optforge.learned.losses import Losses, anew, heard, packed, set_aside, tried, trusted
from optforge.learned.measured import Measured, Moved
from optforge.learned.numeric import Number, kept, median, near, of
from optforge.learned.rules import CAP, TRUSTED, cap, halfway_back
from optforge.learned.spikes import FIRST_SPIKE, RISING, counted, damping, follow, sampled
from optforge.learned.watched_optimizer import WatchedOptimizer
from optforge.primitives.parameters import global_norm
from optforge.primitives.user_warnings import warn


class GuardedOptimizer(WatchedOptimizer):
    """Bounds the learned factors of its groups from above, ``group["learning"]["log"]``.

    Subclasses say what is in ``group["learning"]`` (`_complete`), call `_guard` before a step, and `_bound_from_above`
    once it has measured.
    """

    rule: str
    hyper_lr: float
    _probed: bool  # whether the first step is bounded
    _measured: Measured | None
    _heard: bool  # whether the loss of this step was told
    _warned: bool  # whether it was said that something is not finite
    _norm_known: bool  # whether the gradients of this step had to be read for their norm

    def _complete(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _stride(self) -> int:
        raise NotImplementedError

    def _guard(self, moved: Moved) -> None:
        """Damp spikes, and bound the first step."""
        first, device = self.param_groups[0]["learning"], moved.device
        some = sampled([g for g in moved.gradients() if g.device == device])
        if (
            first["steps"] == 1
            and near(first["some"], device) > FIRST_SPIKE * some > 0
            and self._began_with_spike(moved)
        ):
            self._begin_anew()
            first = self.param_groups[0]["learning"]
        norm, usual_some, often = (near(first[name], device) for name in ("norm", "some", "spikes"))
        self._damp, seen = damping(moved.gradients(), norm, some, usual_some, often)
        known = {} if seen is None else {"norm": follow(norm, seen)}
        if isinstance(some, float):  # where knowing it does not wait for a device
            known["rising"] = float(some > RISING * usual_some > 0)
        self._share(some=follow(usual_some, some), spikes=counted(often, norm, seen), **known)
        self._norm_known = seen is not None
        if not self._probed:  # for as long as all gradients are 0
            if "lr" in self.what and not float(first["large"]):
                whole = global_norm(moved.gradients(), wide=True).double()
                squares = [self._probe(group, p, whole).to(device) for group, p in self._pairs()]
                self._bound_from_above(moved, *(near(x, device) for x in torch.stack(squares, 1)))
                for group in self.param_groups:
                    group["log_factor"] = group["learning"]["log"]
            self._probed = "lr" not in self.what or float(self.param_groups[0]["learning"]["large"]) > 0

    def _began_with_spike(self, moved: Moved) -> bool:
        """Whether the first gradients of these parameters were far larger than the second ones, all of them seen."""
        second = all(p in self.state and self.state[p]["step"].item() == 1 for p in moved.params)
        first = float(self.param_groups[0]["learning"]["norm"]) or math.inf  # not known: its square has overflowed
        return second and first > FIRST_SPIKE * global_norm(moved.gradients(), wide=True).item()

    def _begin_anew(self) -> None:
        """The first gradient was a spike, as the second one shows: what it has left in state would last."""
        first = self.param_groups[0]
        losses = anew(self._losses(self._device), first["learning"]["steps"])
        for group in self.param_groups:
            group["log_factor"] = torch.zeros((), dtype=torch.float64)
            del group["learning"]
            for p in group["params"]:
                self.state.pop(p, None)
        for group in self.param_groups:
            self._complete(group)
        self._share(losses=packed(losses))
        self._probed, self._measured = False, None

    def _told(self, loss: Any) -> None:
        """Listen to the loss that a closure returns: one number, or a tensor or an array of one.

        Each of several processes has a loss of its own, by which rates would come to differ: these are not listened to.
        """
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            return
        if isinstance(loss, np.ndarray) and loss.size == 1:
            loss = loss.item()
        if not (isinstance(loss, Real) or (isinstance(loss, Tensor) and loss.numel() == 1)):
            return
        self._heard = True
        first, at = self.param_groups[0], torch.as_tensor(loss, dtype=torch.float64).detach().reshape(())
        if at.device.type == "cpu" and not at.isfinite():
            self._warn("the loss is")
        device, learning, step = self._device, first["learning"], first["learning"]["steps"]
        value, common, latest, large, given = (
            near(x, device) for x in (at, *(learning[name] for name in ("common", "latest", "large", "given")))
        )
        lifted = ((common > 0) | bool(self._others)) & self._guarded
        losses, risen = heard(self._losses(device), -value if first["maximize"] else value, lifted, step)
        losses, begins, failed = tried(losses, risen & (given * large > TRUSTED), latest * first["base_lr"], step)
        self._share(losses=packed(losses))
        if not isinstance(value, float) or risen or begins or failed:  # on devices nobody knows yet
            self._fall_back(risen & lifted, begins, failed, device)

    def _warn(self, of_what: str) -> None:
        """Say once that something is not finite, where knowing that does not wait for a device."""
        if not self._warned:
            self._warned = True
            text = f"{of_what} not finite: nothing is learned from such steps, and what was learned stays as it is"
            advice = "if they go on, go back to a checkpoint or begin anew, with a lower lr"
            warn(f"{text}; {advice}", RuntimeWarning)

    def _fall_back(self, risen: Number, begins: Number, failed: Number, device: torch.device) -> None:
        """Go back half the way where losses have risen, or let the trial of the given rate begin or end."""
        learning, base = self.param_groups[0]["learning"], self.param_groups[0]["base_lr"]
        given, common, large = (near(learning[name], device) for name in ("given", "common", "large"))
        do = of(given)
        given = do.where(begins, base, do.where(failed, 0.0, given))
        change = do.where(begins, -common, do.where(risen, -do.clip(common, 0.0, math.log(2.0)), 0.0))
        self._share(given=given, common=common + change)
        for group in self.param_groups:
            group["learning"]["log"] = kept(near(group["learning"]["log"], device) + change)
        for name in self._others:
            for group in self.param_groups:
                value = near(torch.as_tensor(group[name], dtype=torch.float64), device)
                back = halfway_back(self.scale(name), value, group["learning"]["start"][name])
                group[name] = kept(do.where(risen, back, value))
        self._lower(do.where(failed, math.log(CAP / base) - do.log(large), math.inf), device)

    @property
    def _guarded(self) -> bool:
        return self.rule == "two-sided" and self.hyper_lr > 0

    @property
    def _device(self) -> torch.device:
        return next(p.device for group in self.param_groups for p in group["params"])

    @property
    def _others(self) -> list[str]:
        return [name for name in self.what if name != "lr"]

    def _losses(self, device: torch.device) -> Losses:
        known = near(self.param_groups[0]["learning"]["losses"], device)
        return Losses(*(known.unbind() if isinstance(known, Tensor) else known.tolist()))

    def _share(self, **values: Number) -> None:
        state = {name: kept(value) for name, value in values.items()}
        for group in self.param_groups:
            group["learning"] = group["learning"] | state  # not in place: a state_dict may hold the old one

    def _bound_from_above(self, moved: Moved, u2: Number, p2: Number, g2: Number) -> None:
        """Lower the factor to its cap.

        Args:
            moved: the parameters of this step.
            u2, p2, g2: squares of norms of their updates, of themselves, and of their gradients, ``[n]`` each.
        """
        base, device = self.param_groups[0]["base_lr"], moved.device
        damp = near(self._damp, device)
        rates = [max(float(group["lr"]), group["base_lr"]) / base for group in self.param_groups]
        weights = moved.of_groups(rates)[moved.matrices]
        change = (u2[moved.matrices] / of(u2).maximum(p2[moved.matrices], moved.least)) ** 0.5
        # behind zeros, as in heads of networks and LoRA, gradients are 0 at first, and nothing moves but by decay
        found = median(of(u2).where(g2[moved.matrices] > 0, change * weights, 0.0))
        first = self.param_groups[0]["learning"]
        large, given, latest = (near(first[name], device) for name in ("large", "given", "latest"))
        do, losses = of(found), self._losses(device)
        usual = do.isfinite(found) & (damp == 1.0)  # what a spike moves says nothing about other steps
        before, latest = given, do.where(usual, found, latest)
        falls, most = trusted(losses, first["steps"])
        bound, large, given = cap(large, given, do.where(usual, found, large), most, falls, self._stride())
        losses = set_aside(losses, (before > 0) & (given == 0), first["steps"])
        self._share(large=large, given=given, latest=latest, losses=packed(losses))
        self._lower(bound - math.log(base), device)

    def _lower(self, bound: Number, device: torch.device) -> None:
        """Lower factors to a bound of their logarithms."""
        do = of(bound)
        lowest, *others = (near(group["learning"]["own"], device) for group in self.param_groups)
        for own in others:
            lowest = do.minimum(lowest, own)
        self._share(common=do.minimum(near(self.param_groups[0]["learning"]["common"], device), bound - lowest))
        for group in self.param_groups:
            group["learning"]["log"] = kept(do.minimum(near(group["learning"]["log"], device), bound))


__all__ = ["GuardedOptimizer"]
