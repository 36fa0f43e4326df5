"""All optimizers that have a name, in the order of publication.

The rows are the `ROWS` of this package's modules. There is no list to keep: a module is found because it is there.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from optforge.baselines.row import Baseline, NamedProgram


def _collect() -> list[NamedProgram]:
    package = __name__.rpartition(".")[0]
    modules = [import_module(f"{package}.{found.name}") for found in iter_modules(import_module(package).__path__)]
    rows: list[NamedProgram] = [row for module in modules for row in getattr(module, "ROWS", ())]
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} rows are called {name!r}; give each a name of its own")
    return sorted(rows, key=lambda row: row.year)


_ROWS = _collect()

BASELINES: dict[str, Baseline] = {row.name: row for row in _ROWS if isinstance(row, Baseline)}
"""Optimizers that have a hand-written form, by name."""

NAMED: dict[str, NamedProgram] = {row.name: row for row in _ROWS if not isinstance(row, Baseline)}
"""Programs that have none."""
