"""Tasks whose data lie in files: one row each, and how a path and a size complete it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from optforge.experiments.errors import UserError, unknown
from optforge.experiments.tasks.arrays import arrays, either_loss, outputs_of
from optforge.experiments.tasks.images import Images, cifar10, idx_images
from optforge.experiments.tasks.losses import cross_entropy
from optforge.experiments.tasks.models import MLP, ConvNet
from optforge.experiments.tasks.places import PLACES, Place
from optforge.experiments.tasks.text_files import text_bytes, text_tokens
from optforge.experiments.tasks.texts import Windows
from optforge.experiments.tasks.transformers import GPT, SIZES, Size, ViT
from optforge.search.training.task import Splits, Task


@dataclass(frozen=True)
class FileTask:
    """A row: a task without its data and model, and what reads and makes them.

    Attributes:
        facts: all of `Task` but name, data and model.
        place: where the data lie if nobody says otherwise.
        read: loads the splits from a path, for a size; cached.
        build: makes the model for the splits, in a size.
        sized: whether there is a choice among `SIZES`; the first of them is the default.
    """

    facts: Mapping[str, Any]
    place: Place
    read: Callable[[Path, Size], Splits]
    build: Callable[[Splits, Size], nn.Module]
    sized: bool = False

    def task(self, path: Path | None = None, size: str | None = None) -> Task:
        """The task on the data at `path`, or at its place; they are looked for when they are first asked for.

        Raises:
            UserError: if there is no such size.
        """
        name = self.place.task
        if size is not None and not self.sized:
            raise UserError(f"task {name} comes in one size; leave out :{size[:40]}")
        if size is not None and size not in SIZES:
            raise unknown("size", size, SIZES)
        preset = SIZES[size or next(iter(SIZES))]

        def data() -> Splits:
            return self.read(self.place.find(path), preset)

        task = Task(name=name, model=lambda: self.build(data(), preset), data=data, **self.facts)
        if path is not None:
            task = replace(task, summary=f"{task.summary}, from {path.name}", target=None)
        if size is not None and preset != SIZES[next(iter(SIZES))]:
            task = replace(task, name=f"{name}-{size}", summary=f"{task.summary}; size {size}", target=None)
        return task


def _gpt(splits: Splits, size: Size) -> GPT:
    assert isinstance(splits.train, Windows)
    return GPT(splits.train.classes, size.context, size.width, size.heads, size.depth, tied=True)


def _images(splits: Splits) -> tuple[tuple[int, int], int]:
    """Channels and side of the images, and the number of classes."""
    assert isinstance(splits.train, Images)
    _, channels, side, _ = splits.train.pixels.shape
    return (channels, side), 1 + int(splits.train.classes.max())


def _vit(splits: Splits, size: Size) -> ViT:
    shape, classes = _images(splits)
    return ViT(shape, 7 if shape[1] % 7 == 0 else 4, classes, size.width, size.heads, size.depth)


def _conv(splits: Splits, size: Size) -> ConvNet:
    shape, classes = _images(splits)
    return ConvNet(shape, (8, 16), classes)


def _mlp(splits: Splits, size: Size) -> MLP:
    inputs, _ = splits.train.batch(torch.zeros(1, dtype=torch.int64))
    return MLP(math.prod(inputs.shape[1:]), 64, outputs_of(splits))


_NATS = "cross-entropy [nats]"
_CLASSES = {"loss": cross_entropy, "metric": _NATS, "accuracy": True}
_BYTES = {"loss": cross_entropy, "metric": "cross-entropy [nats per byte]", "accuracy": True}
_TOKENS = {"loss": cross_entropy, "metric": "cross-entropy [nats per token]", "accuracy": True}


def _bytes(path: Path, size: Size) -> Splits:
    return text_bytes(path, size.context)


def _tokens(path: Path, size: Size) -> Splits:
    return text_tokens(path, size.context, size.vocabulary)


def _idx(path: Path, size: Size) -> Splits:
    return idx_images(path)


FILE_TASKS: Mapping[str, FileTask] = MappingProxyType({
    row.place.task: row
    for row in (
        FileTask(
            {
                "summary": "MNIST, 28×28 pixels; two convolutions of 8 and 16 channels, 9,098 parameters",
                "steps": 500,
                "batch_size": 64,
                "licence": "CC BY-SA 3.0 (LeCun, Cortes & Burges)",
                "target": 0.15,
                **_CLASSES,
            },
            PLACES["mnist"],
            _idx,
            _conv,
        ),
        FileTask(
            {
                "summary": "MNIST in 16 patches; vision transformer, nano: 105,098 parameters",
                "steps": 500,
                "batch_size": 64,
                "licence": "CC BY-SA 3.0 (LeCun, Cortes & Burges)",
                "target": 0.55,
                **_CLASSES,
            },
            PLACES["mnist-vit"],
            _idx,
            _vit,
            sized=True,
        ),
        FileTask(
            {
                "summary": "Fashion-MNIST, 28×28 pixels; two convolutions of 8 and 16 channels, 9,098 parameters",
                "steps": 500,
                "batch_size": 64,
                "licence": "MIT (Zalando)",
                **_CLASSES,
            },
            PLACES["fashion-mnist"],
            _idx,
            _conv,
        ),
        FileTask(
            {
                "summary": "CIFAR-10 in 64 patches; vision transformer, nano: 107,914 parameters",
                "steps": 1000,
                "batch_size": 64,
                "licence": "not stated (Krizhevsky 2009)",
                **_CLASSES,
            },
            PLACES["cifar10"],
            lambda path, size: cifar10(path),
            _vit,
            sized=True,
        ),
        FileTask(
            {
                "summary": "Shakespeare's plays, byte by byte; GPT, nano: 108,352 parameters",
                "steps": 500,
                "batch_size": 32,
                "licence": "public domain",
                "target": 2.3,
                **_BYTES,
            },
            PLACES["shakespeare"],
            _bytes,
            _gpt,
            sized=True,
        ),
        FileTask(
            {
                "summary": "TinyStories, stories as byte pairs; GPT, nano: 169,728 parameters",
                "steps": 500,
                "batch_size": 16,
                "licence": "CDLA-Sharing-1.0 (Eldan & Li 2023, arXiv:2305.07759)",
                "target": 3.8,
                **_TOKENS,
            },
            PLACES["tinystories"],
            _tokens,
            _gpt,
            sized=True,
        ),
        FileTask(
            {
                "summary": "WikiText-2, articles as byte pairs; GPT, nano: 169,728 parameters",
                "steps": 500,
                "batch_size": 16,
                "licence": "CC BY-SA 3.0 (Wikipedia; Merity et al. 2016, arXiv:1609.07843)",
                **_TOKENS,
            },
            PLACES["wikitext"],
            _tokens,
            _gpt,
            sized=True,
        ),
        FileTask(
            {
                "summary": "a text file of yours, byte by byte; GPT",
                "steps": 500,
                "batch_size": 32,
                "licence": "yours",
                **_BYTES,
            },
            PLACES["text"],
            _bytes,
            _gpt,
            sized=True,
        ),
        FileTask(
            {
                "summary": "arrays of yours, classes or numbers to be predicted; MLP with one layer of 64",
                "steps": 500,
                "batch_size": 64,
                "licence": "yours",
                "loss": either_loss,
                "metric": "cross-entropy [nats], or squared error [variances]",
            },
            PLACES["arrays"],
            lambda path, size: arrays(path),
            _mlp,
        ),
    )
})  # fmt: skip


@functools.cache
def file_task(name: str, path: Path | None, size: str | None) -> Task:
    """A task of `FILE_TASKS` whose data were found and loaded, so that nothing fails later.

    Raises:
        UserError: if the data are missing or are not what they should be, or there is no such size.
    """
    task = FILE_TASKS[name].task(path, size)
    train = task.data().train
    if name == "arrays" and not train.batch(torch.zeros(1, dtype=torch.int64))[1].is_floating_point():
        return replace(task, metric=_NATS, accuracy=True)
    return task if name != "arrays" else replace(task, metric="squared error [variances]")
