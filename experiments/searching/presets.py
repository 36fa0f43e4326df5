"""Settings of a search as data: the defaults, and named ones for a budget and a machine."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

OPS = ("lion45", "protected", "statistics", "masks", "smooth")

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "task": "digits",
        "start": "adamw",
        "strategy": "evolution",
        "seed": 0,
        "population": 100,
        "tournament": 10,
        "islands": 1,
        "migrate_every": 0,
        "restart_every": 0,
        "descent": False,
        "race": False,
        "precision": "float32",
        "batch": 32,
        "lag": 2,
        "steps": 0,  # the task's own
        "ladder": (3.16e-4, 1.78e-3, 1e-2, 5.62e-2, 3.16e-1),
        "seeds": (0, 1),
    }
)
"""What determines a search; kept in its ledger, so that `--resume` goes on with the same."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "seconds": {"programs": 96, "minutes": 1.0},
        # time bounds a slow machine; elsewhere the number of programs ends it, which makes it reproducible
        "minutes": {"programs": 1280, "minutes": 4.0},
        # population and tournament of Lion's search (Chen et al. 2023, arXiv:2302.06675, §2.2)
        "hour": {
            "programs": 25_600,
            "minutes": 58.0,
            "population": 1000,
            "tournament": 2,
            "batch": 128,
            "funnel": True,
            "tune": 64,
        },
        "gpu": {
            "programs": 262_144,
            "minutes": 60.0,
            "population": 1000,
            "tournament": 2,
            "batch": 256,
            "lag": 8,  # batches in flight, and so the most GPUs that are busy: the configuration is the same with fewer
            "funnel": True,
            "tune": 64,
        },
    }
)
"""By name, what differs from `DEFAULTS`, and when to stop: at so many programs or minutes, whichever comes first."""
