"""Data of the built-in tasks that comes with a required package, or is generated; nothing is downloaded."""

from __future__ import annotations

import functools

import numpy as np
import torch

from optforge.search.training.task import Splits, TensorSplit

SYMBOLS, BLANK, GO = 8, 8, 9
"""Classes of the copy task: symbols to remember come first, then the blank and the sign to recall."""

COPY_LENGTH, COPY_DELAY = 5, 8
"""Symbols to remember, and blanks until they are asked for."""


@functools.cache
def digits() -> Splits:
    """The 1,797 handwritten digits of scikit-learn (8×8 pixels, 10 classes), stratified 60/20/20.

    Pixels are divided by 16, then each is standardised with its mean over the training part and its standard
    deviation there plus 0.01 (some pixels are always black). Inputs are float32 ``[examples, 64]``, targets
    int64 ``[examples]``.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _standardised(x / 16, y)


@functools.cache
def digits_autoencoder() -> Splits:
    """The images of `digits`, each its own target."""
    splits = digits()
    return Splits(*(TensorSplit(split.inputs, split.inputs) for split in splits))  # type: ignore[attr-defined]


@functools.cache
def breast_cancer() -> Splits:
    """The 569 tumours of scikit-learn (30 measurements, benign or malignant), stratified 60/20/20.

    Standardised as `digits`. Inputs are float32 ``[examples, 30]``, targets int64 ``[examples]``.
    """
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _standardised(x, y)


@functools.cache
def copy() -> Splits:
    """Random symbols to be recalled after a delay: 4,096 sequences to learn from, 512 each to measure on.

    The copy task of Hochreiter & Schmidhuber 1997 (doi:10.1162/neco.1997.9.8.1735) in the form of Arjovsky et al. 2016
    (arXiv:1511.06464, §4.1): symbols, blanks, a sign, and as many blanks as there were symbols. Variant: shorter, and
    the answers alone count. Inputs are int64 ``[sequences, 18]``, targets the symbols ``[sequences, 5]``.
    """
    count = 4096 + 2 * 512
    symbols = torch.randint(SYMBOLS, (count, COPY_LENGTH), generator=torch.Generator().manual_seed(0))
    wait, answer = torch.full((count, COPY_DELAY), BLANK), torch.full((count, COPY_LENGTH), BLANK)
    answer[:, 0] = GO
    inputs = torch.cat([symbols, wait, answer], dim=1)
    parts = zip(inputs.split([4096, 512, 512]), symbols.split([4096, 512, 512]), strict=True)
    return Splits(*(TensorSplit(x, y) for x, y in parts))


def _standardised(x: np.ndarray, y: np.ndarray) -> Splits:
    from sklearn.model_selection import train_test_split

    train_x, rest_x, train_y, rest_y = train_test_split(x, y, test_size=0.4, stratify=y, random_state=0)
    valid_x, test_x, valid_y, test_y = train_test_split(rest_x, rest_y, test_size=0.5, stratify=rest_y, random_state=0)
    mean, std = train_x.mean(axis=0), train_x.std(axis=0) + 0.01

    def split(inputs: np.ndarray, targets: np.ndarray) -> TensorSplit:
        return TensorSplit(torch.tensor((inputs - mean) / std, dtype=torch.float32), torch.tensor(targets).long())

    return Splits(split(train_x, train_y), split(valid_x, valid_y), split(test_x, test_y))
