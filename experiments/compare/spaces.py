"""Where each optimizer is tuned: as many dimensions as the others, each as wide as theirs in its own scale.

============ ==================================== ============================================
scale        coordinate in which points are even   declared range around the centre c
============ ==================================== ============================================
rate         log of the learning rate              c / 31.6 to c × 31.6, three decades
log          log of the value                      c / 31.6 to c × 31.6, three decades
unit         log of 1 − value                      1 − c divided or multiplied by 3.16, one decade; begins at 0 at least
linear       the value                             c ± c / 2, or ± 1/2 where c is 0
============ ==================================== ============================================

The centre of the learning rate is the middle of a baseline's usual range; that of a program from a search is the rate
which the search found. Every other centre is the default. What is tuned first is the learning rate, then weight decay,
then decays of averages, then the rest, in the order of the program; constants written into a program are part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optforge.primitives import Hyper, Program

RATE = "lr"
_DECADES = {"rate": 1.5, "log": 1.5, "unit": 0.5}
"""Half the width of a declared range, in factors of ten."""

ZERO_DECAY = 0.01
"""Centre of a weight decay whose default is 0; on a log scale there has to be one."""

EDGE = 0.1
"""A winner in this outer share of a range widens it."""


@dataclass(frozen=True)
class Dimension:
    """One tuned quantity; coordinate 0 to 1 is its declared range, and beyond lies what a widened range adds."""

    name: str
    scale: str
    centre: float

    def value(self, at: float) -> float:
        """The quantity at a coordinate; a share never leaves [0, 1)."""
        away = 2 * at - 1
        if self.scale == "linear":
            return self.centre + away * (abs(self.centre) / 2 or 0.5)
        factor = 10 ** (_DECADES[self.scale] * away)
        if self.scale == "unit":
            return 1 - (1 - self.centre) / factor if at > self.least else 0.0
        return self.centre * factor

    @property
    def least(self) -> float:
        """The coordinate at which a share is 0, as it is at all below; of other scales minus infinity."""
        return 0.5 + math.log10(1 - self.centre) / (2 * _DECADES["unit"]) if self.scale == "unit" else -math.inf

    @property
    def bounds(self) -> tuple[float, float]:
        """Where it is searched at first: the declared range, moved up if part of that would all be the same."""
        low = max(0.0, self.least)
        return low, low + 1


@dataclass(frozen=True)
class Space:
    """The tuned dimensions of one optimizer, the learning rate first, with the bounds of each coordinate."""

    dimensions: tuple[Dimension, ...]
    bounds: tuple[tuple[float, float], ...]

    def values(self, at: Sequence[float]) -> dict[str, float]:
        """Learning rate and hyperparameters at a point, by name, to ten digits."""
        return {d.name: float(f"{d.value(x):.10g}") for d, x in zip(self.dimensions, at, strict=True)}

    def inside(self, point: Sequence[float]) -> list[float]:
        """Coordinates of a point of the unit cube, which spans the bounds."""
        return [low + x * (high - low) for (low, high), x in zip(self.bounds, point, strict=True)]

    def place(self, at: Sequence[float]) -> tuple[float, ...]:
        """The point of the unit cube that lies at these coordinates: `inside` turned round."""
        return tuple((x - low) / (high - low) for (low, high), x in zip(self.bounds, at, strict=True))

    def edges(self, at: Sequence[float]) -> list[tuple[int, int]]:
        """Dimensions in whose outer tenth a point lies, with the side, −1 or 1, if there is room beyond it."""
        found = []
        for index, place in enumerate(self.place(at)):
            room = self.bounds[index][0] - self.dimensions[index].least > EDGE
            found += [(index, -1)] if place < EDGE and room else [(index, 1)] if place > 1 - EDGE else []
        return found

    def widened(self, edges: Sequence[tuple[int, int]]) -> tuple[Space, tuple[Space, ...]]:
        """The space with half a declared range more at each of these edges, and for each what is new there."""
        bounds, strips = list(self.bounds), []
        for index, side in edges:
            low, high = bounds[index]
            new = (max(low - 0.5, self.dimensions[index].least), low) if side < 0 else (high, high + 0.5)
            bounds[index] = (min(low, new[0]), max(high, new[1]))
            strips.append((index, new))
        whole = tuple(bounds)
        parts = (Space(self.dimensions, (*whole[:i], new, *whole[i + 1 :])) for i, new in strips)
        return Space(self.dimensions, whole), tuple(parts)


def spaces(
    programs: Sequence[Program], rates: Sequence[float], dimensions: int, controls: Sequence[bool] = ()
) -> list[Space]:
    """The space of each program; all have as many dimensions as the one with the fewest, at most `dimensions`.

    Args:
        programs: the update rules.
        rates: centre of each one's learning rate.
        dimensions: how many quantities are tuned, the learning rate included.
        controls: which of them are controls. A control that has fewer quantities to tune gets as many trials for
            those, which favours it, and takes nothing from the others.
    """
    found = []
    for program, rate in zip(programs, rates, strict=True):
        live = [h for h in program.hypers if h.name in program.live.names and _tunable(h)]
        tuned = sorted(live, key=_importance)
        found.append([Dimension(RATE, "rate", rate), *(Dimension(h.name, h.scale, _centre(h)) for h in tuned)])
    judged = [row for row, control in zip(found, controls or [False] * len(found), strict=True) if not control]
    count = min(dimensions, *map(len, judged or found))
    return [Space(tuple(row[:count]), tuple(dimension.bounds for dimension in row[:count])) for row in found]


def declared(space: Space) -> list[dict[str, Any]]:
    """The ranges as JSON: of each dimension its name, scale, centre, and its lowest and highest value."""
    rows = []
    for dimension, (low, high) in zip(space.dimensions, space.bounds, strict=True):
        ends = sorted(dimension.value(at) for at in (low, high))
        rows.append({"name": dimension.name, "scale": dimension.scale, "centre": dimension.centre,
                     "low": ends[0], "high": ends[1]})  # fmt: skip
    return rows


def _tunable(hyper: Hyper) -> bool:
    return hyper.scale != "log" or hyper.default > 0 or hyper.name == "weight_decay"


def _centre(hyper: Hyper) -> float:
    return hyper.default or (ZERO_DECAY if hyper.scale == "log" else 0.0)


def _importance(hyper: Hyper) -> int:
    return 0 if hyper.name == "weight_decay" else {"unit": 1, "log": 2, "linear": 3}[hyper.scale]
