"""Programs as numbered statements: what programs have in common has the same number in all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optforge.primitives import Kind, Program, fold
from optforge.primitives.ops import Op

Table = dict[object, int]


class Statement(NamedTuple):
    """One statement of one program: its number across programs, its op, and its arguments.

    An argument is the number of a leaf, slot or statement, or a tensor: a number known in advance, for every step.
    """

    number: int
    op: str
    args: tuple[int | Tensor, ...]
    kind: Kind


class Listing(NamedTuple):
    """A program as numbered statements and slots."""

    program: Program
    slots: dict[int, int]  # number across programs -> position in the program's state
    statements: dict[int, Statement]
    update: int | Tensor
    following: tuple[int | Tensor, ...]


def listing(program: Program, steps: int, table: Table) -> Listing:
    """Number the live parts of a program; equal structure gets equal numbers in one `table`."""
    known_names = frozenset(h.name for h in program.hypers) | {"step", "progress"}
    known = program.depends_only_on(known_names)
    step = torch.arange(1, steps + 1, dtype=torch.float64)
    values = {n: torch.tensor(v, dtype=torch.float64) for n, v in program.defaults().items()}
    values |= {"step": step, "progress": step / steps}

    def number(thing: object) -> int:
        return table.setdefault(thing, len(table))

    def once(thing: object, seen: Counter[object]) -> int:
        seen[thing] += 1
        return number((thing, seen[thing]))  # the second of two like statements is another one

    def walk(slot_numbers: dict[str, int]) -> tuple[Any, Any, dict[int, Statement]]:
        seen: Counter[object] = Counter()
        statements: dict[int, Statement] = {}

        def leaf(value: str | float) -> int | Tensor:
            if isinstance(value, str):
                return slot_numbers[value] if value in slot_numbers else values.get(value, number(value))
            return torch.tensor(value, dtype=torch.float64)

        def apply(op: Op, args: list[Any], index: int) -> int | Tensor:
            if index in known:
                return op.function(*args)
            shape = tuple("known" if isinstance(a, Tensor) else a for a in args)
            found = once((op.name, program.kinds[index], shape), seen)
            statements[found] = Statement(found, op.name, tuple(args), program.kinds[index])
            return found

        update, following, _ = fold(program, leaf, apply)
        return update, following, statements

    # a slot is known by what updates it, which is known by what slots it reads: two rounds tell most apart
    colours: dict[str, int] = {s.name: number((s.kind, s.init)) for s in program.live_state}
    for _ in range(2):
        _, following, _ = walk(colours)
        kept = zip(program.state, following, strict=True)
        colours = {
            s.name: number((colours[s.name], "known" if isinstance(x, Tensor) else x))
            for s, x in kept
            if s.name in colours
        }
    seen: Counter[object] = Counter()
    slots = {name: once(("slot", colour), seen) for name, colour in colours.items()}
    update, following, statements = walk(slots)
    position = {s.name: i for i, s in enumerate(program.state)}
    return Listing(program, {n: position[name] for name, n in slots.items()}, statements, update, following)


def dictionary_order(listings: Sequence[Listing]) -> tuple[list[int], list[list[int]]]:
    """The order of the programs, and for each of them, in that order, its slots and statements by frequency."""
    frequency = Counter(n for each in listings for n in (*each.slots, *each.statements))
    words = [sorted((*each.slots, *each.statements), key=lambda n: (-frequency[n], n)) for each in listings]
    keys = [[(-frequency[n], n) for n in word] for word in words]
    order = sorted(range(len(listings)), key=keys.__getitem__)
    return order, [words[i] for i in order]
