"""Functions of many numbers to be minimised, as models: the point is the parameter, the value is the output.

Inputs ``[batch, …]`` are draws of the noise, where there is any; outputs are values ``[batch]``. All have minimum 0.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from optforge.search.training.task import Splits, TensorSplit


class Quadratic(nn.Module):
    """½ Σ hᵢ zᵢ² + Σ ξᵢ √hᵢ zᵢ with z = R x, from a normal start x.

    For standard normal ξ, the gradient has the Hessian as its covariance: the noisy quadratic model of Zhang et al.
    2019 (arXiv:1907.04164, §3), with noise in the function rather than in its gradient. For ξ = 0 it is a quadratic
    with the curvatures h.

    Args:
        curvatures: h, ``[n]``, positive.
        rotated: whether R is a random rotation, so that no curvature belongs to a coordinate, or the identity.
    """

    curvatures: Tensor
    rotation: Tensor | None

    def __init__(self, curvatures: Tensor, rotated: bool) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.randn(len(curvatures)))
        self.register_buffer("curvatures", curvatures, persistent=False)
        self.register_buffer("rotation", _rotation(len(curvatures)) if rotated else None, persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        """Values ``[batch]`` for noise ``[batch, n]``."""
        z = self.point if self.rotation is None else self.rotation @ self.point
        return 0.5 * (self.curvatures * z.square()).sum() + noise @ (self.curvatures.sqrt() * z)


class Rosenbrock(nn.Module):
    """Mean over i < n of 100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)², from near the classical start (−1.2, 1, −1.2, 1, …).

    Rosenbrock 1960 (doi:10.1093/comjnl/3.3.175) in two dimensions; the chained form in n. The start has normal noise
    of standard deviation 0.1, so that seeds differ.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor([-1.2, 1.0]).repeat(n // 2) + 0.1 * torch.randn(n))

    def forward(self, inputs: Tensor) -> Tensor:
        """The same value for every example, ``[batch]``."""
        x, after = self.point[:-1], self.point[1:]
        value = (100 * (after - x.square()).square() + (1 - x).square()).mean()
        return value.expand(inputs.shape[:-1])


@functools.cache
def no_noise(n: int) -> Splits:
    """Inputs for a function without noise: a few rows of ``n`` zeros in every split."""
    zeros = torch.zeros(32, n)
    return Splits(*(TensorSplit(zeros, torch.zeros(32)) for _ in range(3)))


@functools.cache
def normal_noise(n: int, draws: int) -> Splits:
    """Standard normal draws for training, ``[2 · draws, n]``, and zeros elsewhere: the function itself is measured.

    Draws come in pairs of opposite sign, so that their mean over the training split vanishes.
    """
    noise = torch.randn(draws, n, generator=torch.Generator().manual_seed(0))
    train = torch.cat([noise, -noise])
    return no_noise(n)._replace(train=TensorSplit(train, torch.zeros(len(train))))


@functools.cache
def _rotation(n: int) -> Tensor:
    normal = torch.randn(n, n, dtype=torch.float64, device="cpu", generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(normal).Q.float()
