"""A metric is a row: what is derived has one, and every row is in the written report unless it is named as hidden."""

import ast
import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitladder.publish import card as measured
from bitladder.report import write_report
from bitladder.results.store import load_results
from bitladder.summary import metrics as goals
from bitladder.summary.metrics import METRICS, RATE, Metric, ReportColumn
from bitladder.summary.performance import TimedRun
from bitladder.summary.summarize import summarize
from bitladder.summary.table import Estimate
from replay import write_replay

SOURCE = Path(__file__).parents[1] / "src" / "bitladder"
SCENARIO_OF_TABLE = {"table3": "batch1", "table4": "max-batch"}
SCENARIO_OF_TITLE = {"batch size 1": "batch1", "largest batch": "max-batch"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """On a CPU, and on a GPU for long enough to know its energy."""
    root = tmp_path_factory.mktemp("studies")
    on_gpu = write_replay(root / "gpu", only="performance", gpu=True, batches=30)
    return write_replay(root / "cpu", only="performance"), on_gpu


def write(studies: tuple[Path, Path], out: Path) -> list[Path]:
    for index, study in enumerate(studies):
        write_report(study, out / str(index))
    return [out / str(index) for index in range(len(studies))]


@pytest.fixture(scope="module")
def reports(studies: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(studies, tmp_path_factory.mktemp("reports"))


def stored(report: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(rung, scenario) -> the metrics in results.json."""
    summary = json.loads((report / "results.json").read_text())["summary"]
    return {
        (rung["rung"], scenario["scenario"]): scenario["metrics"]
        for rung in summary["rungs"]
        for scenario in rung["scenarios"]
    }


def printed(report: Path) -> Iterator[tuple[tuple[str, str], dict[str, str]]]:
    """(rung, scenario) and a row of a CSV that is of it."""
    for path in report.glob("*.csv"):
        for row in csv.DictReader(path.open()):
            scenario = SCENARIO_OF_TABLE.get(path.stem[:6]) or SCENARIO_OF_TITLE.get(row.get("Scenario", ""))
            if scenario:
                yield (row["Precision"], scenario), row


def shown(report: Path) -> set[str]:
    """The metrics whose value stands in a CSV under a header that Markdown and the page have too."""
    numbers, found = stored(report), set()
    markdown, page = ((report / name).read_text() for name in ("report.md", "report.html"))
    for place, row in printed(report):
        for name, metric in METRICS.items():
            value = numbers[place][name]["value"] if name in numbers[place] else None
            for title, unit in ((one.title, one.unit or metric.quantity.unit) for one in metric.shown):
                cell = row.get(f"{title} ({unit})")
                if cell and value is not None and float(cell) == value / (metric.quantity.unit_size or 1):
                    assert f"{title} ({unit})" in markdown and f">{title} <span" in page, name
                    found.add(name)
    return found


def lost(reports: list[Path]) -> set[str]:
    """The metrics that no report shows though they aren't named as hidden."""
    return {name for name, metric in METRICS.items() if not metric.hidden} - set().union(*map(shown, reports))


def strays(reports: list[Path]) -> set[str]:
    """What results.json has beside the table's rows, or lacks of them."""
    return {name for report in reports for metrics in stored(report).values() for name in metrics.keys() ^ METRICS}


def padding(run: TimedRun) -> dict[str, Estimate]:
    return {"padding": Estimate(value=len(run.rows) + 0.25)}


def waste(_: TimedRun) -> dict[str, Estimate]:
    return {"waste": Estimate(value=0.5)}


def row(*places: ReportColumn, hidden: str = "") -> Metric:
    return Metric("padding", "Padding of a batch", RATE, "lower", padding, places, hidden=hidden)


def test_every_metric_is_in_the_written_report(reports: list[Path]) -> None:
    assert lost(reports) == set()
    assert strays(reports) == set()


def test_a_row_that_is_added_appears_by_itself(
    studies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "padding", row(ReportColumn("tokens", "Padding", "rows")))
    reports = write(studies, tmp_path)
    assert "padding" in shown(reports[0]) & shown(reports[1])
    assert "| Padding (rows) |" in (reports[0] / "report.md").read_text()
    assert 'title="Padding of a batch"' in (reports[0] / "report.html").read_text()


@pytest.mark.parametrize(
    ("new", "unseen"),
    [(row(ReportColumn("totals", "Padding", on="gpu")), {"padding"}), (row(hidden="for the next version"), set())],
)
def test_a_row_in_no_table_is_lost_unless_it_is_named_as_hidden(
    studies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: Metric, unseen: set[str]
) -> None:
    """The totals are of every machine, so none has a column of GPUs alone."""
    monkeypatch.setitem(METRICS, "padding", new)
    reports = write(studies, tmp_path)
    assert lost(reports) == unseen
    assert all("padding" in metrics for metrics in stored(reports[0]).values())


def test_a_row_names_its_tables_or_why_there_are_none() -> None:
    with pytest.raises(ValueError, match="padding: name the tables that show it, or say why it is hidden"):
        row()
    with pytest.raises(ValueError, match="padding"):
        row(ReportColumn("tokens", "Padding"), hidden="in no table")


def test_what_is_derived_without_a_row_is_a_stray(
    studies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(row(ReportColumn("tokens", "Padding", "rows")), derive=lambda run: {**padding(run), **waste(run)})
    monkeypatch.setitem(METRICS, "padding", both)
    assert strays(write(studies, tmp_path)) == {"waste"}


def test_an_unknown_name_is_no_unknown_figure(studies: tuple[Path, Path]) -> None:
    scenario = summarize(load_results(studies[0])).rungs[0].scenarios[0]
    with pytest.raises(KeyError):
        scenario.metric("latency")


def named() -> Iterator[str]:
    """Every metric that code asks for by its name."""
    yield from measured._METRICS
    yield from (criterion.metric for criterion in (*goals.CRITERIA.values(), goals._WEIGHTS))
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "metric":
                name = node.args[-1]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield name.value


def test_what_is_asked_for_by_name_is_a_row() -> None:
    names = set(named())
    assert {"peak_memory_bytes", "speedup", "tokens_per_s", "study_vram_bytes"} <= names
    assert names <= METRICS.keys()
