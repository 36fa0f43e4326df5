"""Step many programs at once: what programs have in common is computed in one call for all of them.

Candidates of a search descend from each other, so most statements of one are statements of many: an average of the
gradient, its square, a root. Statements are numbered across programs by their structure, with numbers such as decay
rates left open. Programs are then ordered like the words of a dictionary, most frequent statements first: programs that
share a statement, given all more frequent ones, are neighbours, and one call on their stretch of the arena serves them.
An argument is at least as frequent as any statement that reads it, so it is always computed before, on a stretch that
contains the reader's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optforge.primitives import Kind
from optforge.primitives.op import namespace
from optforge.primitives.ops import OPS
from optforge.search.training.population.listing import Listing, Table
from optforge.search.training.population.replay import Replay
from optforge.search.training.population.segments import Segments

LEAVES = ("g", "p", "lr", "global_norm")


class MergedRules:
    """The rules of many programs over one arena ``[seeds, members, elements]``, updated in place.

    Args:
        listings: programs in dictionary order.
        words: their slots and statements, see `dictionary_order`.
        table: numbers of everything.
        counts: number of members of each program; they follow each other.
        lr: learning rate of each member, ``[members]``.
        arena, gradient: ``[seeds, members, elements]``; both are read and `arena` is updated at each step.
        sizes: number of elements of each parameter of a model.
        steps: length of the run.
    """

    def __init__(
        self,
        listings: Sequence[Listing],
        words: Sequence[Sequence[int]],
        table: Table,
        counts: Sequence[int],
        lr: Tensor,
        arena: Tensor,
        gradient: Tensor,
        sizes: Sequence[int],
        steps: int,
    ) -> None:
        self.listings, self.words, self.steps = listings, words, steps
        self.arena, self.gradient, self.lr = arena, gradient, lr[:, None]
        self.numbers = {name: table.setdefault(name, len(table)) for name in LEAVES}
        self.leaves = {number: name for name, number in self.numbers.items()}
        self.segments = Segments(sizes, arena.device)
        self.rows = [0]
        for count in counts:
            self.rows.append(self.rows[-1] + count)
        self.where: list[dict[int, tuple[str, int, int]]] = [{} for _ in listings]  # name and rows of each value
        self.per_parameter: set[int] = set()
        self.lines: list[str] = []
        self.constants: dict[str, Tensor] = {}
        self.columns: list[Tensor] = []  # numbers known in advance, [steps] or [steps, rows, 1]
        self.slots: list[tuple[int, int, int]] = []  # number, first and last program of each piece of state
        self.state: list[Tensor] = []
        self.sliced: dict[tuple[str, int, int], str] = {}
        self.updates: list[str] = []
        self._emit(0, len(listings), 0)
        self._emit_updates()
        following = [self._following(*slot) for slot in self.slots]
        self._run = self._define(following)
        self.replays = arena.device.type == "cuda"
        self._replay = Replay(self._in_place, arena.device)
        self.known = list(zip(*(c.unbind(0) for c in self.columns), strict=True)) or [()] * steps

    def step(self, index: int, global_norm: Tensor | None) -> None:
        """Apply step `index`, counted from 0."""
        if not self.state:
            self.state = [self._initial(*slot) for slot in self.slots]
        if not self.replays:
            self.state = self._run(self.state, self.known[index], global_norm, self.segments)
            return
        self._replay(*self.known[index], *([] if global_norm is None else [global_norm]))

    def _in_place(self, *now: Tensor) -> None:
        """One step on tensors that stay where they are: numbers known in advance, and the norm if it is needed."""
        known = len(self.columns)
        norm = now[known] if len(now) > known else None
        following = self._run(self.state, now[:known], norm, self.segments)
        places = {x.untyped_storage().data_ptr() for x in self.state}  # a slot may become what another one was
        following = [x.clone() if x.untyped_storage().data_ptr() in places else x for x in following]
        for state, value in zip(self.state, following, strict=True):
            state.copy_(value)

    # what follows writes the function that a step calls

    def _emit(self, first: int, last: int, depth: int) -> None:
        """Emit what programs `first` to `last` do after their common first `depth` items."""
        while first < last:
            if len(self.words[first]) == depth:
                first += 1
                continue
            item, end = self.words[first][depth], first + 1
            while end < last and len(self.words[end]) > depth and self.words[end][depth] == item:
                end += 1
            if item in self.listings[first].slots:
                self._emit_slot(item, first, end)
            else:
                self._emit_statement(item, first, end)
            self._emit(first, end, depth + 1)
            first = end

    def _place(self, item: int, name: str, first: int, last: int) -> None:
        for program in range(first, last):
            self.where[program][item] = (name, self.rows[first], self.rows[last])

    def _emit_slot(self, item: int, first: int, last: int) -> None:
        self._place(item, f"s{len(self.slots)}", first, last)
        self.slots.append((item, first, last))
        program = self.listings[first].program
        if program.state[self.listings[first].slots[item]].kind is Kind.SCALAR:
            self.per_parameter.add(item)

    def _emit_statement(self, item: int, first: int, last: int) -> None:
        _, op, args, kind = self.listings[first].statements[item]
        expressions = []
        for position, arg in enumerate(args):
            text = (
                self._known(item, position, first, last) if isinstance(arg, Tensor) else self._value(arg, first, last)
            )
            spread = arg in self.per_parameter if not isinstance(arg, Tensor) else False
            if spread and kind is Kind.TENSOR and not OPS[op].reduces:
                text = f"segments.spread({text})"
            expressions.append(text)
        name = f"x{len(self.lines)}"
        if OPS[op].reduces:
            self.lines.append(f"{name} = segments.reduce(f_{op}, {', '.join(expressions)})")
            self.per_parameter.add(item)
        else:
            self.lines.append(f"{name} = {OPS[op].torch.format(*expressions)}")
            if kind is Kind.SCALAR and any(not isinstance(a, Tensor) and a in self.per_parameter for a in args):
                self.per_parameter.add(item)
        self._place(item, name, first, last)

    def _known(self, item: int, position: int, first: int, last: int) -> str:
        """A number known in advance: one for all these programs, or a column of one for each member."""
        values = [self.listings[i].statements[item].args[position] for i in range(first, last)]
        return self._column([v for v in values if isinstance(v, Tensor)], first, last)

    def _column(self, values: Sequence[Tensor], first: int, last: int) -> str:
        table = torch.stack([v.expand(self.steps) for v in values], dim=1)
        if bool((table == table[:, :1]).all()):
            column = table[:, 0]
        else:
            counts = torch.tensor([self.rows[i + 1] - self.rows[i] for i in range(first, last)])
            column = table.repeat_interleave(counts, dim=1)[..., None]
        self.columns.append(column.to(self.arena.device, self.arena.dtype))
        return f"k[{len(self.columns) - 1}]"

    def _value(self, item: int, first: int, last: int) -> str:
        """Expression of a leaf, slot or statement on the rows of programs `first` to `last`."""
        low, high = self.rows[first], self.rows[last]
        if item not in self.where[first]:
            return self._leaf(item, low, high)
        name, begin, end = self.where[first][item]
        if (begin, end) == (low, high):
            return name
        key = (name, low, high)
        if key not in self.sliced:
            self.sliced[key] = f"x{len(self.lines)}"
            self.lines.append(f"{self.sliced[key]} = {name}[..., {low - begin}:{high - begin}, :]")
        return self.sliced[key]

    def _leaf(self, item: int, low: int, high: int) -> str:
        """An input: views of buffers that stay where they are are made once."""
        name = self.leaves[item]
        if name == "global_norm":
            return f"norm[:, {low}:{high}]"
        source = {"g": self.gradient, "p": self.arena}.get(name)
        constant = f"{name}_{low}_{high}"
        self.constants[constant] = self.lr[low:high] if source is None else source[:, low:high]
        return constant

    def _emit_updates(self) -> None:
        for first, last in self._runs([each.update for each in self.listings], 0, len(self.listings)):
            low, high = self.rows[first], self.rows[last]
            update = self._result(self.listings[first].update, first, last)
            p, lr = (self._leaf(self.numbers[name], low, high) for name in ("p", "lr"))
            self.updates.append(f"{p}.sub_({lr} * {update})")

    def _result(self, value: int | Tensor, first: int, last: int) -> str:
        return self._column([value], first, last) if isinstance(value, Tensor) else self._value(value, first, last)

    def _runs(self, values: Sequence[int | Tensor], first: int, last: int) -> list[tuple[int, int]]:
        """Stretches of neighbouring programs whose value is one and the same tensor."""
        found: list[tuple[int, int]] = []
        for program in range(first, last):
            value = values[program - first]
            if found and not isinstance(value, Tensor):
                begin = found[-1][0]
                before = values[begin - first]
                if not isinstance(before, Tensor) and before == value:
                    place = self.where[begin].get(value)
                    if place == self.where[program].get(value):
                        found[-1] = (begin, program + 1)
                        continue
            found.append((program, program + 1))
        return found

    def _following(self, item: int, first: int, last: int) -> str:
        """Expression of a slot's next value over the programs that share it."""
        values = [self.listings[i].following[self.listings[i].slots[item]] for i in range(first, last)]
        pieces = []
        for begin, end in self._runs(values, first, last):
            value = values[begin - first]
            text = self._result(value, begin, end)
            like = self._value(item, begin, end)
            fresh = not isinstance(value, Tensor) and value in self.where[begin]
            # what is no fresh result may be a view of the arena or the gradient, which change under it
            pieces.append(f"{text}.expand_as({like})" + ("" if fresh else ".clone()"))
        return pieces[0] if len(pieces) == 1 else f"torch.cat([{', '.join(pieces)}], dim=1)"

    def _define(self, following: Sequence[str]) -> Any:
        slots = "".join(f"s{i}, " for i in range(len(self.slots)))
        unpack = [f"{slots} = state"] if slots else []
        body = [*unpack, *self.lines, f"following = [{', '.join(following)}]", *self.updates, "return following"]
        code = "def step(state, k, norm, segments):\n" + "\n".join(f"    {line}" for line in body)
        ops = {s.op for each in self.listings for s in each.statements.values()}
        scope = namespace() | self.constants | {f"f_{op}": OPS[op].function for op in ops if OPS[op].reduces}
        exec(compile(code, "<optforge population>", "exec"), scope)
        return scope["step"]

    def _initial(self, item: int, first: int, last: int) -> Tensor:
        slot = self.listings[first].program.state[self.listings[first].slots[item]]
        rows = slice(self.rows[first], self.rows[last])
        if isinstance(slot.init, str):
            return (self.arena if slot.init == "p" else self.gradient)[:, rows].clone()
        width = self.arena.shape[-1] if slot.kind is Kind.TENSOR else len(self.segments.sizes)
        return self.arena.new_full((self.arena.shape[0], rows.stop - rows.start, width), slot.init)
