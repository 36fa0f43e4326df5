"""The benchmark of learned rates: its score by hand, its file, its tables, and other people's methods."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from optforge.experiments.bench import learned, learned_suite
from optforge.experiments.bench.learned_tables import BEGIN, END, insert, reference, score, suite_table
from optforge.experiments.errors import UserError


def cell(method, lr, final, seed=0, start=2.0):
    return {"task": "digits", "method": method, "lr": lr, "seed": seed, "start": start, "final": final}


def test_score_by_hand():
    """Not finite and worse than the start both count as the start; means are over seeds, then over rates."""
    cells = [cell("x", 0.1, 1.0), cell("x", 0.1, 1.4, 1), cell("x", 1.0, math.nan), cell("x", 1.0, 5.0, 1)]
    found = score(cells, 1.0)
    assert found["means"] == {0.1: pytest.approx(1.2), 1.0: pytest.approx(2.0)}
    assert found["S"] == pytest.approx(0.6) and found["within"] == 1


def test_reference_is_the_best_mean():
    tuned = [
        cell("AdamW tuned, cosine", lr, final, seed) for lr, final, seed in ((1, 0.1, 0), (1, 0.9, 1), (2, 0.4, 0))
    ]
    assert reference([*tuned, cell("AdamW", 1, 0.01)], "digits") == pytest.approx(0.4)


def test_ratios_of_the_suite():
    cells = [cell("AdamW", 1, 1.0), cell("mine", 1, 2.0), cell("AdamW", 1, 3.0, 1), cell("mine", 1, 1.5, 1)]
    text = suite_table(cells)
    assert "| digits | 2 | 1.75 | 0.875 | 0.500 to 2.000 | 2 |" in text and "geometric mean 0.875" in text


def test_tables_go_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    insert(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(UserError, match="lacks the lines"):
        insert(page, "new")


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """The second call measures only what the first did not; all is in the file, and the page has the tables."""
    digits = learned.digits()
    short = digits._replace(batches=lambda seed: digits.batches(seed)[:3])
    monkeypatch.setattr(learned, "PROBLEMS", {"digits": lambda: short})
    monkeypatch.setattr(learned, "RATES", (1e-3, 1.0))
    monkeypatch.setattr(learned, "TUNED", (1e-3,))
    monkeypatch.setattr(learned, "OFFLINE", ("breast-cancer",))
    runs = []
    measured = learned.train
    monkeypatch.setattr(learned, "train", lambda *args: runs.append(args) or measured(*args))
    monkeypatch.setattr(
        learned_suite, "train", lambda trials: [SimpleNamespace(valid=1.0 + trial.seed) for trial in trials]
    )
    page, file = tmp_path / "learned.md", tmp_path / "bench.json"
    page.write_text(f"{BEGIN}\n{END}\n")
    common = ["", "--json", str(file), "--seeds", "1", "--docs", str(page), "--parts", "sweep", "suite"]
    for methods, expected in ((["AdamW"], 4), (["AdamW", "optforge"], 6)):
        monkeypatch.setattr("sys.argv", [*common, "--methods", *methods])
        learned.main()
        assert len(runs) == expected
    record = json.loads(file.read_text())
    assert len(record["sweep"]) == 6 and len(record["suite"]) == 2
    assert all(math.isfinite(c["final"]) and c["commit"] for c in record["sweep"])
    assert "| optforge |" in page.read_text() and "breast-cancer" in page.read_text()


def test_charlm_without_its_text_is_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learned, "TEXT", tmp_path / "missing.txt")
    monkeypatch.setattr("sys.argv", ["", "--json", str(tmp_path / "x.json"), "--parts", "sweep", "--tasks", "charlm"])
    learned.main()
    assert "charlm is skipped: tiny-shakespeare is not at" in capsys.readouterr().out


PEERS = {
    "LDoG": "dog",
    "DoG": "dog",
    "Mechanic": "mechanic_pytorch",
    "MoMo-Adam": "momo",
    "Prodigy": "prodigyopt",
    "D-Adaptation": "dadaptation",
    "Schedule-Free AdamW": "schedulefree",
}


@pytest.mark.parametrize("name", [*PEERS, "AdamW"])
def test_other_methods_train(name):
    if name in PEERS:
        pytest.importorskip(PEERS[name], reason=f"{PEERS[name]} is not installed (extra: peers)")
    digits = learned.digits()
    found = learned.train(
        digits._replace(batches=lambda seed: digits.batches(seed)[:200]), learned.METHODS[name], 1e-2, 0
    )
    assert found["final"] < 0.8 * found["start"]
