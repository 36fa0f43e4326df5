"""Compiled steps. On a CPU that is C++ of our own (see `primitives.backends.native`): half a second of compilation for
a program, and one call for all parameters. What it cannot express, and other devices, go through `torch.compile`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from ctypes import c_char_p, c_int, c_int64, c_void_p
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optforge.primitives.backends.bound import Bound, Kernel
from optforge.primitives.backends.inductor import InductorKernel
from optforge.primitives.backends.native import Native
from optforge.primitives.backends.toolchain import build
from optforge.primitives.backends.trace import Untraceable, trace
from optforge.primitives.program import Program

if TYPE_CHECKING:
    from optforge.primitives.backends.numbers import Numbers

SMALL = 1 << 14  # with fewer elements, waking other threads takes longer than the work
WIDTH = 8192  # elements of a chunk of work; what has neither rows nor columns is cut into rows of so many
DEEP = 32  # rows that share one vector of column sums, so that these are small beside the parameter

_TYPES = {
    (torch.float32, torch.float32): ("float", "float"),
    (torch.float64, torch.float64): ("double", "double"),
    (torch.float32, torch.bfloat16): ("float", "bf16"),
}
_GRADIENT = 5  # its place in a row of the table, which is the struct `Tensor` of native.hpp


class NativeKernel:
    """The step of a program in C++ for parameters of dtype `held` whose state and arithmetic have `dtype`.

    Raises:
        Untraceable: if the program cannot be written in it, or there is no compiler.
    """

    def __init__(self, program: Program, dtype: torch.dtype, held: torch.dtype) -> None:
        if (dtype, held) not in _TYPES:
            raise Untraceable(f"{dtype} for parameters of {held}")
        self.program, self.dtype = program, dtype
        kinds = [slot.kind for slot in program.live_state]
        self.native = Native(trace(program), kinds, program.needs_matrix, *_TYPES[dtype, held])
        library = build(self.native.source)
        if library is None:
            raise Untraceable("no C++ compiler")
        self._step = library.step
        self._step.argtypes, self._step.restype = (c_int64, c_char_p, c_void_p, c_int), None

    def bind(self, p: Tensor, local: Tensor, state: Mapping[str, Tensor], names: Sequence[str]) -> Bound:
        """A parameter as a row of the table that the kernel takes."""
        return _Row(self, p, local, state, names)

    def run(self, bound: Sequence[Bound], gradients: Sequence[Tensor], numbers: Numbers, sign: int) -> None:
        """One step in place of parameters at the same step; gradients are multiplied by `sign`."""
        kept, rows = [], []
        for b, g in zip(bound, gradients, strict=True):
            assert isinstance(b, _Row)
            if g.numel() != b.size or g.dtype != b.dtype or not g.is_contiguous():
                kept.append(g := g.to(b.dtype).expand(b.shape).contiguous())
            b.row[_GRADIENT] = g.data_ptr()
            rows.append(b.row)
            for x, flat in b.copies:
                flat.copy_(x)
        values = numbers.packed(self.dtype, torch.device("cpu"), sign)
        threads = torch.get_num_threads() if sum(b.size for b in bound) > SMALL else 1
        self._step(len(rows), b"".join(rows), values.data_ptr(), threads)
        torch.autograd.graph.increment_version([b.p for b in bound])  # torch has not seen the parameters change
        for b in bound:
            for x, flat in b.copies:
                x.copy_(flat)


class _Row(Bound):
    """A row of a native kernel's table: sizes, then addresses."""

    def __init__(
        self, kernel: NativeKernel, p: Tensor, local: Tensor, state: Mapping[str, Tensor], names: Sequence[str]
    ) -> None:
        super().__init__(kernel, p, local, state, names)
        native, size = kernel.native, self.size
        cols = size // local.shape[0] if kernel.program.needs_matrix else WIDTH
        rows = math.ceil(size / cols)
        deep = max(1, WIDTH // cols, DEEP if native.sums_columns else 1)
        chunks = math.ceil(rows / deep)
        self.flat = [x.contiguous() for x in self.tensors]
        self.copies = [(x, f) for x, f in zip(self.tensors, self.flat, strict=True) if x is not f]
        self._scratch = torch.empty(native.scratch(rows, cols, chunks), dtype=kernel.dtype)
        self._partial = torch.empty(native.partial(chunks), dtype=torch.float64)
        held, *state_addresses = (x.data_ptr() for x in self.flat)
        addresses = (held, 0, self._scratch.data_ptr(), self._partial.data_ptr(), *state_addresses)
        self.row = array("q", (size, rows, cols, deep, *addresses))


@lru_cache(maxsize=256)
def kernel(program: Program, dtype: torch.dtype, held: torch.dtype, device: torch.device) -> Kernel:
    """The kernel for parameters of dtype `held` on `device` whose state and arithmetic have `dtype`."""
    if device.type == "cpu":
        try:
            return NativeKernel(program, dtype, held)
        except Untraceable:
            pass
    return InductorKernel(program, dtype, held)


__all__ = ["Bound", "Kernel", "NativeKernel", "kernel"]
