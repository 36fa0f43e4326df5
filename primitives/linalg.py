"""Matrix routines that op templates call by name.

One rule, said here: whatever a value's kind, it is the matrix of its first dimension by all others. A parameter of
shape ``(n, *rest)`` is n × m with m the product of `rest`, a convolution's weight included; square matrices of its left
side have shape ``(n, n, 1, …)``, those of its right side ``(m, *rest)``. Everywhere `dims` are the dimensions of one
parameter; dimensions before them stack independent parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def flat(c: Tensor, x: Tensor, dims: Sequence[int], axes: int = 2) -> Tensor:
    """A number for each parameter of the stack `x`, as it meets matrices, or whatever has so many `axes`."""
    return c.reshape(*c.shape[: c.ndim - len(dims)], *[1] * axes) if c.ndim == x.ndim else c


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
    return eye_like(as_matrix(a, dims)).reshape(a.shape)


def eye_like(m: Tensor) -> Tensor:
    """The identity for each of a stack of matrices."""
    return torch.zeros_like(m) + torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)


def row_diagonal(a: Tensor, dims: Sequence[int]) -> Tensor:
    """Diagonal of a square matrix of the left side, one number for each row."""
    d = torch.diagonal(as_matrix(a, dims), 0, -2, -1)
    return d.reshape(*d.shape, *[1] * (len(dims) - 1))


def col_diagonal(a: Tensor, dims: Sequence[int]) -> Tensor:
    """Diagonal of a square matrix of the right side, one number for each column."""
    d = torch.diagonal(as_matrix(a, dims), 0, -2, -1)
    return d.reshape(*d.shape[:-1], 1, *rest(a, dims))


def inverse_root(a: Tensor, damping: Tensor, p: int, dims: Sequence[int]) -> Tensor:
    """``(a + δ)^(-1/p)`` of a symmetric positive semidefinite matrix, with p a power of two, by products alone.

    The coupled Newton iteration (Guo and Higham 2006, A Schur-Newton method for the matrix pth root and its inverse),
    by which Anil et al. 2020, Scalable Second Order Optimization for Deep Learning, arXiv:2002.09018, compute
    preconditioners. With c the inverse size of the damped matrix, M = c (a + δ) and H = c^(1/p) I, it repeats
    ``S = (1 + 1/p) I - M / p``, ``M ← Sᵖ M``, ``H ← H S``, until M is the identity.

    The ridge δ is `damping` times the size of `a`, and at least `damping` times 1e-10, so that a zero matrix has a
    root, too. Their code takes 1e-6, and float32. Variants: the size is the Frobenius norm, which bounds their largest
    eigenvalue and needs no power iteration; M starts from eigenvalues of at most 1, where each round brings all of them
    closer to 1, instead of (1 + p) / 2. Half precision is computed in float32.

    At most thirty rounds are made, of which a matrix keeps those up to the first that does not bring it closer. A
    damping of 1e-6 needs about 25; eigenvalues below 1e-9 of the size come out as if they were that large. A matrix
    with negative eigenvalues, as rounding may leave them, has a finite result.
    """
    m = as_matrix(a, dims)
    wide = m.to(torch.promote_types(m.dtype, torch.float32))
    eye = eye_like(wide)
    peak = torch.clamp(largest(wide), 1e-30)
    wide = wide / peak
    wide = wide + flat(damping, a, dims) * torch.maximum(frobenius(wide), 1e-10 / peak) * eye
    scale = torch.reciprocal(torch.clamp(frobenius(wide), 1.0))
    x, root = scale * wide, (scale / peak) ** (1 / p) * eye
    error = largest(x - eye)
    runs = torch.ones_like(error) > 0
    for _ in range(30):
        step = (1 + 1 / p) * eye - x / p
        power, times = step, 1
        while times < p:
            power, times = power @ power, 2 * times
        closer = power @ x
        distance = largest(closer - eye)
        runs = runs & (distance < error)
        if not torch.compiler.is_compiling() and not bool(torch.any(runs)):
            break
        root, x = torch.where(runs, root @ step, root), torch.where(runs, closer, x)
        error = torch.where(runs, distance, error)
    return root.to(m.dtype).reshape(a.shape)


def frobenius(m: Tensor) -> Tensor:
    """Frobenius norm of each of a stack of matrices."""
    return torch.sqrt(torch.sum(torch.square(m), dim=(-2, -1), keepdim=True))


def largest(m: Tensor) -> Tensor:
    """Largest magnitude in each of a stack of matrices."""
    return torch.amax(torch.abs(m), dim=(-2, -1), keepdim=True)


def basis(a: Tensor, q: Tensor, damping: Tensor, dims: Sequence[int]) -> Tensor:
    """The orthogonal basis `q` after one step of power iteration towards the eigenvectors of the symmetric matrix `a`.

    ``QR(a q)``, algorithm 4 of Vyas et al. 2024, SOAP, arXiv:2409.11321. Variants: `a` has `damping`
    times its mean eigenvalue added, so that directions in which it is 0 keep their vectors, which rounding would else
    choose; R has no negative diagonal, which makes the result unique. Half precision is computed in float32. A zero
    matrix gives the identity.
    """
    m, b = as_matrix(a, dims), as_matrix(q, dims)
    wide, b = (x.to(torch.promote_types(m.dtype, torch.float32)) for x in (m, b))
    mean = torch.mean(torch.abs(torch.diagonal(wide, 0, -2, -1)), dim=-1, keepdim=True)
    q, r = torch.linalg.qr(wide @ b + flat(damping, a, dims) * mean.reshape(*mean.shape, 1) * b)
    way = torch.diagonal(r, 0, -2, -1)
    way = torch.where(way < 0, -torch.ones_like(way), torch.ones_like(way))
    return (q * way.reshape(*way.shape[:-1], 1, way.shape[-1])).to(m.dtype).reshape(a.shape)


def block_mean(x: Tensor, blocks: Tensor, dims: Sequence[int]) -> Tensor:
    """Every entry of a row or column statistic replaced by the mean of its block.

    Zhang et al. 2024, Adam-mini, arXiv:2406.16793, algorithm 1, give each block, such as the rows of one attention
    head, one second moment. The n entries are cut into `blocks` stretches of lengths that differ by at most 1; their
    number is rounded, at least 1 (also for NaN) and at most n. Half precision is computed in float32.
    """
    wide = x.reshape(*x.shape[: x.ndim - len(dims)], -1).to(torch.promote_types(x.dtype, torch.float32))
    n = wide.shape[-1]
    count = torch.clamp(torch.round(flat(blocks, x, dims, 1)).nan_to_num(1.0), 1, n)
    block = torch.floor(torch.arange(n, dtype=wide.dtype, device=x.device) * count / n).to(torch.int64)
    block = torch.broadcast_to(block, wide.shape)
    total = torch.scatter_add(torch.zeros_like(wide), -1, block, wide)
    size = torch.scatter_add(torch.zeros_like(wide), -1, block, torch.ones_like(wide))
    return torch.gather(total / torch.clamp(size, 1), -1, block).to(x.dtype).reshape(x.shape)


def jvp(f: Callable[..., Tensor], at: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor:
    """How `f` moves when its arguments `at` move `along`: their derivatives, of their shapes."""
    import warnings

    pairs = [torch.broadcast_tensors(x, d) for x, d in zip(at, along, strict=True)]
    with warnings.catch_warnings():  # torch sets up forward mode with what it has itself deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.func.jvp(f, tuple(x for x, _ in pairs), tuple(d for _, d in pairs))[1]
