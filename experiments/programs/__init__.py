"""Programs: found by name, and looked at one by one."""

from optforge.experiments.programs.names import (
    HALL_OF_FAME,
    baseline_name,
    describe,
    known_ops,
    resolve_program,
    unique_names,
    usual_rate,
)

__all__ = [
    "HALL_OF_FAME",
    "baseline_name",
    "describe",
    "known_ops",
    "resolve_program",
    "unique_names",
    "usual_rate",
]
