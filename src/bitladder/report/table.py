"""A table before it is HTML, Markdown or CSV: cells keep their number, interval and the reason for not having one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from bitladder.summary.table import Estimate
from bitladder.text.words import escape, one_line
from bitladder.units import UNKNOWN, supported

Mark = Literal["plain", "total", "clear", "good", "warning", "bad"]
"""``total``: first of a row that sums up. ``clear``: a difference whose interval excludes 0. The rest are verdicts."""

_FORMULA = re.compile(r"((?:^|;)\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])(?![+-]?\d+(?:\.\d+)?\s*(?:;|$))")

Formatter = Callable[[float | None], str]


@dataclass(frozen=True)
class Cell:
    """What a reader sees, and what the CSV stores."""

    text: str
    value: float | int | str | None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    """the interval as text, for people"""
    reason: str | None = None
    """why there is no value, or no interval: a footnote"""
    mark: Mark = "plain"


@dataclass(frozen=True)
class Column:
    """One column, in one unit."""

    title: str
    unit: str | None = None
    numeric: bool = True
    interval: bool = True
    """whether the CSV has a low and a high beside the value"""
    help: str = ""

    @property
    def header(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def csv_ends(self) -> tuple[str, ...]:
        """What the headers of its values in the CSV end with."""
        return ("", " low", " high") if self.numeric and self.interval else ("",)


def text_columns(*titles: str) -> tuple[Column, ...]:
    """Columns of words."""
    return tuple(Column(title, numeric=False) for title in titles)


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; the file name of its CSV is its name."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    secondary: bool = False
    """detail that a page may fold away"""

    @property
    def footnotes(self) -> tuple[str, ...]:
        """Reasons of this table's cells, each once, in reading order."""
        return tuple(dict.fromkeys(cell.reason for row in self.rows for cell in row if cell.reason))

    def footnote_of(self, cell: Cell) -> str:
        """The letter that leads from a cell to its reason; empty where there is none."""
        return footnote_letter(self.footnotes.index(cell.reason)) if cell.reason else ""


def footnote_letter(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    letters = ""
    index += 1
    while index:
        index, remainder = divmod(index - 1, 26)
        letters = chr(ord("a") + remainder) + letters
    return letters


def text_cell(text: str | None, *, mark: Mark = "plain", reason: str | None = None) -> Cell:
    return Cell(text=UNKNOWN if text is None else text, value=text, mark=mark, reason=reason)


def number_cell(
    value: float | None, format_value: Formatter, reason: str | None = None, *, unit_size: float | None = None
) -> Cell:
    """A number without an interval, such as a count; ``reason``: why there is none, untold where there is.

    ``unit_size`` as in `estimate_cell`.
    """
    reason = reason if value is None else None
    return Cell(text=format_value(value), value=_in_unit(value, unit_size), reason=reason)


def estimate_cell(
    estimate: Estimate, format_value: Formatter, *, mark: Mark = "plain", unit_size: float | None = None
) -> Cell:
    """A number with its interval.

    ``format_value`` takes the stored value; ``unit_size`` is how much of it makes one unit of the column.
    """
    text, interval = format_value(estimate.value), ""
    if estimate.low is not None and estimate.high is not None:
        text, low, high = supported(text, format_value(estimate.low), format_value(estimate.high))
        interval = f"[{low}, {high}]"
    return Cell(
        text=text,
        value=_in_unit(estimate.value, unit_size),
        low=_in_unit(estimate.low, unit_size),
        high=_in_unit(estimate.high, unit_size),
        interval=interval,
        reason=estimate.reason,
        mark=mark,
    )


def _in_unit(value: float | None, unit_size: float | None) -> float | None:
    return value if value is None or unit_size is None else value / unit_size


def to_csv(table: Table) -> str:
    """Unrounded numbers; a column of estimates becomes value, low and high, and reasons come last."""
    headers = [column.header + end for column in table.columns for end in column.csv_ends]
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(_no_formulas([*headers, "reasons"]))
    for row in table.rows:
        cells = list(zip(table.columns, row, strict=True))
        values = [(cell.value, cell.low, cell.high)[: len(column.csv_ends)] for column, cell in cells]
        reasons = "; ".join(f"{column.title}: {cell.reason}" for column, cell in cells if cell.reason is not None)
        writer.writerow(_no_formulas([*chain.from_iterable(values), reasons]))
    return output.getvalue()


def _no_formulas(values: Iterable[float | str | None]) -> list[float | str | None]:
    """A spreadsheet runs a text that begins like a formula, as the name of a task may, and some of them one after a
    semicolon: a quote before it keeps it a text (OWASP, CSV injection). Numbers are numbers.
    """
    return [_FORMULA.sub(r"\1'", one_line(value)) if isinstance(value, str) else value for value in values]


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
