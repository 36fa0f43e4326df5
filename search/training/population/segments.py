"""Several parameters of a model, laid end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Segments:
    """Several parameters of a model, flattened and laid end to end along the last dimension of one arena.

    Elementwise work then costs one call for the whole model. Only what mixes elements looks at the boundaries.

    Args:
        sizes: number of elements of each parameter, in order.
        device: where the arena lives.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.sizes = list(sizes)
        self.index = torch.repeat_interleave(
            torch.arange(len(self.sizes), device=device), torch.tensor(self.sizes, device=device)
        )

    def reduce(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """Apply a reduction to each parameter's stretch: ``[…, elements]`` to ``[…, parameters]``."""
        pieces = zip(*(a.split(self.sizes, dim=-1) for a in args), strict=True)
        return torch.cat([function(*piece, dims=(-1,)) for piece in pieces], dim=-1)

    def spread(self, x: Tensor) -> Tensor:
        """Repeat per-parameter numbers over each parameter's elements: ``[…, parameters]`` to ``[…, elements]``."""
        return x.index_select(-1, self.index)
