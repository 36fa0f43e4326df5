"""A document in the terminal: what was found, and its tables; pictures, formulas and folds are left to HTML."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from optforge.experiments.report.document import Block, Bullets, Code, Document, Paragraph, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable


def print_document(document: Document) -> None:
    """Print a document to standard output.

    In a narrow terminal tables leave out what can be spared; into a file or a pipe they are as wide as they need to be.
    """
    console = _console()
    for paragraph in document.opening:
        _print(paragraph, console)
    for section in document.sections:
        blocks = [b for b in section.blocks if isinstance(b, Paragraph | Bullets | Code | Table)]
        if any(not isinstance(b, Paragraph) for b in blocks):  # a remark on what is not shown is none
            for block in (Paragraph(section.title, "verdict"), *blocks):
                _print(block, console)


def print_table(table: Table) -> None:
    """Print a table to standard output, or nothing if it has no rows; one without a title is plain lines."""
    _print(table, _console())


def print_notes(lines: Iterable[str]) -> None:
    """Print remarks below a table."""
    _print(Bullets(tuple(lines)), _console())


def _print(block: Block, console: Console) -> None:
    from rich.text import Text

    match block:
        case Paragraph(text, style):
            console.print(Text(f"\n{text}", style={"text": "", "note": "dim"}.get(style, "bold")))
        case Bullets(items):
            for item in items:
                console.print(Text(f"· {item}", style="dim"))
        case Code(text):
            console.print(Text("\n" + "\n".join(f"    {line}" for line in text.splitlines())), soft_wrap=True)
        case Table() if block.rows:
            while block.spare and _width(block, console) > console.width:
                block = block.without(block.spare[0])
            console.print("\n" * bool(block.title), end="")
            console.print(_rich(block))


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)


def _width(table: Table, console: Console) -> int:
    """Columns of the terminal that the table takes without folding a cell."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), _rich(table)).maximum


def _rich(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    title = Text(table.title, style="italic") if table.title else None
    lines = box.SIMPLE_HEAD if table.title else None
    shown = RichTable(title=title, box=lines, title_justify="left", pad_edge=False, header_style="bold")
    for index, name in enumerate(table.header):
        shown.add_column(Text(name), justify="right" if index >= table.numeric else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown
