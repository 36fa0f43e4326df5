"""Programs as Python source: the same op templates as the interpreter, pasted instead of called.

Generated source contains only register names (``x3``), table templates and positions; no text of a program file ever
reaches it, so that names and numbers in a file cannot become code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from primitives.interpret import Stepped
from primitives.kinds import Kind
from primitives.ops import OPS, Op, namespace
from primitives.program import Program, fold

CompiledStep = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


def statements(program: Program, names: Mapping[str, str], constants: list[float]) -> tuple[list[str], str, list[str]]:
    """Source lines of the live statements, and the expressions of the update and of each slot's next value.

    `names` maps what the program reads to source expressions; literals are appended to `constants` and read as
    ``k[i]``.
    """
    lines: list[str] = []

    def leaf(value: str | float) -> str:
        if isinstance(value, str):
            return names[value]
        if value not in constants:
            constants.append(value)
        return f"k[{constants.index(value)}]"

    def apply(op: Op, args: list[str], index: int) -> str:
        lines.append(f"x{index} = {op.torch.format(*args, dims='dims')}")
        return f"x{index}"

    update, state, _ = fold(program, leaf, apply)
    return lines, update, list(state)  # type: ignore[return-value, arg-type]


@lru_cache(maxsize=1024)
def compile_step(program: Program) -> Callable[[Mapping[str, Tensor], Sequence[int]], Stepped]:
    """A function equal to `execute` for this program, without its walking overhead (about 1 µs per statement)."""
    reads = _reads(program)
    constants: list[float] = []
    lines, update, state = statements(program, {n: f"a{i}" for i, n in enumerate(reads)}, constants)
    step = _define(reads, lines, update, state, "dims", {})
    k = _literals(constants)

    def run(inputs: Mapping[str, Tensor], dims: Sequence[int]) -> Stepped:
        return Stepped(*step([inputs[n] for n in reads], k, tuple(dims)))

    return run


class Segments:
    """Several parameters of a model, flattened and laid end to end along the last dimension of one arena.

    Elementwise work then costs one call for the whole model. Only what mixes elements looks at the boundaries.

    Args:
        sizes: number of elements of each parameter, in order.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.sizes = list(sizes)
        self.index = torch.repeat_interleave(
            torch.arange(len(self.sizes), device=device), torch.tensor(self.sizes, device=device)
        )

    def reduce(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """Apply a reduction to each parameter's stretch: ``[…, elements]`` to ``[…, parameters]``."""
        pieces = zip(*(a.split(self.sizes, dim=-1) for a in args), strict=True)
        return torch.cat([function(*piece, dims=(-1,)) for piece in pieces], dim=-1)

    def spread(self, x: Tensor) -> Tensor:
        """Repeat per-parameter numbers over each parameter's elements: ``[…, parameters]`` to ``[…, elements]``."""
        return x.index_select(-1, self.index)


@lru_cache(maxsize=4096)
def compile_segmented(program: Program) -> Callable[[Mapping[str, Tensor], Segments], Stepped]:
    """Like `compile_step`, for all parameters of a model (or of a stack of models) in one arena.

    Inputs of kind TENSOR are ``[…, elements]``, slots of kind SCALAR ``[…, parameters]``, other scalars broadcast.

    Raises:
        ValueError: if the program needs rows and columns, which an arena does not have.
    """
    if program.needs_matrix:
        raise ValueError("programs over rows, columns or matrices need each parameter's own shape")
    reads = _reads(program)
    constants: list[float] = []
    scalar_slots = {s.name for s in program.state if s.kind is Kind.SCALAR}
    per_parameter: set[str] = set()  # source names of numbers that differ between the parameters of one model
    lines: list[str] = []
    functions: dict[str, Any] = {}

    def leaf(value: str | float) -> str:
        if isinstance(value, str):
            name = f"a{reads.index(value)}"
            if value in scalar_slots:
                per_parameter.add(name)
            return name
        if value not in constants:
            constants.append(value)
        return f"k[{constants.index(value)}]"

    def apply(op: Op, args: list[str], index: int) -> str:
        name = f"x{index}"
        if op.reduces:
            functions[f"f_{op.name}"] = op.function
            lines.append(f"{name} = dims.reduce(f_{op.name}, {', '.join(args)})")
            per_parameter.add(name)
            return name
        if program.kinds[index] is Kind.TENSOR:
            args = [f"dims.spread({a})" if a in per_parameter else a for a in args]
        elif per_parameter.intersection(args):
            per_parameter.add(name)
        lines.append(f"{name} = {op.torch.format(*args)}")
        return name

    update, state, _ = fold(program, leaf, apply)
    step = _define(reads, lines, update, state, "dims", functions)  # type: ignore[arg-type]
    k = _literals(constants)

    def run(inputs: Mapping[str, Tensor], segments: Segments) -> Stepped:
        return Stepped(*step([inputs[n] for n in reads], k, segments))

    return run


def _reads(program: Program) -> list[str]:
    """Names the generated function takes: what live code reads, and dead slots, which pass through."""
    slots = [s.name for s in program.state]
    return [*slots, *sorted(program.live.names - set(slots))]


def _define(
    reads: Sequence[str], lines: Sequence[str], update: object, state: Sequence[object], dims: str, extra: dict[str, Any]
) -> CompiledStep:
    unpack = [f"{''.join(f'a{i}, ' for i in range(len(reads)))} = a"] if reads else []
    body = [*unpack, *lines, f"return {update}, ({''.join(f'{s}, ' for s in state)})"]
    code = f"def step(a, k, {dims}):\n" + "\n".join(f"    {line}" for line in body)
    scope = namespace() | extra
    exec(compile(code, "<optforge program>", "exec"), scope)
    return scope["step"]  # type: ignore[no-any-return]


def _literals(constants: Sequence[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(c, dtype=torch.float64) for c in constants)


__all__ = ["OPS", "CompiledStep", "Segments", "compile_segmented", "compile_step", "statements"]
