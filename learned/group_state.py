"""What is learned of a parameter group and what it is learned from, as it is kept in ``group["learning"]``.

All of it is replaced, never changed in place: a state_dict may hold the old values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optforge.learned.losses import Losses
from optforge.learned.rules import named_rule

_ZERO = torch.zeros((), dtype=torch.float64)


def _fresh(rule: str, log_factor: Tensor, given: float, start: Mapping[str, float]) -> dict[str, Any]:
    return {
        "memory": named_rule(rule).init(),
        "steps": 0,
        "rising": _ZERO,  # whether gradients grow, so that no step rests
        "start": start,  # of hyperparameters besides lr, which stay near it
        # logarithms of the learned factor: what all groups share, the deviation of this one, and the sum in its bounds
        "common": log_factor,
        "own": _ZERO,
        "log": log_factor,
        # of the cap: the largest and the latest update per rate, and the first rate, for as long as it is trusted
        "large": _ZERO,
        "latest": _ZERO,
        "given": torch.tensor(given, dtype=torch.float64),
        # of spikes: usual norms of gradients and of a sample of them, and how many there were
        "norm": _ZERO,
        "some": _ZERO,
        "spikes": _ZERO,
        # of losses that closures return, see there
        "losses": torch.zeros(len(Losses._fields), dtype=torch.float64),
    }


def complete(group: dict[str, Any], first: Mapping[str, Any], rule: str, what: Sequence[str], lr: float) -> None:
    """Give a group what learning needs and it does not have: one that is new, or from an older or plain checkpoint.

    Args:
        group: the group, which is changed.
        first: the first group of the optimizer, whose common state it takes over; may be the same.
        rule, what: as for `learned.learn`.
        lr: the rate of a group whose own is 0, as that of a schedule may be.
    """
    group.setdefault("log_factor", first.get("log_factor", _ZERO))
    group.setdefault("base_lr", float(group["lr"]) or lr)
    group.setdefault("applied_lr", float(group["lr"]))
    older = group.get("learning", {})
    start = {name: older.get("start", {}).get(name, float(group[name])) for name in what if name != "lr"}
    fresh = _fresh(rule, group["log_factor"], first["base_lr"], start)
    shared = {**fresh, **first.get("learning", {}), "own": _ZERO}
    if "own" in older:
        shared["common"] = older["log"] - older["own"]
    else:
        shared["log"] = shared["common"]  # the first group's deviation is its own
    shared.setdefault("moved", older.get("steps", 0) - 1)
    group["learning"] = shared | older | {"start": start}  # what an older checkpoint has not begins anew
    if group["learning"]["memory"].keys() != fresh["memory"].keys():  # of another rule: this one begins anew
        group["learning"]["memory"] = fresh["memory"]


__all__ = ["complete"]
