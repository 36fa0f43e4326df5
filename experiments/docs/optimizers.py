"""docs/optimizers.md, written from the rows of `baselines.table`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from baselines import BASELINES, NAMED
from experiments.docs.optimizers_text import ABOUT, INTRODUCTION, PROGRAMS_ONLY, WHEN
from experiments.report.listings import named_programs, state_words
from primitives import Program
from primitives.cost import cost
from primitives.formula import latex
from primitives.pseudocode import number, pseudo_code

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "optimizers.md"
_COMMON = ("params", "maximize", "state_dtype")  # parameters of every constructor


def optimizers_page() -> str:
    """The whole page; the same text for the same rows."""
    before, after = INTRODUCTION.strip().split("<table>")
    programs = named_programs()
    parts = [before, "\n".join(_overview(programs)), after]
    parts += ["\n".join(_section(name, programs[name])) for name in BASELINES]
    parts += [PROGRAMS_ONLY, *("\n".join(_section(name, programs[name])) for name in NAMED)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _overview(programs: dict[str, Program]) -> Iterator[str]:
    rows = (
        (f"[{name}](#{name})", state_words(program), _rates(name) or "–", _source(name))
        for name, program in programs.items()
    )
    yield from table("optimizer", "state", "usual learning rate", "source", rows=rows)


def _section(name: str, program: Program) -> Iterator[str]:
    row = BASELINES.get(name)
    yield from (f"### {name}", "")
    if row is not None:
        yield from (f"`{_call(row.optimizer)}`", "")
        paragraphs = _paragraphs(row.optimizer)
    else:
        hypers = ", ".join(f"{h.name}={number(h.default)}" for h in program.hypers)
        yield from ((f"Hyperparameters: `{hypers}`", "") if hypers else ())
        paragraphs = [ABOUT[name][0]]
    for paragraph in [*paragraphs, f"**When to use:** {WHEN[name]}"]:
        yield from (textwrap.fill(paragraph, 118, break_long_words=False, break_on_hyphens=False), "")
    yield from (*math_block(program), "", "```", pseudo_code(program), "```", "")
    size = f"{cost(program).state_bytes:.4g} bytes for each parameter of a 1024 × 1024 matrix in float32"
    yield f"- State: {state_words(program)} ({size})." if program.live_state else "- State: none."
    if row is not None:
        yield f"- Usual learning rate: {_rates(name)}."
    if row is not None and row.oracles:
        others = "; ".join(f"`{o.path}`" + (f" ({o.note})" if o.note else "") for o in row.oracles)
        yield f"- Compared with: {others}."
    yield f"- Source: {_source(name)}."


def _rates(name: str) -> str:
    return "{:g} to {:g}".format(*BASELINES[name].lr_range) if name in BASELINES else ""


def _source(name: str) -> str:
    return linked(BASELINES[name].paper if name in BASELINES else ABOUT[name][1])


def _call(optimizer: Any) -> str:
    """The constructor with its defaults, without what all of them take."""
    found = inspect.signature(_class(optimizer)).parameters.values()
    options = ", ".join(f"{p.name}={p.default!r}" for p in found if p.name not in _COMMON)
    return f"{_class(optimizer).__name__}(params, {options})"


def _paragraphs(optimizer: Any) -> list[str]:
    """What the docstring says before it comes to the arguments, as Markdown."""
    text = (inspect.getdoc(_class(optimizer)) or "").split("\nArgs:\n")[0]
    parts = [" ".join(part.split()).replace("``", "`") for part in text.strip().split("\n\n")]
    return [re.sub(r"^Variant:", "**Variant:**", part) for part in parts]


def _class(optimizer: Any) -> Any:
    return optimizer.func if isinstance(optimizer, partial) else optimizer


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
