"""Reports of a comparison, and of the search before it: Markdown, one self-contained HTML file, and a picture."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from optforge.experiments.compare.comparison import Comparison
from optforge.experiments.compare.tables import Table, entry_table, notes, pair_table
from optforge.experiments.files import write_atomic
from optforge.experiments.report.plots import panels, png, svg
from optforge.primitives.text import print_program

_LONGEST_VALUE = 100


class Report(NamedTuple):
    """Paths of what `write_report` wrote."""

    html: Path
    markdown: Path
    picture: Path


def write_report(comparison: Comparison, folder: Path, search: dict[str, Any] | None = None) -> Report:
    """Write ``report.md``, ``report.html`` and ``report.png`` to an existing folder; each appears whole or not at all.

    Args:
        comparison: what is reported.
        folder: where to.
        search: what led to the compared programs, every key optional. ``curve``, a list of (program number, best
            score so far), is drawn, beside it ``references``, names to scores; ``champion`` is the text of the best
            program. Whatever else is short, or a dictionary of what is short, becomes a row of a table.
    """
    report = Report(folder / "report.html", folder / "report.md", folder / "report.png")
    write_atomic(report.picture, png(panels(comparison, search)))
    write_atomic(report.markdown, markdown(comparison, search))
    write_atomic(report.html, html(comparison, search))
    return report


def markdown(comparison: Comparison, search: dict[str, Any] | None = None) -> str:
    """The report as Markdown; it shows ``report.png`` from its own folder."""
    task = comparison.protocol.task
    parts = [f"# Comparison on {_plain(task.name)}", f"**{_plain(comparison.verdict)}**"]
    parts += ["![final loss, learning-rate sensitivity, training curves](report.png)"]
    for table in _tables(comparison):
        parts += [f"## {_plain(table.title[:1].upper() + table.title[1:])}", _markdown_table(table)]
    parts += ["\n".join(f"- {_plain(note)}" for note in notes(comparison))]
    if search:
        parts += ["## Search", _markdown_table(_search_table(search))]
        if search.get("champion"):
            parts += ["Best program:", f"```\n{search['champion'].strip()}\n```"]
    parts += ["## Programs"]
    parts += [f"{_plain(e.name)}:\n\n```\n{print_program(e.program).strip()}\n```" for e in comparison.entries]
    parts += ["## Provenance", _markdown_table(_provenance_table(comparison))]
    return "\n\n".join(parts) + "\n"


def html(comparison: Comparison, search: dict[str, Any] | None = None) -> str:
    """The report as one HTML file that needs nothing else: light or dark as the reader's system, wide or narrow."""
    task = comparison.protocol.task
    figures = "".join(
        f"<figure><h2>{escape(p.title)}</h2>{svg(p)}<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in panels(comparison, search)
    )
    title = f"Comparison on {escape(task.name)}"
    single = "<p class=mark>single run</p>" if len(comparison.protocol.seeds) == 1 else ""
    body = [
        f"<h1>{title}</h1><p class=task>{escape(task.summary)}</p>",
        f"{single}<p class=verdict>{escape(comparison.verdict)}</p>",
        f"<div class=figures>{figures}</div>",
        *(f"<h2>{escape(t.title[:1].upper() + t.title[1:])}</h2>{_html_table(t)}" for t in _tables(comparison)),
        f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes(comparison))}</ul>",
    ]
    if search:
        body += ["<h2>Search</h2>", _html_table(_search_table(search))]
        if search.get("champion"):
            body += [f"<h3>Best program</h3><pre>{escape(search['champion'].strip())}</pre>"]
    body += ["<h2>Programs</h2>"]
    body += [
        f"<details><summary>{escape(e.name)}</summary><pre>{escape(print_program(e.program).strip())}</pre></details>"
        for e in comparison.entries
    ]
    body += ["<h2>Provenance</h2>", _html_table(_provenance_table(comparison))]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{_STYLE}</style>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>'
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def _tables(comparison: Comparison) -> list[Table]:
    return [table for table in (entry_table(comparison), pair_table(comparison)) if table.rows]


def _search_table(search: dict[str, Any]) -> Table:
    shown = {name: value for name, value in search.items() if name not in ("curve", "references", "champion")}
    rows = []
    for name, value in _flat(shown):
        text = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
        if len(text) <= _LONGEST_VALUE and "\n" not in text:
            rows.append((name, text))
    return Table("search", ("what", "value"), tuple(rows))


def _provenance_table(comparison: Comparison) -> Table:
    protocol = comparison.protocol
    facts: dict[str, Any] = {
        "task": f"{protocol.task.name}: {protocol.task.summary}",
        "licence of the data": protocol.task.licence,
        "steps, batch": f"{protocol.steps}, {protocol.task.batch_size}",
        "tuning seeds": ", ".join(map(str, protocol.tune_seeds)),
        "reported seeds": ", ".join(map(str, protocol.seeds)),
    }
    rows = [*facts.items(), *_flat(comparison.provenance)]
    return Table("provenance", ("what", "value"), tuple((k, str(v)) for k, v in rows), numeric=2)


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        rows += _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _plain(text: str) -> str:
    """`text` so that Markdown shows it as it is."""
    for character in "\\`*_<>[]|#":
        text = text.replace(character, "\\" + character)
    return text


def _markdown_table(table: Table) -> str:
    rule = ["---:" if i >= table.numeric else "---" for i in range(len(table.header))]
    lines = [[_plain(h) for h in table.header], rule, *([_plain(c) for c in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html_table(table: Table) -> str:
    def cells(row: tuple[str, ...], tag: str) -> str:
        right = [" class=n" if i >= table.numeric else "" for i in range(len(row))]
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(right, row, strict=True))

    rows = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    facts = " class=facts" if table.numeric >= len(table.header) else ""
    head = f"<thead><tr>{cells(table.header, 'th')}</tr></thead>"
    return f"<div class=scroll><table{facts}>{head}<tbody>{rows}</tbody></table></div>"


_STYLE = """
:root { --ink: #1f2328; --paper: #ffffff; --grid: #d9dde3; --soft: #59636e; --lift: #f4f6f8; --mark: #0072b2;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b85a93; --c4: #c98500; --c5: #3a97d0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #14171c; --grid: #343a43; --soft: #9aa4b0; --lift: #1d2229; --mark: #56b4e9;
    --c0: #4aa8e0; --c1: #f0803c; --c2: #2fbf94; --c3: #dd93bd; --c4: #f0b43c; --c5: #8fd0f5 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem } h3 { font-size: 1rem }
.task, figcaption, li { color: var(--soft); font-size: .9rem } .task { margin: 0 0 1rem }
.verdict { font-size: 1.15rem; border-left: .3rem solid var(--mark); padding: .2rem 0 .2rem 1rem; margin: 1rem 0 }
.mark { display: inline-block; border: 2px solid #d55e00; border-radius: .3rem; padding: 0 .5rem; font-weight: 700 }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem }
figure { margin: 0; min-width: 0 } figure h2 { margin: 1rem 0 .3rem } svg { width: 100%; height: auto; display: block }
svg text { font-family: system-ui, sans-serif !important }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--grid); white-space: nowrap }
th { color: var(--soft); font-weight: 600 } .n { text-align: right }
.facts td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 14rem }
pre { background: var(--lift); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: .4rem }
summary { cursor: pointer; padding: .2rem 0 }
"""
