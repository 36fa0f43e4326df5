"""What one step of a program costs in memory and arithmetic, read off the op table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optforge.primitives.kinds import Kind, ProgramError
from optforge.primitives.lazy import Lazy, laziness, share
from optforge.primitives.op import Op
from optforge.primitives.program import Arg, Program, fold
from optforge.primitives.routing import route


@dataclass(frozen=True)
class Cost:
    """Cost of one step for one parameter tensor, divided by its number of elements. Live code only.

    Attributes:
        shape: the parameter's shape.
        dtype_bytes: bytes of one number; 4 for float32.
        state_bytes: optimizer state per element, as AdamW's 8 in float32. The step number, one for each tensor, is
            not counted.
        flops: floating-point operations per element, applying the update included. What is one number for all
            parameters (such as 1 - beta) costs nothing.
        moved_bytes: what any implementation must read (parameter, gradient, state) and write (parameter, state).
        unfused_bytes: what is read and written if every operation runs alone and its result goes through memory.

    What is computed every k steps only (see `primitives.lazy`) counts as its k-th part, at the default of k.
    """

    shape: tuple[int, ...]
    dtype_bytes: int
    state_bytes: float
    flops: float
    moved_bytes: float
    unfused_bytes: float

    def __str__(self) -> str:
        return (
            f"{self.state_bytes:.4g} bytes of state, {self.flops:.4g} flops, {self.moved_bytes:.4g} bytes moved "
            f"({self.unfused_bytes:.4g} unfused) for each element of a parameter of shape {self.shape}"
        )


def cost(program: Program, shape: Sequence[int] = (1024, 1024), dtype_bytes: int = 4) -> Cost:
    """Cost of `program` for a parameter of `shape`.

    A program over rows and columns hands parameters of fewer than two dimensions to its fallback, whose cost is then
    returned.

    Raises:
        ProgramError: for a shape that the program cannot train, and for one without elements.
    """
    shape = tuple(shape)
    if min(shape, default=1) < 1 or dtype_bytes < 1:
        raise ProgramError(f"cost needs a parameter with elements and a dtype with bytes, got {shape}, {dtype_bytes}")
    program = route(program, shape)
    whole = math.prod(shape)
    flops, unfused = 2.0 * whole, 4.0 * dtype_bytes * whole  # lr · update; p minus that

    def leaf(value: str | float) -> Kind:
        return program.names[value] if isinstance(value, str) else Kind.SCALAR

    lazy = laziness(program)
    shares = {guard: share(program, lazy.conditions[guard[0]], guard[1]) for guard in lazy.guards.values()}

    def apply(op: Op, args: list[Kind], index: int) -> Kind:
        nonlocal flops, unfused
        if index not in program.shared:
            often = shares[lazy.guards[index]] if index in lazy.guards else 1.0
            flops += often * op.work(args, shape)
            unfused += often * op.traffic(args, shape, dtype_bytes)
        return program.kinds[index]

    fold(program, leaf, apply)
    state = written = 0.0
    for slot, arg in zip(program.state, program.next_state, strict=True):
        size = dtype_bytes * slot.kind.elements(shape)
        if slot in program.live_state:
            state += size
            # a slot need not be written where it does not change
            written += 0 if arg == slot.name else size * _often(program, lazy, slot.name, arg)
            unfused += 2 * size if type(arg) is not int and arg != slot.name else 0  # a copy is read and written
    moved = (3 if "g" in program.live.names else 2) * dtype_bytes * whole + state + written
    return Cost(shape, dtype_bytes, state / whole, flops / whole, moved / whole, unfused / whole)


def state_bytes(program: Program, shapes: Iterable[Sequence[int]] = ((1024, 1024),)) -> float:
    """Bytes of optimizer state in float32 for each element of parameters of `shapes`, all of them together.

    Raises:
        ProgramError: as `cost` does, for each shape.
    """
    costs = [cost(program, shape) for shape in shapes]
    sizes = [math.prod(found.shape) for found in costs]
    return sum(found.state_bytes * size for found, size in zip(costs, sizes, strict=True)) / sum(sizes)


def _often(program: Program, lazy: Lazy, slot: str, arg: Arg) -> float:
    """In which share of steps `slot` changes to `arg`."""
    if type(arg) is not int or arg not in lazy.choices:
        return 1.0
    _, new, old = program.body[arg].args
    condition = lazy.conditions[lazy.choices[arg]]
    return share(program, condition, old == slot) if slot in (new, old) else 1.0
