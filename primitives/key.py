"""Structural key: programs that are the same up to names, order, dead code and repetition share it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from optforge.primitives.ops import OPS
from optforge.primitives.statements import Arg, Const

if TYPE_CHECKING:
    from optforge.primitives.program import Program


def structural_key(program: Program) -> str:
    """Canonical hash of a program's meaning as far as its structure shows it, 32 hexadecimal digits.

    Ignores dead code (through the state loop), names, statement order, the order of commutative arguments and
    repeated sub-expressions; folds constants, taking each hyperparameter at its default; merges slots that provably
    always hold the same value. Equal keys mean equal behaviour; programs that are equal for deeper, algebraic reasons
    may still differ in key.

    The state makes a program a graph with loops. Slots are told apart as states of an automaton are, by partition
    refinement: start from kind and initial value, then split by the expression that updates a slot, until nothing
    splits. What is hashed in the end is the graph over the classes, with classes named in an order that depends on
    their content alone.
    """
    following = dict(zip((s.name for s in program.state), program.next_state, strict=True))
    label = {s.name: f"slot {s.kind:d}:{s.init}" for s in program.live_state}
    names = {h.name: repr(h.default) for h in program.hypers}  # in a key, a hyperparameter is its default
    classes = len(set(label.values()))
    feeding = _feeding(program, [following[slot] for slot in label]) if classes < len(label) else ()
    while classes < len(label):
        texts = _expressions(program, feeding, names | label)
        finer = {slot: _digest(f"{old}={_text(following[slot], texts)}") for slot, old in label.items()}
        if len(set(finer.values())) == classes:
            break  # and keep the labels that split last: their depth must not depend on how often a slot is repeated
        label, classes = finer, len(set(finer.values()))
    order = {text: f"s{i}" for i, text in enumerate(sorted(set(label.values())))}
    names |= {slot: order[text] for slot, text in label.items()}
    texts = _expressions(program, program.live.instructions, names)
    graph = {f"{names[s.name]}:{s.kind:d}:{s.init}={_text(following[s.name], texts)}" for s in program.live_state}
    fallback = program.fallback.key if program.fallback is not None and program.needs_matrix else ""
    whole = ";".join([_text(program.update, texts), *sorted(graph), fallback])
    return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()


def _feeding(program: Program, args: Iterable[Arg]) -> list[int]:
    """Live instructions that enter `args`, in order."""
    found = {arg for arg in args if type(arg) is int}
    body = program.body
    for index in reversed(program.live.instructions):
        if index in found:
            found.update([a for a in body[index].args if type(a) is int])
    return sorted(found)


def _expressions(program: Program, which: Iterable[int], names: dict[str, str]) -> dict[Arg, str]:
    """For each instruction in `which` a text that equals another's exactly when the expressions are equal; and `names`.

    They are in order, and contain whatever enters one of them.
    """
    texts: dict[Arg, str] = {}
    texts.update(names)
    body = program.body
    for index in which:
        op, args = body[index]
        texts[index] = _expression(op, *[
            texts[a] if type(a) is int else repr(a.value) if type(a) is Const else names.get(a, a)  # type: ignore[arg-type]
            for a in args
        ])  # fmt: skip
    return texts


@lru_cache(maxsize=2**16)  # relatives have most of their expressions in common
def _expression(op: str, *parts: str) -> str:
    """The text of one operation on texts: a number if these are, else a digest."""
    if all([part[0] in _NUMERIC for part in parts]) and (number := _constant(op, *parts)):
        return number
    ordered = sorted(parts) if OPS[op].commutative else parts
    return _digest(f"{op}({','.join(ordered)})")


_NUMERIC = frozenset("-0123456789")


def _leaf(arg: Arg) -> str:
    return arg if type(arg) is str else repr(arg.value)  # type: ignore[union-attr]


def _digest(text: str) -> str:
    return "#" + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()  # never mistaken for a number


def _text(arg: Arg, texts: dict[Arg, str]) -> str:
    return texts.get(arg) or _leaf(arg)


def _constant(op: str, *numbers: str) -> str | None:
    """The result of `op` on literal numbers, or None if it is not finite (the expression is then kept as it is).

    A negative zero keeps its sign: what divides by it differs from what divides by zero.
    """
    value = float(OPS[op].function(*(torch.tensor(float(n), dtype=torch.float64) for n in numbers)))
    return repr(value) if math.isfinite(value) else None
