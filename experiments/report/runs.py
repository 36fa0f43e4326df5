"""What reports read from run directories: searches from their ledger, comparisons and training runs from JSON."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from optforge.experiments.compare.origin import steps_each
from optforge.experiments.errors import UserError
from optforge.primitives import Program, ProgramError, parse_program
from optforge.primitives.analysis.cost import cost
from optforge.search.duplicates.cache import Verdict
from optforge.search.fitness.evaluator import Status
from optforge.search.ledger import BATCHES, PROGRAMS, Ledger
from optforge.search.training.store import StoreError

SUMMARY = "ledger.json.gz"
"""In place of a ledger: what `experiments.report.summary` writes of one."""

BESIDE: dict[str, type] = {"hall_of_fame.json": list, "search.json": dict, "funnel.json": dict}
"""What else a search has, and the kind of value that it holds."""

_COLUMNS = (
    "number", "parent", "mutations", "program", "score", "lr", "status", "statements", "live", "slots",
)  # fmt: skip


class Row(NamedTuple):
    """A trained program as the ledger has it, its text not parsed; `score` is infinite where training failed."""

    number: int
    parent: int
    mutations: str
    text: str
    score: float
    lr: float
    status: str
    statements: int
    live: int
    slots: int

    @property
    def program(self) -> Program:
        """The live part of the program."""
        return parse_program(self.text).pruned()

    def state_bytes(self) -> float:
        """Bytes of state for each parameter; only what is not plainly made of tensors has to be parsed for it."""
        slots = [line.rsplit(maxsplit=1)[-1] for line in self.text.splitlines() if line.startswith("slot ")]
        return 4 * self.slots if set(slots) <= {"tensor"} else cost(parse_program(self.text)).state_bytes


NUMBERS = tuple(name for name in Row._fields if name not in ("mutations", "text"))
"""What a summary keeps of every program."""


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
    rows: tuple[Row, ...]
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
    def finite(self) -> list[Row]:
        """The programs that have a score, best first; of equals the older."""
        return sorted((r for r in self.rows if math.isfinite(r.score)), key=lambda r: (r.score, r.number))

    @cached_property
    def champion(self) -> Row | None:
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

    def pareto(self) -> list[Row]:
        """Programs that none other beats in one of score, state and live statements without losing in another."""
        front: list[tuple[float, Row]] = []
        for _, size, _, _, row in sorted((r.score, r.state_bytes(), r.live, r.number, r) for r in self.finite):
            if not any(b <= size and r.live <= row.live for b, r in front):
                front.append((size, row))
        return [row for _, row in front]


def kind_of(folder: Path) -> str:
    """``search``, ``compare`` or ``train``, by what is in a run directory; `UserError` for any other."""
    kinds = {Ledger.FILE: "search", SUMMARY: "search", "compare.json": "compare", "result.json": "train"}
    for name, kind in kinds.items():
        if (folder / name).is_file():
            return kind
    if (folder / "plan.json").is_file():
        raise UserError(f"{folder} is a comparison that has not ended: optforge compare --resume --run-dir {folder}")
    if (folder / "command.json").is_file():
        raise UserError(f"{folder} is a training run that has not ended: optforge train --resume --run-dir {folder}")
    raise UserError(
        f"{folder} is not the run directory of a search, a comparison or a training run: it has neither "
        f"{Ledger.FILE}, compare.json nor result.json"
    )


def read_search(folder: Path) -> SearchRun:
    """A search from its run directory, which may still be running, or from a summary of it.

    Raises:
        UserError: if its ledger cannot be read, or a file beside it is not what the search wrote.
    """
    summarised = (folder / SUMMARY).is_file() and not (folder / Ledger.FILE).is_file()
    found = _from_summary(folder / SUMMARY) if summarised else _from_ledger(folder)
    hall, final, funnel = (
        read_json(folder / name, kind) if (folder / name).is_file() else kind() for name, kind in BESIDE.items()
    )
    if not all(isinstance(entry, dict) for entry in hall):
        raise UserError(f"{folder / 'hall_of_fame.json'} is not a list of ranked programs; was it edited?")
    return SearchRun(folder, **found, hall=tuple(hall), final=final, funnel=funnel)


def _from_ledger(folder: Path) -> dict[str, Any]:
    try:
        ledger = Ledger.open(folder, read_only=True)
        try:
            found = {"config": ledger.config, "seconds": ledger.seconds(), "digest": ledger.digest()}
            rows = [_row(tuple(getattr(row, name) for name in _COLUMNS)) for row in ledger.rows(PROGRAMS)]
            counts = [tuple(row)[2:] for row in ledger.rows(BATCHES)]
        finally:
            ledger.close()
    except StoreError as error:
        raise UserError(str(error)) from None
    return found | {"rows": tuple(rows), "batches": _batches(counts)}


def _from_summary(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(gzip.decompress(path.read_bytes()))
        columns, shown = kept["programs"], {int(number): tuple(row) for number, row in kept["shown"].items()}
        each = zip(*(columns[name] for name in NUMBERS), strict=True)
        rows = tuple(_row((n, parent, *shown.get(n, ("", "")), *others)) for n, parent, *others in each)
        found = {name: kept[name] for name in ("config", "seconds", "digest")}
        return found | {"rows": rows, "batches": _batches(kept["batches"])}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise UserError(f"{path} is no summary of a search ({type(error).__name__}: {error}); was it edited?") from None


def _batches(counts: Sequence[Sequence[int]]) -> tuple[tuple[int, Counter[Verdict]], ...]:
    return tuple((size, Counter(dict(zip(Verdict, by, strict=True)))) for size, *by in counts)


def _row(found: tuple[Any, ...]) -> Row:
    number, parent, mutations, text, score, lr, status, *sizes = found
    trained = status == Status.OK.name.lower() and score is not None
    return Row(number, parent, mutations, text, score if trained else math.inf, lr or math.nan, status, *sizes)


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
