"""docs/language.md, the reference of the language, written from the tables it describes."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from optforge.baselines import BASELINES, NAMED
from optforge.experiments.docs.rendering import DOCS, render
from optforge.experiments.report.markdown import markdown_table
from optforge.primitives import OPS, SCALES, SIGNALS, Const, Kind, Op, Program
from optforge.primitives.analysis.cost import cost
from optforge.primitives.analysis.rules import RULES
from optforge.primitives.blocks import BLOCKS
from optforge.primitives.kinds import MAX_NAME, RESERVED
from optforge.primitives.lion45 import LION45
from optforge.primitives.ops import DOMAINS, subset, subset_names
from optforge.primitives.program import MAX_HYPERS, MAX_INSTRUCTIONS, MAX_STATE, VERSION
from optforge.primitives.routing import LARGEST_SIDE
from optforge.primitives.text import MAX_CHARACTERS

PAGE = DOCS / "language.md"
BUILTIN = tuple(OPS.values())  # before any plug-in is loaded: the page does not depend on what is installed
_LETTERS = ("x", "y", "z", "w")
_SIGNALS = {
    "g": "gradient of the loss",
    "p": "the parameter",
    "lr": "learning rate of this step",
    "step": "1 at this parameter's first step, then counting",
    "progress": "share of training done, between 0 and 1",
    "global_norm": "Euclidean norm of the gradients of all parameters together",
}
_KINDS = {
    Kind.SCALAR: ("one number for each parameter", "`()`"),
    Kind.ROW: ("one number for each row", "`(n, 1, …)`"),
    Kind.COL: ("one number for each column", "`(1, *rest)`"),
    Kind.TENSOR: ("one number for each element", "`(n, *rest)`"),
    Kind.LEFT: ("a square matrix of the left side: one number for each pair of rows", "`(n, n, 1, …)`"),
    Kind.RIGHT: ("a square matrix of the right side: one number for each pair of columns", "`(m, *rest)`"),
}
_SCALES = {
    "log": "the logarithm; for weight decay, epsilon, rates. 0 is allowed and means off",
    "unit": "−log(1 − x); for decays of averages: 0, 0.9, 0.99 and 0.999 are equal steps apart",
    "linear": "the number itself",
}
_DOMAINS = {
    "real": "all finite numbers",
    "nonzero": "x ≠ 0",
    "nonnegative": "x ≥ 0",
    "positive": "x > 0",
    "unit_ball": "|x| < 1",
    "at_least_one": "x ≥ 1",
    "above_minus_one": "x > −1",
}


_CHAPTERS: tuple[tuple[str, Callable[[Op], bool]], ...] = (
    ("Elementwise", lambda op: not op.reduces),
    ("Over a whole parameter", lambda op: op.reduces and not op.needs_matrix),
    ("Over rows, columns and matrices", lambda op: op.needs_matrix),
)


def language_page() -> str:
    """The whole page; the same text for the same tables."""
    limits = {
        "version": VERSION, "statements": MAX_INSTRUCTIONS, "slots": MAX_STATE, "hypers": MAX_HYPERS,
        "characters": f"{MAX_CHARACTERS:,}", "name": MAX_NAME, "side": f"{LARGEST_SIDE:,}",
        "reserved": textwrap.fill(", ".join(f"`{w}`" for w in sorted(RESERVED)), 118),
    }  # fmt: skip
    ops = [op for op in OPS.values() if op in BUILTIN]
    header = ("op", "kinds", "meaning", "domain", "flops", "subsets", "source")
    chapters = [
        (title, markdown_table(header, [_op_row(op) for op in ops if belongs(op)])) for title, belongs in _CHAPTERS
    ]
    gallery = [*BASELINES.values(), *NAMED.values()]
    lion = str(BASELINES["lion"].program).rstrip()
    return render(
        "language", **limits, **_tables(), chapters=chapters, builtin=len(ops), subsets=_subsets(ops), gallery=gallery,
        lion=lion, rules_count=len(RULES),
    )  # fmt: skip


def _tables() -> dict[str, str]:
    """Tables by their names in the template."""
    kinds = [(f"`{k.name.lower()}`", *_KINDS[k]) for k in Kind]
    signals = [(f"`{name}`", kind.name.lower(), _SIGNALS[name]) for name, kind in SIGNALS.items()]
    scales = [(f"`{s.name}`", f"[{s.lower:g}, {s.upper:g})", _SCALES[s.name]) for s in SCALES.values()]
    costs = ("optimizer", "live statements", "state", "flops", "bytes moved", "source")
    shape = "shape, for a parameter of shape `(n, *rest)`"
    blocks = [(f"`{name}`", _first(block)) for name, block in BLOCKS.items()]
    return {
        "kinds": markdown_table(("kind", "varies over", shape), kinds),
        "signals": markdown_table(("signal", "kind", "meaning"), signals),
        "scales": markdown_table(("scale", "range", "where steps of equal size mean equal things"), scales),
        "domains": markdown_table(("domain", "set"), [(f"`{name}`", _DOMAINS[name]) for name in DOMAINS]),
        "lion45": markdown_table(("Lion's function", "here"), [(name, _here(op)) for name, op in LION45.items()]),
        "blocks": markdown_table(("block", "meaning"), blocks),
        "rules": markdown_table(("this", "becomes", "domain", "new literals"), map(_rule_row, RULES)),
        "costs": markdown_table(costs, [_cost_row(b.name, b.program, b.paper) for b in BASELINES.values()]),
    }


def _subsets(ops: list[Op]) -> str:
    names = {op.name for op in ops}
    found = {name: [op for op in subset(name) if op in names] for name in sorted(subset_names())}
    rows = [(f"`{name}`", str(len(chosen)), _listed(chosen)) for name, chosen in found.items() if chosen]
    return markdown_table(("subset", "rows", "ops"), rows)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{n}`" for n in names) if len(names) < 20 else "see below"


def _op_row(op: Op) -> tuple[str, ...]:
    letters = _LETTERS[: op.arity]
    meaning = (
        f"`{op.sympy.format(*letters)}`" if op.sympy else f"`{op.torch.format(*letters, dims='dims')}`, no formula"
    )
    domain = ", ".join(f"{x} {where}" for x, where in zip(letters, op.domain, strict=True) if where != "real") or "real"
    sets = ", ".join(sorted(op.subsets)) or "–"
    return (
        f"`{op.name}({', '.join(letters)})`" + (" ⇄" if op.commutative else ""),
        _kind_rule(op),
        meaning,
        domain,
        f"`{op.flops}` in all" if isinstance(op.flops, str) else f"{op.flops:g}",
        sets,
        op.source,
    )


def _kind_rule(op: Op) -> str:
    if not op.reduces:
        return "any"
    return "; ".join(f"{', '.join(k.name.lower() for k in ks)} → {r.name.lower()}" for ks, r in op.result.items())


def _here(found: str | Const) -> str:
    if isinstance(found, Const):
        return f"literal `{found.value!r}`"
    return f"`{found}`" + " (a signal)" * (found in SIGNALS)


def _first(function: Callable[..., object]) -> str:
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split()).replace("``", "`")


def _rule_row(rule: Any) -> tuple[str, ...]:
    words = ", ".join(f"{v} {where}" for v, where in rule.domain) or "–"
    note = f"{', '.join(dict(rule.compute))} from a, b" if rule.compute else "–"
    return f"`{rule.left}`", f"`{rule.right}`", words, note


def _cost_row(name: str, program: Program, paper: str) -> tuple[str, ...]:
    c = cost(program)
    live = str(len(program.live.instructions))
    return f"[{name}](#{name})", live, f"{c.state_bytes:.4g}", f"{c.flops:.4g}", f"{c.moved_bytes:.4g}", paper
