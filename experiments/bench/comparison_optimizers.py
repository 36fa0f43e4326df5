"""Comparison code, for `experiments.bench.learned` only: optimizers that set their own rate and are in no package here.

Small and faithful to their papers rather than complete: one loop over parameters, no checkpoints of what is global.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_EPS = 1e-8


class Comparison:
    """Parameters and the step number; `update` makes a step of all parameters from their gradients."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        self.params, self.lr, self.steps = list(params), lr, 0
        self.zero = [torch.zeros_like(p) for p in self.params]
        self.m, self.v = [z.clone() for z in self.zero], [z.clone() for z in self.zero]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    takes_loss = True

    @torch.no_grad()
    def step(self, loss: Tensor | None = None) -> None:
        """One step; only MoMo needs the loss."""
        self.steps += 1
        self.update([p.grad for p in self.params if p.grad is not None], loss)

    def update(self, gradients: list[Tensor], loss: Tensor | None) -> None:
        """Move the parameters."""
        raise NotImplementedError

    def adam(self, gradients: list[Tensor], b1: float = 0.9, b2: float = 0.999) -> list[Tensor]:
        """Adam's direction (Kingma & Ba 2015, algorithm 1), whose state advances."""
        found = []
        for m, v, g in zip(self.m, self.v, gradients, strict=True):
            m.lerp_(g, 1 - b1)
            v.lerp_(g * g, 1 - b2)
            found.append(m / (1 - b1**self.steps) / ((v / (1 - b2**self.steps)).sqrt() + _EPS))
        return found


def dot(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> Tensor:
    """Inner product over all parameters."""
    return torch.stack([(x * y).sum() for x, y in zip(xs, ys, strict=True)]).sum()


class AdamHD(Comparison):
    """Adam with an additive hypergradient (Baydin et al. 2018, algorithm 3), hyper-rate 1e-4 as in its experiments."""

    def __init__(self, params: Iterable[Tensor], lr: float, hyper_lr: float = 1e-4) -> None:
        super().__init__(params, lr)
        self.hyper_lr, self.last = hyper_lr, self.zero

    def update(self, gradients: list[Tensor], loss: Tensor | None) -> None:
        """The rate first, then the step."""
        self.lr += self.hyper_lr * float(dot(gradients, self.last))
        self.last = self.adam(gradients)
        for p, u in zip(self.params, self.last, strict=True):
            p -= self.lr * u


class DoG(Comparison):
    """Distance over gradients (Ivgi et al. 2023, arXiv:2302.12022, equation 1); `layerwise` is LDoG.

    The initial movement is lr · (1 + ‖x₀‖). Evaluated at the polynomially averaged iterate (γ = 8, §4), kept in
    `average`.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, layerwise: bool = True) -> None:
        super().__init__(params, lr)
        self.layerwise = layerwise
        self.start = [p.detach().clone() for p in self.params]
        self.average = [p.detach().clone() for p in self.params]
        begin = self._norms(self.start)
        self.far, self.squares = lr * (1 + begin), torch.zeros_like(begin)

    def _norms(self, xs: list[Tensor]) -> Tensor:
        squares = torch.stack([x.square().sum() for x in xs])
        return squares.sqrt() if self.layerwise else squares.sum().sqrt().expand(len(xs))

    def update(self, gradients: list[Tensor], loss: Tensor | None) -> None:
        """Step by the largest distance from the start, over the root of all squared gradients."""
        moved = self._norms([p - s for p, s in zip(self.params, self.start, strict=True)])
        self.far = torch.maximum(self.far, moved)
        self.squares = self.squares + self._norms(gradients).square()
        rates = self.far / (self.squares + _EPS).sqrt()
        weight = 9 / (self.steps + 8)
        for p, g, r, a in zip(self.params, gradients, rates, self.average, strict=True):
            p -= r * g
            a.lerp_(p, min(1.0, weight))


class Mechanic(Comparison):
    """A learned scale of AdamW's steps (Cutkosky, Defazio & Mehta 2023, arXiv:2306.00144, algorithm 1).

    As in its paper: six decays, initial scale 1e-8, decay of 0.01.
    """

    betas = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, lr)
        self.start, self.delta = [p.detach().clone() for p in self.params], [z.clone() for z in self.zero]
        self.beta = torch.tensor(self.betas)
        self.s, self.variance, self.reward, self.largest = (torch.zeros(6) for _ in range(4))

    def update(self, gradients: list[Tensor], loss: Tensor | None) -> None:
        """The tuner sees ⟨g + decay, Δ⟩ before Δ takes another step of AdamW."""
        norm = dot(gradients, gradients).sqrt()
        size = dot(self.params, self.params).sqrt()
        decay = 0.01 * float(self.s.sum()) * norm / (size + _EPS)
        h = -dot([g + decay * p for g, p in zip(gradients, self.params, strict=True)], self.delta)
        self.largest = torch.maximum(self.beta * self.largest, h.abs() + _EPS)
        self.variance = self.beta.square() * self.variance + h * h
        self.reward = (self.beta * self.reward - self.s * h).clamp(min=0)
        wealth = 1e-8 / 6 * self.largest + self.reward
        self.s = wealth / (self.variance.sqrt() + _EPS)
        scale = float(self.s.sum())
        for p, start, d, u in zip(self.params, self.start, self.delta, self.adam(gradients), strict=True):
            d += self.lr * u  # the negative of the paper's Δ
            p.copy_(start - scale * d)


class MoMo(Comparison):
    """MoMo-Adam (Schaipp et al. 2023, arXiv:2305.07583, algorithm 3) with the lower bound 0 on the loss."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, lr)
        self.loss = self.inner = 0.0

    def update(self, gradients: list[Tensor], loss: Tensor | None) -> None:
        """The rate is the smaller of lr and the Polyak step of the averaged model of the loss."""
        assert loss is not None
        b1 = 0.9
        self.loss = b1 * self.loss + (1 - b1) * float(loss)
        self.inner = b1 * self.inner + (1 - b1) * float(dot(gradients, self.params))
        self.adam(gradients)
        correction = 1 - b1**self.steps
        scales = [(v / (1 - 0.999**self.steps)).sqrt() + _EPS for v in self.v]
        square = float(dot(self.m, [m / s for m, s in zip(self.m, scales, strict=True)]))
        height = self.loss + float(dot(self.m, self.params)) - self.inner
        rate = min(self.lr / correction, max(0.0, height) / (square + 1e-30))
        for p, m, s in zip(self.params, self.m, scales, strict=True):
            p -= rate * m / s


OPTIMIZERS: dict[str, Any] = {
    "AdamHD": AdamHD,
    "LDoG": DoG,
    "DoG": lambda params, lr: DoG(params, lr, layerwise=False),
    "Mechanic": Mechanic,
    "MoMo-Adam": MoMo,
}
