"""What `optforge show`, `simplify`, `export`, `certify` and `equivalent` print and write."""

from __future__ import annotations

import json
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from optforge.experiments.errors import UserError
from optforge.experiments.files import check_can_write, write_atomic
from optforge.experiments.programs.names import describe, usual_rate
from optforge.primitives import Program
from optforge.primitives.analysis.certificate import certificate
from optforge.primitives.analysis.cost import cost
from optforge.primitives.analysis.equivalence import equivalent
from optforge.primitives.analysis.simplify import Step, simplify
from optforge.primitives.export.one_file import export
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.primitives.program import show_arg


def print_about(name: str, program: Program, form: str = "text") -> None:
    """Print a program.

    `form` is ``text`` (which, comments and all, can be parsed again), ``json``, ``latex``, ``unicode`` or ``pseudo``.
    """
    if form == "json":
        print(json.dumps(describe(name, program), indent=2))
    elif form == "latex":
        from optforge.primitives.analysis.formula import latex

        print(latex(program))
    elif form == "unicode":
        from optforge.primitives.analysis.formula import unicode_text

        print(unicode_text(program))
    elif form == "pseudo":
        print(pseudo_code(program))
    else:
        live, price = len(program.live.instructions), cost(program)
        print(program, end="")
        print(f"# {name}: {len(program.body)} statements, {live} of them live; key {program.key}")
        print(f"# {price.state_bytes:.4g} bytes of state for each parameter, in float32")
        print(
            f"# {price.flops:.4g} flops, and {price.moved_bytes:.4g} bytes that must move "
            f"({price.unfused_bytes:.4g} if nothing is fused)"
        )
        _comment(pseudo_code(program))


def print_simplified(name: str, program: Program, json_file: str | None) -> None:
    """Simplify a program and print what is left, as text that can be parsed; or only JSON, for ``-``."""
    steps: list[Step] = []
    simple = simplify(program, steps)
    if json_file == "-":
        print(_simplified_json(name, program, simple, steps), end="")
        return
    if json_file is not None:
        _write(Path(json_file), _simplified_json(name, program, simple, steps), "--json")
    print(simple, end="")
    before, after = len(program.body), len(simple.body)
    print(f"# {name}: {before} statements before, {after} after; {len(program.state)} slots before, ", end="")
    print(f"{len(simple.state)} after; key {program.key} before, {simple.key} after")
    for step, count in Counter(steps).items():
        print(f"# {step.left} = {step.right}" + (f"   ({count} times)" if count > 1 else ""))
    _comment(pseudo_code(simple))


def _simplified_json(name: str, program: Program, simple: Program, steps: list[Step]) -> str:
    found: dict[str, Any] = {
        "name": name,
        "statements": [f"x{i} = {instr}" for i, instr in enumerate(simple.body)],
        "update": show_arg(simple.update),
        "state": [
            {"name": s.name, "kind": s.kind.name, "init": s.init, "next": show_arg(arg)}
            for s, arg in zip(simple.state, simple.next_state, strict=True)
        ],
        "hyperparameters": [{"name": h.name, "default": h.default, "scale": h.scale} for h in simple.hypers],
        "rules": [{"left": s.left, "right": s.right, "times": count} for s, count in Counter(steps).items()],
        "before": {"key": program.key, "statements": len(program.body), "slots": len(program.state)},
        "after": {"key": simple.key, "statements": len(simple.body), "slots": len(simple.state)},
        "pseudo_code": pseudo_code(simple),
        "program": str(simple),
    }
    return json.dumps(found, indent=2) + "\n"


def write_export(name: str, program: Program, *, to: str, argument: str, output: Path | None) -> None:
    """Export a program to a file, or to the terminal."""
    made = {"exported from": argument, "by": f"optforge {metadata.version('optforge')}"}
    rate = usual_rate(argument)
    if "#" in argument:
        made["default learning rate"] = f"{rate:g}, as tuned at the end of the search"
    text = export(program, name, to, made, rate if "#" in argument else 1e-3)
    if output is None:
        print(text, end="")
    else:
        _write(output, text, "--output")
        print(f"wrote {name} for {to} to {output}")


def print_certificate(name: str, program: Program, as_json: bool) -> None:
    """Print what the probes say of a program, and of its fallback if it is used."""
    parts = {name: program}
    if program.fallback is not None and program.needs_matrix:
        parts[f"{name}, for parameters without rows and columns"] = program.fallback
    found = [(title, part, certificate(part)) for title, part in parts.items()]
    if as_json:
        rows = [{"name": title, "key": part.key, **c.as_dict(), "sentences": c.sentences()} for title, part, c in found]
        print(json.dumps(rows[0] | {"fallback": rows[1] if len(rows) > 1 else None}, indent=2, allow_nan=False))
        return
    for title, part, c in found:
        print(f"{title} (key {part.key})")
        for sentence in c.sentences():
            print(f"  {sentence}")


def print_equivalence(first: tuple[str, Program], second: tuple[str, Program], *, up_to_rate: bool) -> str:
    """Print a sentence on whether two programs are equal; returns ``proved``, ``refuted`` or ``not decided``."""
    (one, p), (other, q) = first, second
    found = equivalent(p, q, up_to_rate=up_to_rate)
    same = "the same rule up to the learning rate" if up_to_rate else "the same rule"
    if found.answer == "proved":
        same += ", in exact arithmetic"
    says = {"proved": f"{one} and {other} are {same}", "refuted": f"{one} and {other} are not {same}"}
    print(f"{says.get(found.answer, f'it is not decided whether {one} and {other} are {same}')}: {found.reason}")
    return str(found.answer)


def _comment(text: str) -> None:
    print("#")
    for line in text.splitlines():
        print(f"#   {line}")


def _write(path: Path, text: str, option: str) -> None:
    check_can_write(option, path)
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror}") from None
