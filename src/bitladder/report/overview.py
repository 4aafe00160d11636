"""The first table of a report: one row a precision, with what decides. It repeats figures of the tables below it."""

from __future__ import annotations

from bitladder.decide.recommendation import Recommendation, RungVerdict
from bitladder.report.table import Cell, Column, Mark, Table, estimate_cell, text_cell
from bitladder.summary.metrics import CRITERIA
from bitladder.summary.table import Estimate, RungSummary, Summary
from bitladder.units import MIB, format_mib, format_percent, format_raw, format_s, points_text

OUTCOMES: dict[str, tuple[str, Mark]] = {
    "picked": ("deploy", "good"),
    "within": ("within limits", "plain"),
    "undecided": ("undecided", "warning"),
    "unmeasured": ("not measured", "warning"),
    "out": ("out", "bad"),
}


def overview_table(summary: Summary, recommendation: Recommendation) -> Table:
    """One row a precision: what it weighs, scores and runs at, and whether to deploy it."""
    columns = [
        Column("Precision", numeric=False),
        Column("Deploy?", numeric=False),
        Column("Size", "MiB", interval=False, help="of the checkpoint's weights, as they are stored"),
        Column("Latency", "s", help="mean time of a request by itself, at batch 1"),
        Column("Throughput", "tokens/s", help="generated tokens a second at the largest batch"),
        Column("Peak memory", "MiB", interval=False, help="of a run at batch 1"),
    ]
    if summary.has_accuracy:
        columns[2:2] = [Column("Accuracy", "%"), Column(f"Against {summary.baseline}", numeric=False)]
    verdicts = {verdict.rung: verdict for verdict in recommendation.verdicts}
    kept = "" if recommendation.picks else summary.baseline
    rows = tuple(_row(summary, rung, verdicts[rung.rung], kept) for rung in summary.rungs)
    return Table("overview", "Every precision at a glance", tuple(columns), rows, _notes(summary))


def _row(summary: Summary, rung: RungSummary, verdict: RungVerdict, kept: str) -> tuple[Cell, ...]:
    """``kept``: the baseline where nothing is picked, which stays deployed for want of a better answer."""
    picked, mark = OUTCOMES[verdict.outcome]
    if rung.rung == kept and verdict.outcome == "within":
        picked = "stay"
    if rung.same_as is not None:
        picked = f"as {rung.same_as}"
    goals = f" for {', '.join(verdict.goals)}" if 0 < len(verdict.goals) < len(CRITERIA) else ""
    stored = Estimate(value=rung.stored_bytes, reason=None if rung.stored_bytes else rung.reason)
    latency, throughput, memory = (criterion.of(rung) for criterion in CRITERIA.values())
    if memory.value is not None:
        memory = Estimate(value=memory.value)  # it never has an interval: it is the peak of one run
    cells = [
        text_cell(rung.rung),
        text_cell(f"{picked}{goals}", mark=mark),
        estimate_cell(stored, format_mib, unit_size=MIB),
        estimate_cell(latency, format_s),
        estimate_cell(throughput, format_raw),
        estimate_cell(memory, format_mib, unit_size=MIB),
    ]
    if summary.has_accuracy:
        against = "baseline" if rung.rung == summary.baseline else (verdict.accuracy or "not known")
        cells[2:2] = [estimate_cell(rung.aggregate.score_percent, format_percent), text_cell(against)]
    return tuple(cells)


def _notes(summary: Summary) -> tuple[str, ...]:
    notes = ["Latency and peak memory: at batch 1. Throughput: at the largest batch. Brackets: 95% interval."]
    if summary.has_accuracy:
        notes.append(
            f"Against {summary.baseline}: the same questions, so that the difference is known better than each score. "
            f"The margin is {points_text(summary.margin_points)}."
        )
    return tuple(notes)
