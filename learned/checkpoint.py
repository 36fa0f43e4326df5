"""What is learned, in checkpoints: plain numbers in each parameter group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optforge.learned.rate import LearnedRate
from optforge.learned.watch import Watched
from optforge.primitives import ProgramError
from optforge.primitives.parameters import ASIDE, begin

FIELD = "learned:rate"
"""Key of a parameter group for its `LearnedRate`; no hyperparameter can have this name."""


def packed(rate: LearnedRate) -> dict[str, Any]:
    """As plain numbers by name."""
    return {name: x.item() if isinstance(x, Tensor) else x for name, x in rate._asdict().items()}


def unpacked(saved: Any, fresh: LearnedRate) -> LearnedRate:
    """The inverse of `packed`, completed from `fresh`; that itself if nothing was saved, as by a plain optimizer."""
    if not isinstance(saved, Mapping):
        return fresh
    kinds = fresh._asdict()
    numbers = {n: torch.tensor(x, dtype=torch.float64) if isinstance(kinds[n], Tensor) else x for n, x in saved.items()}
    start = {name: saved["start"].get(name, x) for name, x in fresh.start.items()}
    return LearnedRate(**numbers | {"start": start})


def check_saved(saved: Mapping[str, Any]) -> None:
    """Refuse a state_dict that another version has written, with a `ProgramError`; those of plain optimizers pass."""
    for group in saved["param_groups"]:
        found = group.get(FIELD)
        if "learning" in group or (found is not None and set(found) != set(LearnedRate._fields)):
            raise ProgramError(
                "this checkpoint is of a version of optforge that kept learned rates in another form; load the weights "
                "alone, and begin to learn from the rate that it had reached"
            )


def complete(state: dict[str, Any], watch: Watched, p: Tensor, dtype: torch.dtype) -> None:
    """Give a parameter's loaded state all slots that measure, and no others: those that it lacks start from scratch."""
    for name in [name for name in state if name.startswith(ASIDE) and name not in watch.extra]:
        del state[name]
    for slot in watch.program.state:
        if slot.name in watch.extra and slot.name not in state:
            state[slot.name] = begin(slot, p, dtype)
