"""Tasks of yours: from a Python file, or from an installed distribution."""

from __future__ import annotations

import functools
import importlib.util
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from optforge.experiments.errors import UserError
from optforge.search.training.task import Task, initial_model, new_model, trainable

GROUP = "optforge.tasks"
"""Entry points that each name one `Task`; the name of the entry point is that of the task."""

VARIABLE = "TASK"
"""What a Python file has to define."""


@functools.cache
def from_file(path: Path) -> Task:
    """The `Task` called ``TASK`` in a Python file, which is executed once for each process.

    Raises:
        UserError: if there is no such file, it fails, or it has no such task.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path} for --task; it should be Python and define {VARIABLE}")
    name = f"optforge_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = _line(error, path)
        raise UserError(f"{path} failed{line}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    task = _checked(getattr(module, VARIABLE, None), f"{path}", f"{VARIABLE} = primitives.Task(…)")
    return _tried(task, f"the task in {path}", path)


def installed() -> tuple[str, ...]:
    """Names of the tasks that other distributions bring."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


@functools.cache
def from_entry_point(name: str, ready: bool = True) -> Task:
    """The task that a distribution brings under this name; it is tried on two examples if it shall be `ready`.

    Raises:
        UserError: if it cannot be loaded, is no task, or fails when it is tried.
    """
    point, *others = entry_points(group=GROUP, name=name)
    if others:
        raise UserError(f"task {name} is brought by {1 + len(others)} distributions; uninstall all but one")
    try:
        found = point.load()
    except Exception as error:
        raise UserError(f"task {name} ({point.value}) cannot be loaded: {type(error).__name__}: {error}") from error
    where = f"task {name} ({point.value})"
    task = _checked(found, where, "a primitives.Task")
    return _tried(task, where) if ready else task


def _checked(found: Any, where: str, wanted: str) -> Task:
    if not isinstance(found, Task):
        what = "nothing" if found is None else f"a {type(found).__name__}"
        raise UserError(f"{where} has {what} where {wanted} is expected; see docs/tasks.md")
    if not found.name or any(c in found.name for c in "/\\:@ "):
        raise UserError(f"{where} calls its task {found.name!r}; use letters, digits and hyphens")
    if found.steps < 1 or found.batch_size < 1:
        raise UserError(f"{where} has {found.steps} steps and batches of {found.batch_size}; both must be at least 1")
    return found


def _tried(task: Task, where: str, path: Path | None = None) -> Task:
    """The task, after the loss of one batch, so that what is wrong with it is said before anything is written.

    Its data are loaded once.
    """
    task = replace(task, data=functools.cache(task.data))
    task = replace(task, model=functools.partial(new_model, task))  # whose lazy modules have their shapes
    try:
        train = task.data().train
        inputs, targets = train.batch(torch.arange(min(2, len(train))))
        model = initial_model(task, 0)
        before = [x.clone() for x in model.buffers()]
        loss = task.loss(model(inputs), targets)
        pure = _is_pure(model, inputs, before)
    except UserError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"a batch of {where} failed{_line(error, path)}: {what}; see docs/tasks.md") from error
    if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.is_floating_point():
        what = f"a tensor {list(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"the loss of {where} is {what}; one number is expected, the mean over the batch")
    if not loss.isfinite():
        raise UserError(f"the loss of {where} is {loss.item()} before training; a finite number is expected")
    unfit = next((type(m).__name__ for m in model.modules() if m.training and _draws_or_remembers(m)), None)
    if unfit or not pure:
        has = f"has {unfit}" if unfit else "draws random numbers, as by dropout, or changes its buffers"
        raise UserError(
            f"the model of {where} {has}; outputs may depend on nothing but parameters and inputs, so that runs can be "
            "compared: leave it out, or take LayerNorm"
        )
    if not trainable(model):
        raise UserError(f"the model of {where} has no parameter that requires a gradient, and cannot be trained")
    return task


def _draws_or_remembers(module: torch.nn.Module) -> bool:
    """Whether outputs of a module of torch depend on chance, or on other examples of the batch."""
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


def _is_pure(model: torch.nn.Module, inputs: torch.Tensor, before: list[torch.Tensor]) -> bool:
    """Whether buffers are as they were `before`, and outputs the same whatever the random state."""
    if not all(map(torch.equal, before, model.buffers())):
        return False
    found = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for seed in range(2):
            torch.manual_seed(seed)
            found.append(model(inputs))
    return not isinstance(found[0], torch.Tensor) or torch.equal(*found) or bool(found[0].isnan().any())


def _line(error: BaseException, path: Path | None) -> str:
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f" at line {trace.tb_lineno}"
        trace = trace.tb_next
    return line
