"""Schedules equal their formulas and torch's own schedulers; scaling rules keep what they promise to keep."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as theirs

from optforge.baselines import BASELINES, AdamW
from optforge.learned import learn
from optforge.primitives import ProgramOptimizer
from optforge.search.training.torch_schedules import SCHEDULES, linear_scaling, square_root_scaling

TOTAL = 20


def factors(make: Callable[[Optimizer], Any], steps: int = TOTAL + 3, lr: float = 0.3) -> list[float]:
    """What multiplies the rate in each of so many steps."""
    p = nn.Parameter(torch.zeros(()))
    optimizer = SGD([p], lr=lr)
    with warnings.catch_warnings():  # SequentialLR warns of its own use of a deprecated argument
        warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step", UserWarning)
        scheduler = make(optimizer)
        seen = []
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"] / lr)
            optimizer.step()
            scheduler.step()
    return seen


def ours(name: str, warmup: int = 0, total: int = TOTAL, **options: Any) -> Callable[[Optimizer], Any]:
    return lambda optimizer: SCHEDULES[name](optimizer, total, warmup, **options)


def after_warmup(warmup: int, make: Callable[[Optimizer], Any]) -> Callable[[Optimizer], Any]:
    """Torch's linear warm-up, then one of its schedulers."""

    def both(optimizer: Optimizer) -> Any:
        first = theirs.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
        return theirs.SequentialLR(optimizer, [first, make(optimizer)], [warmup])

    return both


REFERENCES: list[tuple[str, dict[str, Any], Callable[[int], Callable[[Optimizer], Any]]]] = [
    ("constant", {}, lambda n: lambda o: theirs.ConstantLR(o, 1.0)),
    ("cosine", {}, lambda n: lambda o: theirs.CosineAnnealingLR(o, n)),
    ("cosine", {"floor": 0.1}, lambda n: lambda o: theirs.CosineAnnealingLR(o, n, eta_min=0.03)),
    ("linear", {}, lambda n: lambda o: theirs.LinearLR(o, 1.0, 0.0, total_iters=n)),
    ("step", {"step_size": 5, "gamma": 0.5}, lambda n: lambda o: theirs.StepLR(o, 5, 0.5)),
    ("step", {}, lambda n: lambda o: theirs.MultiStepLR(o, [-(-n // 3), 2 * -(-n // 3)], 0.1)),
    ("exponential", {"gamma": 0.9}, lambda n: lambda o: theirs.ExponentialLR(o, 0.9)),
    ("exponential", {}, lambda n: lambda o: theirs.ExponentialLR(o, 0.01 ** (1 / n))),
    ("wsd", {"decay_steps": 4}, lambda n: lambda o: theirs.SequentialLR(
        o, [theirs.ConstantLR(o, 1.0), theirs.LinearLR(o, 1.0, 0.0, total_iters=4)], [n - 4])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "reference"), REFERENCES)
@pytest.mark.parametrize("warmup", [0, 5])
def test_equal_to_torch(name: str, options: dict[str, Any], reference: Any, warmup: int) -> None:
    other = reference(TOTAL - warmup)
    if warmup and name == "wsd":  # SequentialLR cannot be nested: three pieces in one
        first, stable = theirs.LinearLR, theirs.ConstantLR
        expected = factors(lambda o: theirs.SequentialLR(
            o, [first(o, 1 / warmup, total_iters=warmup - 1), stable(o, 1.0), first(o, 1.0, 0.0, total_iters=4)],
            [warmup, TOTAL - 4]), TOTAL)  # fmt: skip
    else:
        expected = factors(after_warmup(warmup, other) if warmup else other, TOTAL)
    assert factors(ours(name, warmup, **options), TOTAL) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_formulas() -> None:
    """By hand, from the papers, for the whole run and beyond its end."""
    done = range(TOTAL + 3)
    ramp = [0.25, 0.5, 0.75, 1.0]
    assert factors(ours("constant", 4)) == ramp + [1.0] * (TOTAL - 1)
    assert factors(ours("warmup", 4)) == ramp + [1.0] * (TOTAL - 1)
    assert factors(ours("warmup"), 5) == [0.5, 1.0, 1.0, 1.0, 1.0]  # a tenth of 20
    vaswani = [2 * min((t + 1) ** -0.5, (t + 1) * 4**-1.5) for t in done]  # times √W, so that the largest is 1
    assert factors(ours("inverse-square-root", 4)) == pytest.approx(vaswani, rel=1e-14)
    assert factors(ours("inverse-square-root")) == pytest.approx([(t + 1) ** -0.5 for t in done], rel=1e-14)
    cosine = [math.cos(math.pi * min(t, TOTAL) / (2 * TOTAL)) ** 2 for t in done]  # the half-angle form
    assert factors(ours("cosine")) == pytest.approx(cosine, rel=1e-13, abs=1e-16)
    tenths = [10.0 ** -(t // 7) for t in done]
    assert factors(ours("step"), TOTAL) == pytest.approx(tenths[:TOTAL], rel=1e-14)
    assert factors(ours("exponential"))[TOTAL] == pytest.approx(0.01, rel=1e-13)
    assert factors(ours("wsd", 4, decay_steps=4)) == pytest.approx(
        [*ramp, *[1.0] * 13, 0.75, 0.5, 0.25, 0, 0, 0], abs=1e-15
    )
    assert factors(ours("wsd"), TOTAL)[-3:] == pytest.approx([1.0, 1.0, 0.5])  # the last tenth
    assert factors(ours("wsd", decay_steps=0)) == [1.0] * (TOTAL + 3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 300])
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_any_length_has_sound_factors(name: str, total: int, share: float) -> None:
    seen = factors(ours(name, round(share * total), total), total)
    assert all(0 < f <= 1 for f in seen) and max(seen) > 0.49
    warm = round(share * total)
    assert seen[:warm] == pytest.approx([(t + 1) / warm for t in range(warm)])
    if name != "warmup":
        assert all(a >= b for a, b in zip(seen[warm:], seen[warm + 1 :], strict=False))


OPTIMIZERS: list[Callable[[Any], Optimizer]] = [
    lambda groups: SGD(groups, lr=0.1, momentum=0.9),
    lambda groups: Adam(groups, lr=0.1),
    lambda groups: AdamW(groups, lr=0.1),
    lambda groups: ProgramOptimizer(groups, BASELINES["lion"].program, lr=0.1),
    lambda groups: learn(groups, BASELINES["adamw"].program, lr=0.1),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_composes_with_groups_of_any_optimizer(name: str, make: Callable[[Any], Optimizer]) -> None:
    """Each group keeps its own rate; a step moves by the scheduled rate."""
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = make([{"params": [p]}, {"params": [q], "lr": 0.01}])
    scheduler = SCHEDULES[name](optimizer, 6, 2)
    for factor in factors(ours(name, 2, 6), 6):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * factor, 0.01 * factor])
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_goes_on_from_a_checkpoint(name: str) -> None:
    def begin() -> tuple[nn.Parameter, Optimizer, Any]:
        p = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = AdamW([p], lr=0.1)
        return p, optimizer, SCHEDULES[name](optimizer, 12, 3)

    def run(p: nn.Parameter, optimizer: Optimizer, scheduler: Any, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            p.grad = p.detach().clone()
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
        return rates

    whole = begin()
    expected = run(*whole, 12)
    first = begin()
    seen = run(*first, 5)
    saved = copy.deepcopy([first[0].data, first[1].state_dict(), first[2].state_dict()])
    p, optimizer, scheduler = begin()
    p.data = saved[0]
    optimizer.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[2])
    assert seen + run(p, optimizer, scheduler, 7) == expected
    assert torch.equal(p, whole[0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("constant", {"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ("cosine", {"warmup_steps": 21}, "warmup_steps must lie between 0 and the 20 steps of the run, got 21"),
        ("wsd", {"warmup_steps": -1}, "warmup_steps must lie between"),
        ("wsd", {"warmup_steps": 15, "decay_steps": 6}, "decay_steps must lie between 0 and 5, .*, got 6"),
        ("cosine", {"floor": -0.1}, "floor must lie between 0 and 1, got -0.1"),
        ("step", {"gamma": 2.0}, "gamma must lie between 0 and 1, got 2"),
        ("step", {"step_size": 0}, "step_size must be at least 1, got 0"),
        ("exponential", {"gamma": float("nan")}, "gamma must lie between 0 and 1, got nan"),
    ],
)
def test_misuse_is_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCHEDULES[name](SGD([nn.Parameter(torch.zeros(1))], lr=0.1), **{"total_steps": TOTAL, **options})


@pytest.mark.parametrize("name", SCHEDULES)
def test_pickles_go_on_with_the_same_rates(name: str) -> None:
    optimizer = AdamW([nn.Parameter(torch.ones(2))], lr=0.3)
    schedule = SCHEDULES[name](optimizer, 12, 3)
    optimizer.step()
    for _ in range(5):
        schedule.step()
    copied = pickle.loads(pickle.dumps(schedule))
    for _ in range(7):
        schedule.step()
        copied.step()
        assert copied.get_last_lr() == schedule.get_last_lr()


def test_the_table_cannot_change() -> None:
    with pytest.raises(TypeError):
        SCHEDULES["mine"] = SCHEDULES["constant"]  # type: ignore[index]


def test_linear_scaling_is_one_large_step_for_many_small_ones() -> None:
    """Where the gradient does not depend on the weights, the two end in the same place."""
    ends = []
    for lr, steps in [(0.1, 8), (linear_scaling(0.1, 8), 1)]:
        p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = SGD([p], lr=lr)
        for _ in range(steps):
            p.grad = torch.arange(3, dtype=torch.float64)
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-14, atol=0)


def test_square_root_scaling_keeps_noise_memory_and_epsilon() -> None:
    """A batch k times as large has 1/√k of the noise, and comes 1/k as often."""
    k, lr, betas, eps = 16, 1e-3, (0.99, 0.999), 0.3
    scaled = square_root_scaling(lr, k, betas, eps)
    noise = torch.randn(200, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def moved(gradients: torch.Tensor, **options: Any) -> torch.Tensor:
        p = nn.Parameter(torch.zeros(50, dtype=torch.float64))
        optimizer = Adam([p], **options)
        for g in gradients:
            p.grad = g
            optimizer.step()
        return p.detach()

    same_memory = {"lr": lr, "betas": scaled["betas"]}
    small = moved(noise, **same_memory, eps=eps)
    large = moved(noise / k**0.5, **same_memory, eps=scaled["eps"])
    torch.testing.assert_close(small, large, rtol=1e-9, atol=0)  # epsilon is as large beside the noise
    assert scaled["lr"] ** 2 / k == pytest.approx(lr**2)  # variance of a random walk over as many examples
    assert isinstance(scaled["betas"], tuple)
    for before, after in zip(betas, scaled["betas"], strict=True):
        assert 1 / (1 - after) * k == pytest.approx(1 / (1 - before))  # examples that an average remembers


def test_scaling_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="ratio of batch sizes must be a positive number, got 0"):
        linear_scaling(0.1, 0)
    with pytest.raises(ValueError, match=r"betas \(0.9, 0.999\) cannot be scaled to batches 16 times as large"):
        square_root_scaling(0.1, 16)
