"""Every row of the table × every form × shapes × dtypes, against the hand-written optimizer in float64.

Tolerances are relative to the largest weight, after each of `STEPS` steps:

- float64: 1e-10. Forms differ in the order of operations, which costs a few of its 16 digits.
- float32: 1e-5, against float64, which is sharper than against another float32 run: 8 steps and 2^-24 each time that
  a weight, or what it is made from, is rounded.
- bfloat16: half an ulp, 2^-8 of a weight, for every step: each of them rounds the weight and all that it is made from
  to 8 bits. Gradients that keep their signs spare rules with a sign the toss of a coin where sums cancel.
- bfloat16 with float32 state: what the weight lost is in the state, and their sum is held to float32's tolerance.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from support.forms import FORMS, SHAPES, draw, every_form, make, play
from torch import Tensor
from torch._dynamo.utils import counters

from optforge.baselines import BASELINES
from optforge.primitives.backends.compiled import kernel
from optforge.primitives.lazy import laziness
from optforge.primitives.parameters import REST

STEPS = 8
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: STEPS * 2**-8}

# Every row in every form and dtype on parameters of all shapes at once, and alone on one shape: each form and dtype of
# a row has another one, and the rows of a form and dtype have all. Cases that share a kernel follow each other.
ALONE = [shape for shape in SHAPES if shape != "mixed"]
CASES = [
    (name, dtype, form, shape)
    for i, name in enumerate(BASELINES)
    for j, dtype in enumerate(TOLERANCES)
    for k, form in enumerate(FORMS)
    for shape in ("mixed", ALONE[(i + j + k) % len(ALONE)])
    if (form, dtype) != ("hand", torch.float64)  # which is what all are compared with
]


def trained(name: str, dtype: torch.dtype, form: str, shape: str, given: torch.dtype, **extra: Any) -> list[Tensor]:
    """All weights as one float64 vector, before and after each step; drawn in the dtype `given`."""
    params, gradients = draw(SHAPES[shape], STEPS, given, noise=0.5 if given == torch.bfloat16 else None)
    for p in params:
        p.data = p.data.to(dtype)
    start = [p.detach().clone() for p in params]
    decays = "weight_decay" in BASELINES[name].program.defaults()
    optimizer = make(name, form, params, **{"weight_decay": 0.1} if decays else {}, **extra)
    steps = [[g.to(dtype) for g in step] for step in gradients]
    first = 2 if laziness(BASELINES[name].program).conditions else 1  # one with what is due, and one without
    path = play(optimizer, params, steps[:first])
    before = compilations()
    path += play(optimizer, params, steps[first:])
    assert compilations() == before, "a later step was compiled anew"
    if extra:
        path[-1] = [p.detach() + optimizer.state[p][REST] for p in params]
        path = path[-1:]
    return [torch.cat([p.double().ravel() for p in step]) for step in (start, *path)]


def compilations() -> int:
    return kernel.cache_info().misses + counters["stats"]["unique_graphs"]  # type: ignore[no-any-return]


@lru_cache
def truth(name: str, shape: str, given: torch.dtype) -> list[Tensor]:
    return trained(name, torch.float64, "hand", shape, given)


def error(path: list[Tensor], expected: list[Tensor], tolerance: float) -> float:
    """Largest difference of any step, of a weight, relative to the largest weight; after a check that weights move."""
    size = max(float(x.abs().max()) for x in expected)
    moved = float((expected[-1] - expected[0]).abs().max())
    assert moved > 3 * tolerance * size, f"moved by {moved:.3g}: too little to compare"
    return max(float((x - y).abs().max()) for x, y in zip(path, expected, strict=True)) / size


@pytest.mark.parametrize(("name", "dtype", "form", "shape"), CASES, ids=lambda x: str(x).removeprefix("torch."))
def test_form_equals_hand_written(name: str, dtype: torch.dtype, form: str, shape: str) -> None:
    tolerance = TOLERANCES[dtype]
    assert error(trained(name, dtype, form, shape, dtype), truth(name, shape, dtype), tolerance) <= tolerance


@every_form
def test_wide_state_makes_bfloat16_as_exact_as_float32(name: str, form: str) -> None:
    tolerance = TOLERANCES[torch.float32]
    got = trained(name, torch.bfloat16, form, "mixed", torch.bfloat16, state_dtype=torch.float32)
    expected = truth(name, "mixed", torch.bfloat16)
    assert error(got, [expected[0], expected[-1]], tolerance) <= tolerance
