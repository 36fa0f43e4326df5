"""The training problems, and what they are made of: data, models, losses."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optforge.experiments.tasks.table import TASKS, cross_entropy, get_task, task_names, with_data

__all__ = ["TASKS", "cross_entropy", "get_task", "task_names", "with_data"]


def __getattr__(name: str) -> Any:
    """From `table`, which loads torch: where the data lie is said without it (see `places`)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from optforge.experiments.tasks import table

    return getattr(table, name)
