"""Hyperparameters that learn while the parameters do, for any program."""

from learned.hypergradient import LearnedOptimizer, learn

__all__ = ["LearnedOptimizer", "learn"]
