"""Reports say what the comparison found, in files that need nothing else."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.reports import NASTY, Page, comparison

from optforge.experiments.compare.comparison import Comparison, Setting, Tuning
from optforge.experiments.compare.contest import Contest
from optforge.experiments.compare.statistics import Verdict
from optforge.experiments.compare.verdict import contest_sentence, verdict_sentence
from optforge.experiments.files import write_atomic
from optforge.experiments.report.comparison_figures import comparison_figures
from optforge.experiments.report.comparison_report import comparison_opening, comparison_sections
from optforge.experiments.report.comparison_tables import (
    configuration_table,
    entry_table,
    interval_text,
    notes,
    pair_table,
)
from optforge.experiments.report.document import Document, number
from optforge.experiments.report.drawing import svg
from optforge.experiments.report.html import render_html
from optforge.experiments.report.markdown import render_markdown
from optforge.experiments.report.terminal import print_document
from optforge.primitives.export.pseudocode import pseudo_code

pytestmark = pytest.mark.pictures


def document(found: Comparison) -> Document:
    """What `optforge compare` shows of a comparison on one task."""
    contest = Contest((found,), found.verdict, {}, (), {})
    return Document("Comparison", comparison_opening(contest), tuple(comparison_sections(contest)))


def test_page_needs_nothing_else_and_escapes_what_it_shows() -> None:
    text = render_html(document(comparison()))
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags and "b" not in page.tags
    assert NASTY in page.text
    loaded = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)([a-z]+:)?//[^"')\s]+""", text)
    assert not loaded
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert len(page.ids) == len(set(page.ids))
    for used in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text):
        assert "".join(used) in page.ids


def test_page_opens_with_verdict_and_champion_and_ends_with_provenance() -> None:
    found = comparison()
    text = Page(render_html(document(found))).text
    code = pseudo_code(found.entry(NASTY).program)
    places = [text.index(words) for words in (found.verdict, code, "first is", "Learning-rate sensitivity", "commit")]
    assert places == sorted(places)
    assert text.count("optforge 1") == 3  # the champion's program is not shown again
    for table in (entry_table(found), pair_table(found)):
        assert all(cell in text for row in table.rows for cell in row)
    assert all(note in text for note in notes(found))


def test_page_of_baselines_has_no_champion() -> None:
    titles = [section.title for section in document(comparison(("lion", "adamw"))).sections]
    assert titles[0] == "digits" and "lion" not in titles


def test_pictures_are_well_formed_and_follow_the_theme() -> None:
    drawn = comparison_figures(comparison())
    titles = ["Final test loss", "Learning-rate sensitivity", "Training loss", "Loss against memory"]
    assert [figure.title for figure in drawn] == titles
    for figure in drawn:
        text = svg(figure, "f1")
        ElementTree.fromstring(text)
        assert "var(--ink)" in text and not re.search(r"(fill|stroke): #", text)
    assert svg(drawn[1], "f1") == svg(drawn[1], "f1")


def test_markdown_tables_are_rectangular() -> None:
    text = render_markdown(document(comparison()))
    assert text.index("**On digits") < text.index("| optimizer") < text.index("| pair") < text.index("| what")
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("| ")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1


def test_single_run_is_marked_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    found = comparison(seeds=1)
    assert found.verdict.startswith("Single run: ") and "chance" in found.verdict
    shown = document(found)
    print_document(shown)
    for text in (Page(render_html(shown)).text, render_markdown(shown), capsys.readouterr().out):
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

    at = "lies at the boundary of the widened"
    for tuning, words, lr, value in (
        (edge, f"The best learning rate of mine {at} learning-rate grid: it may do", "0.001 (at boundary)", ""),
        (replace(searched, edges=("beta1",)), f"The best beta1 of mine {at} ranges", "0.001", "0.5 (at boundary)"),
        (
            replace(searched, edges=("lr", "beta1")),
            "The best learning rate and beta1 of mine lies",
            "0.001 (at boundary)",
            "0.5 (at boundary)",
        ),
        (searched, f"The best configuration of mine {at}", "0.001 (at boundary)", "0.5"),  # of an older file
    ):
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
        section = next(s for s in comparison_sections(contest) if s.title == "Over all tasks")
        text = render_markdown(Document("", (), (section,)))
        assert words in text and ("Left out" in text) is (len(ratios) == 3)


def test_notes_say_that_the_luck_of_tuning_enters_no_interval() -> None:
    words = "tuned configuration given, so that the luck of tuning enters none"
    assert any(words in line for line in notes(comparison()))


def test_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = comparison(fails=3)
    assert f"counted as the loss before training: {NASTY} 3 of 4." in found.verdict
    assert found.entries[0].mean > 1.7
    print_document(document(found))
    assert "3/4" in capsys.readouterr().out
    render_html(document(comparison(fails=4)))  # without a finished run there is no curve to draw


def test_narrow_terminals_lose_columns_rather_than_digits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich: take the stream for a terminal
    found = comparison(("adamw", "lion"))
    print_document(document(found))
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
