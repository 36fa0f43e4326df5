"""Many programs on the same inputs, for several steps: what they have in common is computed once.

All steps of all programs are unrolled into one graph of expressions; equal expressions over equal inputs are one node.
Nodes of one level with the same operation run as one torch call on stacked operands. Populations of an evolution have
most of their statements in common, so this is several times faster than one program at a time.

Every value is held at the parameter's full shape, of 64 elements, in float64. Vector units then work on whole vectors
only, and a result does not depend, to the last bit, on what it is stacked with. Operations that mix elements get their
arguments at the shapes of their kinds, with a leading dimension even for one program alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from primitives.kinds import Kind
from primitives.op import Op
from primitives.ops import OPS
from primitives.program import Arg, Const, Program

SHAPE = (8, 8)
_AT_ONCE = 500  # stacked values of one call: fewer elements than torch would divide among threads, at odd places
_SIZES = {Kind.SCALAR: (1, 1), Kind.ROW: (SHAPE[0], 1), Kind.COL: (1, SHAPE[1]), Kind.TENSOR: SHAPE}


class Ran(NamedTuple):
    """What programs did.

    Attributes:
        values: distinct values of the whole batch, ``[values, *SHAPE]``.
        updates: for each program the index of its update at each step.
        memory: for each program the indices of its live slots after the last step.
    """

    values: Tensor
    updates: list[list[int]]
    memory: list[list[int]]


def run_together(programs: Sequence[Program], steps: Sequence[Mapping[str, Tensor]], *, follow: bool = False) -> Ran:
    """Run each program, not its fallback, with default hyperparameters.

    Args:
        programs: what to run.
        steps: for each step the signals, in float64; g and p of shape `SHAPE`, the others 0-dimensional.
        follow: move the parameter by each program's own updates, from the first step's `p` on.
    """
    graph = _Graph(steps)
    updates, memory = [], []
    for program in programs:
        mine, last = graph.unroll(program, follow)
        updates.append(mine)
        memory.append(last)
    values, place = graph.evaluate()
    return Ran(values, [[place[i] for i in row] for row in updates], [[place[i] for i in row] for row in memory])


def apply_alone(op: Op, kinds: Sequence[Kind], args: Sequence[Tensor]) -> Tensor:
    """`op` on values held at full shape; the result, too, is held at full shape."""
    if not op.reduces:
        return op.function(*args, dims=(0, 1))
    given = [_sliced(a[None], kind) for a, kind in zip(args, kinds, strict=True)]
    return op.function(*given, dims=(1, 2))[0].expand(SHAPE).contiguous()


def _sliced(x: Tensor, kind: Kind) -> Tensor:
    rows, cols = _SIZES[kind]
    return x[..., :rows, :cols].contiguous()


class _Graph:
    def __init__(self, steps: Sequence[Mapping[str, Tensor]]) -> None:
        self.steps = steps
        self.numbers: dict[tuple[int, int, int, int], int] = {}  # (call, *arguments) to node
        self.known: dict[tuple[str | float, int], int] = {}  # (name or literal, step) to node
        self.call: list[int] = [-1]  # of each node; -1 for a leaf
        # arguments of each node; where there are fewer, node 0, which is nothing
        self.args: tuple[list[int], list[int], list[int]] = ([0], [0], [0])
        self.level: list[int] = [0]
        self.leaves: list[tuple[int, Tensor]] = []
        self.calls: dict[tuple[str, tuple[Kind, ...]], int] = {}

    def leaf(self, value: str | float, step: int = 0) -> int:
        """The node of a signal at a step, or of a literal."""
        node = self.known.get((value, step))
        if node is None:
            tensor = self.steps[step][value] if isinstance(value, str) else torch.tensor(value, dtype=torch.float64)
            node = self.known[value, step] = len(self.level)
            self.call.append(-1)
            for args in self.args:
                args.append(0)
            self.level.append(0)
            self.leaves.append((node, tensor))
        return node

    def number_of(self, op: Op, kinds: tuple[Kind, ...]) -> int:
        """What nodes must share to be computed in one call; kinds matter where elements are mixed."""
        return self.calls.setdefault((op.name, kinds if op.reduces else ()), len(self.calls))

    def apply(self, statements: Sequence[tuple[int, int, int, int]], values: list[int]) -> None:
        """Append to `values` the node of each statement, ``(call, *positions of its arguments)``."""
        # all that takes time in a run is in this loop: no calls, no unpacking
        numbers, level, call_of = self.numbers, self.level, self.call
        first, second, third = self.args
        for call, a, b, c in statements:
            key = (call, values[a], values[b], values[c])
            node = numbers.get(key)
            if node is None:
                _, x, y, z = key
                node = numbers[key] = len(level)
                call_of.append(call)
                first.append(x)
                second.append(y)
                third.append(z)
                level.append(1 + max(level[x], level[y], level[z]))
            values.append(node)

    def unroll(self, program: Program, follow: bool) -> tuple[list[int], list[int]]:
        """Nodes of the update at each step and of the live slots after the last."""
        live, body, kind_of = program.live, program.body, program.kind_of
        where: dict[Arg, int] = {name: i for i, name in enumerate(live.names, 1)}  # position among a step's values
        slots = [(s, a) for s, a in zip(program.state, program.next_state, strict=True) if s.name in live.names]
        outputs = [program.update, *(arg for _, arg in slots)]
        for arg in [a for i in live.instructions for a in body[i].args] + outputs:
            if type(arg) is Const and arg not in where:
                where[arg] = len(where) + 1
        before = len(where) + 1
        for position, index in enumerate(live.instructions, before):
            where[index] = position
        statements = []
        for index in live.instructions:
            name, args = body[index]
            op = OPS[name]
            call = self.number_of(op, tuple([kind_of(a) for a in args]) if op.reduces else ())
            statements.append((call, *[where[a] for a in args], *[0] * (3 - len(args))))
        defaults = program.defaults()
        fixed = [0] * before
        for arg, position in list(where.items())[: before - 1]:
            if type(arg) is Const:
                fixed[position] = self.leaf(arg.value)
            elif arg in defaults:
                fixed[position] = self.leaf(defaults[arg])
        signals = [(name, where[name]) for name in live.names & self.steps[0].keys()]
        state = [self.leaf(slot.init) for slot, _ in slots]
        at_slots = [where[slot.name] for slot, _ in slots]
        at_outputs = [where[a] for a in outputs]
        updates: list[int] = []
        p = self.leaf("p")
        for step in range(len(self.steps)):
            values = fixed.copy()
            for name, position in signals:
                values[position] = p if follow and name == "p" else self.leaf(name, step)
            for position, node in zip(at_slots, state, strict=True):
                values[position] = node
            self.apply(statements, values)  # type: ignore[arg-type]
            update, *state = [values[i] for i in at_outputs]
            updates.append(update)
            if follow:
                p = self._moved(p, update, step)
        return updates, state

    def _moved(self, p: int, update: int, step: int) -> int:
        """The node of ``p - lr * update``."""
        values = [0, p, self.leaf("lr", step), update]
        mul, sub = (self.number_of(OPS[name], ()) for name in ("mul", "sub"))
        self.apply([(mul, 2, 3, 0), (sub, 1, 4, 0)], values)
        return values[-1]

    def evaluate(self) -> tuple[Tensor, list[int]]:
        """All values, and for each node the index of its value."""
        count = len(self.level)
        call, level = np.array(self.call), np.array(self.level)
        order = np.lexsort((call, level))
        place = np.empty(count, dtype=np.int64)
        place[order] = np.arange(count)
        operands = [torch.from_numpy(place[np.array(args)[order]]) for args in self.args]
        values = torch.empty((count, *SHAPE), dtype=torch.float64)
        values[place[0]] = 0.0
        for node, tensor in self.leaves:
            values[place[node]] = tensor
        ordered_call, ordered_level = call[order], level[order]
        changes = np.flatnonzero((np.diff(ordered_call) != 0) | (np.diff(ordered_level) != 0)) + 1
        calls = list(self.calls)
        edges = [0, *changes.tolist(), count]
        pieces = [(i, min(i + _AT_ONCE, stop)) for start, stop in pairwise(edges) for i in range(start, stop, _AT_ONCE)]
        for start, stop in pieces:
            if ordered_call[start] < 0:
                continue
            name, kinds = calls[ordered_call[start]]
            op = OPS[name]
            args = [values.index_select(0, operands[j][start:stop]) for j in range(op.arity)]
            if op.reduces:
                args = [_sliced(a, kind) for a, kind in zip(args, kinds, strict=True)]
            values[start:stop] = op.function(*args, dims=(1, 2))
        return values, place.tolist()
