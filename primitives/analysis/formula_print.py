"""How formulas look: LaTeX and Unicode printers with the notation of optimization papers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sympy
from sympy.printing.latex import LatexPrinter
from sympy.printing.pretty.pretty import PrettyPrinter
from sympy.printing.pretty.pretty_symbology import pretty_symbol
from sympy.printing.pretty.stringpict import prettyForm

if TYPE_CHECKING:
    from optforge.primitives.analysis.formula import Formula, FormulaLine

_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
          "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega")  # fmt: skip
_USUAL = {"eps": "epsilon", "weight_decay": "lambda", "momentum": "mu", "update": "u"}
_NAME = re.compile(r"([a-z]+?)_?([0-9]*)", re.ASCII)

# Operations with a notation of their own; all others are printed as functions of their name.
_LATEX = {
    "norm": r"\left\lVert {} \right\rVert",
    "dot": r"\left\langle {}, {} \right\rangle",
    "row_mean": r"\operatorname{{mean}}_{{\mathrm{{row}}}}\left({}\right)",
    "col_mean": r"\operatorname{{mean}}_{{\mathrm{{col}}}}\left({}\right)",
    "mean_of": r"\operatorname{{mean}}\left({}\right)",
    "row_norm": r"\left\lVert {} \right\rVert_{{\mathrm{{row}}}}",
    "col_norm": r"\left\lVert {} \right\rVert_{{\mathrm{{col}}}}",
    "orthogonalise": r"\operatorname{{NewtonSchulz}}\left({}\right)",
    "matmul": r"\left({}\right) \left({}\right)",
    "left_t": r"\left({}\right)^{{\top}} \left({}\right)",
    "right_t": r"\left({}\right) \left({}\right)^{{\top}}",
    "row_gram": r"\left({0}\right) \left({0}\right)^{{\top}}",
    "col_gram": r"\left({0}\right)^{{\top}} \left({0}\right)",
    "trace": r"\operatorname{{tr}}\left({}\right)",
    "basis": r"\operatorname{{QR}}_{{+{2}}}\left({0}, {1}\right)",
    **{f"inverse_root{p}": rf"\left({{}}\right)_{{{{+{{}}}}}}^{{{{-1/{p}}}}}" for p in (1, 2, 4)},
}


def latex_lines(formula: Formula) -> str:
    """An ``aligned`` environment with one line for each assignment."""
    names = _unique(formula, _latex_name, lambda name: rf"\mathrm{{{_escaped(name)}}}")
    printer = _Latex({"symbol_names": names, "mul_symbol": None, "inv_trig_style": "full", "ln_notation": True})
    lines, arrow = [], r"\leftarrow"
    for line in formula.lines:
        target, value = printer.doprint(line.target), printer.doprint(line.value)
        value = re.sub(r"(?<=\d) (?=\{\d)", r" \\cdot ", value)  # a number times a power of another
        if _is_parameter(formula, line):
            body = value if _stands_alone(line.value) else rf"\left({value}\right)"
            value = rf"{target} - {printer.doprint(formula.symbols['lr'])} {body}"
        lines.append(f"{target} &{arrow if line.stores else '='} {value}")
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def unicode_lines(formula: Formula) -> str:
    """One block of text for each assignment, as wide as it needs to be."""
    names = _unique(formula, _unicode_name, lambda name: name)
    printer = _Unicode({"use_unicode": True, "wrap_line": False}, names)
    blocks = []
    for line in formula.lines:
        target = names[line.target]
        form, begin = printer._print(line.value), f"{target} {'←' if line.stores else '='} "
        if _is_parameter(formula, line):
            begin = f"{target} ← {target} - {names[formula.symbols['lr']]}⋅"
            form = form if _stands_alone(line.value) else prettyForm(*form.parens())
        whole = prettyForm(*form.left(prettyForm(begin)))
        blocks.append("\n".join(row.rstrip() for row in str(whole).splitlines()))
    return "\n".join(blocks)


def _is_parameter(formula: Formula, line: FormulaLine) -> bool:
    return line.target == formula.symbols["p"]


def _stands_alone(value: sympy.Expr) -> bool:
    """Whether ``η x`` needs no parentheses around x."""
    if value.is_Mul:
        return not value.could_extract_minus_sign() and not value.args[0].is_Number
    return not value.is_Add and not value.is_Number and not isinstance(value, sympy.Piecewise)


def _unique(formula: Formula, usual: Callable[[str], str], plain: Callable[[str], str]) -> dict[sympy.Symbol, str]:
    """A different text for each symbol: the usual one, unless another symbol already has it."""
    texts: dict[sympy.Symbol, str] = {}
    signals = [formula.symbols[name] for name in ("g", "p", "lr", "step")]
    for symbol in dict.fromkeys([*signals, *formula.symbols.values()]):
        taken = texts.values()
        texts[symbol] = usual(symbol.name) if usual(symbol.name) not in taken else plain(symbol.name)
        while list(texts.values()).count(texts[symbol]) > 1:
            texts[symbol] += "'"
    return texts


def _latex_name(name: str) -> str:
    if name == "global_norm":
        return r"\lVert g \rVert_{\mathrm{all}}"
    found = _NAME.fullmatch(_USUAL.get(name, name))
    if not found:
        return rf"\mathrm{{{_escaped(name)}}}"
    stem, digits = found.groups()
    body = rf"\{stem}" if stem in _GREEK else stem if len(stem) == 1 else rf"\mathrm{{{stem}}}"
    return f"{body}_{{{digits}}}" if digits else body


def _escaped(name: str) -> str:
    return name.replace("_", r"\_")


def _unicode_name(name: str) -> str:
    if name == "global_norm":
        return "‖g‖ₐₗₗ"
    name = _USUAL.get(name, name)
    found = _NAME.fullmatch(name)
    return pretty_symbol(name) if found and (found[1] in _GREEK or len(found[1]) == 1) else name


def _number(value: sympy.Float) -> str:
    """At most twelve digits: what rounding left in the last ones is of no interest on paper."""
    return f"{float(value):.12g}" if abs(value) < 1e308 else str(value)


class _Latex(LatexPrinter):
    def _print_Float(self, expr: sympy.Float) -> str:
        digits, _, exponent = _number(expr).partition("e")
        if not exponent:
            return digits
        power = rf"10^{{{int(exponent)}}}"
        return {"1": power, "-1": f"-{power}"}.get(digits, rf"{digits} \cdot {power}")

    def _print_AppliedUndef(self, expr: sympy.Expr, exp: str | None = None) -> str:
        args, name = [self._print(a) for a in expr.args], expr.func.__name__
        if name in _LATEX:
            text = _LATEX[name].format(*args)
        else:
            text = rf"\operatorname{{{_escaped(name)}}}\left({', '.join(args)}\right)"
        return text if exp is None else rf"{{{text}}}^{{{exp}}}"

    def _print_Heaviside(self, expr: sympy.Expr, exp: str | None = None) -> str:
        text = rf"\mathbf{{1}}\left[{self._print(expr.args[0])} > 0\right]"
        return text if exp is None else rf"{text}^{{{exp}}}"

    def _print_sign(self, expr: sympy.Expr, exp: str | None = None) -> str:
        text = rf"\operatorname{{sign}}{{\left({self._print(expr.args[0])}\right)}}"
        return text if exp is None else rf"{text}^{{{exp}}}"


class _Unicode(PrettyPrinter):
    def __init__(self, settings: dict[str, Any], names: dict[sympy.Symbol, str]) -> None:
        super().__init__(settings)
        self.names = names

    def _print_Symbol(self, e: sympy.Symbol, bold_name: bool = False) -> prettyForm:
        return prettyForm(self.names.get(e, e.name))

    def _print_Float(self, e: sympy.Float) -> prettyForm:
        text = _number(e)
        return prettyForm(text, binding=prettyForm.NEG if text.startswith("-") else prettyForm.ATOM)

    def _print_AppliedUndef(self, e: sympy.Expr) -> prettyForm:
        if e.func.__name__ != "norm":
            return self._print_Function(e)
        once = prettyForm(*self._print(e.args[0]).parens("|", "|"))
        return prettyForm(*once.parens("|", "|"))

    def _print_Heaviside(self, e: sympy.Expr) -> prettyForm:
        return prettyForm(*self._print(sympy.Gt(e.args[0], 0, evaluate=False)).parens("[", "]"))

    def _print_Max(self, e: sympy.Expr) -> prettyForm:
        return self._print_Function(e, sort=True, func_name="max")

    def _print_Min(self, e: sympy.Expr) -> prettyForm:
        return self._print_Function(e, sort=True, func_name="min")
