"""Options of every row, hand-written and as a program: each matters, groups override it, and nonsense is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.forms import SHAPES, draw, every_form, every_row, make, one, play
from support.strategies import assert_same
from torch.optim import lr_scheduler

from optforge.baselines import BASELINES

STEPS = 6

# Options that no user sets: they say what the parameters hold, or hold for the whole optimizer.
NOT_OPTIONS = ("state_dtype", "differentiable", "training")
# What must be set for an option to matter.
CONTEXT: dict[tuple[str, str], dict[str, Any]] = {
    ("adafactor", "relative_step"): {"lr": 1.0},
    ("adafactor", "warmup_init"): {"lr": 1.0, "relative_step": True},
}
# What a group cannot have for itself, because all groups share what it leads to.
WHOLE = {("prodigy", "hand"): ("d0", "d_coef", "per_tensor")}


def trained(name: str, form: str, *, sign: float = 1.0, grouped: dict[str, Any] | None = None, **options: Any) -> Any:
    """Parameters of mixed shapes after `STEPS` steps; `grouped` are options of their group."""
    params, gradients = draw(SHAPES["mixed"], STEPS)
    groups = params if grouped is None else [{"params": params, **grouped}]
    return play(make(name, form, groups, **options), params, [[sign * g for g in step] for step in gradients])[-1]


@every_form
def test_maximize_climbs_in_the_constructor_and_in_a_group(name: str, form: str) -> None:
    down = trained(name, form, sign=-1.0)
    assert_same(trained(name, form, maximize=True), down)
    assert_same(trained(name, form, grouped={"maximize": True}), down)


@every_row
def test_options_matter_and_a_group_overrides_them(name: str, form: str) -> None:
    """No knob does nothing: of some other values of each, one at least leads elsewhere."""
    defaults = make(name, form, one()).defaults
    for option, values in knobs(defaults):
        context, moved = CONTEXT.get((name, option), {}), []
        base = trained(name, form, **context)
        for value in values:
            try:
                alone = trained(name, form, **context | {option: value})
            except ValueError:  # out of its range
                continue
            if option not in WHOLE.get((name, form), ()):
                assert_same(trained(name, form, grouped=context | {option: value}), alone)
            moved.append(max(float((x - y).abs().nan_to_num().max()) for x, y in zip(alone, base, strict=True)))
        assert max(moved, default=0) > 1e-4, f"{option} = {defaults[option]!r}: nothing else changes anything"


def knobs(defaults: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Each option with other values for it; of tuples, for each entry."""
    for option, value in defaults.items():
        if option in NOT_OPTIONS:
            continue
        if isinstance(value, tuple):
            for i, entry in enumerate(value):
                yield option, [(*value[:i], x, *value[i + 1 :]) for x in others(entry)]
        else:
            yield option, others(value)


def others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    return [x for x in (0.0, 0.05, 0.5, 0.9, 3.0) if x != value]


@every_row
def test_groups_are_trained_apart(name: str, form: str) -> None:
    params, gradients = draw(SHAPES["mixed"], STEPS)
    parts, lrs = (slice(0, 2), slice(2, 4)), (0.2, 0.1)
    groups = [{"params": params[part], "lr": lr} for part, lr in zip(parts, lrs, strict=True)]
    play(make(name, form, groups), params, gradients)
    for part, lr in zip(parts, lrs, strict=True):
        alone = draw(SHAPES["mixed"], STEPS)[0][part]
        play(make(name, form, alone, lr=lr), alone, [step[part] for step in gradients])
        assert_same([p.detach() for p in alone], [p.detach() for p in params[part]])


DECAYS = ("betas", "beta1", "beta2", "beta3", "momentum", "dampening", "alpha")  # below 1
POSITIVE = ("clip_threshold", "d0", "d_coef", "trust_coefficient")  # by hand; scales of programs include 0
NUMBERS = [-1.0, math.nan, math.inf, -math.inf, "0.1", None, [0.1], 1j, True]
WRONG_TUPLES = [0.9, "0.9", None, (), (0.9,) * 7]


@every_row
def test_invalid_options_are_refused_by_name(name: str, form: str) -> None:
    optimizer = make(name, form, one())
    unbounded = {hyper.name for hyper in BASELINES[name].program.hypers if hyper.scale == "log"}
    for option, value in optimizer.defaults.items():
        if isinstance(value, bool):
            wrong: list[Any] = ["yes", None, 1, 0.5, math.nan]
        elif isinstance(value, tuple):
            entries = [*NUMBERS, 1.0] if option in DECAYS else NUMBERS
            wrong = WRONG_TUPLES + [(*value[:i], x, *value[i + 1 :]) for i in range(len(value)) for x in entries]
        elif option == "state_dtype":
            wrong = [torch.int32, "float32", torch.complex64]
        else:
            wrong = (
                NUMBERS
                + [1.0] * (option in DECAYS and option not in unbounded)
                + [0.0] * (option in POSITIVE and form == "hand")
            )
        for bad in wrong if option not in ("differentiable", "training") else ():
            with pytest.raises(ValueError, match=rf"^(hyper )?{option}(\[\d\])?(:| must be) .*"):
                make(name, form, one(), **{option: bad})
            with pytest.raises(ValueError, match=rf"^(hyper )?{option}(\[\d\])?(:| must be) .*"):
                optimizer.add_param_group({"params": one(), option: bad})
    assert len(optimizer.param_groups) == 1


@every_row
def test_unknown_options_and_empty_lists_are_refused(name: str, form: str) -> None:
    optimizer = make(name, form, one())
    for misspelt in ("learning_rate", "weigth_decay", "beta"):
        with pytest.raises((TypeError, ValueError), match=misspelt):
            make(name, form, one(), **{misspelt: 0.5})
        with pytest.raises(ValueError, match=rf"^unknown .*'{misspelt}'"):
            optimizer.add_param_group({"params": one(), misspelt: 0.5})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="empty parameter list"):
        make(name, form, [])


@every_row
def test_rate_may_be_a_tensor(name: str, form: str) -> None:
    params, gradients = draw(SHAPES["mixed"], STEPS)
    lr = torch.tensor(0.25)
    optimizer = make(name, form, params, lr=lr)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
    same = draw(SHAPES["mixed"], STEPS)[0]
    plain = make(name, form, same, lr=0.25)
    for step in gradients:
        for pair, g in zip(zip(params, same, strict=True), step, strict=True):
            for p in pair:
                p.grad = g.clone()
        optimizer.step(), plain.step()
        schedule.step()
        plain.param_groups[0]["lr"] *= 0.5
    assert_same([p.detach() for p in params], [p.detach() for p in same])
    for wrong in (torch.ones(2), torch.tensor(-1.0), torch.tensor(math.nan)):
        with pytest.raises(ValueError, match=r"^lr must be"):
            make(name, form, one(), lr=wrong)
