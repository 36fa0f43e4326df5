"""Programs as files that need no optforge: a torch optimizer, an optax transformation, LaTeX or text.

A program's name and its provenance come from anywhere, file names included. They only ever become a cleaned-up
identifier and comments, line by line, with everything unprintable escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from optforge.primitives.export.optax_code import optax_module
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.primitives.export.torch_code import torch_module
from optforge.primitives.export_source import BUILTIN
from optforge.primitives.kinds import ProgramError
from optforge.primitives.program import Program, print_program

FORMATS = ("torch", "optax", "latex", "text")

_LONGEST_NAME = 60
_LONGEST_COMMENT = 20_000


def export(
    program: Program,
    name: str,
    to: str = "torch",
    provenance: str | Mapping[str, object] | None = None,
    lr: float = 1e-3,
) -> str:
    """The text of a file that holds `program` and nothing of optforge.

    Args:
        program: what to export; dead code is left out.
        name: what to call it; turned into an identifier where one is needed.
        to: ``torch`` (a module with a `torch.optim.Optimizer`), ``optax`` (a module with a function that returns an
            `optax.GradientTransformation`), ``latex`` or ``text`` (which can be parsed again).
        provenance: where the program comes from: text, or words and what they say; becomes comments.
        lr: default learning rate of an optimizer.

    Raises:
        ProgramError: for an unknown format, or for an op that has no meaning in it.
    """
    program = _pruned(program)
    writers: dict[str, Callable[[], str]] = {
        "torch": lambda: torch_module(program, identifier(name), _about(program, name, provenance), lr),
        "optax": lambda: optax_module(program, identifier(name, snake=True), _about(program, name, provenance), lr),
        "latex": lambda: _latex(program, name, provenance),
        "text": lambda: "\n".join(_about(program, name, provenance, short=True)) + "\n" + print_program(program),
    }
    if to not in writers:
        raise ProgramError(f"cannot export to {str(to)[:40]!r}; choose one of {', '.join(FORMATS)}")
    return writers[to]()


def identifier(name: str, *, snake: bool = False) -> str:
    """A safe Python identifier for `name`: ``LionRaw`` for ``lion-raw``, or ``lion_raw`` in snake case."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    text = "_".join(words).lower() if snake else "".join(w[0].upper() + w[1:] for w in words)
    text = text[:_LONGEST_NAME].rstrip("_")
    if not text or text[0].isdigit():
        text = f"rule_{text}".rstrip("_") if snake else f"Rule{text}"
    taken = BUILTIN | {"Optimizer", "NamedTuple", "State", "jax", "jnp", "np", "optax", "torch", "math", "init"}
    return f"{text}_rule" if snake and text in taken else f"{text}Rule" if text in taken else text


def comments(text: str, mark: str = "#") -> list[str]:
    """`text` as comment lines that nothing in it can end."""
    shown = text if len(text) <= _LONGEST_COMMENT else text[:_LONGEST_COMMENT] + "…"
    return [f"{mark} {_printable(line)}".rstrip() for line in shown.splitlines()]


def _pruned(program: Program) -> Program:
    live = program.pruned()
    fallback = live.fallback.pruned() if live.fallback is not None and live.needs_matrix else None
    return Program(live.state, live.hypers, live.body, live.update, live.next_state, fallback)


def _about(
    program: Program, name: str, provenance: str | Mapping[str, object] | None, *, mark: str = "#", short: bool = False
) -> list[str]:
    """Comment lines on what the file holds. The first two are fixed: there Python looks for an encoding."""
    lines = [f"{mark} An update rule for training neural networks, exported as one file.", mark]
    lines += comments(f"name: {name}", mark) + comments(f"key: {program.key}", mark)
    if isinstance(provenance, Mapping):
        provenance = "\n".join(f"{word}: {' '.join(str(says).split())}" for word, says in provenance.items())
    if provenance:
        lines += comments(str(provenance), mark)
    if not short:
        lines += [mark, *comments(pseudo_code(program), f"{mark}  ")]
    return lines


def _latex(program: Program, name: str, provenance: str | Mapping[str, object] | None) -> str:
    from optforge.primitives.analysis.formula import latex

    about = _about(program, name, provenance, mark="%", short=True)
    return "\n".join([*about, r"\[", latex(program), r"\]"]) + "\n"


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
