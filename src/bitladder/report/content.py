"""What a report says, in which order; HTML and Markdown only dress it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bitladder.decide.recommendation import Recommendation
from bitladder.decide.sentence import headline
from bitladder.report.accuracy_figures import accuracy_figures, dependence_figure, frontier_figure
from bitladder.report.accuracy_tables import accuracy_tables
from bitladder.report.agreement_tables import (
    PARAGRAPH,
    SENTENCE,
    dependence_points,
    dependence_tables,
    divergence_table,
)
from bitladder.report.figure import Figure, MissingFigure
from bitladder.report.overview import OUTCOMES, overview_table
from bitladder.report.performance_figures import performance_figures
from bitladder.report.performance_tables import SCENARIOS, derived_table, performance_tables
from bitladder.report.provenance_tables import (
    checkpoint_table,
    findings_tables,
    machine_table,
    scoring_table,
    settings_table,
    version_table,
)
from bitladder.report.published_tables import (
    MachinePage,
    compare_pages,
    machine_pages,
    published_paragraphs,
    published_tables,
    split,
    split_notes,
)
from bitladder.report.table import Cell, Table, text_cell, text_columns
from bitladder.results import device_title, titles_of
from bitladder.results.store import Results
from bitladder.summary.published import PublishedComparison
from bitladder.summary.table import Summary


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
    """caveats that hold for all of it"""
    headline: str
    overview: Table
    frontier: Figure | MissingFigure
    recommendation: Recommendation
    verdicts: Table
    sections: tuple[Section, ...]
    pages: tuple[MachinePage, ...]
    published: tuple[PublishedComparison, ...]

    @property
    def tables(self) -> Iterator[Table]:
        yield from (self.overview, self.verdicts)
        for section in self.sections:
            yield from section.tables

    @property
    def figures(self) -> Iterator[Figure]:
        if isinstance(self.frontier, Figure):
            yield self.frontier
        for section in self.sections:
            yield from (figure for figure in section.figures if isinstance(figure, Figure))


def compose(results: Results, summary: Summary, recommendation: Recommendation) -> Report:
    """The page. `summary` is what the recommendation compared; tables and figures are of one machine each."""
    pages = machine_pages(results, summary)
    published = compare_pages(pages)
    sections = [
        _accuracy_section(pages),
        _divergence_section(pages),
        _dependence_section(pages),
        *(_scenario_section(pages, scenario) for scenario in SCENARIOS),
        _derived_section(pages),
        _published_section(published),
        Section(
            "audit",
            "Checkpoints and their audit",
            ("An audit tells what a checkpoint is. A precision that is not what it says is not measured.",),
            tables=split(pages, lambda page: [checkpoint_table(page.summary), *findings_tables(page.summary)]),
        ),
        _failure_section(pages, summary),
        _missing_section(results, summary),
        Section(
            "provenance",
            "Settings, machine, versions",
            tables=(
                *split([page for page in pages if page.summary.has_scores], lambda page: [scoring_table(page.summary)]),
                *_settings_tables(results),
                machine_table(results),
                *split(pages, lambda page: [version_table(page.results)]),
            ),
        ),
    ]
    return Report(
        title=f"Which precision for {summary.source.model}?",
        subtitle=_subtitle(results, pages),
        notes=(*summary.notes, *split_notes(pages)),
        headline=headline(summary, recommendation),
        overview=overview_table(summary, recommendation),
        frontier=frontier_figure(summary),
        recommendation=recommendation,
        verdicts=_verdict_table(recommendation, summary),
        sections=tuple(section for section in sections if section is not None),
        pages=tuple(pages),
        published=published,
    )


def _suites(results: Results) -> list[str]:
    """Their names, where anything was asked."""
    studies = [part.study for part in results.parts] or [results.study]
    names = list(dict.fromkeys(study.suite for study in studies if study.groups))
    return [f"Suite{'s' if len(names) > 1 else ''} {' and '.join(names)}"] if names else []


def _subtitle(results: Results, pages: Sequence[MachinePage]) -> str:
    source = results.study.source
    devices = dict.fromkeys(device_title(page.results.study.calibration) for page in pages)
    parts = [*_suites(results), f"baseline {results.study.baseline}", " and ".join(devices)]
    if source.revision:
        parts.append(f"revision {source.revision}")
    dates = sorted({record.started_at[:10] for record in results.records})
    if dates:
        parts.append("measured " + " to ".join(dict.fromkeys((dates[0], dates[-1]))))
    return " · ".join(parts)


def _verdict_table(recommendation: Recommendation, summary: Summary) -> Table:
    known = {rung.rung: rung.title for rung in summary.rungs}
    rows: list[tuple[Cell, ...]] = []
    for verdict in recommendation.verdicts:
        goals = f" for {', '.join(verdict.goals)}" if verdict.goals else ""
        if verdict.outcome == "within" and recommendation.picks:
            goals = ", not best"
        rows.append(
            (
                text_cell(verdict.rung),
                text_cell(known[verdict.rung]),
                text_cell(f"{OUTCOMES[verdict.outcome][0]}{goals}", mark=OUTCOMES[verdict.outcome][1]),
                text_cell(verdict.accuracy or ""),
                text_cell("; ".join(verdict.reasons) or None),
            )
        )
    columns = text_columns("Precision", "What it is", "Verdict", "Accuracy", "Why")
    return Table("recommendation", "Every precision, and why or why not", columns, tuple(rows), secondary=True)


def _accuracy_section(pages: Sequence[MachinePage]) -> Section:
    planned = [page for page in pages if page.summary.has_accuracy]
    if not planned:
        return Section("accuracy", "Accuracy", ("This study does not measure accuracy.",))
    return Section(
        "accuracy",
        "Accuracy",
        tables=split(planned, lambda page: accuracy_tables(page.summary)),
        figures=split(planned, lambda page: accuracy_figures(page.summary)),
    )


def _divergence_section(pages: Sequence[MachinePage]) -> Section | None:
    planned = [page for page in pages if page.summary.has_divergence]
    if not planned:
        return None
    title = f"Divergence from the baseline, {planned[0].summary.baseline}"
    tables = split(planned, lambda page: [divergence_table(page.summary)])
    return Section("divergence", title, (SENTENCE,), tables=tables)


def _dependence_section(pages: Sequence[MachinePage]) -> Section | None:
    planned = [page for page in pages if any(rung.dependence for rung in page.summary.rungs)]
    if not planned:
        return None
    points = tuple(point for page in planned for point in dependence_points(page.summary)) if len(planned) == 1 else ()
    return Section(
        "dependence",
        "Dependence on the batch",
        (PARAGRAPH,),
        points,
        split(planned, lambda page: dependence_tables(page.summary)),
        split(planned, lambda page: [dependence_figure(page.summary)]),
    )


def _scenario_section(pages: Sequence[MachinePage], scenario: str) -> Section:
    planned = [page for page in pages if any(rung.scenario(scenario) for rung in page.summary.rungs)]
    name = SCENARIOS[scenario][1]
    title = f"Performance at {'the ' if scenario == 'max-batch' else ''}{name}"
    if not planned:
        return Section(scenario, title, (f"This study does not measure the {name}.",))
    return Section(
        scenario,
        title,
        tables=split(planned, lambda page: performance_tables(page.summary, scenario, page.on_gpu)),
        figures=split(planned, lambda page: performance_figures(page.summary, scenario, page.on_gpu)),
    )


def _derived_section(pages: Sequence[MachinePage]) -> Section | None:
    tables = split(pages, lambda page: [table] if (table := derived_table(page.summary)) else [])
    return Section("derived", "The published study's workloads", tables=tables) if tables else None


def _published_section(comparisons: Sequence[PublishedComparison]) -> Section | None:
    if not comparisons:
        return None
    title = f"The published study of {comparisons[0].study.title}, cell by cell"
    return Section("published", title, published_paragraphs(comparisons), tables=published_tables(comparisons))


def _settings_tables(results: Results) -> list[Table]:
    """One a study that was joined, whether on one machine or on several."""
    tables = [settings_table(part.study) for part in results.parts or (results,)]
    if len(tables) == 1:
        return tables
    return [
        replace(table, name=f"{table.name}-study{index}", title=f"{table.title}, study {index} of {len(tables)}")
        for index, table in enumerate(tables, 1)
    ]


def _failure_section(pages: Sequence[MachinePage], summary: Summary) -> Section | None:
    """Each machine's failures, and what no machine has."""
    known = [(failure, page) for page in pages for rung in page.summary.rungs for failure in rung.failures]
    points = [f"{failure}, on {page.machine}" if page.machine else failure for failure, page in known]
    told = {failure for failure, _ in known}
    points += [failure for rung in summary.rungs for failure in rung.failures if failure not in told]
    return Section("failures", "What did not end well", points=tuple(dict.fromkeys(points))) if points else None


def _missing_section(results: Results, summary: Summary) -> Section | None:
    groups = results.study.groups
    points = tuple(
        f"{rung.rung}: {', '.join(titles_of(rung.missing, groups))}" for rung in summary.rungs if rung.missing
    )
    merged = ("Nothing is measured in a merged folder: measure it in a study's own, and merge anew.",)
    title = "Not measured" if results.parts else "Not measured yet"
    return Section("missing", title, merged if results.parts else (), points) if points else None
