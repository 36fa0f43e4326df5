"""`train`: trials to outcomes, in order, each equal trial once.

Trials are cut into batches that depend on the trials alone, so that a batch is computed in the same way wherever and
whenever that is. The engine of a batch follows from what is trained: programs on a model that can be stacked train as a
population, float16 with Lightning, everything else in the plain loop. A run that breaks is a status, not an exception.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

from optforge.primitives import Program
from optforge.search.training.lightning.engine import train_lightning
from optforge.search.training.loop import train_alone
from optforge.search.training.population.gradients import cannot_be_stacked
from optforge.search.training.population.members import memory, train_population, trial_bytes
from optforge.search.training.trial import Outcome, Trial, failed

MOST = 128
"""Most runs in one batch by default."""

Engine = Callable[[Sequence[Trial]], list[Outcome]]
"""Trains a batch: outcomes in order, deterministic, divergence a status. The plain loop says what is right."""

log = logging.getLogger("optforge")


def train(
    trials: Sequence[Trial],
    *,
    engine: Engine | None = None,
    most: int = MOST,
    room: int | None = None,
) -> list[Outcome]:
    """Outcomes of trials, in order; trials that are equal are trained once.

    Args:
        trials: what to train.
        engine: what trains each batch; by default what `engine_for` says.
        most: most runs in one batch, as far as the seeds and rates of a program may be divided.
        room: bytes of weights, gradients and state in one batch; by default `population.members.memory`.
    """
    found: dict[Trial, Outcome] = {}
    for batch in batches(trials, most=most, room=room):
        chosen = engine or engine_for(batch)
        found.update(zip(batch, _trained(batch, chosen), strict=True))
    return [found[trial] for trial in trials]


def batches(trials: Sequence[Trial], *, most: int = MOST, room: int | None = None) -> list[list[Trial]]:
    """The trials, without repeats, in batches of one recipe each: equal but for program, rate and seed.

    Args:
        trials: what to train.
        most: most runs of a batch.
        room: bytes of a batch.
    """
    room = memory() if room is None else room
    seeds: dict[tuple[object, ...], list[Trial]] = {}
    for trial in dict.fromkeys(trials):
        seeds.setdefault((_recipe(trial), trial.rule, trial.lr), []).append(trial)
    groups: dict[tuple[object, ...], dict[object, list[list[Trial]]]] = {}  # the rates of a rule follow each other
    for (recipe, rule, _), runs in seeds.items():
        groups.setdefault((recipe, tuple(run.seed for run in runs)), {}).setdefault(rule, []).append(runs)
    found: list[list[Trial]] = []
    for rules in groups.values():
        batch, used = list[Trial](), 0
        for rates in rules.values():
            size = trial_bytes(rates[0][0]) if rates[0][0].is_rewritten else 0
            for runs in rates:
                if batch and (len(batch) + len(runs) > most or used + size * len(runs) > room):
                    found.append(batch)
                    batch, used = [], 0
                batch += runs
                used += size * len(runs)
        found.append(batch)
    return found


def engine_for(batch: Sequence[Trial]) -> Engine:
    """The engine of a batch, by what is trained and on which model."""
    if batch[0].precision == "fp16":
        return train_lightning
    if not batch[0].is_rewritten:
        return train_alone
    if reason := cannot_be_stacked(batch[0].task):
        _tell_the_cost(batch[0].task.name, reason)
        return train_alone
    return train_population


def _trained(batch: list[Trial], engine: Engine) -> list[Outcome]:
    try:
        return engine(batch)
    except Exception as error:  # one run must not take others with it
        if len(batch) == 1:
            return [failed(f"{type(error).__name__}: {error}"[:300])]
    rules = list(dict.fromkeys(trial.rule for trial in batch))
    if len(rules) > 1:
        first = set(rules[: len(rules) // 2])
        halves = [t for t in batch if t.rule in first], [t for t in batch if t.rule not in first]
    else:
        half = len(batch) // 2
        halves = batch[:half], batch[half:]
    parts = {trial: outcome for half in halves for trial, outcome in zip(half, _trained(half, engine), strict=True)}
    return [parts[trial] for trial in batch]


def _recipe(trial: Trial) -> tuple[object, ...]:
    kind = isinstance(trial.rule, Program)
    return (kind, trial.task, trial.steps, trial.schedule, trial.warmup, trial.clip, trial.precision, trial.splits,
            trial.watch)  # fmt: skip


@lru_cache(maxsize=64)
def _tell_the_cost(task: str, reason: str) -> None:
    """Say once for each task what it costs that its runs are not stacked."""
    log.warning(
        "task %s: its runs are trained one at a time, which takes many times as long as training them together, since "
        "they cannot be stacked (%s)", task, reason,
    )  # fmt: skip


__all__ = ["MOST", "Engine", "batches", "engine_for", "train"]
