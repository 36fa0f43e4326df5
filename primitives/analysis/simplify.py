"""Simplification: rewrite a program by sound rules until none applies.

Together with liveness through the state loop this turns the raw output of an evolutionary search into what a person
would write down.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import torch

from optforge.primitives.analysis.rules import RULES, Rule
from optforge.primitives.kinds import Kind, ProgramError
from optforge.primitives.ops import OPS, Op
from optforge.primitives.program import MAX_INSTRUCTIONS, Arg, Const, Instr, Program, fold

Pattern = str | float | tuple["Pattern", ...]  # a variable, a number, or an op with its arguments
Node = int


class Step(NamedTuple):
    """One application of a rule, for those who want to follow a simplification."""

    left: str
    right: str


def simplify(program: Program, steps: list[Step] | None = None) -> Program:
    """An equivalent program that is not longer, without dead code, and simpler by `primitives.analysis.rules`.

    Equality is that of real arithmetic where the original is defined; rounding may differ in the last digits. If
    `steps` is given, the applied rules are appended to it.
    """
    current = program.pruned()
    for _ in range(20):  # fewer slots can make new rules apply; this is a bound, not a schedule
        simpler = _rewrite(current, steps if steps is not None else [])
        if len(simpler.body) > len(current.body) or simpler == current:
            break
        current = simpler
    if current.fallback is not None:
        fallback = simplify(current.fallback, steps)
        current = Program(current.state, current.hypers, current.body, current.update, current.next_state, fallback)
    return current


def _rewrite(program: Program, steps: list[Step]) -> Program:
    """One pass of the rules, with slots that provably always hold the same value made one, or that number.

    Slots are assumed equal if they start equal, and to stay what they are at first if that is a number; assumptions are
    kept where they imply themselves, that is where under them next values are the same expression, and dropped where
    not. A number stands for a whole tensor only if it is 0, of which every sum and norm is 0, too.
    """
    same: dict[object, str] = {}
    twin = {slot.name: same.setdefault((slot.kind, slot.init), slot.name) for slot in program.state}
    rest = {
        s.name: s.init for s in program.state if isinstance(s.init, float) and (s.init == 0 or s.kind is Kind.SCALAR)
    }
    while True:
        taken: list[Step] = []
        graph = _Graph(program, taken, twin, rest)
        try:
            update, following, _ = fold(program, graph.leaf, graph.apply)
            simpler = graph.program(update, following)
        except (KeyError, ProgramError):  # an op, or the program, that a number does not fit
            if not rest:
                raise
            rest = {}
            continue
        same = {}
        values = list(zip(program.state, following, strict=True))
        refined = {slot.name: same.setdefault((twin[slot.name], value), slot.name) for slot, value in values}
        still = {s.name: rest[s.name] for s, v in values if s.name in rest and graph.literal(v) == rest[s.name]}
        if refined == twin and still == rest:
            steps.extend(taken)
            return simpler.pruned()
        twin, rest = refined, still


class _Graph:
    """Expressions of one program as numbered nodes; equal expressions have equal numbers (hash-consing)."""

    def __init__(self, program: Program, steps: list[Step], twin: dict[str, str], rest: dict[str, float]) -> None:
        self.source, self.steps, self.twin, self.rest = program, steps, twin, rest
        self.numbers: dict[tuple[object, ...], Node] = {}
        self.nodes: list[tuple[object, ...]] = []  # ("leaf", name), ("const", value) or (op, *children)
        self.kinds: list[Kind] = []
        self.rewritten: dict[Node, Node] = {}

    def leaf(self, value: str | float) -> Node:
        if isinstance(value, str):
            if value in self.rest:
                return self.constant(self.rest[value])
            name = self.twin.get(value, value)
            return self._number(("leaf", name), self.source.names[name])
        return self.constant(value)

    def constant(self, value: float) -> Node:
        return self._number(("const", value + 0.0), Kind.SCALAR)

    def apply(self, op: Op, args: list[Node], _: int) -> Node:
        return self.make(op.name, args)

    def _number(self, node: tuple[object, ...], kind: Kind) -> Node:
        if node not in self.numbers:
            self.numbers[node] = len(self.nodes)
            self.nodes.append(node)
            self.kinds.append(kind)
        return self.numbers[node]

    def literal(self, node: Node) -> float | None:
        """The number that a node is, if it is one."""
        what, *rest = self.nodes[node]
        return rest[0] if what == "const" else None  # type: ignore[return-value]

    def make(self, op: str, args: list[Node]) -> Node:
        """The node for ``op(*args)``, rewritten as far as the rules go."""
        if OPS[op].commutative:
            args = sorted(args, key=lambda n: (self.literal(n) is not None, n))  # literals last
        kind = OPS[op].result[tuple(self.kinds[a] for a in args)]
        literals = [self.literal(a) for a in args]
        if all(value is not None for value in literals):
            folded = _evaluate(op, *literals)
            if math.isfinite(folded):
                return self.constant(folded)
        node = self._number((op, *args), kind)
        if node not in self.rewritten:
            self.rewritten[node] = node  # while rules are tried, so that none can loop
            self.rewritten[node] = self._rewrite(node)
        return self.rewritten[node]

    def _rewrite(self, node: Node) -> Node:
        for rule, left, right in _by_op()[str(self.nodes[node][0])]:
            for bound in self._match(left, node, {}):
                found = ((n, self.literal(node)) for n, node in bound.items() if n in ("a", "b"))
                numbers = {n: value for n, value in found if value is not None}
                if not rule.where(numbers):
                    continue
                values = {name: function(numbers) for name, function in rule.compute}
                if not all(map(math.isfinite, values.values())):
                    continue
                try:
                    replaced = self._build(right, bound, values)
                except KeyError:  # the right side's kinds do not fit
                    continue
                if self.kinds[replaced] is self.kinds[node]:
                    self.steps.append(Step(rule.left, rule.right))
                    return replaced
        return node

    def _match(self, pattern: Pattern, node: Node, bound: dict[str, Node]) -> Iterator[dict[str, Node]]:
        """All ways in which `pattern` can be read as `node`."""
        if isinstance(pattern, str):
            if pattern in ("a", "b") and self.literal(node) is None:
                return
            if bound.get(pattern, node) == node:
                yield bound | {pattern: node}
        elif isinstance(pattern, float):
            if self.literal(node) == pattern:
                yield bound
        elif self.nodes[node][0] == pattern[0]:
            children: list[Node] = list(self.nodes[node][1:])  # type: ignore[arg-type]
            orders = [children, children[::-1]] if OPS[str(pattern[0])].commutative else [children]
            for order in orders:
                yield from self._match_all(pattern[1:], order, bound)

    def _match_all(
        self, patterns: tuple[Pattern, ...], nodes: list[Node], bound: dict[str, Node]
    ) -> Iterator[dict[str, Node]]:
        if not patterns:
            yield bound
            return
        for found in self._match(patterns[0], nodes[0], bound):
            yield from self._match_all(patterns[1:], nodes[1:], found)

    def _build(self, pattern: Pattern, bound: dict[str, Node], values: dict[str, float]) -> Node:
        if isinstance(pattern, float):
            return self.constant(pattern)
        if isinstance(pattern, str):
            return self.constant(values[pattern]) if pattern in values else bound[pattern]
        return self.make(str(pattern[0]), [self._build(p, bound, values) for p in pattern[1:]])

    def program(self, update: Node, following: tuple[Node, ...]) -> Program:
        """The program that computes these nodes, each expression once."""
        body: list[Instr] = []
        done: dict[Node, Arg] = {}

        def emit(root: Node) -> Arg:
            todo = [root]
            while todo:
                node = todo[-1]
                what, *rest = self.nodes[node]
                if node in done:
                    todo.pop()
                elif what in ("leaf", "const"):
                    done[node] = rest[0] if what == "leaf" else Const(rest[0])  # type: ignore[assignment, arg-type]
                elif missing := [c for c in rest if c not in done]:
                    todo.extend(missing)  # type: ignore[arg-type]
                else:
                    body.append(Instr(str(what), tuple(done[c] for c in rest)))  # type: ignore[index]
                    done[node] = len(body) - 1
            return done[root]

        names = [slot.name for slot in self.source.state]  # a slot at rest keeps itself, and nobody reads it
        outputs = [n if n in self.rest else emit(node) for n, node in zip(names, following, strict=True)]
        outputs.append(emit(update))
        if len(body) > MAX_INSTRUCTIONS:
            raise ProgramError(f"the simplified program has {len(body)} instructions")
        source = self.source
        return Program(source.state, source.hypers, tuple(body), outputs[-1], tuple(outputs[:-1]), source.fallback)


@lru_cache(maxsize=65536)
def _evaluate(op: str, *values: float) -> float:
    return float(OPS[op].function(*(torch.tensor(v, dtype=torch.float64) for v in values)))


@cache
def _by_op() -> dict[str, list[tuple[Rule, Pattern, Pattern]]]:
    """Parsed rules by the outermost op of their left side."""
    table: dict[str, list[tuple[Rule, Pattern, Pattern]]] = defaultdict(list)
    for rule in RULES:
        left = parse_pattern(rule.left)
        assert isinstance(left, tuple)
        table[str(left[0])].append((rule, left, parse_pattern(rule.right)))
    return table


def parse_pattern(text: str) -> Pattern:
    """Read ``op(pattern, …)``, a variable or a number."""
    text = text.strip()
    if not text.endswith(")"):
        try:
            return float(text)
        except ValueError:
            return text
    op, _, inside = text[:-1].partition("(")
    parts, depth, start = [], 0, 0
    for i, character in enumerate(inside):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(inside[start:i])
            start = i + 1
    parts.append(inside[start:])
    if len(parts) != OPS[op].arity:
        raise ProgramError(f"rule pattern {text!r}: {op} takes {OPS[op].arity} argument(s)")
    return (op, *(parse_pattern(part) for part in parts))
