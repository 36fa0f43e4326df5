"""Reports of runs: true to what the runs wrote, escaped, self-contained, and of use where something is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.reports import NASTY, Page, comparison
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli import app
from optforge.experiments.errors import UserError
from optforge.experiments.report.command import write_run_report
from optforge.experiments.report.comparison_json import contest_from_json
from optforge.experiments.report.controls_report import labels
from optforge.experiments.report.document import Code, Document, Fold, Paragraph, Section
from optforge.experiments.report.drawing import svg
from optforge.experiments.report.formula import svg_lines
from optforge.experiments.report.html import render_html
from optforge.experiments.report.lineage import ancestors, lineage
from optforge.experiments.report.markdown import plain, render_markdown
from optforge.experiments.report.path_figures import path_figures
from optforge.experiments.report.runs import SearchRun, read_search
from optforge.experiments.report.search_report import search_verdict
from optforge.primitives import Program, print_program, subset
from optforge.search.engine import Budget, Search
from optforge.search.evolution.archive import pareto, point
from optforge.search.evolution.evolution import Evolution
from optforge.search.evolution.standing import Individual
from optforge.search.fitness.evaluator import Fitness, Status, evaluating
from optforge.search.ledger import Ledger, Summary
from optforge.search.space.draft import Space
from optforge.search.training.executors.processes import Workers

pytestmark = pytest.mark.pictures

CONFIG = {"task": "digits", "ladder": [0.001, 0.01], "seeds": [0, 1], "steps": 50, "start": "adamw", "seed": 0}


def made_up(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
    """Scores that hang on nothing but the program; one in seven diverges."""
    found = []
    for program in programs:
        score = int(hashlib.sha256(program.key.encode()).hexdigest()[:8], 16) / 2**32
        ok = score > 1 / 7 or program.key == BASELINES["adamw"].program.key
        status = Status.OK if ok else Status.DIVERGED
        found.append(Fitness(score if ok else math.inf, status, "" if ok else NASTY, 0.01, (1.0, score), False))
    return found


def search(folder: Path, programs: int = 48, **config: object) -> Path:
    """A run directory of a search that takes no time."""
    folder.mkdir(parents=True)
    settings = CONFIG | config
    start = (BASELINES["adamw"].program,)
    evolution = Evolution(start, Space(subset("lion45")), batch=8, population=16, tournament=4, seed=len(folder.name))
    ledger, workers = Ledger.create(folder, settings), Workers(evaluating(lambda: made_up), 0)
    for _ in Search(evolution, ledger, workers).run(Budget(programs)):
        pass
    workers.close()
    ledger.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search(tmp_path_factory.mktemp("search") / "evolution")


def compare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(comparison().as_json()))
    return folder


def train(folder: Path) -> Path:
    folder.mkdir()
    result = {
        "optimizer": NASTY, "task": "digits", "lr": 0.01, "seed": 0, "status": "ok", "reason": "", "steps": 3,
        "train_loss": 0.5, "valid_loss": 0.625, "test_loss": None, "test_accuracy": 0.9, "seconds": 1.0,
        "curve": [2.0, None, 0.5], "valid_curve": [[3, 0.625]], "provenance": {"commit": NASTY},
        "program": print_program(BASELINES["lion"].program), "options": {"schedule": NASTY},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def funnel() -> dict[str, object]:
    scores = {"3": {"score": -0.1, "by_seed": [-0.1], "by_task": {NASTY: -0.1}}}
    stage = {"name": NASTY, "tasks": [NASTY], "seeds": [1], "keep": 1, "entered": 1, "passed": [3], "scores": scores}
    look = {"trained": 8, "number": 3, "proxy": 0.5, "meta": -0.1, "low": None, "high": None}
    told = {NASTY: {"programs": 5, "rho": None, "p": None}}
    return {"stages": [stage], "survivors": [3], "curve": [look], "overfitting": 8, "correlations": told}


def test_a_page_of_everything_is_self_contained_escaped_and_sound(run: Path, tmp_path: Path) -> None:
    hostile = search(tmp_path / "<b>|`*", strategy=NASTY, start=NASTY)
    hall = [{"rank": NASTY, "number": 0, "score": NASTY, "lr": None}]
    (hostile / "hall_of_fame.json").write_text(json.dumps(hall))
    (hostile / "search.json").write_text(json.dumps({"search": {}, "table": comparison().as_json()}))
    (hostile / "funnel.json").write_text(json.dumps(funnel()))
    shown = [hostile, compare(tmp_path / "c"), train(tmp_path / "t"), train(tmp_path / "u")]
    written = write_run_report(shown, tmp_path / "out.html")
    text = written.html.read_text()
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "b", "object", "form"} & set(page.tags)
    assert page.text.count(NASTY) > 10 and "<b>|`*" in page.text
    assert len(page.ids) == len(set(page.ids)) > 50
    for used in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text):
        assert "".join(used) in page.ids
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#|data:image/png)[^"')\s]+""", text)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) > 20
    for picture in pictures:
        ElementTree.fromstring(picture)  # raises if it is not well-formed
    markdown = written.markdown.read_text()
    assert "<script" not in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL).replace(r"\<", "")


def test_the_page_opens_with_the_verdict_and_tables_are_whole(run: Path, tmp_path: Path) -> None:
    written = write_run_report([run], tmp_path / "r.html")
    champion = read_search(run).finite[0]
    sentence = search_verdict([read_search(run)])[0]
    assert f"program {champion.number} is the best" in sentence and f"{champion.score:.4g}" in sentence
    text = Page(written.html.read_text()).text
    places = [text.index(words) for words in (sentence, "Fitness over programs", "generations,", "digest")]
    assert places == sorted(places)
    assert plain(sentence) in written.markdown.read_text()
    for block in re.findall(r"(?:^\|.*\n)+", written.markdown.read_text(), re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


def test_what_is_read_of_a_search_is_what_its_ledger_says(run: Path) -> None:
    found = read_search(run)
    ledger = Ledger.open(run, read_only=True)
    records = list(ledger)
    assert found.digest == ledger.digest() and found.seconds == ledger.seconds()
    assert sum((by for _, by in found.batches), Counter()) == ledger.counts()
    ledger.close()
    assert [(r.number, r.parent, r.score, r.text) for r in found.rows] == [
        (r.number, r.parent, r.fitness.score, print_program(r.program)) for r in records
    ]
    best = [(n, r.fitness.score) for n, r in enumerate(records, 1)]
    assert found.best_so_far() == [(n, s) for n, s in best if all(s < other for _, other in best[: n - 1])]
    individuals = [Individual(r.number, r.batch, r.program, r.fitness.score) for r in records]
    assert [r.number for r in found.front] == [
        p.number for p in pareto(map(point, individuals), lambda p: p.objectives)
    ]


def test_a_search_that_is_running_can_be_reported_and_is_left_as_it_is(tmp_path: Path) -> None:
    folder = search(tmp_path / "going")
    ledger = Ledger.open(folder)  # holds the lock, as the search does
    before = sorted(p.name for p in folder.iterdir()), ledger.digest()
    write_run_report([folder], tmp_path / "r.html")
    assert (sorted(p.name for p in folder.iterdir()), ledger.digest()) == before
    ledger.close()


def test_pareto_of_made_up_rows_is_that_of_all_pairs() -> None:
    rng = random.Random(0)
    rows = []
    for n in range(300):
        slots = rng.randrange(4)
        text = "optforge 1\n" + "".join(f"slot s{i} = 0.0 tensor\n" for i in range(slots))
        score = rng.choice([math.inf, rng.randrange(60) / 10])
        rows.append(Summary(n, n - 1, ("x",), text, score, 0.1, Status.OK, 9, rng.randrange(12), slots))
    run = SearchRun(Path(), {}, tuple(rows), (), 0.0, "", (), {}, {})
    points = {r.number: (r.score, 4 * r.slots, r.live) for r in rows if math.isfinite(r.score)}

    def beaten(n: int) -> bool:
        mine = points[n]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or m < n)
            for m, other in points.items()
            if m != n
        )

    assert {r.number for r in run.front} == {n for n in points if not beaten(n)}


def test_lineage_goes_from_the_start_to_the_champion_and_says_what_changed(run: Path) -> None:
    found = read_search(run)
    assert found.champion is not None
    line = ancestors(found.rows, found.champion)
    assert line[0].parent == -1 and line[-1] is found.champion
    assert all(child.parent == parent.number for parent, child in itertools.pairwise(line))
    best = math.inf
    for step in lineage(line):
        assert step.gain == (step.distance > 0 and step.row.score < best)
        best = min(best, step.row.score)
        if step.distance:
            assert re.search("^[+-]", step.diff, re.MULTILINE)
    text, scores = found.rows[0].text, (5.0, 3.0, 4.0, 3.5, 2.0)
    made = [Summary(n, n - 1, ("constant",), text, score, 0.1, Status.OK, 9, 9, 2) for n, score in enumerate(scores)]
    assert [one.gain for one in lineage(made)] == [False, True, False, False, True]  # 3.5 only mends what 4 lost
    loop = dataclasses.replace(found, rows=(found.rows[0]._replace(parent=0),))
    assert len(ancestors(loop.rows, loop.rows[0])) == 1  # an edited ledger ends, too


def test_controls_are_set_beside_the_search_at_equal_budgets(run: Path, tmp_path: Path) -> None:
    short = search(tmp_path / "null", programs=16, strategy="random")
    runs = [read_search(short), read_search(run)]
    (_, sentence) = search_verdict(runs)
    each = 50 * 2 * 2
    assert f"At equal budgets of 16 programs ({16 * each:,} candidate-steps)" in sentence
    best = {r.strategy: min(row.score for row in r.rows[:16]) for r in runs}
    assert all(f"{name} {score:.4g}" in sentence for name, score in best.items())
    assert ("no discovery" in sentence) == (best["random"] <= best["evolution"])
    for better in runs:  # whoever of them has by far the best program
        told = [
            dataclasses.replace(r, rows=(r.rows[0]._replace(score=1e-9), *r.rows[1:])) if r is better else r
            for r in runs
        ]
        assert ("not ahead of random: it has shown no discovery" in search_verdict(told)[1]) == (better is runs[0])
    assert labels(runs) == ["random", "evolution"]
    twin = dataclasses.replace(runs[0], folder=tmp_path / "twin" / "null")
    assert len(set(labels([*runs, twin]))) == 3
    page = Page(write_run_report([short, run], tmp_path / "r.html").html.read_text()).text
    assert "Search and controls" in page and "Search: evolution" in page
    other = search(tmp_path / "else", programs=16, steps=51)
    page = Page(write_run_report([other, run], tmp_path / "r.html").html.read_text()).text
    assert "Search and controls" not in page and "each stands alone" in page


def test_a_comparison_survives_its_json() -> None:
    found = comparison(fails=1)
    first = found.entries[0]
    lost = dataclasses.replace(first.runs[0], test=math.nan, valid=math.inf)
    found = dataclasses.replace(
        found, entries=(dataclasses.replace(first, runs=(lost, *first.runs[1:])), *found.entries[1:])
    )
    written = json.loads(json.dumps(found.as_json()))
    (again,) = contest_from_json(written, Path("x")).comparisons
    assert json.loads(json.dumps(again.as_json())) == written
    assert again.entries[0].runs[1].failed is first.runs[1].failed  # not 0 or 1, which would be indices
    assert again.entries[1] == found.entries[1] and again.pairs == found.pairs


@pytest.mark.parametrize("path", [["verdict"], ["pairs", 0, "first"], ["optimizers", 0, "program"], ["protocol"]])
def test_an_edited_comparison_is_refused_in_a_sentence(tmp_path: Path, path: list[str | int]) -> None:
    folder = compare(tmp_path / "c")
    content = json.loads((folder / "compare.json").read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if path == ["verdict"]:
        del inner[path[-1]]
    else:
        inner[path[-1]] = "nobody <b>"
    (folder / "compare.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"compare\.json"):
        write_run_report([folder])
    assert [p.name for p in folder.iterdir()] == ["compare.json"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["optimizers", 0, "runs"], []),
        (["optimizers", 0, "mean"], None),
        (["optimizers", 0, "runs", 0, "test"], math.inf),
        (["optimizers", 0, "runs", 0, "curve"], []),
        (["optimizers", 0, "tuning", "rates"], []),
        (["optimizers", 0, "tuning", "lr"], None),
        (["optimizers", 0, "tuning", "space"], [{}]),
        (["optimizers", 0, "costs"], {"step_ms": "x", "rule_ms": 1.0, "peak_bytes": 1.0, "compile_seconds": 1.0}),
        (["optimizers", 0, "accuracy"], "x"),
        (["optimizers", 0, "statements"], None),
        (["protocol", "horizon"], "x"),
        (["target"], "x"),
        (["curve"], []),
    ],
)
def test_numbers_that_no_run_writes_are_refused_in_a_sentence(
    tmp_path: Path, path: list[str | int], value: object
) -> None:
    folder = train(tmp_path / "t") if path == ["curve"] else compare(tmp_path / "c")
    (file,) = folder.iterdir()
    content = inner = json.loads(file.read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 2 and file.name in result.output and "was it edited?" in " ".join(result.output.split())
    assert list(folder.iterdir()) == [file]


@pytest.mark.parametrize("name", ["compare.json", "result.json", "store.sqlite"])
def test_a_file_that_is_cut_off_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"a": ')
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2 and name in result.output and "Traceback" not in result.output


def test_what_is_no_run_and_where_it_cannot_be_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither"):
        write_run_report([tmp_path])
    with pytest.raises(UserError, match=r"\.html"):
        write_run_report([run], tmp_path / "report.md")
    with pytest.raises(UserError, match="cannot be written"):
        write_run_report([run], tmp_path / "no" / "report.html")


def test_the_command_writes_beside_one_run_and_above_several(run: Path, tmp_path: Path) -> None:
    one, two = train(tmp_path / "one"), train(tmp_path / "two")
    result = CliRunner().invoke(app, ["report", str(one), str(one)])
    assert result.exit_code == 0 and str(one / "report.html") in result.output
    assert "validation loss 0.625, test loss – (single run)" in (one / "report.md").read_text()
    assert not (tmp_path / "report.html").exists()
    assert write_run_report([one, two]).html.resolve() == (tmp_path / "report.html").resolve()


def test_a_search_in_which_nothing_trains_still_has_a_report(run: Path, tmp_path: Path) -> None:
    folder = search(tmp_path / "bad", programs=8)
    db = sqlite3.connect(folder / Ledger.FILE)
    with db:
        db.execute("update programs set status = 'diverged', score = null")
    db.close()
    text = Page(write_run_report([folder], tmp_path / "r.html").html.read_text()).text
    assert "None of 8 programs could be trained" in text


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_formula_is_drawn_within_its_frame(name: str) -> None:
    lines = svg_lines(BASELINES[name].program)
    assert lines, name
    for line in lines:
        picture = ElementTree.fromstring(line)
        left, top, width, height = map(float, picture.attrib["viewBox"].split())
        numbers = list(map(float, re.findall(r"-?\d+\.\d+", picture[0].attrib["d"])))
        x, y = numbers[::2], numbers[1::2]
        assert left <= min(x) and max(x) <= left + width and top <= min(y) and max(y) <= top + height


def test_a_comparison_draws_paths_of_what_can_be_run_on_two_numbers(tmp_path: Path) -> None:
    page = write_run_report([compare(tmp_path / "c")]).html.read_text()
    for title in ("Paths on two surfaces", "Paths: rosenbrock", "Paths: saddle"):
        assert f">{title}</h" in page
    muon = BASELINES["muon"].program
    whole = dataclasses.replace(muon, fallback=None)
    shown = [("muon", muon), ("whole", whole), ("adamw", BASELINES["adamw"].program)]
    text = svg(path_figures(shown)[1], "f1")
    assert "muon, lr" in text and "adamw, lr" in text and "whole" not in text and "var(--ink)" in text
    assert not path_figures(shown[1:2])
    assert not path_figures(shown, largest=3)


def test_blocks_escape_in_both_forms() -> None:
    def shown(*blocks: Paragraph | Code | Fold) -> Document:
        return Document("", (), (Section("", blocks),))

    assert render_html(shown(Code("+ <b>\n- </pre>", diff=True))).count("<b>") == 0
    assert "\n`````\n" in render_markdown(shown(Code("a ```` b")))  # a longer fence than what is inside
    text = render_markdown(shown(Paragraph("a\n# b <i> | *c*", "verdict"), Fold("<i>", (Paragraph("d"),))))
    assert r"**a \# b \<i\> \| \*c\***" in text and "<summary>&lt;i&gt;</summary>" in text


def contrast(one: str, other: str) -> float:
    """Contrast ratio by WCAG 2.1: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out_from_the_page(theme: int) -> None:
    style = render_html(Document("", (), ()))
    colours = dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]))
    for name in ("ink", "soft", "mark"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name  # text, level AA
    assert contrast(colours["ink"], colours["lift"]) >= 4.5
    for kind in ("add", "cut"):
        assert contrast(colours[kind], colours[f"{kind}-paper"]) >= 4.5
    for index in range(6):
        assert contrast(colours[f"c{index}"], colours["paper"]) >= 3.0  # lines and marks
