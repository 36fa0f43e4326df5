"""docs/tasks.md, written from the rows of `experiments.tasks.table` and `experiments.tasks.file_tasks`."""

from __future__ import annotations

import torch

from optforge.experiments.docs.rendering import DOCS, render
from optforge.experiments.report.listings import target_words
from optforge.experiments.report.markdown import markdown_table
from optforge.experiments.tasks import TASKS
from optforge.experiments.tasks.file_tasks import FILE_TASKS
from optforge.experiments.tasks.places import FOLDER
from optforge.experiments.tasks.transformers import GPT, SIZES, ViT
from optforge.search.training import Task

PAGE = DOCS / "tasks.md"
_COLUMNS = ("task", "data and model", "measured", "target", "steps", "batch", "licence of the data")


def tasks_page() -> str:
    """The whole page; the same text for the same rows."""
    offline = [_row(task) for name, task in TASKS.items() if name not in FILE_TASKS]
    files = [(*_row(TASKS[name]), f"`{row.place.where}`") for name, row in FILE_TASKS.items()]
    return render(
        "tasks",
        offline=markdown_table(_COLUMNS, offline),
        files=markdown_table((*_COLUMNS, "place"), files),
        sizes=_sizes(),
        folder=FOLDER,
    )


def _row(task: Task) -> tuple[str, ...]:
    numbers = target_words(task), str(task.steps), str(task.batch_size)
    return (f"`{task.name}`", task.summary, task.metric, *numbers, task.licence)


def _sizes() -> str:
    rows = []
    for name, size in SIZES.items():
        width, heads, depth, context, vocabulary = size
        with torch.device("meta"):
            gpt = GPT(vocabulary, context, width, heads, depth, tied=True)
            vit = ViT((1, 28), 7, 10, width, heads, depth)
        counts = (f"{sum(p.numel() for p in model.parameters()):,}" for model in (gpt, vit))
        rows.append((f"`{name}`", *map(str, (width, heads, depth, context)), f"{vocabulary:,}", *counts))
    header = ("size", "width", "heads", "blocks", "context", "most tokens", "parameters, byte pairs", "MNIST")
    return markdown_table(header, rows)
