"""Each baseline is written twice, by hand and as a program: each form is the oracle of the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from strategies import random_gradients
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines import BASELINES, AdaFactor, AdamW, Lion
from primitives import ProgramOptimizer

SHAPES = ((4, 3), (5,), (), (2, 3, 2))
STEPS = 30

OPTIONS: dict[str, list[dict[str, float]]] = {
    "adamw": [
        {},
        {"weight_decay": 0.0},
        {"beta1": 0.0},
        {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
    ],
    "adafactor": [
        {},
        {"weight_decay": 0.3, "clip_threshold": 0.5},
        {"decay": 0.5, "eps1": 1e-3, "eps2": 0.1},
    ],
    "lion": [
        {},
        {"weight_decay": 0.1},
        {"beta1": 0.0, "beta2": 0.0},
        {"beta1": 0.95, "beta2": 0.98, "weight_decay": 1.0},
    ],
}
CASES = [(name, options) for name in BASELINES for options in OPTIONS[name]]


def train(
    make: Callable[[list[nn.Parameter]], Optimizer], steps: int = STEPS, scale: float = 1.0
) -> list[list[Tensor]]:
    """Parameters of every shape after each step, in float64, on gradients of changing size."""
    runs = [random_gradients(shape, steps, seed) for seed, shape in enumerate(SHAPES)]
    parameters = [nn.Parameter(run[0].clone()) for run in runs]
    optimizer = make(parameters)
    seen = []
    for t in range(1, steps + 1):
        for p, run in zip(parameters, runs, strict=True):
            p.grad = scale * 10 ** float(t % 5 - 3) * run[t]
        optimizer.step()
        seen.append([p.detach().clone() for p in parameters])
    return seen


def assert_equal(one: list[list[Tensor]], other: list[list[Tensor]]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_every_baseline_has_cases() -> None:
    assert set(OPTIONS) == set(BASELINES)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_hand_written_equals_program(name: str, options: dict[str, float]) -> None:
    row = BASELINES[name]
    hand = train(lambda ps: row.optimizer(ps, lr=0.01, **row.by_hand(**options)))  # type: ignore[call-arg]
    program = train(lambda ps: ProgramOptimizer(ps, row.program, lr=0.01, **options))
    assert_equal(hand, program)
    moved = max(float((a - b).abs().max()) for a, b in zip(hand[0], hand[-1], strict=True))
    assert moved > 0.01, "nothing happened, so nothing was compared"


@pytest.mark.parametrize("name", BASELINES)
def test_both_forms_have_the_same_defaults(name: str) -> None:
    row = BASELINES[name]
    p = [nn.Parameter(torch.zeros(1))]
    hand = row.optimizer(p).defaults
    assert {k: hand[k] for k in row.by_hand()} == row.by_hand()


@pytest.mark.parametrize("options", OPTIONS["adamw"])
def test_adamw_is_that_of_torch(options: dict[str, float]) -> None:
    values = BASELINES["adamw"].by_hand(**options)
    assert_equal(
        train(lambda ps: AdamW(ps, lr=0.01, **values)),  # type: ignore[arg-type]
        train(lambda ps: torch.optim.AdamW(ps, lr=0.01, **values)),  # type: ignore[arg-type]
    )


def test_adamw_has_the_defaults_of_torch() -> None:
    p = [nn.Parameter(torch.zeros(1))]
    torch_defaults = torch.optim.AdamW(p).defaults
    same = ("lr", "betas", "eps", "weight_decay", "maximize")
    assert AdamW(p).defaults == {k: torch_defaults[k] for k in same} | {"state_dtype": None}


@pytest.mark.parametrize("options", OPTIONS["lion"])
def test_lion_is_that_of_lion_pytorch(options: dict[str, float]) -> None:
    peer = pytest.importorskip("lion_pytorch", reason="lion-pytorch is not installed (extra: peers)")
    values = BASELINES["lion"].by_hand(**options)
    assert_equal(
        train(lambda ps: Lion(ps, lr=0.01, **values)),  # type: ignore[arg-type]
        train(lambda ps: peer.Lion(ps, lr=0.01, **values)),
    )


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


@pytest.mark.parametrize("name", BASELINES)
def test_rule_is_invariant_to_the_scale_of_gradients(name: str) -> None:
    """All normalise: a thousand times the gradient moves the same way (epsilon aside)."""
    row = BASELINES[name]
    options: dict[str, object] = {"adamw": {"eps": 1e-30}, "adafactor": {"eps": (1e-60, 1e-3)}}.get(name, {})  # type: ignore[assignment]
    one, other = (train(lambda ps: row.optimizer(ps, lr=0.01, **options), scale=s) for s in (1.0, 1024.0))
    assert_equal(one, other)


@pytest.mark.parametrize("make", [AdamW, Lion])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": "0.1"}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"weight_decay": None}, "weight_decay"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"betas": (0.9, float("nan"))}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": 0.9}, "betas"),
        ({"betas": ("0.9", 0.99)}, "betas"),
    ],
)
def test_invalid_hyperparameters_are_refused_by_name(
    make: Callable[..., Optimizer], options: dict[str, object], name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
        make([nn.Parameter(torch.zeros(1))], **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"lr": -1.0}, "lr"), ({"decay": float("nan")}, "decay"), ({"clip_threshold": 0.0}, "clip_threshold"),
     ({"eps": 1e-30}, "eps"), ({"eps": (1e-30, -1.0)}, r"eps\[1\]")],
)  # fmt: skip
def test_adafactor_refuses_by_name(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
        AdaFactor([nn.Parameter(torch.zeros(1))], **options)  # type: ignore[arg-type]


def test_adamw_refuses_negative_epsilon() -> None:
    with pytest.raises(ValueError, match=r"^eps must be a finite number of at least 0, got -1e-08"):
        AdamW([nn.Parameter(torch.zeros(1))], eps=-1e-8)


@pytest.mark.parametrize("make", [AdamW, Lion, AdaFactor])
def test_parameters_without_gradient_are_untouched(make: Callable[..., Optimizer]) -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = make([p, q], lr=0.1, weight_decay=0.5)
    p.grad = torch.ones(2)
    optimizer.step()
    assert q.tolist() == [1.0, 1.0] and q not in optimizer.state
    assert p.tolist() != [1.0, 1.0]


@pytest.mark.parametrize("make", [AdamW, Lion])
def test_closure_is_called_with_gradients_on_and_its_loss_returned(make: Callable[..., Optimizer]) -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer = make([p], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0  # type: ignore[union-attr]
    assert 2.8 < p.item() < 2.91


@pytest.mark.parametrize("name", BASELINES)
def test_row_is_complete(name: str) -> None:
    row = BASELINES[name]
    assert row.name == name
    assert "arXiv:" in row.paper
    assert 0 < row.lr_range[0] < row.lr_range[1]
    assert row.program is row.program


def test_programs_have_the_state_and_size_of_the_papers() -> None:
    assert [s.name for s in BASELINES["adamw"].program.live_state] == ["m", "v"]
    assert [s.name for s in BASELINES["lion"].program.live_state] == ["m"]
    assert [s.name for s in BASELINES["adafactor"].program.live_state] == ["row", "col"]
    assert "sign" in {instr.op for instr in BASELINES["lion"].program.body}
