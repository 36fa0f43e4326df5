"""Gradients that are far larger than usual: found from a sample, and scaled down to the usual size.

One such gradient would otherwise fill averages for many steps and mislead whatever is learned. On a CPU, reading all
gradients once more makes a compiled step a fifth slower, so that a few elements of each say whether it is worth it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learned.numeric import Number, kept, near, of
from primitives.parameters import global_norm

ONE = torch.ones((), dtype=torch.float64)
SPIKE = 10.0  # times their usual norm, above which gradients are scaled down to it
FIRST_SPIKE = 100.0  # times the norm of the second gradient, above which the first one was too large
_DOUBTFUL = 3.0  # times its usual norm, from which the sample calls for all
_SAMPLED = 4  # elements of a gradient, about: each comes from memory of its own
_GRADIENTS = 31  # at most, evenly spaced: each takes as long as a thousand elements that lie together
_ARRAYS = (torch.float32, torch.float64)  # which numpy knows, where a look at a part costs a third of torch's


def spaced(items: Sequence[Tensor]) -> Sequence[Tensor]:
    """31 of them, evenly spaced; all, if they are fewer."""
    count = len(items)
    return items if count <= _GRADIENTS else [items[i * count // _GRADIENTS] for i in range(_GRADIENTS)]


def sampled(gradients: Sequence[Tensor]) -> Number:
    """Norm of about 4 elements each of 31 gradients, evenly spaced; of all, if they are fewer."""
    chosen = spaced(gradients)
    arrays = all(g.dtype in _ARRAYS and g.device.type == "cpu" for g in chosen)
    flat: list[Any] = [(g.numpy(force=True) if arrays else g.detach()).reshape(-1) for g in chosen]
    some = [g[:: max(1, len(g) // _SAMPLED)] for g in flat]
    if arrays:
        together = np.concatenate(some, dtype=np.float64)
        return math.sqrt(together @ together)
    norm = torch.linalg.vector_norm(torch.cat(some).double())
    return near(norm, norm.device)


def damping(
    gradients: Iterable[Tensor], usual: Number, sample: Number, usual_sample: Number
) -> tuple[Tensor, Number | None]:
    """What to multiply gradients by, 0-dimensional float64, and their norm before it, if that had to be known.

    Where their norm is more than 10 times the `usual` one, it is that afterwards.

    Args:
        gradients: of all parameters.
        usual: their usual norm; 0 if nothing is known yet.
        sample, usual_sample: the same, now and usually, of what `sampled` looks at. Only where that shows less than 3
            times the usual is nothing else looked at, and only on CPUs, where knowing it does not wait for a device.
    """
    if (isinstance(sample, float) or not sample.is_cuda) and sample <= _DOUBTFUL * usual_sample:
        return ONE, None
    norm, limit = global_norm(gradients).double(), kept(usual)
    return torch.where((norm > SPIKE * limit) & (limit > 0), limit / norm, 1.0), near(norm, norm.device)


def follow(usual: Number, seen: Number, steps: int = 1) -> Number:
    """Average of norms that decays by 0.9 in each of the `steps` since it was known.

    The first one counts fully, one that is not finite not, and one that is too large as 10 times the usual.
    """
    where, known = of(seen).where, usual > 0
    seen = where(known, of(seen).minimum(seen, SPIKE * usual), seen)
    after = where(known, usual + (1 - 0.9**steps) * (seen - usual), seen)
    return where(of(after).isfinite(after), after, usual)


__all__ = ["FIRST_SPIKE", "ONE", "SPIKE", "damping", "follow", "sampled", "spaced"]
