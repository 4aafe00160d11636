"""``report.html``: one file that opens from disk and loads nothing.

Every value goes through Jinja2's autoescape, specifications through its ``tojson``, and the page's own policy lets the
two scripts below run, known by their hashes, and no other; no address can be fetched.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
from importlib.metadata import version

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bitladder.files import ABANDONED_S, remove_unfinished, write_atomically
from bitladder.home import cache_directory
from bitladder.printable import printable
from bitladder.report.content import Report
from bitladder.report.figure import Figure
from bitladder.report.table import footnote_letter

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
