"""Sentences about large moves of what a run learns, with their reasons."""

from __future__ import annotations

import math

from optforge.learned import LearnedOptimizer
from optforge.primitives.kinds import SCALES

LARGE = 0.99 * math.log(2.0)  # a factor of 2, or as much on a hyperparameter's own scale; but for rounding


def moves(optimizer: LearnedOptimizer, noted: dict[str, float]) -> list[str]:
    """A sentence for each learned quantity that has moved by a factor of 2 since it was last noted.

    Args:
        optimizer: whose quantities; reading them may wait for the device.
        noted: values when they were last mentioned, as of `LearnedOptimizer.learned_values`; updated in place.
    """
    found = []
    for name, value in optimizer.learned_values().items():
        before = noted.setdefault(name, value)
        forward = math.log if name == "lr" else SCALES[optimizer.scale(name)].forward
        if abs(forward(value) - forward(before)) >= LARGE:
            noted[name] = value
            verb = "raised" if value > before else "lowered"
            found.append(f"{name} {verb} from {before:.3g} to {value:.3g}: {_reason(optimizer, name, value > before)}")
    return found


def _reason(optimizer: LearnedOptimizer, name: str, up: bool) -> str:
    if name != "lr":
        way = "against" if up else "along"
        return f"gradients have pointed {way} what {name} changes in a step, so that the next loss is smaller so"
    if (cap := optimizer.reached_cap) is not None:
        return f"this is the cap, at which a step changes weights by up to {100 * cap:.2g} % of their size"
    return f"gradients {'agree with' if up else 'turn against'} the steps before them"


__all__ = ["LARGE", "moves"]
