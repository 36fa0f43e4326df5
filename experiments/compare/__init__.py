"""Fair comparisons of optimizers: what is trained, what it came to, and what may be said of it."""

from optforge.experiments.compare.run import compare

__all__ = ["compare"]
