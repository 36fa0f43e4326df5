"""What a comparison is made of: the protocol, one entry per optimizer, and everything as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.statistics import Interval, Pair
from primitives import Program, Task
from primitives.text import print_program

LADDER = tuple(round(10 ** (k / 4), 10) for k in range(-20, 1))
"""Learning rates in quarter-decades from 1e-5 to 1."""

TUNE_SEEDS = (1000, 1001)
SEEDS = tuple(range(2000, 2010))
"""Seeds of the reported runs. Searches count theirs from 0, so that these are fresh to what they found as well."""


@dataclass(frozen=True)
class Protocol:
    """How optimizers are compared: the same for each of them.

    Attributes:
        task: what is trained.
        ladder: learning rates to tune over, ascending, at least three.
        tune_seeds: seeds of the runs that select a learning rate, by validation loss.
        seeds: seeds of the reported runs; none of them may be a tuning seed.
        steps: length of every run.
        smallest_effect: share of the loss below which a difference does not matter, declared before the runs.
        alpha: bound on the chance of a false claim; intervals have level 1 − alpha.
        widenings: how often the ladder may be widened if a best rate lies on one of its ends.

    Raises:
        ValueError: if the ladder is too short or does not ascend, or if seeds repeat or overlap.
    """

    task: Task
    ladder: tuple[float, ...]
    tune_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    smallest_effect: float = 0.01
    alpha: float = 0.05
    widenings: int = 2

    def __post_init__(self) -> None:
        if any(not (math.isfinite(lr) and lr > 0) for lr in self.ladder) or list(self.ladder) != sorted(
            set(self.ladder)
        ):
            raise ValueError(f"learning rates must be positive and ascend without repeats, got {self.ladder}")
        if len(self.ladder) < 3:
            raise ValueError(f"a ladder needs at least 3 learning rates, so that one is not an end, got {self.ladder}")
        for name in ("tune_seeds", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} needs at least one seed and no repeats, got {values}")
        if overlap := sorted(set(self.seeds) & set(self.tune_seeds)):
            raise ValueError(f"reported runs need seeds that tuning has not seen; in both: {overlap}")
        if self.steps < 1:
            raise ValueError(f"the number of steps must be positive, got {self.steps}")
        if not (0 <= self.smallest_effect < 1 and 0 < self.alpha < 1 and self.widenings >= 0):
            raise ValueError("smallest_effect lies in [0, 1), alpha in (0, 1), and widenings is at least 0")


@dataclass(frozen=True)
class Tuning:
    """How one optimizer's learning rate was selected.

    Attributes:
        rates: all rates tried, ascending.
        losses: final validation loss as measured, for each rate and tuning seed; may be NaN or infinite.
        counted: the same with failed runs replaced by the loss before training.
        failed: which were replaced.
        lr: the selected rate: lowest mean of `counted`, the smaller rate in a tie.
        edge: whether it is the first or last of `rates`, even after the ladder was widened.
    """

    rates: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    counted: tuple[tuple[float, ...], ...]
    failed: tuple[tuple[bool, ...], ...]
    lr: float
    edge: bool

    @property
    def loss(self) -> float:
        """Mean validation loss of the selected rate; what choosing between optimizers may look at."""
        row = self.counted[self.rates.index(self.lr)]
        return sum(row) / len(row)


@dataclass(frozen=True)
class Run:
    """One reported training run at the tuned learning rate.

    Attributes:
        seed: of initial weights and batches.
        start: validation loss before training.
        valid: final validation loss as measured; may be NaN or infinite.
        test: final test loss as measured; may be NaN or infinite.
        valid_accuracy: share of right answers, None for tasks without classes.
        test_accuracy: likewise.
        diverged_at: first step with a non-finite training loss (from 1), or None.
        failed: whether the run diverged or ended above its start; its losses then count as `start`.
        curve: training loss of the batch at evenly spaced steps, the last one included.
    """

    seed: int
    start: float
    valid: float
    test: float
    valid_accuracy: float | None
    test_accuracy: float | None
    diverged_at: int | None
    failed: bool
    curve: tuple[float, ...] = field(repr=False)

    @property
    def counted(self) -> float:
        """Test loss that enters every mean: as measured, or the loss before training if the run failed."""
        return self.start if self.failed else self.test


@dataclass(frozen=True)
class Entry:
    """One optimizer in a comparison.

    Attributes:
        name: unique within the comparison.
        program: its update rule.
        tuning: how its learning rate was selected.
        runs: reported runs, one per seed.
        mean: mean test loss over the runs, failed ones counted as their start.
        interval: confidence interval of that mean.
        valid_mean: mean validation loss over the runs, likewise.
        accuracy: mean test accuracy, or None.
        state_bytes: optimizer state in float32 on this task's model, in bytes per parameter.
        statements: number of live statements.
        all_statements: number of statements, dead ones included.
    """

    name: str
    program: Program
    tuning: Tuning
    runs: tuple[Run, ...]
    mean: float
    interval: Interval
    valid_mean: float
    accuracy: float | None
    state_bytes: float
    statements: int
    all_statements: int

    @property
    def lr(self) -> float:
        """The tuned learning rate."""
        return self.tuning.lr

    @property
    def edge(self) -> bool:
        """Whether the tuned rate lies on an end of the widened ladder."""
        return self.tuning.edge

    @property
    def diverged(self) -> int:
        """Number of reported runs that failed."""
        return sum(run.failed for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """Outcome of a comparison: entries in the order given, every pair of them, and what follows in one sentence.

    `provenance` holds source commit, versions, hardware, data hashes, budgets and times.
    """

    protocol: Protocol
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    verdict: str
    provenance: dict[str, Any]

    def entry(self, name: str) -> Entry:
        """The entry called `name`; `KeyError` if there is none."""
        return {e.name: e for e in self.entries}[name]

    def as_json(self) -> dict[str, Any]:
        """Everything, in JSON's own types; numbers that are not finite become null."""
        protocol, task = self.protocol, self.protocol.task
        settings = ("ladder", "tune_seeds", "seeds", "steps", "smallest_effect", "alpha", "widenings")
        facts = ("name", "summary", "metric", "licence", "batch_size")
        return finite_or_null({
            "verdict": self.verdict,
            "task": {name: getattr(task, name) for name in facts},
            "protocol": {name: getattr(protocol, name) for name in settings},
            "optimizers": [_entry_json(entry) for entry in self.entries],
            "pairs": [asdict(pair) for pair in self.pairs],
            "provenance": self.provenance,
        })  # fmt: skip


def _entry_json(entry: Entry) -> dict[str, Any]:
    numbers = ("name", "lr", "edge", "mean", "valid_mean", "accuracy", "diverged", "state_bytes", "statements")
    return {
        **{name: getattr(entry, name) for name in (*numbers, "all_statements")},
        "key": entry.program.key,
        "program": print_program(entry.program),
        "interval": asdict(entry.interval),
        "tuning": asdict(entry.tuning),
        "runs": [asdict(run) | {"counted": run.counted} for run in entry.runs],
    }


def finite_or_null(value: Any) -> Any:
    """`value` with tuples as lists, keys as text and non-finite floats as None, at any depth."""
    if isinstance(value, dict):
        return {str(k): finite_or_null(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
