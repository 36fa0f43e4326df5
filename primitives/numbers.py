"""What all parameters of a group have in common in one step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from primitives.compiled import SMALL, Kernel, kernel
from primitives.program import Program
from primitives.source import hoist


class Numbers:
    """All numbers of one step that do not depend on the parameter: signals and hyperparameters.

    What the program makes of them alone is computed once in float64, and rounded once for each dtype.
    """

    def __init__(self, program: Program, values: Mapping[str, Tensor]) -> None:
        self.program, self.values = program, values
        self.hoisted = hoist(program)
        self._known = self.hoisted.numbers(values)
        self._kernels: dict[tuple[torch.dtype, torch.dtype, torch.device, int], Kernel] = {}
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

    def packed(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The same and the learning rate as one vector."""
        key = (dtype, device)
        if key not in self._packed:
            self._packed[key] = torch.stack([n.cpu() for n in (*self._known, self.values["lr"])]).to(device, dtype)
        return self._packed[key]

    def kernel(self, p: Tensor, state_dtype: torch.dtype) -> Kernel:
        """The compiled step for `p`."""
        key = (p.dtype, state_dtype, p.device, 1 if p.numel() < SMALL else torch.get_num_threads())
        if key not in self._kernels:
            rounded = [float(n.to(state_dtype)) for n in self._known]
            sides = tuple((i, abs(rounded[at]) >= 0.5) for i, at in self.hoisted.weights.items())
            self._kernels[key] = kernel(self.program, *key, sides)
        return self._kernels[key]


__all__ = ["Numbers"]
