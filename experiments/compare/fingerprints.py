"""What a task is, in hashes, so that no result of another one is taken for one of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import nn

from optforge.experiments.compare.comparison import SEEDS
from optforge.experiments.provenance import data_hash
from optforge.experiments.tasks import get_task
from optforge.search.training import Task
from optforge.search.training.task import initial_model, trainable
from optforge.search.training.trial import Trial


def fingerprint(name: str) -> dict[str, str]:
    """SHA-256 of a task's splits, of its model's initial shapes with steps and batch size, and of the file it is in.

    What those do not show, as a loss may be imported from anywhere, shows in the loss before training.
    """
    found = task_fingerprint(get_task(name))
    return found | {"file": _sha256(Path(name).expanduser().read_bytes())} if name.endswith(".py") else found


def task_fingerprint(task: Task) -> dict[str, str]:
    """The same of a task, without its file."""
    model = initial_model(task, SEEDS[0])
    shapes = [tuple(p.shape) for p in model.parameters()]
    found = data_hash(task.data())
    found["model"] = _sha256(f"{shapes} {task.steps} {task.batch_size}".encode())
    found["loss"] = _sha256(_first_loss(task, model).encode())
    return found


@cache
def task_named(name: str) -> Task:
    """The task of that name, the same object for every call."""
    task = get_task(name)
    _NAMES[task] = name
    return task


def name_of(task: Task) -> str:
    """The name by which `task_named` finds a task, also in another process."""
    return _NAMES.get(task, task.name)


def identity(trial: Trial) -> str:
    """What tells the trial's task from others of its name, as text: its fingerprint."""
    return _identity(trial.task)


@cache
def _identity(task: Task) -> str:
    found, name = task_fingerprint(task), name_of(task)
    found |= {"file": _sha256(Path(name).expanduser().read_bytes())} if name.endswith(".py") else {}
    return json.dumps(found, sort_keys=True)


_NAMES: dict[Task, str] = {}


def _first_loss(task: Task, model: nn.Module) -> str:
    """Loss of two examples before training and norm of its gradient, to four digits: in those, machines agree."""
    train = task.data().train
    inputs, targets = train.batch(torch.arange(min(2, len(train))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS[0])  # for a loss that draws numbers
        loss = task.loss(model(inputs), targets)
    gradients = (
        torch.autograd.grad(loss, list(trainable(model).values()), allow_unused=True) if loss.requires_grad else ()
    )
    norm = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
    return f"{loss.item():.3e} {norm:.3e}"


def changes(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints of a task, in words; the loss only if nothing of which it follows does."""
    parts = [part for part in was if was[part] != now.get(part)]
    causes = [part for part in parts if part != "loss"] or parts
    return list(dict.fromkeys(part if part in ("model", "file", "loss") else "data" for part in causes))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
