"""Ending a search at the meta-overfitting point, where only its own task still improves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optforge.experiments.errors import UserError
from optforge.experiments.searching.funnel_run import LOOKS, curve, enter, stages_for
from optforge.search.funnel import Stage, checkpoints, overfitting_point
from optforge.search.training.asking import Train, answer

if TYPE_CHECKING:
    from optforge.search.evolution.standing import Individual

UNKNOWN_LENGTH = 16_384
"""Programs of a search that time alone ends, for the distance of its checkpoints."""


class Watch:
    """Tells during a search when meta-validation has stopped improving with the proxy; see `overfitting_point`.

    What it says depends on the search's history alone. It trains each time that there is a new checkpoint;
    `run_funnel` with the same store and `every` finds that done.

    Args:
        train: what trains, see `search.training.trainer.Trainer`.
        proxies: tasks of the search.
        programs: that the search is to train, for the distance of checkpoints; None if that is not known.
        stage: meta-validation, that of `stages_for` by default.

    Raises:
        UserError: if there are no tasks for meta-validation.
    """

    def __init__(self, train: Train, proxies: Sequence[str], programs: int | None, stage: Stage | None = None) -> None:
        if stage is None and not stages_for(proxies):
            names = ", ".join(proxies)
            raise UserError(f"there are no tasks to validate a search on {names} with; leave --stop-overfitting out")
        self.train, self.stage = train, stage or stages_for(proxies)[-1]
        self.every = max(1, (programs or UNKNOWN_LENGTH) // LOOKS)
        self.looked = 0
        self.curve: list[tuple[int, float, float]] = []

    def __call__(self, history: Sequence[Individual]) -> int | None:
        """The meta-overfitting point of the search so far, or None."""
        if len(history) // self.every > self.looked:
            self.looked = len(history) // self.every
            looks = checkpoints(history[: self.looked * self.every], self.every)
            best = {look.best.number: look.best.program for look in looks}
            self.curve = curve(looks, answer(enter(self.stage, best), self.train)) if looks else []
        return overfitting_point(self.curve)
