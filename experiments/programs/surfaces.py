"""The two-dimensional surfaces on which `optforge trajectories` draws how optimizers move: one frozen table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surface:
    """A function of two numbers, and how it is looked at.

    Attributes:
        name: as in commands.
        formula: for the title of a picture, as matplotlib's mathtext.
        function: values at points ``(…, 2)``, of shape ``(…)``; made of torch, so that it can be differentiated.
        start: where paths begin.
        minima: where the function is lowest.
        frame: what a picture shows: left, right, bottom, top.
        steps: how many steps a path has.
        lr: learning rate of every optimizer; None if each has the best one of `trajectories.LR_GRID`.
        noise: standard deviations of the normal noise that is added to the two gradients.
        source: where the function comes from.
    """

    name: str
    formula: str
    function: Callable[[Tensor], Tensor]
    start: tuple[float, float]
    minima: tuple[tuple[float, float], ...]
    frame: tuple[float, float, float, float]
    steps: int
    source: str
    lr: float | None = None
    noise: tuple[float, float] = (0.0, 0.0)

    def gradient(self, points: Tensor) -> Tensor:
        """Gradient without noise at points ``(…, 2)``, by automatic differentiation."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            return torch.autograd.grad(self.function(points).sum(), points)[0]

    def noises(self, steps: int, seed: int) -> Tensor:
        """Noise for the gradient of each step, ``(steps, 2)``: the same for every optimizer with the same seed."""
        generator = torch.Generator().manual_seed(seed)
        scale = torch.tensor(self.noise, dtype=torch.float64)
        return scale * torch.randn(steps, 2, generator=generator, dtype=torch.float64)

    @property
    def lowest(self) -> float:
        """Value at the minima."""
        return float(self.function(torch.tensor(self.minima[0], dtype=torch.float64)))


def _bowl(first: float, second: float) -> Callable[[Tensor], Tensor]:
    return lambda w: first * w[..., 0] ** 2 + second * w[..., 1] ** 2


def _rosenbrock(w: Tensor) -> Tensor:
    x, y = w.unbind(-1)
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _beale(w: Tensor) -> Tensor:
    x, y = w.unbind(-1)
    return (1.5 - x * (1 - y)) ** 2 + (2.25 - x * (1 - y**2)) ** 2 + (2.625 - x * (1 - y**3)) ** 2


def _saddle(w: Tensor) -> Tensor:
    x, y = w.unbind(-1)
    return x**2 / 2 + y**4 / 4 - y**2 / 2


SURFACES: dict[str, Surface] = {
    surface.name: surface
    for surface in (
        # With rate 0.3, gradient descent multiplies w₁ by 1 - 0.6, and w₂ by 1 - 0.6 b: by 0.4 or by -0.8.
        Surface(
            "bowl",
            r"$w_1^2 + w_2^2$",
            _bowl(1.0, 1.0),
            start=(0.5, 0.5),
            minima=((0.0, 0.0),),
            frame=(-0.6, 0.7, -0.6, 0.7),
            steps=20,
            source="a quadratic of curvature 2 in all directions",
            lr=0.3,
        ),
        Surface(
            "zigzag",
            r"$w_1^2 + 3\,w_2^2$",
            _bowl(1.0, 3.0),
            start=(0.5, 0.5),
            minima=((0.0, 0.0),),
            frame=(-0.6, 0.7, -0.6, 0.7),
            steps=20,
            source="a quadratic on which rate 0.3 is too long for one direction and good for the other",
            lr=0.3,
        ),
        Surface(
            "rosenbrock",
            r"Rosenbrock: $(1 - w_1)^2 + 100\,(w_2 - w_1^2)^2$",
            _rosenbrock,
            start=(-1.2, 1.0),
            minima=((1.0, 1.0),),
            frame=(-1.8, 1.8, -0.8, 2.0),
            steps=200,
            source="Rosenbrock 1960, An Automatic Method for Finding the Greatest or Least Value of a Function",
        ),
        Surface(
            "beale",
            r"Beale: $\sum_{k=1}^{3} (c_k - w_1 (1 - w_2^k))^2$,  $c = (1.5, 2.25, 2.625)$",
            _beale,
            start=(1.0, 1.0),
            minima=((3.0, 0.5),),
            frame=(0.0, 4.0, -1.0, 1.6),
            steps=100,
            source="Beale 1958, On an Iterative Method for Finding a Local Minimum; start: Moré et al. 1981",
        ),
        Surface(
            "saddle",
            r"saddle: $\frac{1}{2} w_1^2 + \frac{1}{4} w_2^4 - \frac{1}{2} w_2^2$",
            _saddle,
            start=(1.0, 0.01),
            minima=((0.0, 1.0), (0.0, -1.0)),
            frame=(-0.8, 1.2, -1.3, 1.3),
            steps=50,
            source="Nesterov 2004, Introductory Lectures on Convex Optimization, section 1.2; the saddle is at (0, 0)",
        ),
        # The noise of each gradient has its curvature as variance, as it is near a minimum of a likelihood.
        Surface(
            "noisy",
            r"noisy: $\frac{1}{2} w_1^2 + 5\,w_2^2$, with noise in the gradient",
            _bowl(0.5, 5.0),
            start=(1.0, 1.0),
            minima=((0.0, 0.0),),
            frame=(-0.8, 1.2, -0.9, 1.2),
            steps=100,
            source="noisy quadratic model: Zhang et al. 2019, arXiv:1907.04164",
            noise=(0.5, 0.5 * 10**0.5),
        ),
    )
}
