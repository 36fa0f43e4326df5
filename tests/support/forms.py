"""Every baseline in each of its forms, and the runs by which tests compare them.

A row of `BASELINES` is covered by these tests as soon as it exists; what one needs to be told is in it (`visible`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from support.strategies import numbers, random_gradients
from torch import Tensor, nn
from torch.optim import Optimizer

from optforge.baselines import BASELINES
from optforge.primitives import Program, ProgramOptimizer, execute
from optforge.primitives.backends.interpret import initial_slot
from optforge.primitives.export.one_file import export
from optforge.primitives.routing import route

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "matrix": ((4, 3),),
    "vector": ((5,),),
    "conv": ((2, 3, 2, 2),),
    "scalar": ((),),
    "mixed": ((4, 3), (5,), (2, 3, 2, 2), ()),
}

Make = Callable[..., Optimizer]


class Interpreted:
    """The reference: `execute` on one parameter after the other, without anything that the torch face adds."""

    def __init__(self, params: Sequence[Tensor], program: Program, lr: float, **hypers: float) -> None:
        self.params, self.program, self.hypers = params, program, hypers
        self.param_groups = [{"lr": lr}]
        self.state: list[dict[str, Tensor]] = [{} for _ in params]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        norms = [torch.linalg.vector_norm(p.grad.double()) for p in self.params]  # type: ignore[union-attr]
        signals = {
            "lr": self.param_groups[0]["lr"],
            "step": self.steps,
            "global_norm": torch.stack(norms).norm().item(),
        }
        for p, state in zip(self.params, self.state, strict=True):
            rule = route(self.program, p.shape)
            if not state:
                state |= {slot.name: initial_slot(slot, p, p.grad) for slot in rule.state}  # type: ignore[arg-type]
            values = numbers(signals | rule.defaults() | {k: v for k, v in self.hypers.items() if k in rule.defaults()})
            update, following = execute(rule, values | state | {"g": p.grad, "p": p.detach().clone()}, range(p.ndim))
            for slot, value in zip(rule.state, following, strict=True):
                state[slot.name] = value.to(p.dtype).expand(slot.kind.shape(p.shape)).clone()
            p.sub_(values["lr"].to(p.dtype) * update)


@lru_cache
def exported(name: str) -> Make:
    """The class in the torch file that the row's program is exported to."""
    scope: dict[str, Any] = {"__name__": "exported"}
    exec(compile(export(BASELINES[name].program, "mine"), f"{name}.py", "exec"), scope)
    return scope["Mine"]


FORMS: dict[str, Callable[[str], Make]] = {
    "hand": lambda name: BASELINES[name].optimizer,
    "interpreted": lambda name: partial(Interpreted, program=BASELINES[name].program),
    "eager": lambda name: partial(ProgramOptimizer, program=BASELINES[name].program),
    "compiled": lambda name: partial(ProgramOptimizer, program=BASELINES[name].program, compile=True),
    "exported": exported,
}  # type: ignore[dict-item]


def make(name: str, form: str, params: Any, **options: Any) -> Optimizer:
    """An optimizer with what makes the row's steps visible, as far as `options` do not say otherwise."""
    return FORMS[form](name)(params, **{"lr": 0.1, **BASELINES[name].visible, **options})


def _in(*forms: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "form"), [(name, form) for name in BASELINES for form in forms])


every_row = _in("hand", "eager")
every_form = _in("hand", "eager", "compiled")


def one() -> list[nn.Parameter]:
    """A parameter where nothing is to be seen but that it is one."""
    return [nn.Parameter(torch.ones(3, 2))]


def draw(
    shapes: Sequence[tuple[int, ...]], steps: int, dtype: torch.dtype = torch.float64, noise: float | None = None
) -> tuple[list[nn.Parameter], list[list[Tensor]]]:
    """Starting points of `shapes`, and the gradients of each step; with `noise`, gradients differ only by so much."""
    runs = [random_gradients(shape, steps, seed) for seed, shape in enumerate(shapes)]
    if noise is not None:
        runs = [[start, *(run[0] * (1 + noise * g.tanh()) for g in run)] for start, *run in runs]
    return (
        [nn.Parameter(run[0].to(dtype)) for run in runs],
        [[run[t].to(dtype) for run in runs] for t in range(1, steps + 1)],
    )


def play(optimizer: Any, params: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Parameters after each step on given gradients, while the learning rate falls."""
    path = []
    for step in gradients:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
        assert all(map(torch.equal, (p.grad for p in params), step)), "gradients are the caller's"  # type: ignore[arg-type]
        path.append([p.detach().clone() for p in params])
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
    return path


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as it comes back from disk, without code in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]
