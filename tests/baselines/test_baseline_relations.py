"""Rules that are special cases of each other, or the same in other variables: what their papers say of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.strategies import random_gradients
from support.training_runs import assert_equal, train
from torch import Tensor, nn
from torch.optim import Optimizer

from optforge.baselines import (
    BASELINES,
    LAMB,
    LARS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Adan,
    GradientDescent,
    Lion,
    Momentum,
    NAdam,
    Nesterov,
    RMSProp,
)
from optforge.primitives import ProgramOptimizer


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


def test_lion_without_memory_is_sign_descent() -> None:
    lr, decay = 0.01, 0.3
    lion = train(lambda ps: Lion(ps, lr=lr, betas=(0.0, 0.0), weight_decay=decay))
    signs = train(lambda ps: Decoupled(OfSigns(ps, lr=lr), lr * decay))
    assert_equal(lion, signs)


class OfSigns(GradientDescent):
    """Gradient descent that only hears the signs."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = p.grad.sign()
        return super().step(closure)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lamb_is_adamw_where_the_ratio_is_1(weight_decay: float) -> None:
    """Before each step the parameter is scaled to the size of the step to come, which decides the ratio."""
    start, *gradients = random_gradients((4, 3), 20, seed=1)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    probe = nn.Parameter(torch.zeros_like(start))
    lamb = LAMB([ours], lr=0.01, eps=1e-8, weight_decay=weight_decay)
    adamw = torch.optim.AdamW([theirs], lr=0.01, weight_decay=weight_decay)
    adam = torch.optim.Adam([probe], lr=1.0)
    for g in gradients:
        probe.grad, before = g.clone(), probe.detach().clone()
        adam.step()
        direction = before - probe.detach()
        scale = size_at_which_the_ratio_is_1(theirs.detach(), direction, weight_decay)
        for p, optimizer in ((ours, lamb), (theirs, adamw)):
            p.data *= scale
            p.grad = g.clone()
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def size_at_which_the_ratio_is_1(p: Tensor, direction: Tensor, decay: float) -> Tensor:
    """The s > 0 for which ``‖s p‖ = ‖direction + decay · s p‖``."""
    a, b, c = (1 - decay**2) * p.norm() ** 2, -2 * decay * (p * direction).sum(), -(direction.norm() ** 2)
    return (-b + (b**2 - 4 * a * c).sqrt()) / (2 * a)


def test_first_steps_are_shares_of_the_parameter() -> None:
    """LAMB's is ``lr`` of it, not ten times that; LARS's ``lr · trust_coefficient``, also without weight decay."""
    for decay in (0.0, 0.3):
        start, _ = train(lambda ps, d=decay: LAMB(ps, lr=0.0, weight_decay=d), steps=2)
        (lamb,) = train(lambda ps, d=decay: LAMB(ps, lr=0.01, weight_decay=d), steps=1)
        for p, after in zip(start, lamb, strict=True):
            assert float((after - p).norm() / p.norm()) == pytest.approx(0.01, rel=1e-12)
    (lars,) = train(lambda ps: LARS(ps, lr=0.1, trust_coefficient=0.02), steps=1)
    for p, after in zip(start, lars, strict=True):
        assert float((after - p).norm() / p.norm()) == pytest.approx(0.002, rel=1e-12)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_parameters_that_are_zero_begin_to_move(name: str) -> None:
    row = BASELINES[name]
    for make in (row.optimizer, lambda ps, lr: ProgramOptimizer(ps, row.program, lr)):
        p, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
        p.grad, still.grad = torch.tensor([1.0, -2.0, 3.0]), torch.zeros(2)
        make([p, still], lr=0.1).step()
        expected = -0.1 * (p.grad.sign() if name == "lamb" else p.grad)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=0)
        assert still.tolist() == [0.0, 0.0]


def test_adan_is_adamw_under_constant_gradients_but_for_the_place_of_weight_decay() -> None:
    """All differences are zero then, the first too; and decay divides the parameter after the step."""
    lr, decay = 0.01, 0.3
    for g in (torch.tensor([0.3, -20.0, 1e-3]), torch.tensor([0.0, 1.0, -1.0])):
        p, q = nn.Parameter(torch.ones(3, dtype=torch.float64)), nn.Parameter(torch.ones(3, dtype=torch.float64))
        adan = Adan([p], lr=lr, betas=(0.9, 0.7, 0.99), weight_decay=decay)
        adam = torch.optim.Adam([q], lr=lr, betas=(0.9, 0.99))
        for _ in range(10):
            p.grad = q.grad = g.double()
            adan.step()
            adam.step()
            q.data /= 1 + lr * decay
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_adan_by_hand() -> None:
    """Two gradients, with decays of one half: the first is not dropped, the second is seen with its difference."""
    p = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    optimizer = Adan([p], lr=1.0, betas=(0.5, 0.5, 0.5), eps=0.0)
    seen = []
    for g in (1.0, 3.0):
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        seen.append(p.item())
    # m = (0.25 · 1 + 0.5 · 3) / 0.75, v = (0 + 0.5 · 2) / 0.75, n = (0.25 · 1² + 0.5 · (3 + 0.5 · 2)²) / 0.75
    second = (1.75 / 0.75 + 0.5 * 1.0 / 0.75) / (8.25 / 0.75) ** 0.5
    assert seen == pytest.approx([-1.0, -1.0 - second], abs=1e-14)
