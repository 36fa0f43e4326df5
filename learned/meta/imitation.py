"""Imitation: a rule learns to make the steps that another one makes (Chen et al. 2020, Training Stronger Baselines for
Learning to Optimize, arXiv:2010.09089, §3.3).

What backpropagation through the training runs of a poor rule says is mostly noise. Steps of a teacher are a target for
each coordinate at each step, no derivative goes through the problem, and a few coordinates stand for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from optforge.learned.meta.models import Rule, State, Weights, unflatten
from optforge.learned.meta.tasks import Params, Problem
from optforge.learned.meta.training import Carry, Estimate, begin

TINY = 1e-12  # of a teacher's squared step


@dataclass
class Lesson:
    """A training run, and what its segment showed once it was led: gradients, the teacher's steps, and losses.

    The first two are by name, ``[workers, steps, coordinates]``.
    """

    carry: Carry
    shown: tuple[Params, Params, Tensor] | None = None


class Imitation:
    """The relative error ‖u − u*‖² / ‖u*‖² of a rule's steps u beside the teacher's u*, for the same gradients.

    It is the mean over tensors and steps. Each estimate looks at coordinates of its own; all of a run share its
    gradients, which take longest. Variants: the teacher is another learned rule, and training runs follow its steps
    or, some of them, those of the rule itself, which so is told what to do where only it would get to (Ross et al.
    2011, arXiv:1011.0686).

    Args:
        teacher, weights: the rule to be imitated.
        coordinates: how many of each tensor an estimate looks at.
        own: share of training runs that the imitating rule leads.
        repeats: estimates, each with a step of Adam, of one training run.
    """

    truncation: int | None = None

    def __init__(
        self, teacher: Rule, weights: Weights, coordinates: int = 400, own: float = 0.5, repeats: int = 8
    ) -> None:
        self.teacher, self.weights = teacher, weights
        self.coordinates, self.own, self.repeats = coordinates, own, repeats

    def begin(self, rule: Rule, theta: Tensor, params: Params) -> Lesson:
        """One run for each worker."""
        return Lesson(begin(rule, params))

    def segment(
        self,
        rule: Rule,
        problem: Problem,
        theta: Tensor,
        carried: Lesson,
        instances: Params,
        batches: Tensor,
        done: int,
        generator: torch.Generator,
    ) -> tuple[Estimate, Lesson]:
        """See `Estimator.segment`; all workers of a run have the same leader."""
        numbers = [torch.tensor(float(k), dtype=torch.float64) for k in range(done + 1, done + 1 + batches.shape[1])]
        if carried.shown is None:
            own = bool(torch.rand((), generator=generator) < self.own)
            leader = (rule, unflatten(theta.detach(), rule)) if own else None
            carried.shown = self._lead(leader, problem, carried.carry, instances, batches, numbers)
        gradients, steps, losses = carried.shown
        at = {
            name: torch.randperm(g.shape[-1], generator=generator)[: self.coordinates].to(theta.device)
            for name, g in gradients.items()
        }
        seen, wanted = ({name: x[..., at[name]] for name, x in part.items()} for part in (gradients, steps))

        def error(theta: Tensor, seen: Params, wanted: Params) -> Tensor:
            weights, states = unflatten(theta, rule), {name: rule.init(g[0]) for name, g in seen.items()}
            total = theta.new_zeros(())
            for k, number in enumerate(numbers):
                now = {name: g[k] for name, g in seen.items()}
                made, states = _step(rule, weights, now, now, states, number)
                for name, u in made.items():
                    target = wanted[name][k]
                    total = total + (u - target).square().sum() / (target.square().sum() + TINY)
            return total / (len(numbers) * len(seen))

        each = vmap(grad(error), in_dims=(None, 0, 0))(theta.detach(), seen, wanted)
        return Estimate(each.mean(0), losses), carried

    def _lead(
        self,
        leader: tuple[Rule, Weights] | None,
        problem: Problem,
        carry: Carry,
        instances: Params,
        batches: Tensor,
        numbers: list[Tensor],
    ) -> tuple[Params, Params, Tensor]:
        """Training runs of all workers, which follow the leader, or the teacher; see `Lesson.shown`."""
        weights = {name: w.to(batches.device) for name, w in self.weights.items()}

        def one(carry: Carry, instance: Params, batches: Tensor) -> tuple[Params, Params, Tensor]:
            params, states = carry
            taught = {name: self.teacher.init(p) for name, p in params.items()}
            gradients, steps, losses = [], [], []
            for number, batch in zip(numbers, batches.unbind(0), strict=True):
                now, loss = grad_and_value(problem.loss)(params, instance, batch)
                wanted, taught = _step(self.teacher, weights, params, now, taught, number)
                gradients.append({name: g.reshape(-1) for name, g in now.items()})
                steps.append({name: u.reshape(-1) for name, u in wanted.items()})
                losses.append(loss)
                if leader is not None:
                    wanted, states = _step(*leader, params, now, states, number)
                params = {name: p - wanted[name] for name, p in params.items()}
            shown = ({name: torch.stack([x[name] for x in part]) for name in params} for part in (gradients, steps))
            return *shown, torch.stack(losses)  # type: ignore[return-value]

        with torch.no_grad():
            return vmap(one, in_dims=(0, 0 if instances else None, 0))(carry, instances, batches)


def _step(
    rule: Rule, weights: Weights, params: Params, gradients: Params, states: dict[str, State], number: Tensor
) -> tuple[Params, dict[str, State]]:
    names = list(params)
    updates, after = rule.step(
        weights, [params[n] for n in names], [gradients[n] for n in names], [states[n] for n in names], number
    )
    return dict(zip(names, updates, strict=True)), dict(zip(names, after, strict=True))


__all__ = ["Imitation", "Lesson"]
