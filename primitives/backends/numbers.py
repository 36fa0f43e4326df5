"""What all parameters of a group have in common in one step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from optforge.primitives.backends.source import hoist
from optforge.primitives.program import Program


class Numbers:
    """All numbers of one step that do not depend on the parameter: signals and hyperparameters.

    What the program makes of them alone is computed once in float64, and rounded once for each dtype.

    Attributes:
        due: which conditions of the program are true in this step (see `primitives.lazy`).
    """

    def __init__(self, program: Program, values: Mapping[str, Tensor]) -> None:
        self.program, self.values = program, values
        self.hoisted = hoist(program)
        self._known, self.due = self.hoisted.known(values)
        self._rounded: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}
        self._rates: dict[torch.dtype, Tensor] = {}
        self._packed: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def rounded(self, like: Tensor) -> tuple[Tensor, ...]:
        """The numbers that the step reads, 0-dimensional, in the dtype of `like`."""
        key = (like.dtype, like.device)
        if key not in self._rounded:
            self._rounded[key] = tuple(n.to(like.dtype) for n in self._known)
        return self._rounded[key]

    def rate(self, dtype: torch.dtype) -> Tensor:
        """The learning rate as it meets tensors of `dtype`."""
        if dtype not in self._rates:
            self._rates[dtype] = self.values["lr"].to(dtype)
        return self._rates[dtype]

    def packed(self, dtype: torch.dtype, device: torch.device, sign: int) -> Tensor:
        """The same, the learning rate and the sign of gradients as one vector."""
        key = (dtype, device)
        if key not in self._packed:
            numbers = (*self._known, self.values["lr"], torch.tensor(sign, dtype=torch.float64))
            later = device.type != "cpu"  # a device may get them when it comes to that
            if len({n.device for n in numbers}) > 1:  # some are learned, or norms, on a device
                numbers = tuple(n.to(device, non_blocking=later) for n in numbers)
            self._packed[key] = torch.stack(numbers).to(device, dtype, non_blocking=later)
        return self._packed[key]


__all__ = ["Numbers"]
