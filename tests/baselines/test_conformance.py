"""What a user of torch expects of every row of the table, hand-written and as a program: it trains, keeps what is not
its own, follows schedulers, and goes on from checkpoints and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.forms import FORMS, SHAPES, draw, every_form, every_row, make, one, play, through_a_file
from support.strategies import assert_same
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from optforge.baselines import BASELINES

STEPS = 6


# Training.


def quadratic(w: Tensor, v: Tensor) -> Tensor:
    """Curvatures from 0.1 to 1, and a minimum away from the start and from zero."""
    curvature = torch.linspace(0.1, 1.0, w.numel(), dtype=w.dtype).view_as(w)
    return (curvature * (w - 0.5).square()).sum() / 2 + (v + 0.6).square().sum() / 2


def rosenbrock(w: Tensor, v: Tensor) -> Tensor:
    """A curved valley for every pair of a weight and the next, with its minimum at 1; `v` joins in."""
    x = torch.cat([w.ravel(), v])
    return ((1 - x[::2]).square() + 3 * (x[1::2] - x[::2].square()).square()).sum() / 20


# Every other weight of `w`, and those of `v`. The norm of `w` is that of the minimum, for rules that keep it.
STARTS = {quadratic: ((0.7, 0.1), -0.8), rosenbrock: ((0.85, (2 - 0.85**2) ** 0.5), 0.85)}


# Dtypes of parameters, and of their state where it is another.
DTYPES = [(torch.float64, None), (torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.float32),
          (torch.float32, torch.float64), (torch.bfloat16, torch.float32)]  # fmt: skip


@every_row
@pytest.mark.parametrize(
    ("target", "dtype"),
    [(quadratic, torch.float32), (rosenbrock, torch.bfloat16)],
    ids=["quadratic", "rosenbrock-bfloat16"],
)
def test_converges(name: str, form: str, target: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    """The loss to a hundredth, from about the largest learning rate of its row, which falls to zero.

    bfloat16 has float32 state.
    """
    largest, ratios = BASELINES[name].lr_range[1], []
    for lr in (largest, largest / 3, 10 * largest):
        w, v = STARTS[target]
        params = [
            nn.Parameter(torch.tensor([*w] * 6, dtype=dtype).view(4, 3)),
            nn.Parameter(torch.full((4,), v, dtype=dtype)),
        ]
        optimizer = FORMS[form](name)(params, lr=lr, state_dtype=torch.float32)
        if "weight_decay" in optimizer.defaults:
            optimizer.param_groups[0]["weight_decay"] = 0.0  # whose minimum is another
        schedule, first = lr_scheduler.CosineAnnealingLR(optimizer, 250), target(*params).item()
        for _ in range(250):
            optimizer.zero_grad()
            target(*params).backward()
            optimizer.step()
            schedule.step()
        ratios.append(target(*params).item() / first)
        if ratios[-1] < 0.01:
            return
    raise AssertionError(f"the loss fell to {', '.join(f'{ratio:.3g}' for ratio in ratios)} of what it was")


@every_row
def test_closure_is_called_with_gradients_on_and_its_loss_returned(name: str, form: str) -> None:
    params = one()
    optimizer = make(name, form, params)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = 6.0 + (params[0] * torch.tensor([1.0, -1.0])).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0  # type: ignore[arg-type, attr-defined]
    optimizer.step(closure)  # type: ignore[arg-type]
    assert closure() < 6 and params[0].requires_grad and params[0].grad_fn is None
    assert optimizer.step() is None  # type: ignore[func-returns-value]


@every_row
def test_gradients_of_two_half_batches_add_up(name: str, form: str) -> None:
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)
    ends = []
    for batches in ([x], [x[:2], x[2:]]):
        p = nn.Parameter(torch.eye(2, dtype=torch.float64))
        optimizer = make(name, form, [p])
        for _ in range(3):
            optimizer.zero_grad()
            for batch in batches:
                (batch @ p - batch.flip(1)).square().sum().backward()
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-9)
    assert (ends[0] != torch.eye(2)).any()


@every_row
def test_what_has_no_gradient_is_untouched(name: str, form: str) -> None:
    params, gradients = draw(((4, 3), (4, 3), (5,)), 3)
    optimizer = make(name, form, params)
    frozen = params[1].detach().clone()
    for step in gradients:
        for p, g in zip(params[::2], step[::2], strict=True):
            p.grad = g
        optimizer.step()
    assert_same(params[1].detach(), frozen)
    assert params[1] not in optimizer.state
    state = copy.deepcopy(dict(optimizer.state[params[0]]))
    before = [p.detach().clone() for p in params]
    optimizer.zero_grad()
    optimizer.step()
    assert_same([p.detach() for p in params], before)
    assert_same(dict(optimizer.state[params[0]]), state)


@every_row
@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
def test_step_keeps_what_is_not_its_own(
    name: str, form: str, dtype: torch.dtype, state_dtype: torch.dtype | None
) -> None:
    """Parameters stay where they are in memory, and state of the dtype and shape that it had."""
    params, gradients = draw(SHAPES["mixed"], STEPS, dtype)
    optimizer = make(name, form, params, state_dtype=state_dtype)

    def look() -> Any:
        state = [{key: (value.dtype, value.shape) for key, value in optimizer.state[p].items()} for p in params]
        return state, [(p.data_ptr(), p.dtype, p.shape, p.stride()) for p in params]

    play(optimizer, params, gradients[:1])
    before = look()
    play(optimizer, params, gradients[1:])
    assert look() == before
    for p in params:
        tensors = {key: value for key, value in optimizer.state[p].items() if key != "step"}
        assert {value.dtype for value in tensors.values()} <= {state_dtype or dtype}
        assert not {p.data_ptr(), p.grad.data_ptr()} & {value.data_ptr() for value in tensors.values()}  # type: ignore[union-attr]


# Schedules, checkpoints, copies.

SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 4),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS, cycle_momentum=False),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 2)]),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "averaging": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, 3),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


def test_every_kind_of_scheduler_is_among_them() -> None:
    kinds = {type(schedule(make("sgd", "hand", one()))).__name__ for schedule in SCHEDULES.values()}
    assert kinds == {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedulers_drive_every_row(kind: str) -> None:
    """The rate as in `torch.optim.SGD` under the same schedule, and both forms alike under it."""
    for name in BASELINES:
        rates, ends = [], []
        for form in ("torch", "hand", "eager"):
            params, gradients = draw(SHAPES["mixed"], STEPS)
            optimizer = torch.optim.SGD(params, 0.1) if form == "torch" else make(name, form, params, lr=0.1)
            schedule, seen = SCHEDULES[kind](optimizer), []
            for step in gradients:
                seen.append(optimizer.param_groups[0]["lr"])
                for p, g in zip(params, step, strict=True):
                    p.grad = g.clone()
                optimizer.step()
                schedule.step(*[1.0] * (kind == "plateau"))
            optimizer.add_param_group({"params": one(), "initial_lr": 0.1})  # as if it had been there before
            rates.append(seen)
            ends.append([p.detach() for p in params])
        assert rates[1] == rates[2] == rates[0] and len(set(rates[0])) > 1
        torch.testing.assert_close(ends[2], ends[1], rtol=0, atol=1e-9)


CYCLED = [name for name in BASELINES if {"betas", "momentum"} & set(make(name, "hand", one()).defaults)]


@pytest.mark.parametrize("name", CYCLED)
def test_schedulers_cycle_momentum_by_the_names_of_torch(name: str) -> None:
    optimizer = make(name, "hand", one())
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS)
    seen = set()
    for _ in range(STEPS - 1):
        group = optimizer.param_groups[0]
        seen.add(group["betas"][0] if "betas" in group else group["momentum"])
        group["params"][0].grad = torch.ones(3, 2)
        optimizer.step()
        schedule.step()
    assert len(seen) > 2


@every_row
@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
def test_checkpoint_continues_bit_for_bit(
    name: str, form: str, dtype: torch.dtype, state_dtype: torch.dtype | None
) -> None:
    params, gradients = draw(SHAPES["mixed"], 2 * STEPS, dtype)
    first = make(name, form, params, state_dtype=state_dtype)
    play(first, params, gradients[:STEPS])
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    second = make(name, form, resumed, lr=1.0, state_dtype=state_dtype)
    second.load_state_dict(through_a_file(first.state_dict()))
    expected = play(first, params, gradients[STEPS:])
    assert_same(play(second, resumed, gradients[STEPS:]), expected)
    for p, q in zip(params, resumed, strict=True):
        assert_same(dict(second.state[q]), dict(first.state[p]))


@every_form
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alone(name: str, form: str, copied: Callable[[Any], Any]) -> None:
    params, gradients = draw(SHAPES["mixed"], 2 * STEPS)
    optimizer = make(name, form, params)
    play(optimizer, params, gradients[:STEPS])
    copies, second = copied((params, optimizer))
    expected = play(optimizer, params, gradients[STEPS:])
    assert_same(play(second, copies, gradients[STEPS:]), expected)
    joined = one() + one()
    for p, o in zip(joined, (optimizer, second), strict=True):
        o.add_param_group({"params": [p]})
        p.grad = torch.full_like(p, 0.5)
        o.step()
    assert_same(joined[1].detach(), joined[0].detach())
