"""Programs as lists of instructions for a small machine in C++, which has one compiled loop for each operation.

Nothing is compiled for a program: the machine is built once in a process, in half a second.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from optforge.primitives import Builder, Kind, Program
from optforge.primitives.backends import native
from optforge.primitives.backends.source import hoist
from optforge.primitives.backends.toolchain import build
from optforge.primitives.backends.trace import Step, Untraceable, trace
from optforge.primitives.ops import OPS

MOST_VALUES = 512
SUM, SPREAD, ORTHOGONALISE, SIZES = "sum", "spread", "orthogonalise", ("T(t.size)", "T(t.rows)", "T(t.cols)")
COPY, DESCEND = "{0}", "{0} - {1} * {2}"
_TYPES = {torch.float32: "float", torch.float64: "double"}


class Code(NamedTuple):
    """A program as instructions for `native_rules.hpp`.

    Attributes:
        instructions: operation, whether it works on single numbers, result, three arguments; flat.
        literals: numbers that follow the program's own and precede the learning rate.
        registers: how many values are kept at once.
        whole: whether it needs all elements of a parameter at once.
        fallback: the same for parameters that are no matrices, if the program works on matrices.
    """

    instructions: array[int]
    literals: tuple[float, ...]
    registers: int
    whole: bool
    fallback: Code | None = None


@lru_cache(maxsize=1)
def operations() -> tuple[str, ...]:
    """The C++ expressions that elementwise ops are made of."""
    found = {COPY: None, DESCEND: None}
    for name, op in OPS.items():
        if not op.needs_matrix:
            b = Builder()
            program = b.build(b.g + getattr(b, name)(*[b.g] * op.arity))
            with suppress(Untraceable):
                found |= {node.code: None for node in trace(program).nodes if node.args and not node.is_sum}
    return tuple(found)


@lru_cache(maxsize=2)
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """All operations for `dtype`, compiled; None without a compiler or for other types."""
    if dtype not in _TYPES:
        return None
    names = [f"f{i}" for i in range(len(operations()))]
    loops = [
        f"static void {name}(T* o, const T* a, const T* b, const T* c, int64_t n) {{\n"
        "  #pragma omp simd\n"
        f"  for (int64_t i = 0; i < n; i++) o[i] = {code.format('a[i]', 'b[i]', 'c[i]')};\n}}"
        for name, code in zip(names, operations(), strict=True)
    ]
    folder = Path(native.__file__).parent
    source = [
        f"#define T {_TYPES[dtype]}\n#define P T\n#define SLOTS\n#define MOST_VALUES {MOST_VALUES}",
        (folder / "native.hpp").read_text(encoding="utf-8"),
        *loops,
        f"#define LOOPS {', '.join(names)}",
        Path(__file__).with_name("native_rules.hpp").read_text(encoding="utf-8"),
    ]
    return build("\n".join(source))


@lru_cache(maxsize=4096)
def encode(program: Program) -> Code | None:
    """`program` as instructions; None if it, or its fallback where it needs one, uses what only torch computes."""
    try:
        code = _Encoder(program, trace(program, matrices=True)).code()
        if not program.needs_matrix:
            return code
        fallback = None if program.fallback is None else encode(program.fallback)
        return None if fallback is None else code._replace(fallback=fallback)
    except Untraceable:
        return None


class _Encoder:
    """Gives every value of a step a place, and writes the instructions."""

    def __init__(self, program: Program, step: Step) -> None:
        self.slots = len(program.live_state)
        self.kinds = [slot.kind for slot in program.live_state]
        self.nodes, self.update = step.nodes, step.update
        self.next = {i: node for i, node in enumerate(step.following) if node is not None}
        self.numbers = 2 + self.slots + hoist(program, lazy=False).count
        todo, self.needed = [self.update, *self.next.values()], set[int]()
        while todo:
            if (i := todo.pop()) not in self.needed:
                self.needed.add(i)
                todo += self.nodes[i].args
        self.last = {a: i for i in sorted(self.needed) for a in self.nodes[i].args}  # reader of each node
        self.last |= dict.fromkeys([self.update, *self.next.values()], len(self.nodes))
        self.literals = sorted({self._literal(i) for i in self.needed if self._is_literal(i)})
        self.first_register = self.numbers + len(self.literals) + 1
        self.free: list[int] = []
        self.registers = 0
        self.place: dict[int, int] = {}
        self.spread: dict[int, int] = {}
        self.words: list[int] = []
        self.operations = {code: i for i, code in enumerate((*operations(), SUM, SPREAD, ORTHOGONALISE, *SIZES))}

    def code(self) -> Code:
        for i in sorted(self.needed):
            if self.nodes[i].kind not in (Kind.SCALAR, Kind.TENSOR):
                raise Untraceable("rows and columns")
            if self.nodes[i].args or self.nodes[i].code in SIZES:
                self._emit(i)
            else:
                self.place[i] = self._input(i)
            for a in {*self.nodes[i].args, i}:
                if self.last[a] <= i and self.place[a] >= self.first_register:
                    self.free.append(self.place[a])
        for i, node in self.next.items():  # inputs, too, must be read before anything is written
            copied = node in self.spread or self.place[node] == 2 + i
            if not copied and self.place[node] < 2 + self.slots:
                self.spread[node] = self._register()
                self._write(COPY, self.spread[node], [self.place[node]], self.nodes[node].kind)
        lr = self.first_register - 1
        self._write(DESCEND, 0, [0, lr, self.place[self.update]], Kind.TENSOR)
        for i, node in self.next.items():
            if self.place[node] != 2 + i:
                self._write(COPY, 2 + i, [self.spread.get(node, self.place[node])], self.kinds[i])
        if self.first_register + self.registers > MOST_VALUES:
            raise Untraceable("too many values")
        if not set(self.kinds) <= {Kind.SCALAR, Kind.TENSOR}:
            raise Untraceable("rows and columns")
        wholes = (ORTHOGONALISE, SUM, *SIZES)
        whole = Kind.SCALAR in self.kinds or any(self.nodes[i].code in wholes for i in self.needed)
        return Code(array("i", self.words), tuple(self.literals), self.registers, whole)

    def _emit(self, i: int) -> None:
        node = self.nodes[i]
        args = [self.place[a] for a in node.args]
        if node.kind is Kind.TENSOR:
            args = [self._spread(a) if self._is_small(a) else self.place[a] for a in node.args]
        target = self._slot_for(i)
        self.place[i] = self._register() if target is None else target
        self._write(SUM if node.is_sum else node.code, self.place[i], args, node.kind)

    def _slot_for(self, i: int) -> int | None:
        """The slot whose next value node `i` is, if nobody needs its old value any more."""
        for slot, node in self.next.items():
            read = [n for n in self.needed if self.nodes[n].code == f"s{slot}" and not self.nodes[n].args]
            if node == i and all(self.last[n] <= i for n in read):
                return 2 + slot
        return None

    def _spread(self, i: int) -> int:
        if i not in self.spread:
            self.spread[i] = self._register()
            self._write(SPREAD, self.spread[i], [self.place[i]], Kind.TENSOR)
        return self.spread[i]

    def _is_small(self, i: int) -> bool:
        """Whether a node is held as one number rather than as many equal ones."""
        number = 2 + self.slots <= self.place[i] < self.first_register
        return self.nodes[i].kind is Kind.SCALAR and not number

    def _write(self, code: str, target: int, args: Sequence[int], kind: Kind) -> None:
        if code not in self.operations:
            raise Untraceable(code)
        alone = kind is Kind.SCALAR and code not in (SUM, *SIZES)
        self.words += [self.operations[code], alone, target, *args, *[0] * (3 - len(args))]

    def _register(self) -> int:
        if self.free:
            return self.free.pop()
        self.registers += 1
        return self.first_register + self.registers - 1

    def _input(self, i: int) -> int:
        code = self.nodes[i].code
        if self._is_literal(i):
            return self.numbers + self.literals.index(self._literal(i))
        return {"p": lambda: 0, "g": lambda: 1, "s": lambda: 2 + int(code[1:]),
                "k": lambda: 2 + self.slots + int(code[1:])}[code[0]]()  # fmt: skip

    def _is_literal(self, i: int) -> bool:
        node = self.nodes[i]
        return node.code[:2] == "T(" and node.code not in SIZES and not node.args

    def _literal(self, i: int) -> float:
        try:
            return float(self.nodes[i].code[2:-1])
        except ValueError:
            raise Untraceable(self.nodes[i].code) from None
