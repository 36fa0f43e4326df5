"""Images in files: the IDX files of MNIST and its likes, and the binary files of CIFAR-10."""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optforge.experiments.errors import UserError
from optforge.search.training.task import Splits

HELD_OUT = 50
"""One of so many training images is for validation: enough to select by, and few enough to look at them often."""


@dataclass(frozen=True)
class Images:
    """Pictures kept as bytes, standardised by channel when they are asked for.

    Attributes:
        pixels: uint8 ``[examples, channels, side, side]``.
        classes: int64 ``[examples]``.
        mean, std: of each channel over the training split, float32 ``[channels, 1, 1]``.
    """

    pixels: Tensor
    classes: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[*indices.shape, channels, side, side]`` in float32, and their classes."""
        return (self.pixels[indices].float() - self.mean) / self.std, self.classes[indices]


@functools.cache
def idx_images(folder: Path) -> Splits:
    """MNIST (LeCun et al. 1998), Fashion-MNIST, or any other data in its four files, gzipped or not.

    Every 50th training image is for validation.

    Raises:
        UserError: if a file is missing or is not what its name says.
    """
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(_either(folder, f"{part}-images-idx3-ubyte"), 3)
        labels = read_idx(_either(folder, f"{part}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels):
            raise UserError(f"{folder} has {len(images):,} images and {len(labels):,} labels for {part}")
        parts.append((images[:, None], labels))
    return _splits(*parts[0], *parts[1])


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The bytes of an IDX file, uint8: two zero bytes, a type, a number of dimensions, their sizes, the values.

    Raises:
        UserError: if the file has another type, another number of dimensions, or another length than it says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise UserError(f"{path} is not an IDX file of bytes with {dimensions} dimensions; is it complete?")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    if len(content) != start + int(np.prod(shape)):
        raise UserError(f"{path} should hold {shape} bytes and has {len(content) - start:,}; copy it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


@functools.cache
def cifar10(folder: Path) -> Splits:
    """CIFAR-10 (Krizhevsky 2009) in its binary files: a byte for the class, then 3 × 32 × 32 for the pixels.

    The files may lie in `folder` itself or in ``cifar-10-batches-bin`` in it. Every 50th training image is for
    validation.

    Raises:
        UserError: if a file is missing or its length is not that of whole records.
    """
    inside = folder / "cifar-10-batches-bin"
    folder = inside if inside.is_dir() else folder
    train = [_records(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    return _splits(*_pixels(train), *_pixels([_records(folder / "test_batch.bin")]))


def _records(path: Path) -> np.ndarray:
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; is CIFAR-10's binary version complete?") from None
    if not len(content) or len(content) % 3073:
        raise UserError(f"{path} has {len(content):,} bytes, which are no records of 3,073; is it the binary version?")
    return content.reshape(-1, 3073)


def _pixels(records: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(np.concatenate(records))
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _either(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{folder} lacks {name} (or {name}.gz)")


def _splits(pixels: Tensor, classes: Tensor, test_pixels: Tensor, test_classes: Tensor) -> Splits:
    held_out = torch.arange(len(pixels)) % HELD_OUT == HELD_OUT - 1
    train = pixels[~held_out]
    # in whole numbers, as sums of so many floats depend on the machine
    values = torch.stack([train[:, c].flatten().bincount(minlength=256) for c in range(train.shape[1])]).double()
    levels = torch.arange(256.0, dtype=torch.float64)
    mean = values @ levels / values.sum(1)
    std = (values @ levels.square() / values.sum(1) - mean.square()).sqrt().clamp_min(1.0)
    scale = mean.float()[:, None, None], std.float()[:, None, None]
    return Splits(
        Images(train, classes[~held_out].long(), *scale),
        Images(pixels[held_out], classes[held_out].long(), *scale),
        Images(test_pixels, test_classes.long(), *scale),
    )
