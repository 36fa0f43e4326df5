"""Results as reductions over trials: code that asks for outcomes, and whoever answers it.

A reduction is a generator. It yields the trials that it needs next, is sent their outcomes in order, and returns its
result::

    def best_rate(program, task, rates) -> Asking[float]:
        outcomes = yield [Trial(program, lr, task, seed=0) for lr in rates]
        return min(zip(outcomes, rates), key=lambda pair: pair[0].valid)[1]

    answer(best_rate(adamw, digits, (1e-3, 1e-2)), train)

It trains nothing itself, and resuming one is asking again: a store answers what it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

from optforge.search.training.trial import Outcome, Trial

T = TypeVar("T")
Asking = Generator[Sequence[Trial], Sequence[Outcome], T]
Train = Callable[[Sequence[Trial]], Sequence[Outcome]]


def answer(asking: Asking[T], train: Train) -> T:
    """The result of a reduction whose trials are trained by `train`."""
    try:
        trials = next(asking)
        while True:
            trials = asking.send(train(trials))
    except StopIteration as end:
        return end.value


def together(askings: Iterable[Asking[T]]) -> Asking[list[T]]:
    """Several reductions at once: what all of them need next is asked for in one list."""
    running = list(askings)
    results: dict[int, T] = {}
    wanted: dict[int, Sequence[Trial]] = {}

    def advance(index: int, outcomes: Sequence[Outcome] | None) -> None:
        try:
            wanted[index] = next(running[index]) if outcomes is None else running[index].send(outcomes)
        except StopIteration as end:
            results[index] = end.value

    for index in range(len(running)):
        advance(index, None)
    while wanted:
        asked, wanted = wanted, {}
        outcomes = list((yield [trial for trials in asked.values() for trial in trials]))
        for index, trials in asked.items():
            advance(index, outcomes[: len(trials)])
            del outcomes[: len(trials)]
    return [results[index] for index in range(len(running))]


__all__ = ["Asking", "Train", "answer", "together"]
