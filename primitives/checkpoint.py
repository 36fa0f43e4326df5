"""Whether a checkpoint belongs to the optimizer that is to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from torch import Tensor

from optforge.primitives.kinds import RESERVED, SIGNALS, ProgramError
from optforge.primitives.options import merged_hypers
from optforge.primitives.parameters import ASIDE
from optforge.primitives.program import Program
from optforge.primitives.routing import Route


def check_fits(saved: Mapping[str, Any], program: Program, parameters: Sequence[tuple[Tensor, Route]]) -> None:
    """Refuse the state that another program left, or the same one with other routes.

    Args:
        saved: a state_dict. Its entries ``"program"`` (text) and ``"routes"`` are compared where it has them, which
            torch's own checkpoints and distributed ones have not.
        program: the rule of the optimizer that is to load it. Its hyperparameters may have other values.
        parameters: what that optimizer trains, in order, and where it goes.

    Raises:
        ProgramError: naming what differs: a line of the program, a route, a hyperparameter, a slot or its shape.
    """
    other = "this checkpoint is of another program"
    if "program" in saved:
        for theirs, ours in zip_longest(_rule(saved["program"]), _rule(str(program)), fillvalue="nothing"):
            if theirs != ours:
                raise ProgramError(
                    f"{other}, which has {theirs!r} where this one has {ours!r}; if its state shall be used "
                    "nevertheless, delete 'program' from it"
                )
    routes = saved.get("routes", [route.which for _, route in parameters])
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    # torch itself refuses other numbers of parameters
    for i, (key, went, (p, (name, _, goes))) in enumerate(zip(ids, routes, parameters, strict=False)):
        which = f"parameter {i}" + (f", {name!r}," if name else "")
        if went != goes:
            raise ProgramError(
                f"in this checkpoint, {which} went to the {went}, but here it goes to the {goes}; build the "
                "optimizer with the same groups and the same `where`"
            )
        state = saved["state"].get(key)
        rule = program if goes == "program" else program.fallback
        if not state or rule is None:
            continue  # which begins with its next gradient
        slots = {s.name: s.kind.shape(p.shape) for s in rule.state}
        found = sorted(k for k in state if k in slots or not (k in SIGNALS or k in RESERVED or k.startswith(ASIDE)))
        if found != sorted(slots) or "step" not in state:
            raise ProgramError(
                f"{other}: its state of {which} is {_listed(sorted(state))}, but this one's "
                f"{_listed(sorted(['step', *slots]))}"
            )
        for slot, shape in slots.items():
            if tuple(getattr(state[slot], "shape", ())) != shape:
                raise ProgramError(
                    f"this checkpoint is of another model: slot {slot!r} of {which} has shape "
                    f"{tuple(getattr(state[slot], 'shape', ()))}, but {shape} is needed"
                )
    for group in saved["param_groups"]:
        for name in merged_hypers(program, {}):
            if name not in group:
                raise ProgramError(f"{other}: a parameter group has no hyperparameter {name!r}")


def _rule(text: str) -> list[str]:
    """The lines that say what a program does, without the values of hyperparameters."""
    return [re.sub(r"^(hyper \w+) = .*", r"\1", line) for line in text.splitlines() if line.strip()]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
