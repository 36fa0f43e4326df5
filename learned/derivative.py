"""Derivatives of programs, as programs: how an update moves when one of its hyperparameters does.

Forward mode on the op table: a value v of a program gets a companion v̇, its derivative with respect to one
hyperparameter or to the signal `lr`, made of rows of the same table. The result is an ordinary `Program`: it runs,
compiles, simplifies and has a price as any other, and no graph is kept between steps.

Where a row has a kink, the derivative is torch's: 0 for signs and masks, shared at ties of max and min. Deviation:
that of a root at 0 is 0, where torch has infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from primitives.builder import Builder, Expr
from primitives.kinds import SIGNALS, Kind, ProgramError, Slot
from primitives.op import Op
from primitives.ops import OPS
from primitives.parameters import ASIDE
from primitives.program import Arg, Const, Program, fold

_LN2, _LN10 = math.log(2), math.log(10)


def _above(b: Builder, x: Expr, y: Expr) -> Expr:
    """1 where x > y, ½ at ties, else 0."""
    return (1.0 + b.less(y, x) - b.less(x, y)) * 0.5


# Partial derivative with respect to each argument, of (builder, result, *arguments); None where it is 0.
PARTIAL: dict[str, Callable[..., tuple[Any, ...]]] = {
    "add": lambda b, r, x, y: (1.0, 1.0),
    "sub": lambda b, r, x, y: (1.0, -1.0),
    "mul": lambda b, r, x, y: (y, x),
    "outer": lambda b, r, x, y: (y, x),
    "div": lambda b, r, x, y: (1.0 / y, -(r / y)),
    "safe_div": lambda b, r, x, y: (b.safe_div(1.0, y), -b.safe_div(r, y)),
    "max": lambda b, r, x, y: (_above(b, x, y), _above(b, y, x)),
    "min": lambda b, r, x, y: (_above(b, y, x), _above(b, x, y)),
    "pow": lambda b, r, x, y: (y * b.pow(x, y - 1.0), r * b.log(x)),
    "lerp": lambda b, r, x, y, c: (1.0 - c, c, y - x),
    "neg": lambda b, r, x: (-1.0,),
    "abs": lambda b, r, x: (b.sign(x),),
    "sign": lambda b, r, x: (None,),
    "agree": lambda b, r, x, y: (None, None),
    "less": lambda b, r, x, y: (None, None),
    "square": lambda b, r, x: (2.0 * x,),
    "sqrt": lambda b, r, x: (b.safe_div(0.5, r),),
    "cube": lambda b, r, x: (3.0 * b.square(x),),
    "cbrt": lambda b, r, x: (b.safe_div(r, 3.0 * x),),
    "reciprocal": lambda b, r, x: (-b.square(r),),
    "invert": lambda b, r, x: (-1.0,),
    "exp": lambda b, r, x: (r,),
    "exp2": lambda b, r, x: (_LN2 * r,),
    "exp10": lambda b, r, x: (_LN10 * r,),
    "expm1": lambda b, r, x: (b.exp(x),),
    "log": lambda b, r, x: (1.0 / x,),
    "log2": lambda b, r, x: (1.0 / (_LN2 * x),),
    "log10": lambda b, r, x: (1.0 / (_LN10 * x),),
    "log1p": lambda b, r, x: (1.0 / (1.0 + x),),
    "sin": lambda b, r, x: (b.cos(x),),
    "cos": lambda b, r, x: (-b.sin(x),),
    "tan": lambda b, r, x: (1.0 + b.square(r),),
    "arcsin": lambda b, r, x: (1.0 / b.sqrt(1.0 - b.square(x)),),
    "arccos": lambda b, r, x: (-1.0 / b.sqrt(1.0 - b.square(x)),),
    "arctan": lambda b, r, x: (1.0 / (1.0 + b.square(x)),),
    "sinh": lambda b, r, x: (b.cosh(x),),
    "cosh": lambda b, r, x: (b.sinh(x),),
    "tanh": lambda b, r, x: (1.0 - b.square(r),),
    "arcsinh": lambda b, r, x: (1.0 / b.sqrt(1.0 + b.square(x)),),
    "arccosh": lambda b, r, x: (1.0 / b.sqrt(b.square(x) - 1.0),),
    "arctanh": lambda b, r, x: (1.0 / (1.0 - b.square(x)),),
}

# Rows that are made of others, which are differentiated in their place.
COMPOSED: dict[str, Callable[..., Expr]] = {
    "norm": lambda b, x: b.sqrt(b.dot(x, x)),
    "cosine": lambda b, x, y: b.dot(x, y) / b.sqrt(b.dot(x, x) * b.dot(y, y)),
    "rms": lambda b, x: b.sqrt(b.mean(b.square(x))),
    "row_norm": lambda b, x: b.sqrt(b.row_mean(b.square(x)) * b.cols(x)),
    "col_norm": lambda b, x: b.sqrt(b.col_mean(b.square(x)) * b.rows(x)),
    "centralise": lambda b, x: x - b.row_mean(x),
    "clip": lambda b, x, c: b.max(b.min(x, c), -c),
    "clip_norm": lambda b, x, n, c: x * (c / b.max(n, c)),
    "clamp": lambda b, x, low, high: b.min(b.max(x, low), high),
    "softsign": lambda b, x: x / (1.0 + b.abs(x)),
    "sqrt_abs": lambda b, x: b.sqrt(b.abs(x)),
    "log_abs": lambda b, x: b.log(b.abs(x) + 1e-12),
    "exp_clip": lambda b, x: b.exp(b.clamp(x, -30.0, 30.0)),
    "pow_abs": lambda b, x, y: b.pow(b.abs(x) + 1e-12, y),
}

LINEAR = frozenset({"mean", "row_mean", "col_mean", "mean_of"})  # v̇ is the same row, of the argument's v̇
CONSTANT = frozenset({"rows", "cols"})


class Extended(Builder):
    """A builder that goes on with the live statements of `program`: what it builds reads the same inputs.

    Args:
        program: what to begin with.
        damp: name of a further hyperparameter, 1 by default, which multiplies every gradient that is read.

    Attributes:
        gradient, update: as the program sees the one, and its result.
        slots: its state, by name, each with its next value.
    """

    def __init__(self, program: Program, damp: str = "") -> None:
        super().__init__()
        self._kinds: dict[Any, Kind] = dict(SIGNALS)
        for hyper in program.hypers:
            self._hypers.append(hyper)
            self._kinds[hyper.name] = Kind.SCALAR
        self.slots: dict[str, Any] = {}
        self.gradient = self.g
        if damp:
            self.gradient = self.g * self.hyper(damp, 1.0)
            self._kinds[damp] = Kind.SCALAR
        self.update = self.include(program)

    def include(self, program: Program) -> Expr:
        """Add another program's live statements; returns its update. Slots of a name that is there are the same."""
        own = {s.name: self.slot(s.name, s.kind, s.init) for s in program.state if s.name not in self.slots}
        self.slots |= own
        names = {name: Expr(self, name) for name in program.names} | self.slots | {"g": self.gradient}

        def leaf(value: str | float) -> Expr:
            return names[value] if isinstance(value, str) else Expr(self, Const(value))

        walked = fold(program, leaf, lambda op, args, _: self.op(op.name, *args))
        for slot, value in zip(program.state, walked.next_state, strict=True):
            if slot.name in own:
                own[slot.name].next = value
        return walked.update  # type: ignore[return-value]

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
    """Derivatives of what `b` has so far with respect to the name `wrt`; what is not in the result has derivative 0.

    Args:
        b: the program, to which the statements of the derivatives are added.
        wrt: a hyperparameter or signal.
        seeds: derivatives of other names, such as of slots that `wrt` has moved in earlier steps.

    Raises:
        ProgramError: where a row without a derivative depends on `wrt`.
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
    terms: list[Expr] = []
    if op.name in CONSTANT:
        return None
    if op.name in LINEAR:
        return b.op(op.name, b.of_kind(dots[0], args[0]))  # type: ignore[arg-type]
    if op.name == "dot":
        for x, dot in zip(reversed(args), dots, strict=True):
            if dot is not None:
                terms.append(b.dot(b.of_kind(dot, x), x))
    elif op.name in COMPOSED:
        return of(COMPOSED[op.name](b, *args).arg)
    elif op.name in PARTIAL:
        result = Expr(b, index)
        # partials are pruned where they are not needed: those of `pow` may not even be finite
        for dot, part in zip(dots, PARTIAL[op.name](b, result, *args), strict=True):
            if dot is not None and part is not None:
                terms.append(dot if part == 1.0 else part * dot)
    else:
        raise ProgramError(f"op {op.name!r} has no derivative; see learned.derivative for the rows that have one")
    total: Expr | None = None
    for term in terms:
        total = term if total is None else total + term
    return total


def derivative(program: Program, wrt: str, *, memory: bool = False) -> Program:
    """The program whose update is the derivative of the update of `program` with respect to `wrt`.

    With respect to `lr` it is that of the whole step ``lr · update``. The state of the result is that of `program`,
    followed, with `memory`, by the derivative of each slot that depends on `wrt` (0 before the first step): ``m ←
    β m + (1 - β) g`` moves with β in every step, not in the last one alone. The parameter counts as fixed.

    Raises:
        ProgramError: if `program` has no `wrt`, if its update does not depend on it, or if there is a row without
            derivative in between.
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


__all__ = ["COMPOSED", "CONSTANT", "LINEAR", "PARTIAL", "Extended", "derivative", "differentiate"]
