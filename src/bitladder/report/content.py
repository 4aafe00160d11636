"""What a report says, in which order; HTML and Markdown only dress it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitladder.decide import Recommendation
from bitladder.report.accuracy_figures import accuracy_figures
from bitladder.report.accuracy_tables import accuracy_tables
from bitladder.report.figure import Figure, MissingFigure
from bitladder.report.performance_figures import performance_figures
from bitladder.report.performance_tables import SCENARIOS, derived_table, performance_tables
from bitladder.report.provenance_tables import (
    checkpoint_table,
    findings_tables,
    machine_table,
    settings_table,
    version_table,
)
from bitladder.report.table import Cell, Column, Mark, Table, text_cell
from bitladder.rungs import rung_title
from bitladder.stats.summary import Summary
from bitladder.store import Results


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, a list, tables and figures, in that order."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure | MissingFigure, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    subtitle: str
    notes: tuple[str, ...]
    recommendation: Recommendation
    verdicts: Table
    sections: tuple[Section, ...]

    @property
    def tables(self) -> Iterator[Table]:
        yield self.verdicts
        for section in self.sections:
            yield from section.tables

    @property
    def figures(self) -> Iterator[Figure]:
        for section in self.sections:
            yield from (figure for figure in section.figures if isinstance(figure, Figure))


def compose(results: Results, summary: Summary, recommendation: Recommendation) -> Report:
    on_gpu = results.study.calibration.device.startswith("cuda")
    scenarios = {scenario: tuple(performance_tables(summary, scenario, on_gpu)) for scenario in SCENARIOS}
    sections = [
        _accuracy_section(summary),
        *(_scenario_section(summary, scenario, tables, on_gpu) for scenario, tables in scenarios.items()),
        _derived_section(summary),
        Section(
            "audit",
            "Checkpoints and their audit",
            ("An audit tells what a checkpoint is. A precision that is not what it says is not measured.",),
            tables=(checkpoint_table(summary), *findings_tables(summary)),
        ),
        _failure_section(summary),
        Section(
            "provenance",
            "Settings, machine, versions",
            tables=(settings_table(results.study), machine_table(results), version_table(results)),
        ),
    ]
    return Report(
        title=f"Which precision for {summary.source.model}?",
        subtitle=_subtitle(results),
        notes=summary.notes,
        recommendation=recommendation,
        verdicts=_verdict_table(recommendation),
        sections=tuple(section for section in sections if section is not None),
    )


def _subtitle(results: Results) -> str:
    source = results.study.source
    parts = [f"Suite {results.study.suite}", f"baseline {results.study.baseline}", results.study.calibration.device]
    if source.revision:
        parts.append(f"revision {source.revision}")
    dates = sorted({record.started_at[:10] for record in results.records})
    if dates:
        parts.append("measured " + " to ".join(dict.fromkeys((dates[0], dates[-1]))))
    return " · ".join(parts)


def _verdict_table(recommendation: Recommendation) -> Table:
    marks: dict[str, Mark] = {"picked": "good", "within": "plain", "out": "bad"}
    titles = {"picked": "deploy", "within": "within limits, not best", "out": "out"}
    rows: list[tuple[Cell, ...]] = []
    for verdict in recommendation.verdicts:
        goals = f" for {', '.join(verdict.goals)}" if verdict.goals else ""
        rows.append(
            (
                text_cell(verdict.rung),
                text_cell(rung_title(verdict.rung)),
                text_cell(f"{titles[verdict.outcome]}{goals}", mark=marks[verdict.outcome]),
                text_cell("; ".join(verdict.reasons) or None),
            )
        )
    columns = tuple(Column(title, numeric=False) for title in ("Precision", "What it is", "Verdict", "Why"))
    return Table("recommendation", "Every precision, and why or why not", columns, tuple(rows))


def _accuracy_section(summary: Summary) -> Section:
    if not summary.has_accuracy:
        return Section("accuracy", "Accuracy", ("This study does not measure accuracy.",))
    return Section(
        "accuracy", "Accuracy", tables=tuple(accuracy_tables(summary)), figures=tuple(accuracy_figures(summary))
    )


def _scenario_section(summary: Summary, scenario: str, tables: tuple[Table, ...], on_gpu: bool) -> Section:
    planned = any(rung.scenario(scenario) for rung in summary.rungs)
    name = SCENARIOS[scenario][1]
    title = f"Performance at {'the ' if scenario == 'max-batch' else ''}{name}"
    if not planned:
        return Section(scenario, title, (f"This study does not measure the {name}.",))
    return Section(scenario, title, tables=tables, figures=tuple(performance_figures(summary, scenario, on_gpu)))


def _derived_section(summary: Summary) -> Section | None:
    table = derived_table(summary)
    return Section("derived", "The study's workloads", tables=(table,)) if table else None


def _failure_section(summary: Summary) -> Section | None:
    failures = tuple(failure for rung in summary.rungs for failure in rung.failures)
    return Section("failures", "What did not end well", points=failures) if failures else None
