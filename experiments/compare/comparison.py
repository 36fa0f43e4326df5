"""What a comparison is made of: the protocol, one entry per optimizer, and everything as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from optforge.experiments.compare.statistics import Interval, Pair
from optforge.experiments.files import finite_or_null
from optforge.primitives import Program
from optforge.primitives.program import print_program
from optforge.search.training import Task

TUNE_SEEDS = (1000, 1001)
SEEDS = tuple(range(2000, 2010))
"""Seeds of the reported runs. Searches count theirs from 0, so that these are fresh to what they found as well."""


@dataclass(frozen=True)
class Protocol:
    """How optimizers are compared: the same for each of them.

    Attributes:
        task: what is trained.
        ladder: factors of the tuned learning rate, ascending, at which its sensitivity is measured.
        tune_seeds: seeds of the runs that select a learning rate, by validation loss.
        seeds: seeds of the reported runs; none of them may be a tuning seed.
        steps: length of every run.
        smallest_effect: share of the loss below which a difference does not matter, declared before the runs.
        alpha: bound on the chance of a false claim; intervals have level 1 − alpha.
        widenings: how often a search space may be widened where a best value lies at its edge.
        trials: configurations tried for each optimizer before any widening.
        dimensions: tuned quantities of each optimizer, the learning rate included.
        sampler: ``"qmc"`` or ``"tpe"``: how configurations are chosen.
        schedule: of the learning rate, a name in `search.training.schedule.SCHEDULES`.
        warmup: steps in which the rate rises.
        clip: largest norm of all gradients together; 0 for no limit.
        horizon: length of the run as a multiple of the task's own.

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
    trials: int = 0
    dimensions: int = 1
    sampler: str = ""
    schedule: str = "constant"
    warmup: int = 0
    clip: float = 0.0
    horizon: float = 1.0

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
class Setting:
    """One tried configuration.

    Attributes:
        values: learning rate and hyperparameters by name.
        loss: mean of `counted`.
        losses: final validation loss as measured, for each tuning seed; may be NaN.
        counted: the same with failed runs replaced by the loss before training.
        failed: which were replaced.
        at: where it lies in the declared ranges, each from 0 to 1; beyond in what widening added.
    """

    values: dict[str, float]
    loss: float
    losses: tuple[float, ...]
    counted: tuple[float, ...]
    failed: tuple[bool, ...]
    at: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Setting:
        """The setting whose fields were written as JSON; null is NaN."""
        losses = tuple(math.nan if x is None else float(x) for x in found["losses"])
        rest = {name: tuple(found[name]) for name in ("counted", "failed", "at")}
        return cls(dict(found["values"]), float(found["loss"]), losses, **rest)


@dataclass(frozen=True)
class Costs:
    """What an optimizer costs on the task's model, measured on one thread where the comparison ran.

    Attributes:
        step_ms: one training step, forward and backward pass included, in milliseconds.
        rule_ms: the optimizer's part of it.
        peak_bytes: most memory that a step holds at once beyond weights, gradients and state, in bytes per parameter.
        compile_seconds: what the first compiled step takes longer than the next; None where nothing can be compiled.
    """

    step_ms: float
    rule_ms: float
    peak_bytes: float
    compile_seconds: float | None


@dataclass(frozen=True)
class Tuning:
    """How one optimizer's configuration was selected.

    Attributes:
        rates: learning rates at which everything else is as selected, ascending. All that were tried, where only the
            rate is tuned; otherwise around the selected one, which they cannot change any more.
        losses: final validation loss as measured, for each rate and tuning seed; may be NaN or infinite.
        counted: the same with failed runs replaced by the loss before training.
        failed: which were replaced.
        lr: the selected rate: lowest mean of `counted`, the smaller rate in a tie.
        edge: whether what was selected lies at an edge of what was searched, even after that was widened.
        trials: all configurations in the order in which they were tried; empty where only the rate is tuned.
        space: of each tuned quantity its name, scale, centre, lowest and highest value, as widened.
        values: the selected configuration.
        edges: names of the quantities that lie at an edge, if a space was searched; older files lack them.
    """

    rates: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    counted: tuple[tuple[float, ...], ...]
    failed: tuple[tuple[bool, ...], ...]
    lr: float
    edge: bool
    trials: tuple[Setting, ...] = ()
    space: tuple[dict[str, Any], ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    edges: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """Mean validation loss of what was selected; what choosing between optimizers may look at."""
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
        valid_curve: validation loss after the same steps; empty if it was not watched.
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
    valid_curve: tuple[float, ...] = field(default=(), repr=False)

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
        costs: what it costs, if that was measured.
        reference: whether it is what others are set beside, a baseline or a control, and not itself in question.
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
    costs: Costs | None = None
    reference: bool = False

    @property
    def lr(self) -> float:
        """The tuned learning rate."""
        return self.tuning.lr

    @property
    def edge(self) -> bool:
        """Whether what was tuned lies at an edge of the widened ladder or space."""
        return self.tuning.edge

    @property
    def diverged(self) -> int:
        """Number of reported runs that failed."""
        return sum(run.failed for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """Outcome of a comparison on one task: entries in the order given, every pair of them, and what follows.

    Attributes:
        verdict: what follows, in a sentence.
        provenance: source commit, versions, hardware, data hashes, budgets and times.
        target: validation loss that "time to target" refers to; None if that was not measured.
    """

    protocol: Protocol
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    verdict: str
    provenance: dict[str, Any]
    target: float | None = None

    def entry(self, name: str) -> Entry:
        """The entry called `name`; `KeyError` if there is none."""
        return {e.name: e for e in self.entries}[name]

    def as_json(self) -> dict[str, Any]:
        """Everything, in JSON's own types; numbers that are not finite become null."""
        protocol, task = self.protocol, self.protocol.task
        settings = [f.name for f in fields(protocol) if f.name != "task"]
        facts = ("name", "summary", "metric", "licence", "batch_size")
        return finite_or_null({
            "verdict": self.verdict,
            "task": {name: getattr(task, name) for name in facts},
            "protocol": {name: getattr(protocol, name) for name in settings},
            "optimizers": [_entry_json(entry) for entry in self.entries],
            "pairs": [asdict(pair) for pair in self.pairs],
            "target": self.target,
            "provenance": self.provenance,
        })  # fmt: skip


def _entry_json(entry: Entry) -> dict[str, Any]:
    numbers = ("name", "lr", "edge", "mean", "valid_mean", "accuracy", "diverged", "state_bytes", "statements")
    return {
        **{name: getattr(entry, name) for name in (*numbers, "all_statements", "reference")},
        "key": entry.program.key,
        "program": print_program(entry.program),
        "interval": asdict(entry.interval),
        "costs": entry.costs and asdict(entry.costs),
        "tuning": asdict(entry.tuning),
        "runs": [asdict(run) | {"counted": run.counted} for run in entry.runs],
    }
