"""Step many programs in C++, all operations of a rule over a piece of the arena that fits the cache.

torch computes one operation of a rule for all members before the next, so that every result travels through memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from optforge.primitives import Kind, Program
from optforge.primitives.backends.source import hoist
from optforge.search.training.population.native_code import Code, encode, library

TILE = 256  # elements at a time: a rule's values of so many float32 fit the first-level cache
_K = 16  # place of the numbers' address in a row of the table, which is the struct `Rule` of native_rules.hpp


class _Rule(NamedTuple):
    """One program on the parameters that it steps: all, or those that are matrices, or that are none."""

    owner: int  # position of the program whose members it steps
    program: Program
    code: Code
    heights: Tensor  # of each parameter its rows as a matrix, 1 for a vector, and 0 if it is another rule's


class NativeRules:
    """The rules of many programs over neighbouring stretches of one arena ``[seeds, members, elements]``.

    Args:
        programs: what `encode` can write.
        rates: learning rates of the members of each, ``[members]`` in float64; they follow each other in the arena.
        arena, gradient: contiguous; both are read and `arena` is updated at each step.
        shapes: of the parameters of a model.
        steps: length of the run.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        rates: Sequence[Tensor],
        arena: Tensor,
        gradient: Tensor,
        shapes: Sequence[torch.Size],
        steps: int,
    ) -> None:
        found = library(arena.dtype)
        assert found is not None and arena.is_contiguous() and gradient.is_contiguous()
        self._step = found.step
        self._step.argtypes, self._step.restype = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p), None
        self.rates, self.arena, self.gradient, self.steps = rates, arena, gradient, steps
        self.sizes = torch.tensor([s.numel() for s in shapes])
        self.first = [0, *torch.tensor([len(r) for r in rates]).cumsum(0).tolist()]
        self.rules = [rule for n, program in enumerate(programs) for rule in _rules(n, program, shapes)]
        self.state: list[list[Tensor]] = []  # of each rule

    def step(self, index: int, global_norm: Tensor | None) -> None:
        """Apply step `index`, counted from 0."""
        if not self.state:
            self.state = [self._initial(rule) for rule in self.rules]
        if index == 0 or not hasattr(self, "_table"):
            self._prepare()
        for n in self._changing:
            assert global_norm is not None
            rows = self._rows(self.rules[n])
            self._numbers[n][0].copy_(
                self._known(self.rules[n], torch.tensor(index + 1), global_norm[:, rows, 0].double())
            )
        self._table[:, _K] = self._begin + index * self._stride
        self._step(len(self.rules), self._table.data_ptr(), self._scratch.data_ptr())

    def _rows(self, rule: _Rule) -> slice:
        return slice(self.first[rule.owner], self.first[rule.owner + 1])

    def _initial(self, rule: _Rule) -> list[Tensor]:
        rows = self._rows(rule)
        p, g = self.arena[:, rows], self.gradient[:, rows]
        found = []
        for slot in rule.program.live_state:
            width = p.shape[-1] if slot.kind is Kind.TENSOR else len(self.sizes)
            if isinstance(slot.init, str):
                found.append((p if slot.init == "p" else g).clone(memory_format=torch.contiguous_format))
            else:
                found.append(p.new_full((*p.shape[:2], width), slot.init))
        return found

    def _known(self, rule: _Rule, step: Tensor, global_norm: Tensor | None = None) -> Tensor:
        """The numbers that a rule reads, ``[…, members, numbers]``."""
        program, rates = rule.program, self.rates[rule.owner]
        values = {name: torch.tensor(x, dtype=torch.float64) for name, x in program.defaults().items()}
        values |= {"lr": rates, "step": step.double(), "progress": step.double() / self.steps}
        if global_norm is not None:
            values["global_norm"] = global_norm
        literals = [torch.tensor(x, dtype=torch.float64) for x in rule.code.literals]
        numbers = torch.broadcast_tensors(*hoist(program, lazy=False).known(values)[0], *literals, rates, step.double())
        return torch.stack(numbers[:-1], dim=-1).to(self.arena.dtype)

    def _prepare(self) -> None:
        """Write the table of rules. All that it points to is kept."""
        seeds, members, elements = self.arena.shape
        all_steps = torch.arange(1, self.steps + 1)[:, None]
        self._numbers, self._changing, self._kept, rows = list[Tensor](), list[int](), list[Tensor](), list[list[int]]()
        strides, scratch = list[int](), 0
        for n, rule in enumerate(self.rules):
            owner, program, code, heights = rule
            own, size = len(self.rates[owner]), self.arena.element_size()
            changes = "global_norm" in program.live.names
            if changes:
                self._changing.append(n)
                numbers = self._known(rule, torch.tensor(1), self.arena.new_ones(seeds, own)).unsqueeze(0)
            else:
                numbers = self._known(rule, all_steps)
            self._numbers.append(numbers.contiguous())
            count, sizes = numbers.shape[-1], self.sizes
            if not code.whole and bool(heights.all()):  # the boundaries of parameters do not matter
                sizes, heights = sizes.sum()[None], heights[:1]
            tile = int(sizes.max()) if code.whole else TILE
            slots = torch.tensor([s.data_ptr() for s in self.state[n]], dtype=torch.int64)
            each = torch.tensor([s.kind is Kind.TENSOR for s in program.live_state], dtype=torch.int64)
            words = torch.tensor(code.instructions, dtype=torch.int32)
            self._kept += [slots, each, words, sizes, heights]
            offset = self.first[owner] * elements * size
            rows.append([seeds, own, members, elements, len(sizes), tile, len(slots), count, code.registers,
                         len(words) // 6, sizes.data_ptr(), heights.data_ptr(), self.arena.data_ptr() + offset,
                         self.gradient.data_ptr() + offset, slots.data_ptr(), each.data_ptr(), 0,
                         own * count if changes else 0, count, words.data_ptr()])  # fmt: skip
            strides.append(0 if changes else own * count * size)
            scratch = max(scratch, (count + code.registers) * tile)
        self._table, self._stride = torch.tensor(rows), torch.tensor(strides)
        self._begin = torch.tensor([x.data_ptr() for x in self._numbers])
        self._scratch = self.arena.new_empty(scratch)


def _rules(owner: int, program: Program, shapes: Sequence[torch.Size]) -> list[_Rule]:
    """The program as one rule, or as two if it works on matrices: itself on these, and its fallback on the others."""
    code = encode(program)
    assert code is not None
    matrix = torch.tensor([len(s) >= 2 for s in shapes])
    heights = torch.tensor([s[0] if len(s) >= 2 else 1 for s in shapes])
    if not program.needs_matrix:
        return [_Rule(owner, program, code, heights)]
    assert program.fallback is not None and code.fallback is not None
    return [
        _Rule(owner, program, code, heights * matrix),
        _Rule(owner, program.fallback, code.fallback, heights * ~matrix),
    ]
