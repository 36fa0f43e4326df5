"""Comparisons as they were written to JSON, read back for reports."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from cattrs import Converter
from cattrs.errors import BaseValidationError

from optforge.baselines import BASELINES
from optforge.experiments.compare.comparison import Comparison
from optforge.experiments.compare.contest import Contest
from optforge.experiments.errors import UserError
from optforge.primitives import Program, ProgramError, parse_program
from optforge.search.training import Task

EDITED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, StopIteration)
"""What reading, judging or drawing something else than a comparison raises."""


def contest_from_json(found: dict[str, Any], source: Path) -> Contest:
    """The comparisons in `found`, on several tasks or on one; their tasks have neither data nor model.

    Raises:
        UserError: if there is none; `source` is the file to blame.
    """
    try:
        if "comparisons" not in found:
            comparison = _comparison(found)
            return Contest((comparison,), comparison.verdict, {}, (), {})
        comparisons = tuple(map(_comparison, found["comparisons"]))
        if any([e.name for e in c.entries] != [e.name for e in comparisons[0].entries] for c in comparisons):
            raise ValueError("not the same optimizers on every task")
        contest = _converter().structure(found | {"comparisons": ()}, Contest)
        if len({len(ratios) for ratios in contest.profiles.values()}) > 1:
            raise ValueError("profiles of different lengths")
        return Contest(comparisons, contest.verdict, contest.profiles, contest.notes, contest.plan)
    except ProgramError as error:
        raise UserError(f"{source} holds a program that cannot be read: {error}") from None
    except (*EDITED, BaseValidationError) as error:
        raise UserError(
            f"{source} is not a comparison's JSON ({type(error).__name__}: {error}); was it edited?"
        ) from None


def finite_or_nan(value: Any) -> float:
    """The number, or NaN for null, as which runs write all that is not finite; ValueError for infinity and NaN."""
    if value is None:
        return math.nan
    if not math.isfinite(value):
        raise ValueError(f"{value} where a finite number or null is expected")
    return float(value)


def _comparison(found: dict[str, Any]) -> Comparison:
    """What `Comparison.as_json` wrote; files that do not say which entries are references go by names."""
    entries = [{"reference": e["name"] in BASELINES} | e for e in found["optimizers"]]
    task = found["task"] | {
        "steps": found["protocol"]["steps"],
        "accuracy": any(e["accuracy"] is not None for e in entries),
    }
    whole = found | {"entries": entries, "protocol": found["protocol"] | {"task": task}}
    comparison = _converter().structure(whole, Comparison)
    names = {e.name for e in comparison.entries}
    if not names or any({p.first, p.second} - names for p in comparison.pairs):
        raise ValueError("pairs of optimizers that are not listed")
    seeds = comparison.protocol.seeds
    if odd := [e.name for e in comparison.entries if len(e.runs) != len(seeds) or math.isnan(e.mean)]:
        raise ValueError(f"{odd[0]} needs a mean and one run for each of {len(seeds)} seeds")
    if len({(len(run.curve), len(run.valid_curve)) for e in comparison.entries for run in e.runs}) > 1:
        raise ValueError("curves of different lengths")
    return comparison


@cache
def _converter() -> Converter:
    """Structures JSON by the annotations of the dataclasses."""
    found = Converter(detailed_validation=False)
    found.register_structure_hook(float, lambda value, _: finite_or_nan(value))
    found.register_structure_hook(int, lambda value, _: int(finite_or_nan(value)))
    found.register_structure_hook(bool, lambda value, _: bool(value))  # which would be an int
    found.register_structure_hook(Program, lambda value, _: parse_program(value))
    found.register_structure_hook(Task, lambda value, _: Task(**value, model=_absent, data=_absent, loss=_absent))
    return found


def _absent(*_: Any) -> Any:
    raise NotImplementedError("a comparison that was read from a file has neither data nor model")
