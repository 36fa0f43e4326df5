"""The skeleton of a report: one HTML file that asks nobody for anything, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from optforge.experiments.report.blocks import Section, block_html, block_markdown, plain


def page_html(title: str, sections: Sequence[Section]) -> str:
    """A whole HTML file: light or dark as the reader's system, wide or narrow, on screen or on paper.

    Scripts, pictures and requests of any kind are forbidden to it by its own policy, but for what is inside the file.
    """
    named = [(f"s{index}", section) for index, section in enumerate(sections)]
    links = "".join(f'<li><a href="#{at}">{escape(s.title)}</a></li>' for at, s in named if s.title)
    body = []
    for at, section in named:
        head = f"<h2>{escape(section.title)}</h2>" if section.title else ""
        blocks = "\n".join(block_html(block, f"{at}-{i}") for i, block in enumerate(section.blocks))
        body.append(f'<section id="{at}">{head}{blocks}</section>')
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style>'
    )
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else ""
    first, *others = body or [""]  # the verdict comes before the contents
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main><h1>{escape(title)}</h1>\n'
        + "\n".join([first, contents, *others])
        + "\n</main></body></html>\n"
    )


def page_markdown(title: str, sections: Sequence[Section]) -> str:
    """The same as `page_html`, without pictures."""
    parts = [f"# {plain(title)}"]
    for section in sections:
        parts += [f"## {plain(section.title)}"] if section.title else []
        parts += filter(None, map(block_markdown, section.blocks))
    return "\n\n".join(parts) + "\n"


# The colours of lines are those of `experiments.report.plots`, dark enough on white and bright enough on black.
STYLE = """
:root { --ink: #1f2328; --paper: #ffffff; --grid: #d9dde3; --soft: #59636e; --lift: #f4f6f8; --mark: #0072b2;
  --c0: #0072b2; --c1: #c45500; --c2: #00845f; --c3: #b0528b; --c4: #a86f00; --c5: #2b83b8;
  --add: #116329; --add-paper: #dafbe1; --cut: #a0111f; --cut-paper: #ffebe9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #14171c; --grid: #343a43; --soft: #9aa4b0; --lift: #1d2229; --mark: #56b4e9;
    --c0: #4aa8e0; --c1: #f0803c; --c2: #2fbf94; --c3: #dd93bd; --c4: #f0b43c; --c5: #8fd0f5;
    --add: #7ee2a0; --add-paper: #12331f; --cut: #ffa198; --cut-paper: #3d1518 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; border-top: 1px solid var(--grid); padding-top: 1rem;
  overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1rem 0 .3rem }
p { margin: .6rem 0; max-width: 52rem; overflow-wrap: anywhere }
.note, figcaption, li { color: var(--soft); font-size: .9rem }
ul { padding-left: 1.2rem } li { max-width: 52rem; overflow-wrap: anywhere }
.verdict { font-size: 1.15rem; border-left: .3rem solid var(--mark); padding: .2rem 0 .2rem 1rem; margin: 1rem 0 }
.mark { display: inline-block; border: 2px solid var(--c1); border-radius: .3rem; padding: 0 .5rem; font-weight: 700 }
nav ul { list-style: none; padding: 0; margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .4rem }
nav a { display: block; padding: .35rem .8rem; border: 1px solid var(--grid); border-radius: 1rem;
  text-decoration: none } a { color: var(--mark) }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem }
figure { margin: 0; min-width: 0; max-width: 44rem }
figure svg { width: 100%; height: auto; display: block } svg text { font-family: system-ui, sans-serif !important }
.formula > div { margin: .35rem 0 } .math { display: block; max-width: none }
.scroll { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); padding: 0 .6rem .3rem }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--grid); white-space: nowrap;
  vertical-align: top } th { color: var(--soft); font-weight: 600 } .n { text-align: right }
.facts td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 12rem }
.facts td:first-child { white-space: normal; min-width: 8rem }
pre { background: var(--lift); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: .4rem;
  margin: .6rem 0 }
pre ins, pre del, pre span { text-decoration: none; display: inline-block; min-width: 100% }
pre ins { color: var(--add); background: var(--add-paper) } pre del { color: var(--cut); background: var(--cut-paper) }
details { margin: .3rem 0; border-left: 2px solid var(--grid); padding-left: .8rem }
summary { cursor: pointer; padding: .25rem 0; overflow-wrap: anywhere }
@media (max-width: 30rem) { body { font-size: 15px } main { padding: 1rem .8rem 3rem } pre { padding: .6rem } }
@media print {
  :root { --ink: #000; --paper: #fff; --soft: #444; --grid: #bbb; --lift: #f6f6f6 }
  nav { display: none } h2 { break-after: avoid } figure, tr { break-inside: avoid }
  pre, .scroll { overflow: visible } pre { white-space: pre-wrap } .math { max-width: 100% }
  details::details-content { content-visibility: visible; block-size: auto } }
"""
