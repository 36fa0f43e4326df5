"""Derivatives of programs, as programs: how an update moves when one of its hyperparameters does.

Forward mode on the op table: a value v of a program gets a companion v̇, its derivative with respect to one
hyperparameter or to the signal `lr`, by the column `derivative` of that table. The result is an ordinary `Program`.

Where a row has a kink, the derivative is torch's. Deviation: that of a root at 0 is 0, where torch has infinity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optforge.primitives.builder import Builder, Expr
from optforge.primitives.kinds import SIGNALS, Kind, ProgramError, Slot
from optforge.primitives.op import PUSHED, Op
from optforge.primitives.ops import OPS
from optforge.primitives.parameters import ASIDE
from optforge.primitives.program import Arg, Const, Program, fold


class Extended(Builder):
    """A builder that goes on with the live statements of `program`: what it builds reads the same inputs.

    Args:
        program: what to begin with.

    Attributes:
        update: the result of the program.
        slots: its state, by name, each with its next value.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._kinds: dict[Any, Kind] = dict(SIGNALS)
        for hyper in program.hypers:
            self._hypers.append(hyper)
            self._kinds[hyper.name] = Kind.SCALAR
        self.slots: dict[str, Any] = {}
        self.update = self.include(program)

    def include(self, program: Program) -> Expr:
        """Add another program's live statements; returns its update. Slots of a name that is there are the same."""
        own = {s.name: self.slot(s.name, s.kind, s.init) for s in program.state if s.name not in self.slots}
        self.slots |= own
        names = {name: Expr(self, name) for name in program.names} | self.slots

        def leaf(value: str | float) -> Expr:
            return names[value] if isinstance(value, str) else Expr(self, Const(value))

        walked = fold(program, leaf, lambda op, args, _: self.op(op.name, *args))
        for slot, value in zip(program.state, walked.next_state, strict=True):
            if slot.name in own:
                own[slot.name].next = value
        return walked.update

    def slot(self, name: str, kind: Kind = Kind.TENSOR, init: float | str = 0.0) -> Any:
        """Declare a slot, as `Builder.slot` does."""
        self._kinds[name] = kind
        return super().slot(name, kind, init)

    def kind(self, x: Expr) -> Kind:
        """Shape of a value."""
        if type(x.arg) is Const:
            return Kind.SCALAR
        if x.arg not in self._kinds:
            op, args = list(self._body)[x.arg]  # type: ignore[index]
            self._kinds[x.arg] = OPS[op].result[tuple(self.kind(Expr(self, a)) for a in args)]
        return self._kinds[x.arg]

    def fresh(self, wish: str) -> str:
        """`wish`, or something like it, as a name that nothing has."""
        name, count = wish[:40], 1
        while name in self._kinds:
            count += 1
            name = f"{wish[:36]}_{count}"
        return name

    def of_kind(self, x: Expr, like: Expr) -> Expr:
        """`x` spread to the shape of `like`."""
        return x if self.kind(x) == self.kind(like) else x + 0.0 * like


def differentiate(b: Extended, wrt: str, seeds: dict[str, Expr] | None = None) -> dict[Arg, Expr]:
    """Derivatives of what `b` has so far with respect to a hyperparameter or signal, as further statements of `b`.

    `seeds` are derivatives of other names, such as of slots that `wrt` has moved in earlier steps. What is not in the
    result has derivative 0.
    """
    found: dict[Arg, Expr] = {wrt: Expr(b, Const(1.0))}
    found.update(seeds or {})
    done: set[int] = set()

    def of(arg: Arg) -> Expr | None:
        if type(arg) is int and arg not in done:
            done.add(arg)
            op, args = list(b._body)[arg]
            dots = [of(a) for a in args]
            if any(d is not None for d in dots):
                value = _tangent(b, OPS[op], arg, [Expr(b, a) for a in args], dots, of)
                if value is not None:
                    found[arg] = value
        return found.get(arg)

    for index in range(len(b._body)):
        of(index)
    return found


def _tangent(
    b: Extended, op: Op, index: int, args: list[Expr], dots: list[Expr | None], of: Callable[[Arg], Expr | None]
) -> Expr | None:
    if op.derivative is None:
        moves = [0.0 * x if d is None else b.of_kind(d, x) for x, d in zip(args, dots, strict=True)]
        return b.op(PUSHED + op.name, *args, *moves)
    parts = op.derivative(b, Expr(b, index), *args)
    if isinstance(parts, Expr):
        return of(parts.arg)
    total: Expr | None = None
    # parts are pruned where they are not needed: those of `pow` may not even be finite
    for x, dot, part in zip(args, dots, parts, strict=True):
        if dot is not None and part is not None:
            whole = not isinstance(part, float | Expr)
            term = part(b.of_kind(dot, x)) if whole else dot if part == 1.0 else part * dot
            total = term if total is None else total + term
    return total


def derivative(program: Program, wrt: str, *, memory: bool = False) -> Program:
    """The program whose update is the derivative of the update of `program` with respect to `wrt`.

    With respect to `lr` it is that of the whole step ``lr · update``. With `memory`, the state of the result also has
    the derivative of each slot that depends on `wrt`: averages move with their decay in every step. The parameter
    counts as fixed. `ProgramError` if `program` has no `wrt`, or if its update does not depend on it.
    """
    if wrt != "lr" and wrt not in program.defaults():
        known = ", ".join(["lr", *program.defaults()])
        raise ProgramError(f"cannot learn {wrt!r}; choose from: {known}")
    b = Extended(program)
    seeds: dict[str, Expr] = {}
    tangents: dict[str, Any] = {}
    if memory:
        for slot in _depend(program, wrt):
            tangents[slot.name] = b.slot(b.fresh(f"{ASIDE}d_{slot.name}"), slot.kind)
        seeds = dict(tangents)
    dots = differentiate(b, wrt, seeds)
    for name, tangent in tangents.items():
        value = dots.get(b.slots[name].next.arg)
        tangent.next = b.of_kind(value, b.slots[name].next) if value is not None else 0.0 * b.slots[name]
    dot = dots.get(b.update.arg)
    if wrt == "lr":
        dot = b.update if dot is None else b.update + b.lr * dot
    if dot is None:
        raise ProgramError(f"cannot learn {wrt!r}: the update does not depend on it, or through signs only")
    return b.build(b.of_kind(dot, b.update)).pruned()


def _depend(program: Program, wrt: str) -> list[Slot]:
    """Live slots whose value depends on `wrt`, through any number of steps."""
    names = {wrt}
    while True:
        b = Extended(program)
        dots = differentiate(b, wrt, {n: Expr(b, n) for n in names - {wrt}})
        more = {name for name, slot in b.slots.items() if slot.next.arg in dots and name in program.live.names}
        if more <= names:
            return [slot for slot in program.state if slot.name in names]
        names |= more
