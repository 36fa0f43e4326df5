"""Torch's own test inputs for its optimizers, given to the baselines of which those are the oracle.

The inputs are those of ``torch.testing._internal.common_optimizers``, which torch's tests run all its optimizers on.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInput,
    optim_db,
)

from optforge.baselines import BASELINES, Baseline, Oracle
from optforge.primitives import ProgramOptimizer

INFO = {f"torch.optim.{info.optim_cls.__name__}": info for info in optim_db}
ROWS = [(row, oracle) for row in BASELINES.values() for oracle in row.oracles if oracle.path in INFO]
FORMS = ("hand", "program", "compiled")
Form = Callable[..., Optimizer]


def numbered(options: dict[str, Any]) -> dict[str, Any]:
    """``betas`` and ``eps`` of several numbers as programs name them: ``beta1``, ``beta2``, …"""
    split = {}
    for name, value in options.items():
        several = isinstance(value, tuple)
        split |= {f"{name.rstrip('s')}{i}": v for i, v in enumerate(value, 1)} if several else {name: value}
    return split


def form_of(row: Baseline, oracle: Oracle, form: str) -> tuple[Form, set[str]]:
    """One of the row's forms, called as torch's optimizer is, and the options of torch's that it has."""
    theirs = {ours: theirs for ours, theirs in oracle.renamed.items() if theirs}
    ours = {theirs: ours for ours, theirs in theirs.items()}
    names = set(inspect.signature(row.optimizer).parameters) if form == "hand" else set(row.by_hand())

    def make(params: Any, **options: Any) -> Optimizer:
        renamed = {ours.get(name, name): value for name, value in options.items()}
        if form == "hand":
            return row.optimizer(params, **renamed)
        return ProgramOptimizer(params, row.program, compile=form == "compiled", **numbered(renamed))

    return make, {theirs.get(name, name) for name in names} | {"lr", "maximize"}


def defaults(oracle: Oracle) -> dict[str, Any]:
    """What torch's optimizer does unless told otherwise, and what it must be told for the row's rule."""
    signature = inspect.signature(INFO[oracle.path].optim_cls).parameters
    return {name: p.default for name, p in signature.items()} | dict(oracle.options)


def has(row: Baseline, oracle: Oracle, form: str, given: OptimizerInput) -> bool:
    """Whether the form can be told what `given` changes."""
    known, usual = form_of(row, oracle, form)[1], defaults(oracle)
    return all(name in known or value == usual[name] for name, value in given.kwargs.items())


TRAINED = [
    pytest.param(row, oracle, form, given, id=f"{row.name}-{form}-{given.desc}")
    for row, oracle in ROWS
    if oracle.dims
    for form in FORMS
    for given in INFO[oracle.path].optim_inputs_func("cpu", torch.float64)
    if has(row, oracle, form, given)
]


def train(make: Form, options: dict[str, Any]) -> list[Tensor]:
    """The parameters of a small convolutional model after each of six steps."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 4), nn.LayerNorm(4), nn.Linear(4, 1)
    )
    scale = nn.Parameter(torch.tensor(0.5))  # no dimensions
    x, y = torch.randn(8, 2, 5), torch.randn(8, 1)
    parameters = [*model.parameters(), scale]
    optimizer, seen = make(parameters, **options), []
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.mse_loss(scale * model(x), y).backward()
        optimizer.step()
        seen += [p.detach().clone() for p in parameters]
    return seen


@pytest.fixture
def float64() -> Iterator[None]:
    """What torch's optimizers keep as single numbers has the default dtype, as NAdam's product of momenta."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("row", "oracle", "form", "given"), TRAINED)
def test_trains_as_torch_does(row: Baseline, oracle: Oracle, form: str, given: OptimizerInput) -> None:
    make, known = form_of(row, oracle, form)
    usual = {oracle.renamed.get(name, name): value for name, value in row.by_hand().items()}
    told = {name: value for name, value in usual.items() if name is not None} | given.kwargs
    told = {"lr": defaults(oracle)["lr"]} | told
    ours = train(make, {name: value for name, value in told.items() if name in known})
    theirs = train(INFO[oracle.path].optim_cls, dict(oracle.options) | told)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert (ours[0] != ours[-8]).any(), "nothing happened, so nothing was compared"


LACKING = {  # inputs that no row can be told, by torch's optimizer
    "torch.optim.Adam": {"amsgrad"},
    "torch.optim.AdamW": {"amsgrad"},
}


def test_only_these_inputs_are_left_out() -> None:
    for path in {oracle.path for _, oracle in ROWS if oracle.dims}:
        given = {i.desc for i in INFO[path].optim_inputs_func("cpu", torch.float64)}
        used = {case.values[3].desc for case in TRAINED if case.values[1].path == path}  # type: ignore[attr-defined]
        assert given - used == LACKING.get(path, set()), path


# Errors.

NO_ERROR = {  # what torch refuses and we need not
    "only support 2D parameters": "other parameters go to the fallback",
}
FROM_TORCH = "params argument|duplicate parameters|more than one parameter group|with/without names"
REFUSED = [
    pytest.param(row, oracle, form, given, id=f"{row.name}-{form}-{given.optimizer_error_input.desc}")
    for row, oracle in ROWS
    for form in FORMS[:2]
    for given in INFO[oracle.path].optim_error_inputs_func("cpu", torch.float64)
    if given.optimizer_error_input.desc not in NO_ERROR
]


@pytest.mark.parametrize(("row", "oracle", "form", "given"), REFUSED)
def test_refuses_what_torch_refuses(row: Baseline, oracle: Oracle, form: str, given: ErrorOptimizerInput) -> None:
    """What torch's base class finds is said in its words; what we find is a `ValueError`, or an unknown keyword."""
    wrong = given.optimizer_error_input
    make, known = form_of(row, oracle, form)
    params = wrong.params if wrong.params is not None else [nn.Parameter(torch.ones(2, 3))]
    base = re.search(FROM_TORCH, given.error_regex)
    error = (given.error_type if base else ValueError) if wrong.kwargs.keys() <= known else (ValueError, TypeError)
    if given.error_on is OptimizerErrorEnum.STEP_ERROR:
        optimizer = make(params, **wrong.kwargs)
        with pytest.raises(error):
            optimizer.step()
    else:
        with pytest.raises(error, match=given.error_regex if base else None):
            make(params, **wrong.kwargs)
