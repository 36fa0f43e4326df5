"""The benchmark of the driver: it drives a real search, and its figures count what they say."""

from __future__ import annotations

import os
import time

import pytest
from support.executors import Scripted

from optforge.experiments.bench import driver
from optforge.experiments.bench.driver import InstantPool, Prepared, bred, driven, ledger_costs, results_per_second
from optforge.primitives import subset
from optforge.search.engine import Budget
from optforge.search.space.draft import Space
from optforge.search.training.executors.pool import LOOK


def prepared(lag: int) -> Prepared:
    programs, identities, _ = bred(2)
    return Prepared(programs[:1], Space(subset("lion45")), lag=lag, programs=programs, identities=identities)


def test_every_simulated_worker_is_busy_and_every_result_is_written() -> None:
    pool = InstantPool(12)
    with driven(prepared(12), pool) as search:
        sizes = [len(finished.fitnesses) for finished in search.run(Budget(programs=640))]
        assert sizes == [32] * 20
        assert [record.number for record in search.ledger] == list(range(640))
        assert len(pool.idle) == 12
    assert results_per_second(prepared(12), InstantPool(12), 320) > 0


def test_looking_for_answers_while_batches_are_handed_in_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look costs time for each worker, so that 10,000 workers must not be looked at 10,000 times."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pool, looks = Scripted(3, []), [0]
    original = pool._wait

    def counted(*args):  # type: ignore[no-untyped-def]
        looks[0] += 1
        return original(*args)

    monkeypatch.setattr(pool, "_wait", counted)
    for _ in range(1000):
        pool.submit([])
        now[0] += LOOK / 100
    assert looks[0] <= 11


def test_the_costs_of_the_ledger_are_for_one_result() -> None:
    costs = ledger_costs(prepared(1), 320)
    assert 300 < costs.size < 5000  # a program's text and a few numbers; a page more for all of them
    assert 0 < costs.append_cpu < 0.01 and 0 < costs.resume_cpu < 0.1


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_cpu_seconds_of_a_process_are_counted() -> None:
    begin, begin_cpu = time.process_time(), driver._cpu_of(os.getpid())
    while time.process_time() - begin < 0.2:
        pass
    assert driver._cpu_of(os.getpid()) - begin_cpu == pytest.approx(0.2, abs=0.1)
