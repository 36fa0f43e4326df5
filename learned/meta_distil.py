"""A learned rule as a formula: a sum of a few terms of the project's language, with constants by least squares.

The terms are registers of a declared program, as the features of `learned.meta_features` are: averages of the gradient
at several decays, in several shapes, times several functions of the time. Terms are chosen one at a time, each the one
that explains most of what is left (orthogonal matching pursuit; Pati et al. 1993, doi:10.1109/ACSSC.1993.342465), on
the updates that the rule made on its own training runs, and measured on runs it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from optforge.learned.meta_features import Features
from optforge.learned.meta_models import Rule, State, Weights
from optforge.learned.meta_tasks import Problem
from optforge.learned.meta_training import begin
from optforge.primitives import Builder, Const, Instr, Program
from optforge.primitives.backends.interpret import initial_slot
from optforge.primitives.backends.source import compile_step
from optforge.primitives.blocks import debias, momentum
from optforge.primitives.builder import Expr
from optforge.primitives.program import Arg
from optforge.primitives.routing import route

DECAYS = (0.5, 0.8, 0.9, 0.95, 0.99)
HALF = 30.0  # steps, in which exponential decay falls to 1/e
MOST = 20_000  # samples of a fit


class ProgramRule:
    """Any program as a `Rule`: its only weight is the learning rate, ``lr`` of shape ``[1]``."""

    name = "program"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.shapes: dict[str, tuple[int, ...]] = {"lr": (1,)}
        self.settings = {"program": str(program)}

    def init(self, p: Tensor) -> State:
        """The slots of the program."""
        return {slot.name: initial_slot(slot, p, p) for slot in route(self.program, p.shape).state}

    def step(
        self, weights: Weights, ps: Sequence[Tensor], gs: Sequence[Tensor], states: Sequence[State], step: Tensor
    ) -> tuple[list[Tensor], list[State]]:
        """One step of each parameter; see `Rule.step`."""
        updates, after = [], []
        for p, g, state in zip(ps, gs, states, strict=True):
            program = route(self.program, p.shape)
            hypers = {k: torch.tensor(v, dtype=torch.float64) for k, v in program.defaults().items()}
            inputs = {"g": g, "p": p, "step": step, "lr": weights["lr"][0], **hypers, **state}
            update, following = compile_step(program)(inputs, range(p.ndim))
            updates.append(weights["lr"] * update)
            after.append({s.name: x.expand(state[s.name].shape) for s, x in zip(program.state, following, strict=True)})
        return updates, after


class Distilled(NamedTuple):
    """A program whose update at ``lr = 1`` stands for the learned rule's.

    Attributes:
        program: what was found.
        terms: number of its terms.
        fitted, held_out: R², 1 less the share of the updates' squares that is not explained, on the runs it was fitted
            to and on others.
    """

    program: Program
    terms: int
    fitted: float
    held_out: float


@cache
def candidates() -> Features:
    """The terms to choose from, of any shape of parameter."""
    b = Builder()
    found: list[Expr] = [b.p + 0.0 * b.g]
    g = b.clip(b.g, 1e9)
    averages = [g] + [debias(b, momentum(b, b.slot(f"m{i}"), g, d), d) for i, d in enumerate(DECAYS)]
    squares = [debias(b, momentum(b, b.slot(f"v{i}"), b.square(g), d), d) for i, d in enumerate((0.9, 0.99))]
    times: list[Callable[[Expr], Expr]] = [
        lambda x: x,
        lambda x: x / b.sqrt(b.step),
        lambda x: x / b.step,
        lambda x: x * b.exp(b.step / -HALF),
    ]
    for m in averages:
        shapes = [m, b.sign(m), b.sign(m) * b.sqrt_abs(m), m / (b.rms(m) + 1e-8), b.tanh(m)]
        for v in squares:
            ratio = m / (b.sqrt(v) + 1e-8)
            shapes += [ratio, b.clip(ratio, 0.5), b.cube(b.clip(ratio, 2.0))]
        found += [time(shape) for shape in shapes for time in times]
    registers = tuple(x.arg for x in found)
    return Features(b.build(sum(found[1:], found[0])), registers, registers)  # type: ignore[arg-type]


def samples(
    rule: Rule, problem: Problem, weights: Weights, seed: int, workers: int, terms: Features
) -> tuple[Tensor, Tensor]:
    """Values of all `terms` ``[samples, terms]`` and updates ``[samples]`` along training runs, in float64.

    At most 20,000 coordinates are drawn, from all steps, tensors and workers alike.
    """
    generator = torch.Generator().manual_seed(seed)
    instances, params = problem.draw(generator, workers)
    batches = problem.batches(generator, workers, problem.horizon)
    _, states = begin(rule, params)
    names, found, targets = list(params), [], []
    memory = {n: vmap(lambda p: _slots(terms.program, p))(p) for n, p in params.items()}
    share = MOST / (problem.horizon * sum(p.numel() for p in params.values()))
    gradient = vmap(grad(problem.loss), in_dims=(0, 0 if instances else None, 0))

    def step(ps: list[Tensor], gs: list[Tensor], states: list[State], at: Tensor) -> tuple[list[Tensor], list[State]]:
        return rule.step(weights, ps, gs, states, at)

    with torch.no_grad():
        for number in range(1, problem.horizon + 1):
            gs = gradient(params, instances, batches[:, number - 1])
            at = torch.tensor(float(number), dtype=torch.float64)
            updates, after = vmap(step, in_dims=(0, 0, 0, None))(
                [params[n] for n in names], [gs[n] for n in names], [states[n] for n in names], at
            )
            for name, update in zip(names, updates, strict=True):
                inputs = {"g": gs[name], "p": params[name], **memory[name]}
                values, memory[name] = vmap(lambda inputs, at=at: terms({**inputs, "step": at}))(inputs)
                chosen = torch.rand(update.numel(), generator=generator) < share
                found.append(values.flatten(0, 1)[chosen].double())
                targets.append(update.reshape(-1)[chosen].double())
            params = {n: params[n] - u for n, u in zip(names, updates, strict=True)}
            states = dict(zip(names, after, strict=True))
    return torch.cat(found), torch.cat(targets)


def distil(
    fitted: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], terms: Features, count: int = 3
) -> Distilled:
    """The sum of at most `count` terms that is nearest to the updates.

    Args:
        fitted, held_out: what `samples` gives, from different seeds.
        terms: what they are values of.
        count: how many terms.
    """
    x, y = fitted
    x = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    lengths = x.square().sum(0).sqrt().clamp(min=1e-30)
    chosen: list[int] = []
    constants = torch.zeros(0, dtype=x.dtype)
    for _ in range(count):
        left = y - x[:, chosen] @ constants
        explained = (x.T @ left).abs() / lengths
        explained[chosen] = -1.0
        chosen.append(int(explained.argmax()))
        constants = torch.linalg.lstsq(x[:, chosen] / lengths[chosen], y[:, None]).solution[:, 0] / lengths[chosen]
    others, targets = torch.nan_to_num(held_out[0], 0.0, 0.0, 0.0), held_out[1]
    return Distilled(
        _sum(terms, chosen, constants.tolist()),
        count,
        _r2(y, x[:, chosen] @ constants),
        _r2(targets, others[:, chosen] @ constants),
    )


def _r2(y: Tensor, found: Tensor) -> float:
    return 1 - ((y - found).square().sum() / y.square().sum()).item()


def _sum(terms: Features, chosen: Sequence[int], constants: Sequence[float]) -> Program:
    """The program of ``Σ constant · term``, with nothing that does not serve it."""
    body, total = list(terms.program.body), None
    for which, constant in zip(chosen, constants, strict=True):
        body.append(Instr("mul", (Const(float(f"{constant:.4g}")), terms.registers[which])))
        if total is not None:
            body.append(Instr("add", (total, len(body) - 1)))
        total = len(body) - 1
    assert total is not None
    update: Arg = total
    return Program(terms.program.state, (), tuple(body), update, terms.program.next_state).pruned()


def _slots(program: Program, p: Tensor) -> Mapping[str, Tensor]:
    return {slot.name: initial_slot(slot, p, p) for slot in program.state}


__all__ = ["Distilled", "ProgramRule", "candidates", "distil", "samples"]
