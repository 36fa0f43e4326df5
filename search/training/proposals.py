"""Points of the unit cube that are worth trying, as Optuna's samplers and scipy's Sobol sequence propose them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

SAMPLERS = ("qmc", "tpe", "cmaes")
Point = tuple[float, ...]


def sobol(dimensions: int, count: int, seed: int = 0) -> list[Point]:
    """The first `count` points of a scrambled Sobol sequence; they begin with those for every smaller count."""
    from scipy.stats import qmc

    power = max(0, math.ceil(math.log2(max(1, count))))
    points = qmc.Sobol(dimensions, scramble=True, rng=seed).random_base2(power)
    return [tuple(point) for point in points[:count].tolist()]


class Proposer:
    """Asks Optuna for points that learn from losses; what it proposes follows from its arguments and what it was told.

    Args:
        sampler: ``"tpe"`` (tree-structured Parzen estimator) or ``"cmaes"`` (covariance matrix adaptation, which learns
            only from points that it proposed itself).
        dimensions: of the cube.
        seed: of the sampler.

    Raises:
        ValueError: for another sampler.
    """

    def __init__(self, sampler: str, dimensions: int, seed: int = 0) -> None:
        import optuna
        from optuna.distributions import BaseDistribution, FloatDistribution

        if sampler not in ("tpe", "cmaes"):
            raise ValueError(f"sampler must be tpe or cmaes, got {sampler}")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = [f"x{k}" for k in range(dimensions)]
        self._cube: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if sampler == "tpe":
                chooser: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(
                    seed=seed, constant_liar=True, multivariate=True, n_startup_trials=max(4, dimensions + 1)
                )
            else:
                chooser = optuna.samplers.CmaEsSampler(seed=seed)
        self._study = optuna.create_study(sampler=chooser)
        self._asked: dict[Point, optuna.Trial] = {}

    def tell(self, points: Sequence[Point], losses: Sequence[float]) -> None:
        """Losses at points, wherever these come from; one that is not finite counts as a failure."""
        from optuna.trial import TrialState, create_trial

        for point, loss in zip(points, losses, strict=True):
            value, state = (loss, TrialState.COMPLETE) if math.isfinite(loss) else (None, TrialState.FAIL)
            if (asked := self._asked.pop(point, None)) is not None:
                self._study.tell(asked, value, state)
            else:
                params = {name: min(1.0, max(0.0, x)) for name, x in zip(self._cube, point, strict=True)}
                self._study.add_trial(create_trial(params=params, distributions=self._cube, value=value, state=state))

    def ask(self, count: int) -> list[Point]:
        """The next points, each proposed without the losses of the others."""
        found = []
        for trial in [self._study.ask(self._cube) for _ in range(count)]:
            found.append(tuple(trial.params[name] for name in self._cube))
            self._asked[found[-1]] = trial
        return found


__all__ = ["SAMPLERS", "Point", "Proposer", "sobol"]
