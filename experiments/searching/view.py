"""What one sees of a running search: a live view in the terminal and TensorBoard logs."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from optforge.primitives import Program
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.primitives.program import Const
from optforge.search.duplicates.cache import Verdict
from optforge.search.engine import Budget, Finished, Search
from optforge.search.evolution.standing import Individual

LINE_EVERY = 15.0  # seconds between lines where there is no terminal to draw in


class Diversity:
    """How different the living are, the youngest programs that may become parents.

    No two have the same key or fingerprint: the search trains none twice. What can run dry is their *structure*, that
    is the statements without their numbers, and how they *behave*: scores to four digits.
    """

    def __init__(self, living: int, history: Iterable[Individual] = ()) -> None:
        self._living: deque[tuple[object, str]] = deque(maxlen=living)
        for individual in history:
            self.add(individual.program, individual.score)

    def add(self, program: Program, score: float) -> None:
        """A program joins, and if there are too many, the oldest leaves."""
        self._living.append((_structure(program), f"{score:.4g}"))

    @property
    def living(self) -> int:
        """How many there are."""
        return len(self._living)

    @property
    def structures(self) -> int:
        """How many differ in more than numbers."""
        return len({structure for structure, _ in self._living})

    @property
    def behaviours(self) -> int:
        """How many differ in the first four digits of their score."""
        return len({score for _, score in self._living})


def _structure(program: Program) -> object:
    live = program.pruned()
    outputs = (live.update, *live.next_state)
    body = tuple((instr.op, tuple(map(_without_number, instr.args))) for instr in live.body)
    return body, tuple(map(_without_number, outputs)), tuple((s.name, s.kind) for s in live.state)


def _without_number(arg: object) -> object:
    return "number" if isinstance(arg, Const) else arg


class SearchView:
    """Shows a search while it runs; enter it as a context and call `update` after each batch."""

    def __init__(self, search: Search, budget: Budget, run_dir: Path) -> None:
        self.search, self.budget = search, budget
        self.console = Console()
        self.begin = self.last_line = time.monotonic()
        self.before = search.statistics.trained
        self.begun_with = search.statistics.verdicts.copy()
        living = search.evolution.population
        self.diversity = Diversity(living, search.history[-living:])
        self.progress = Progress(
            TextColumn("search"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), console=self.console,
        )  # fmt: skip
        self.bar = self.progress.add_task("search", total=1.0)
        self.live = Live(self._draw(), console=self.console, refresh_per_second=4, transient=True)
        self.writer = SummaryWriter(str(run_dir / "tensorboard"))

    def __enter__(self) -> SearchView:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()
        self.writer.close()

    def update(self, finished: Finished) -> None:
        """Take note of a batch that is in the ledger."""
        self.progress.update(self.bar, completed=self._share())
        for candidate, fitness in zip(finished.candidates, finished.fitnesses, strict=True):
            self.diversity.add(candidate.program, fitness.score)
        self._log(finished)
        if self.console.is_terminal:
            self.live.update(self._draw())
        elif time.monotonic() - self.last_line > LINE_EVERY:
            self.last_line = time.monotonic()
            self.console.print(self._line())
            self.console.file.flush()  # a log file shows it now, not when a buffer is full

    def summary(self, search: Search, interrupted: bool) -> None:
        """One closing line."""
        if search.exhausted:
            self.console.print(f"the search ended early: {search.exhausted}")
        self.console.print(("interrupted; everything evaluated is kept. " if interrupted else "") + self._line())
        self.console.print(self._rejections())

    def _share(self) -> float:
        """Share of the budget that is spent, by whichever of its limits is nearer."""
        shares = [0.0]
        if self.budget.programs:
            shares.append(self.search.statistics.trained / self.budget.programs)
        if self.budget.seconds:
            shares.append((time.monotonic() - self.begin) / self.budget.seconds)
        return min(1.0, max(shares))

    def _line(self) -> str:
        statistics, best = self.search.statistics, self.search.best
        seconds = max(1e-9, time.monotonic() - self.begin)
        score = f"best {best[0].fitness.score:.4f} (program {best[0].number})" if best else "none trainable yet"
        rate = (statistics.trained - self.before) / seconds
        return (
            f"{statistics.trained} programs trained ({rate:.1f}/s), {statistics.generated} generated, "
            f"{statistics.duplicates} duplicates, {statistics.diverged} diverged, "
            + (f"{statistics.failed} failed, " if statistics.failed else "")
            + score
        )

    def _rates(self) -> dict[str, float]:
        """Programs for each second of this session: generated, valid, recognised as duplicates, and trained."""
        statistics = self.search.statistics
        seconds = max(1e-9, time.monotonic() - self.begin)
        since = {v: statistics.verdicts[v] - self.begun_with[v] for v in Verdict}
        duplicates = sum(since[v] for v in (Verdict.SAME_KEY, Verdict.SAME_BEHAVIOUR, Verdict.SAME_UP_TO_RATE))
        counts = {
            "generated": sum(since.values()),
            "valid": duplicates + since[Verdict.NEW],
            "duplicate": duplicates,
            "trained": statistics.trained - self.before,
        }
        return {name: count / seconds for name, count in counts.items()}

    def _population(self) -> str:
        rates = ", ".join(f"{rate:.1f} {name}" for name, rate in self._rates().items())
        d = self.diversity
        return f"each second: {rates}; of {d.living} living, {d.structures} structures and {d.behaviours} behaviours"

    def _rejections(self) -> str:
        """What was not trained and why, and how much of the genomes is without effect."""
        statistics = self.search.statistics
        counts = [(v, statistics.verdicts[v]) for v in Verdict if v is not Verdict.NEW]
        found = [f"{count} {verdict.value.replace('_', ' ')}" for verdict, count in counts if count]
        return (
            f"not trained: {', '.join(found) or 'none'}; cache hits {statistics.cache_hits():.1%} "
            f"({statistics.cache_hits(behavioural=False):.1%} by key), "
            f"{statistics.redundancy:.1%} of statements redundant"
        )

    def _origin(self) -> str:
        """How the best program came about, in a line."""
        record, history = self.search.best[0], self.search.history
        score = f"program {record.number}, {record.fitness.score:.4g}"
        if 0 <= record.parent < len(history):
            score += f", from program {record.parent}, {history[record.parent].score:.4g}"
        return f"{score}, by {' + '.join(record.mutations)}"

    def _draw(self) -> Group:
        lines = (self._line(), self._population(), self._rejections())
        parts: list[Progress | Text | Panel] = [self.progress, *map(Text, lines)]
        if self.search.best:
            parts.append(Panel(pseudo_code(self.search.best[0].program), title="best so far", expand=False))
        parts.append(Text("Ctrl-C ends the search and keeps everything", style="dim"))
        return Group(*parts)

    def _log(self, finished: Finished) -> None:
        statistics, best = self.search.statistics, self.search.best
        scores = [f.score for f in finished.fitnesses if math.isfinite(f.score)]
        at = statistics.trained
        if best:
            self.writer.add_scalar("fitness/best", best[0].fitness.score, at)
            if best[0].batch == finished.batch:
                self.writer.add_text("best program", f"```\n{pseudo_code(best[0].program)}\n```", at)
                self.writer.add_text("lineage", self._origin(), at)
        if scores:
            self.writer.add_scalar("fitness/median of batch", median(scores), at)
        generated = max(1, statistics.generated)
        self.writer.add_scalar("search/share of duplicates", statistics.duplicates / generated, at)
        self.writer.add_scalar("search/redundant statements", statistics.redundancy, at)
        self.writer.add_scalar("cache hits/by key", statistics.cache_hits(behavioural=False), at)
        self.writer.add_scalar("cache hits/by key and behaviour", statistics.cache_hits(), at)
        for verdict in Verdict:
            self.writer.add_scalar(f"generated/{verdict.value}", statistics.verdicts[verdict] / generated, at)
        evolution = self.search.evolution
        for candidate in finished.candidates:
            if candidate.number in evolution.restarts(candidate.number + 1):
                source = f"from {evolution.founded_by(candidate.number)}, program {candidate.parent}"
                self.writer.add_text("restart", source, candidate.number)
        self.writer.add_scalar("search/share diverged", statistics.diverged / max(1, at), at)
        for name, rate in self._rates().items():
            self.writer.add_scalar(f"programs per second/{name}", rate, at)
        if self.diversity.living:
            self.writer.add_scalar("diversity/structures", self.diversity.structures / self.diversity.living, at)
            self.writer.add_scalar("diversity/behaviours", self.diversity.behaviours / self.diversity.living, at)
