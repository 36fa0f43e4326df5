"""Two processes that share every batch train as one does: this file is also the script that they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import Trained, train

from optforge.baselines import BASELINES
from optforge.experiments.errors import UserError
from optforge.experiments.tasks import TASKS
from optforge.experiments.tasks.losses import cross_entropy
from optforge.experiments.tasks.transformers import GPT
from optforge.primitives import ProgramError
from optforge.search.training.lightning.engine import is_first_process
from optforge.search.training.lightning.module import TrainingRun
from optforge.search.training.lightning.settings import PLAIN
from optforge.search.training.task import Splits, Task, TensorSplit
from optforge.search.training.trial import Trial

TESTS = Path(__file__).parents[1]
TEXT = torch.randint(11, (64, 9), generator=torch.Generator().manual_seed(0))
PART = TensorSplit(TEXT[:, :-1], TEXT[:, 1:])
TINY = Task(
    name="tiny", summary="", model=lambda: GPT(11, 8, 16, 2, 2, tied=True), data=lambda: Splits(PART, PART, PART),
    loss=cross_entropy, metric="", steps=10, batch_size=8, licence="", accuracy=True,
)  # fmt: skip
FULL: dict[str, Any] = {"schedule": "cosine", "clip_norm": 0.5, "accumulate": 2, "monitor": 3}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddp": ("adamw", "ddp", FULL),
    "fsdp": ("adamw", "fsdp", FULL),
    "averages": ("schedule-free-adamw", "fsdp", {}),
    "learned": ("adamw", "ddp", {"learn": ["lr"]}),
}


def outcome(name: str, devices: int, folder: Path | None) -> dict[str, Any]:
    optimizer, strategy, how = CASES[name]
    options = how | {"devices": devices, "strategy": strategy if devices > 1 else "auto"}
    program, place = BASELINES[optimizer].program, folder and folder / name
    return as_json(train(TINY, program, 1e-2, **options, folder=place))


def as_json(run: Trained) -> dict[str, Any]:
    return {**run.noted, **{f"{name}_loss": loss for name, loss in run.outcome.loss.items()}, **run.outcome.accuracy}


def resumed(folder: Path) -> list[Any]:
    """Of a run in shards, and of the same run after it broke off between two checkpoints."""
    how: dict[str, Any] = {"lr": 1e-2, "devices": 2, "strategy": "fsdp", "schedule": "cosine", "clip_norm": 0.5}
    how |= {"checkpoint_every": 3}
    program, step = BASELINES["adamw"].program, TrainingRun.training_step
    whole = train(TINY, program, **how, folder=folder / "whole")

    def breaks(run: TrainingRun, batch: Any, number: int) -> Any:
        if len(run.losses) == 8:
            raise InterruptedError
        return step(run, batch, number)

    TrainingRun.training_step = breaks  # type: ignore[method-assign]
    try:
        train(TINY, program, **how, folder=folder / "resumed")
    except InterruptedError:
        TrainingRun.training_step = step  # type: ignore[method-assign]
    again = train(TINY, program, **how, folder=folder / "resumed", resume=True)
    return [as_json(result) for result in (whole, again)]


def refused() -> str:
    try:
        train(TINY, BASELINES["muon"].program, devices=2, strategy="fsdp")
    except ProgramError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    torch.set_num_threads(1)
    found = {name: outcome(name, 2, place) for name in CASES} | {"resumed": resumed(place), "refused": refused()}
    if is_first_process():
        (place / "found.json").write_text(json.dumps(found))
    sys.exit()


def python(folder: Path, *words: str) -> str:
    """What a Python process prints, which must end well and without a warning."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the machine's name resolves to
    words = (sys.executable, *words)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("devices")
    assert python(folder, __file__, str(folder)) == ""
    return json.loads((folder / "found.json").read_text()) | {"folder": folder}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_devices_train_as_one_does(found: dict[str, Any], name: str) -> None:
    mine, alone = found[name], outcome(name, 1, None)
    assert mine["curve"] == pytest.approx(alone["curve"], rel=1e-5)
    assert mine["learned"] == pytest.approx(alone["learned"], rel=1e-5)
    for key in ("train_loss", "valid_loss", "test_loss", "valid"):
        assert mine[key] == pytest.approx(alone[key], rel=1e-5), key
    assert (len(mine["curve"]), mine["clipped"]) == (len(alone["curve"]), alone["clipped"])


@pytest.mark.slow
def test_one_process_writes_the_logs(found: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("ddp", "fsdp"):
        (file,) = (found["folder"] / name).glob("events*")
        events = EventAccumulator(str(file))
        events.Reload()
        assert [e.value for e in events.Scalars("loss/train")] == pytest.approx(found[name]["curve"])
        assert len(events.Scalars("optimizer/grad_norm")) == 4  # steps 1, 3, 6 and 9


@pytest.mark.slow
def test_a_sharded_run_goes_on_bit_for_bit(found: dict[str, Any]) -> None:
    whole, again = found["resumed"]
    assert whole == again and len(whole["curve"]) == TINY.steps


@pytest.mark.slow
def test_rules_that_mix_elements_are_not_sharded(found: dict[str, Any]) -> None:
    assert found["refused"].startswith("this program mixes the elements of a parameter")


@pytest.mark.slow
def test_the_command_reports_once(tmp_path: Path) -> None:
    words = "train --steps 4 --devices 2 --strategy ddp --checkpoint-every 2 --json result.json"
    out = python(tmp_path, "-m", "optforge.experiments.cli", *words.split())
    assert out.count("adamw on digits") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train-digits-1"]
    names = {path.name.split(".")[0] for path in (tmp_path / "runs" / "train-digits-1").iterdir()}
    assert names == {"checkpoint", "command", "events", "hparams", "program", "result"}
    assert json.loads((tmp_path / "result.json").read_text())["options"]["devices"] == 2


def test_each_device_has_its_share_of_every_batch() -> None:
    """The whole batch on all of them would come to the same, for nothing."""
    run = TrainingRun(Trial(BASELINES["adamw"].program, 0.1, TINY, 0, 5), PLAIN)
    whole, shares = run.batches(), [run.batches(number, 2) for number in range(2)]
    for (inputs, targets), *parts in zip(whole, *shares, strict=True):
        assert [len(x) for x, _ in parts] == [4, 4]
        assert torch.equal(torch.cat([x for x, _ in parts]).sort(0)[0], inputs.sort(0)[0])
        assert torch.equal(torch.cat([y for _, y in parts]).sort(0)[0], targets.sort(0)[0])


def test_what_cannot_be_shared_is_refused_before_a_process_starts() -> None:
    with pytest.raises(UserError, match="5 devices cannot share batches of 64 examples equally; use a divisor of 64"):
        train(TASKS["digits"], BASELINES["adamw"].program, devices=5)
    for options, words in (
        ({"devices": 0}, "at least 1 device"),
        ({"strategy": "dpp"}, "unknown strategy 'dpp'; did you mean ddp"),
        ({"strategy": "fsdp", "precision": "fp16"}, "use --precision bf16"),
        ({"checkpoint_every": -1}, "between checkpoints must be at least 0"),
    ):
        with pytest.raises(UserError, match=words):
            train(TASKS["digits"], BASELINES["adamw"].program, **options)


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--devices 2: this machine has 1"):
        train(TASKS["digits"], BASELINES["adamw"].program, devices=2)
