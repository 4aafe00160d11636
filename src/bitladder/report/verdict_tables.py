"""The verdicts: on the aggregate, which counts, and on each task, which doesn't."""

from __future__ import annotations

from bitladder.report.table import Cell, Column, Mark, Table, estimate_cell, number_cell, text_cell, text_columns
from bitladder.stats.verdict import Verdict
from bitladder.summary.comparison import Compared
from bitladder.summary.row import counted_tasks, left_out, losses_text, weighted_titles
from bitladder.summary.table import AggregateSummary, Estimate, TaskSummary
from bitladder.units import counted, format_count, format_percent, format_points, points_text, two_digits

MARKS: dict[Verdict | None, Mark] = {
    "within the margin": "good",
    "lower but within": "good",
    "beyond the margin": "bad",
}
STAGED_TASKS = (
    "A precision that stopped early answered only some of the questions of a task, and is held against the baseline on "
    "the same ones; a task's own limits are as if their number had been fixed before."
)
_NOT_CHOSEN = "known of tasks scored by acc alone, where an answer is the choice that is likeliest"
_COUNTS = (
    Column("Gained", interval=False, help="right here, wrong on the baseline"),
    Column("Lost", interval=False, help="wrong here, right on the baseline"),
    Column(
        "Changed answers",
        interval=False,
        help="all that differ from the baseline's: gained, lost, and others that score the same",
    ),
)


def verdict_tables(compared: Compared) -> list[Table]:
    """Empty where nothing is held against the baseline."""
    if not compared.others:
        return []
    return [_primary(compared), _secondary(compared)]


def verdict_text(found: TaskSummary | AggregateSummary) -> str | None:
    """The verdict, with how many more documents an open one takes, or after how many asking stopped."""
    stopping = found.stopping if isinstance(found, AggregateSummary) else None
    after = f" {stopping.text}" if stopping else ""
    if found.verdict != "undecided":
        return f"{found.verdict},{after}" if found.verdict and stopping else found.verdict
    if stopping and stopping.state in ("hopeless", "open", "stopped"):
        return f"undecided,{after}" if stopping.state == "hopeless" else f"undecided{after}"
    if found.more_questions is None:
        return f"undecided{after} ({found.more_questions_reason})"
    return f"undecided{after} (about {counted(two_digits(found.more_questions), 'more document')})"


def _primary(compared: Compared) -> Table:
    recovery = compared.min_recovery_percent
    columns = (
        Column("Precision", numeric=False),
        Column("Difference", "points"),
        *((Column("Recovery", "%"),) if recovery is not None else ()),
        *_COUNTS,
        Column("Verdict", numeric=False),
    )
    rows = tuple(
        (
            text_cell(rung.rung),
            estimate_cell(rung.aggregate.difference_points, format_points),
            *((estimate_cell(rung.aggregate.recovery_percent, format_percent),) if recovery is not None else ()),
            *_counts(rung.aggregate),
            _verdict_cell(rung.aggregate),
        )
        for rung in compared.others
    )
    margin = points_text(compared.margin_points)
    tasks = weighted_titles(counted_tasks(compared.rungs))
    notes = (
        f"Aggregate: mean of {tasks}." if tasks else "No task has signal.",
        *(f"{task.title} is in no aggregate: {task.no_signal_reason}." for task in left_out(compared.rungs)),
        *(
            f"{rung.rung} by itself loses more than {margin} on {what}, whatever the aggregate says."
            for rung in compared.others
            for what, _ in losses_text(rung)
        ),
        f"Within the margin: the lower limit is above -{margin}; lower but within: and the upper limit is below 0. "
        f"Beyond the margin: the upper limit is below -{margin}. Undecided: neither.",
        _limits_note(compared),
    )
    kept = f", {recovery:g}% of its score kept" if recovery is not None else ""
    return Table("verdicts", f"Verdicts against {compared.baseline}, margin {margin}{kept}", columns, rows, notes)


def _limits_note(compared: Compared) -> str:
    judged = sum(rung.aggregate.verdict is not None for rung in compared.others)
    if is_staged(compared):
        verdicts = f"the {judged} verdicts hold together" if judged > 1 else "the verdict holds"
        return (
            f"Limits: {verdicts} with 95%, though one looks after every stage (repeated confidence intervals, "
            "Jennison and Turnbull 1989). Of each side's 0.025 the looks before the last have 0.01 in equal parts, the "
            "last the rest, each shared by Holm's procedure. The limits of a precision are those of the look it "
            "stopped at: wider than an interval for so many questions, since the answers chose the number."
        )
    if not judged:
        return "Limits: none, since no precision could be judged."
    if judged == 1:
        return "Limits: 95%, of one precision by itself; judged together with others it would have wider ones."
    return (
        f"Limits: the {judged} verdicts hold together with 95% (Holm's procedure); each limit is drawn "
        "at the level it was judged at, Bonferroni's over the precisions still open then, so none contradicts its "
        "verdict."
    )


def is_staged(compared: Compared) -> bool:
    """Whether precisions are asked until they are decided."""
    return any(rung.aggregate.stopping for rung in compared.others)


def _secondary(compared: Compared) -> Table:
    columns = (
        *text_columns("Task", "Metric"),
        Column("Documents", interval=False),
        *text_columns("Precision"),
        Column(compared.baseline, "%", interval=False),
        Column("Score", "%", interval=False),
        Column("Difference", "points"),
        *_COUNTS,
        Column("Right choice's probability", "points"),
        Column("Verdict", numeric=False),
    )
    baseline = {
        (task.name, task.metric): task
        for rung in compared.rungs
        if rung.rung == compared.baseline
        for task in rung.tasks
    }
    rows = []
    names = [task.name for task in compared.others[0].tasks]
    for index, task in enumerate(compared.others[0].tasks):
        again = task.name in names[:index]  # by another metric, which changes no probability
        if task.unit == "raw":
            continue  # nothing is compared, and the table of scores says why
        for rung in compared.others:
            found = rung.tasks[index]
            rows.append(
                (
                    text_cell(task.title),
                    text_cell(found.metric),
                    questions_cell(found),
                    text_cell(rung.rung),
                    _baseline_cell(found, baseline.get((task.name, task.metric))),
                    _score_cell(found),
                    estimate_cell(found.difference_points, format_points),
                    *_counts(found),
                    text_cell("") if again else estimate_cell(found.right_probability_points, format_points),
                    _verdict_cell(found),
                )
            )
    notes = (
        "Secondary: each task is judged by itself, so of many one lies beyond the margin or within it by chance. What "
        "counts is the aggregate.",
        "Right choice's probability: its mean change, among the choices of a question, which moves before a choice "
        "flips; the intervals hold with 95% for all precisions together.",
        "Documents that resemble each other (HellaSwag's of one source, one question asked in two ways) count by their "
        "effective number.",
        *((STAGED_TASKS,) if is_staged(compared) else ()),
    )
    return Table("verdicts-tasks", "Verdicts by task", columns, tuple(rows), notes, secondary=True)


def questions_cell(task: TaskSummary) -> Cell:
    """How many were answered; of a task without an answer, why."""
    return number_cell(task.questions or None, format_count, task.score.reason)


def _baseline_cell(task: TaskSummary, baseline: TaskSummary | None) -> Cell:
    """The baseline's score on the same questions."""
    if task.baseline_percent is None:
        return _score_cell(baseline)
    return number_cell(task.baseline_percent, format_percent)


def _score_cell(task: TaskSummary | None) -> Cell:
    if task is None:
        return text_cell(None)
    return estimate_cell(Estimate(value=task.score.value, reason=task.score.reason), format_percent)


def _counts(found: TaskSummary | AggregateSummary) -> tuple[Cell, ...]:
    absent = found.difference_points.reason
    ungraded = absent or "answers are not just right or wrong"
    return (
        number_cell(found.gained, format_count, ungraded),
        number_cell(found.lost, format_count, ungraded),
        number_cell(found.changed, format_count, absent or _NOT_CHOSEN),
    )


def _verdict_cell(found: TaskSummary | AggregateSummary) -> Cell:
    reason = found.difference_points.reason if found.verdict in (None, "no signal") else None
    return text_cell(verdict_text(found), mark=MARKS.get(found.verdict, "plain"), reason=reason)
