"""How the pages of docs/ that are written from the code are rendered: Jinja templates, formulas, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from optforge.experiments.report.markdown import math_block
from optforge.primitives.analysis.cost import cost
from optforge.primitives.export.pseudocode import pseudo_code

DOCS = Path(__file__).resolve().parents[2] / "docs"


def render(template: str, **values: Any) -> str:
    """The page that ``templates/<template>.md.j2`` makes of `values`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"formula": math_block, "pseudo_code": pseudo_code, "cost": cost}
    return environment.get_template(f"{template}.md.j2").render(values).rstrip() + "\n"


def linked(source: str) -> str:
    """`source` with its arXiv numbers, DOIs and addresses as Markdown links."""
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    source = re.sub(r"doi:(10\.[^\s,;]+)", lambda m: f"[doi:{m[1]}](https://doi.org/{_escaped(m[1])})", source)
    return re.sub(r"(?<!\()(https://([^\s,;]+))", r"[\2](\1)", source)


def _escaped(address: str) -> str:
    return address.replace("(", "%28").replace(")", "%29")
