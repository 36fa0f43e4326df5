"""`optforge meta-train`: what it writes, going on after an interruption, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from optforge.experiments.cli import app
from optforge.experiments.training import meta_command
from optforge.learned.meta.tasks import quadratics
from optforge.learned.meta.trainer import MetaTrainer
from optforge.learned.meta.weights import FOLDER, load


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_command, "VALIDATE_EVERY", 2)
    problems = {"quadratics": lambda device: quadratics(3, 10, 4), "others": lambda device: quadratics(2, 30, 4)}
    monkeypatch.setattr(meta_command, "PROBLEMS", problems)


def optforge(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("arguments", [["lstm"], ["lstm", "--raw"], ["mlp", "--estimator", "tbptt"], ["mlp"]])
def test_it_writes_weights_with_their_card(arguments, tmp_path):
    folder, copy = tmp_path / "run", tmp_path / "copy.json"
    said = optforge(
        "meta-train", *arguments, "--problems", "quadratics,others", "--steps", 6, "--seed", 3,
        "--run-dir", folder, "--json", copy,
    )  # fmt: skip
    assert "held-out" in said
    found = load(folder / "weights.safetensors")
    assert found.rule.name == arguments[0]
    assert found.card["seed"] == 3
    assert found.card["meta-steps"] >= 6
    assert found.card.keys() >= {"trained on", "CPU seconds", "commit", "estimator"}
    assert "3 dimensions" in (folder / "card.md").read_text()
    assert json.loads(copy.read_text()) == json.loads((folder / "result.json").read_text())
    assert list((folder / "tensorboard").iterdir())


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    arguments = ["--problems", "quadratics,others", "--steps", 9, "--estimator", "tbptt"]
    optforge("meta-train", "mlp", *arguments, "--run-dir", tmp_path / "whole")
    run, calls = MetaTrainer.run, []

    def dies(self):
        calls.append(1)
        if len(calls) == 4:  # after the checkpoint of the second training run, in the middle of things
            run(self)
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(MetaTrainer, "run", dies)
    optforge("meta-train", "mlp", *arguments, "--run-dir", tmp_path / "cut", code=130)
    assert checkpoint(tmp_path / "cut")["runs"] == 2
    monkeypatch.setattr(MetaTrainer, "run", run)
    optforge("meta-train", "--resume", "--run-dir", tmp_path / "cut")
    whole, cut = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "cut")
    assert whole["done"] == cut["done"] >= 9
    assert torch.equal(whole["theta"], cut["theta"])
    first, second = (load(tmp_path / name / "weights.safetensors").weights for name in ("whole", "cut"))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_run_stopped_by_time_goes_on_to_the_same_weights(tmp_path):
    arguments = ["--problems", "quadratics", "--steps", 8]
    optforge("meta-train", "mlp", *arguments, "--run-dir", tmp_path / "whole")
    said = optforge("meta-train", "mlp", *arguments, "--minutes", 0.0001, "--run-dir", tmp_path / "cut")
    assert "go on with: optforge meta-train --resume" in said
    optforge("meta-train", "--resume", "--run-dir", tmp_path / "cut")
    whole, cut = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "cut")
    assert torch.equal(whole["theta"], cut["theta"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a RULE is missing; name one of: lstm, mlp"),
        (["gru"], "unknown rule 'gru'"),
        (["mlp", "--problems", "quadratic"], "did you mean quadratics"),
        (["mlp", "--problems", "quadratics", "--estimator", "tbpt"], "did you mean tbptt"),
        (["mlp", "--problems", "quadratics", "--raw"], "--raw leaves out the preprocessing of the LSTM"),
        (["mlp", "--problems", "quadratics", "--estimator", "imitation", "--curvature", "0.5"], "imitation does none"),
        (["lstm", "--problems", "quadratics", "--estimator", "imitation"], "--estimator imitation needs a --teacher"),
        (
            ["lstm", "--problems", "quadratics", "--estimator", "tbptt", "--teacher", "mlp-quadratics"],
            "tbptt looks at losses",
        ),
        (["lstm", "--problems", "quadratics", "--teacher", "mlp"], "there are no weights"),
        (["lstm", "--problems", "quadratics", "--lr", "inf"], "must be a finite number of at least 0, got inf"),
        (["--resume"], "--resume needs the --run-dir"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in optforge("meta-train", *arguments, code=2)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_as_it_began(tmp_path):
    folder = tmp_path / "run"
    optforge("meta-train", "mlp", "--problems", "quadratics", "--steps", 2, "--run-dir", folder)
    said = optforge("meta-train", "lstm", "--resume", "--run-dir", folder, code=2)
    assert "has rule 'mlp', not 'lstm'" in said
    (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:1000])
    assert "no checkpoint of this run" in optforge("meta-train", "--resume", "--run-dir", folder, code=2)
    (folder / "meta.json").write_text("{")
    assert "no run directory of meta-train" in optforge("meta-train", "--resume", "--run-dir", folder, code=2)


def test_training_goes_on_from_weights_of_another_run(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    optforge("meta-train", "mlp", "--problems", "quadratics", "--steps", 4, "--run-dir", first)
    weights = first / "weights.safetensors"
    optforge(
        "meta-train", "mlp", "--problems", "others", "--steps", 1, "--lr", 0, "--start", weights, "--run-dir", second
    )
    before, after = load(weights), load(second / "weights.safetensors")
    assert all(torch.equal(before.weights[k], after.weights[k]) for k in before.weights)
    assert after.card["started from"]["meta-steps"] == before.card["meta-steps"]
    said = optforge("meta-train", "lstm", "--problems", "others", "--start", weights, code=2)
    assert "rule 'mlp', not of 'lstm'" in said


def test_a_rule_learns_from_another_and_its_card_says_from_whom(tmp_path):
    arguments = ["lstm", "--problems", "quadratics", "--teacher", "mlp-quadratics", "--steps", 10]
    optforge("meta-train", *arguments, "--run-dir", tmp_path)
    card = load(tmp_path / "weights.safetensors").card
    assert card["estimator"] == "imitation, whole training runs" and card["meta-steps"] == 16
    assert card["teacher"]["meta-steps"] == load("mlp-quadratics").card["meta-steps"]
    said = optforge("meta-train", "--resume", "--teacher", "lstm-quadratics", "--run-dir", tmp_path, code=2)
    assert "has teacher 'mlp-quadratics', not 'lstm-quadratics'" in said


def test_a_run_goes_on_whatever_becomes_of_its_teacher(tmp_path):
    teacher, folder = tmp_path / "teacher.safetensors", tmp_path / "run"
    teacher.write_bytes(Path(str(FOLDER / "mlp-quadratics.safetensors")).read_bytes())
    arguments = ["lstm", "--problems", "quadratics", "--teacher", teacher, "--steps", 10]
    optforge("meta-train", *arguments, "--minutes", 0.0001, "--run-dir", folder)
    teacher.unlink()
    optforge("meta-train", "--resume", "--run-dir", folder)
    optforge("meta-train", *arguments[:4], "mlp-quadratics", "--steps", 10, "--run-dir", tmp_path / "whole")
    assert torch.equal(checkpoint(folder)["theta"], checkpoint(tmp_path / "whole")["theta"])


def test_a_meta_trained_rule_trains_a_task(tmp_path):
    for arguments, learned in ([], {}), (["--learn", "lr"], {"lr": pytest.approx(0.1, rel=0.5)}):
        folder = tmp_path / f"run{len(arguments)}"
        said = optforge(
            "train", "--optimizer", "lstm-classifiers", "--lr", 0.1, "--steps", 30, "--run-dir", folder, *arguments
        )
        assert "lstm-classifiers on digits: lr 0.1, " in said
        record = json.loads((folder / "result.json").read_text())
        assert record["rule"] == "lstm" and record["card"] == load("lstm-classifiers").card
        assert record["learned"] == learned and record["valid_loss"] < 0.9 * record["valid_curve"][0][1]
    assert "meta-trained" in optforge("report", folder) or "meta-trained" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--learn", "beta1"], "can learn lr"),
        (["--set", "beta1=0.9"], "has no hyperparameter"),
        (["--strategy", "fsdp"], "choose --strategy ddp"),
        (["--lr", "nan"], "lr must be"),
    ],
)
def test_what_a_meta_trained_rule_cannot_do(arguments, sentence, tmp_path):
    folder = tmp_path / "run"
    said = optforge("train", "--optimizer", "mlp-classifiers", "--run-dir", folder, *arguments, code=2)
    assert sentence in " ".join(said.replace("│", " ").split()) and not folder.exists()
