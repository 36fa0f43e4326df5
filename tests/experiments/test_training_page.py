"""The examples of docs/training.md run as they are printed, and its tables name what there is."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from optforge.experiments.cli import app
from optforge.experiments.cli.train import train as train_on_the_command_line
from optforge.experiments.training.train import PRECISIONS
from optforge.search.training.monitor import Monitor
from optforge.search.training.torch_schedules import SCHEDULES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ optforge (.*)$", PAGE, re.MULTILINE)


def test_python_examples_run_and_their_scalars_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(block, scope)
    guard = scope["guard"]
    assert guard.tally.steps == 100 and guard.tally.skipped == 0 and guard.tally.clipped > 0
    assert capsys.readouterr().out.startswith("Tally(steps=100, skipped=0, clipped=")
    assert scope["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    monitor = Monitor(guard.optimizer, tally=guard.tally)
    guard.step()
    names = {tag.split("/")[1] for tag in monitor.take() | monitor.rates()}
    assert len(names) > 10
    for name in names:
        assert f"/{name}" in PAGE, name


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.output
    assert list(tmp_path.glob("runs/*/result.json"))


def test_tables_name_what_there_is() -> None:
    options = set(inspect.signature(train_on_the_command_line).parameters) | {"set"}
    assert {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]*)", PAGE)} <= options
    for name, function in SCHEDULES.items():
        row = re.search(rf"^\| `{name}` \|.*\|(.*)\|$", PAGE, re.MULTILINE)
        assert row is not None, name
        own = list(inspect.signature(function).parameters)[3:]
        assert re.findall(r"`(\w+)(?:=[^`]*)?`", row[1]) == own
    assert all(re.search(rf"`(--precision )?{name}`", PAGE) for name in PRECISIONS)
