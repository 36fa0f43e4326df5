"""Racing: members that fall hopelessly behind are not trained to the end.

A member is compared with its own program's best rate and with a reference, on the same batches from the same initial
weights (common random numbers), never with other programs: what becomes of a candidate must not depend on its company.
The paired differences of the training losses over the last steps have a mean and a standard error; a member is behind
if even the lower end of the interval is too far from the standard. This is racing in the sense of Maron & Moore (1994),
"Hoeffding races", with intervals from paired differences in place of Hoeffding's bound, and a margin, because in
training the slow may still win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class Look(NamedTuple):
    """One look at the members during training.

    Attributes:
        at: share of the run after which it happens.
        ladder: how far a member may be behind the best rate of its program, as a share of the way that one has come
            since the first step.
        reference: the same for the reference.
    """

    at: float
    ladder: float
    reference: float


class Behind(NamedTuple):
    """Why a member was dropped: its loss, that of its standard, and at which step, counted from 1."""

    loss: float
    standard: float
    whose: str
    step: int

    def __str__(self) -> str:
        return f"behind at step {self.step}: {self.loss:.3g}, and {self.whose} had {self.standard:.3g}"


@dataclass(frozen=True)
class Race:
    """When members are dropped.

    Attributes:
        looks: in order of time.
        window: share of the run before each look whose losses are compared.
        errors: standard errors by which the mean difference must exceed the margin.
    """

    looks: tuple[Look, ...] = (Look(0.25, 0.2, 0.3), Look(0.5, 0.1, 0.15))
    window: float = 0.1
    errors: float = 3.0

    def __post_init__(self) -> None:
        if any(not (0 < look.at < 1 and look.ladder > 0 and look.reference > 0) for look in self.looks):
            raise ValueError(f"a look is at a share of the run between 0 and 1, its margins are positive: {self.looks}")
        if list(self.looks) != sorted(self.looks) or not 0 < self.window <= 1:
            raise ValueError(f"looks must be in order of time and the window within (0, 1]; got {self}")

    def patient(self) -> Race:
        """The same looks, at which nobody is dropped: to record what others are compared with."""
        return replace(self, looks=tuple(Look(look.at, math.inf, math.inf) for look in self.looks))

    def steps(self, steps: int) -> list[tuple[int, int, Look]]:
        """For each look the steps, counted from 0, from which and before which losses are compared."""
        width = max(2, round(self.window * steps))
        ends = [max(1, round(look.at * steps)) for look in self.looks]
        return [(max(0, end - width), end, look) for end, look in zip(ends, self.looks, strict=True)]

    def behind(
        self,
        step: int,
        look: Look,
        losses: Tensor,
        start: Tensor,
        sizes: Sequence[int],
        reference: Tensor | None = None,
    ) -> dict[int, Behind]:
        """Which members are to be dropped, and why.

        Args:
            step: of the look, counted from 1.
            look: which margins apply.
            losses: training losses in the window, ``[steps, seeds, members]``; rates of a program follow each other.
                Members that are out of the race have losses that are not finite.
            start: loss of the first step, ``[seeds]``.
            sizes: number of members of each program.
            reference: losses of the reference, ``[steps, seeds]``.
        """
        losses, start = losses.double().cpu(), start.double().cpu()
        found: dict[int, Behind] = {}
        first = 0
        for size in sizes:
            own = losses[..., first : first + size]
            means = own.mean(dim=(0, 1)).nan_to_num(math.inf, math.inf)
            standards = [(own[..., int(means.argmin())], look.ladder, "the best of its rates")]
            if reference is not None:
                standards.append((reference.double().cpu(), look.reference, "the reference"))
            for standard, margin, whose in standards:
                for i in self._far(own, standard, start, margin).nonzero()[:, 0].tolist():
                    found.setdefault(first + i, Behind(float(means[i]), float(standard.mean()), whose, step))
            first += size
        return found

    def _far(self, losses: Tensor, standard: Tensor, start: Tensor, margin: float) -> Tensor:
        """Which of ``[steps, seeds, members]`` are behind a standard ``[steps, seeds]``, beyond margin and chance."""
        way = (start.mean() - standard.mean()).clamp(min=0)
        excess = (losses - standard[..., None]).flatten(0, 1) - margin * way
        error = excess.std(dim=0) / math.sqrt(len(excess)) if len(excess) > 1 else 0.0
        # a loss that is not finite compares as false: divergence is not decided here
        return excess.mean(dim=0) > self.errors * error


NO_RACE = Race(looks=())
"""Trains every member to the end."""

__all__ = ["NO_RACE", "Look", "Race"]
