"""Calibration: rank correlations by hand, and the command on small tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from optforge.experiments.cli import app
from optforge.experiments.searching.calibration import calibrate

NAMES = ("a", "b", "c", "d", "e", "f")


def test_correlations_are_those_worked_out_by_hand() -> None:
    proxies = {"one": (0.0, 1.0, 2.0, 3.0, 4.0, 5.0), "two": (0.0, 1.0, 2.0, 3.0, 5.0, 4.0)}
    larger = {"big": (0.0, 1.0, 2.0, 3.0, 4.0, -9.0)}
    found = calibrate(NAMES, proxies, larger)
    # means tie at the end: ranks 0 1 2 3 4.5 4.5 against 1 2 3 4 5 0, so d = 1 1 1 1 .5 -4.5
    x, y = np.array([0, 1, 2, 3, 4.5, 4.5]), np.array([1, 2, 3, 4, 5, 0])
    assert found.rho == found.by_task["big"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.low < found.rho < found.high
    assert found.misjudged == [("f", 6, 1)]
    rho = 1 - 6 * 2 / (6 * 35)
    assert found.reliability == pytest.approx(2 * rho / (1 + rho))


def test_equal_rankings_are_one_and_opposite_ones_minus_one() -> None:
    up = tuple(map(float, range(6)))
    assert calibrate(NAMES, {"p": up}, {"q": up}).rho == pytest.approx(1)
    assert calibrate(NAMES, {"p": up}, {"q": up[::-1]}).rho == pytest.approx(-1)
    with pytest.raises(ValueError, match="needs 4 optimizers"):
        calibrate(NAMES[:3], {"p": up[:3]}, {"q": up[:3]})


def test_command_prints_what_it_found_and_continues_from_its_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "calibrate",
        "lion",
        "momentum",
        "rmsprop",
        "muon",
        "--tasks",
        "proxy-teacher,proxy-curves",
        "--steps",
        "20",
        "--against",
        "digits",
        "--against-steps",
        "30",
        "--storage",
        "s.sqlite",
        "--json",
        "found.json",
    ]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    assert "rank correlation of the proxies with the larger tasks over 4 optimizers" in " ".join(first.output.split())
    found = json.loads(Path("found.json").read_text())
    assert found["names"] == ["lion", "momentum", "rmsprop", "muon"] and set(found["larger"]) == {"digits"}
    monkeypatch.setattr("optforge.search.training.trainer.train", None)  # everything is known
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0 and json.loads(Path("found.json").read_text()) == found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [("calibrate lion muon", "needs at least 4 optimizers"), ("calibrate lion adamv a b", "unknown optimizer"),
     ("calibrate --against nowhere", "unknown task"), ("calibrate --json no/such/file", "cannot be written")],
)  # fmt: skip
def test_bad_input_is_a_sentence(words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "optforge.search.fitness.suite.Suite.__call__", lambda self, programs, generation: pytest.fail("trained")
    )
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2 and sentence in " ".join((done.output + str(done.exception)).split())
