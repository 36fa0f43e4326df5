"""Rules that are special cases of each other, or the same in other variables: what their papers say of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from strategies import random_gradients
from test_baselines import assert_equal, train
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines import SGD, AdaGrad, Adam, AdamW, GradientDescent, Momentum, NAdam, Nesterov, RMSProp


class Decoupled(Optimizer):
    """Any optimizer after ``p ← (1 - rate) · p``."""

    def __init__(self, inner: Optimizer, rate: float) -> None:
        self.inner, self.rate = inner, rate

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.inner.param_groups:
            torch._foreach_mul_(group["params"], 1 - self.rate)
        self.inner.step()


def furthest(one: list[list[Tensor]], other: list[list[Tensor]]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one[-1], other[-1], strict=True))


def test_l2_is_decoupled_decay_for_sgd_but_neither_with_momentum_nor_for_adam() -> None:
    lr, decay = 0.01, 0.3

    def decoupled(make: Callable[..., Optimizer]) -> list[list[Tensor]]:
        return train(lambda ps: Decoupled(make(ps, lr=lr), lr * decay))

    def l2(make: Callable[..., Optimizer]) -> list[list[Tensor]]:
        return train(lambda ps: make(ps, lr=lr, weight_decay=decay))

    assert_equal(l2(SGD), decoupled(GradientDescent))
    assert_equal(l2(AdamW), decoupled(Adam))
    for make in (Momentum, Nesterov, Adam, RMSProp, AdaGrad, NAdam):
        assert furthest(l2(make), decoupled(make)) > 1e-3, make.__name__


def quadratic(start: Tensor) -> Callable[[Tensor], Tensor]:
    """Gradient of a convex quadratic of ill-conditioned curvature."""
    factor = random_gradients((start.numel(), start.numel()), 0, seed=7)[0]
    return lambda x: (factor @ factor.T) @ x


def test_nesterov_looks_ahead_as_in_the_literature() -> None:
    """The parameter is the point ahead, ``q + momentum · v``, where the literature evaluates its gradients."""
    lr, momentum = 0.01, 0.9
    q = random_gradients((6,), 0, seed=3)[0]
    gradient, v, p = quadratic(q), torch.zeros_like(q), nn.Parameter(q.clone())
    optimizer = Nesterov([p], lr=lr, momentum=momentum)
    for _ in range(50):
        v = momentum * v - lr * gradient(q + momentum * v)  # Sutskever et al. 2013, equations 3 and 4
        q = q + v
        p.grad = gradient(p.detach())
        optimizer.step()
        torch.testing.assert_close(p.detach(), q + momentum * v, rtol=0, atol=1e-12)
    assert float((p.detach() - q).abs().max()) > 1e-4, "both points are the same, so nothing was compared"


def test_momentum_is_the_two_point_form_of_polyak() -> None:
    """``x(t+1) = x(t) - lr · g + momentum · (x(t) - x(t-1))``."""
    lr, momentum = 0.01, 0.9
    x = before = random_gradients((6,), 0, seed=3)[0]
    gradient, p = quadratic(x), nn.Parameter(x.clone())
    optimizer = Momentum([p], lr=lr, momentum=momentum)
    for _ in range(50):
        x, before = x - lr * gradient(x) + momentum * (x - before), x
        p.grad = gradient(p.detach())
        optimizer.step()
        torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-12)


def test_adam_without_momentum_is_rmsprop_with_bias_correction() -> None:
    """That is, RMSProp whose learning rate and epsilon are multiplied by the root of ``1 - alpha^step``."""

    class Corrected(RMSProp):
        def step(self, closure: Any = None) -> Any:
            self.steps = getattr(self, "steps", 0) + 1
            for group in self.param_groups:
                factor = (1 - group["alpha"] ** self.steps) ** 0.5
                group["lr"], group["eps"] = 0.01 * factor, 1e-3 * factor
            return super().step(closure)

    adam = train(lambda ps: Adam(ps, lr=0.01, betas=(0.0, 0.95), eps=1e-3))
    assert_equal(adam, train(lambda ps: Corrected(ps, alpha=0.95)))
    assert furthest(adam, train(lambda ps: RMSProp(ps, lr=0.01, alpha=0.95, eps=1e-3))) > 1e-3


def test_nesterov_without_momentum_is_sgd() -> None:
    options = {"lr": 0.01, "weight_decay": 0.3}
    assert_equal(train(lambda ps: Nesterov(ps, momentum=0.0, **options)), train(lambda ps: SGD(ps, **options)))


def test_nadam_without_momentum_is_adam_without_momentum() -> None:
    options = {"lr": 0.01, "betas": (0.0, 0.99)}
    assert_equal(train(lambda ps: NAdam(ps, **options)), train(lambda ps: Adam(ps, **options)))  # type: ignore[arg-type]
