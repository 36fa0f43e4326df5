"""Step many programs in C++, all operations of a rule over a piece of the arena that fits the cache.

torch computes one operation of a rule for all members before the next, so that every result travels through memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from primitives import Kind, Program
from primitives.source import hoist
from search.native_code import encode, library

TILE = 256  # elements at a time: a rule's values of so many float32 fit the first-level cache
_K = 15  # place of the numbers' address in a row of the table, which is the struct `Rule` of native_rules.hpp


class NativeRules:
    """The rules of many programs over neighbouring stretches of one arena ``[seeds, members, elements]``.

    Args:
        programs: what `encode` can write.
        rates: learning rates of the members of each, ``[members]`` in float64; they follow each other in the arena.
        arena, gradient: contiguous; both are read and `arena` is updated at each step.
        sizes: number of elements of each parameter of a model.
        steps: length of the run.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        rates: Sequence[Tensor],
        arena: Tensor,
        gradient: Tensor,
        sizes: Sequence[int],
        steps: int,
    ) -> None:
        found = library(arena.dtype)
        assert found is not None and arena.is_contiguous() and gradient.is_contiguous()
        self._step = found.step
        self._step.argtypes, self._step.restype = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p), None
        self.programs, self.rates, self.arena, self.gradient, self.steps = programs, rates, arena, gradient, steps
        self.sizes = {True: torch.tensor(sizes), False: torch.tensor([sum(sizes)])}  # by whether a rule needs wholes
        self.first = [0, *torch.tensor([len(r) for r in rates]).cumsum(0).tolist()]
        self.codes = [code for p in programs if (code := encode(p)) is not None]
        self.state: list[list[Tensor]] = []

    def step(self, index: int, global_norm: Tensor | None) -> None:
        """Apply step `index`, counted from 0."""
        if not self.state:
            self.state = [self._initial(n) for n in range(len(self.programs))]
        if index == 0 or not hasattr(self, "_table"):
            self._prepare()
        for n in self._changing:
            assert global_norm is not None
            rows = slice(self.first[n], self.first[n + 1])
            self._numbers[n][0].copy_(self._known(n, torch.tensor(index + 1), global_norm[:, rows, 0].double()))
        self._table[:, _K] = self._begin + index * self._stride
        self._step(len(self.programs), self._table.data_ptr(), self._scratch.data_ptr())

    def take(self, other: NativeRules, kept: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Go on from the state of other rules: for each program its number there, and which of its members it keeps."""
        if other.state:
            self.state = [[s[:, list(members)].contiguous() for s in other.state[n]] for n, members in kept]

    def _initial(self, n: int) -> list[Tensor]:
        rows = slice(self.first[n], self.first[n + 1])
        p, g = self.arena[:, rows], self.gradient[:, rows]
        found = []
        for slot in self.programs[n].live_state:
            width = p.shape[-1] if slot.kind is Kind.TENSOR else len(self.sizes[True])
            if isinstance(slot.init, str):
                found.append((p if slot.init == "p" else g).clone(memory_format=torch.contiguous_format))
            else:
                found.append(p.new_full((*p.shape[:2], width), slot.init))
        return found

    def _known(self, n: int, step: Tensor, global_norm: Tensor | None = None) -> Tensor:
        """The numbers that program `n` reads, ``[…, members, numbers]``."""
        program, rates = self.programs[n], self.rates[n]
        values = {name: torch.tensor(x, dtype=torch.float64) for name, x in program.defaults().items()}
        values |= {"lr": rates, "step": step.double(), "progress": step.double() / self.steps}
        if global_norm is not None:
            values["global_norm"] = global_norm
        literals = [torch.tensor(x, dtype=torch.float64) for x in self.codes[n].literals]
        numbers = torch.broadcast_tensors(*hoist(program).numbers(values), *literals, rates, step.double())
        return torch.stack(numbers[:-1], dim=-1).to(self.arena.dtype)

    def _prepare(self) -> None:
        """Write the table of rules. All that it points to is kept."""
        seeds, members, elements = self.arena.shape
        all_steps = torch.arange(1, self.steps + 1)[:, None]
        self._numbers, self._changing, self._kept, rows = list[Tensor](), list[int](), list[Tensor](), list[list[int]]()
        strides, scratch = list[int](), 0
        for n, (program, code) in enumerate(zip(self.programs, self.codes, strict=True)):
            own, size = len(self.rates[n]), self.arena.element_size()
            changes = "global_norm" in program.live.names
            if changes:
                self._changing.append(n)
                numbers = self._known(n, torch.tensor(1), self.arena.new_ones(seeds, own)).unsqueeze(0)
            else:
                numbers = self._known(n, all_steps)
            self._numbers.append(numbers.contiguous())
            count, sizes = numbers.shape[-1], self.sizes[code.whole]
            tile = int(sizes.max()) if code.whole else TILE
            slots = torch.tensor([s.data_ptr() for s in self.state[n]], dtype=torch.int64)
            each = torch.tensor([s.kind is Kind.TENSOR for s in program.live_state], dtype=torch.int64)
            words = torch.tensor(code.instructions, dtype=torch.int32)
            self._kept += [slots, each, words, sizes]
            offset = self.first[n] * elements * size
            rows.append([seeds, own, members, elements, len(sizes), tile, len(slots), count, code.registers,
                         len(words) // 6, sizes.data_ptr(), self.arena.data_ptr() + offset,
                         self.gradient.data_ptr() + offset, slots.data_ptr(), each.data_ptr(), 0,
                         own * count if changes else 0, count, words.data_ptr()])  # fmt: skip
            strides.append(0 if changes else own * count * size)
            scratch = max(scratch, (count + code.registers) * tile)
        self._table, self._stride = torch.tensor(rows), torch.tensor(strides)
        self._begin = torch.tensor([x.data_ptr() for x in self._numbers])
        self._scratch = self.arena.new_empty(scratch)
