"""Tables as text, columns aligned: for Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Callable

from bitladder.markdown import escape
from bitladder.report.table import Cell, Table, footnote_letter


def table_to_markdown(table: Table) -> str:
    """A GitHub table with padded columns, then its notes and the reasons that its letters lead to."""
    return _layout(table, escape, "**")


def table_to_text(table: Table) -> str:
    """The same for a terminal, which shows emphasis and escapes as they are written."""
    return _layout(table, lambda text: " ".join(text.split()), "")


def _layout(table: Table, shown: Callable[[str], str], emphasis: str) -> str:
    lines = [[shown(column.header) for column in table.columns]]
    lines += [[_cell(table, cell, shown, emphasis) for cell in row] for row in table.rows]
    numeric = [column.numeric for column in table.columns]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(numeric))]
    if not numeric[-1]:
        # The last text column is not padded: a long reason would push every line to its width.
        widths[-1] = 3
    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    text = [_line(line, widths, numeric) for line in (lines[0], rule, *lines[1:])]
    text += [""] if table.notes or table.footnotes else []
    text += [f"- {shown(note)}" for note in table.notes]
    text += [f"- ({footnote_letter(index)}) {shown(reason)}" for index, reason in enumerate(table.footnotes)]
    return "\n".join(text)


def _line(cells: list[str], widths: list[int], numeric: list[bool]) -> str:
    padded = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def _cell(table: Table, cell: Cell, shown: Callable[[str], str], emphasis: str) -> str:
    text = shown(cell.text)
    if cell.mark in ("clear", "good", "bad"):
        text = f"{emphasis}{text}{emphasis}"
    letter = table.footnote_of(cell)
    return " ".join(part for part in (text, cell.interval, f"({letter})" if letter else "") if part)
