"""Hyperparameters that learn while the parameters do, for any program."""

from optforge.learned.meta.optimizer import MetaOptimizer
from optforge.learned.optimizer import LearnedOptimizer, learn

__all__ = ["LearnedOptimizer", "MetaOptimizer", "learn"]
