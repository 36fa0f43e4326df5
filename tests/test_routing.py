"""Which parameter goes to the program and which to its fallback."""

from __future__ import annotations

import pytest
from hypothesis import given
from strategies import programs
from torch import nn

from baselines import BASELINES
from primitives import Builder, Program, ProgramError, ProgramOptimizer
from primitives.routing import Route, can_train, route, routing


def orthogonal(fallback: Program | None = None) -> Program:
    b = Builder()
    return b.build(b.orthogonalise(b.g), fallback)


LION = BASELINES["lion"].program
MODEL = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2), nn.LayerNorm(2))


def test_by_shape() -> None:
    program = orthogonal(LION)
    assert routing(program, MODEL.named_parameters()) == [
        Route("0.weight", (7, 3), "program"),
        Route("1.weight", (2, 3), "program"),
        Route("1.bias", (2,), "fallback"),
        Route("2.weight", (2,), "fallback"),
        Route("2.bias", (2,), "fallback"),
    ]
    assert {r.which for r in routing(LION, MODEL.named_parameters())} == {"program"}


def test_by_predicate() -> None:
    routes = routing(orthogonal(LION), MODEL.named_parameters(), lambda name, p: p.ndim == 1 or name != "0.weight")
    assert [r.which for r in routes] == ["fallback", "program", "fallback", "fallback", "fallback"]


def test_no_fallback() -> None:
    program = orthogonal()
    with pytest.raises(ProgramError, match=r"parameter '1.bias': .*rows and columns.*shape \(2,\); give .* fallback"):
        routing(program, MODEL.named_parameters())
    with pytest.raises(ProgramError, match=r"parameter '0.weight': .*not to train every parameter.*\(7, 3\)"):
        routing(LION, MODEL.named_parameters(), lambda name, _: "bias" in name)


@given(programs(max_body=5))
def test_agrees_with_the_optimizer(program: Program) -> None:
    for p in MODEL.parameters():
        if can_train(program, p.shape) or program.fallback is not None:
            assert ProgramOptimizer([p], program, total_steps=1).route(p) is route(program, p.shape)
        else:
            with pytest.raises(ProgramError, match="give the program a fallback"):
                route(program, p.shape)
