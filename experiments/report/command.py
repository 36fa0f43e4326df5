"""`optforge report`: one HTML file and one of Markdown about runs that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optforge.experiments.errors import UserError
from optforge.experiments.files import check_can_write, write_atomic
from optforge.experiments.report.comparison_json import EDITED, contest_from_json
from optforge.experiments.report.comparison_report import comparison_opening, comparison_sections
from optforge.experiments.report.document import Document, Paragraph, Section
from optforge.experiments.report.html import render_html
from optforge.experiments.report.markdown import render_markdown
from optforge.experiments.report.runs import SearchRun, kind_of, read_json, read_search
from optforge.experiments.report.search_report import search_sections, search_verdict
from optforge.experiments.report.terminal import print_document
from optforge.experiments.report.training_report import training_opening, training_sections
from optforge.experiments.rundirs import COMPARE_RESULT, existing_run_dir


class Written(NamedTuple):
    """What `write_run_report` wrote: two paths, and the document that both files show."""

    html: Path
    markdown: Path
    document: Document

    def print(self) -> None:
        """Print the document, and where the page is."""
        print_document(self.document)
        print(f"\nreport: {self.html}")


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
    try:
        written = Written(target, target.with_suffix(".md"), _document(chosen))
        files = {written.html: render_html(written.document), written.markdown: render_markdown(written.document)}
    except EDITED as error:  # some edits only show while rendering
        compared = [str(folder / COMPARE_RESULT) for folder in chosen if kind_of(folder) == "compare"]
        if not compared:
            raise
        what = " or ".join(compared)
        raise UserError(f"{what} cannot be shown ({type(error).__name__}: {error}); was it edited?") from error
    try:
        for path, text in files.items():
            write_atomic(path, text)
    except OSError as error:
        raise UserError(f"--out {target} cannot be written: {error.strerror}") from None
    return written


def report_command(folders: Sequence[Path], out: Path | None) -> None:
    """Write the report, and say where it is."""
    written = write_run_report(folders, out)
    print(f"report:   {written.html}\nMarkdown: {written.markdown}")


def _document(folders: Sequence[Path]) -> Document:
    kinds = {folder: kind_of(folder) for folder in folders}
    opening: list[Paragraph] = []
    sections: list[Section] = []
    by_protocol: dict[Any, list[SearchRun]] = {}
    for folder in (f for f in folders if kinds[f] == "search"):
        run = read_search(folder)
        by_protocol.setdefault(run.protocol, []).append(run)
    for runs in by_protocol.values():
        opening += [Paragraph(text, "verdict") for text in search_verdict(runs)]
        sections += search_sections(runs)
    if len(by_protocol) > 1:
        opening.append(Paragraph("These searches differ in task, learning rates, seeds or steps: each stands alone."))
    compared = [folder for folder in folders if kinds[folder] == "compare"]
    for folder in compared:
        contest = contest_from_json(read_json(folder / COMPARE_RESULT, dict), folder / COMPARE_RESULT)
        opening += comparison_opening(contest)
        sections += comparison_sections(contest, f"{folder.name}: " if len(compared) > 1 else "")
    if trained := [folder for folder in folders if kinds[folder] == "train"]:
        results = _training_runs(trained)
        opening += training_opening(results)
        sections += training_sections(results)
    words = {"search": "Search", "compare": "Comparison", "train": "Training"}
    title = " and ".join(words[kind] for kind in words if kind in kinds.values())
    return Document(f"{title}: {', '.join(f.name for f in folders)}", tuple(opening), tuple(sections))


def _training_runs(folders: Sequence[Path]) -> list[tuple[str, dict[str, Any], Path]]:
    """A name that no other has, the result, and its file, of each training run."""
    files = [folder / "result.json" for folder in folders]
    found = [read_json(file, dict) for file in files]
    names = [str(record.get("optimizer")) for record in found]
    if len(set(names)) < len(names):
        names = [f"{name}, {folder.name}" for name, folder in zip(names, folders, strict=True)]
    return list(zip(names, found, files, strict=True))


def _common(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0]
    shared = [set(f.resolve().parents) for f in folders]
    return max(set.intersection(*shared), key=lambda p: len(p.parts))
