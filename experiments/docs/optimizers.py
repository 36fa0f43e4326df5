"""docs/optimizers.md, written from the rows of the modules in `baselines`."""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections.abc import Iterator
from functools import partial
from typing import Any

from optforge.baselines import BASELINES, NAMED, Baseline, NamedProgram
from optforge.experiments.docs.rendering import DOCS, linked, render
from optforge.experiments.report.listings import measure, state_words
from optforge.experiments.report.markdown import markdown_table
from optforge.primitives import ProgramOptimizer
from optforge.primitives.analysis.cost import cost
from optforge.primitives.export.pseudocode import number

PAGE = DOCS / "optimizers.md"
MEASURED = (256, 256)
"""Shape of the parameter on which the page's state is measured."""

_COMMON = ("params", "maximize", "state_dtype")  # parameters of every constructor


def optimizers_page() -> str:
    """The whole page; the same text for the same rows."""
    header = ("optimizer", "state", "bytes", "usual learning rate", "source")
    rows = [
        (f"[{r.name}](#{r.name})", state_words(r.program), _measured(r), _rates(r), linked(r.paper))
        for r in (BASELINES | NAMED).values()
    ]
    baselines, programs = ([_section(row) for row in table.values()] for table in (BASELINES, NAMED))
    return render("optimizers", overview=markdown_table(header, rows), baselines=baselines, programs=programs)


def _measured(row: NamedProgram) -> str:
    """Bytes that the hand-written form, or else the program, keeps for each element of `MEASURED` in float32."""
    make = row.optimizer if isinstance(row, Baseline) else partial(ProgramOptimizer, program=row.program)
    return f"{measure(make, MEASURED) / math.prod(MEASURED):.4g}"


def _section(row: NamedProgram) -> dict[str, Any]:
    """What the template shows of one optimizer."""
    paragraphs = [*_paragraphs(row.about), f"**When to use:** {row.when}"]
    filled = [textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False) for text in paragraphs]
    call = _call(row)
    return {"name": row.name, "program": row.program, "call": call, "paragraphs": filled, "facts": list(_facts(row))}


def _facts(row: NamedProgram) -> Iterator[str]:
    size = f"{cost(row.program).state_bytes:.4g} bytes for each parameter of a 1024 × 1024 matrix in float32"
    yield f"State: {state_words(row.program)} ({size})." if row.program.live_state else "State: none."
    if isinstance(row, Baseline):
        yield f"Usual learning rate: {_rates(row)}."
        if row.oracles:
            others = "; ".join(f"`{o.path}`" + (f" ({o.note})" if o.note else "") for o in row.oracles)
            yield f"Compared with: {others}."
        if row.where is not None:
            says = (inspect.getdoc(row.where) or "").split("\n")[0]
            yield f'What `where=BASELINES["{row.name}"].where` tells: {says[0].lower()}{says[1:]}'
    yield f"Source: {linked(row.paper)}."


def _rates(row: NamedProgram) -> str:
    return "{:g} to {:g}".format(*row.lr_range) if isinstance(row, Baseline) else "–"


def _call(row: NamedProgram) -> str:
    """The constructor with its defaults, without what all of them take; of a program, its hyperparameters."""
    if isinstance(row, Baseline):
        found = inspect.signature(row.optimizer).parameters.values()
        options = ", ".join(f"{p.name}={p.default!r}" for p in found if p.name not in _COMMON)
        return f"`{row.about.__name__}(params, {options})`"
    hypers = ", ".join(f"{h.name}={number(h.default)}" for h in row.program.hypers)
    return f"Hyperparameters: `{hypers}`" if hypers else ""


def _paragraphs(about: Any) -> list[str]:
    """What the docstring says before it comes to the arguments, as Markdown."""
    text = (inspect.getdoc(about) or "").split("\nArgs:\n")[0]
    parts = [" ".join(part.split()).replace("``", "`") for part in text.strip().split("\n\n")]
    return [re.sub(r"^Variant:", "**Variant:**", part) for part in parts]
