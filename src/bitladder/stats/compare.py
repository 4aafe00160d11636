"""Rungs held against a baseline by their answers alone, without a study around them."""

from collections.abc import Mapping, Sequence

from bitladder.records import AccuracyOutcome, MetricInfo, Record, TaskGroup
from bitladder.stats import scores
from bitladder.stats.accuracy import summarize_aggregates, summarize_tasks
from bitladder.stats.pots import primary_metric
from bitladder.stats.row import Row
from bitladder.stats.summary import AggregateSummary, Summary, TaskSummary


class ComparedRung(Record):
    rung: str
    aggregate: AggregateSummary
    """primary: it has the verdict"""
    tasks: tuple[TaskSummary, ...]
    """secondary: each by itself"""


class Compared(Record):
    """The baseline and all that is held against it, with verdicts."""

    baseline: str
    margin_points: float
    """how many points of the aggregate a rung may lose"""
    rungs: tuple[ComparedRung, ...]
    notes: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[ComparedRung, ...]:
        return tuple(rung for rung in self.rungs if rung.rung != self.baseline)


def compared_rungs(summary: Summary) -> Compared:
    """The verdicts of a study."""
    rungs = tuple(ComparedRung(rung=rung.rung, aggregate=rung.aggregate, tasks=rung.tasks) for rung in summary.rungs)
    return Compared(baseline=summary.baseline, margin_points=summary.margin_points, rungs=rungs)


def compare_answers(
    groups: Sequence[TaskGroup],
    answers: Mapping[str, Mapping[str, AccuracyOutcome]],
    baseline: str,
    margin_points: float,
) -> Compared:
    """Verdicts from answers by rung and leaf task; every task of `groups` has to be there for each rung.

    Beside each group's primary metric, which alone enters the aggregate, its others are rows of their own.
    """
    rows = [row for group in groups for row in (Row(group, baseline, answers), *_other_rows(group, answers, baseline))]
    tasks = [summarize_tasks(row, margin_points) for row in rows]
    aggregates = summarize_aggregates(rows, tuple(answers), baseline, margin_points)
    return Compared(
        baseline=baseline,
        margin_points=margin_points,
        rungs=tuple(
            ComparedRung(rung=rung, aggregate=aggregates[rung], tasks=tuple(row[rung] for row in tasks))
            for rung in answers
        ),
        notes=_notes(rows, answers),
    )


def _other_rows(group: TaskGroup, answers: Mapping[str, Mapping[str, AccuracyOutcome]], baseline: str) -> list[Row]:
    """A row for each further metric that every task of the group has."""
    infos = [answers[baseline][task].metrics for task in group.tasks]
    primary = [primary_metric(metrics).key for metrics in infos]
    rows = []
    for metric in infos[0]:
        if metric.key not in primary and all(metric in metrics for metrics in infos):
            only = {
                rung: {task: _only(outcomes[task], metric) for task in group.tasks}
                for rung, outcomes in answers.items()
            }
            rows.append(Row(group.model_copy(update={"in_aggregate": False}), baseline, only))
    return rows


def _only(outcome: AccuracyOutcome, metric: MetricInfo) -> AccuracyOutcome:
    return outcome.model_copy(update={"metrics": (metric,)})


def _notes(rows: Sequence[Row], answers: Mapping[str, Mapping[str, AccuracyOutcome]]) -> tuple[str, ...]:
    notes = [
        f"{row.group.title} is in no aggregate: {row.no_signal_reason}."
        for row in rows
        if row.group.in_aggregate and not row.counts
    ]
    for rung, outcomes in answers.items():
        for task, outcome in outcomes.items():
            notes += [f"{rung}, {task}: {text}" for text in scores.disagreements(outcome)]
    return tuple(notes)
