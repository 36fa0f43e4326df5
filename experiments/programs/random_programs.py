"""Random well-typed programs: what a search would start from if it started from nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

from optforge.primitives import OPS, SIGNALS, Const, Hyper, Instr, Kind, Program, Slot
from optforge.primitives.program import Arg

_LITERALS = (0.5, 1.0, 2.0, 0.1, 0.9, 0.99, 1e-8)


def random_program(rng: random.Random, ops: Sequence[str], statements: int = 20, slots: int = 3) -> Program:
    """A program of at most so many statements and slots over `ops`, right by construction.

    Young values are read more often than old ones, and what gives a tensor is drawn more often, so that about half of
    the statements are alive.
    """
    kinds = rng.choices((Kind.TENSOR, Kind.ROW, Kind.COL, Kind.SCALAR), (12, 1, 1, 2), k=rng.randint(0, slots))
    state = tuple(Slot(f"s{i}", kind) for i, kind in enumerate(kinds))
    hypers = tuple(Hyper(f"h{i}", round(rng.random(), 3)) for i in range(rng.randint(0, 2)))
    readable: dict[Kind, list[Arg]] = {kind: [] for kind in Kind}
    for name, kind in [*((h.name, Kind.SCALAR) for h in hypers), *SIGNALS.items(), *((s.name, s.kind) for s in state)]:
        readable[kind].append(name)

    def draw(kind: Kind) -> Arg:
        if kind is Kind.SCALAR and rng.random() < 0.5:
            return Const(rng.choice(_LITERALS) if rng.random() < 0.5 else round(rng.gauss(0, 1), 3))
        pool = readable[kind][-4:] if rng.random() < 0.6 else readable[kind]
        return rng.choice(pool)

    body: list[Instr] = []
    for _ in range(rng.randint(1, statements)):
        row = OPS[rng.choice(ops)]
        possible = [found for found in row.result if all(readable[k] or k is Kind.SCALAR for k in found)]
        whole = [found for found in possible if row.result[found] is Kind.TENSOR]
        if not possible:
            continue
        found = rng.choice(whole if whole and rng.random() < 0.7 else possible)
        body.append(Instr(row.name, tuple(draw(kind) for kind in found)))
        readable[row.result[found]].append(len(body) - 1)
    update = readable[Kind.TENSOR][-1]
    return Program(state, hypers, tuple(body), update, tuple(draw(slot.kind) for slot in state))
