"""The `torch.optim` face of programs that measure (see `learned.watch`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from optforge.learned.spikes import ONE
from optforge.learned.watch import Watched, watched
from optforge.primitives import Hyper, Program, ProgramOptimizer
from optforge.primitives.backends.bound import Bound
from optforge.primitives.backends.numbers import Numbers
from optforge.primitives.options import with_fallback
from optforge.primitives.parameters import ASIDE, begin


class WatchedOptimizer(ProgramOptimizer):
    """Trains as `ProgramOptimizer` does, and keeps in its state what was measured on the way.

    Subclasses set `what` before they call the constructor of this class. Checkpoints fit those of plain optimizers.

    Attributes:
        what: hyperparameters whose derivatives are measured.
        resting: whether steps are taken without measuring.
    """

    what: tuple[str, ...]
    resting: bool
    _damp: Tensor  # what gradients of this step are multiplied by
    _ready: list[list[Tensor]]  # of each group, the parameters of this step
    _binds: int  # how often a parameter or its state was put in another place

    def _start(self) -> None:
        self._damp, self._ready, self._binds, self.resting = ONE, [], 0, False
        self._bounds: dict[bool, dict[int, Bound]] = {False: {}, True: {}}
        self._watches: dict[str, Watched] = {}  # by route: hashing a program takes longer than looking up a word

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"what": self.what}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()

    def _before_step(self, ready: list[list[Tensor]]) -> None:
        self._damp, self._ready, self._bound = ONE, ready, self._bounds[self.resting]

    def _bind(self, p: Tensor, sign: int) -> Bound:
        self._binds += 1
        return super()._bind(p, sign)

    def _pairs(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group, params in zip(self.param_groups, self._ready, strict=True):
            yield from ((group, p) for p in params)

    def _hypers(self) -> Iterator[Hyper]:
        return (hyper for part in with_fallback(self.program) for hyper in part.hypers)

    def scale(self, name: str) -> str:
        """Name of the scale on which a hyperparameter moves, a key of `primitives.kinds.SCALES`."""
        return next(hyper.scale for hyper in self._hypers() if hyper.name == name)

    def _watch(self, p: Tensor) -> Watched:
        which = self._routed(p).which
        if which not in self._watches:
            self._watches[which] = self._watched(super().route(p))
        return self._watches[which]

    def _watched(self, program: Program) -> Watched:
        """A fallback need not have all that is learned of the program; slots are named in the program's order."""
        own = self.program.defaults() if hasattr(self, "program") else {}
        known = [n for n in ("lr", *program.defaults()) if n in self.what]
        unknown = [n for n in self.what if n not in known and n not in own]  # are refused
        return watched(program, (*known, *unknown))

    def route(self, p: Tensor) -> Program:
        """The program that trains `p`, as it measures what learning needs, or rests."""
        watch = self._watch(p)
        return watch.resting if self.resting else watch.program

    def _begin(self, p: Tensor, sign: int) -> dict[str, Any]:
        resting, self.resting = self.resting, False  # state is that of programs that measure
        try:
            return super()._begin(p, sign)
        finally:
            self.resting = resting

    def _numbers(self, program: Program, scalars: dict[str, Tensor], step: float) -> Numbers:
        return super()._numbers(program, scalars | {self._of(program).damp: self._damp}, step)

    def _of(self, program: Program) -> Watched:
        return next(w for w in self._watches.values() if program in (w.program, w.resting))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as `ProgramOptimizer` does; also from a plain optimizer, learning then starts from the factor 1.

        What was measured for another choice of `what` begins anew, the rates of tensors are kept.
        """
        watches = [self._watched(part) for part in with_fallback(self.program)]
        complete, factors = [set(watch.extra) for watch in watches], {watch.factor for watch in watches}
        states = {}
        for i, state in state_dict["state"].items():
            older = {ASIDE + name: value for name, value in state.get("learning", {}).items()}
            learned = older | {k: v for k, v in state.items() if k.startswith(ASIDE)}
            if learned.keys() not in complete:
                learned = {k: v for k, v in learned.items() if k in factors}
            states[i] = {k: v for k, v in state.items() if k != "learning" and not k.startswith(ASIDE)} | learned
        super().load_state_dict(state_dict | {"state": states})
        for p, state in self.state.items():
            watch = self._watch(p)
            for slot in watch.program.state:
                if state and slot.name in watch.extra and slot.name not in state:
                    state[slot.name] = begin(slot, p, self._dtype(p))

    def _probe(self, group: dict[str, Any], p: Tensor, norm: Tensor) -> Tensor:
        """Squares of the norms of the next update, of `p` and of its gradient, without a step.

        `norm` is that of all gradients.
        """
        sign = -1 if group["maximize"] else 1
        state, dtype = self.state[p] or self._begin(p, sign), self._dtype(p)
        scalars = {name: torch.as_tensor(group[name], dtype=torch.float64) for name in self._hyper_names()}
        scalars |= {"lr": self._rate(group), "global_norm": norm}
        program = self.route(p)
        numbers = self._numbers(program, scalars, state["step"].item() + 1)
        inputs = {"g": sign * p.grad.to(dtype), "p": p.detach().to(dtype)}  # type: ignore[union-attr]
        inputs |= {slot.name: state[slot.name] for slot in program.state}
        update = self._execute(p, program, inputs, numbers).update
        return torch.stack([x.double().square().sum() for x in (update, p.detach(), p.grad)])  # type: ignore[union-attr]


__all__ = ["WatchedOptimizer"]
