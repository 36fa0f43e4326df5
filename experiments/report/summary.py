"""A search without its ledger: what reports need of it, small enough to be kept beside the results.

Of every trained program the numbers are kept; the text only of those that a report shows, or whose state it could not
tell otherwise: the hall of fame, the champion's ancestors, and the Pareto front.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

from optforge.experiments.compare.comparison import finite_or_null
from optforge.experiments.errors import UserError
from optforge.experiments.files import write_atomic
from optforge.experiments.report.lineage import ancestors
from optforge.experiments.report.runs import BESIDE, NUMBERS, SUMMARY, SearchRun, read_search
from optforge.search.duplicates.cache import Verdict


def summarise(folder: Path, target: Path) -> None:
    """Write a summary of the search in `folder` to `target`, of which `optforge report` makes the same report.

    Raises:
        UserError: if `folder` is no search, or `target` cannot be written or holds another run.
    """
    run = read_search(folder)
    if target.exists() and any(target.iterdir()) and not (target / SUMMARY).is_file():
        raise UserError(f"--summarise {target} holds something else; name a new folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        packed = gzip.compress(json.dumps(_summary(run), separators=(",", ":")).encode(), mtime=0)
        write_atomic(target / SUMMARY, packed)
        for name in BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
    except OSError as error:
        raise UserError(f"--summarise {target} cannot be written: {error.strerror}") from None


def _summary(run: SearchRun) -> dict[str, Any]:
    shown = {entry.get("number") for entry in run.hall} | {row.number for row in run.pareto()}
    if run.champion is not None:
        shown |= {row.number for row in ancestors(run.rows, run.champion)}
    kept = [row for row in run.rows if row.number in shown or row.state_bytes() != 4 * row.slots]
    return finite_or_null({
        "config": run.config,
        "seconds": run.seconds,
        "digest": run.digest,
        "batches": [[size, *(by[v] for v in Verdict)] for size, by in run.batches],
        "programs": {name: [getattr(row, name) for row in run.rows] for name in NUMBERS},
        "shown": {row.number: [row.mutations, row.text] for row in kept},
    })  # fmt: skip
