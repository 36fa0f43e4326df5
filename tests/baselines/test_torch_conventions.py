"""Hand-written, interpreted and learned optimizers where users expect what `torch.optim` does: odd dtypes, groups and
parameters, `torch.compile` around the step, batches that are left out, checkpoints of distributed training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.forms import every_row, make
from support.strategies import assert_same
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from optforge.baselines import BASELINES, AdaFactor, AdamW, Muon, ScheduleFreeAdamW, averaged
from optforge.learned import MetaOptimizer, learn
from optforge.primitives import ProgramError, ProgramOptimizer

ADAMW = BASELINES["adamw"].program
Make = Callable[..., Optimizer]

FACES: dict[str, Make] = {
    "hand": AdamW,
    "program": lambda params, **options: ProgramOptimizer(params, ADAMW, **options),
    "compiled": lambda params, **options: ProgramOptimizer(params, ADAMW, compile=True, **options),
    "learned": lambda params, **options: learn(params, ADAMW, **options),
    "meta": lambda params, **options: MetaOptimizer(params),
}
every_face = pytest.mark.parametrize("face", FACES)


def moved(optimizer: Optimizer, steps: int, *params: Tensor) -> None:
    for _ in range(steps):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()


# Dtypes.


@pytest.fixture
def narrow() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@every_row
def test_steps_are_counted_whatever_the_default_dtype(narrow: None, name: str, form: str) -> None:
    """bfloat16 counts to 256."""
    p = nn.Parameter(torch.ones(2, 2, dtype=torch.float32))
    optimizer = make(name, form, [p], lr=1e-6)
    moved(optimizer, 300, p)
    assert optimizer.state[p]["step"].item() == 300


@pytest.mark.parametrize("count", [torch.tensor(256.0, dtype=torch.bfloat16), 256])
@pytest.mark.parametrize("face", ["hand", "program", "compiled", "learned"])
def test_counters_of_older_checkpoints_go_on(face: str, count: Any) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = FACES[face]([p])
    moved(optimizer, 1, p)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = count
    optimizer.load_state_dict(saved)
    moved(optimizer, 2, p)
    assert optimizer.state[p]["step"].item() == 258


@pytest.mark.parametrize(
    ("name", "form"), [*((name, form) for name in BASELINES for form in ("hand", "eager")), ("adamw", "compiled")]
)
def test_float16_with_gradients_that_are_zero_stays_finite(name: str, form: str) -> None:
    """In float16 epsilon is 0, and so is the square of a small gradient; the step is that of float32, rounded."""
    gradient = torch.zeros(4, 3)
    gradient[0], gradient[1] = 1e-2, 1e-5
    ends = []
    for dtype in (torch.float16, torch.float32):
        p = nn.Parameter(torch.ones(4, 3, dtype=dtype))
        optimizer = make(name, form, [p], lr=1e-3)
        for _ in range(3):
            p.grad = gradient.to(torch.float16).to(dtype)
            optimizer.step()
        ends.append(p.detach().float())
    torch.testing.assert_close(ends[0], ends[1], rtol=2e-3, atol=0)


@pytest.mark.parametrize("face", ["hand", "program", "learned"])
def test_state_in_float16_is_refused(face: str) -> None:
    with pytest.raises(ValueError, match=r"state_dtype torch.float16 rounds epsilon .* choose torch.float32"):
        FACES[face]([nn.Parameter(torch.ones(2, dtype=torch.float16))], state_dtype=torch.float16)


# torch.compile around the step.

RULES: dict[str, Make] = FACES | {"muon": Muon, "adafactor": AdaFactor}


@pytest.mark.parametrize("face", RULES)
@pytest.mark.parametrize("kind", ["groups", "dtypes", "late", "shapes"])
def test_a_compiled_call_of_step_is_the_step(face: str, kind: str) -> None:
    """As PyTorch's tutorial compiles it, with parameters that are not all alike."""

    def run(compiled: bool) -> list[Tensor]:
        torch._dynamo.reset()
        wide = torch.float64 if kind == "dtypes" else torch.float32
        a, b = (
            nn.Parameter(torch.ones(3, 2) if kind == "shapes" else torch.zeros(3)),
            nn.Parameter(torch.zeros(3).to(wide)),
        )
        groups: Any = [{"params": [a]}, {"params": [b], "lr": 0.02}] if kind == "groups" else [a, b]
        optimizer = RULES[face](groups)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for t in range(4):
            optimizer.zero_grad()
            (a.sum() - 1).square().backward()
            if kind != "late" or t > 1:
                (b.sum() - 1).square().backward()
            step()
        return [a.detach(), b.detach()]

    assert_same(run(True), run(False))


# Groups.

NOTES = ("initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum", "lr_scale", "lr_mult", "layer_id",
         "weight_decay_scale", "foreach")  # fmt: skip


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("form", ["hand", "eager", "exported"])
def test_groups_keep_notes_of_schedulers_and_libraries(form: str, note: str) -> None:
    for name in ("adamw", "muon"):
        optimizer = make(name, form, [{"params": [nn.Parameter(torch.ones(2, 2))], note: 0.5}])
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], note: 0.25})
        assert [group[note] for group in optimizer.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize("wrong", ["weight_dacay", "nesterov", "amsgrad", "beta7", "momentum"])
@pytest.mark.parametrize("form", ["hand", "eager", "exported"])
def test_groups_with_misspelt_options_or_those_of_another_rule_are_refused(form: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"unknown (option|hyperparameter) '{wrong}'"):
        make("adamw", form, [{"params": [nn.Parameter(torch.ones(2))], wrong: 0.5}])


@pytest.mark.parametrize("scheduler", [OneCycleLR, CyclicLR])
def test_cycles_of_momentum_are_torchs_where_a_program_has_momentum_and_told_where_not(scheduler: Any) -> None:
    options = {"total_steps": 9} if scheduler is OneCycleLR else {"base_lr": 0.01}
    optimizer = make("momentum", "eager", [p := nn.Parameter(torch.ones(2))])
    schedule = scheduler(optimizer, max_lr=0.1, **options)
    moved(optimizer, 1, p)
    schedule.step()
    assert optimizer.param_groups[0]["momentum"] != 0.9
    optimizer = make("adamw", "eager", [nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="cycle_momentum"):
        scheduler(optimizer, max_lr=0.1, **options)
    scheduler(optimizer, max_lr=0.1, cycle_momentum=False, **options)
    assert "cycle_momentum=False" in str(ProgramOptimizer.__doc__)


def test_averages_of_schedule_free_follow_a_beta_that_changes() -> None:
    """x against the weighted mean of all z, which is what it is whatever share of it the parameters hold."""
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = ScheduleFreeAdamW([p], lr=0.1, betas=(0.9, 0.99))
    total, weights = torch.zeros_like(p.detach()), 0.0
    for t in range(30):
        optimizer.param_groups[0]["betas"] = (0.95 - 0.02 * (t % 7), 0.99)
        optimizer.param_groups[0]["lr"] = lr = 0.1 / (1 + t % 3)
        optimizer.zero_grad()
        (p - torch.tensor([3.0, 0.5])).square().sum().backward()
        optimizer.step()
        total, weights = total + lr**2 * optimizer.state[p]["z"], weights + lr**2
        held = p.detach().clone()
        optimizer.param_groups[0]["betas"] = (0.7, 0.99)
        with averaged(optimizer):
            torch.testing.assert_close(p.detach(), total / weights, rtol=1e-12, atol=1e-12)
        optimizer.eval()
        torch.testing.assert_close(p.detach(), total / weights, rtol=1e-12, atol=1e-12)
        optimizer.train()
        torch.testing.assert_close(p.detach(), held, rtol=1e-12, atol=1e-12)


# Parameters.


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
@pytest.mark.parametrize("form", ["hand", "eager", "exported"])
def test_parameters_without_elements_are_passed_over(form: str, shape: tuple[int, ...]) -> None:
    for name in BASELINES:
        ends = []
        for extra in ([], [nn.Parameter(torch.zeros(shape))]):
            p = nn.Parameter(torch.ones(3, 2))
            optimizer = make(name, form, [p, *extra])
            moved(optimizer, 2, p, *extra)
            other = make(name, form, [nn.Parameter(q.detach().clone()) for q in (p, *extra)])
            other.load_state_dict(optimizer.state_dict())
            ends.append(p.detach())
        assert_same(ends[1], ends[0])


@pytest.mark.parametrize("face", ["hand", "program", "compiled", "learned"])
def test_lazy_parameters_are_trained_once_they_have_a_shape(face: str) -> None:
    ends = []
    for lazy in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1))
        if not lazy:
            net(torch.ones(2, 3))
        optimizer = FACES[face](net.parameters())
        for t in range(3):
            optimizer.zero_grad()
            if lazy and t == 0:
                torch.manual_seed(0)
            net(torch.ones(2, 3)).sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        ends.append([p.detach() for p in net.parameters()])
    assert_same(ends[1], ends[0])


def test_a_lazy_parameter_has_no_place_in_a_checkpoint_yet() -> None:
    optimizer = ProgramOptimizer(nn.LazyLinear(4).parameters(), ADAMW)
    with pytest.raises(ProgramError, match="run the model once on a batch"):
        optimizer.state_dict()


# Steps without gradients, and what is said.


@every_face
def test_a_step_without_gradients_moves_nothing_and_training_goes_on(face: str) -> None:
    """As after a batch for which Lightning's `training_step` returns None."""
    ends = []
    for skipped in (False, True):
        p = nn.Parameter(torch.ones(3))
        optimizer = FACES[face]([p])
        if skipped:
            assert optimizer.step(lambda: None) is None
        moved(optimizer, 2, p)
        if skipped:
            optimizer.zero_grad()
            optimizer.step()
            optimizer.step(lambda: None)
        moved(optimizer, 2, p)
        ends.append(p.detach())
    assert_same(ends[1], ends[0])


# Checkpoints of distributed training.


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("face", ["hand", "program", "learned", "beta"])
def test_distributed_checkpoints_go_on_exactly(face: str, flat: bool) -> None:
    build = FACES.get(face) or (lambda params: learn(params, ADAMW, what=("lr", "beta1")))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def pair() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        return net, build(net.parameters())

    def steps(net: nn.Module, optimizer: Optimizer) -> list[Tensor]:
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    (first, optimizer), (second, resumed) = pair(), pair()
    steps(first, optimizer)
    second.load_state_dict(first.state_dict())
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    saved = get_optimizer_state_dict(first, optimizer, options=options)
    set_optimizer_state_dict(second, resumed, saved, options=options)
    assert_same(steps(second, resumed), steps(first, optimizer))
