"""docs/language.md, the reference of the language, written from the tables it describes."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

from optforge.baselines import BASELINES, NAMED
from optforge.experiments.docs.language_text import CHAPTERS
from optforge.experiments.docs.optimizers import ROOT, math_block, table
from optforge.primitives import OPS, SCALES, SIGNALS, Const, Kind, Op, Program
from optforge.primitives.analysis.cost import cost
from optforge.primitives.analysis.rules import RULES
from optforge.primitives.blocks import BLOCKS
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.primitives.kinds import MAX_NAME, RESERVED
from optforge.primitives.lion45 import LION45
from optforge.primitives.ops import DOMAINS, subset, subset_names
from optforge.primitives.program import MAX_HYPERS, MAX_INSTRUCTIONS, MAX_STATE
from optforge.primitives.routing import LARGEST_SIDE
from optforge.primitives.text import MAX_CHARACTERS, VERSION

PAGE = ROOT / "docs" / "language.md"
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


def language_page() -> str:
    """The whole page; the same text for the same tables."""
    return "\n".join(_page()).rstrip() + "\n"


def _page() -> Iterator[str]:
    facts = {
        "version": VERSION, "statements": MAX_INSTRUCTIONS, "slots": MAX_STATE, "hypers": MAX_HYPERS,
        "characters": f"{MAX_CHARACTERS:,}", "name": MAX_NAME,
        "reserved": textwrap.fill(", ".join(f"`{w}`" for w in sorted(RESERVED)), 118),
        "lion": BASELINES["lion"].program, "side": f"{LARGEST_SIDE:,}",
    }  # fmt: skip
    tables: dict[str, Callable[[], Iterator[str]]] = {
        "kinds": _kinds, "signals": _signals, "scales": _scales, "ops": _ops, "domains": _domains, "lion45": _lion45,
        "blocks": _blocks, "rules": _rules, "gallery": _gallery,
    }  # fmt: skip
    for part in re.split(r"^(<\w+>)$", CHAPTERS, flags=re.MULTILINE):
        if part[:1] == "<" and part[1:-1] in tables:
            yield from tables[part[1:-1]]()
        else:
            yield re.sub(r"<<(\w+)>>", lambda found: str(facts[found[1]]).rstrip(), part).strip("\n")
        yield ""


def _kinds() -> Iterator[str]:
    rows = ((f"`{k.name.lower()}`", *_KINDS[k]) for k in Kind)
    yield from table("kind", "varies over", "shape, for a parameter of shape `(n, *rest)`", rows=rows)


def _signals() -> Iterator[str]:
    rows = ((f"`{name}`", kind.name.lower(), _SIGNALS[name]) for name, kind in SIGNALS.items())
    yield from table("signal", "kind", "meaning", rows=rows)


def _scales() -> Iterator[str]:
    rows = ((f"`{s.name}`", f"[{s.lower:g}, {s.upper:g})", _SCALES[s.name]) for s in SCALES.values())
    yield from table("scale", "range", "where steps of equal size mean equal things", rows=rows)


def _domains() -> Iterator[str]:
    yield from table("domain", "set", rows=((f"`{name}`", _DOMAINS[name]) for name in DOMAINS))


def _ops() -> Iterator[str]:
    builtin = [op for op in OPS.values() if op in BUILTIN]
    yield f"The table has {len(builtin)} rows. Subsets, from which a search chooses:"
    yield ""
    names = {op.name for op in builtin}
    chosen = {name: [n for n in subset(name) if n in names] for name in sorted(subset_names())}
    rows = ((f"`{n}`", str(len(found)), _listed(found)) for n, found in chosen.items() if found)
    yield from table("subset", "rows", "ops", rows=rows)
    for title, belongs in _SECTIONS:
        yield from ("", f"### {title}", "")
        chapter = (_op_row(op) for op in builtin if belongs(op))
        yield from table("op", "kinds", "meaning", "domain", "flops", "subsets", "source", rows=chapter)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{n}`" for n in names) if len(names) < 20 else "see below"


_SECTIONS: tuple[tuple[str, Callable[[Op], bool]], ...] = (
    ("Elementwise", lambda op: not op.reduces),
    ("Over a whole parameter", lambda op: op.reduces and not op.needs_matrix),
    ("Over rows, columns and matrices", lambda op: op.needs_matrix),
)


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


def _lion45() -> Iterator[str]:
    def shown(found: str | Const) -> str:
        return f"literal `{found.value!r}`" if isinstance(found, Const) else f"`{found}`" + _what(found)

    yield from table("Lion's function", "here", rows=((name, shown(found)) for name, found in LION45.items()))


def _what(name: str) -> str:
    return " (a signal)" if name in SIGNALS else ""


def _blocks() -> Iterator[str]:
    yield from table("block", "meaning", rows=((f"`{name}`", _first(function)) for name, function in BLOCKS.items()))


def _first(function: Callable[..., object]) -> str:
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split()).replace("``", "`")


def _rules() -> Iterator[str]:
    yield f"There are {len(RULES)} rules:"
    yield ""

    def row(rule: object) -> tuple[str, ...]:
        compute = dict(rule.compute)  # type: ignore[attr-defined]
        words = ", ".join(f"{v} {where}" for v, where in rule.domain) or "–"  # type: ignore[attr-defined]
        note = f"{', '.join(compute)} from a, b" if compute else "–"
        return f"`{rule.left}`", f"`{rule.right}`", words, note  # type: ignore[attr-defined]

    yield from table("this", "becomes", "domain", "new literals", rows=map(row, RULES))


def _gallery() -> Iterator[str]:
    yield from table(
        "optimizer", "live statements", "state", "flops", "bytes moved", "source",
        rows=(_cost_row(b.name, b.program, b.paper) for b in BASELINES.values()),
    )  # fmt: skip
    for row in BASELINES.values():
        yield from _exhibit(row.name, row.program, row.paper)
    for named in NAMED.values():
        yield from _exhibit(named.name, named.program, named.paper)


def _cost_row(name: str, program: Program, paper: str) -> tuple[str, ...]:
    c = cost(program)
    live = str(len(program.live.instructions))
    return f"[{name}](#{name})", live, f"{c.state_bytes:.4g}", f"{c.flops:.4g}", f"{c.moved_bytes:.4g}", paper


def _exhibit(name: str, program: Program, source: str) -> Iterator[str]:
    yield from ("", f"### {name}", "")
    if source:
        yield from (source.rstrip(".") + ".", "")
    yield from (*math_block(program), "", "```", pseudo_code(program), "```", "", "As a file:", "")
    yield from ("```", str(program).rstrip(), "```", "", f"Cost: {cost(program)}. Key `{program.key}`.")
