"""Options of AdaFactor, in both forms and against other people's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.training_runs import assert_equal, train
from torch import nn
from torch.optim import Optimizer

from optforge.baselines import AdaFactor
from optforge.baselines.adafactor import program as adafactor_program
from optforge.primitives import Program, ProgramOptimizer


def both_forms(options: dict[str, Any], program: Program, hypers: dict[str, float], lr: float = 0.3) -> None:
    hand = train(lambda ps: AdaFactor(ps, lr=lr, **options, **hypers))
    assert_equal(hand, train(lambda ps: ProgramOptimizer(ps, program, lr=lr, **hypers)))
    plain = train(lambda ps: AdaFactor(ps, lr=lr))
    assert max(float((a - b).abs().max()) for a, b in zip(hand[-1], plain[-1], strict=True)) > 1e-3, "no difference"


@pytest.mark.parametrize("relative_step", [False, True])
@pytest.mark.parametrize("hypers", [{}, {"beta1": 0.9}, {"beta1": 0.5, "weight_decay": 0.1}])
def test_options_of_adafactor_have_programs(relative_step: bool, hypers: dict[str, float]) -> None:
    if not relative_step and not hypers:
        return
    program = adafactor_program(first_moment="beta1" in hypers, relative_step=relative_step)
    both_forms({"relative_step": relative_step}, program, hypers)


def test_warm_up_of_adafactor_has_a_program() -> None:
    program = adafactor_program(relative_step=True, warmup_init=True)
    both_forms({"relative_step": True, "warmup_init": True}, program, {})
    assert_equal(
        train(lambda ps: AdaFactor(ps, lr=0.0, relative_step=True, warmup_init=True)),
        train(lambda ps: ProgramOptimizer(ps, program, lr=0.0)),
    )


@pytest.mark.parametrize("lr", [0.1, 0.5])
def test_relative_step_is_that_of_torch(lr: float) -> None:
    """For matrices and vectors; other tensors are factored along other dimensions there."""
    options = {"lr": lr, "weight_decay": 0.2}
    assert_equal(
        train(lambda ps: AdaFactor(ps, relative_step=True, **options), dims=(1, 2)),
        train(lambda ps: torch.optim.Adafactor(ps, **options), dims=(1, 2)),
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"beta1": 0.9, "lr": 0.05}, {"betas": (0.9, 0.99999), "lr": 0.05, "relative_step": False}),
        ({"relative_step": True}, {"betas": (None, 0.99999)}),  # our lr is the paper's bound
        ({"relative_step": True, "warmup_init": True}, {"betas": (None, 0.99999), "warmup_init": True}),
        (
            {"relative_step": True, "warmup_init": True, "beta1": 0.5},
            {"betas": (0.5, 0.99999), "warmup_init": True},
        ),
    ],
)
def test_options_of_adafactor_are_those_of_pytorch_optimizer(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    peer = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed (extra: peers)")
    make: Callable[..., Optimizer] = peer.AdaFactor
    one = train(lambda ps: AdaFactor(ps, **ours), dims=(1, 2))
    assert_equal(one, train(lambda ps: make(ps, momentum_dtype=torch.float64, **theirs), dims=(1, 2)))
    assert float((one[-1][0] - one[0][0]).abs().max()) > 1e-6


def test_options_of_adafactor_that_do_not_fit_are_refused() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"^warmup_init must be False, got True without relative_step"):
        AdaFactor([p], warmup_init=True)
    optimizer = AdaFactor([p])
    p.grad = torch.ones(2, 2)
    optimizer.step()
    optimizer.param_groups[0]["beta1"] = 0.9
    with pytest.raises(ValueError, match=r"^beta1 must be set before the first step, got 0\.9"):
        optimizer.step()
