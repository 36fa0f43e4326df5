"""Write programs with Python arithmetic.

::

    b = Builder()
    beta = b.hyper("beta", 0.9, "unit")
    m = b.slot("m")
    m.next = b.lerp(m, b.g, 1 - beta)
    program = b.build(update=b.sign(m.next))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optforge.primitives.kinds import SIGNALS, Hyper, Kind, ProgramError, Slot
from optforge.primitives.ops import get_op
from optforge.primitives.program import Arg, Const, Instr, Program, fold


class Expr:
    """A value inside a program under construction; arithmetic on it appends statements."""

    def __init__(self, builder: Builder, arg: Arg) -> None:
        self.builder, self.arg = builder, arg

    def __add__(self, other: Any) -> Expr:
        return self.builder.op("add", self, other)

    def __radd__(self, other: Any) -> Expr:
        return self.builder.op("add", other, self)

    def __sub__(self, other: Any) -> Expr:
        return self.builder.op("sub", self, other)

    def __rsub__(self, other: Any) -> Expr:
        return self.builder.op("sub", other, self)

    def __mul__(self, other: Any) -> Expr:
        return self.builder.op("mul", self, other)

    def __rmul__(self, other: Any) -> Expr:
        return self.builder.op("mul", other, self)

    def __truediv__(self, other: Any) -> Expr:
        return self.builder.op("div", self, other)

    def __rtruediv__(self, other: Any) -> Expr:
        return self.builder.op("div", other, self)

    def __pow__(self, other: Any) -> Expr:
        return self.builder.op("pow", self, other)

    def __neg__(self) -> Expr:
        return self.builder.op("neg", self)


class SlotExpr(Expr):
    """A slot: reads as its value before the step; assign `next` for its value after the step."""

    next: Expr | float | None = None


class Builder:
    """Collects statements; equal sub-expressions become one statement. Every op of the table is a method."""

    def __init__(self) -> None:
        self._hypers: list[Hyper] = []
        self._slots: list[tuple[Slot, SlotExpr]] = []
        self._body: dict[Instr, int] = {}
        for name in SIGNALS:
            setattr(self, name, Expr(self, name))

    g: Expr
    p: Expr
    lr: Expr
    step: Expr
    progress: Expr
    global_norm: Expr

    def hyper(self, name: str, default: float, scale: str = "linear") -> Expr:
        """Declare a hyperparameter (see `primitives.kinds.Hyper`)."""
        self._hypers.append(Hyper(name, default, scale))
        return Expr(self, name)

    def slot(self, name: str, kind: Kind = Kind.TENSOR, init: float | str = 0.0) -> SlotExpr:
        """Declare a piece of state (see `primitives.kinds.Slot`); assign its `.next` before `build`."""
        expr = SlotExpr(self, name)
        self._slots.append((Slot(name, kind, init), expr))
        return expr

    def op(self, name: str, *args: Expr | float) -> Expr:
        """Append ``name(*args)`` unless the same statement is already there."""
        instr = Instr(name, tuple(self._arg(a) for a in args))
        return Expr(self, self._body.setdefault(instr, len(self._body)))

    def append(self, program: Program, instead: Mapping[str, Expr] | None = None) -> Callable[[Arg], Expr]:
        """Declare what `program` has and append its live statements; the function returned gives each of its values.

        A dead slot keeps the value that it has.

        Args:
            program: whose hyperparameters and slots must have names that are free.
            instead: what its statements read in place of signals, by name.
        """
        named = {h.name: self.hyper(h.name, h.default, h.scale) for h in program.hypers} | dict(instead or {})
        slots = {s.name: self.slot(s.name, s.kind, s.init) for s in program.state}
        names = {name: Expr(self, name) for name in program.names} | named | slots

        def leaf(value: str | float) -> Expr:
            return names[value] if isinstance(value, str) else Expr(self, Const(value))

        _, following, values = fold(program, leaf, lambda op, args, _: self.op(op.name, *args))
        for slot, value in zip(slots.values(), following, strict=True):
            slot.next = value
        return lambda arg: values[arg] if isinstance(arg, int) else leaf(arg.value if isinstance(arg, Const) else arg)

    def __getattr__(self, name: str) -> Callable[..., Expr]:
        if not name.startswith("_"):
            try:
                get_op(name)
            except ProgramError as error:
                raise AttributeError(f"Builder has no attribute or op {name!r}: {error}") from None
            return lambda *args: self.op(name, *args)
        raise AttributeError(f"Builder has no attribute {name!r}")

    def build(self, update: Expr, fallback: Program | None = None) -> Program:
        """The finished, checked program."""
        missing = [slot.name for slot, expr in self._slots if expr.next is None]
        if missing:
            raise ProgramError(f"slot {missing[0]!r} has no next value; assign its .next")
        return Program(
            tuple(slot for slot, _ in self._slots),
            tuple(self._hypers),
            tuple(self._body),
            self._arg(update),
            tuple(self._arg(expr.next) for _, expr in self._slots),  # type: ignore[arg-type]
            fallback,
        )

    def _arg(self, value: Expr | float) -> Arg:
        if isinstance(value, Expr):
            if value.builder is not self:
                raise ProgramError("an expression of another builder was used; each program has its own")
            return value.arg
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ProgramError(f"expected an expression or a number, got {value!r}")
        return Const(float(value) + 0.0)
