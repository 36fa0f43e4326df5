"""Programs as mathematics: sympy expressions, LaTeX, and Unicode for the terminal.

Sympy takes milliseconds for each program, so nothing that runs during a search may ask for a formula. It is imported
when the first formula is asked for, and nowhere else in the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from optforge.primitives.analysis.assignments import UPDATE, Assignment, Tree, assignments, mentions
from optforge.primitives.kinds import ProgramError
from optforge.primitives.ops import OPS, Op
from optforge.primitives.program import Program, fold

if TYPE_CHECKING:
    import sympy

MAX_SIZE = 1000
"""Operations that a formula without named intermediate values may have."""

LINE = 120
"""About how many characters of pseudo-code a line of a formula stands for, at most."""

_FALLBACK = "for parameters without rows and columns:"
_SIGNALS = {"p": "theta", "lr": "eta", "step": "t"}
_LARGEST = 1 << 64


@dataclass(frozen=True)
class FormulaLine:
    """One assignment: `target` becomes `value`; for the parameter, it loses the learning rate times `value`.

    `stores` tells slots and the parameter from named intermediate values.
    """

    target: sympy.Symbol
    value: sympy.Expr
    stores: bool


@dataclass(frozen=True)
class Formula:
    """A program as sympy expressions.

    Symbols are named as in the program, except ``theta`` for the parameter, ``eta`` for the learning rate and ``t``
    for the step number; operations without a closed form for each element are undefined functions named after the op.

    Attributes:
        program: whose formula it is.
        lines: assignments to carry out in order; `value` of a later line reads what earlier lines assigned.
        symbols: the symbol of every name.
    """

    program: Program
    lines: tuple[FormulaLine, ...]
    symbols: Mapping[str, sympy.Symbol]

    @property
    def update(self) -> sympy.Expr:
        """What the learning rate multiplies, in terms of signals, hyperparameters and slots before the step.

        Raises:
            ProgramError: if that would have more than `MAX_SIZE` operations; `lines` has no such limit.
        """
        return self._whole[0]

    @property
    def next_state(self) -> dict[str, sympy.Expr]:
        """For each live slot its value after the step, in the same terms and with the same limit as `update`."""
        return self._whole[1]

    @cached_property
    def _whole(self) -> tuple[sympy.Expr, dict[str, sympy.Expr]]:
        program, size = self.program, _expanded_size(self.program)
        if size > MAX_SIZE:
            raise ProgramError(f"written out in full, this formula has {size:.3g} operations; take its lines instead")
        algebra = _Algebra(self.symbols)
        update, following, _ = fold(program, algebra.leaf, algebra.apply)
        slots = zip(program.state, following, strict=True)
        live = {s.name for s in program.live_state}
        return _plain(update), {s.name: _plain(value) for s, value in slots if s.name in live}


def formula(program: Program) -> Formula:
    """The live part of `program` as sympy expressions, as constructed: nothing is simplified beyond that."""
    lines = assignments(program, LINE, name_update=False, as_formula=True)
    symbols = _symbols(program, [line.target for line in lines])
    algebra = _Algebra(symbols)
    return Formula(program, tuple(_line(line, symbols, algebra) for line in lines), symbols)


def latex(program: Program) -> str:
    """A LaTeX ``aligned`` environment, for math mode: a line for each slot and for the parameter.

    With a fallback program that is used there are two of them, gathered in one environment.
    """
    from optforge.primitives.analysis.formula_print import latex_lines

    blocks = [latex_lines(formula(p)) for p in _used(program)]
    if len(blocks) == 1:
        return blocks[0]
    words = rf"\text{{{_FALLBACK}}}"
    return "\n".join([r"\begin{gathered}", blocks[0] + r" \\[1ex]", words + r" \\", blocks[1], r"\end{gathered}"])


def unicode_text(program: Program) -> str:
    """The formula in Unicode, with stacked fractions, for a terminal."""
    from optforge.primitives.analysis.formula_print import unicode_lines

    return f"\n{_FALLBACK}\n".join(unicode_lines(formula(p)) for p in _used(program))


def _used(program: Program) -> list[Program]:
    needed = program.fallback is not None and program.needs_matrix
    return [program, program.fallback] if needed else [program]  # type: ignore[list-item]


def _symbols(program: Program, targets: list[str]) -> dict[str, sympy.Symbol]:
    import sympy

    sign: dict[str, dict[str, bool]] = {h.name: {"nonnegative": True} for h in program.hypers if h.scale != "linear"}
    sign |= {"lr": {"nonnegative": True}, "global_norm": {"nonnegative": True}, "step": {"positive": True}}
    symbols: dict[str, sympy.Symbol] = {}
    taken: set[str] = set()
    for name in dict.fromkeys([*program.names, *targets]):
        text = _SIGNALS.get(name, name)
        while text in taken:  # a slot called theta, say
            text += "_"
        taken.add(text)
        symbols[name] = sympy.Symbol(text, real=True, **sign.get(name, {}))
    return symbols


def _line(line: Assignment, symbols: Mapping[str, sympy.Symbol], algebra: _Algebra) -> FormulaLine:
    return FormulaLine(symbols[line.target], _plain(algebra.tree(line.tree)), line.stores)


class _Algebra:
    """Values are sympy expressions, and floats where an expression is a number.

    Numbers are computed in floating point and stay out of sympy until they meet a symbol: exact arithmetic on them
    can take forever (2^2^2^2^2) or leave the reals.
    """

    def __init__(self, symbols: Mapping[str, sympy.Symbol]) -> None:
        self.symbols = symbols

    def leaf(self, value: str | float) -> sympy.Expr | float:
        return self.symbols[value] if isinstance(value, str) else value

    def tree(self, tree: Tree) -> sympy.Expr | float:
        if not isinstance(tree, tuple):
            return self.leaf(tree)
        return self.apply(OPS[str(tree[0])], [self.tree(a) for a in tree[1:]])

    def apply(self, op: Op, args: list[sympy.Expr | float], _: int = 0) -> sympy.Expr | float:
        numbers = [a for a in args if isinstance(a, float)]
        if len(numbers) == len(args) and op.sympy is not None:
            value = _evaluate(op, numbers)
            if math.isfinite(value):
                return value
        parts = [_plain(a) for a in args]
        if len(numbers) == len(args) or op.sympy is None:
            return _undefined(op.name)(*parts)
        try:
            value = _meaning(op.name)(*parts)
        except (ValueError, TypeError, OverflowError, RecursionError):  # such as the larger of x and 1/0
            return _undefined(op.name)(*parts)
        return _undefined(op.name)(*parts) if _is_odd(value) else value


def _plain(value: Any) -> sympy.Expr:
    import sympy

    if not isinstance(value, float):
        return value
    return sympy.Integer(int(value)) if value in (-1.0, 0.0, 1.0) else sympy.Float(value)


def _evaluate(op: Op, numbers: list[float]) -> float:
    import torch

    return float(op.function(*(torch.tensor(n, dtype=torch.float64) for n in numbers)))


def _is_odd(value: sympy.Expr) -> bool:
    """Whether sympy left the finite reals, or holds an integer so long that computing on would take forever."""
    import sympy

    if value.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
        return True
    return any(abs(n.p) > _LARGEST or abs(n.q) > _LARGEST for n in value.atoms(sympy.Rational))


@cache
def _undefined(name: str) -> Any:
    import sympy

    return sympy.Function(name, real=True)


@cache
def _meaning(name: str) -> Callable[..., sympy.Expr]:
    """The sympy meaning of an op as a function; templates are code of the table, never of a program."""
    import sympy

    op = OPS[name]
    assert op.sympy is not None
    names = [f"a{i}" for i in range(op.arity)]
    return eval(f"lambda {', '.join(names)}: {op.sympy.format(*names)}", dict(vars(sympy)))


def _expanded_size(program: Program) -> float:
    """Operations of all outputs together if nothing were shared."""

    def apply(op: Op, args: list[float], _: int) -> float:
        return 1.0 + sum(mentions(op, n) * size for n, size in enumerate(args))

    update, following, _ = fold(program, lambda _: 0.0, apply)
    return update + sum(following)


__all__ = ["LINE", "MAX_SIZE", "UPDATE", "Formula", "FormulaLine", "formula", "latex", "unicode_text"]
