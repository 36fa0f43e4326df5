"""What `optforge tasks` and `optforge optimizers` print."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optforge.baselines import BASELINES, NAMED, Baseline
from optforge.experiments.errors import UserError
from optforge.experiments.files import check_can_write, write_atomic
from optforge.experiments.report.document import Table
from optforge.experiments.report.terminal import print_table
from optforge.experiments.tasks import TASKS
from optforge.experiments.tasks.file_tasks import FILE_TASKS
from optforge.experiments.tasks.places import FOLDER, data_folder
from optforge.experiments.tasks.transformers import SIZES
from optforge.experiments.tasks.user_tasks import from_entry_point, installed
from optforge.primitives import Kind, Program, ProgramOptimizer
from optforge.primitives.analysis.cost import cost, state_bytes
from optforge.search.training import Task

SHAPES: tuple[tuple[int, ...], ...] = ((1024, 1024), (64, 32, 3, 3), (4096,))
"""What state is measured on: a matrix, a convolution and a vector."""


def print_tasks() -> None:
    """A table of the tasks: data and model, what is measured, target, length of a run, licence of the data, files."""
    columns = ("task", "data and model", "measured", "target", "steps", "batch", "licence of the data", "data")
    tasks = [*TASKS.values(), *(from_entry_point(name, ready=False) for name in installed())]
    rows = [
        (t.name, t.summary, t.metric, target_words(t), t.steps, t.batch_size, t.licence, _where(t.name)) for t in tasks
    ]
    print_table(Table("", columns, _texts(rows), numeric=len(columns)))
    sizes = ", ".join(SIZES)
    sized = ", ".join(name for name, row in FILE_TASKS.items() if row.sized)
    print(f"\nFiles are looked for in {data_folder()} (set {FOLDER} for another), or at PATH in TASK@PATH.")
    print(f"Sizes: {sizes}, as in tinystories:{[*SIZES][-1]}; of {sized}.")


def target_words(task: Task) -> str:
    """The target of a task, or a dash."""
    return "–" if task.target is None else f"{task.target:g}"


def _where(name: str) -> str:
    return FILE_TASKS[name].place.where if name in FILE_TASKS else "with the installation"


def print_optimizers() -> None:
    """A table of the named optimizers: source, size, memory, and where the learning rate usually lies."""
    columns = ("optimizer", "source", "statements", "state bytes/parameter", "usual lr")
    rows = []
    for row in (BASELINES | NAMED).values():
        rates = "{:g} to {:g}".format(*row.lr_range) if isinstance(row, Baseline) else "–"
        rows.append((row.name, row.paper, len(row.program.live.instructions), f"{state_bytes(row.program):.3g}", rates))
    print_table(Table("", columns, _texts(rows), numeric=len(columns)))


def print_memory(json_file: Path | None = None) -> None:
    """A table of the state of every named optimizer: in words, in theory, and measured in both of its forms.

    Raises:
        UserError: before anything is measured, if `json_file` cannot be written.
    """
    check_can_write("--json", json_file)
    found = list(memory())
    if json_file is not None:
        try:
            write_atomic(json_file, json.dumps({"shapes": SHAPES, "optimizers": found}, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json {json_file} cannot be written: {error.strerror}") from None
    columns = ("optimizer", "state × parameters", "in theory [bytes/parameter]", "measured by hand", "as program")
    rows = [(row["name"], row["state"], *(_rounded(row[form]) for form in FORMS)) for row in found]
    print_table(Table("", columns, _texts(rows), numeric=2))
    print(
        f"\nMeasured after a step on {_elements():,} float32 parameters in tensors of shape "
        f"{', '.join(map(str, SHAPES))},\nwithout the step number of each tensor."
    )
    if idle := [name for name, p in named_programs().items() if len(p.live_state) < len(p.state)]:
        print(f"No update depends on some of the state of {', '.join(idle)}; in theory it does not count.")


FORMS = ("theory", "by_hand", "program")


def memory() -> Iterator[dict[str, Any]]:
    """State of every named optimizer in bytes per parameter, for all `SHAPES` together and for each of them."""
    for name, program in named_programs().items():
        row = BASELINES.get(name)
        own: dict[str, Callable[[list[nn.Parameter]], Optimizer] | None]
        own = {"by_hand": row.optimizer if row else None, "program": partial(ProgramOptimizer, program=program)}
        by_shape = []
        for shape in SHAPES:
            measured = {form: None if make is None else measure(make, shape) for form, make in own.items()}
            by_shape.append({"theory": cost(program, shape).state_bytes * math.prod(shape), **measured})
        yield {
            "name": name,
            "state": state_words(program),
            **{form: _per_parameter(by_shape, form) for form in FORMS},
            "bytes": [{"shape": shape, **sizes} for shape, sizes in zip(SHAPES, by_shape, strict=True)],
        }


def measure(make: Callable[[list[nn.Parameter]], Optimizer], shape: Sequence[int]) -> int:
    """Bytes that the state of the optimizer that `make` makes occupies after a step, for a float32 tensor of `shape`.

    The step number is left out, as it is one number for each tensor; memory that several tensors share counts once.
    """
    p = nn.Parameter(torch.ones(*shape))
    p.grad = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    optimizer = make([p])
    optimizer.step()
    tensors = [x for name, x in optimizer.state[p].items() if isinstance(x, Tensor) and name != "step"]
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def state_words(program: Program) -> str:
    """State as a multiple of the parameter: ``0``, ``2×``, ``rows + columns; vectors 1×``. Live slots count.

    Square matrices of the sides of an n × m parameter are ``n²`` and ``m²``.

    Slots of one number for each tensor are left out.
    """
    kinds = [slot.kind for slot in program.live_state]
    names = {Kind.TENSOR: "{}×", Kind.ROW: "rows", Kind.COL: "columns", Kind.LEFT: "{} n²", Kind.RIGHT: "{} m²"}
    parts = [text.format(kinds.count(kind)) for kind, text in names.items() if kind in kinds]
    words = " + ".join(parts) or "0"
    if program.fallback is not None and program.needs_matrix:
        words += f"; vectors {state_words(program.fallback)}"
    return words


def named_programs() -> dict[str, Program]:
    """The program of every optimizer that has a name."""
    return {name: row.program for name, row in (BASELINES | NAMED).items()}


def _elements() -> int:
    return sum(map(math.prod, SHAPES))


def _per_parameter(by_shape: Sequence[dict[str, Any]], form: str) -> float | None:
    sizes = [row[form] for row in by_shape]
    return None if None in sizes else sum(sizes) / _elements()


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _texts(rows: Iterable[Sequence[object]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(map(str, row)) for row in rows)
