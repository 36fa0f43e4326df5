"""A program as a person writes it down: assignments in an order in which each may overwrite what it names.

Programs read every slot as it was before the step. On paper one writes ``m ← …`` and goes on with the new `m`. The
order found here makes both readings agree: whoever needs the old value of a slot comes before its assignment, and
where that is impossible the new value gets a name of its own first. Statements that are used once are inlined.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import NamedTuple

from optforge.primitives.ops import OPS, Op
from optforge.primitives.program import Arg, Const, Program

Tree = str | float | tuple["Tree", ...]  # a name, a literal, or an op's name with its arguments

_SHORT = ("add", "sub", "mul", "div", "neg", "pow", "invert")  # written as operators

UPDATE = "update"  # what the learning rate multiplies; no slot or hyperparameter may have this name


class Assignment(NamedTuple):
    """One line: `target` becomes the value of `tree`.

    `target` is a register (``x3``), `update`, a slot, or ``p``. For ``p`` the tree is the update, of which the
    parameter loses `lr` times; `stores` tells slots and parameter from intermediate names.
    """

    target: str
    tree: Tree
    stores: bool


def assignments(
    program: Program, limit: int = 100, *, name_update: bool = True, as_formula: bool = False
) -> list[Assignment]:
    """The live part of `program`, in an order in which it can be carried out one line after the other.

    Args:
        program: what to write; its fallback is not included.
        limit: about how many characters a line may have before a part of it gets a name of its own.
        name_update: give the update a line of its own even if it is short.
        as_formula: lines become formulas, in which an op's sympy meaning may repeat an argument; what is repeated
            gets a name.
    """
    draft = _Draft(program, limit, name_update, as_formula)
    direct: frozenset[str] = frozenset()
    lines = draft.ordered(direct)
    for slot in program.live_state:
        better = draft.ordered(direct | {slot.name})
        if better is not None:
            direct, lines = direct | {slot.name}, better
    assert lines is not None  # without direct assignments nothing can be circular
    return lines


def mentions(op: Op, argument: int) -> int:
    """How often the sympy meaning of `op` writes down an argument; 1 if it has none."""
    return max(1, (op.sympy or "").count(f"{{{argument}}}"))


class _Unit(NamedTuple):
    """A line in the making, with what it reads: registers, and old values of slots and of the parameter."""

    line: Assignment
    registers: frozenset[int]
    old: frozenset[str]
    position: int
    register: int | None = None  # what it defines


class _Draft:
    def __init__(self, program: Program, limit: int, name_update: bool, as_formula: bool) -> None:
        self.program, self.limit = program, limit
        live, following = program.live, dict(zip((s.name for s in program.state), program.next_state, strict=True))
        self.following = {s.name: following[s.name] for s in program.live_state if following[s.name] != s.name}
        uses = Counter(a for a in (*self.following.values(), program.update) if type(a) is int)
        for op, args in (program.body[i] for i in live.instructions):
            for n, arg in enumerate(args):
                if type(arg) is int:
                    uses[arg] += mentions(OPS[op], n) if as_formula else 1
        self.named = {i for i in live.instructions if uses[i] > 1 and not self._is_trivial(i)}
        if name_update and type(program.update) is int:
            self.named.add(program.update)
        self._shorten()
        self.stored = frozenset({"p", *self.following})

    def _is_trivial(self, index: int) -> bool:
        """Whether writing it twice is clearer than naming it, as in ``1 - beta``."""
        args = self.program.body[index].args
        return index in self.program.shared and len(args) < 3 and not any(type(a) is int for a in args)

    def _shorten(self) -> None:
        """Name the longest parts of lines that would grow beyond the limit."""
        length: dict[int, int] = {}

        def of(arg: Arg) -> int:
            if type(arg) is int:
                return 4 if arg in self.named else length[arg]
            return len(repr(arg.value)) if type(arg) is Const else len(str(arg))

        for index in self.program.live.instructions:
            op, args = self.program.body[index]
            own = 1 if op in _SHORT else len(op)
            while (total := own + sum(of(a) for a in args) + 2 * len(args) - (op in _SHORT)) > self.limit:
                parts = [a for a in args if type(a) is int and a not in self.named]
                if not parts:
                    break
                self.named.add(max(parts, key=of))
            length[index] = total

    def ordered(self, direct: frozenset[str]) -> list[Assignment] | None:
        """The lines if the slots `direct` are assigned where they are computed; None if that is circular."""
        units = self._units(direct)
        defined = {u.register: n for n, u in enumerate(units) if u.register is not None}
        stores = {u.line.target: n for n, u in enumerate(units) if u.line.stores}
        before: list[set[int]] = [{defined[r] for r in u.registers} for u in units]
        for n, unit in enumerate(units):
            for name in unit.old & stores.keys():
                if stores[name] != n:
                    before[stores[name]].add(n)
        after: list[list[int]] = [[] for _ in units]
        for n, needed in enumerate(before):
            for other in needed:
                after[other].append(n)
        missing = [len(needed) for needed in before]
        ready = [(units[n].position, n) for n, count in enumerate(missing) if not count]
        heapq.heapify(ready)
        lines = []
        while ready:
            _, n = heapq.heappop(ready)
            lines.append(units[n].line)
            for other in after[n]:
                missing[other] -= 1
                if not missing[other]:
                    heapq.heappush(ready, (units[other].position, other))
        return lines if len(lines) == len(units) else None

    def _units(self, direct: frozenset[str]) -> list[_Unit]:
        size, update = len(self.program.body), self.program.update
        named = set(self.named)
        owner: dict[int, str] = {}
        fresh: dict[str, int] = {}
        for name, arg in self.following.items():
            if name not in direct:
                if type(arg) is int:
                    named.add(arg)
                else:  # a copy of something that another line may overwrite
                    fresh[name] = size + len(fresh)
            elif type(arg) is int and arg in named:
                owner.setdefault(arg, name)
        names = {i: owner.get(i, UPDATE if i == update else f"x{i}") for i in named}
        names |= {i: f"x{i}" for i in fresh.values()}

        def unit(target: str, arg: Arg, position: int, register: int | None, stores: bool) -> _Unit:
            registers: set[int] = set()
            old: set[str] = set()

            def tree(arg: Arg, top: bool) -> Tree:
                if type(arg) is Const:
                    return arg.value
                if type(arg) is str:
                    old.update({arg} & self.stored)
                    return arg
                assert type(arg) is int
                if not top and arg in named:
                    registers.add(arg)
                    return names[arg]
                op, args = self.program.body[arg]
                return (op, *(tree(a, False) for a in args))

            value = tree(arg, register is not None and register < size)
            if target == "p":
                old.add("p")
            return _Unit(Assignment(target, value, stores), frozenset(registers), frozenset(old), position, register)

        units = [unit(names[i], i, i, i, i in owner) for i in sorted(named)]
        for name, arg in self.following.items():
            if name in fresh:
                units.append(unit(names[fresh[name]], arg, size, fresh[name], False))
                line = Assignment(name, names[fresh[name]], True)
                units.append(_Unit(line, frozenset({fresh[name]}), frozenset(), size))
            elif type(arg) is not int or owner.get(arg) != name:
                units.append(unit(name, arg, arg if type(arg) is int else size, None, True))
        return [*units, unit("p", update, size + 1, None, True)]
