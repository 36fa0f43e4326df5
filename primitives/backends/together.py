"""Many programs on the same inputs, for several steps: what they have in common is computed once.

All steps of all programs are unrolled into one graph of expressions, in C++; equal expressions over equal inputs are
one node, whose value is computed when it is first asked for. Populations of an evolution have most of their statements
in common, with each other and with those before them, so the graph is kept from call to call until it is too large.

Every value is held at the parameter's full shape, of 8 × 8 elements as square matrices have, in float64, and does not
depend on what else is computed. Programs with ops that have no C++ meaning (plug-ins added late, matrix products), and
all of them on machines without a compiler, run one at a time in torch instead; the last bits may differ then.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from optforge.primitives.backends.interpret import Simulation, Stepped
from optforge.primitives.backends.op_loops import SHAPE, Loops, loops
from optforge.primitives.kinds import Kind
from optforge.primitives.op import Op
from optforge.primitives.program import Arg, Const, Program, fold

CHUNK = 1024  # programs at once
_MOST = 32_768  # nodes that are kept from call to call, 17 MB
_SIZES = {kind: kind.shape(SHAPE) for kind in Kind}


Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Ran(NamedTuple):
    """What a program did: updates ``[steps, *SHAPE]``; its live slots after each step ``[steps, slots, *SHAPE]``."""

    updates: Array
    memory: Array


class Together:
    """Runs programs, not their fallbacks, with default hyperparameters.

    Args:
        steps: for each step the signals, in float64; g and p of shape `SHAPE`, the others 0-dimensional.
        follow: move the parameter by each program's own updates, from the first step's `p` on.
    """

    def __init__(self, steps: Sequence[Mapping[str, Tensor]], *, follow: bool = False) -> None:
        self.steps, self.follow = steps, follow
        self._graph: _Graph | None = None

    def __call__(self, programs: Sequence[Program]) -> list[Ran]:
        """What each program did, in order."""
        found: list[Ran] = []
        compiled = loops()
        for start in range(0, len(programs), CHUNK):
            chunk = programs[start : start + CHUNK]
            if compiled is None:
                found += [self.alone(program) for program in chunk]
                continue
            if self._graph is None:
                self._graph = _Graph(compiled, self.steps, self.follow)
            elif self._graph.size > _MOST:
                self._graph.clear()
            ran = self._graph.run(chunk)
            found += [self.alone(p) if own is None else own for p, own in zip(chunk, ran, strict=True)]
        return found

    def alone(self, program: Program) -> Ran:
        """The same for one program, in torch."""
        live = [i for i, s in enumerate(program.state) if s.name in program.live.names]
        simulation = Simulation(program, step=lambda inputs, _: _execute_at_full_shape(program, inputs))
        p, updates, memory = self.steps[0]["p"], [], []
        for step in self.steps:
            update, state = simulation.step({**step, "p": p} if self.follow else step)
            updates.append(update)
            memory += [state[i] for i in live]
            p = p - step["lr"] * update
        kept = torch.stack(memory) if memory else torch.empty(0, *SHAPE, dtype=torch.float64)
        return Ran(torch.stack(updates).numpy(), kept.numpy().reshape(len(self.steps), len(live), *SHAPE))


def _execute_at_full_shape(program: Program, inputs: Mapping[str, Tensor]) -> Stepped:
    """A step whose values are all held at full shape, as the C++ has them."""

    def leaf(value: str | float) -> Tensor:
        if isinstance(value, str):
            return inputs[value].expand(SHAPE).contiguous()
        return torch.full(SHAPE, value, dtype=torch.float64)

    def apply(op: Op, args: list[Tensor], index: int) -> Tensor:
        return _apply(op, [program.kind_of(a) for a in program.body[index].args], args)

    update, state, _ = fold(program, leaf, apply)
    return Stepped(update, tuple(state))


def _apply(op: Op, kinds: Sequence[Kind], args: Sequence[Tensor]) -> Tensor:
    """`op` on values held at full shape; the result, too, is held at full shape."""
    if not op.reduces:
        return op.function(*args, dims=(0, 1))
    given = [a[: _SIZES[kind][0], : _SIZES[kind][1]] for a, kind in zip(args, kinds, strict=True)]
    return op.function(*given, dims=(0, 1)).expand(SHAPE).contiguous()


class _Graph:
    """The engine of together.hpp, with one set of steps."""

    def __init__(self, compiled: Loops, steps: Sequence[Mapping[str, Tensor]], follow: bool) -> None:
        self.steps, self.numbers, self.engine = steps, compiled.numbers, compiled.library
        self.elementwise = {name: number for (name, kinds), number in self.numbers.items() if not kinds}
        self.engine.create.restype = ctypes.c_void_p
        self.engine.size.restype = ctypes.c_int64
        self.handle = ctypes.c_void_p(self.engine.create())
        weakref.finalize(self, self.engine.destroy, self.handle)
        self.follows = follow
        self.clear()

    def clear(self) -> None:
        """Forget everything but the steps."""
        self.engine.clear(self.handle)
        self.known: dict[float, int] = {}
        self.leaf(0.0)  # node 0, which stands where there is no argument
        self.signals = {name: [self._leaf(step[name].numpy()) for step in self.steps] for name in self.steps[0]}
        self.follow: array[int] | None = None
        if self.follows:
            self.follow = array("i", [self.numbers["mul", ()], self.numbers["sub", ()], *self.signals["lr"]])

    @property
    def size(self) -> int:
        """Number of nodes."""
        return int(self.engine.size(self.handle))

    def leaf(self, value: str | float) -> int:
        """The node of a number, or of a signal at the first step."""
        if isinstance(value, str):
            return self.signals[value][0]
        node = self.known.get(value)
        if node is None:
            node = self.known[value] = self._leaf(np.float64(value))
        return node

    def _leaf(self, value: Array | np.float64) -> int:
        whole = np.broadcast_to(value, SHAPE).copy()
        return int(self.engine.leaf(self.handle, ctypes.c_void_p(whole.ctypes.data), int(value.ndim == 0)))

    def run(self, programs: Sequence[Program]) -> list[Ran | None]:
        """What each program did; None of one that has an op without a C++ meaning."""
        words, count = array("i"), len(self.steps)
        slots = [self._write(program, words) for program in programs]
        sizes = [0 if n is None else count * (1 + n) for n in slots]
        nodes = np.empty(sum(sizes), dtype=np.int32)
        values = np.empty((len(nodes), *SHAPE))
        follow = None if self.follow is None else _address(self.follow)
        written = ctypes.c_int64(len(slots) - slots.count(None))
        at = ctypes.c_void_p(nodes.ctypes.data)
        self.engine.unroll(self.handle, written, _address(words), count, follow, at)
        self.engine.read(self.handle, ctypes.c_int64(len(nodes)), at, ctypes.c_void_p(values.ctypes.data))
        found: list[Ran | None] = []
        last = 0
        for n, size in zip(slots, sizes, strict=True):
            rows = values[last : (last := last + size)].reshape(count, -1, *SHAPE)
            found.append(None if n is None else Ran(rows[:, 0], rows[:, 1:]))
        return found

    def _write(self, program: Program, words: array[int]) -> int | None:
        """Append a program as together.hpp reads it; returns the number of its slots, or None if it cannot be."""
        live, body, call_of, known = program.live, program.body, self.elementwise, self.known
        statements: list[int] = []
        slots = [(s, a) for s, a in zip(program.state, program.next_state, strict=True) if s.name in live.names]
        outputs = [program.update, *[arg for _, arg in slots]]
        fixed: dict[Arg, int] = {}
        for hyper in program.hypers:
            if hyper.name in live.names:
                fixed[hyper.name] = known.get(hyper.default) or self.leaf(hyper.default)
        for arg in [a for i in live.instructions for a in body[i].args if type(a) is Const] + outputs:
            if type(arg) is Const:
                fixed[arg] = known.get(arg.value) or self.leaf(arg.value)
        signals = [name for name in self.signals if name in live.names]
        if self.follow is not None:
            signals = ["p", *(name for name in signals if name != "p")]
        names: list[Arg] = ["", *fixed, *signals, *[s.name for s, _ in slots], *live.instructions]
        where = dict(zip(names, range(len(names)), strict=True))
        for index in live.instructions:
            name, args = body[index]
            call = call_of.get(name)
            if call is None:
                call = self.numbers.get((name, tuple([program.kind_of(a) for a in args])))
                if call is None:
                    return None
            statements += (call, *[where[a] for a in args], *_NONE[len(args)])
        words.extend((1 + len(fixed), len(signals), len(slots), len(live.instructions), 0, *fixed.values()))
        for name in signals:
            words.extend(self.signals[name])
        words.extend([self.leaf(slot.init) for slot, _ in slots])
        words.extend(statements)
        words.extend([where[a] for a in outputs])
        return len(slots)


def _address(words: array[int]) -> ctypes.c_void_p:
    return ctypes.c_void_p(words.buffer_info()[0])


_NONE = ((0, 0, 0), (0, 0), (0,), ())
