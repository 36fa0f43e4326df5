"""Estimators of meta-gradients behind one interface: backpropagation, truncated or not, ES and PES.

Training runs are cut into segments. An estimator takes θ and what it carries from the segment before, and gives a
gradient of the mean objective of this one, and what the next needs. Workers, which differ in problem and start, and
perturbations run as one by `torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from optforge.learned.meta_models import Rule, State, unflatten
from optforge.learned.meta_tasks import Params, Problem


class Carry(NamedTuple):
    """Where training runs stand: parameters, and the rule's state of each, by name."""

    params: Params
    states: dict[str, State]


class Estimate(NamedTuple):
    """`gradient` of θ's shape; `losses` ``[workers, steps]``, those that θ, or what is nearest to it, had."""

    gradient: Tensor
    losses: Tensor


def begin(rule: Rule, params: Params) -> Carry:
    """Before the first step; `params` are those of all workers, ``[workers, …]``."""
    return Carry(params, {name: vmap(rule.init)(p) for name, p in params.items()})


def unroll(
    rule: Rule,
    problem: Problem,
    theta: Tensor,
    carry: Carry,
    instance: Mapping[str, Tensor],
    batches: Tensor,
    done: int = 0,
    *,
    curvature: float = 0.0,
) -> tuple[Tensor, Tensor, Carry]:
    """Train one worker for ``len(batches)`` steps, of which `done` were made before.

    Args:
        rule, problem: what trains, and what is trained.
        theta: weights of the rule, as one vector.
        carry: parameters and state.
        instance: which function of the problem it is.
        batches: what each step sees, ``[steps, …]``.
        done: number of steps made so far.
        curvature: how much of the derivative of gradients, which are functions of the parameters, is kept. With 0 they
            are constants, as Andrychowicz et al. 2016 have it (§2.1); 1 is exact. Between the two, the derivative of a
            long run stays bounded where steps are near the largest that are stable, as those of a good rule are.

    Returns:
        The mean of `Problem.objective`, 0-dimensional; the losses before each step, ``[steps]``; and the carry.
    """
    weights = unflatten(theta, rule)
    params, states = carry
    names, losses, total = list(params), [], theta.new_zeros(())
    for number, batch in enumerate(batches.unbind(0), done + 1):
        at = {n: torch.lerp(p.detach(), p, curvature) for n, p in params.items()}
        gradients, loss = grad_and_value(problem.loss)(at, instance, batch)
        lost = [
            (gradients[n] * (params[n] - at[n])).sum() for n in names
        ]  # 0, with the derivative that `at` leaves out
        loss = loss + torch.stack(lost).sum()
        total = total + problem.objective(loss, number)
        losses.append(loss.detach())
        updates, after = rule.step(
            weights,
            [params[n] for n in names],
            [gradients[n] for n in names],
            [states[n] for n in names],
            torch.tensor(float(number), dtype=torch.float64),
        )
        params = {n: params[n] - u for n, u in zip(names, updates, strict=True)}
        states = dict(zip(names, after, strict=True))
    return total / len(batches), torch.stack(losses), Carry(params, states)


class Estimator(Protocol):
    """A way to estimate the derivative of a segment's objective with respect to θ.

    Attributes:
        truncation: the number of steps of a segment; None for whole training runs.
        repeats: how many estimates are made of a segment, each with a step of Adam.
    """

    truncation: int | None
    repeats: int

    def begin(self, rule: Rule, theta: Tensor, params: Params) -> Any:
        """What is carried into the first segment; `params` are those of all workers, ``[workers, …]``."""
        ...

    def segment(
        self,
        rule: Rule,
        problem: Problem,
        theta: Tensor,
        carried: Any,
        instances: Params,
        batches: Tensor,
        done: int,
        generator: torch.Generator,
    ) -> tuple[Estimate, Any]:
        """Estimate on one segment; arguments as for `unroll`, with a leading dimension of workers.

        `carried` is that of the segment before, in all `repeats`.
        """
        ...


class Backpropagation:
    """Backpropagation through a segment; what came before is constant (Werbos 1990, doi:10.1109/5.58337).

    Args:
        truncation: see `Estimator`; 20 is that of Andrychowicz et al. 2016.
        curvature: see `unroll`.
        clip: largest norm of the derivative of one worker. Where training runs are chaotic it has no bound (Metz et al.
            2019, arXiv:1810.10180), and one such run would drown all others.
    """

    repeats = 1

    def __init__(self, truncation: int | None = 20, curvature: float = 0.0, clip: float = math.inf) -> None:
        self.truncation, self.curvature, self.clip = truncation, curvature, clip

    def begin(self, rule: Rule, theta: Tensor, params: Params) -> Carry:
        """One run for each worker."""
        return begin(rule, params)

    def segment(
        self,
        rule: Rule,
        problem: Problem,
        theta: Tensor,
        carried: Carry,
        instances: Params,
        batches: Tensor,
        done: int,
        generator: torch.Generator,
    ) -> tuple[Estimate, Carry]:
        """See `Estimator.segment`."""

        def one(theta: Tensor, carry: Carry, instance: Params, batches: Tensor) -> tuple[Tensor, tuple[Tensor, Carry]]:
            value, losses, carry = unroll(
                rule, problem, theta, carry, instance, batches, done, curvature=self.curvature
            )
            return value, (losses, carry)

        each = vmap(grad(one, has_aux=True), in_dims=(None, 0, 0 if instances else None, 0))
        gradients, (losses, carry) = each(theta.detach(), carried, instances, batches)
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        scales = (self.clip / (norms + 1e-12)).clamp(max=1.0)
        return Estimate((gradients * scales).mean(0), losses), carry


class ES:
    """Antithetic evolution strategies: ε (L(θ+ε) − L(θ−ε)) / 2σ², for each worker an ε of its own.

    Unbiased for the segment's smoothed loss (Nesterov & Spokoiny 2017, doi:10.1007/s10208-015-9296-2). The next
    segment begins where θ itself arrives, so that the loss of later segments is left out, as it is in truncated
    backpropagation (Vicol et al. 2021, arXiv:2112.13835, algorithm 1).

    Args:
        sigma: standard deviation of ε.
        truncation: see `Estimator`.
    """

    repeats = 1

    def __init__(self, sigma: float = 0.01, truncation: int | None = 20) -> None:
        self.sigma, self.truncation = sigma, truncation

    def begin(self, rule: Rule, theta: Tensor, params: Params) -> Carry:
        """One run for each worker."""
        return begin(rule, params)

    def segment(
        self,
        rule: Rule,
        problem: Problem,
        theta: Tensor,
        carried: Carry,
        instances: Params,
        batches: Tensor,
        done: int,
        generator: torch.Generator,
    ) -> tuple[Estimate, Carry]:
        """See `Estimator.segment`."""
        eps = _normal(theta, len(batches), self.sigma, generator)
        with torch.no_grad():
            thetas = theta + torch.cat([eps, -eps, torch.zeros_like(eps)])
            carried, instances, batches = _repeat(3, carried, instances, batches)
            value, losses, carry = unroll_all(rule, problem, thetas, carried, instances, batches, done)
            plus, minus, _ = value.chunk(3)
            gradient = _weighted(eps, plus, minus, self.sigma)
        return Estimate(gradient, losses.chunk(3)[2]), _map(lambda x: x.chunk(3)[2], carry)


class PES:
    """Persistent evolution strategies (Vicol et al. 2021, arXiv:2112.13835, algorithm 2): unbiased in spite of
    truncation. Both runs of a pair go on perturbed, and the sum of all ε of a run weighs the loss of a segment.

    Args:
        sigma: standard deviation of the ε of a segment.
        truncation: see `Estimator`.
    """

    repeats = 1

    def __init__(self, sigma: float = 0.01, truncation: int | None = 20) -> None:
        self.sigma, self.truncation = sigma, truncation

    def begin(self, rule: Rule, theta: Tensor, params: Params) -> tuple[Carry, Tensor]:
        """Two runs for each worker, the positive ones first, and the sum of perturbations ``[workers, θ]``."""
        count = len(next(iter(params.values())))
        doubled = {name: torch.cat([p, p]) for name, p in params.items()}
        return begin(rule, doubled), theta.new_zeros(count, len(theta))

    def segment(
        self,
        rule: Rule,
        problem: Problem,
        theta: Tensor,
        carried: tuple[Carry, Tensor],
        instances: Params,
        batches: Tensor,
        done: int,
        generator: torch.Generator,
    ) -> tuple[Estimate, tuple[Carry, Tensor]]:
        """See `Estimator.segment`."""
        carry, total = carried
        eps = _normal(theta, len(batches), self.sigma, generator)
        with torch.no_grad():
            total = total + eps
            _, instances, batches = _repeat(2, carry, instances, batches)
            value, losses, carry = unroll_all(
                rule, problem, theta + torch.cat([eps, -eps]), carry, instances, batches, done
            )
            plus, minus = value.chunk(2)
            gradient = _weighted(total, plus, minus, self.sigma)
        return Estimate(gradient, torch.stack(losses.chunk(2)).mean(0)), (carry, total)


ESTIMATORS: dict[str, Callable[..., Any]] = {
    "bptt": partial(Backpropagation, truncation=None, curvature=1.0, clip=3.0),
    "tbptt": Backpropagation,
    "es": ES,
    "pes": PES,
}
"""Estimators without a teacher by name: backpropagation through whole training runs is `bptt`, with `curvature` 1
unless it is given; the paper's is `tbptt`."""


def unroll_all(
    rule: Rule,
    problem: Problem,
    theta: Tensor,
    carry: Carry,
    instances: Params,
    batches: Tensor,
    done: int,
) -> tuple[Tensor, Tensor, Carry]:
    """`unroll` of all workers, with one θ ``[size]`` for all or one for each ``[workers, size]``."""

    def one(theta: Tensor, carry: Carry, instance: Params, batches: Tensor) -> tuple[Tensor, Tensor, Carry]:
        return unroll(rule, problem, theta, carry, instance, batches, done)

    shared = None if theta.ndim == 1 else 0
    return vmap(one, in_dims=(shared, 0, 0 if instances else None, 0))(theta, carry, instances, batches)


def _normal(theta: Tensor, count: int, sigma: float, generator: torch.Generator) -> Tensor:
    return sigma * torch.randn(count, len(theta), generator=generator, dtype=theta.dtype).to(theta.device)


def _weighted(eps: Tensor, plus: Tensor, minus: Tensor, sigma: float) -> Tensor:
    """Mean over workers of ε (L⁺ − L⁻) / 2σ²; a pair of which one diverged says nothing."""
    difference = torch.where(torch.isfinite(plus) & torch.isfinite(minus), plus - minus, 0.0)
    return (eps * difference[:, None]).mean(0) / (2 * math.pow(sigma, 2))


def _map(function, tree):  # type: ignore[no-untyped-def]
    return torch.utils._pytree.tree_map(function, tree)


def _repeat(times: int, *trees):  # type: ignore[no-untyped-def]
    return [_map(lambda x: torch.cat([x] * times), tree) for tree in trees]
