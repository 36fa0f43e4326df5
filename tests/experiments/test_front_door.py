"""The calls of `import optforge`, and that nothing of torch is loaded before the first of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.comparisons import regression

import optforge
from optforge.baselines import BASELINES
from optforge.experiments.errors import UserError
from optforge.search.training.trial import Status


def test_importing_loads_nothing_and_a_file_of_a_users_shadows_nothing(tmp_path: object) -> None:
    code = "import sys, optforge; assert 'torch' not in sys.modules; print(optforge.__version__, dir(optforge))"
    (tmp_path / "search.py").write_text("raise SystemExit('shadowed')")  # type: ignore[operator]
    (tmp_path / "script.py").write_text(code + "\nimport optforge.search.ledger")  # type: ignore[operator]
    done = subprocess.run([sys.executable, "script.py"], cwd=str(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'compare', 'evolve', 'learn', 'load', 'train'" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        optforge.serach  # noqa: B018


def test_strings_are_accepted_where_the_command_line_accepts_them() -> None:
    adamw = BASELINES["adamw"].program
    assert optforge.load("adamw") == optforge.load(adamw) == adamw
    with pytest.raises(UserError, match="did you mean adam or nadam or adamw"):
        optforge.load("adamv")
    run = optforge.train("digits", "lion", steps=3)
    assert run.status is Status.OK and len(run.curve) == 3 and run.loss.keys() == {"train", "valid", "test"}
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = optforge.learn([parameter], "adamw", 1e-2)
    parameter.square().sum().backward()
    optimizer.step()
    assert float(parameter.detach()[0]) < 1


def test_programs_and_learned_rates_are_compared_by_the_same_budget() -> None:
    found = optforge.compare(
        "adamw", "learned(adamw)", ("mine", BASELINES["lion"].program), tasks=regression(steps=80), trials=3,
        dimensions=1, seeds=2, tune_seeds=1, costs=False,
    )  # fmt: skip
    (comparison,) = found.comparisons
    assert [e.name for e in comparison.entries] == ["adamw", "learned(adamw)", "mine"]
    assert {len(e.tuning.trials) for e in comparison.entries} == {len(comparison.entries[0].tuning.trials)}
    assert [e.reference for e in comparison.entries] == [True, False, True]
    losses = [run.test for e in comparison.entries[:2] for run in e.runs]
    assert len(set(losses)) == 4  # a learned rate is another rule
