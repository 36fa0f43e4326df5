"""A trainer answers trials from a store, and has the others trained: here, in processes, or on other machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from optforge.primitives import Program, parse_program
from optforge.search.training.executors.pool import Executor, Job, Work
from optforge.search.training.store import Store
from optforge.search.training.task import Task
from optforge.search.training.train import MOST, batches, train
from optforge.search.training.trial import Outcome, Rule, Trial, failed

IDLE = 0.5
"""Seconds between looks at the store while others have everything that is left to train."""

Progress = Callable[[int, int], None]
"""Called with how many of the trials that were asked for are finished, and how many there are."""


class Here:
    """The executor that is this process: it trains a batch when it is waited for."""

    count = 1

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.queue: list[Job] = []

    def submit(self, items: Sequence[Trial], number: int = 0) -> Job:
        """Take a batch."""
        self.queue.append(Job(tuple(items), number))
        return self.queue[-1]

    def wait(self, timeout: float) -> None:
        """Train the first batch that is left."""
        if self.queue:
            job = self.queue.pop(0)
            job.done.update(enumerate(train(job.items, most=self.most)))

    def result(self, job: Job) -> list[Outcome]:
        """Outcomes of a batch."""
        while not job.finished:
            self.wait(0.0)
        return [job.done[position] for position in range(len(job.items))]

    def close(self) -> None:
        """Nothing runs on its own."""


class Trainer:
    """Trials to outcomes, each trained once per store.

    Batches depend on the trials that are asked for, not on what is known or on the number of workers, so that an
    interrupted run comes to the same end as one that was not, bit for bit on CPUs.

    Args:
        store: where outcomes are kept; none are without it.
        executor: what trains, made with `training`; this process by default.
        progress: called after each batch.
        most: most runs in one batch.
    """

    def __init__(
        self,
        store: Store | None = None,
        executor: Executor | None = None,
        progress: Progress = lambda done, total: None,
        most: int = MOST,
    ) -> None:
        self.store, self.executor, self.progress, self.most = store, executor or Here(most), progress, most

    def __call__(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Outcomes of trials, in order; what is trained elsewhere meanwhile is waited for."""
        found = self._known(trials)
        left = [batch for batch in batches(trials, most=self.most) if any(t not in found for t in batch)]
        flying: dict[Job, list[Trial]] = {}
        total = len(dict.fromkeys(trials))
        self.progress(len(found), total)
        with self.store.alive() if self.store is not None and left else nullcontext():
            while left or flying:
                self._start(left, flying, found)
                if flying:
                    self.executor.wait(IDLE)
                else:  # others have everything that is left
                    time.sleep(IDLE)
                for job in [job for job in flying if job.finished]:
                    batch, outcomes = flying.pop(job), self.executor.result(job)
                    if self.store is not None:
                        self.store.put(dict(zip(batch, outcomes, strict=True)))
                    found.update(zip(batch, outcomes, strict=True))
                if left and not flying:
                    found.update(self._known([t for batch in left for t in batch if t not in found]))
                self.progress(len(found), total)
        return [found[trial] for trial in trials]

    def _known(self, trials: Sequence[Trial]) -> dict[Trial, Outcome]:
        return {} if self.store is None else self.store.get(list(dict.fromkeys(trials)))

    def _start(self, left: list[list[Trial]], flying: dict[Job, list[Trial]], found: dict[Trial, Outcome]) -> None:
        """Hand out what nobody else has claimed or finished, as far as there are workers."""
        for batch in list(left):
            wanted = [trial for trial in batch if trial not in found]
            if wanted and len(flying) >= self.executor.count:
                continue
            if wanted and self.store is not None:
                if not self.store.claim(wanted):
                    continue
                found.update(self._known(wanted))  # finished elsewhere since this process last looked
                wanted = [trial for trial in wanted if trial not in found]
            left.remove(batch)
            if wanted:
                flying[self.executor.submit(wanted)] = wanted


def training(
    task: Callable[[str], Task],
    rule: Callable[[str], Program | Rule] = parse_program,
    name: Callable[[Task], str] = lambda task: task.name,
    most: int = MOST,
) -> Work:
    """The work of training trials in other processes.

    Args:
        task: finds a task there, by its name; must be picklable.
        rule: finds a rule by its text.
        name: what `task` takes for a task.
        most: most runs in one batch.
    """
    return Work(partial(_trainer, most), partial(_encoded, name), partial(_trial, task, rule), failed)


def _encoded(name: Callable[[Task], str], trial: Trial) -> dict[str, Any]:
    return trial.as_json() | {"task": name(trial.task)}


def _trainer(most: int) -> Callable[[Sequence[Trial], int], list[Outcome]]:
    return lambda trials, number: train(trials, most=most)


def _trial(task: Callable[[str], Task], rule: Callable[[str], Program | Rule], found: dict[str, Any]) -> Trial:
    return Trial.from_json(found, task, rule)


__all__ = ["Progress", "Trainer", "training"]
