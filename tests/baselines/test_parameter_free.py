"""Schedule-Free AdamW and Prodigy: averages, modes, estimates of the distance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.strategies import random_gradients
from torch import Tensor, nn
from torch.optim import Optimizer

from optforge.baselines import BASELINES, AdamW, Prodigy, ScheduleFreeAdamW, averaged
from optforge.primitives import ProgramOptimizer

# Schedule-Free


RATES = [0.02 * min(1.0, t / 5) for t in range(31)]  # a warm-up, from zero


def literal_schedule_free(start: Tensor, gradients: list[Tensor], beta: float, decay: float) -> list[list[Tensor]]:
    """x, y and z after each step, as the paper's recursions have them, and x once more as the average that it is."""
    x = y = z = start
    v, points, weights = torch.zeros_like(start), [], []
    seen = []
    for t, (g, lr) in enumerate(zip(gradients, RATES, strict=False), 1):
        v = 0.9 * v + 0.1 * g**2
        z = z - lr * (g / ((v / (1 - 0.9**t)).sqrt() + 1e-8) + decay * y)
        points.append(z)
        weights.append(lr**2)
        share = weights[-1] / sum(weights) if lr else 0.0
        x = (1 - share) * x + share * z
        y = (1 - beta) * z + beta * x
        total = sum(weights)
        average = sum(w * p for w, p in zip(weights, points, strict=True)) / total if total else start
        torch.testing.assert_close(x, average, rtol=0, atol=1e-13)
        seen.append([x, y, z])
    return seen


@pytest.mark.parametrize("form", ["hand-written", "program"])
def test_schedule_free_averages_what_it_says(form: str) -> None:
    start, *gradients = random_gradients((4, 3), 30, seed=6)
    p = nn.Parameter(start.clone())
    hand = ScheduleFreeAdamW([p], lr=0.02, betas=(0.7, 0.9), weight_decay=0.3)
    program = ProgramOptimizer(
        [p], BASELINES["schedule-free-adamw"].program, lr=0.02, beta1=0.7, beta2=0.9, weight_decay=0.3
    )
    optimizer: Optimizer = hand if form == "hand-written" else program
    with averaged(optimizer):
        assert torch.equal(p.detach(), start)
    literal = literal_schedule_free(start, gradients, 0.7, 0.3)
    for g, lr, (x, y, z) in zip(gradients, RATES, literal, strict=False):
        optimizer.param_groups[0]["lr"], p.grad = lr, g
        optimizer.step()
        held = p.detach().clone()
        torch.testing.assert_close(held, y, rtol=0, atol=1e-10)
        torch.testing.assert_close(optimizer.state[p]["z"], z, rtol=0, atol=1e-10)
        with averaged(optimizer):
            torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-10)
        assert torch.equal(p.detach(), held), "to the last bit"
        if form == "hand-written":
            for _ in range(2):  # the second call does nothing
                hand.eval()
                torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-10)
                with averaged(hand):
                    torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-10)
            hand.train()
            hand.train()
            torch.testing.assert_close(p.detach(), y, rtol=0, atol=1e-10)


def test_schedule_free_warms_up_as_the_package_does() -> None:
    peer = pytest.importorskip("schedulefree", reason="schedulefree is not installed (extra: peers)")
    start, *gradients = random_gradients((4, 3), 30, seed=6)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer, package = ScheduleFreeAdamW([ours]), peer.AdamWScheduleFree([theirs], lr=0.02, warmup_steps=5)
    package.train()
    for step, g in enumerate(gradients, 1):
        optimizer.param_groups[0]["lr"] = 0.02 * min(1.0, step / 5)
        ours.grad, theirs.grad = g.clone(), g.clone()
        optimizer.step()
        package.step()
    for mode in ("train", "eval"):
        getattr(optimizer, mode)()
        getattr(package, mode)()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_schedule_free_is_saved_and_loaded_in_either_mode() -> None:
    start, *gradients = random_gradients((4, 3), 8, seed=6, dtype=torch.bfloat16)

    def steps(p: nn.Parameter, optimizer: Optimizer, some: list[Tensor]) -> None:
        for g in some:
            p.grad = g
            optimizer.step()

    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    straight, saved = (ScheduleFreeAdamW([x], state_dtype=torch.float32) for x in (p, q))
    steps(p, straight, gradients)
    steps(q, saved, gradients[:4])
    saved.eval()
    fresh = nn.Parameter(q.detach().clone())
    loaded = ScheduleFreeAdamW([fresh], state_dtype=torch.float32)
    loaded.load_state_dict(saved.state_dict())
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\)"):
        steps(fresh, loaded, gradients[4:])
    loaded.train()
    steps(fresh, loaded, gradients[4:])
    whole, again = (x.float() + o.state[x]["p"] for x, o in ((p, straight), (fresh, loaded)))
    torch.testing.assert_close(whole, again, rtol=1e-5, atol=1e-7)


def test_averages_are_refused_where_there_are_none() -> None:
    p = nn.Parameter(torch.ones(2))
    program = BASELINES["schedule-free-adamw"].program
    for optimizer in (AdamW([p]), ProgramOptimizer([p], program, beta1=0.0)):
        p.grad = torch.ones(2)
        optimizer.step()
        with pytest.raises(ValueError, match="a slot z and beta1 above 0"), averaged(optimizer):
            pass


# Prodigy


def descend(optimizer: Optimizer, parameters: list[nn.Parameter], target: list[Tensor], steps: int = 60) -> None:
    for _ in range(steps):
        for p, t in zip(parameters, target, strict=True):
            p.grad = (p.detach() - t) * torch.linspace(0.5, 2, p.numel(), dtype=p.dtype).view_as(p)
        optimizer.step()


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]


SHAPES = ((4, 3), (5,))
TARGET = [random_gradients(shape, 0, seed)[0] * 10**seed for seed, shape in enumerate(SHAPES)]


def estimates(optimizer: Optimizer) -> list[float]:
    return [state["d"].item() for state in optimizer.state.values()]


@pytest.mark.parametrize("options", [{}, {"d0": 1e-3, "d_coef": 0.5}, {"betas": (0.8, 0.9), "weight_decay": 0.1}])
def test_prodigy_is_that_of_prodigyopt(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """With an epsilon of no account: it is scaled by d there and by the next d here."""
    peer = pytest.importorskip("prodigyopt", reason="prodigyopt is not installed (extra: peers)")
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, package = (make(ps, eps=1e-30, **options) for make, ps in ((Prodigy, ours), (peer.Prodigy, theirs)))
    for _ in range(6):
        descend(optimizer, ours, TARGET, 10)
        descend(package, theirs, TARGET, 10)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert package.param_groups[0]["d"] > 100 * package.param_groups[0]["d0"], "d did not grow, so nothing was compared"


def test_prodigy_of_one_tensor_needs_no_distinction() -> None:
    (one,), (other,), (third,) = (parameters((4, 3)) for _ in range(3))
    descend(Prodigy([one], per_tensor=False), [one], TARGET[:1])
    descend(Prodigy([other], per_tensor=True), [other], TARGET[:1])
    descend(ProgramOptimizer([third], BASELINES["prodigy"].program, lr=1.0), [third], TARGET[:1])
    assert torch.equal(one, other) and float(one.detach().abs().max()) > 0.1
    torch.testing.assert_close(one, third, rtol=1e-10, atol=1e-12)


def test_prodigy_estimates_the_distance_for_all_or_for_each() -> None:
    for per_tensor in (False, True):
        ps, late = parameters(*SHAPES), nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = Prodigy([{"params": ps}, {"params": [late], "lr": 0.0}], per_tensor=per_tensor)
        before = [0.0, 0.0]
        for _ in range(20):
            descend(optimizer, ps, TARGET, 3)
            assert all(x >= y for x, y in zip(estimates(optimizer), before, strict=True)), "d fell"
            before = estimates(optimizer)
        assert (before[0] == before[1]) is not per_tensor
        descend(optimizer, [late], [torch.ones(3, dtype=torch.float64)], 1)
        assert (estimates(optimizer)[2] == estimates(optimizer)[0]) is not per_tensor


@pytest.mark.parametrize("option", [{"d0": 1e-3}, {"d_coef": 2.0}, {"per_tensor": True}])
def test_what_all_parameters_share_is_no_groups_business(option: dict[str, Any]) -> None:
    name = next(iter(option))
    with pytest.raises(ValueError, match=f"^{name} must be .* as in all groups, got {option[name]}"):
        Prodigy([{"params": parameters((2,))}, {"params": parameters((2,)), **option}])
