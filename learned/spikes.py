"""Gradients that are far larger than usual: found from a sample, and scaled down to the usual size.

One such gradient would otherwise fill averages for many steps and mislead whatever is learned. On a CPU, reading all
gradients once more makes a compiled step a fifth slower, so that a few elements of each say whether it is worth it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optforge.learned.numeric import Number, kept, near, of
from optforge.primitives.parameters import global_norm

ONE = torch.ones((), dtype=torch.float64)
SPIKE = 10.0  # times their usual norm, above which gradients are scaled down to it
FIRST_SPIKE = 100.0  # times the norm of the second gradient, above which the first one was too large
RISING = 2.0  # times the usual norm of the sample, from which gradients grow: by an eighth in each step or more
_DOUBTFUL = 3.0  # times its usual norm, from which the sample calls for all
_OFTEN = 8.0  # spikes in about the last thousand steps, which are no outliers
_SAMPLED = 124  # elements of all gradients together, about: each comes from memory of its own
_GRADIENTS = 31  # at most, evenly spaced: each takes as long as a thousand elements that lie together
_ARRAYS = (torch.float32, torch.float64)  # which numpy knows, where a look at a part costs a third of torch's


def spaced(items: Sequence[Tensor]) -> Sequence[Tensor]:
    """31 of them, evenly spaced; all, if they are fewer."""
    count = len(items)
    return items if count <= _GRADIENTS else [items[i * count // _GRADIENTS] for i in range(_GRADIENTS)]


@lru_cache(maxsize=4096)
def _places(size: int, count: int, device: torch.device | None) -> Any:
    """`count` places among `size`, spread by the golden ratio: no row or column of a matrix has many of them."""
    spread = np.arange(min(count, size)) * ((5**0.5 - 1) / 2) % 1 * size
    places = spread.astype(np.int64) if count < size else np.arange(size)
    return places if device is None else torch.from_numpy(places).to(device)


def sampled(gradients: Sequence[Tensor]) -> Number:
    """Norm of about 124 elements of 31 gradients, evenly spaced; of all, if they are fewer."""
    chosen = spaced(gradients)
    arrays = all(g.dtype in _ARRAYS and g.device.type == "cpu" for g in chosen)
    flat: list[Any] = [(g.numpy(force=True) if arrays else g.detach()).reshape(-1) for g in chosen]
    count = _SAMPLED // max(1, len(flat))
    some = [g[_places(len(g), count, None if arrays else g.device)] for g in flat]
    if arrays:
        together = np.concatenate(some, dtype=np.float64)
        return math.sqrt(together @ together)
    norm = torch.linalg.vector_norm(torch.cat(some).double())
    return near(norm, norm.device)


def damping(
    gradients: Iterable[Tensor], usual: Number, sample: Number, usual_sample: Number, often: Number = 0.0
) -> tuple[Tensor, Number | None]:
    """What to multiply gradients by, 0-dimensional float64, and their norm before it, if that had to be known.

    Where their norm is more than 10 times the `usual` one, it is that afterwards; unless that happens often.

    Args:
        gradients: of all parameters.
        usual: their usual norm; 0 if nothing is known yet.
        sample, usual_sample: the same, now and usually, of what `sampled` looks at. Only where that shows less than 3
            times the usual is nothing else looked at, and only on CPUs, where knowing it does not wait for a device.
        often: how many there have been, see `counted`.
    """
    if (isinstance(sample, float) or not sample.is_cuda) and sample <= _DOUBTFUL * usual_sample:
        return ONE, None
    norm, limit = global_norm(gradients, wide=True).double(), kept(usual)
    return torch.where(_is_spike(limit, norm) & (kept(often) < _OFTEN), limit / norm, 1.0), near(norm, norm.device)


def _is_spike(usual: Number, seen: Number) -> Any:
    return (usual > 0) & (seen > SPIKE * usual) & of(seen).isfinite(seen)


def counted(often: Number, usual: Number, seen: Number | None) -> Number:
    """The number of spikes in about the last thousand steps, after one with gradients of norm `seen`, if that is known.

    Some tasks have few batches that say much, and many that say next to nothing. Their gradients are no outliers.
    """
    if seen is None:
        return 0.999 * often
    return 0.999 * often + of(seen).where(_is_spike(usual, seen), 1.0, 0.0)


def follow(usual: Number, seen: Number, steps: int = 1) -> Number:
    """Average of norms that decays by 0.9 in each of the `steps` since it was known.

    The first one counts fully, one that is 0 or not finite not, and one that is too large as 10 times the usual.
    """
    where, known = of(seen).where, usual > 0
    counts = of(seen).isfinite(seen) & (seen > 0)
    seen = where(known, of(seen).minimum(seen, SPIKE * usual), seen)
    after = where(known, usual + (1 - 0.9**steps) * (seen - usual), seen)
    return where(counts, after, usual)


__all__ = ["FIRST_SPIKE", "ONE", "RISING", "SPIKE", "counted", "damping", "follow", "sampled", "spaced"]
