"""Matrix routines that op templates call by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Coefficients of the quintic of Jordan et al. 2024 (Muon): steep at zero, so that five steps bring singular values
# of any size into about [0.7, 1.2]; not an exact orthogonalisation, by design.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def newton_schulz(x: Tensor, dims: Sequence[int], steps: int = 5) -> Tensor:
    """Approximate orthogonal polar factor of the matrix (or of a stack of matrices) `x`.

    `dims` are the dimensions of one parameter; it is seen as a matrix of its first dimension by all others. Dimensions
    before them stack independent parameters. A zero matrix stays zero.
    """
    batch = x.shape[: x.ndim - len(dims)]
    m = x.reshape(*batch, x.shape[dims[0]], -1)
    tall = m.shape[-2] > m.shape[-1]
    if tall:
        m = m.mT
    m = m / (torch.sqrt(torch.sum(torch.square(m), dim=(-2, -1), keepdim=True)) + 1e-7)
    for _ in range(steps):
        a = m @ m.mT
        m = _A * m + (_B * a + _C * a @ a) @ m
    return (m.mT if tall else m).reshape(x.shape)
