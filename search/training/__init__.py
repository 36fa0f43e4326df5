"""Training: a trial says what is trained, an outcome what came of it, and `train` makes one of the other."""

from optforge.search.training.task import Split, Splits, Task, TensorSplit

__all__ = ["Split", "Splits", "Task", "TensorSplit"]
