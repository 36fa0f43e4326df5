"""`optforge distil`: a symbolic program in place of a learned rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from optforge.experiments.errors import unknown
from optforge.experiments.files import check_can_write, write_atomic
from optforge.experiments.provenance import provenance
from optforge.experiments.training.meta_problems import PROBLEMS
from optforge.learned.meta_distil import candidates, distil, samples
from optforge.learned.meta_weights import load
from optforge.primitives import print_program
from optforge.primitives.export.pseudocode import pseudo_code


def distil_command(
    which: str, problems: Sequence[str] | None, terms: int, seed: int, output: Path | None, json_file: Path | None
) -> None:
    """Fit sums of 1 to `terms` terms to a learned rule, and print the last as pseudo-code, with R² of all.

    Raises:
        UserError, ProgramError: if there are no such weights or problems.
    """
    check_can_write("--json", json_file)
    check_can_write("--output", output)
    rule, weights, card = load(which)
    names = list(problems or card.get("problems") or ["digits"])
    for name in names:
        if name not in PROBLEMS:
            raise unknown("problem", name, PROBLEMS)
    problem = PROBLEMS[names[0]]("cpu")
    dictionary = candidates()
    workers = min(problem.workers, 16)
    fitted, held_out = (samples(rule, problem, weights, s, workers, dictionary) for s in (seed, seed + 1))
    found = [distil(fitted, held_out, dictionary, count) for count in range(1, terms + 1)]
    print(f"{which} on {problem.name}, as a sum of terms:")
    for d in found:
        print(f"  {d.terms} term{'s' * (d.terms > 1)}: R² {d.fitted:.3f}, on other training runs {d.held_out:.3f}")
    print()
    print(pseudo_code(found[-1].program))
    if output is not None:
        write_atomic(output, print_program(found[-1].program))
    if json_file is not None:
        rows = [{"terms": d.terms, "r2": d.fitted, "r2_held_out": d.held_out, "program": str(d.program)} for d in found]
        record = {"weights": which, "problem": problem.name, "seed": seed, "found": rows, "provenance": provenance()}
        write_atomic(json_file, json.dumps(record, indent=2) + "\n")
