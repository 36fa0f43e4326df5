"""`optforge report`: one HTML file and one of Markdown about runs that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optforge.experiments.compare.contest import Contest
from optforge.experiments.errors import UserError
from optforge.experiments.files import check_can_write, write_atomic
from optforge.experiments.report.blocks import Section, Text
from optforge.experiments.report.comparison_json import EDITED
from optforge.experiments.report.comparison_sections import (
    contest_from_json,
    contest_sections,
    training_sections,
    training_verdict,
)
from optforge.experiments.report.page import page_html, page_markdown
from optforge.experiments.report.runs import SearchRun, kind_of, read_json, read_search
from optforge.experiments.report.search_sections import search_sections, search_verdict
from optforge.experiments.report.summary import summarise
from optforge.experiments.rundirs import existing_run_dir


class Written(NamedTuple):
    """Paths of what `write_run_report` wrote."""

    html: Path
    markdown: Path


def write_run_report(folders: Sequence[Path], out: Path | None = None) -> Written:
    """Report runs of any kind: searches with the same protocol on one axis, each comparison, training runs together.

    Args:
        folders: run directories; one that is named twice counts once.
        out: where the HTML goes, Markdown beside it; ``report.html`` in the run directory, or for several runs in the
            folder that holds all of them, by default.

    Raises:
        UserError: for something that is no run, a run that cannot be read, or a file that cannot be written.
    """
    chosen = list({existing_run_dir(f).resolve(): f for f in folders}.values())
    target = out or _common(chosen) / "report.html"
    check_can_write("--out", target)
    if target.suffix not in (".html", ".htm"):
        raise UserError(f"--out {target} should end in .html; the Markdown goes beside it")
    html, markdown = _pages(chosen)
    written = Written(target, target.with_suffix(".md"))
    try:
        write_atomic(written.html, html)
        write_atomic(written.markdown, markdown)
    except OSError as error:
        raise UserError(f"--out {target} cannot be written: {error.strerror}") from None
    return written


def report_command(folders: Sequence[Path], out: Path | None, summary: Path | None = None) -> None:
    """Write the report, and a summary of the search if asked for, and say where they are."""
    if summary is not None:
        if len(folders) != 1 or kind_of(existing_run_dir(folders[0])) != "search":
            raise UserError("--summarise takes one search, and its folder is the only RUN_DIR")
        summarise(folders[0], summary)
        print(f"summary:  {summary}")
    written = write_run_report(folders, out)
    print(f"report:   {written.html}\nMarkdown: {written.markdown}")


def _pages(folders: Sequence[Path]) -> tuple[str, str]:
    """The report as HTML and as Markdown; only when it is drawn does all show that a comparison cannot have said."""
    compared = [folder / "compare.json" for folder in folders if kind_of(folder) == "compare"]
    try:
        title, sections = _document(folders)
        return page_html(title, sections), page_markdown(title, sections)
    except EDITED as error:
        if not compared:
            raise
        what = " or ".join(map(str, compared))
        raise UserError(f"{what} cannot be shown ({type(error).__name__}: {error}); was it edited?") from error


def _document(folders: Sequence[Path]) -> tuple[str, list[Section]]:
    kinds = {folder: kind_of(folder) for folder in folders}
    verdicts: list[Text] = []
    sections: list[Section] = []
    groups: dict[Any, list[SearchRun]] = {}
    for folder in (f for f in folders if kinds[f] == "search"):
        run = read_search(folder)
        groups.setdefault(run.protocol, []).append(run)
    for runs in groups.values():
        verdicts += [Text(text, "verdict") for text in search_verdict(runs)]
        sections += search_sections(runs)
    compared: list[tuple[str, Contest]] = []
    for folder in (f for f in folders if kinds[f] == "compare"):
        source = folder / "compare.json"
        compared.append((folder.name, contest_from_json(read_json(source, dict), source)))
    for name, contest in compared:
        verdicts.append(Text(contest.verdict, "verdict"))
        sections += contest_sections(contest, f"{name}: " if len(compared) > 1 else "")
    trained = [f for f in folders if kinds[f] == "train"]
    if trained:
        found = [read_json(f / "result.json", dict) for f in trained]
        names = [str(record.get("optimizer")) for record in found]
        if len(set(names)) < len(names):
            names = [f"{name}, {folder.name}" for name, folder in zip(names, trained, strict=True)]
        runs_of = zip(names, found, (f / "result.json" for f in trained), strict=True)
        sections += training_sections(list(runs_of))
        verdicts += [Text(training_verdict(r, name), "verdict") for name, r in zip(names, found, strict=True)]
    if len(groups) > 1:
        verdicts.append(Text("These searches differ in task, learning rates, seeds or steps: each stands alone."))
    named = ", ".join(f.name for f in folders)
    words = {"search": "Search", "compare": "Comparison", "train": "Training"}
    title = " and ".join(words[kind] for kind in words if kind in kinds.values())
    return f"{title}: {named}", [Section("", tuple(verdicts)), *sections]


def _common(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0]
    shared = [set(f.resolve().parents) for f in folders]
    return max(set.intersection(*shared), key=lambda p: len(p.parts))
