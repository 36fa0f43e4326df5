"""The learning rate as a parameter of training: a program's optimizer, wrapped.

One step is: the program's step, which also measures (see `learned.watch`); its sums over parameters (`learned.sums`);
the rule (`learned.rate`); the rate of the next step. Other hyperparameters follow the derivative of the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from optforge.learned.checkpoint import FIELD, check_saved, complete, packed, unpacked
from optforge.learned.choices import WHAT, chosen, split
from optforge.learned.pair import Pair
from optforge.learned.rate import CAP, LearnedRate, capped, follow, on_scale
from optforge.learned.sums import Sums
from optforge.primitives import Hyper, Program, ProgramError
from optforge.primitives.checkpoint import check_fits
from optforge.primitives.kinds import SCALES
from optforge.primitives.options import check_group, with_fallback
from optforge.primitives.parameters import is_sharded, load_unrounded, state_dtype, with_gradients
from optforge.primitives.routing import Route

BEGINNING = 200  # steps that all learn; later most rest
_NOISE = 1e-12  # of a step's square, below which that of its derivative is rounding; of a decay's, on its scale
_SLOWER = 0.1  # share of κ with which hyperparameters other than the rate move


class LearnedOptimizer(Optimizer):
    """A program trained with hyperparameters that it learns on the way.

    The rate of a step is ``group["lr"]`` times one learned factor, which begins at 1: the learned rate is the peak, and
    schedulers multiply it. Learning rests while a schedule rises, and one that falls does not make the rate rise.
    Steps that are not finite change nothing that is learned. Costs no synchronisation with the device.

    Args:
        params, program, lr, options: as for `ProgramOptimizer`. Rates must be positive.
        what: what to learn: ``lr``, and names of the program's hyperparameters, which move on their own scale.
        hyper_lr: κ, the change of the rate's logarithm where gradients agree entirely with the step before. 0 switches
            learning off.
        cap: largest change of the median weight matrix in a step, relative to its size, that the rate is lifted to; the
            given rate may change five times as much. None for no bound, if the given rate is known to be sound.
        every: n: after the first 200 steps, learn from every n-th step; the others are as fast as the program's own
            if only `lr` is learned; by default 20 then, else 1.

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
        hyper_lr: float = 0.3,
        cap: float | None = CAP,
        every: int | None = None,
        **options: Any,
    ) -> None:
        self.what, self.hyper_lr, self.cap, self.every = chosen(what, hyper_lr, cap, every)
        defaults, passed_on = split(program, lr, options)
        self.program = program
        self.hypergradient: Tensor | None = None
        self._pair = Pair(program, self.what, passed_on)
        super().__init__(params, defaults)
        self._link()

    def _link(self) -> None:
        self._pair.share(self.state)
        self._sums: Sums | None = None
        self._bounded = False  # whether the first step is

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `ProgramOptimizer` does; it takes over what has been learned so far."""
        own, lr = set(param_group), param_group.get("lr", self.defaults["lr"])
        if (isinstance(lr, int | float) or (isinstance(lr, Tensor) and lr.numel() == 1)) and not lr > 0:
            raise ProgramError(f"lr must be positive to be learned, got {lr!r}")
        check_group(self.program, param_group, self.defaults)
        super().add_param_group(param_group)
        group, first = self.param_groups[-1], self.param_groups[0]
        try:
            self._check(group)
            self._pair.add({name: value for name, value in group.items() if name != FIELD}, group is first)
        except ProgramError:
            self.param_groups.pop()
            raise
        group |= {name: first[name] for name in self._others if name not in own and name in first}
        fresh = self._fresh(group)
        known = first.get(FIELD, fresh)
        group[FIELD] = known._replace(peak=fresh.peak, scheduled=fresh.scheduled, start=fresh.start)

    def _fresh(self, group: dict[str, Any]) -> LearnedRate:
        lr = float(group["lr"]) or float(self.defaults["lr"])  # a schedule may have come to 0
        return LearnedRate(lr, lr, {name: float(group[name]) for name in self._others})

    def _check(self, group: dict[str, Any]) -> None:
        if any(is_sharded(p) for p in group["params"]):
            raise ProgramError("a rate cannot be learned from shards of parameters; learn it without sharding them")
        for hyper in self._hypers():
            value = float(group[hyper.name])
            if hyper.name in self.what and not math.isfinite(SCALES[hyper.scale].forward(value)):  # it is switched off
                raise ProgramError(f"{hyper.name} is {value:g}, and would stay so; learn from another value")

    def __getstate__(self) -> dict[str, Any]:
        own = ("program", "what", "hyper_lr", "cap", "every", "hypergradient", "_pair")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()

    def state_dict(self) -> dict[str, Any]:
        """As that of `ProgramOptimizer`, with what is learned as numbers in each group."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group[FIELD] = packed(group[FIELD])
        return saved | {"program": str(self.program), "routes": [route.which for route in self.routes]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as `ProgramOptimizer` does; also from a plain optimizer, learning then starts from its rate.

        What was measured for another choice of `what` begins anew.

        Raises:
            ProgramError: before anything changes, if another program, other routes or another version left it.
        """
        load_unrounded(self, super().load_state_dict, state_dict, self._dtype, self._check_saved)
        for group in self.param_groups:
            group[FIELD] = unpacked(group.get(FIELD), self._fresh(group))
        for p, state in self.state.items():
            if state:
                complete(state, self._pair.watch(p), p, self._dtype(p))

    def _check_saved(self, saved: dict[str, Any]) -> None:
        check_saved(saved)
        params = [p for group in self.param_groups for p in group["params"]]
        check_fits(saved, self.program, list(zip(params, self.routes, strict=True)))

    def _dtype(self, p: Tensor) -> torch.dtype:
        return state_dtype(p, self._pair.options.get("state_dtype"))

    @property
    def routes(self) -> list[Route]:
        """Where each parameter goes, in order: to the program or to its fallback."""
        return self._pair.measuring.routes

    def learned_values(self) -> dict[str, float]:
        """Each learned quantity by name: `lr` is the first group's rate at the peak of a schedule."""
        first = self.param_groups[0]
        rate = first[FIELD].peak * math.exp(float(first[FIELD].log))
        return {name: rate if name == "lr" else float(first[name]) for name in self.what}

    def effective_lrs(self) -> list[float]:
        """The rate of the last step for each group, schedule and learned factor included."""
        return [rate.scheduled * rate.used.exp().item() for rate in (group[FIELD] for group in self.param_groups)]

    @property
    def reached_cap(self) -> float | None:
        """The relative change of weights by a step at the learned rate, if that is the largest that it may be."""
        rate = self.param_groups[0][FIELD]
        log, largest, trusted = (float(x) for x in (rate.log, rate.largest, rate.trusted))
        if self._cap == math.inf or not largest:
            return None
        most = max(self._cap / largest, 1.0 if trusted else 0.0)
        return largest * most if math.exp(log) > 0.999 * most else None

    def scale(self, name: str) -> str:
        """Name of the scale on which a hyperparameter moves, a key of `primitives.kinds.SCALES`."""
        return next(hyper.scale for hyper in self._hypers() if hyper.name == name)

    def _hypers(self) -> Iterator[Hyper]:
        return (hyper for part in with_fallback(self.program) for hyper in part.hypers)

    @property
    def _others(self) -> list[str]:
        return [name for name in self.what if name != "lr"]

    @property
    def _cap(self) -> float:
        return self.cap if self.cap is not None and self.hyper_lr and "lr" in self.what else math.inf

    @torch._disable_dynamo  # state is taken from one place to another, which torch.compile does not follow
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = with_gradients(self.param_groups)
        if any(ready):
            self._step(ready)
        return loss

    def _step(self, ready: list[list[Tensor]]) -> None:
        groups, params = self.param_groups, [p for some in ready for p in some]
        device = groups[0]["params"][0].device
        rate = groups[0][FIELD].on(device)
        lrs = [float(group["lr"]) for group in groups]
        peaks = [max(group[FIELD].peak, lr) for group, lr in zip(groups, lrs, strict=True)]
        if self._cap < math.inf and not self._bounded:  # what the first step destroys, no later one repairs
            if float(rate.largest) == 0:  # else it was loaded
                rate = capped(rate, self._pair.trial(groups, rate.log.exp(), device).change(peaks), self._cap)
            self._bounded = float(rate.largest) > 0  # it is not for as long as all gradients are 0
        used = rate.log
        # how many steps are between this one and one that moves what is learned, for which the last two measure
        until = 0 if rate.steps < BEGINNING else self.every - 1 - rate.steps % self.every
        self._pair.step(groups, used.exp(), rests=until > 1 and all(p in self.state for p in params))
        self.hypergradient = None
        if until == 0:
            if self._sums is not None and self._sums.holds(ready, self.state):
                self._sums.read()
            else:
                watches, in_place = [self._pair.watch(p) for p in params], bool(self._pair.options.get("compile"))
                self._sums = Sums(ready, self.state, watches, device, in_place)
            rate = self._learn(self._sums, rate, lrs, peaks)._replace(moved=rate.steps)
        for group, lr, peak in zip(groups, lrs, peaks, strict=True):
            own = {"peak": peak, "scheduled": lr, "start": group[FIELD].start}
            group[FIELD] = rate._replace(used=used, steps=rate.steps + 1, **own)

    def _learn(self, sums: Sums, rate: LearnedRate, lrs: list[float], peaks: list[float]) -> LearnedRate:
        """What is learned for the next step, by what this one has measured."""
        before, stride = [group[FIELD] for group in self.param_groups], max(1, rate.steps - rate.moved)
        shares = [old.scheduled / before[0].peak for old in before]
        if "lr" in self.what:
            seen = sums.seen("lr", shares)
            self.hypergradient = -seen.dot if rate.steps else None
            rising = any(lr > old.scheduled for lr, old in zip(lrs, before, strict=True))
            if self.hyper_lr and not rising:
                rate = follow(rate, seen.cosine, self.hyper_lr, max(old.scheduled / old.peak for old in before))
            if self._cap < math.inf:
                rate = capped(rate, sums.change(peaks), self._cap, stride)
        for name in self._others if self.hyper_lr else ():
            seen = sums.seen(name, shares)
            self._learn_hyper(name, seen.cosine, seen.u2 / seen.step2)
        return rate

    def _learn_hyper(self, name: str, cosine: Tensor, share: Tensor) -> None:
        """Move a hyperparameter in the space of its scale (see `primitives.kinds.SCALES`).

        `share` is the square of the derivative's norm over that of the step. Where the derivative with respect to a
        decay is 0, what is left of its terms, which are 1 / (1 - β) times the step, is rounding.
        """
        scale = self.scale(name)
        for group in self.param_groups:
            value = torch.as_tensor(group[name], dtype=torch.float64).to(cosine.device, non_blocking=True)
            known = (share * (1 - value) ** 2 if scale == "unit" else share) > _NOISE
            move = torch.where(cosine.isfinite() & known, _SLOWER * self.hyper_lr * cosine, 0.0)
            group[name] = on_scale(scale, value, group[FIELD].start[name], move)


def learn(params: ParamsT, program: Program, lr: float = 1e-3, **options: Any) -> LearnedOptimizer:
    """An optimizer for `params` that applies `program` and learns its learning rate, starting from `lr`.

    ::

        optimizer = learn(model.parameters(), BASELINES["adamw"].program, lr=1e-4)

    The arguments are those of `LearnedOptimizer`.
    """
    return LearnedOptimizer(params, program, lr, **options)
