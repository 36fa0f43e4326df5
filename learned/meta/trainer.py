"""Meta-training: θ moves by Adam along an estimator's gradients, one training run of all workers after the other.

The state is small and exact between training runs, so that a run of meta-training that was interrupted goes on to the
same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from optforge.learned.meta.models import Rule, flatten
from optforge.learned.meta.tasks import Params, Problem
from optforge.learned.meta.training import Estimator, begin, unroll_all
from optforge.primitives import ProgramError

VALIDATION = 2**32  # added to the seed, for problems that training does not see


@dataclass(frozen=True)
class Progress:
    """What one training run of all workers showed.

    Attributes:
        steps: of Adam, done so far.
        problem: its name.
        losses: mean over workers at each step.
        gradient: norm of the meta-gradient, mean over segments.
        skipped: segments whose meta-gradient was not finite, which moved nothing.
    """

    steps: int
    problem: str
    losses: Tensor
    gradient: float
    skipped: int


class MetaTrainer:
    """Trains the weights of a rule.

    Args:
        rule: what is trained.
        problems: what it is trained on; each training run draws one of them.
        estimator: of the meta-gradient.
        steps: how many steps of Adam are planned; its rate falls to 0 over them as a cosine.
        seed: of initial weights, problems and perturbations.
        lr: rate of Adam at first.
        clip: largest norm of a meta-gradient.
        start: weights to begin with, as one vector, in place of random ones.
        workers: how many runs are trained at once; by default as many as a problem has.
        device: where they are trained. What is drawn is the same on all.

    Raises:
        ProgramError: for a rate that is negative or not finite.
    """

    def __init__(
        self,
        rule: Rule,
        problems: Sequence[Problem],
        estimator: Estimator,
        steps: int,
        *,
        seed: int = 0,
        lr: float = 3e-3,
        clip: float = 1.0,
        start: Tensor | None = None,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= lr < math.inf:
            raise ProgramError(f"the rate of meta-training must be a finite number of at least 0, got {lr!r}")
        self.rule, self.estimator, self.steps = rule, estimator, steps
        self.problems = [p if workers is None else replace(p, workers=workers) for p in problems]
        self.seed, self.lr, self.clip = seed, lr, clip
        self.generator = torch.Generator().manual_seed(seed)
        theta = flatten(rule.initial(self.generator), rule) if start is None else start.clone()
        self.theta = theta.to(device)
        self.adam = torch.optim.Adam([self.theta], lr=lr)
        self.done, self.runs = 0, 0  # steps of Adam, and training runs
        self.best, self.best_theta = math.inf, self.theta.clone()

    def run(self) -> Progress:
        """One training run of all workers of a problem, with a step of Adam after each segment."""
        number = int(torch.randint(len(self.problems), (), generator=self.generator))
        problem = self.problems[number]
        instances, params = to_device(problem.draw(self.generator, problem.workers), self.theta.device)
        carried = self.estimator.begin(self.rule, self.theta, params)
        losses, norms, skipped = [], [], 0
        length = self.estimator.truncation or problem.horizon
        for at in range(0, problem.horizon, length):
            steps = min(length, problem.horizon - at)
            batches = problem.batches(self.generator, problem.workers, steps).to(self.theta.device)
            before = carried
            for _ in range(self.estimator.repeats):
                estimate, carried = self.estimator.segment(
                    self.rule, problem, self.theta, before, instances, batches, at, self.generator
                )
                norms.append(self._move(estimate.gradient))
            losses.append(estimate.losses.mean(0))
            if not all(map(math.isfinite, norms)):
                skipped += 1
                break  # what follows would not be finite either
        self.runs += 1
        return Progress(self.done, problem.name, torch.cat(losses).cpu(), sum(norms) / len(norms), skipped)

    def _move(self, gradient: Tensor) -> float:
        """A step of Adam along the gradient of θ, clipped, if it is finite; returns its norm."""
        self.done += 1
        norm = torch.linalg.vector_norm(gradient).item()
        if math.isfinite(norm):
            self.theta.grad = gradient * min(1.0, self.clip / (norm + 1e-12))
            for group in self.adam.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (self.done - 1) / self.steps)))
            self.adam.step()
        return norm

    def validate(self, workers: int = 32) -> dict[str, float]:
        """Mean over held-out instances of what training minimises, by problem; the best θ by their sum is kept."""
        found = {}
        for problem in self.problems:
            losses = evaluate(self.rule, problem, self.theta, VALIDATION + self.seed, min(workers, 2 * problem.workers))
            steps = torch.arange(1, losses.shape[1] + 1)
            found[problem.name] = problem.objective(losses, steps).mean().item()
        total = sum(found.values())
        if total < self.best:
            self.best, self.best_theta = total, self.theta.clone()
        return found

    def state_dict(self) -> dict[str, Any]:
        """All that going on needs, between two runs."""
        return {
            "theta": self.theta.to("cpu", copy=True),
            "adam": self.adam.state_dict(),
            "generator": self.generator.get_state(),
            "done": self.done,
            "runs": self.runs,
            "best": self.best,
            "best_theta": self.best_theta.to("cpu", copy=True),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, of a trainer with the same arguments."""
        self.theta.copy_(state["theta"])
        self.adam.load_state_dict(state["adam"])
        self.generator.set_state(state["generator"])
        self.done, self.runs, self.best = state["done"], state["runs"], state["best"]
        self.best_theta = state["best_theta"].to(self.theta.device, copy=True)


def evaluate(
    rule: Rule, problem: Problem, theta: Tensor, seed: int, workers: int, horizon: int | None = None
) -> Tensor:
    """Losses ``[workers, steps + 1]`` of training runs with fixed weights, on the instances that `seed` draws.

    The last column is the loss after the last step, on one more batch.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = (problem.horizon if horizon is None else horizon) + 1
    instances, params = to_device(problem.draw(generator, workers), theta.device)
    batches = problem.batches(generator, workers, steps).to(theta.device)
    with torch.no_grad():
        return unroll_all(rule, problem, theta, begin(rule, params), instances, batches, 0)[1].cpu()


def to_device(drawn: tuple[Params, Params], device: torch.device) -> tuple[Params, Params]:
    """Instances and parameters, which are drawn on the CPU."""
    instances, params = ({name: x.to(device) for name, x in part.items()} for part in drawn)
    return instances, params
