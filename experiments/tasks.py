"""The training problems that programs are searched, trained and compared on: one row each."""

from __future__ import annotations

from torch import Tensor

from experiments import data, models
from experiments.errors import unknown
from primitives.task import Task


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits ``[…, classes]`` against classes ``[…]``, 0-dimensional.

    Equal to `torch.nn.functional.cross_entropy`, but normalised along the first of the last two dimensions, which
    torch's kernels do an order of magnitude faster for few classes.
    """
    log_probabilities = outputs.mT.log_softmax(-2)
    return -log_probabilities.gather(-2, targets.long().unsqueeze(-2)).mean()


TASKS: dict[str, Task] = {
    row.name: row
    for row in (
        Task(
            name="digits",
            summary="handwritten digits, 8×8 pixels; MLP 64-32-10 with ReLU, 2,410 parameters",
            model=lambda: models.MLP(64, 32, 10),
            data=data.digits,
            loss=cross_entropy,
            metric="cross-entropy [nats]",
            steps=200,
            batch_size=64,
            licence="CC BY 4.0 (UCI Optical Recognition of Handwritten Digits, in scikit-learn)",
            accuracy=True,
        ),
        Task(
            name="charlm",
            summary="Python's documentation and source; 2-layer character GPT of width 64, 115,584 parameters",
            model=lambda: models.GPT(data.VOCABULARY, data.CONTEXT, width=64, heads=4, depth=2),
            data=data.charlm,
            loss=cross_entropy,
            metric="cross-entropy [nats per character]",
            steps=300,
            batch_size=32,
            licence="PSF-2.0 (Python standard library)",
            accuracy=True,
        ),
    )
}


def get_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        UserError: if there is none, with the nearest names.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
