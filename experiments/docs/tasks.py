"""docs/tasks.md, written from the rows of `experiments.tasks.table` and `experiments.tasks.file_tasks`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from optforge.experiments.docs.optimizers import ROOT, table
from optforge.experiments.report.listings import target_words
from optforge.experiments.tasks import TASKS
from optforge.experiments.tasks.file_tasks import FILE_TASKS
from optforge.experiments.tasks.places import FOLDER
from optforge.experiments.tasks.transformers import GPT, SIZES, ViT
from optforge.search.training import Task

PAGE = ROOT / "docs" / "tasks.md"

_TEXT = """
# Tasks

A task is data, a model, a loss, and how long to train. Every command that trains has `--task NAME`; `optforge tasks`
prints these tables. This page is written by `make docs` from the rows of `experiments/tasks/table.py`
and `experiments/tasks/file_tasks.py`.

*Target* is the validation loss that AdamW reaches within the steps from its default settings, from each of three seeds,
rounded up; a dash means that it was not measured. It is what time to target refers to, not the best that can be had.

## Without any file

They come with the installation or are generated, and need no network.

<offline>

## With files

<files>

The last column is where the data are looked for below the data folder: `~/.cache/optforge`, or what the environment
variable `<folder>` names. Any other place is named in the command, in one of two ways:

```sh
optforge train --task mnist --data ~/mnist
optforge compare adamw lion --task mnist@~/mnist
```

What is missing is answered at once, with one sentence that says what to put where. `tinystories` alone is downloaded:
the first 50,000 stories from the Hugging Face hub, with the extra `text`. That is not tried if `HF_HUB_OFFLINE` is set,
and given up within a second if the hub does not answer.

- **MNIST, Fashion-MNIST and others like them**: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
  `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each as it is or as `.gz`. Every 50th training image validates.
- **CIFAR-10**: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, here or in `cifar-10-batches-bin`.
- **Texts by bytes**: any file. The first 90 % are trained on, 5 % validate, 5 % test.
- **Texts by byte pairs**: UTF-8 with `<|endoftext|>` between stories or articles, split likewise; tokens are learned
  from the training part. It takes the extra `text`.
- **Arrays**: `inputs` and `targets`, as `.npy` files in a folder or in one `.npz`. Whole numbers are classes, others
  are predicted with squared error. `valid_inputs`, `valid_targets`, `test_inputs` and `test_targets` are used where
  they are; otherwise 20 % are held out for each.

## Sizes

Transformers come in sizes, chosen with the name: `--task tinystories:micro`, `--task text:small@book.txt`. The first is
the default, and the one that targets refer to. [Training](training.md#from-a-laptop-to-several-gpus) says how to use
several GPUs.

<sizes>

## Your own

A Python file that defines `TASK` is a task; name it where a name is expected. It is run as any Python file is, so run
only files that you trust.

```python
# sines.py
import torch
from optforge.search.training import Splits, Task, TensorSplit


def data() -> Splits:
    x = torch.linspace(-3, 3, 600)[torch.randperm(600, generator=torch.Generator().manual_seed(0)), None]
    parts = zip(x.split([400, 100, 100]), x.sin().split([400, 100, 100]), strict=True)
    return Splits(*(TensorSplit(inputs, targets) for inputs, targets in parts))


TASK = Task(
    name="sines",
    summary="the sine of a number; MLP 1-32-1",
    model=lambda: torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)),
    data=data,
    loss=torch.nn.functional.mse_loss,
    metric="squared error",
    steps=300,
    batch_size=32,
    licence="none needed: generated",
)
```

```sh
optforge train --task sines.py
optforge compare adamw lion --task sines.py
```

- `model` makes a freshly initialised model from torch's global random state. Its forward pass takes one batch of inputs
  and must depend on nothing but parameters and inputs: no dropout, no batch normalisation. A search trains hundreds of
  copies of it as one.
- `data` returns training, validation and test splits: anything with a length and `batch(indices)`, which returns inputs
  and targets and keeps the leading shape of the indices. `TensorSplit` is that for two tensors.
- `loss` is the mean over a batch, and finite before training. With `accuracy=True` targets are classes, and accuracy is
  reported as well.

Before anything is written the task is tried on two examples. A distribution brings tasks as entry points of the group
`optforge.tasks`, each the name of one `Task`:

```toml
[project.entry-points."optforge.tasks"]
sines = "my_package.sines:TASK"
```
"""


def tasks_page() -> str:
    """The whole page; the same text for the same rows."""
    parts = {"offline": _offline(), "files": _files(), "sizes": _sizes(), "folder": [FOLDER]}
    text = _TEXT.strip() + "\n"
    for name, lines in parts.items():
        text = text.replace(f"<{name}>", "\n".join(lines))
    return text


def _offline() -> Iterator[str]:
    rows = (_row(task) for name, task in TASKS.items() if name not in FILE_TASKS)
    yield from table("task", "data and model", "measured", "target", "steps", "batch", "licence of the data", rows=rows)


def _files() -> Iterator[str]:
    rows = ((*_row(TASKS[name]), f"`{row.place.where}`") for name, row in FILE_TASKS.items())
    columns = ("task", "data and model", "measured", "target", "steps", "batch", "licence of the data", "place")
    yield from table(*columns, rows=rows)


def _row(task: Task) -> tuple[str, ...]:
    numbers = target_words(task), str(task.steps), str(task.batch_size)
    return (f"`{task.name}`", task.summary, task.metric, *numbers, task.licence)


def _sizes() -> Iterator[str]:
    def rows() -> Iterable[tuple[str, ...]]:
        for name, size in SIZES.items():
            width, heads, depth, context, vocabulary = size
            with torch.device("meta"):
                gpt = GPT(vocabulary, context, width, heads, depth, tied=True)
                vit = ViT((1, 28), 7, 10, width, heads, depth)
            counts = (f"{sum(p.numel() for p in model.parameters()):,}" for model in (gpt, vit))
            yield (f"`{name}`", *map(str, (width, heads, depth, context)), f"{vocabulary:,}", *counts)

    columns = ("size", "width", "heads", "blocks", "context", "most tokens", "parameters, byte pairs", "MNIST")
    yield from table(*columns, rows=rows())
