"""Each baseline is written twice, by hand and as a program: each form is the oracle of the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from support.strategies import random_gradients
from support.training_runs import STEPS, assert_equal, train
from torch import nn
from torch.optim import Optimizer

from optforge.baselines import (
    BASELINES,
    AdaFactor,
    AdamL2,
    AdamW,
    Lion,
    Momentum,
    Oracle,
    RMSProp,
)
from optforge.baselines.rmsprop import program as rmsprop_program
from optforge.baselines.sgd import momentum_program
from optforge.primitives import Program, ProgramOptimizer

CASES = [(name, dict(options)) for name, row in BASELINES.items() for options in row.cases]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_hand_written_equals_program(name: str, options: dict[str, float]) -> None:
    row = BASELINES[name]
    hand = train(lambda ps: row.optimizer(ps, lr=0.01, **row.by_hand(**options)))  # type: ignore[call-arg]
    program = train(lambda ps: ProgramOptimizer(ps, row.program, lr=0.01, **options))
    assert_equal(hand, program)
    moved = max(float((a - b).abs().max()) for a, b in zip(hand[0], hand[-1], strict=True))
    assert moved > 0.01, "nothing happened, so nothing was compared"


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_are_left_as_they_were(name: str, options: dict[str, float]) -> None:
    row, (start, g) = BASELINES[name], random_gradients((4, 3), 1, seed=0)
    p = nn.Parameter(start)
    p.grad = g.clone()
    row.optimizer([p], lr=0.01, **row.by_hand(**options)).step()  # type: ignore[call-arg]
    assert torch.equal(p.grad, g)


@pytest.mark.parametrize("name", BASELINES)
def test_both_forms_have_the_same_defaults(name: str) -> None:
    row = BASELINES[name]
    p = [nn.Parameter(torch.zeros(1))]
    hand = row.optimizer(p).defaults
    assert {k: hand[k] for k in row.by_hand()} == row.by_hand()


def by_their_names(name: str, oracle: Oracle, options: Mapping[str, float]) -> dict[str, Any] | None:
    """What the oracle is to be told; None if it lacks a hyperparameter that is not at its default."""
    row = BASELINES[name]
    values, defaults = row.by_hand(**options), row.by_hand()
    if any(theirs is None and values[ours] != defaults[ours] for ours, theirs in oracle.renamed.items()):
        return None
    names = {ours: oracle.renamed.get(ours, ours) for ours in values}
    return {theirs: values[ours] for ours, theirs in names.items() if theirs} | dict(oracle.options)


ORACLE_CASES = [
    pytest.param(name, oracle, told, options, id=f"{name}-{oracle.path}-{i}")
    for name, row in BASELINES.items()
    for oracle in row.oracles
    if oracle.dims
    for i, options in enumerate(row.cases)
    if (told := by_their_names(name, oracle, options)) is not None
]


def find(path: str) -> Callable[..., Optimizer]:
    module, _, kind = path.rpartition(".")
    peer = pytest.importorskip(module, reason=f"{module} is not installed (extra: peers)")
    return getattr(peer, kind)  # type: ignore[no-any-return]


@pytest.fixture
def float64() -> Iterator[None]:
    """What torch's optimizers keep as single numbers has the default dtype, as NAdam's product of momenta."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "oracle", "told", "options"), ORACLE_CASES)
def test_hand_written_equals_oracle(name: str, oracle: Oracle, told: dict[str, Any], options: dict[str, float]) -> None:
    row, theirs = BASELINES[name], find(oracle.path)
    hand = train(lambda ps: row.optimizer(ps, lr=0.01, **row.by_hand(**options)), dims=oracle.dims)  # type: ignore[call-arg]
    assert_equal(hand, train(lambda ps: theirs(ps, lr=0.01, **told), dims=oracle.dims))


@pytest.mark.parametrize(
    ("make", "oracle", "program", "options"),
    [
        (Momentum, torch.optim.SGD, momentum_program(dampened=True), {"momentum": 0.8, "dampening": 0.4}),
        (RMSProp, torch.optim.RMSprop, rmsprop_program(momentum=True), {"momentum": 0.8, "weight_decay": 0.3}),
        (RMSProp, torch.optim.RMSprop, rmsprop_program(centered=True), {"centered": True, "eps": 1e-3}),
        (
            RMSProp,
            torch.optim.RMSprop,
            rmsprop_program(momentum=True, centered=True),
            {"centered": True, "momentum": 0.5},
        ),
    ],
)
def test_options_that_need_a_program_of_their_own(
    make: Callable[..., Optimizer], oracle: Callable[..., Optimizer], program: Program, options: dict[str, Any]
) -> None:
    hand = train(lambda ps: make(ps, lr=0.01, **options))
    assert_equal(hand, train(lambda ps: oracle(ps, lr=0.01, **options)))
    hypers = {name: value for name, value in options.items() if name != "centered"}
    assert_equal(hand, train(lambda ps: ProgramOptimizer(ps, program, lr=0.01, **hypers)))


def test_adamw_has_the_defaults_of_torch() -> None:
    p = [nn.Parameter(torch.zeros(1))]
    torch_defaults = torch.optim.AdamW(p).defaults
    same = ("lr", "betas", "eps", "weight_decay", "maximize")
    assert AdamW(p).defaults == {k: torch_defaults[k] for k in same} | {"state_dtype": None}


def test_adafactor_is_that_of_torch() -> None:
    """Where they mean the same: matrices and vectors, and a relative step below torch's bound of 1/√step."""
    runs = [random_gradients(shape, STEPS, seed) for seed, shape in enumerate([(4, 3), (5,)])]
    mine, theirs = ([nn.Parameter(run[0].clone()) for run in runs] for _ in range(2))
    optimizers = [AdaFactor(mine, lr=0.1, weight_decay=0.2), torch.optim.Adafactor(theirs, lr=0.1, weight_decay=0.2)]
    for t in range(1, STEPS + 1):
        for parameters in (mine, theirs):
            for p, run in zip(parameters, runs, strict=True):
                p.grad = 10 ** float(t % 5 - 3) * run[t]
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_first_steps_by_hand() -> None:
    p = nn.Parameter(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    p.grad = torch.tensor([0.3, -20.0, 0.0], dtype=torch.float64)
    Lion([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.85, -0.85, 1.9], dtype=torch.float64))
    p = nn.Parameter(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    p.grad = torch.tensor([0.3, -20.0, 0.0], dtype=torch.float64)
    AdamW([p], lr=0.1, weight_decay=0.5, eps=1e-30).step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.85, -0.85, 1.9], dtype=torch.float64))
    p = nn.Parameter(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    p.grad = torch.tensor([0.3, -20.0, 0.0], dtype=torch.float64)
    AdamL2([p], lr=0.1, weight_decay=0.5, eps=1e-30).step()  # the size of the decay is lost: only its sign counts
    torch.testing.assert_close(p.detach(), torch.tensor([0.9, -0.9, 1.9], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adagrad", {"eps": 1e-30}),
        ("rmsprop", {"eps": 1e-30}),
        ("adam", {"eps": 1e-30}),
        ("adam-l2", {"eps": 1e-30, "weight_decay": 0.0}),
        ("adamw", {"eps": 1e-30}),
        ("nadam", {"eps": 1e-30}),
        ("adafactor", {"eps": (1e-60, 1e-3)}),
        ("adan", {"eps": 1e-30}),
        ("lars", {"trust_coefficient": 1.0}),
        ("lamb", {"eps": 1e-30}),
        ("schedule-free-adamw", {"eps": 1e-30}),
        ("prodigy", {"eps": 1e-30, "d0": 1.0}),
        ("lion", {}),
        ("signum", {}),
        ("laprop", {"eps": 1e-30}),
        ("adabelief", {"eps": 1e-60}),
        ("adopt", {"eps": 1e-30}),
        ("ademamix", {"eps": 1e-30}),
        ("nadamw", {"eps": 1e-30}),
        ("adam-mini", {"eps": 1e-30}),
        ("cautious-adamw", {"eps": 1e-30}),
        ("cautious-lion", {}),
    ],
)
def test_rules_that_normalise_are_invariant_to_the_scale_of_gradients(name: str, options: dict[str, Any]) -> None:
    """A thousand times the gradient moves the same way (epsilon aside)."""
    row = BASELINES[name]
    one, other = (train(lambda ps: row.optimizer(ps, lr=0.01, **options), scale=s) for s in (1.0, 1024.0))
    assert_equal(one, other)


@pytest.mark.parametrize("name", ["gradient-descent", "sgd", "momentum", "nesterov"])
def test_linear_rules_trade_the_scale_of_gradients_for_the_learning_rate(name: str) -> None:
    row = BASELINES[name]
    one = train(lambda ps: row.optimizer(ps, lr=0.01))  # type: ignore[call-arg]
    assert_equal(one, train(lambda ps: row.optimizer(ps, lr=0.01 / 1024), scale=1024.0))  # type: ignore[call-arg]


def test_centered_rmsprop_survives_constant_gradients() -> None:
    """The variance is 0 then, and rounding may leave less than that."""
    for program in (None, rmsprop_program(centered=True)):
        p = nn.Parameter(torch.zeros(64))
        options = {"lr": 1e-9, "alpha": 0.5}
        optimizer = ProgramOptimizer([p], program, **options) if program else RMSProp([p], centered=True, **options)
        for _ in range(200):
            p.grad = torch.linspace(0.1, 1.0, 64)
            optimizer.step()
        assert p.isfinite().all()


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"centered": True}])
def test_rmsprop_refuses_state_that_it_never_had(options: dict[str, Any]) -> None:
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    optimizer = RMSProp([p])
    optimizer.step()
    optimizer.param_groups[0].update(options)
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be set before the first step, got"):
        optimizer.step()


@pytest.mark.parametrize("name", BASELINES)
def test_row_is_complete(name: str) -> None:
    row = BASELINES[name]
    assert row.name == name
    assert re.search(r"\b(18|19|20)\d\d\b", row.paper) and re.search("arXiv:|doi:|https://", row.paper)
    assert 0 < row.lr_range[0] < row.lr_range[1]
    assert row.program is row.program


def test_programs_have_the_state_and_size_of_the_papers() -> None:
    none, one, two = [], ["m"], ["m", "v"]
    expected = {
        "gradient-descent": none, "sgd": none, "momentum": one, "nesterov": one, "adagrad": ["total"], "rmsprop": ["v"],
        "adam": two, "adam-l2": two, "adamw": two, "nadam": [*two, "mu_product"], "adafactor": ["row", "col"],
        "lion": one,
    }  # fmt: skip
    assert {name: [s.name for s in BASELINES[name].program.live_state] for name in expected} == expected
    assert "sign" in {instr.op for instr in BASELINES["lion"].program.body}
