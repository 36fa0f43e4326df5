"""Which parameter goes to the program and which to its fallback."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from support.routing import (
    ADAMW,
    LION,
    MODEL,
    named,
    no_embedding,
    orthogonal,
    parameters,
    step,
    through_file,
)
from support.strategies import assert_same, programs
from torch import Tensor, nn

from optforge.learned import LearnedOptimizer
from optforge.primitives import Program, ProgramError, ProgramOptimizer
from optforge.primitives.routing import Predicate, Route, can_train, route, routing

NO_EMBEDDING = ["fallback", "program", "fallback", "fallback", "fallback"]


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
    assert [r.which for r in routes] == NO_EMBEDDING


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


# The torch face.


def whiches(optimizer: ProgramOptimizer) -> list[str]:
    return [r.which for r in optimizer.routes]


FACES: dict[str, Callable[..., ProgramOptimizer]] = {
    "eager": ProgramOptimizer,
    "compiled": lambda *args, **options: ProgramOptimizer(*args, compile=True, **options),
    "wide": lambda *args, **options: ProgramOptimizer(*args, state_dtype=torch.float32, **options),
    "wide, compiled": lambda *a, **options: ProgramOptimizer(*a, compile=True, state_dtype=torch.float32, **options),
    "learned": LearnedOptimizer,
}


@pytest.mark.parametrize("face", FACES)
def test_each_parameter_is_trained_as_by_its_program_alone(face: str) -> None:
    """Nobody who shares an optimizer is touched by the other program."""
    dtype = torch.bfloat16 if "wide" in face else torch.float64
    options: dict[str, Any] = {"hyper_lr": 0.0} if face == "learned" else {}
    together, alone = named(dtype=dtype), named(dtype=dtype)
    optimizer = FACES[face](together, orthogonal(ADAMW), 0.1, where=no_embedding, **options)
    assert optimizer.routes == routing(orthogonal(ADAMW), together, no_embedding)
    assert whiches(optimizer) == NO_EMBEDDING
    by_name = dict(alone)
    singles = [
        FACES[face]([by_name["1.weight"]], orthogonal(), 0.1, **options),
        *(FACES[face]([p], ADAMW, 0.1, **options) for name, p in alone if name != "1.weight"),
    ]
    for t in range(4):
        for o in (optimizer, *singles):
            step(o, t)
    for (name, p), (_, q) in zip(together, alone, strict=True):
        assert_same(p.detach(), q.detach())
        assert set(optimizer.state[p]) >= ({"m"} if name == "1.weight" else {"m", "v"})
        assert ("v" in optimizer.state[p]) == (name != "1.weight")


def test_a_group_may_ask_for_the_fallback() -> None:
    (_, embedding), *others = named()
    groups = [{"params": [p for _, p in others]}, {"params": [embedding], "use_fallback": True, "lr": 0.5}]
    optimizer = ProgramOptimizer(groups, orthogonal(ADAMW), 0.1)
    assert whiches(optimizer) == ["program", "fallback", "fallback", "fallback", "fallback"]
    assert optimizer.routes[-1] == Route("", (7, 3), "fallback")
    assert optimizer.route(embedding) == ADAMW
    step(optimizer, 0)
    assert set(optimizer.state[embedding]) == {"step", "m", "v"}
    by_name = ProgramOptimizer(named(), orthogonal(ADAMW), 0.1, where=no_embedding)
    step(by_name, 0)
    assert_same(optimizer.state[embedding]["v"], by_name.state[by_name.param_groups[0]["params"][0]]["v"])
    with pytest.raises(ProgramError, match="use_fallback must be True or False, got 'yes'"):
        ProgramOptimizer([{"params": [nn.Parameter(torch.ones(2, 2))], "use_fallback": "yes"}], orthogonal(ADAMW))
    with pytest.raises(ProgramError, match=r"not to train every parameter.*shape \(2, 2\); give the program a fallb"):
        ProgramOptimizer([{"params": [nn.Parameter(torch.ones(2, 2))], "use_fallback": True}], LION)


def test_predicate_sees_names_or_none() -> None:
    seen: list[tuple[str, int]] = []

    def where(name: str, p: Tensor) -> bool:
        seen.append((name, p.ndim))
        return True

    pairs = named()
    optimizer = ProgramOptimizer(pairs, orthogonal(LION), where=where)
    assert seen == [(name, p.ndim) for name, p in pairs]
    for t in range(2):
        step(optimizer, t)
    assert len(seen) == len(pairs), "asked once"
    seen.clear()
    ProgramOptimizer([p for _, p in pairs], orthogonal(LION), where=where)
    assert seen == [("", p.ndim) for _, p in pairs]


def test_predicate_that_fails_adds_no_group() -> None:
    def where(name: str, p: Tensor) -> bool:
        raise KeyError(name)

    optimizer = ProgramOptimizer(named()[1:], orthogonal(LION))
    optimizer.where = where
    with pytest.raises(KeyError, match=r"0\.weight"):
        optimizer.add_param_group({"params": named()[:1]})
    assert len(optimizer.param_groups) == 1


def test_parameter_put_in_place_of_another_is_routed() -> None:
    """As by libraries that shard a model whose optimizer exists already."""
    pairs, fresh = named(), named(1)
    optimizer = ProgramOptimizer(pairs, orthogonal(ADAMW), 0.1, where=no_embedding)
    optimizer.param_groups[0]["params"] = [p for _, p in fresh]
    step(optimizer, 0)
    assert whiches(optimizer) == NO_EMBEDDING
    assert set(optimizer.state[fresh[0][1]]) == {"step", "m", "v"}
    with pytest.raises(KeyError):
        optimizer.route(pairs[0][1])


# Copies and checkpoints.


@pytest.mark.parametrize(
    ("copied", "where"),
    [(copy.deepcopy, lambda name, p: name != "0.weight"), (lambda x: pickle.loads(pickle.dumps(x)), no_embedding)],
    ids=["deepcopy", "pickle"],
)
def test_copies_keep_the_routes(copied: Callable[[Any], Any], where: Predicate) -> None:
    optimizer = ProgramOptimizer(named()[:3], orthogonal(ADAMW), 0.1, where=where)
    step(optimizer, 0)
    twin = copied(optimizer)
    assert twin.routes == optimizer.routes
    for o in (optimizer, twin):
        step(o, 1)
    for p, q in zip(parameters(optimizer), parameters(twin), strict=True):
        assert p is not q
        assert_same(p.detach(), q.detach())
    twin.add_param_group({"params": [*named()[3:], ("0.weight", nn.Parameter(torch.ones(2, 2)))]})
    assert whiches(twin)[3:] == ["fallback", "fallback", "fallback"]


def test_a_lambda_cannot_be_pickled() -> None:
    optimizer = ProgramOptimizer(named(), orthogonal(ADAMW), where=lambda name, p: True)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(optimizer)


@pytest.mark.parametrize("face", FACES)
def test_training_goes_on_from_a_checkpoint(face: str) -> None:
    """Bit for bit, with the same predicate and groups."""
    dtype = torch.bfloat16 if "wide" in face else torch.float64

    def build() -> ProgramOptimizer:
        pairs = named(dtype=dtype)
        groups = [{"params": pairs[:2]}, {"params": pairs[2:], "use_fallback": True, "lr": 0.2}]
        return FACES[face](groups, orthogonal(ADAMW), 0.1, where=no_embedding)

    first, second = build(), build()
    for t in range(3):
        step(first, t)
    saved = through_file(first.state_dict())
    with torch.no_grad():
        for p, q in zip(parameters(first), parameters(second), strict=True):
            q.copy_(p)
    second.load_state_dict(saved)
    assert second.routes == first.routes
    for t in range(3, 6):
        for o in (first, second):
            step(o, t)
    for p, q in zip(parameters(first), parameters(second), strict=True):
        assert_same(q.detach(), p.detach())
        assert_same(dict(second.state[q]), dict(first.state[p]))
