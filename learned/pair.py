"""A program's optimizer that can measure what learning needs: one that does in each step, and one that never does."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from optforge.learned.sums import Sums
from optforge.learned.watch import Watched, watched
from optforge.primitives import Program, ProgramOptimizer
from optforge.primitives.options import with_fallback
from optforge.primitives.parameters import with_gradients


class Pair:
    """Two `ProgramOptimizer`, with one state and one list of parameter groups, of which either can make a step.

    Args:
        program: what they do.
        what: hyperparameters whose derivatives are measured (see `learned.watch`).
        options: of `ProgramOptimizer`, beside those of groups.
    """

    measuring: ProgramOptimizer
    resting: ProgramOptimizer

    def __init__(self, program: Program, what: Sequence[str], options: Mapping[str, Any]) -> None:
        self.options = options
        self.watches: dict[str, Watched] = {}
        for which, part in zip(("program", "fallback"), with_fallback(program), strict=False):
            # a fallback need not have all that is learned of the program; slots are named in the program's order
            known = [name for name in ("lr", *part.defaults()) if name in what]
            unknown = [name for name in what if name not in known and name not in program.defaults()]  # are refused
            self.watches[which] = watched(part, (*known, *unknown))

    def add(self, group: dict[str, Any], is_first: bool) -> None:
        """Add a parameter group, whose options and parameters are checked."""
        if not is_first:
            self.measuring.add_param_group(group)
            return
        rewritten = []
        for name in ("program", "resting"):
            program, *fallback = (getattr(watch, name) for watch in self.watches.values())
            rewritten.append(replace(program, fallback=fallback[0] if fallback else None))
        self.measuring, self.resting = (ProgramOptimizer([dict(group)], p, **self.options) for p in rewritten)

    def share(self, state: Any) -> None:
        """Make `state`, by parameter, that of both."""
        self.measuring.state = self.resting.state = state
        self.resting.param_groups = self.measuring.param_groups

    def step(self, groups: Sequence[Mapping[str, Any]], factor: Any, rests: bool) -> None:
        """One step with the options in `groups`, and rates times `factor`."""
        self._set(groups, factor)
        (self.resting if rests else self.measuring).step()

    def trial(self, groups: Sequence[Mapping[str, Any]], factor: Any, device: Any) -> Sums:
        """What a step on copies of parameters and state would measure."""
        self._set(groups, factor)
        other = copy.deepcopy(self.measuring)
        for group, copied in zip(self.measuring.param_groups, other.param_groups, strict=True):
            for p, q in zip(group["params"], copied["params"], strict=True):
                q.grad = p.grad
        other.step()
        watches = [self.watch(p) for some in with_gradients(self.measuring.param_groups) for p in some]
        return Sums(with_gradients(other.param_groups), other.state, watches, device)

    def _set(self, groups: Sequence[Mapping[str, Any]], factor: Any) -> None:
        for group, own in zip(groups, self.measuring.param_groups, strict=True):
            own.update(group, lr=group["lr"] * factor)

    def watch(self, p: Tensor) -> Watched:
        """What measures the steps of a parameter."""
        return self.watches["program" if self.measuring.route(p) is self.measuring.program else "fallback"]
