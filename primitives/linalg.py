"""Matrix routines that op templates call by name.

One rule, said here: whatever a value's kind, it is the matrix of its first dimension by all others. A parameter of
shape ``(n, *rest)`` is n × m with m the product of `rest`, a convolution's weight included; square matrices of its left
side have shape ``(n, n, 1, …)``, those of its right side ``(m, *rest)``. Everywhere `dims` are the dimensions of one
parameter; dimensions before them stack independent parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Coefficients of the quintic of Jordan et al. 2024 (Muon): steep at zero, so that five steps bring singular values
# of any size into about [0.7, 1.2]; not an exact orthogonalisation, by design.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def as_matrix(x: Tensor, dims: Sequence[int]) -> Tensor:
    """`x` as a matrix, or as a stack of them."""
    return x.reshape(*x.shape[: x.ndim - len(dims)], x.shape[dims[0]], -1)


def rest(x: Tensor, dims: Sequence[int]) -> Sequence[int]:
    """Dimensions of one parameter but the first."""
    return x.shape[x.ndim - len(dims) + 1 :]


def newton_schulz(x: Tensor, dims: Sequence[int], steps: int = 5) -> Tensor:
    """Approximate orthogonal polar factor of the matrix (or of a stack of matrices) `x`.

    A zero matrix stays zero.
    """
    m = as_matrix(x, dims)
    tall = m.shape[-2] > m.shape[-1]
    if tall:
        m = m.mT
    m = m / (torch.sqrt(torch.sum(torch.square(m), dim=(-2, -1), keepdim=True)) + 1e-7)
    for _ in range(steps):
        a = m @ m.mT
        m = _A * m + (_B * a + _C * a @ a) @ m
    return (m.mT if tall else m).reshape(x.shape)


def quintic(x: Tensor, a: Tensor, b: Tensor, c: Tensor, dims: Sequence[int]) -> Tensor:
    """``a x + b (x xᵀ) x + c (x xᵀ)² x``: the odd polynomial a s + b s³ + c s⁵ of each singular value s of `x`."""
    a, b, c = flat(a, x, dims), flat(b, x, dims), flat(c, x, dims)
    m = as_matrix(x, dims)
    tall = m.shape[-2] > m.shape[-1]
    if tall:
        m = m.mT
    s = m @ m.mT
    m = a * m + (b * s + c * s @ s) @ m
    return (m.mT if tall else m).reshape(x.shape)


def flat(c: Tensor, x: Tensor, dims: Sequence[int]) -> Tensor:
    """A number for each parameter of the stack `x`, as it meets the matrices of `x`."""
    return c.reshape(*c.shape[: c.ndim - len(dims)], 1, 1) if c.ndim == x.ndim else c


def row_gram(x: Tensor, dims: Sequence[int]) -> Tensor:
    """``x xᵀ``, a square matrix of the left side."""
    m = as_matrix(x, dims)
    a = m @ m.mT
    return a.reshape(*a.shape, *[1] * (len(dims) - 2))


def col_gram(x: Tensor, dims: Sequence[int]) -> Tensor:
    """``xᵀ x``, a square matrix of the right side."""
    m = as_matrix(x, dims)
    a = m.mT @ m
    return a.reshape(*a.shape[:-1], *rest(x, dims))


def matmul(x: Tensor, y: Tensor, dims: Sequence[int]) -> Tensor:
    """``x y`` of matrices that fit: left with left or parameter, parameter or right with right."""
    z = as_matrix(x, dims) @ as_matrix(y, dims)
    return z.reshape(*z.shape[:-1], *rest(y, dims))


def left_t(x: Tensor, y: Tensor, dims: Sequence[int]) -> Tensor:
    """``xᵀ y`` for a square matrix x of the left side, without a transposed copy."""
    return (as_matrix(x, dims).mT @ as_matrix(y, dims)).reshape(y.shape)


def right_t(x: Tensor, y: Tensor, dims: Sequence[int]) -> Tensor:
    """``x yᵀ`` for a square matrix y of the right side, without a transposed copy."""
    return (as_matrix(x, dims) @ as_matrix(y, dims).mT).reshape(x.shape)


def trace(a: Tensor, dims: Sequence[int]) -> Tensor:
    """Sum of the diagonal, one number for each parameter."""
    total = torch.sum(torch.diagonal(as_matrix(a, dims), 0, -2, -1), dim=-1)
    return total.reshape(*total.shape, *[1] * len(dims))


def identity(a: Tensor, dims: Sequence[int]) -> Tensor:
    """The identity, as large as the square matrix `a`."""
    m = as_matrix(a, dims)
    return (torch.zeros_like(m) + torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)).reshape(a.shape)


def row_diagonal(a: Tensor, dims: Sequence[int]) -> Tensor:
    """Diagonal of a square matrix of the left side, one number for each row."""
    d = torch.diagonal(as_matrix(a, dims), 0, -2, -1)
    return d.reshape(*d.shape, *[1] * (len(dims) - 1))


def col_diagonal(a: Tensor, dims: Sequence[int]) -> Tensor:
    """Diagonal of a square matrix of the right side, one number for each column."""
    d = torch.diagonal(as_matrix(a, dims), 0, -2, -1)
    return d.reshape(*d.shape[:-1], 1, *rest(a, dims))
