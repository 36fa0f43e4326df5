"""MNIST-1D: ten short curves, padded, stretched, shifted, sheared and made noisy.

Greydanus & Kobak 2024, "Scaling down deep learning with MNIST-1D" (arXiv:2011.14439, first version Greydanus 2020),
generated with the published construction: templates, transformations, parameters and random numbers are those of the
authors' release, so that the examples are, too.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from optforge.search.training.task import Splits, TensorSplit

POINTS = 40
"""Length of an example."""

TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_EXAMPLES, _TRAIN, _VALID = 5000, 3200, 800
_LEAST_PAD, _MOST_PAD = 36, 60
_SHIFT = 48
_SCALE, _SHEAR = 0.4, 0.75
_SMOOTH_NOISE, _WHITE_NOISE = 0.25, 0.02


@functools.cache
def mnist1d() -> Splits:
    """The published 5,000 examples: 3,200 and 800 of the 4,000 for training, and the 1,000 for the test.

    Inputs are float32 ``[examples, 40]`` with mean 0 and variance 1 over everything, targets int64 ``[examples]``.
    """
    x, y = generate()
    inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    sizes = [_TRAIN, _VALID, _EXAMPLES - _TRAIN - _VALID]
    return Splits(*(TensorSplit(*part) for part in zip(inputs.split(sizes), targets.split(sizes), strict=True)))


def generate(seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """All examples, float64 ``[5000, 40]``, and their classes, int64 ``[5000]``; the published set for seed 42."""
    random = np.random.RandomState(seed)  # the old generator, whose numbers the published set is made of
    curves = np.array(TEMPLATES)
    curves = (curves - curves.mean(axis=1, keepdims=True)) / curves.std(axis=1, keepdims=True)
    curves = (curves - curves[:, :1]) / 6  # begin at 0, as the padding
    classes = np.repeat(np.arange(len(curves)), _EXAMPLES // len(curves))
    examples = np.stack([_example(curves[label], random) for label in classes])
    order = random.permutation(_EXAMPLES)
    examples, classes = examples[order], classes[order]
    return (examples - examples.mean()) / examples.std(), classes


def _example(curve: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """One distorted curve ``[40]``; draws its random numbers in the published order."""
    from scipy.ndimage import gaussian_filter

    longest = len(curve) + _MOST_PAD
    padding = np.zeros(_LEAST_PAD + int(random.rand() * (_MOST_PAD - _LEAST_PAD + 1)))
    x = _resampled(np.concatenate([curve + 1e-8, padding]), longest)  # what is exactly 0 is padding
    x *= 1 + _SCALE * (random.rand() - 0.5)
    x = np.roll(x, random.choice(_SHIFT))
    smooth = gaussian_filter(_SMOOTH_NOISE * random.randn(longest), 2)
    x = np.where(x != 0, x, smooth) + _WHITE_NOISE * random.randn(longest)
    x = x - _SHEAR * (random.rand() - 0.5) * np.linspace(-0.5, 0.5, longest)
    return _resampled(x, POINTS)


def _resampled(x: np.ndarray, points: int) -> np.ndarray:
    return np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(x)), x)
