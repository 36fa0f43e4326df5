"""The training problems that programs are searched, trained and compared on: one row each."""

from __future__ import annotations

from pathlib import Path

import torch

from optforge.experiments.errors import UserError, unknown
from optforge.experiments.tasks import data, models, objectives, texts
from optforge.experiments.tasks.file_tasks import FILE_TASKS, file_task
from optforge.experiments.tasks.losses import cross_entropy, mean_value, squared_error
from optforge.experiments.tasks.mnist1d import POINTS, mnist1d
from optforge.experiments.tasks.proxies import PROXIES
from optforge.experiments.tasks.transformers import GPT
from optforge.experiments.tasks.user_tasks import from_entry_point, from_file, installed
from optforge.search.training.task import Task

__all__ = ["TASKS", "cross_entropy", "get_task", "task_names", "with_data"]

SCIKIT_DIGITS = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits, in scikit-learn)"

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
            licence=SCIKIT_DIGITS,
            accuracy=True,
            target=0.21,
        ),
        Task(
            name="digits-conv",
            summary="handwritten digits, 8×8 pixels; two convolutions of 16 and 32 channels, 6,090 parameters",
            model=lambda: models.ConvNet((1, 8), (16, 32), 10),
            data=data.digits,
            loss=cross_entropy,
            metric="cross-entropy [nats]",
            steps=200,
            batch_size=64,
            licence=SCIKIT_DIGITS,
            accuracy=True,
            target=0.16,
        ),
        Task(
            name="digits-autoencoder",
            summary="handwritten digits through 8 numbers and back; MLP 64-32-8-32-64 with ReLU, 4,744 parameters",
            model=lambda: models.MLP(64, 32, 8, 32, 64),
            data=data.digits_autoencoder,
            loss=squared_error,
            metric="squared error [per standardised pixel]",
            steps=400,
            batch_size=64,
            licence=SCIKIT_DIGITS,
            target=0.34,
        ),
        Task(
            name="breast-cancer",
            summary="tumours, 30 measurements, benign or malignant; logistic regression, 62 parameters",
            model=lambda: models.MLP(30, 2),
            data=data.breast_cancer,
            loss=cross_entropy,
            metric="cross-entropy [nats]",
            steps=200,
            batch_size=32,
            licence="CC BY 4.0 (UCI Breast Cancer Wisconsin, in scikit-learn)",
            accuracy=True,
            target=0.19,
        ),
        Task(
            name="mnist1d",
            summary="MNIST-1D, distorted curves of 40 points; MLP 40-64-64-10 with ReLU, 7,434 parameters",
            model=lambda: models.MLP(POINTS, 64, 64, 10),
            data=mnist1d,
            loss=cross_entropy,
            metric="cross-entropy [nats]",
            steps=1000,
            batch_size=64,
            licence="none needed: generated (construction of Greydanus 2020, Apache-2.0)",
            accuracy=True,
            target=1.3,
        ),
        Task(
            name="quadratic",
            summary="a rotated quadratic without noise, condition number 10,000; 100 parameters",
            model=lambda: objectives.Quadratic(torch.logspace(-4, 0, 100), rotated=True),
            data=lambda: objectives.no_noise(100),
            loss=mean_value,
            metric="f [dimensionless]",
            steps=500,
            batch_size=1,
            licence="none needed: generated",
            target=0.65,
        ),
        Task(
            name="noisy-quadratic",
            summary="the noisy quadratic model with curvatures 1/i; 1,000 parameters",
            model=lambda: objectives.Quadratic(1 / torch.arange(1, 1001), rotated=False),
            data=lambda: objectives.normal_noise(1000, 2048),
            loss=mean_value,
            metric="f [dimensionless], without noise",
            steps=500,
            batch_size=16,
            licence="none needed: generated",
            target=1.7,
        ),
        Task(
            name="rosenbrock",
            summary="Rosenbrock's function, chained; 100 parameters",
            model=lambda: objectives.Rosenbrock(100),
            data=lambda: objectives.no_noise(1),
            loss=mean_value,
            metric="f [dimensionless], mean of its terms",
            steps=1000,
            batch_size=1,
            licence="none needed: generated",
            target=6.0,
        ),
        Task(
            name="copy",
            summary="5 of 8 symbols to be recalled after 8 blanks; GRU of width 32, 4,458 parameters",
            model=lambda: models.GRU(data.GO + 1, 32, data.COPY_LENGTH),
            data=data.copy,
            loss=cross_entropy,
            metric="cross-entropy [nats per symbol]",
            steps=1000,
            batch_size=32,
            licence="none needed: generated",
            accuracy=True,
            target=1.4,
        ),
        Task(
            name="charlm",
            summary="Python's documentation and source; 2-layer character GPT of width 64, 115,584 parameters",
            model=lambda: GPT(texts.VOCABULARY, texts.CONTEXT, width=64, heads=4, depth=2),
            data=texts.charlm,
            loss=cross_entropy,
            metric="cross-entropy [nats per character]",
            steps=300,
            batch_size=32,
            licence="PSF-2.0 (Python standard library)",
            accuracy=True,
            target=2.2,
        ),
    )
}
TASKS |= PROXIES
TASKS |= {name: row.task() for name, row in FILE_TASKS.items()}

SUITES: dict[str, tuple[str, ...]] = {"proxies": tuple(PROXIES)}
"""Names that stand for several tasks."""


def task_names(text: str) -> tuple[str, ...]:
    """The tasks that a list with commas names, suites replaced by what they stand for.

    Raises:
        UserError: if none is named, or two that are called alike.
    """
    given = [name.strip() for name in text.split(",") if name.strip()]
    if not given:
        raise UserError("no task is named; name one or several with commas, as in: digits,mnist1d")
    called: dict[str, str] = {}
    for name in dict.fromkeys(part for text in given for part in SUITES.get(text, (text,))):
        other = called.setdefault(get_task(name).name, name)
        if other != name:
            raise UserError(f"{other} and {name} are both called {get_task(name).name!r}; give each its own name")
    return tuple(called.values())


def get_task(text: str, *, ready: bool = True) -> Task:
    """The task that `text` names, with its data present if they come from files.

    Args:
        text: the name of a task here or in an installed distribution (``digits``), with a size and with the path of
            its data where it has them (``mnist@PATH``, ``tinystories:micro``, ``text:nano@PATH``), or a Python file
            (``path/to/mine.py``).
        ready: False if only the row is of interest: no data are looked for, nothing is tried, no file is run.

    Raises:
        UserError: if there is no such task, with the nearest names, or if its data are missing or damaged.
    """
    if text.endswith(".py"):
        if not ready:
            raise UserError(f"the task {text[:200]} is a Python file, which is not run unasked")
        task = from_file(Path(text).expanduser().resolve())
        if task.name in TASKS:
            raise UserError(f"{text[:200]} calls its task {task.name!r}, as a task of optforge; give it another name")
        return task
    front, at, path = text.partition("@")
    name, colon, size = front.partition(":")
    if name in FILE_TASKS:
        if at and not path:
            raise UserError(f"--task {text[:80]} ends where a path is expected, as in: {name}@PATH")
        given = Path(path) if at else None, size if colon else None
        return file_task(name, *given) if ready else FILE_TASKS[name].task(*given)
    if name in TASKS or name in installed():
        if at or colon:
            raise UserError(f"task {name} has its own data and one size; leave out {text[len(name) : 80]}")
        return TASKS[name] if name in TASKS else from_entry_point(name, ready)
    raise unknown("task", name, {*TASKS, *installed()})


def with_data(text: str, path: Path | None) -> str:
    """The text that names a task together with its data: ``mnist@PATH``.

    Raises:
        UserError: if the text names its data already.
    """
    if path is None:
        return text
    if "@" in text or text.endswith(".py"):
        raise UserError(f"--task {text[:80]} says itself where its data are; leave --data out")
    return f"{text}@{path}"
