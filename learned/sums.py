"""What programs have measured of many parameters (see `learned.watch`), read all at once."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

from torch import Tensor

from learned.watch import Watched

State = dict[str, Any]


class Sums:
    """The sums of several parameters as one table, for steps that write them in place.

    The slots become views of the table: gathering a few numbers of fifty parameters each takes a fifth of a step.

    Args:
        states: of the parameters, on one device and of one dtype; their slots are replaced.
        watches: what measures each.
    """

    def __init__(self, states: Sequence[State], watches: Sequence[Watched]) -> None:
        self._states, self._slots = list(states), [tuple(watch.sums.values()) for watch in watches]
        names = list(dict.fromkeys(name for watch in watches for name in watch.sums))
        one: Tensor = states[0][self._slots[0][0]]
        self._rows = dict(zip(names, one.new_zeros(len(names), len(states)), strict=True))
        for i, (state, watch) in enumerate(zip(states, watches, strict=True)):
            for name, slot in watch.sums.items():
                place = self._rows[name][i].view(state[slot].shape)
                state[slot] = place.copy_(state[slot])
        self._held = [[state[s] for s in slots] for state, slots in zip(states, self._slots, strict=True)]

    def holds(self, states: Sequence[State]) -> bool:
        """Whether these are the states whose slots are in the table, still."""
        if len(states) != len(self._states) or not all(map(is_, states, self._states)):
            return False
        cells = zip(states, self._slots, self._held, strict=True)
        return all(all(map(is_, map(state.get, slots), held)) for state, slots, held in cells)

    def __getitem__(self, name: str) -> Tensor:
        """One sum of every parameter, ``[parameters]`` in float64; 0 where it is not measured."""
        return self._rows[name].double()


__all__ = ["Sums"]
