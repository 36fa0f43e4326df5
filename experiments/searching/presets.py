"""Settings of a search as data: the defaults, and named ones for a budget and a machine."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

OPS = ("lion45", "protected", "statistics", "masks", "smooth", "matrix")
"""Op subsets that mutations draw from by default."""

SCHEDULE, WARMUP = "cosine", 0.05
"""How every run of a search is trained: the rate rises over a twentieth of it, and ends at zero."""

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "tasks": "proxies",
        "start": "adamw",
        "ops": ",".join(OPS),
        "signals": "g,p,lr,step",
        "blocks": "all",
        "mutations": "",
        "max_statements": 40,
        "max_slots": 4,
        "strategy": "evolution",
        "seed": 0,
        "population": 80,
        "tournament": 5,
        "islands": 1,
        "migrate_every": 0,
        "restart_every": 0,
        "descent": False,
        "precision": "float32",
        "batch": 16,
        "repeats": 2,
        "lag": 2,
        "steps": 0,  # each task's own
    }
)
"""What determines a search; kept in its ledger, so that `--resume` goes on with the same."""

STARTS = "adamw,nadamw,lion,muon,lamb,adan,ademamix,soap"
"""What the islands of long searches start from, one each."""

LONG: Mapping[str, Any] = MappingProxyType(
    {
        "start": STARTS,
        "ops": ",".join((*OPS, "preconditioners", "lazy")),
        "islands": 8,
        "migrate_every": 40,
        "funnel": True,
        "tune": 64,
        "ablate": True,
    }
)
"""What long presets have in common."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "seconds": {"programs": 96, "minutes": 1.0},
        # time bounds a slow machine; elsewhere the number of programs ends it, which makes it reproducible
        "minutes": {"programs": 352, "minutes": 2.0},
        "hour": {
            "programs": 4_800,
            "minutes": 55.0,
            **LONG,
            "population": 320,
            "batch": 32,
            "repeats": 4,
        },
        # population and tournament of Lion's search (Chen et al. 2023, arXiv:2302.06675, §2.2)
        "gpu": {
            "programs": 262_144,
            "minutes": 60.0,
            **LONG,
            "population": 1000,
            "tournament": 2,
            "batch": 256,
            "repeats": 16,
            "lag": 8,  # batches in flight, and so the most GPUs that are busy: the configuration is the same with fewer
        },
    }
)
"""By name, what differs from `DEFAULTS`, and when to stop: at so many programs or minutes, whichever comes first."""
