"""Step a whole population: every program on the stretch of the arena that its members occupy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from optforge.primitives import Program
from optforge.primitives.backends.interpret import initial_slot
from optforge.primitives.backends.source import compile_step
from optforge.primitives.routing import route
from optforge.search.training.population.listing import Listing, Table, dictionary_order, listing
from optforge.search.training.population.merged import MergedRules
from optforge.search.training.population.native_code import encode
from optforge.search.training.population.native_rules import NativeRules

Group = tuple[Program, Sequence[float]]


class Plan:
    """The order in which members lie in the arena: by who steps them, and programs with much in common as neighbours.

    Args:
        groups: programs with the learning rates of their members.
        steps: length of the run.
        native: whether to step in C++ what `search.training.population.native_rules` can encode.

    Attributes:
        order: for each place in the arena the index of the member that has it.
        native, merged: how many groups, counted from the first, are stepped in C++, and how many of the next together.
    """

    def __init__(self, groups: Sequence[Group], steps: int, native: bool = False) -> None:
        self.steps = steps
        first, places = 0, []
        for _, rates in groups:
            places.append(range(first, first + len(rates)))
            first += len(rates)
        encoded = [i for i, (program, _) in enumerate(groups) if native and encode(program) is not None]
        matrix = [i for i, (program, _) in enumerate(groups) if program.needs_matrix and i not in encoded]
        flat = [i for i in range(len(groups)) if i not in encoded and i not in matrix]
        self.table: Table = {}
        self.listings: list[Listing] = [listing(groups[i][0], steps, self.table) for i in flat]
        order, self.words = dictionary_order(self.listings)
        self.listings = [self.listings[i] for i in order]
        chosen = [*encoded, *(flat[i] for i in order), *matrix]
        self.native, self.merged = len(encoded), len(flat)
        self.groups = [groups[i] for i in chosen]
        self.order = [member for i in chosen for member in places[i]]


class StackedRules:
    """The rules of all members over one arena ``[seeds, members, elements]``, updated in place.

    Args:
        plan: the programs with the learning rates of their members, in the order of the arena.
        shapes: shapes of the model's parameters, in the order in which they lie in the arena.
        arena: all parameters of all members.
        gradient: a buffer like the arena, which holds the gradient when `step` is called.
    """

    def __init__(self, plan: Plan, shapes: Sequence[torch.Size], arena: Tensor, gradient: Tensor) -> None:
        self.plan, self.gradient = plan, gradient
        sizes = [prod(s) for s in shapes]
        exact = [torch.tensor(r, dtype=torch.float64) for _, r in plan.groups]
        rates = [r.to(arena.device, arena.dtype) for r in exact]
        programs = [program for program, _ in plan.groups]
        ends = [0, *accumulate(len(r) for r in rates)]
        split, flat = plan.native, plan.native + plan.merged
        self.native = self.merged = None
        if split:
            self.native = NativeRules(programs[:split], exact[:split], arena, gradient, shapes, plan.steps)
        if flat > split:
            stretch = arena[:, ends[split] : ends[flat]], gradient[:, ends[split] : ends[flat]]
            counts, lr = [len(r) for r in rates[split:flat]], torch.cat(rates[split:flat])
            self.merged = MergedRules(plan.listings, plan.words, plan.table, counts, lr, *stretch, sizes, plan.steps)
        self.merged_rows = slice(ends[split], ends[flat])
        self.matrix: list[tuple[_MatrixGroup, slice]] = []
        for i in range(flat, len(programs)):
            rows = slice(ends[i], ends[i + 1])
            self.matrix.append((_MatrixGroup(programs[i], rates[i], arena[:, rows], shapes, plan.steps), rows))
        reads = [p for program in programs for p in (program, program.fallback) if p is not None]
        self.needs_norm = any("global_norm" in p.live.names for p in reads)

    @torch.no_grad()
    def step(self, index: int) -> None:
        """Apply step `index`, counted from 0."""
        norm = torch.linalg.vector_norm(self.gradient, dim=-1, keepdim=True) if self.needs_norm else None
        if self.native is not None:
            self.native.step(index, norm)
        if self.merged is not None:
            self.merged.step(index, None if norm is None else norm[:, self.merged_rows])
        for group, rows in self.matrix:
            group.step(self.gradient[:, rows], index + 1, None if norm is None else norm[:, rows])


class _MatrixGroup:
    """Programs over rows, columns or matrices: each parameter in its own shape, fallback where it has none."""

    def __init__(self, program: Program, lr: Tensor, stretch: Tensor, shapes: Sequence[torch.Size], steps: int) -> None:
        self.lr, self.steps = lr, steps
        self.sizes = [prod(s) for s in shapes]
        self.shapes = [s or torch.Size((1,)) for s in shapes]
        self.parameters = self._split(stretch)
        self.programs = [route(program, shape) for shape in shapes]
        self.state: list[dict[str, Tensor]] = []

    def _split(self, x: Tensor) -> list[Tensor]:
        return [v.unflatten(-1, s) for v, s in zip(x.split(self.sizes, dim=-1), self.shapes, strict=True)]

    def step(self, gradient: Tensor, step: int, norm: Tensor | None) -> None:
        """Apply one step, counted from 1."""
        gradients = self._split(gradient)
        if not self.state:
            self.state = [
                {s.name: initial_slot(s, p, g, lead=2) for s in program.state} | _hypers(program)
                for program, p, g in zip(self.programs, self.parameters, gradients, strict=True)
            ]
        now = torch.tensor(float(step), dtype=torch.float64)
        for program, p, g, state in zip(self.programs, self.parameters, gradients, self.state, strict=True):
            trailing = (1,) * (p.ndim - 2)
            rate = self.lr.view(-1, *trailing)
            inputs = state | {"g": g, "p": p, "lr": rate, "step": now, "progress": now / self.steps}
            if norm is not None:
                inputs["global_norm"] = norm.view(*norm.shape[:2], *trailing)
            update, following = compile_step(program)(inputs, range(2, p.ndim))
            for slot, value in zip(program.state, following, strict=True):
                if value is not state[slot.name]:
                    state[slot.name] = value.expand(state[slot.name].shape).clone()
            p.sub_(rate * update)


def _hypers(program: Program) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in program.defaults().items()}
