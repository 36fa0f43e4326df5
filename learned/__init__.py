"""Hyperparameters that learn while the parameters do, for any program."""

from optforge.learned.hypergradient import LearnedOptimizer, learn
from optforge.learned.meta_optimizer import MetaOptimizer

__all__ = ["LearnedOptimizer", "MetaOptimizer", "learn"]
