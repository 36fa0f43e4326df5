"""What is listed, and that the memory of every optimizer is what theory says, measured in both of its forms."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from optforge.baselines import BASELINES, NAMED
from optforge.experiments.cli import app
from optforge.experiments.report import listings
from optforge.experiments.report.listings import measure, state_words
from optforge.primitives import ProgramOptimizer
from optforge.primitives.analysis.cost import cost

NAMES = [*BASELINES, *NAMED]
SHAPES = [(6, 4), (3, 2, 2, 2), (5,)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(listings, "SHAPES", tuple(SHAPES))

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_measured_state_is_that_of_theory(name, shape):
    program = listings.named_programs()[name]
    elements = torch.Size(shape).numel()
    idle = len(program.state) - len(program.live_state)
    assert idle == (1 if "raw" in name else 0)
    assert measure(lambda ps: ProgramOptimizer(ps, program), shape) == (
        round(cost(program, shape).state_bytes * elements) + 4 * idle * elements
    )
    if name in BASELINES:
        assert measure(BASELINES[name].optimizer, shape) == round(cost(program, shape).state_bytes * elements)


def test_measuring_sees_what_the_state_holds_on_to():
    class Wasteful(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            p = self.param_groups[0]["params"][0]
            large = torch.zeros(100)
            self.state[p] = {"step": torch.zeros(()), "m": large[:5], "same": large[5:10], "v": torch.zeros(5).double()}

    assert measure(Wasteful, (5,)) == 4 * 100 + 8 * 5


def test_state_in_words():
    words = {name: state_words(program) for name, program in listings.named_programs().items()}
    assert {n: words[n] for n in ("sgd", "lion", "adamw", "lion-raw", "adafactor")} == {
        "sgd": "0", "lion": "1×", "adamw": "2×", "lion-raw": "1×", "adafactor": "rows + columns; vectors 1×"
    }  # fmt: skip


def test_every_name_is_listed(run):
    code, out, _ = run("optimizers")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == NAMES
    for row in BASELINES.values():
        assert row.paper in out
    _, _, err = run("show", "adamx")
    assert all(name in err for name in NAMES)


def test_memory_is_printed_and_written(run, tmp_path):
    code, out, _ = run("optimizers", "--memory", "--json", "memory.json")
    lines = {line.split()[0]: line.split() for line in out.splitlines()[1 : len(NAMES) + 1]}
    assert code == 0 and list(lines) == NAMES
    assert lines["adamw"] == ["adamw", "2×", "8", "8", "8"]
    assert lines["lion-raw"] == ["lion-raw", "1×", "4", "–", "8"] and "lion-raw, lion-raw-ablated; in theory" in out
    assert "on 53 float32 parameters" in out
    written = json.loads((tmp_path / "memory.json").read_text())
    assert written["shapes"] == [list(shape) for shape in SHAPES]
    rows = {row["name"]: row for row in written["optimizers"]}
    assert list(rows) == NAMES
    sizes = 4 * (6 + 4), 4 * (3 + 8), 4 * 5
    assert [b["by_hand"] for b in rows["adafactor"]["bytes"]] == list(sizes)
    assert rows["adafactor"]["program"] == pytest.approx(sum(sizes) / 53)
    assert rows["lion-raw"]["by_hand"] is None


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--json", "x.json"], "give both"), (["--memory", "--json", "no/x"], "--json no/x cannot be written")],
)
def test_what_does_not_fit_is_told_in_a_sentence(run, arguments, part):
    code, out, err = run("optimizers", *arguments)
    assert (code, out) == (2, "") and err.startswith("optforge: ") and part in err
