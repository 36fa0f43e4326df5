"""What a search leaves behind for other programs: the archive as JSON, and the funnel for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optforge.experiments.files import write_atomic
from optforge.experiments.searching.funnel_run import Funnel
from optforge.primitives import print_program
from optforge.search.evolution.archive import pareto, point

if TYPE_CHECKING:
    from optforge.search.evolution.standing import Individual

ARCHIVE = "archive.json"


def write_archive(run_dir: Path, history: Sequence[Individual]) -> None:
    """Write the Pareto front of a search, best score first, to ``archive.json``.

    Fitness is the search's own score: the front is what the search saw, not an unbiased estimate.
    """
    rows = [
        {
            "number": p.number,
            "fitness": p.fitness,
            "state_bytes": p.state_bytes,
            "statements": p.statements,
            "program": print_program(p.program.pruned()),
        }
        for p in pareto(map(point, history), lambda p: p.objectives)
    ]
    write_atomic(run_dir / ARCHIVE, json.dumps(rows, indent=1, allow_nan=False) + "\n")


def write_scalars(run_dir: Path, funnel: Funnel) -> None:
    """Survivors of the stages, by their number, and meta-validation over programs, for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run_dir / "tensorboard")) as writer:
        passages = [*funnel.selecting, *([] if funnel.meta is None else [funnel.meta])]
        for at, passage in enumerate(passages):
            entered = list(passage.scores) if passage is not funnel.meta else list(funnel.survivors)
            writer.add_scalar("funnel/entered", len(entered), at)
            writer.add_scalar("funnel/better than AdamW", sum(passage.mean(n) < 0 for n in entered), at)
        if funnel.meta is not None:
            for look in funnel.looks:
                writer.add_scalar("funnel/meta-validation", funnel.meta.mean(look.best.number), look.trained)
