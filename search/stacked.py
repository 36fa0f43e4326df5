"""Step a whole population: each program on the stretch of the arena that its members occupy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from primitives import Program
from primitives.interpret import slot_shape
from primitives.kinds import Kind, Slot
from primitives.source import Segments, compile_segmented, compile_step


class StackedRules:
    """The rules of all members over one arena ``[seeds, members, elements]``, updated in place.

    Args:
        groups: each program with the learning rates of its members; members follow each other in this order.
        shapes: shapes of the model's parameters, in the order in which they lie in the arena.
        arena: all parameters of all members.
        steps: length of the run, for the signal `progress`.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Program, Sequence[float]]],
        shapes: Sequence[torch.Size],
        arena: Tensor,
        steps: int,
    ) -> None:
        self.steps = steps
        self.arena = arena
        self.groups: list[_Group] = []
        first = 0
        for program, rates in groups:
            stretch = arena[:, first : first + len(rates)]
            lr = torch.tensor(rates, dtype=arena.dtype, device=arena.device)
            make = _MatrixGroup if program.needs_matrix else _ArenaGroup
            self.groups.append(make(program, lr, stretch, shapes, steps))
            first += len(rates)
        self.needs_norm = any("global_norm" in g.reads for g in self.groups)

    @torch.no_grad()
    def step(self, gradient: Tensor, step: int) -> None:
        """Apply one step; `gradient` is shaped like the arena and `step` counts from 1."""
        signals: dict[str, Tensor] = {}
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True) if self.needs_norm else None
        first = 0
        for group in self.groups:
            last = first + group.lr.shape[0]
            if norm is not None:
                signals["global_norm"] = norm[:, first:last]
            group.step(gradient[:, first:last], step, signals)
            first = last


class _Group:
    """Members that share a program. `stretch` is their view of the arena, ``[seeds, members, elements]``."""

    def __init__(self, program: Program, lr: Tensor, stretch: Tensor, shapes: Sequence[torch.Size], steps: int) -> None:
        self.program, self.lr, self.stretch, self.steps = program, lr, stretch, steps
        fallback = program.fallback
        self.reads = program.live.names | (fallback.live.names if fallback is not None else frozenset())
        self.sizes = [prod(s) for s in shapes]
        self.shapes = [s or torch.Size((1,)) for s in shapes]

    def step(self, gradient: Tensor, step: int, signals: dict[str, Tensor]) -> None:
        raise NotImplementedError


class _ArenaGroup(_Group):
    """Programs without rows and columns: one call per statement for all parameters of all members."""

    def __init__(self, program: Program, lr: Tensor, stretch: Tensor, shapes: Sequence[torch.Size], steps: int) -> None:
        super().__init__(program, lr, stretch, shapes, steps)
        self.segments = Segments(self.sizes, stretch.device)
        self.run = compile_segmented(program)
        self.rate = lr[:, None]
        self.inputs: dict[str, Tensor] = {"lr": self.rate, "p": stretch}
        self.known = self.run.schedule(steps, stretch.dtype, stretch.device)
        self.started = False

    def step(self, gradient: Tensor, step: int, signals: dict[str, Tensor]) -> None:
        inputs = self.inputs
        inputs |= signals
        inputs["g"] = gradient
        if not self.started:
            inputs |= {s.name: self._initial(s, gradient) for s in self.program.state}
            self.started = True
        update, state = self.run(inputs, self.known[step - 1], self.segments)
        for slot, arg, value in zip(self.program.state, self.program.next_state, state, strict=True):
            if slot.kind is Kind.SCALAR:
                value = value.expand_as(inputs[slot.name])
            # what is not freshly computed may be a view of the arena or of the gradient, which change under it
            inputs[slot.name] = value if type(arg) is int else value.clone()
        self.stretch.sub_(self.rate * update)

    def _initial(self, slot: Slot, gradient: Tensor) -> Tensor:
        if isinstance(slot.init, str):
            return (self.stretch if slot.init == "p" else gradient).clone()
        width = gradient.shape[-1] if slot.kind is Kind.TENSOR else len(self.sizes)
        return gradient.new_full((*gradient.shape[:-1], width), slot.init)


class _MatrixGroup(_Group):
    """Programs over rows, columns or matrices: each parameter in its own shape, fallback where it has none."""

    def __init__(self, program: Program, lr: Tensor, stretch: Tensor, shapes: Sequence[torch.Size], steps: int) -> None:
        super().__init__(program, lr, stretch, shapes, steps)
        self.parameters = self._split(stretch)
        self.programs: list[Program] = []
        for shape in shapes:
            chosen = program if len(shape) >= 2 else program.fallback
            if chosen is None:
                raise ValueError(f"the program works on rows and columns and has no fallback for shape {tuple(shape)}")
            self.programs.append(chosen)
        self.state: list[dict[str, Tensor]] = []

    def _split(self, x: Tensor) -> list[Tensor]:
        return [v.unflatten(-1, s) for v, s in zip(x.split(self.sizes, dim=-1), self.shapes, strict=True)]

    def step(self, gradient: Tensor, step: int, signals: dict[str, Tensor]) -> None:
        gradients = self._split(gradient)
        if not self.state:
            self.state = [
                {s.name: self._initial(s, p, g) for s in program.state} | _hypers(program)
                for program, p, g in zip(self.programs, self.parameters, gradients, strict=True)
            ]
        norm = signals.get("global_norm")
        now = torch.tensor(float(step), dtype=torch.float64)
        for program, p, g, state in zip(self.programs, self.parameters, gradients, self.state, strict=True):
            trailing = (1,) * (p.ndim - 2)
            rate = self.lr.view(-1, *trailing)
            inputs = signals | state | {"g": g, "p": p, "lr": rate, "step": now, "progress": now / self.steps}
            if norm is not None:
                inputs["global_norm"] = norm.view(*norm.shape[:2], *trailing)
            update, following = compile_step(program)(inputs, range(2, p.ndim))
            for slot, value in zip(program.state, following, strict=True):
                state[slot.name] = value.expand(state[slot.name].shape).clone()
            p.sub_(rate * update)

    @staticmethod
    def _initial(slot: Slot, p: Tensor, g: Tensor) -> Tensor:
        if isinstance(slot.init, str):
            return (p if slot.init == "p" else g).clone()
        return p.new_full((*p.shape[:2], *slot_shape(slot.kind, p.shape[2:])), slot.init)


def _hypers(program: Program) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in program.defaults().items()}
