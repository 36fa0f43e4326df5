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
    """Asks Optuna for points that learn from losses; what it proposes depends on its arguments and on those alone.

    Args:
        sampler: ``"tpe"`` (tree-structured Parzen estimator) or ``"cmaes"`` (covariance matrix adaptation).
        dimensions: of the cube.
        seed: of the sampler.

    Raises:
        ValueError: for another sampler.
    """

    def __init__(self, sampler: str, dimensions: int, seed: int = 0) -> None:
        if sampler not in ("tpe", "cmaes"):
            raise ValueError(f"sampler must be tpe or cmaes, got {sampler}")
        self.sampler, self.dimensions, self.seed = sampler, dimensions, seed
        self.tried: list[tuple[Point, float]] = []

    def tell(self, points: Sequence[Point], losses: Sequence[float]) -> None:
        """Losses at points, wherever these come from; one that is not finite counts as a failure."""
        self.tried += zip(points, losses, strict=True)

    def ask(self, count: int) -> list[Point]:
        """The next points, each proposed without the losses of the others."""
        import optuna
        from optuna.distributions import BaseDistribution, FloatDistribution
        from optuna.trial import TrialState, create_trial

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = [f"x{k}" for k in range(self.dimensions)]
        cube: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            seed = self.seed + len(self.tried)
            if self.sampler == "tpe":
                chooser: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(
                    seed=seed, constant_liar=True, multivariate=True, n_startup_trials=max(4, self.dimensions + 1)
                )
            else:
                chooser = optuna.samplers.CmaEsSampler(seed=seed)
            study = optuna.create_study(sampler=chooser)
            for point, loss in self.tried:
                params = dict(zip(names, (min(1.0, max(0.0, x)) for x in point), strict=True))
                state = TrialState.COMPLETE if math.isfinite(loss) else TrialState.FAIL
                value = loss if math.isfinite(loss) else None
                study.add_trial(create_trial(params=params, distributions=cube, value=value, state=state))
            found = [study.ask(cube).params for _ in range(count)]
        return [tuple(params[name] for name in names) for params in found]


__all__ = ["SAMPLERS", "Point", "Proposer", "sobol"]
