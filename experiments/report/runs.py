"""What reports read from run directories: searches from their ledger, comparisons and training runs from JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optforge.experiments.compare.origin import steps_each
from optforge.experiments.errors import UserError
from optforge.experiments.rundirs import COMPARE_RESULT
from optforge.primitives import Program, ProgramError, parse_program
from optforge.primitives.analysis.cost import cost
from optforge.search.duplicates.cache import Verdict
from optforge.search.evolution.archive import pareto
from optforge.search.ledger import Ledger, Summary
from optforge.search.training.store import StoreError

BESIDE: dict[str, type] = {"hall_of_fame.json": list, "search.json": dict, "funnel.json": dict}
"""What else a search has, and the kind of value that it holds."""


def bytes_of_state(row: Summary) -> float:
    """Bytes of state per parameter; only a program whose slots are not plainly all tensors has to be parsed for it."""
    slots = [line.rsplit(maxsplit=1)[-1] for line in row.text.splitlines() if line.startswith("slot ")]
    return 4 * row.slots if set(slots) <= {"tensor"} else cost(parse_program(row.text)).state_bytes


@dataclass(frozen=True)
class SearchRun:
    """A search, finished or not.

    Attributes:
        folder: its run directory.
        config: what determines it.
        rows: its trained programs in order.
        batches: for each batch its size and how many programs were generated for it, by verdict.
        seconds: time from handing a batch out to its result, waiting included, summed over batches.
        digest: SHA-256 of all that a repeated run reproduces.
        hall: the hall of fame, best first; empty where there is none yet.
        final: what the search's last comparison wrote (``search`` and ``table``), or empty.
        funnel: what further tasks showed, as in `experiments.searching.funnel_run`, or empty.
    """

    folder: Path
    config: dict[str, Any]
    rows: tuple[Summary, ...]
    batches: tuple[tuple[int, Counter[Verdict]], ...]
    seconds: float
    digest: str
    hall: tuple[dict[str, Any], ...]
    final: dict[str, Any]
    funnel: dict[str, Any]

    @property
    def strategy(self) -> str:
        """Name of the strategy."""
        return str(self.config.get("strategy", "evolution"))

    @cached_property
    def finite(self) -> list[Summary]:
        """The programs that have a score, best first; of equals the older."""
        return sorted((r for r in self.rows if math.isfinite(r.score)), key=lambda r: (r.score, r.number))

    @cached_property
    def champion(self) -> Summary | None:
        """The first of the hall of fame, or else the program with the best score; None where nothing could train."""
        number = self.hall[0].get("number") if self.hall else None
        known = {r.number: r for r in self.finite}
        return known.get(number, self.finite[0] if self.finite else None)  # type: ignore[arg-type]

    @property
    def protocol(self) -> tuple[Any, ...]:
        """What scores have to have in common to be compared: task, learning rates, seeds and steps."""
        return tuple(json.dumps(self.config.get(name)) for name in ("task", "tasks", "ladder", "seeds", "steps"))

    @cached_property
    def steps_each(self) -> int | None:
        """Candidate-steps allotted to each program; None if a task is not known."""
        return steps_each(self.config)

    def best_so_far(self, programs: int | None = None) -> list[tuple[int, float]]:
        """Each program that was better than all before it, as how many were trained then, and its score."""
        best, curve = math.inf, []
        for count, row in enumerate(self.rows[:programs], 1):
            if row.score < best:
                best = row.score
                curve.append((count, best))
        return curve

    @cached_property
    def front(self) -> list[Summary]:
        """Programs that none other beats in one of score, state and live statements without losing in another."""
        return pareto(self.rows, lambda r: (r.score, bytes_of_state(r), r.live))


def kind_of(folder: Path) -> str:
    """``search``, ``compare`` or ``train``, by what is in a run directory; `UserError` for any other."""
    has = {name: (folder / name).is_file() for name in ("result.json", "plan.json", Ledger.FILE, COMPARE_RESULT)}
    if has["result.json"]:
        return "train"
    if has[Ledger.FILE] and not has["plan.json"]:
        return "search"
    if has[COMPARE_RESULT]:
        return "compare"
    if has["plan.json"]:
        raise UserError(f"{folder} is a comparison that has not ended: optforge compare --resume --run-dir {folder}")
    if (folder / "command.json").is_file():
        raise UserError(f"{folder} is a training run that has not ended: optforge train --resume --run-dir {folder}")
    raise UserError(
        f"{folder} is not the run directory of a search, a comparison or a training run: it has neither "
        f"{Ledger.FILE}, compare.json nor result.json"
    )


def read_search(folder: Path) -> SearchRun:
    """A search from its run directory, which may still be running.

    Raises:
        UserError: if its ledger cannot be read, or a file beside it is not what the search wrote.
    """
    hall, final, funnel = (
        read_json(folder / name, kind) if (folder / name).is_file() else kind() for name, kind in BESIDE.items()
    )
    if not all(isinstance(entry, dict) for entry in hall):
        raise UserError(f"{folder / 'hall_of_fame.json'} is not a list of ranked programs; was it edited?")
    try:
        with closing(Ledger.open(folder, read_only=True)) as ledger:
            return SearchRun(
                folder, ledger.config, tuple(ledger.summaries()), tuple(ledger.batches()), ledger.seconds(),
                ledger.digest(), tuple(hall), final, funnel,
            )  # fmt: skip
    except StoreError as error:
        raise UserError(str(error)) from None


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file whose outermost value is a `kind`; `UserError` if it is not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; was it edited or cut off?") from None
    if not isinstance(found, kind):
        raise UserError(f"{path} is not what a run writes there; was it edited?")
    return found


def read_program(text: Any, source: Path) -> Program:
    """A program from a run's file; `UserError` if it cannot be parsed."""
    try:
        return parse_program(str(text))
    except ProgramError as error:
        raise UserError(f"{source} holds a program that cannot be read: {error}") from None
