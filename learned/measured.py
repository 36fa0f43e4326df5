"""What a step moves and what it has measured (see `learned.watch`), of many parameters at once.

To gather a few numbers of fifty parameters one by one takes a third of a step. Compiled steps write them in place, so
that their slots can be views of one table, for as long as the same parameters move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from optforge.learned.numeric import Number, near
from optforge.learned.watch import Watched

State = dict[str, Any]


def placed(numbers: Sequence[float] | Sequence[int], device: torch.device) -> Tensor:
    """Numbers on `device`, int64 or float64, without waiting for it."""
    kind = torch.int64 if all(isinstance(x, int) for x in numbers) else torch.float64
    return torch.tensor(numbers, dtype=kind).to(device, non_blocking=device.type != "cpu")


class Moved:
    """The parameters that a step moves, in order.

    Attributes:
        params: the parameters.
        device: of the first one, where all numbers are.
        numbers, group: number of the group of each; the same as an array ``[parameters]``.
        matrices: positions of those with more than one dimension; of all, if none has.
        least: the squares of their norms count as at least so much. A row of a matrix keeps its sum at size 1 if its
            own norm is 1; of a vector one only knows that no share of 0 leads away from it.
    """

    def __init__(self, ready: Sequence[Sequence[Tensor]]) -> None:
        self.params = [p for params in ready for p in params]
        self.device = device = self.params[0].device
        self.numbers = [k for k, params in enumerate(ready) for _ in params]
        self.group = near(placed(self.numbers, device), device)
        which = [i for i, p in enumerate(self.params) if p.ndim > 1] or list(range(len(self.params)))
        least = [float(p.shape[0]) if (p := self.params[i]).ndim > 1 else 1e-3 * p.numel() for i in which]
        self.matrices, self.least = (near(placed(numbers, device), device) for numbers in (which, least))
        self._latest: tuple[float, ...] = ()

    def gradients(self) -> Iterator[Tensor]:
        """Of the parameters, where they are now: the next step may have others."""
        return (g for p in self.params if (g := p.grad) is not None)

    def of_groups(self, numbers: Sequence[float]) -> Number:
        """Numbers of the groups as numbers of their parameters, float64; kept for as long as they are the same."""
        if self._latest != (latest := tuple(numbers)):
            self._latest, self._spread = latest, near(placed(numbers, self.device), self.device)[self.group]
        return self._spread

    def holds(self, ready: Sequence[Sequence[Tensor]]) -> bool:
        """Whether these are the parameters."""
        flat = [p for params in ready for p in params]
        return len(flat) == len(self.params) and all(map(is_, flat, self.params))


class Measured:
    """The sums of parameters, by name ``[parameters]`` in float64; 0 where one is not measured.

    Args:
        states: of the parameters.
        watches: what measures each.
        in_place: whether steps write the slots in place. These are then replaced by views of a table, if all are on
            one device and of one dtype, and further steps need no new `Measured`.
    """

    def __init__(self, states: Sequence[State], watches: Sequence[Watched], in_place: bool) -> None:
        self.states, self.watches = list(states), list(watches)
        self._slots = [tuple(watch.sums.values()) for watch in watches]
        self._names = list(dict.fromkeys(name for watch in watches for name in watch.sums))
        ones: list[Tensor] = [state[slots[0]] for state, slots in zip(states, self._slots, strict=True)]
        self.kept = in_place and len({(x.device, x.dtype) for x in ones}) == 1
        device, dtype = ones[0].device, ones[0].dtype if self.kept else torch.float64
        nothing = torch.zeros(1, device=device, dtype=dtype)
        self._table = torch.stack([
            torch.cat([
                state[watch.sums[name]].view(1).to(device, dtype) if name in watch.sums else nothing
                for state, watch in zip(states, watches, strict=True)
            ])
            for name in self._names
        ])  # fmt: skip
        if self.kept:
            for row, name in zip(self._table, self._names, strict=True):
                for place, state, watch in zip(row, states, watches, strict=True):
                    if name in watch.sums:
                        state[watch.sums[name]] = place.view(state[watch.sums[name]].shape)
        self._held = [[state[s] for s in slots] for state, slots in zip(states, self._slots, strict=True)]
        self._begun = False

    def holds(self, states: Sequence[State]) -> bool:
        """Whether these are the states whose slots are in the table, still."""
        if not self.kept or not all(map(is_, states, self.states)):
            return False
        cells = zip(states, self._slots, self._held, strict=True)
        return all(all(map(is_, map(state.get, slots), held)) for state, slots, held in cells)

    def rows(self) -> dict[str, Number]:
        """All sums as they are now."""
        return dict(zip(self._names, near(self._table.double(), self._table.device), strict=True))

    def begun(self) -> list[int] | None:
        """Positions of the parameters for which this was not the first step; None for all of them."""
        if not self._begun:
            found = [i for i, state in enumerate(self.states) if state["step"].item() > 1]  # not on the device
            self._begun = len(found) == len(self.states)
            return None if self._begun else found
        return None


__all__ = ["Measured", "Moved", "placed"]
