"""Trials are cut into batches that fit the memory, and what does not fit after all is trained in halves."""

from __future__ import annotations

import pytest
import torch
from support.evaluators import ADAMW, LION, SMALL, factored, normalised

from optforge.baselines import BASELINES
from optforge.search.fitness.sweep import Sweep
from optforge.search.training.population import members as members_module
from optforge.search.training.train import batches, train

PROTOCOL = Sweep(SMALL, rates=(1e-6, 1e-3, 1e-2, 1e-1), seeds=(0, 1), steps=3, precision="float64")


def test_batches_are_cut_to_memory() -> None:
    elements, slots = 64 * 6 + 6 + 6 * 10 + 10, 2
    member = elements * 8 * 2 * (2 + 2 * slots)  # two seeds
    programs = [ADAMW.with_defaults(eps=10.0**-k) for k in range(5)]
    trials = [trial for program in programs for trial in PROTOCOL.trials(program)]
    room, rates = 2 * 4 * member + 1, len(PROTOCOL.rates) * len(PROTOCOL.seeds)
    assert [len(batch) / rates for batch in batches(trials, room=room)] == [2, 2, 1]
    assert [len(batch) for batch in batches(trials, room=1)] == [2] * 20  # a rate with its seeds is the least
    tight, whole = (train(trials, room=r) for r in (room, None))
    if torch.cuda.is_available():  # where sums of other batches are other sums
        assert [o.valid for o in tight] == pytest.approx([o.valid for o in whole], rel=1e-9)
    else:
        assert tight == whole


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [ADAMW, LION, BASELINES["sgd"].program, normalised(), factored()]
    wanted = PROTOCOL(programs)
    original, sizes = members_module.train_members, list[int]()

    def small(task: object, members: list[object], *args: object, **options: object) -> object:
        sizes.append(len(members) // 4)
        if len(members) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory") if len(members) > 8 else MemoryError()
        return original(task, members, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(members_module, "train_members", small)
    found = PROTOCOL(programs)
    assert sizes == [5, 2, 1, 1, 3, 1, 2, 1, 1]
    for mine, reference in zip(found, wanted, strict=True):
        assert mine.status is reference.status and mine.lr == pytest.approx(reference.lr, nan_ok=True)
        assert mine.by_rate == pytest.approx(reference.by_rate, rel=1e-9)
