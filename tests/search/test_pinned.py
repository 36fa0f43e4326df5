"""One small search and one small comparison whose results are pinned: a change of them is a decision, not an accident.

Whoever changes a number here says why in the commit message.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.searches import run

from optforge.baselines import BASELINES
from optforge.experiments.compare import compare
from optforge.experiments.searching.run import evaluator

NAMES = ("adamw", "lion", "muon")


def test_ledger_of_a_small_search_is_pinned(tmp_path: Path) -> None:
    """Its fitness is a function of the programs, so that no rounding of a machine enters the digest."""
    assert run(tmp_path / "run", 100) == "a60ce1a2624dbdc4b890b958a80fa6e1a04e41ffa43379cf88b892a06c3bd343"


def test_scores_of_known_optimizers_are_pinned() -> None:
    suite = evaluator(("proxy-teacher", "proxy-curves"), steps=40)
    found = [f.score for f in suite([BASELINES[name].program for name in NAMES])]
    assert found == pytest.approx([0.0, -0.083136, -0.005511], abs=2e-4)


def test_losses_of_a_small_comparison_are_pinned() -> None:
    options = {"trials": 16, "dimensions": 1, "tune_seeds": 1, "seeds": 2, "steps": 40}
    (found,) = compare(*NAMES, tasks="digits", costs=False, **options).comparisons
    assert [found.entry(name).mean for name in NAMES] == pytest.approx([0.154197, 0.258886, 0.109296], rel=1e-3)
    assert [found.entry(name).lr for name in NAMES] == pytest.approx([0.0484216, 0.044494, 0.0934642], rel=1e-5)
