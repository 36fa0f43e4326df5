"""Reports say what the comparison found, in files that need nothing else."""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.reports import NASTY, Page, comparison

from optforge.experiments.compare.comparison import Setting, Tuning
from optforge.experiments.compare.console import print_comparison
from optforge.experiments.compare.contest import Contest
from optforge.experiments.compare.statistics import Verdict
from optforge.experiments.compare.tables import (
    configuration_table,
    entry_table,
    interval_text,
    notes,
    number,
    pair_table,
)
from optforge.experiments.compare.verdict import contest_sentence, verdict_sentence
from optforge.experiments.files import write_atomic
from optforge.experiments.report.blocks import block_markdown
from optforge.experiments.report.comparison_report import html, markdown, write_report
from optforge.experiments.report.comparison_sections import contest_sections
from optforge.experiments.report.plots import panels, svg

pytestmark = pytest.mark.pictures

SEARCH = {
    "programs": 1234,
    "seconds": 61.25,
    "verdicts": {"new": 1000, "duplicate": 234},
    "curve": [(1, 0.5), (10, None), (300, 0.25)],
    "references": {"adamw": 0.3},
    "champion": "optforge 1\nupdate g\n# <b>",
    "config": {"program": "one\ntwo", "seed": 7},
}


def test_page_needs_nothing_else_and_escapes_what_it_shows() -> None:
    text = html(comparison(), SEARCH)
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags and "b" not in page.tags
    assert NASTY in page.text and "# <b>" in page.text
    loaded = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)([a-z]+:)?//[^"')\s]+""", text)
    assert not loaded
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert len(page.ids) == len(set(page.ids))
    for used in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text):
        assert "".join(used) in page.ids


def test_page_opens_with_the_verdict_and_shows_every_number() -> None:
    found = comparison()
    text = Page(html(found, SEARCH)).text
    places = [text.index(words) for words in (found.verdict, "Learning-rate sensitivity", "first is", "optforge 1")]
    assert places == sorted(places)
    for table in (entry_table(found), pair_table(found)):
        assert all(cell in text for row in table.rows for cell in row)
    assert all(note in text for note in notes(found))
    assert "1,234" in text and "verdicts: new" in text and "config: seed" in text and "config: program" not in text
    assert "abc" in text and "optforge 1" in text


def test_pictures_are_well_formed_and_follow_the_theme() -> None:
    found = comparison()
    drawn = panels(found, SEARCH)
    assert [p.title for p in drawn] == ["Final test loss", "Learning-rate sensitivity", "Training loss", "Search"]
    assert len(panels(found)) == 3
    for panel in drawn:
        text = svg(panel)
        ElementTree.fromstring(text)
        assert "var(--ink)" in text and not re.search(r"(fill|stroke): #", text)
    assert svg(drawn[1]) == svg(drawn[1])


def test_written_files(tmp_path: Path) -> None:
    report = write_report(comparison(), tmp_path, SEARCH)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md", "report.png"]
    data = report.picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000 and height > 600


def test_markdown_tables_are_rectangular() -> None:
    found = comparison()
    text = markdown(found, SEARCH)
    assert text.index("**On digits") < text.index("report.png") < text.index("| optimizer")
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("| ")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1


def test_single_run_is_marked_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    found = comparison(seeds=1)
    assert found.verdict.startswith("Single run: ") and "chance" in found.verdict
    print_comparison(found)
    for text in (Page(html(found)).text, markdown(found), capsys.readouterr().out):
        assert "single run" in text.lower() and "SINGLE RUN: one seed each" in text
        assert not re.search(r"better than|worse than|equivalent to|interval [0-9]", text)
    assert all(row[-1] == "–" for row in pair_table(found).rows)


def test_verdict_names_the_program_in_question_and_sets_it_beside_baselines() -> None:
    verdict = comparison(("second", "first", "adamw", "lion")).verdict
    assert verdict.startswith("On digits, second (test loss 0.1")  # `first` has Lion's own program: a baseline
    assert "is better than first (by 0.1" in verdict and "adamw (by 0.2" in verdict and "lion (by 0.3" in verdict
    assert comparison(("adamw", "lion")).verdict.startswith("On digits, adamw")
    assert "ran alone" in comparison(("adamw",)).verdict


def test_the_quantity_at_an_edge_is_named_and_no_other() -> None:
    found = comparison(("mine", "adamw"))
    edge = replace(found.entries[0].tuning, edge=True)
    trial = Setting({"lr": 1e-3, "beta1": 0.5}, 0.2, (0.2,), (0.2,), (False,))
    space = tuple({"name": name, "low": 0.1, "high": 1.0} for name in ("lr", "beta1"))
    searched = replace(edge, trials=(trial,), space=space, values=trial.values)

    def told(tuning: Tuning) -> tuple[str, str, str]:
        entries = (replace(found.entries[0], tuning=tuning), found.entries[1])
        lr = next(row[1] for row in entry_table(replace(found, entries=entries)).rows if row[0] == "mine")
        value = next((r[2] for r in configuration_table(replace(found, entries=entries)).rows if r[1] == "beta1"), "")
        return verdict_sentence(found.protocol, entries, found.pairs), lr, value

    for tuning, words, lr, value in (
        (edge, "The best learning rate of mine is on an end of the widened ladder: it may do", "0.001 (edge)", ""),
        (replace(searched, edges=("beta1",)), "The best beta1 of mine is on an end of the widened ranges", "0.001",
         "0.5 (edge)"),
        (replace(searched, edges=("lr", "beta1")), "The best learning rate and beta1 of mine is", "0.001 (edge)",
         "0.5 (edge)"),
        (searched, "The best configuration of mine is on an end", "0.001 (edge)", "0.5"),  # of an older file
    ):  # fmt: skip
        assert words in told(tuning)[0] and told(tuning)[1:] == (lr, value)


def test_a_control_that_was_tuned_in_fewer_dimensions_is_named() -> None:
    found = comparison(("mine", "adamw", "random control"))
    trial = Setting({"lr": 1e-3}, 0.2, (0.2,), (0.2,), (False,))
    space = tuple({"name": name, "low": 0.1, "high": 1.0} for name in ("lr", "beta1", "beta2"))
    entries = tuple(
        replace(e, tuning=replace(e.tuning, trials=(trial,) * 16, space=space[: 1 if "control" in e.name else 3]))
        for e in found.entries
    )
    protocol = replace(found.protocol, trials=16, dimensions=3)
    words = "in 3 dimensions, random control in 1"
    assert f"every optimizer tuned with 16 trials {words})" in verdict_sentence(protocol, entries, found.pairs)
    assert words in notes(replace(found, protocol=protocol, entries=entries))[0]


def test_the_promise_is_about_pairs_that_the_verdict_names() -> None:
    found = comparison(("lion", "adamw", "also lion"))
    for first, second, said in (("lion", "adamw", True), ("adamw", "also lion", False)):
        pairs = tuple(
            replace(p, verdict=Verdict.NO_DIFFERENCE if {p.first, p.second} == {first, second} else Verdict.BETTER)
            for p in found.pairs
        )
        assert ("no difference is shown, one of" in contest_sentence([replace(found, pairs=pairs)])) is said


def test_nothing_is_promised_of_pairs_that_both_failed_on_a_seed() -> None:
    found = comparison(("lion", "adamw", "also lion"))
    none = [replace(p, verdict=Verdict.NO_DIFFERENCE, detectable=math.nan) for p in found.pairs]
    assert "of 80%" not in contest_sentence([replace(found, pairs=tuple(none))])
    some = [p if "also lion" in (p.first, p.second) else replace(p, detectable=0.01) for p in none]
    said = contest_sentence([replace(found, pairs=tuple(some))])
    assert "of 80%; nothing is promised of pairs that both failed on a seed." in said


def test_profiles_say_which_problems_they_leave_out() -> None:
    found = comparison(("lion", "adamw"))  # of four seeds
    for ratios, words in (
        ([1.0] * 4, "before training."),
        ([1.0] * 3, "1 of 4 problems, where a loss is not positive"),
        ([], "There is no performance profile"),
    ):
        contest = Contest((found,), "", {"lion": ratios, "adamw": ratios}, (), {})
        section = next(s for s in contest_sections(contest) if s.title == "Over all tasks")
        text = block_markdown(section.blocks[0])
        assert words in text and ("Left out" in text) is (len(ratios) == 3)


def test_notes_say_that_the_luck_of_tuning_enters_no_interval() -> None:
    words = "tuned configuration given, so that the luck of tuning enters none"
    assert any(words in line for line in notes(comparison()))


def test_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = comparison(fails=3)
    assert f"counted as the loss before training: {NASTY} 3 of 4." in found.verdict
    assert found.entries[0].mean > 1.7
    print_comparison(found)
    assert "3/4" in capsys.readouterr().out
    html(comparison(fails=4))  # without a finished run there is no curve to draw


def test_narrow_terminals_lose_columns_rather_than_digits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich: take the stream for a terminal
    found = comparison(("adamw", "lion"))
    print_comparison(found)
    out = capsys.readouterr().out
    assert "statements" not in out
    assert all(interval_text(e.interval) in out for e in found.entries)


def test_tables() -> None:
    table = entry_table(comparison(("lion", "adamw")))
    assert [row[0] for row in table.rows] == ["lion", "adamw"]  # by mean loss
    assert all(len(row) == len(table.header) for row in table.rows)
    smaller = table.without("lr")
    assert "lr" not in smaller.header and all(len(row) == len(smaller.header) for row in smaller.rows)
    assert (number(None), number(float("nan")), number(0.123456), number(12345.6)) == ("–", "–", "0.1235", "1.235e+04")
    (row,) = pair_table(comparison(("adamw", "lion"))).rows
    assert row[0] == "adamw − lion" and row[1].startswith("-0.") and row[-1] == "better"


def test_atomic_write_replaces_whole_files_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    write_atomic(file, "old")
    write_atomic(file, "neu: ä")
    assert file.read_bytes() == "neu: ä".encode()

    def fail(source: str, target: Path) -> None:
        assert target.read_text() == "neu: ä"  # until the very last step the old content is there
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_atomic(file, b"newer")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and file.read_text() == "neu: ä"
    with pytest.raises(OSError):
        write_atomic(tmp_path / "nowhere" / "a.txt", "x")
