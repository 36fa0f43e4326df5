"""What torch's own tests ask of every optimizer of torch, asked of every row: by hand, as a program, and compiled.

The checks are those of torch's ``test/test_optim.py`` that do not depend on flags which ours do not have (``foreach``,
``fused``, ``capturable``) and do not need a GPU; each carries its name there. Inputs come as torch has them, in an
`OptimizerInfo`. Complex parameters, which torch trains, are refused (`test_options`).
"""

from __future__ import annotations

import copy
import io
import itertools
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from support.forms import FORMS
from support.strategies import assert_same
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

from optforge.baselines import BASELINES
from optforge.primitives import ProgramError

STEPS = 8  # torch makes 20 or 200, which shows no more of what is asked here


@lru_cache
def info(name: str, form: str) -> OptimizerInfo:
    """A row as torch's tests see an optimizer; its inputs are the row's cases and what all optimizers have."""
    row, make = BASELINES[name], FORMS[form](name)

    def inputs(device: Any, dtype: Any = None) -> list[OptimizerInput]:
        visible = {option: value for option, value in row.visible.items() if option != "lr"}
        cases = [{"lr": 0.001} | (row.by_hand(**case) if form == "hand" else dict(case)) for case in row.cases]
        common: list[dict[str, Any]] = [{}, {"lr": torch.tensor(0.001)}, {"maximize": True}]
        given = [*cases, *(visible | kwargs for kwargs in common)]
        return [OptimizerInput(None, kwargs, str(kwargs)) for kwargs in given]  # type: ignore[arg-type]

    return OptimizerInfo(
        make, optim_inputs_func=inputs, optim_error_inputs_func=get_error_inputs_for_all_optims,  # type: ignore[arg-type]
        supported_impls=(), supports_complex=False,
    )  # fmt: skip


def suite(*forms: str) -> pytest.MarkDecorator:
    """All rows in `forms`; a matrix program is compiled for seconds, and so is slow."""
    cases = [
        pytest.param(
            info(name, form), id=f"{name}-{form}",
            marks=[pytest.mark.slow] * (form == "compiled" and row.program.needs_matrix),
        )
        for (name, row), form in itertools.product(BASELINES.items(), forms)
    ]  # fmt: skip
    return pytest.mark.parametrize("optim_info", cases)


every_form, in_python = suite("hand", "eager", "compiled"), suite("hand", "eager")


def problem(contiguous: bool = True) -> tuple[Parameter, Parameter, Tensor]:
    """Torch's: a matrix and a vector, whose affine map of an input should become zero."""
    torch.manual_seed(0)
    weight, bias, x = torch.randn(10, 5, 2), torch.randn(10, 2), torch.randn(5)
    return (
        Parameter(weight[..., 0].clone() if contiguous else weight[..., 0]),
        Parameter(bias[..., 0].clone() if contiguous else bias[..., 0]),
        x,
    )


def closure(optimizer: Optimizer, weight: Tensor, bias: Tensor, x: Tensor) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (weight.mv(x) + bias).pow(2).sum()
        value.backward()
        return value

    return loss


def trained(optim_info: OptimizerInfo, kwargs: dict[str, Any], steps: int) -> tuple[Optimizer, list[Parameter], Tensor]:
    weight, bias, x = problem()
    optimizer = optim_info.optim_cls([weight, bias], **kwargs)  # type: ignore[operator]
    for _ in range(steps):
        optimizer.step(closure(optimizer, weight, bias, x))
    return optimizer, [weight, bias], x


def same(one: Any, other: Any) -> None:
    """Equal dictionaries of state, bit for bit."""
    ours, theirs = (torch.utils._pytree.tree_flatten(x) for x in (one, other))
    assert ours[1] == theirs[1]
    for x, y in zip(ours[0], theirs[0], strict=True):
        assert_same(x, y) if isinstance(x, Tensor) else None
        assert isinstance(x, Tensor) or x == y


def all_inputs(optim_info: OptimizerInfo) -> Iterator[dict[str, Any]]:
    for given in optim_info.optim_inputs_func(device="cpu"):
        yield copy.deepcopy(given.kwargs)


@every_form
def test_forloop_goes_right_direction(optim_info: OptimizerInfo) -> None:
    strided = [(visible_options(optim_info), False)]
    for kwargs, contiguous in [(kwargs, True) for kwargs in all_inputs(optim_info)] + strided:
        weight, bias, x = problem(contiguous)
        optimizer = optim_info.optim_cls([weight, bias], **kwargs)  # type: ignore[operator]
        loss = closure(optimizer, weight, bias, x)
        first = loss().item()
        for _ in range(STEPS):
            optimizer.step(loss)
        last = loss().item()
        assert last > first if kwargs.get("maximize") else last < first, kwargs


@in_python
def test_param_group_with_lrscheduler_goes_right_direction(optim_info: OptimizerInfo) -> None:
    for kwargs, makers in itertools.product(({}, {"maximize": True}), optim_info.scheduler_inputs):
        weight, bias, x = problem()
        groups = [{"params": [weight]}, {"params": [bias], "lr": 0.01}]
        optimizer = optim_info.optim_cls(groups, **kwargs)  # type: ignore[operator]
        schedulers, loss = [make(optimizer) for make in makers], closure(optimizer, weight, bias, x)
        first = loss().item()
        for _ in range(STEPS):
            optimizer.step(loss)
            for scheduler in schedulers:
                needs_loss = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(loss().item()) if needs_loss else scheduler.step()
        assert loss().item() > first if kwargs else loss().item() < first


@every_form
def test_tensor_lr(optim_info: OptimizerInfo) -> None:
    """A rate in a tensor does what a number does, stays the tensor that it is, and may change in place."""
    ends = []
    for lr in (0.01, torch.tensor(0.01, dtype=torch.float64), torch.tensor([0.01], dtype=torch.float64)):
        optimizer, parameters, x = trained(optim_info, {"lr": lr}, 2)
        if isinstance(lr, Tensor):
            lr /= 2
            assert optimizer.param_groups[0]["lr"] is lr
        else:
            optimizer.param_groups[0]["lr"] = lr / 2
        optimizer.step(closure(optimizer, *parameters, x))  # type: ignore[arg-type]
        ends.append(parameters)
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])


@in_python
def test_param_groups_lr(optim_info: OptimizerInfo) -> None:
    weight, bias, x = problem()
    irrelevant = Parameter(torch.randn(2, 2))
    before = irrelevant.detach().clone()
    groups = [{"params": [weight], "lr": 0.01}, {"params": [bias]}, {"params": [irrelevant], "lr": 0.0}]
    optimizer = optim_info.optim_cls(groups, lr=0.001)  # type: ignore[operator]
    loss = closure(optimizer, weight, bias, x)
    first = loss().item()
    for _ in range(STEPS):
        optimizer.step(loss)
        irrelevant.grad = torch.rand_like(irrelevant)
    assert loss().item() < first and torch.equal(irrelevant, before)


@in_python
def test_param_groups_weight_decay(optim_info: OptimizerInfo) -> None:
    weight, bias, x = problem()
    groups = [{"params": [weight], "weight_decay": 0.5}, {"params": [bias]}]
    if "weight_decay" not in info_defaults(optim_info):
        pytest.skip("the rule has no weight decay")
    optimizer = optim_info.optim_cls(groups, lr=0.01)  # type: ignore[operator]
    assert optimizer.param_groups[0]["weight_decay"] > optimizer.param_groups[1]["weight_decay"]
    loss = closure(optimizer, weight, bias, x)
    first = loss().item()
    for _ in range(STEPS):
        optimizer.step(loss)
    assert loss().item() < first


def info_defaults(optim_info: OptimizerInfo) -> dict[str, Any]:
    return optim_info.optim_cls([Parameter(torch.ones(2, 2))]).defaults  # type: ignore[operator, no-any-return]


def visible_options(optim_info: OptimizerInfo) -> dict[str, Any]:
    """The row's defaults, but for options without which it does not move visibly."""
    return next(kwargs for kwargs in all_inputs(optim_info) if "lr" not in kwargs)


@in_python
def test_step_is_noop_when_params_have_no_grad(optim_info: OptimizerInfo) -> None:
    for kwargs in all_inputs(optim_info):
        params = [Parameter(torch.randn(2, 3)) for _ in range(2)]
        before = [p.detach().clone() for p in params]
        optimizer = optim_info.optim_cls(params, **kwargs)  # type: ignore[operator]
        optimizer.step()
        assert_same([p.detach() for p in params], before)
        assert not any(optimizer.state.values())


@every_form
def test_step_is_noop_for_zero_grads(optim_info: OptimizerInfo) -> None:
    decays = {"weight_decay": 0.0} if "weight_decay" in info_defaults(optim_info) else {}
    for kwargs in all_inputs(optim_info):
        params = [Parameter(torch.randn(2, 3)), Parameter(torch.randn(3))]
        before = [p.detach().clone() for p in params]
        optimizer = optim_info.optim_cls(params, **kwargs | decays)  # type: ignore[operator]
        for _ in range(5):
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
        assert_same([p.detach() for p in params], before)


@every_form
def test_empty_grad(optim_info: OptimizerInfo) -> None:
    """A parameter without elements is left alone, whatever comes with it."""
    empty, p = Parameter(torch.ones(0, 3)), Parameter(torch.ones(2, 3))
    optimizer = optim_info.optim_cls([empty, p], **visible_options(optim_info))  # type: ignore[operator]
    for _ in range(2):
        empty.grad, p.grad = torch.zeros_like(empty), torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]])
        optimizer.step()
    assert empty.numel() == 0 and bool(p.isfinite().all()) and not torch.equal(p, torch.ones(2, 3))


@in_python
def test_optimizer_can_be_printed(optim_info: OptimizerInfo) -> None:
    for kwargs in all_inputs(optim_info):
        text = repr(optim_info.optim_cls([Parameter(torch.randn(2, 3))], **kwargs))  # type: ignore[operator]
        assert "lr: " in text and "Parameter Group 0" in text


@every_form
def test_state_dict_deterministic(optim_info: OptimizerInfo) -> None:
    for kwargs in [*all_inputs(optim_info)][-3:]:
        optimizer, params, x = trained(optim_info, kwargs, 3)
        others = [Parameter(p.detach().clone()) for p in params]
        second = optim_info.optim_cls(others, **kwargs)  # type: ignore[operator]
        saved = copy.deepcopy(optimizer.state_dict())
        given = copy.deepcopy(saved)
        second.load_state_dict(given)
        same(given, saved)
        for _ in range(3):
            optimizer.step(closure(optimizer, *params, x))  # type: ignore[arg-type]
            second.step(closure(second, *others, x))
            assert_same([p.detach() for p in others], [p.detach() for p in params])
        same(second.state_dict(), optimizer.state_dict())
        second.param_groups.extend(second.param_groups)
        assert_same(second.state_dict()["param_groups"][-1], optimizer.state_dict()["param_groups"][-1])


@every_form
def test_can_load_older_state_dict(optim_info: OptimizerInfo) -> None:
    """Options that a checkpoint of an older version did not have are the present ones."""
    optimizer, params, x = trained(optim_info, {}, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for option in ("maximize", "state_dtype", "differentiable", "training", "use_muon", "use_hyperball"):
            group.pop(option, None)
    others = [Parameter(p.detach().clone()) for p in params]
    second = optim_info.optim_cls(others)  # type: ignore[operator]
    second.load_state_dict(saved)
    optimizer.step(closure(optimizer, *params, x))  # type: ignore[arg-type]
    second.step(closure(second, *others, x))
    assert_same([p.detach() for p in others], [p.detach() for p in params])


@in_python
def test_save_load_equality_with_weights_only(optim_info: OptimizerInfo) -> None:
    for kwargs in [*all_inputs(optim_info)][-3:]:
        optimizer, _, _ = trained(optim_info, kwargs, 1)
        saved, file = optimizer.state_dict(), io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        same(torch.load(file, weights_only=True), saved)


@every_form
def test_load_nontensor_step(optim_info: OptimizerInfo) -> None:
    optimizer, params, x = trained(optim_info, {}, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = float(state["step"].item())
    others = [Parameter(p.detach().clone()) for p in params]
    second = optim_info.optim_cls(others)  # type: ignore[operator]
    second.load_state_dict(saved)
    for _ in range(2):
        optimizer.step(closure(optimizer, *params, x))  # type: ignore[arg-type]
        second.step(closure(second, *others, x))
    assert_same([p.detach() for p in others], [p.detach() for p in params])
    same(second.state_dict(), optimizer.state_dict())


@in_python
def test_state_dict_with_names(optim_info: OptimizerInfo) -> None:
    """Names of parameters are kept and saved; a checkpoint with other names, or none, is loaded by order."""
    weight, bias, x = problem()
    optimizer = optim_info.optim_cls([("weight", weight), ("bias", bias)])  # type: ignore[operator]
    optimizer.step(closure(optimizer, weight, bias, x))
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]
    for named in ([("w", weight), ("b", bias)], [weight, bias]):
        second = optim_info.optim_cls(named)  # type: ignore[operator]
        second.load_state_dict(copy.deepcopy(saved))
        second.step(closure(second, weight, bias, x))


@in_python
def test_deepcopy_copies_all_public_attrs(optim_info: OptimizerInfo) -> None:
    def public(optimizer: Optimizer) -> set[str]:
        return {name for name in vars(optimizer) if not name.startswith("_")}

    for kwargs in all_inputs(optim_info):
        optimizer = optim_info.optim_cls([Parameter(torch.randn(2, 3))], **kwargs)  # type: ignore[operator]
        assert public(copy.deepcopy(optimizer)) == public(optimizer)


@in_python
def test_step_all_hooks(optim_info: OptimizerInfo) -> None:
    """Those of all optimizers and those of this one, in torch's order."""
    seen: list[int] = []
    note = lambda number: lambda *_: seen.append(number)  # noqa: E731
    optimizer, params, x = trained(optim_info, {}, 1)
    handles = [
        register_optimizer_step_pre_hook(note(1)),
        register_optimizer_step_post_hook(note(5)),
        optimizer.register_step_pre_hook(note(2)),
        optimizer.register_step_post_hook(note(4)),
    ]
    loss = closure(optimizer, *params, x)  # type: ignore[arg-type]
    try:
        optimizer.step(lambda: (seen.append(3), loss())[1])
        assert seen == [1, 2, 3, 4, 5]
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step(loss)
    assert seen == [1, 2, 3, 4, 5]


@in_python
def test_state_dict_and_load_state_dict_hooks(optim_info: OptimizerInfo) -> None:
    """Before and after; what a hook returns takes the place of the dictionary; `prepend` puts a hook first."""
    optimizer, _, _ = trained(optim_info, {}, 1)
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "mark": seen.append("saved")})
    optimizer.register_load_state_dict_pre_hook(lambda _, given: seen.append(f"load {'mark' in given}"))
    optimizer.register_load_state_dict_pre_hook(lambda _, given: {**given, "mark": 1}, prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    saved = optimizer.state_dict()
    assert "mark" in saved
    del saved["mark"]
    optimizer.load_state_dict(saved)
    assert seen == ["save", "saved", "load True", "loaded"]


@in_python
def test_non_empty_state(optim_info: OptimizerInfo) -> None:
    optimizer, params, _ = trained(optim_info, {}, 1)
    for p in params:
        assert "step" in optimizer.state[p] and optimizer.state[p]["step"].device.type == "cpu"


@in_python
def test_mixed_dtypes_and_the_default_dtype(optim_info: OptimizerInfo) -> None:
    """Parameters of three dtypes in one group move as they do alone, and whatever torch's default is."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    shape, ends = (3, 2), []
    for groups, default in (((0, 1, 2), torch.float32), ((0, 1, 2), torch.float64), (None, torch.float32)):
        torch.manual_seed(0)
        params = [Parameter(torch.randn(shape).to(dtype)) for dtype in dtypes]
        grads = [torch.randn(shape).to(dtype) for dtype in dtypes]
        torch.set_default_dtype(default)
        try:
            parts = [params] if groups else [[p] for p in params]
            optimizers = [optim_info.optim_cls(part) for part in parts]  # type: ignore[operator]
            for _ in range(3):
                for p, g in zip(params, grads, strict=True):
                    p.grad = g.clone()
                for optimizer in optimizers:
                    optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)
        ends.append([p.detach() for p in params])
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=0)


@in_python
def test_errors(optim_info: OptimizerInfo) -> None:
    for given in optim_info.optim_error_inputs_func("cpu", torch.float32):  # type: ignore[misc]
        wrong = given.optimizer_error_input
        params = wrong.params if wrong.params is not None else [Parameter(torch.ones(2, 3))]
        own = "lr" in wrong.kwargs  # of which ours have a sentence of their own
        assert given.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
        if given.error_type is UserWarning:
            with pytest.warns(UserWarning, match=given.error_regex):
                optim_info.optim_cls(params, **wrong.kwargs)  # type: ignore[operator]
            continue
        with pytest.raises(given.error_type, match="^lr must be" if own else given.error_regex):
            optim_info.optim_cls(params, **wrong.kwargs)  # type: ignore[operator]


@in_python
def test_complex_is_refused(optim_info: OptimizerInfo) -> None:
    assert not optim_info.supports_complex
    p = Parameter(torch.randn(5, 5, dtype=torch.complex64))
    optimizer = optim_info.optim_cls([p])  # type: ignore[operator]
    p.grad = torch.randn_like(p)
    with pytest.raises(ProgramError, match="complex"):
        optimizer.step()


@in_python
def test_optimizers_are_collected(optim_info: OptimizerInfo) -> None:
    """Torch's test of cyclic references: nothing keeps an optimizer that nobody holds."""
    optimizer, _, _ = trained(optim_info, {}, 1)
    found = weakref.ref(optimizer)
    del optimizer
    assert found() is None
