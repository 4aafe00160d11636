"""Writes a report's files from a study's folder; needs its records, not its weights, and no torch."""

from __future__ import annotations

from pathlib import Path

from bitladder.decide import Limits, Recommendation, recommend
from bitladder.files import write_atomically
from bitladder.records import SCHEMA_VERSION, Record
from bitladder.report.content import compose
from bitladder.report.html import to_html
from bitladder.report.markdown import to_markdown
from bitladder.report.table import to_csv
from bitladder.stats.summarize import summarize
from bitladder.stats.summary import Summary
from bitladder.store import load_results


class ResultsFile(Record):
    """``results.json``: every number of the report, unrounded, with its interval or the reason for none."""

    schema_version: int = SCHEMA_VERSION
    summary: Summary
    recommendation: Recommendation


def write_report(directory: Path, out: Path | None = None, limits: Limits | None = None) -> list[Path]:
    """Write report.html, report.md, results.json, a CSV a table, an SVG and a PNG a figure; return their paths.

    ``out`` is ``directory/report`` by default, and a file of the same name there is replaced. Raises UserError where
    ``directory`` holds no study or the limits need what it does not measure, BrokenFileError where a record can't be
    read.
    """
    results = load_results(directory)
    limits = limits or Limits()
    summary = summarize(results, limits.max_drop_points)
    recommendation = recommend(summary, limits)
    report = compose(results, summary, recommendation)
    files: dict[str, str | bytes] = {
        "report.html": to_html(report),
        "report.md": to_markdown(report),
        "results.json": ResultsFile(summary=summary, recommendation=recommendation).model_dump_json(indent=1) + "\n",
    }
    files |= {f"{table.name}.csv": to_csv(table) for table in report.tables}
    for figure in report.figures:
        files |= {f"{figure.name}.svg": figure.svg, f"{figure.name}.png": figure.png}
    out = Path(directory) / "report" if out is None else Path(out)
    for name, content in files.items():
        write_atomically(out / name, content)
    return [out / name for name in files]
