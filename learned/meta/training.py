"""Estimators of meta-gradients behind one interface: backpropagation through training, truncated or not.

Training runs are cut into segments. An estimator takes θ and what it carries from the segment before, and gives a
gradient of the mean objective of this one, and what the next needs. Workers, which differ in problem and start, run as
one by `torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from optforge.learned.meta.models import Rule, State, unflatten
from optforge.learned.meta.tasks import Params, Problem


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


ESTIMATORS: dict[str, Callable[..., Any]] = {
    "bptt": partial(Backpropagation, truncation=None, curvature=1.0, clip=3.0),
    "tbptt": Backpropagation,
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
    """`unroll` of all workers with one θ."""

    def one(carry: Carry, instance: Params, batches: Tensor) -> tuple[Tensor, Tensor, Carry]:
        return unroll(rule, problem, theta, carry, instance, batches, done)

    return vmap(one, in_dims=(0, 0 if instances else None, 0))(carry, instances, batches)
