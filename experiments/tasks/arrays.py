"""Any data in NumPy files: a folder of .npy files, or one .npz file."""

from __future__ import annotations

import functools
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from optforge.experiments.errors import UserError
from optforge.experiments.tasks.losses import cross_entropy, squared_error
from optforge.experiments.tasks.places import LAYOUT
from optforge.search.training.task import Splits, TensorSplit

PARTS = ("train", "valid", "test")


@functools.cache
def arrays(path: Path) -> Splits:
    """Examples from the arrays ``inputs`` and ``targets``.

    Inputs ``[examples, …]`` are flattened and standardised with mean and standard deviation of the training part.
    Targets of a whole-number type are classes 0, 1, … ``[examples]``; others are numbers ``[examples]`` or
    ``[examples, outputs]``, standardised likewise. Arrays called ``valid_inputs``, ``valid_targets``, ``test_inputs``
    and ``test_targets`` are used where they are; without them, 20 % of the examples, drawn once for all, are held out
    for each.

    Raises:
        UserError: if an array is missing, is not of numbers, has another length or shape than its partner, or holds
            values that are not finite.
    """
    found = _read(path)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part in PARTS:
        prefix = "" if part == "train" else f"{part}_"
        names = f"{prefix}inputs", f"{prefix}targets"
        if all(name in found for name in names):
            parts[part] = _pair(path, names, *(found[name] for name in names))
        elif part == "train" or any(name in found for name in names):
            missing = next(name for name in names if name not in found)
            raise UserError(
                f"{path} has no array {missing!r}; needed are {LAYOUT}, found: {', '.join(found) or 'none'}"
            )
    parts = _completed(parts)
    x, y = parts["train"]
    kinds = {(x.shape[1:], y.shape[1:], y.dtype.kind == "f") for x, y in parts.values()}
    if len(kinds) > 1 or any(len(part[0]) == 0 for part in parts.values()):
        raise UserError(
            f"the arrays for training, validation and test in {path} have different shapes, or too few rows"
        )
    x_scale, y_scale = _scale(x), _scale(y) if y.dtype.kind == "f" else None
    return Splits(*(_split(x, y, x_scale, y_scale) for x, y in (parts[part] for part in PARTS)))


def either_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for classes, mean squared error for numbers."""
    return squared_error(outputs, targets) if targets.is_floating_point() else cross_entropy(outputs, targets)


def outputs_of(splits: Splits) -> int:
    """How many outputs a model needs: classes, or numbers of one target."""
    targets = splits.train.batch(torch.arange(len(splits.train)))[1]
    if targets.is_floating_point():
        return targets.shape[1]
    return 1 + max(int(split.batch(torch.arange(len(split)))[1].max()) for split in splits)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.is_dir():
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UserError(f"{path} is one array; needed are {LAYOUT}")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        words = " ".join(str(error).split())[:160]
        raise UserError(f"{path} cannot be read as arrays of numbers: {words}") from None


def _pair(path: Path, names: tuple[str, str], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for name, array in zip(names, (x, y), strict=True):
        if array.dtype.kind not in "fiub":
            raise UserError(f"{name} in {path} holds {array.dtype}, not numbers")
        if array.ndim < 1 or not np.isfinite(array).all():
            raise UserError(f"{name} in {path} is a single number, or has values that are not finite")
    if not len(x):
        raise UserError(f"{names[0]} in {path} has no rows")
    if len(x) != len(y):
        raise UserError(f"{path} has {len(x):,} rows of {names[0]} and {len(y):,} of {names[1]}")
    x = x.reshape(len(x), -1)
    if y.dtype.kind == "f":
        return x, y.reshape(len(y), -1)
    if y.ndim != 1 or (len(y) and (y.min() < 0 or y.max() > 65_535)):
        raise UserError(
            f"{names[1]} in {path} holds whole numbers, so classes: it must be a list of 0 to 65,535 at most"
        )
    return x, y.astype(np.int64)


def _completed(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """With the parts that are missing taken from the training examples."""
    x, y = parts["train"]
    order = np.random.default_rng(0).permutation(len(x))
    missing = [part for part in PARTS if part not in parts]
    share = len(x) // 5
    for number, part in enumerate(missing):
        at = order[number * share : (number + 1) * share]
        parts[part] = x[at], y[at]
    rest = np.sort(order[len(missing) * share :])
    return parts | {"train": (x[rest], y[rest])}


def _scale(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    return mean, np.where(std > 0, std, 1.0)


def _split(
    x: np.ndarray, y: np.ndarray, x_scale: tuple[np.ndarray, np.ndarray], y_scale: tuple[np.ndarray, np.ndarray] | None
) -> TensorSplit:
    inputs = torch.tensor((x - x_scale[0]) / x_scale[1], dtype=torch.float32)
    if y_scale is None:
        return TensorSplit(inputs, torch.tensor(y))
    return TensorSplit(inputs, torch.tensor((y - y_scale[0]) / y_scale[1], dtype=torch.float32))
