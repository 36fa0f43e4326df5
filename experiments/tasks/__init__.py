"""The training problems, and what they are made of: data, models, losses."""

from experiments.tasks.table import TASKS, cross_entropy, get_task, with_data

__all__ = ["TASKS", "cross_entropy", "get_task", "with_data"]
