"""docs/optimizers.md, written from the rows of the modules in `baselines`."""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from optforge.baselines import BASELINES, NAMED, Baseline, NamedProgram
from optforge.experiments.docs.optimizers_text import INTRODUCTION, PROGRAMS_ONLY
from optforge.experiments.report.listings import measure, state_words
from optforge.primitives import Program, ProgramOptimizer
from optforge.primitives.analysis.cost import cost
from optforge.primitives.analysis.formula import latex
from optforge.primitives.export.pseudocode import number, pseudo_code

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "optimizers.md"
MEASURED = (256, 256)
"""Shape of the parameter on which the page's state is measured."""

_COMMON = ("params", "maximize", "state_dtype")  # parameters of every constructor


def optimizers_page() -> str:
    """The whole page; the same text for the same rows."""
    before, after = INTRODUCTION.strip().split("<table>")
    parts = [before, "\n".join(_overview([*BASELINES.values(), *NAMED.values()])), after]
    parts += ["\n".join(_section(row)) for row in BASELINES.values()]
    parts += [PROGRAMS_ONLY, *("\n".join(_section(row)) for row in NAMED.values())]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _overview(rows: Iterable[NamedProgram]) -> Iterator[str]:
    cells = ((f"[{r.name}](#{r.name})", state_words(r.program), _measured(r), _rates(r), linked(r.paper)) for r in rows)
    yield from table("optimizer", "state", "bytes", "usual learning rate", "source", rows=cells)


def _measured(row: NamedProgram) -> str:
    """Bytes that the hand-written form, or else the program, keeps for each element of `MEASURED` in float32."""
    make = row.optimizer if isinstance(row, Baseline) else partial(ProgramOptimizer, program=row.program)
    return f"{measure(make, MEASURED) / math.prod(MEASURED):.4g}"


def _section(row: NamedProgram) -> Iterator[str]:
    program = row.program
    yield from (f"### {row.name}", "")
    if isinstance(row, Baseline):
        yield from (f"`{_call(row)}`", "")
    elif program.hypers:
        yield from (f"Hyperparameters: `{', '.join(f'{h.name}={number(h.default)}' for h in program.hypers)}`", "")
    for paragraph in [*_paragraphs(row.about), f"**When to use:** {row.when}"]:
        yield from (textwrap.fill(paragraph, 118, break_long_words=False, break_on_hyphens=False), "")
    yield from (*math_block(program), "", "```", pseudo_code(program), "```", "")
    size = f"{cost(program).state_bytes:.4g} bytes for each parameter of a 1024 × 1024 matrix in float32"
    yield f"- State: {state_words(program)} ({size})." if program.live_state else "- State: none."
    if isinstance(row, Baseline):
        yield f"- Usual learning rate: {_rates(row)}."
        if row.oracles:
            others = "; ".join(f"`{o.path}`" + (f" ({o.note})" if o.note else "") for o in row.oracles)
            yield f"- Compared with: {others}."
        if row.where is not None:
            says = (inspect.getdoc(row.where) or "").split("\n")[0]
            yield f'- What `where=BASELINES["{row.name}"].where` tells: {says[0].lower()}{says[1:]}'
    yield f"- Source: {linked(row.paper)}."


def _rates(row: NamedProgram) -> str:
    return "{:g} to {:g}".format(*row.lr_range) if isinstance(row, Baseline) else "–"


def _call(row: Baseline) -> str:
    """The constructor with its defaults, without what all of them take."""
    found = inspect.signature(row.optimizer).parameters.values()
    options = ", ".join(f"{p.name}={p.default!r}" for p in found if p.name not in _COMMON)
    return f"{row.about.__name__}(params, {options})"


def _paragraphs(about: Any) -> list[str]:
    """What the docstring says before it comes to the arguments, as Markdown."""
    text = (inspect.getdoc(about) or "").split("\nArgs:\n")[0]
    parts = [" ".join(part.split()).replace("``", "`") for part in text.strip().split("\n\n")]
    return [re.sub(r"^Variant:", "**Variant:**", part) for part in parts]


def linked(source: str) -> str:
    """`source` with its arXiv numbers, DOIs and addresses as Markdown links."""
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    source = re.sub(r"doi:(10\.[^\s,;]+)", lambda m: f"[doi:{m[1]}](https://doi.org/{_escaped(m[1])})", source)
    return re.sub(r"(?<!\()(https://([^\s,;]+))", r"[\2](\1)", source)


def _escaped(address: str) -> str:
    return address.replace("(", "%28").replace(")", "%29")


def math_block(program: Program) -> tuple[str, str, str]:
    """The formula of a program as a block that GitHub shows: it refuses the macro ``operatorname``.

    Names of several letters get a thin space between them and other factors.
    """
    text = re.sub(r"(\\mathrm\{[^{}]+\}\S*) (?=[a-z{]|\\(?!right|leftarrow|\\))", r"\1 \\, ", latex(program))
    text = re.sub(r"([\w)}])(?<!arrow) (?=\\mathrm)", r"\1 \\, ", text)
    return "```math", re.sub(r"\\operatorname\{(\w+)\}", r"\\mathop{\\mathrm{\1}}\\nolimits", text), "```"


def table(*columns: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table, line by line."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
