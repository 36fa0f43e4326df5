"""Every row of the table learns to read digits from a learning rate that the table recommends."""

from __future__ import annotations

import pytest

from optforge.baselines import BASELINES
from optforge.experiments.tasks import TASKS
from optforge.experiments.training.train import train


@pytest.mark.parametrize("name", BASELINES)
def test_recommended_rate_reaches_nine_digits_in_ten(name: str) -> None:
    row = BASELINES[name]
    result = train(TASKS["digits"], row.program, row.lr_range[1], seed=1, full_batch=row.full_batch)
    assert result.status == "ok" and result.test_accuracy is not None and result.test_accuracy > 0.9
