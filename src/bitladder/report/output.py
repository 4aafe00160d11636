"""Writes a report's files from a study's folder; needs its records, not its weights, and no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bitladder.errors import UserError
from bitladder.files import write_atomically
from bitladder.printable import printable
from bitladder.recommendation import Limits, Recommendation
from bitladder.records import SCHEMA_VERSION, Record
from bitladder.report.stamp import current_files, mark_begun, require_report_folder, source_hash, write_stamp
from bitladder.store import Results, load_results
from bitladder.summary.published import PublishedComparison
from bitladder.summary.table import Summary


class ResultsFile(Record):
    """``results.json``: every number of the report, unrounded, with its interval or the reason for none."""

    schema_version: int = SCHEMA_VERSION
    summary: Summary
    """what the recommendation compared"""
    recommendation: Recommendation
    by_machine: dict[str, Summary] = Field(default_factory=dict)
    """of a study of several machines: what each of them measured, as the tables show it"""
    published: tuple[PublishedComparison, ...] = ()
    """where the model is LLaMA 3.2 1B: the published study beside each machine's figures; absent for other models"""


def write_report(
    directory: Path, out: Path | None = None, limits: Limits | None = None, machine: str | None = None
) -> list[Path]:
    """Write report.html, report.md, results.json, a CSV a table, an SVG and a PNG a figure; return their paths.

    ``out`` is ``directory/report`` by default, and a file of the same name there is replaced; a report that is there
    already, made from the same, is left. ``machine``: part of the name of the one to decide on, by default the study's
    own. Raises UserError where ``directory`` holds no study, ``out`` something else than a report, the limits need what
    is not measured, there is no such machine, or a library that draws is missing, BrokenFileError where a record can't
    be read.
    """
    results = load_results(directory)
    limits = limits or Limits()
    out = Path(directory) / "report" if out is None else Path(out)
    require_report_folder(out)
    try:
        source = source_hash(results, limits, machine)
        current = current_files(out, source)
        if current is not None:
            return current
        content = _render(results, limits, machine)
    except ImportError as error:  # a library of others is the user's to install
        library = (error.name or "").partition(".")[0]
        if library in ("", "bitladder"):
            raise
        raise UserError(f"a report is drawn with {library}, which can't be imported here; install it (pip)") from error
    mark_begun(out)
    paths = []
    for name, data in content.items():
        write_atomically(out / name, data)
        paths.append(out / name)
    write_stamp(out, source, paths)
    return paths


def _render(results: Results, limits: Limits, machine: str | None) -> dict[str, str | bytes]:
    """Name and content of every file."""
    # here, because they take longer to import than a report that is current takes to be found so
    from bitladder.decide import recommend
    from bitladder.report.content import compose
    from bitladder.report.html import to_html
    from bitladder.report.markdown import to_markdown
    from bitladder.report.table import to_csv
    from bitladder.results.machines import default_place, find_place, to_decide
    from bitladder.summary.summarize import summarize

    place = default_place(results) if machine is None else find_place(results, machine)
    summary = summarize(to_decide(results, place), limits.max_drop_points)
    recommendation = recommend(summary, limits)
    report = compose(results, summary, recommendation)
    by_machine = {page.machine: page.summary for page in report.pages if page.machine}
    numbers = ResultsFile(
        summary=summary, recommendation=recommendation, by_machine=by_machine, published=report.published
    )
    files: dict[str, str | bytes] = {
        "report.html": to_html(report),
        "report.md": to_markdown(report),
        "results.json": printable(
            numbers.model_dump_json(indent=1, exclude=set() if report.published else {"published"})
        )
        + "\n",
    }
    files |= {f"{table.name}.csv": to_csv(table) for table in report.tables}
    for figure in report.figures:
        files |= {f"{figure.name}.svg": figure.svg, f"{figure.name}.png": figure.png}
    return files
