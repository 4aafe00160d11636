"""Table 1, accuracy, and Table 2, relative drop with the paired difference and recovery above chance beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bitladder.report.table import (
    Cell,
    Column,
    Formatter,
    Table,
    estimate_cell,
    number_cell,
    text_cell,
    text_columns,
)
from bitladder.report.verdict_tables import questions_cell, verdict_tables
from bitladder.stats.aggregate import FULL_WEIGHT_POINTS, NO_WEIGHT_POINTS
from bitladder.summary.comparison import compared_rungs
from bitladder.summary.row import counted_tasks, weighted_titles
from bitladder.summary.table import AggregateSummary, Estimate, RungSummary, Summary, TaskSummary
from bitladder.units import format_count, format_percent, format_points, format_raw, points_text

AGGREGATE = "Aggregate"
NO_SIGNAL = "no signal"
_NO_CHANCE = "not a choice among given answers"

Found = TypeVar("Found", TaskSummary, AggregateSummary)


def accuracy_tables(summary: Summary) -> list[Table]:
    """Those of Tables 1 and 2 that there is something to show in; every table has one unit."""
    tasks = percent_tasks(summary)
    tables: list[Table] = []
    if tasks:
        tables.append(_score_table(summary, tasks))
        if any(task.score_norm.value is not None for rung in summary.rungs for task in rung.tasks):
            tables.append(_norm_table(summary, tasks))
    if raw_tasks(summary):
        tables.append(_raw_table(summary))
    if is_staged(tasks):
        tables.append(_questions_table(summary, tasks))
    if tasks and len(summary.rungs) > 1:
        tables += verdict_tables(compared_rungs(summary))
        tables += [_comparison_table(summary, tasks, comparison) for comparison in _COMPARISONS]
    return tables


FEWER = (
    "A precision that stopped early answered fewer of them (Table 1d), and its score is not to be held against others."
)


def is_staged(tasks: list[TaskSummary]) -> bool:
    """Whether precisions are asked until they are decided."""
    return any(task.planned_questions is not None for task in tasks)


def percent_tasks(summary: Summary) -> list[TaskSummary]:
    """One summary for each task that is scored in per cent, in table order: the baseline's where it has one."""
    return [task for task in _tasks(summary) if task.unit == "percent"]


def raw_tasks(summary: Summary) -> list[TaskSummary]:
    """The tasks with a unit of their own, such as bits per byte."""
    return [task for task in _tasks(summary) if task.unit == "raw"]


def _tasks(summary: Summary) -> list[TaskSummary]:
    found: dict[str, TaskSummary] = {}
    for rung in sorted(summary.rungs, key=lambda rung: rung.rung != summary.baseline):
        for task in rung.tasks:
            known = found.get(task.name)
            # A failed measurement leaves a row without questions; any rung that has them describes the task better.
            if known is None or (known.questions == 0 and task.questions > 0):
                found[task.name] = task
    return list(found.values())


def task_of(rung: RungSummary, name: str) -> TaskSummary | None:
    return next((task for task in rung.tasks if task.name == name), None)


def absence(rung: RungSummary) -> str:
    """Why a rung has no figure at all."""
    return f"{rung.rung}: {rung.reason or rung.status}" if rung.status != "ok" else f"{rung.rung}: not measured"


def aggregate_tasks(summary: Summary) -> str:
    """Titles and weights of the tasks that the aggregate is the mean of; empty where there is none."""
    return weighted_titles(counted_tasks(summary.rungs))


def aggregate_note(summary: Summary) -> str:
    tasks = aggregate_tasks(summary)
    if not tasks:
        return "No aggregate: no task has signal."
    return (
        f"{AGGREGATE}: mean of {tasks}. A task counts from {NO_WEIGHT_POINTS:.0f} points above chance on, and wholly "
        f"from {FULL_WEIGHT_POINTS:.0f} on, by the better of the two scores that are compared."
    )


def _score_table(summary: Summary, tasks: list[TaskSummary]) -> Table:
    columns = (
        *text_columns("Task", "Metric"),
        Column("Questions", interval=False),
        Column("Chance", "%", interval=False, help="what guessing scores: mean of 1 / choices"),
        *(Column(rung.rung, "%") for rung in summary.rungs),
    )
    rows = [
        (
            _task_cell(task),
            text_cell(task.metric),
            questions_cell(task),
            number_cell(task.chance_percent, format_percent, task.chance_reason or _NO_CHANCE),
            *_task_cells(summary.rungs, task, lambda found: found.score, format_percent),
        )
        for task in tasks
    ]
    if aggregate_tasks(summary):
        scores = (estimate_cell(rung.aggregate.score_percent, format_percent) for rung in summary.rungs)
        rows.append((text_cell(AGGREGATE, mark="total"), *[text_cell("")] * 3, *scores))
    notes = (
        "Brackets: 95% interval of one score by itself. Two precisions answer the same questions, "
        "so compare them by Table 2b, not by these brackets.",
        *((f"Questions: {summary.baseline}'s. {FEWER}",) if is_staged(tasks) else ()),
        aggregate_note(summary),
    )
    return Table("table1", "Table 1. Accuracy (%)", columns, tuple(rows), notes)


def _questions_table(summary: Summary, tasks: list[TaskSummary]) -> Table:
    """On how many questions the scores rest, where asking stops when decided."""
    columns = (
        *text_columns("Task"),
        Column("All", interval=False),
        *(Column(rung.rung, interval=False) for rung in summary.rungs),
    )
    rows = tuple(
        (
            _task_cell(task),
            number_cell(task.planned_questions, format_count),
            *(
                questions_cell(found) if (found := task_of(rung, task.name)) else text_cell(None, reason=absence(rung))
                for rung in summary.rungs
            ),
        )
        for task in tasks
    )
    notes = (
        f"Questions come in one random order for all precisions; one is asked until its drop is shown to be within or "
        f"beyond {points_text(summary.margin_points)}, or until there are no more. All: that there are to ask.",
    )
    return Table("table1-questions", "Table 1d. Questions answered", columns, rows, notes)


def _norm_table(summary: Summary, tasks: list[TaskSummary]) -> Table:
    with_norm = [
        task
        for task in tasks
        if any((found := task_of(rung, task.name)) and found.score_norm.value is not None for rung in summary.rungs)
    ]
    columns = (
        *text_columns("Task", "Metric"),
        Column("Questions", interval=False),
        *(Column(rung.rung, "%") for rung in summary.rungs),
    )
    rows = tuple(
        (
            text_cell(task.title),
            text_cell("acc_norm"),
            questions_cell(task),
            *_task_cells(summary.rungs, task, lambda found: found.score_norm, format_percent),
        )
        for task in with_norm
    )
    notes = ("Log-likelihoods divided by the length of the choice; in no aggregate and no comparison.",)
    return Table("table1-norm", "Table 1b. Length-normalised accuracy, acc_norm (%)", columns, rows, notes)


def _raw_table(summary: Summary) -> Table:
    tasks = raw_tasks(summary)
    columns = (*text_columns("Precision"), *(Column(task.title_with_unit) for task in tasks))
    rows = tuple(
        (
            text_cell(rung.rung),
            *(cell for task in tasks for cell in _task_cells([rung], task, lambda found: found.score, format_raw)),
        )
        for rung in summary.rungs
    )
    notes = ("Each column has the unit of its metric. In no aggregate.",)
    return Table("table1-other-scores", "Table 1c. Scores that are not shares of right answers", columns, rows, notes)


@dataclass(frozen=True)
class _ComparedColumn:
    """One of the tables that hold a rung against the baseline."""

    name: str
    title: str
    unit: str
    notes: tuple[str, ...]
    field: Callable[[TaskSummary | AggregateSummary], Estimate]
    format: Formatter


_BOLD = "Bold: the paired interval of the difference (Table 2b) excludes 0. No other is shown to be a difference."
_COMPARISONS = (
    _ComparedColumn(
        "table2",
        "Table 2. Relative drop to {baseline} (%)",
        "%",
        ("(score - baseline) / baseline; negative is a loss.", _BOLD),
        lambda found: found.relative_drop_percent,
        format_points,
    ),
    _ComparedColumn(
        "table2-points",
        "Table 2b. Difference to {baseline}, paired by question (percentage points)",
        "points",
        (
            "Brackets: paired interval, Tango's score interval for one task, that holds with 95% for all precisions of "
            "a row together (see the verdicts). Negative is a loss.",
            _BOLD,
        ),
        lambda found: found.difference_points,
        format_points,
    ),
    _ComparedColumn(
        "table2-recovery",
        "Table 2c. Recovery (%)",
        "%",
        ("score / baseline, what --min-recovery limits.", _BOLD),
        lambda found: found.recovery_percent,
        format_percent,
    ),
    _ComparedColumn(
        "table2-recovery-above-chance",
        "Table 2d. Recovery above chance (%)",
        "%",
        ("(score - chance) / (baseline - chance); 100 is as good as the baseline, 0 is guessing.", _BOLD),
        lambda found: found.recovery_above_chance_percent,
        format_percent,
    ),
)


def _comparison_table(summary: Summary, tasks: list[TaskSummary], comparison: _ComparedColumn) -> Table:
    rungs = [rung for rung in summary.rungs if rung.rung != summary.baseline]
    columns = (*text_columns("Task"), *(Column(rung.rung, comparison.unit) for rung in rungs))
    rows = [
        (_task_cell(task), *_task_cells(rungs, task, comparison.field, comparison.format, compare=True))
        for task in tasks
    ]
    if aggregate_tasks(summary):
        cells = (_compared_cell(rung.aggregate, comparison.field, comparison.format) for rung in rungs)
        rows.append((text_cell(AGGREGATE, mark="total"), *cells))
    title = comparison.title.format(baseline=summary.baseline)
    notes = (*comparison.notes, aggregate_note(summary))
    return Table(comparison.name, title, columns, tuple(rows), notes, secondary=True)


def _task_cell(task: TaskSummary) -> Cell:
    if task.signal:
        return text_cell(task.title)
    return text_cell(f"{task.title} ({NO_SIGNAL})", mark="warning", reason=task.no_signal_reason)


def _task_cells(
    rungs: Sequence[RungSummary],
    wanted: TaskSummary,
    field: Callable[[TaskSummary], Estimate],
    format_value: Formatter,
    *,
    compare: bool = False,
) -> list[Cell]:
    """One task's figure on each of the rungs."""
    return [
        number_cell(None, format_value, absence(rung))
        if task is None
        else _compared_cell(task, field, format_value)
        if compare and task.signal
        else estimate_cell(field(task), format_value)
        for rung, task in ((rung, task_of(rung, wanted.name)) for rung in rungs)
    ]


def _compared_cell(found: Found, field: Callable[[Found], Estimate], format_value: Formatter) -> Cell:
    """Bold where the difference to the baseline is shown to be one."""
    return estimate_cell(field(found), format_value, mark="clear" if found.difference_points.excludes(0) else "plain")
