"""Writes a report's files from a study's folder, unless they are what would be written now. Needs no torch."""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import Field, ValidationError

from bitladder.decide.recommendation import Limits, Recommendation
from bitladder.errors import UserError
from bitladder.files import (
    ABANDONED_S,
    cache_directory,
    remove_unfinished,
    require_own_folder,
    sha256_file,
    write_atomically,
)
from bitladder.package import FOLDER
from bitladder.records import SCHEMA_VERSION, Record, hash_json
from bitladder.report.content import Report
from bitladder.report.figure import Figure
from bitladder.report.table import footnote_letter, table_to_markdown
from bitladder.results.store import Results, load_results
from bitladder.summary.published import PublishedComparison
from bitladder.summary.table import Summary
from bitladder.text.words import markdown_environment, printable

log = logging.getLogger(__name__)


def to_html(report: Report) -> str:
    """The page. A figure is a picture until its chart comes alive, and stays one where scripts don't run."""
    environment = Environment(
        loader=PackageLoader("bitladder.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        finalize=_printable,
    )
    environment.filters["letter"] = footnote_letter
    environment.tests["drawn"] = lambda figure: isinstance(figure, Figure)
    figures = list(report.figures)
    scripts: list[str] = []
    if figures:
        specs = {figure.name: figure.spec for figure in figures}
        scripts = [_vega(), environment.get_template("charts.js.jinja").render(specs=specs)]
    return environment.get_template("report.html.jinja").render(
        report=report,
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        style=Markup(_source(environment, "report.css")),
        pictures={
            figure.name: f"data:image/svg+xml;base64,{base64.b64encode(figure.svg.encode()).decode()}"
            for figure in figures
        },
    )


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed in one script without dependencies; bundled once, since it takes seconds."""
    kept = cache_directory() / "vega" / f"{version('vl-convert-python')}.js"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    if "</script" in bundle.lower():
        raise ValueError("vl_convert's bundle holds </script and can't stand inside a page")
    try:
        remove_unfinished(kept.parent, idle_s=ABANDONED_S)
        write_atomically(kept, bundle)
    except OSError as error:
        log.info("%s: not kept for the next report (%s)", kept, error)
    return bundle


def _policy(scripts: list[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def to_markdown(report: Report) -> str:
    environment = markdown_environment("bitladder.report")
    environment.filters["table"] = table_to_markdown
    environment.tests["drawn"] = lambda figure: isinstance(figure, Figure)
    return environment.get_template("report.md.jinja").render(report=report)


STAMP = ".made-from.json"
_DRAWN_BY = ("altair", "vl-convert-python", "jinja2", "scipy")


class Stamp(Record):
    """What a report was made from, and what was written."""

    source: str
    """hash of the study's records, the limits, and everything that turns them into a report"""
    files: dict[str, str]
    """name -> SHA-256"""


def source_hash(results: Results, limits: Limits, machine: str | None) -> str:
    """Hash of everything that a report depends on; `machine`: the one that was chosen to decide on."""
    return hash_json(
        {
            "studies": [
                {
                    "study": part.study.model_dump(mode="json"),
                    "rungs": {name: record.model_dump(mode="json") for name, record in part.rungs.items()},
                }
                for part in results.parts or (results,)
            ],
            "machine": machine,
            "records": [hashlib.sha256(record.model_dump_json().encode()).hexdigest() for record in results.records],
            "limits": limits.model_dump(mode="json"),
            "libraries": {name: version(name) for name in _DRAWN_BY},
            "code": [sha256_file(path) for path in _code()],
        }
    )


def current_files(out: Path, source: str) -> list[Path] | None:
    """The files of the report in ``out`` if it was made from the same and is whole, else None."""
    try:
        stamp = Stamp.model_validate_json((out / STAMP).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    paths = {out / name: sha256 for name, sha256 in stamp.files.items()}
    whole = all(path.is_file() and sha256_file(path) == sha256 for path, sha256 in paths.items())
    return list(paths) if stamp.source == source and whole else None


def require_report_folder(out: Path) -> None:
    """Raise UserError for a file, and for a folder that holds something else than a report."""
    require_own_folder(out, "report", (STAMP,), (f".{STAMP}.*.tmp",))


def mark_begun(out: Path) -> None:
    """Make ``out`` known as a report's folder before the first file of a report is in it."""
    write_stamp(out, "", [])


def write_stamp(out: Path, source: str, paths: list[Path]) -> None:
    stamp = Stamp(source=source, files={path.name: sha256_file(path) for path in paths})
    write_atomically(out / STAMP, stamp.model_dump_json(indent=1) + "\n")


_DECIDING = ("stats", "summary", "results", "decide", "report")
_COMMON = ("units.py", "records/base.py", "methods/__init__.py")


def _code() -> list[Path]:
    return sorted(
        path
        for part in (*_DECIDING, *_COMMON)
        for path in ([FOLDER / part] if part.endswith(".py") else (FOLDER / part).rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    )


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
