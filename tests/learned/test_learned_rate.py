"""The rule of a learned rate: averages, the cap, and schedules, as functions and in runs."""

from __future__ import annotations

import math

import pytest
import torch
from support.learned import PROGRAMS, Problem
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from optforge.learned import LearnedOptimizer, learn
from optforge.learned.rate import CAP, MARGIN, TRUST, LearnedRate, capped, follow, on_scale
from optforge.primitives import ProgramOptimizer
from optforge.primitives.kinds import SCALES
from optforge.search.training.torch_schedules import SCHEDULES


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


BEGIN = LearnedRate(0.01, 0.01, {})


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("size", "moves"), [(0.9 * MARGIN, False), (1.1 * MARGIN, True)])
def test_small_averages_of_cosines_move_nothing(sign: int, size: float, moves: bool) -> None:
    after = follow(BEGIN._replace(trusted=number(0.0)), number(sign * size), 0.3)
    assert after.log.item() == pytest.approx(0.3 * sign * size if moves else 0.0)


def test_a_cosine_that_is_not_finite_moves_nothing() -> None:
    assert follow(BEGIN, number(math.nan), 0.3) == BEGIN


def test_a_trusted_rate_is_not_undercut() -> None:
    lifted = BEGIN._replace(log=number(0.1))
    assert follow(lifted, number(-1.0), 0.3).log == 0
    assert follow(lifted._replace(trusted=number(0.0)), number(-1.0), 0.3).log.item() == pytest.approx(-0.2)


def test_a_lift_must_be_more_than_a_schedule_has_taken_since_the_last_one() -> None:
    rate = follow(BEGIN, number(0.5), 0.2, share=1.0)
    assert rate.log.item() == pytest.approx(0.1) and rate.level == 1
    assert follow(rate, number(0.5), 0.2, share=0.95).log.item() == pytest.approx(0.2)
    assert follow(rate, number(0.5), 0.2, share=0.95).level.item() == 0.95
    blocked = follow(rate, number(0.5), 0.2, share=0.89)
    assert blocked.log == rate.log and blocked.level == 1
    assert follow(blocked, number(0.5), 0.2, share=1.0).log.item() == pytest.approx(0.2)  # after a restart
    assert follow(rate._replace(trusted=number(0.0)), number(-9.0), 0.2, share=0.5).log < rate.log


def test_the_cap_by_hand() -> None:
    """It remembers the largest change, allows the given rate, and stops once that ever changes too much."""
    rate = capped(BEGIN._replace(log=number(1.0)), number(0.04), CAP)
    assert rate.log == 0 and rate.largest.item() == 0.04 and rate.trusted == 1
    rate = capped(rate, number(0.001), CAP, steps=2)
    assert rate.largest.item() == pytest.approx(0.04 * 0.99**2)
    lifted = capped(rate._replace(log=number(9.0)), number(0.001), CAP, steps=1000)
    assert lifted.log.item() == pytest.approx(math.log(CAP / 0.001))
    lowered = capped(rate, number(1.01 * TRUST * CAP), CAP)
    assert lowered.trusted == 0 and lowered.log.item() == pytest.approx(-math.log(1.01 * TRUST))
    assert capped(rate, number(math.nan), CAP) == rate


@pytest.mark.parametrize("scale", ["log", "unit", "linear"])
def test_hyperparameters_move_on_their_scale(scale: str) -> None:
    forward, inverse = SCALES[scale].forward, SCALES[scale].inverse
    for start, change in ((0.3, -0.1), (0.9, 0.5)):
        moved = on_scale(scale, number(start), start, number(change))
        assert moved.item() == pytest.approx(inverse(forward(start) + change))
    assert on_scale(scale, number(0.5), 0.5, number(9.0)).item() == pytest.approx(inverse(forward(0.5) + 3.0))


def run(make: object, schedule: object, steps: int = 300, seed: int = 0) -> tuple[LearnedOptimizer, list[float]]:
    """An optimizer after a run of a small network on batches in turn, and its learned rates after each step."""
    problem = Problem(seed)
    optimizer = make(problem.model.parameters())  # type: ignore[operator]
    scheduler: LRScheduler | None = schedule(optimizer) if schedule else None  # type: ignore[operator]
    rates = []
    for step in range(steps):
        problem.step(optimizer, step % 40)
        rates.append(optimizer.learned_values()["lr"])
        if scheduler is not None:
            scheduler.step()
    return optimizer, rates


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("cap", [CAP, None])
def test_a_schedule_that_falls_does_not_make_the_peak_rise(name: str, schedule: str, cap: float | None) -> None:
    """In its second half, from rates far too small and from one that suits; the rate of a step goes to 0 with it."""
    for lr in (1e-6, 1e-2):
        optimizer, rates = run(
            lambda ps, lr=lr: learn(ps, PROGRAMS[name], lr, cap=cap), lambda o: SCHEDULES[schedule](o, 300)
        )
        assert rates[-1] <= 1.02 * rates[150]
        assert optimizer.effective_lrs()[0] < 0.01 * rates[-1]
        assert lr > 1e-3 or rates[-1] > 1e-4, "nothing was learned, so nothing was tested"


def test_gradients_that_always_agree_lift_no_rate_that_a_schedule_has_lowered() -> None:
    """Once averages rest, whatever the schedule takes is not given back by lifts that are smaller."""
    p = nn.Parameter(torch.full((8, 8), 1e3, dtype=torch.float64))
    optimizer = learn([p], PROGRAMS["sgd"], 1e-3, cap=None, every=1)
    scheduler = LambdaLR(optimizer, lambda t: 1.0 if t < 50 else 0.5 if t < 70 else 0.45)
    rates = []
    for step in range(120):
        side = torch.ones(8, 8, dtype=torch.float64)
        side[:, :4] *= (-1.0) ** step if step < 60 else 1.0  # half of it turns around: an average of 0 until then
        p.grad = side * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4) ** step if step < 60 else side
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.learned_values()["lr"])
    assert rates[-1] == rates[62]


@pytest.mark.parametrize("warmup", [20, 100])
def test_learning_rests_while_a_schedule_rises(warmup: int) -> None:
    _, rates = run(lambda ps: learn(ps, PROGRAMS["adamw"], 1e-5), lambda o: SCHEDULES["linear"](o, 300, warmup))
    assert rates[: warmup - 1] == [pytest.approx(1e-5)] * (warmup - 1) and rates[warmup + 20] > 2e-5


def test_effective_lrs_are_those_of_the_last_step() -> None:
    """Of gradient descent, the distance of a step over the gradient, for each group."""
    problem = Problem()
    optimizer = learn(problem.groups(1e-3, 2.0), PROGRAMS["sgd"])
    scheduler = CosineAnnealingLR(optimizer, 20)
    assert optimizer.effective_lrs() == [1e-3, 2e-3]
    params = list(problem.model.parameters())
    for step in range(15):
        before = [p.detach().clone() for p in params]
        problem.step(optimizer, step)
        scheduler.step()
        rates = [((b - p).norm() / p.grad.norm()).item() for b, p in zip(before, params, strict=True)]
        assert optimizer.effective_lrs() == [pytest.approx(rates[0]), pytest.approx(rates[2])]
    assert optimizer.learned_values()["lr"] > 2e-3


def test_the_peak_is_the_largest_value_of_a_schedule() -> None:
    optimizer, rates = run(
        lambda ps: learn(ps, PROGRAMS["adamw"], 1e-5, hyper_lr=0.0), lambda o: LambdaLR(o, lambda t: 1.0 + (t == 3)), 6
    )
    assert rates == pytest.approx([1e-5] * 3 + [2e-5] * 3) and optimizer.effective_lrs() == [pytest.approx(1e-5)]


def test_with_a_schedule_all_rates_end_near_the_best_of_the_plain_program() -> None:
    """A linear decay on top of a learned rate, against the best of a grid of constant rates with the same decay."""

    def end(make: object, rate: float) -> float:
        problem = Problem()
        optimizer = make(problem.model.parameters(), PROGRAMS["adamw"], rate)  # type: ignore[operator]
        scheduler = SCHEDULES["linear"](optimizer, 600)
        for step in range(600):
            problem.step(optimizer, step % 40)
            scheduler.step()
        return sum(problem.loss(step).item() for step in range(40)) / 40

    best = min(end(ProgramOptimizer, 10.0 ** (k / 2)) for k in range(-8, 0))
    for lr in (1e-6, 1e-3, 1e-1, 10.0):
        assert end(learn, lr) < 1.15 * best, lr
