"""What all tests share: one torch thread per process, and property tests that draw the same examples every time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from optforge.experiments.report import html

torch.set_num_threads(1)
pytest.register_assert_rewrite("support")

# No deadlines: the machine's load is not a property of the code. HYPOTHESIS_PROFILE=explore draws new examples.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("fixed", _COMMON, derandomize=True, database=None, max_examples=60)
settings.register_profile("explore", _COMMON, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Finds a folder of real data by name, in ``OPTFORGE_DATA`` or ``../shared/data``; skips where it is not there."""
    root = Path(os.environ.get("OPTFORGE_DATA") or Path(__file__).parents[2] / "shared" / "data")

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no real data: {root / name} is not there; set OPTFORGE_DATA to a folder that has {name}")
        monkeypatch.setenv("OPTFORGE_DATA", str(root))
        return root / name

    return find


@pytest.fixture(autouse=True)
def _quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures, which take most of a small search's time; the tests that look at them are marked
    `pictures`."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(html, "svg", lambda figure, prefix: '<svg xmlns="http://www.w3.org/2000/svg"></svg>')
