"""Cautious variants of programs."""

from __future__ import annotations

import pytest
import torch
from support.strategies import random_gradients
from support.training_runs import assert_equal, train
from torch import Tensor, nn

from optforge.baselines import BASELINES, LAMB, cautious
from optforge.primitives import Builder, ProgramOptimizer


def masked(direction: Tensor, g: Tensor) -> Tensor:
    mask = (direction * g > 0).double()
    return direction * mask / max(float(mask.mean()), 1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_cautious_adamw_is_adams_direction_masked_with_whole_decay(decay: float) -> None:
    start, *gradients = random_gradients((4, 3), 30, seed=9)
    p, probe, expected = nn.Parameter(start.clone()), nn.Parameter(torch.zeros_like(start)), start
    adam = torch.optim.Adam([probe], lr=1.0)
    optimizer = ProgramOptimizer([p], BASELINES["cautious-adamw"].program, lr=0.01, weight_decay=decay)
    stood = 0
    for g in gradients:
        probe.grad, p.grad, before = g, g.clone(), probe.detach().clone()
        adam.step()
        direction = before - probe.detach()
        expected = expected - 0.01 * (masked(direction, g) + decay * expected)
        held = p.detach().clone()
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-10)
        step = held - p.detach()
        stood += int((step == 0).sum())
        assert decay or bool((step * g >= 0).all()), "it moved against the gradient"
    assert bool(stood) is not bool(decay)


def test_cautious_lion_is_that_of_lion_pytorch() -> None:
    peer = pytest.importorskip("lion_pytorch.cautious_lion", reason="lion-pytorch is not installed (extra: peers)")
    program = BASELINES["cautious-lion"].program
    assert_equal(
        train(lambda ps: ProgramOptimizer(ps, program, lr=0.01, weight_decay=0.3)),
        train(lambda ps: peer.Lion(ps, lr=0.01, weight_decay=0.3, cautious_factor=0.0)),
    )


def test_caution_changes_nothing_where_all_agrees() -> None:
    """Without memory the update has the gradient's sign, unless that is zero: what is left is scaled by the mean."""
    b = Builder()
    plain = b.build(b.g)
    p, q = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    p.grad = q.grad = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    ProgramOptimizer([p], cautious(plain), lr=0.1).step()
    ProgramOptimizer([q], plain, lr=0.1).step()
    assert torch.equal(p, q)
    p.grad = torch.zeros(2, 2)  # no element agrees, so that none moves
    ProgramOptimizer([p], cautious(plain), lr=0.1).step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", BASELINES)
def test_any_program_can_be_cautious(name: str) -> None:
    row = BASELINES[name].program
    program = cautious(row)
    assert program.live_state == row.live_state and program.defaults() == row.defaults()
    assert (program.fallback is None) is (row.fallback is None)
    moved = train(lambda ps: ProgramOptimizer(ps, program, lr=0.01), steps=5)
    assert all(bool(p.isfinite().all()) for ps in moved for p in ps)


def test_lamb_has_its_decay_inside_so_that_caution_masks_it() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([-1e-3, 1.0])
    program = cautious(BASELINES["lamb"].program)
    ProgramOptimizer([p], program, lr=0.1, weight_decay=10.0).step()
    assert p[0].item() == 1.0 and p[1].item() < 1.0
    LAMB([p], lr=0.1, weight_decay=10.0).step()
    assert p[0].item() < 1.0
