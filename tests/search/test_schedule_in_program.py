"""Schedules and clipping inside a program do what torch's schedulers and clipping do outside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optforge.baselines import BASELINES
from optforge.primitives import Program, ProgramOptimizer, parse_program
from optforge.search.training import torch_schedules
from optforge.search.training.population.native_code import encode
from optforge.search.training.schedule import SCHEDULES, scheduled

STEPS = 30
READS_LR = parse_program("optforge 1\nx0 = mul(p, lr)\nx1 = add(g, x0)\nupdate x1\n")


def train(program: Program, schedule: str, warmup: int, clip: float, inside: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(STEPS, 16, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    rule = scheduled(program, schedule, STEPS, warmup, clip) if inside else program
    optimizer = ProgramOptimizer(model.parameters(), rule, 0.05, total_steps=STEPS)
    scheduler = (
        None if inside else getattr(torch_schedules, schedule)(optimizer, STEPS, warmup, **decay(schedule, warmup))
    )
    for inputs, targets in zip(x, y, strict=True):
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        if clip and not inside:
            norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
            for p in model.parameters():
                p.grad *= min(1.0, clip / float(norm))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach() for p in model.parameters()]


def decay(schedule: str, warmup: int) -> dict[str, int]:
    return {"decay_steps": (STEPS - warmup) // 10} if schedule == "wsd" else {}


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("program", [BASELINES["adamw"].program, BASELINES["muon"].program, READS_LR])
def test_inside_is_as_outside(schedule: str, warmup: int, clip: float, program: Program) -> None:
    inside, outside = (train(program, schedule, warmup, clip, where) for where in (True, False))
    for a, b in zip(inside, outside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_schedule_matters_and_what_changes_nothing_is_the_program_itself() -> None:
    adamw = BASELINES["adamw"].program
    assert scheduled(adamw, "constant", STEPS) is adamw
    assert not torch.equal(train(adamw, "cosine", 0, 0.0, True)[0], train(adamw, "constant", 0, 0.0, True)[0])


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("program", [BASELINES["muon"].program, READS_LR])
def test_scale_is_a_factor_of_the_rate(schedule: str, program: Program) -> None:
    rules = scheduled(program, schedule, STEPS, 3, scale=4.0), scheduled(program, schedule, STEPS, 3)
    finals = []
    for rule, lr in zip(rules, (0.01, 0.04), strict=True):
        p = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4))
        optimizer = ProgramOptimizer([p], rule, lr, total_steps=STEPS)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (p.square() * torch.arange(1, 5)).sum().backward()
            optimizer.step()
        finals.append(p.detach())
    torch.testing.assert_close(*finals, rtol=1e-10, atol=1e-14)


def test_hyperparameters_and_native_steps_survive() -> None:
    rule = scheduled(BASELINES["lion"].program, "cosine", STEPS, 3, 1.0)
    assert {h.name for h in rule.hypers} == {h.name for h in BASELINES["lion"].program.hypers}
    assert rule.live_state == BASELINES["lion"].program.live_state and encode(rule) is not None


@pytest.mark.parametrize(("options", "message"), [(("sine", 10), "unknown schedule"), (("cosine", 10, 10), "warm-up")])
def test_impossible_schedules_are_refused(options: tuple[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduled(READS_LR, *options)
