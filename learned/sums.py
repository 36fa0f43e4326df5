"""What a step has measured (see `learned.watch`), summed over parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor

from optforge.learned.watch import Watched


class Seen(NamedTuple):
    """Sums over parameters: ⟨g, u⟩, ‖g‖², ‖u‖², with u the derivative of the step before, and ‖·‖² of that step."""

    dot: Tensor
    g2: Tensor
    u2: Tensor
    step2: Tensor

    @property
    def cosine(self) -> Tensor:
        """Of gradient and derivative, in [-1, 1]; not finite where one of them is 0."""
        return self.dot / (self.g2.sqrt() * self.u2.sqrt())


class Sums:
    """The sums that steps leave in the state of the parameters that they move.

    To gather a few numbers of fifty parameters one by one takes a tenth of a step. Compiled steps write them in place,
    so that their slots are replaced by views of one table, which holds for as long as the same parameters move.

    Args:
        ready: these parameters, of each group.
        states: of each parameter.
        watches: what measures each, in the order of `ready`.
        device: where numbers are computed with; nothing waits for it.
        in_place: whether steps write state in place.
    """

    def __init__(
        self,
        ready: Sequence[Sequence[Tensor]],
        states: Mapping[Tensor, dict[str, Tensor]],
        watches: Sequence[Watched],
        device: torch.device,
        in_place: bool = False,
    ) -> None:
        self._params = [p for params in ready for p in params]
        self._group = [number for number, params in enumerate(ready) for _ in params]
        self._watches, self._device = watches, device
        names = list(dict.fromkeys(name for watch in watches for name in watch.sums))
        cells = [
            (i, j, states[p], watch.sums[name])
            for i, name in enumerate(names)
            for j, (p, watch) in enumerate(zip(self._params, watches, strict=True))
            if name in watch.sums
        ]
        values = [state[slot] for _, _, state, slot in cells]
        self._kept = in_place and len({(x.device, x.dtype) for x in values}) == 1 and values[0].device == device
        flat = [x.reshape(()).to(device, values[0].dtype if self._kept else torch.float64) for x in values]
        self._table = torch.zeros(len(names), len(self._params), dtype=flat[0].dtype, device=device)
        places = [i * len(self._params) + j for i, j, _, _ in cells]
        self._table.view(-1)[torch.tensor(places, device=device)] = torch.stack(flat)
        self._names, self._cells = names, []
        if self._kept:
            for (i, j, state, slot), value in zip(cells, values, strict=True):
                state[slot] = self._table[i, j].view(value.shape)
            self._cells = [(self._params[j], slot, state[slot]) for _, j, state, slot in cells]
        self.read()

    def read(self) -> None:
        """Look at the sums as they are now."""
        self._rows = dict(zip(self._names, self._table.double(), strict=True))

    def holds(self, ready: Sequence[Sequence[Tensor]], states: Mapping[Tensor, dict[str, Tensor]]) -> bool:
        """Whether these are the parameters, and all slots of their states are in the table, still."""
        params = [p for some in ready for p in some]
        same = self._kept and len(params) == len(self._params) and all(map(is_, params, self._params))
        return same and all(states.get(p, {}).get(slot) is x for p, slot, x in self._cells)

    def seen(self, name: str, rates: Sequence[float]) -> Seen:
        """What the step has shown of `lr` or another hyperparameter, with rates of the step before for each group.

        Only parameters count that the step before has measured, too, and whose program has the hyperparameter.
        """
        key, sums = "" if name == "lr" else f" {name}", self._rows
        own = [float(f"dot{key}" in watch.sums) for watch in self._watches]
        rate = self._row([rates[k] * has for k, has in zip(self._group, own, strict=True)])
        counts = (sums["u2"] >= 0) & (rate != 0)
        rows = (rate * sums[f"dot{key}"], sums["g2"], rate**2 * sums[f"u2{key}"], rate**2 * sums["u2"])
        return Seen(*torch.where(counts, torch.stack(rows), 0.0).sum(1))

    def change(self, rates: Sequence[float]) -> Tensor:
        """Median relative change of weight matrices by a step with these rates of groups; of vectors, if all are.

        Behind zeros, as in heads of networks and LoRA, gradients are 0 at first, and nothing moves but by decay: such
        matrices do not count. The rows of others count as at least of norm 1, and elements of vectors as 0.03, so that
        zeros can be moved.
        """
        at = [i for i, p in enumerate(self._params) if p.ndim > 1] or list(range(len(self._params)))
        chosen = [self._params[i] for i in at]
        least = self._row([float(p.shape[0]) if p.ndim > 1 else 1e-3 * p.numel() for p in chosen])
        moved, size, g2 = (self._rows[name][at] for name in ("n2", "p2", "g2"))
        change = (moved / torch.maximum(size, least)).sqrt() * self._row([rates[self._group[i]] for i in at])
        change = torch.where(g2 > 0, change, 0.0)
        return torch.where(change.isnan().any(), math.nan, torch.where(change == 0, math.nan, change).nanmedian())

    def _row(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64).to(self._device, non_blocking=True)
