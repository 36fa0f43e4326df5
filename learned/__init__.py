"""Hyperparameters that learn while the parameters do, for any program."""

from learned.hypergradient import LearnedOptimizer, learn
from learned.meta_optimizer import MetaOptimizer

__all__ = ["LearnedOptimizer", "MetaOptimizer", "learn"]
