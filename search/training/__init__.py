"""Training: what a task is, and everything that trains on one."""

from optforge.search.training.task import Split, Splits, Task, TensorSplit

__all__ = ["Split", "Splits", "Task", "TensorSplit"]
