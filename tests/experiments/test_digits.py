"""Every row of the table learns to read digits from a learning rate that the table recommends."""

from __future__ import annotations

import pytest
from support.training import train

from optforge.baselines import BASELINES
from optforge.experiments.tasks import TASKS
from optforge.search.training.trial import Status


@pytest.mark.parametrize("name", BASELINES)
def test_recommended_rate_reaches_nine_digits_in_ten(name: str) -> None:
    row = BASELINES[name]
    result = train(TASKS["digits"], row.program, row.lr_range[1], seed=1, full_batch=row.full_batch)
    assert result.outcome.status is Status.OK and result.outcome.accuracy["test"] > 0.9
