"""Figures of accuracy by task and precision, relative drop, and choices that depend on the batch."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt

from bitladder.report.accuracy_tables import AGGREGATE, FEWER, aggregate_tasks, is_staged, percent_tasks, task_of
from bitladder.report.figure import (
    CHARACTER_PX,
    INK,
    PLOT_WIDTH,
    ROWS,
    Figure,
    FigureRow,
    MissingFigure,
    Spec,
    band_axis,
    chunks,
    colours,
    finish,
    in_colours,
    joined,
    layered,
    panel,
    rung_axis,
    rungs_of,
    tooltips,
    whiskers,
    wrap_label,
)
from bitladder.report.table import Formatter, estimate_cell
from bitladder.summary.table import AggregateSummary, DependenceSummary, Estimate, RungSummary, Summary, TaskSummary
from bitladder.units import MIB, format_mib, format_percent, format_points, format_raw

_NARROWEST_BAR_PX = 9
_MOST_TASKS_IN_A_ROW = 10

Panel = tuple[Spec, list[FigureRow]]


def accuracy_figures(summary: Summary) -> list[Figure | MissingFigure]:
    return [_score_figure(summary), _drop_figure(summary)]


def _score_figure(summary: Summary) -> Figure | MissingFigure:
    title = "Figure 1. Accuracy by task and precision"
    tasks = percent_tasks(summary)
    scores = _score_rows(summary, tasks, lambda task: task.score)
    norms = _score_rows(summary, tasks, lambda task: task.score_norm)
    if not scores:
        return MissingFigure("figure1", title, "no task with a score in per cent was measured")
    rungs = rungs_of(summary, scores)
    step = _step(scores, len(rungs))
    parts = _grouped_bars(scores, rungs, step, f"acc (%), {_questions(tasks)}", "acc (%)")
    if norms:
        parts += _grouped_bars(norms, rungs, step, "acc_norm (%) where the task has it; not compared", "acc_norm (%)")
    caption = (
        "Bars: share of right answers (for generation: exact match). Whiskers: 95% interval of each score by itself. "
        "Level lines: chance."
    )
    silent = [task.title for task in tasks if not task.signal]
    if silent:
        caption += f" Without signal, so in no comparison: {', '.join(silent)}."
    if not norms:
        caption += " No task here has acc_norm, so its panel is left out."
    if is_staged(tasks):
        caption += f" {FEWER}"
    return Figure("figure1", title, caption, _stack(parts))


def _drop_figure(summary: Summary) -> Figure | MissingFigure:
    title = f"Figure 2. Relative drop to {summary.baseline} by task and precision"
    rows = _drop_rows(summary)
    if not rows:
        return MissingFigure("figure2", title, "no precision could be compared with the baseline on a task with signal")
    rungs = rungs_of(summary, rows)
    title_of_panel = "(score - baseline) / baseline (%), negative is a loss"
    parts = _grouped_bars(rows, rungs, _step(rows, len(rungs)), title_of_panel, "relative drop (%)")
    whiskers_note = (
        "Whiskers: interval that holds with 95% for all precisions of a task. "
        if any(row["low"] is not None for row in rows)
        else ""
    )
    caption = (
        "Filled: the paired interval of the difference excludes 0. Outlined: it holds 0, so no difference is "
        "shown; where a bar is too thin to tell, Table 2b's bold figures do. "
        f"{whiskers_note}Tasks without signal are left out. {AGGREGATE}: mean of "
        f"{aggregate_tasks(summary)}."
    )
    return Figure("figure2", title, caption, _stack(parts))


def _questions(tasks: list[TaskSummary]) -> str:
    counts = sorted({task.questions for task in tasks if task.questions})
    return f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "") + " questions a task"


def _score_rows(
    summary: Summary, tasks: list[TaskSummary], field: Callable[[TaskSummary], Estimate]
) -> list[FigureRow]:
    return [
        {**row, "chance": task.chance_percent, "filled": True}
        for task in tasks
        for rung in summary.rungs
        if (found := task_of(rung, task.name))
        for row in _row(task, rung.rung, field(found), format_percent)
    ]


def _drop_rows(summary: Summary) -> list[FigureRow]:
    rungs = [rung for rung in summary.rungs if rung.rung != summary.baseline]
    compared: list[tuple[TaskSummary | None, RungSummary, TaskSummary | AggregateSummary]] = [
        (task, rung, found)
        for task in percent_tasks(summary)
        for rung in rungs
        if (found := task_of(rung, task.name)) and found.signal
    ]
    compared += [(None, rung, rung.aggregate) for rung in rungs]
    return [
        {**row, "filled": found.difference_points.excludes(0)}
        for task, rung, found in compared
        for row in _row(task, rung.rung, found.relative_drop_percent, format_points)
    ]


def _row(task: TaskSummary | None, rung: str, estimate: Estimate, format_value: Formatter) -> list[FigureRow]:
    """One row where there is a value, else none; no task is the aggregate."""
    if estimate.value is None:
        return []
    cell = estimate_cell(estimate, format_value)
    return [
        {
            "task": task.name if task else "",
            "title": task.title if task else AGGREGATE,
            "rung": rung,
            **estimate.model_dump(exclude={"reason"}),
            "text": f"{cell.text} {cell.interval}".strip(),
        }
    ]


def _task_rows(rows: list[FigureRow], rungs: int) -> list[list[str]]:
    """The tasks, in as many rows of the figure as their bars need."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    largest = min(_MOST_TASKS_IN_A_ROW, PLOT_WIDTH // (_NARROWEST_BAR_PX * rungs + 12))
    return [[tasks[index] for index in places] for places in chunks(len(tasks), max(1, largest))]


def _step(rows: list[FigureRow], rungs: int) -> int:
    """Pixels of one task's group of bars."""
    return min(PLOT_WIDTH // max(map(len, _task_rows(rows, rungs))), 44 * rungs + 60)


def _grouped_bars(rows: list[FigureRow], rungs: list[str], step: int, title: str, axis_title: str) -> list[Panel]:
    """One layered chart, with its rows, for each row of tasks that fits the width."""
    limits = [row[key] for row in rows for key in ("low", "high", "value", "chance") if row.get(key) is not None]
    scale = alt.Scale(domain=[min(0.0, *limits), max(0.0, *limits)], nice=True)
    y = alt.Y("value:Q", title=axis_title, scale=scale)
    panels: list[Panel] = []
    for index, tasks in enumerate(_task_rows(rows, len(rungs))):
        part = [{**row, "panel": f"{axis_title} {index}"} for row in rows if row["task"] in tasks]
        panels.append((_bars(part, rungs, step, y, "" if index else title), part))
    return panels


def _bars(rows: list[FigureRow], rungs: list[str], step: int, y: alt.Y, title: str) -> Spec:
    labels = {row["task"]: wrap_label(row["title"], max(6, int(step / CHARACTER_PX))) for row in rows}
    base = panel(rows[0]["panel"], step * len(labels), 220, title)
    x = band_axis("task:N", labels, paddingInner=0.16, paddingOuter=0.08)
    offset = alt.XOffset("rung:N", sort=None, scale=alt.Scale(domain=rungs, paddingInner=0.08))
    bars = base.mark_bar(strokeWidth=1.5).encode(
        x=x,
        xOffset=offset,
        y=y,
        color=in_colours(alt.Color, "rung:N", colours(rungs)),
        stroke=in_colours(alt.Stroke, "rung:N", colours(rungs)),
        fillOpacity=alt.FillOpacityValue(0.15, condition={"test": "datum.filled", "value": 1}),
        tooltip=tooltips(title="task", rung="precision", text="% [95% interval]"),
    )
    chance = base.transform_filter("isValid(datum.chance)").mark_tick(color=INK, size=step * 0.84, thickness=1.2)
    return layered(
        bars,
        *whiskers(base, x=x, xOffset=offset),
        chance.encode(x=x, y=alt.Y("chance:Q", title=None)),
        base.mark_rule(color=INK, strokeWidth=1).encode(y=alt.YDatum(0)),
    )


def _stack(panels: list[Panel]) -> Spec:
    rows = [row for _, part in panels for row in part]
    return finish(joined("vconcat", [spec for spec, _ in panels], ("x", "xOffset")), rows)


_NAME = "figure7"
_TITLE = "Figure 7. Choices that depend on the batch"
_WAYS = {
    "other batches": "#0072b2",
    "batch 1": "#56b4e9",
    "cached decoding": "#e69f00",
    "cached against batch 1": "#cc79a7",
    "flips against the baseline": "#7f7f7f",
}
"""Okabe and Ito's colours, as the precisions'"""


def dependence_figure(summary: Summary) -> Figure | MissingFigure:
    rows = [
        {**row, "rung": rung.rung, "panel": _NAME}
        for rung in summary.rungs
        if rung.dependence
        for row in _rows(rung.dependence)
    ]
    if not rows:
        return MissingFigure(_NAME, _TITLE, "no document was scored again")
    rungs = list(dict.fromkeys(row["rung"] for row in rows))
    ways = [way for way in _WAYS if any(row["way"] == way for row in rows)]
    step = min(PLOT_WIDTH // len(rungs), 34 * len(ways) + 40)
    base = panel(_NAME, step * len(rungs), 240, "share of documents with another choice (%)")
    scale = alt.Scale(domain=[0, max(*(row["high"] or row["value"] for row in rows), 1.0)], nice=True)
    x = rung_axis(rungs, step, inner=0.18, outer=0.08)
    offset = alt.XOffset("way:N", sort=None, scale=alt.Scale(domain=ways, paddingInner=0.1))
    bars = base.mark_bar().encode(
        x=x,
        xOffset=offset,
        y=alt.Y("value:Q", title=None, scale=scale),
        color=in_colours(alt.Color, "way:N", {way: _WAYS[way] for way in ways}),
        tooltip=tooltips(rung="precision", way="scored again", text="% [95% interval]"),
    )
    spec = layered(
        bars,
        *whiskers(base, x=x, xOffset=offset),
        base.mark_rule(color=INK, strokeWidth=1).encode(y=alt.YDatum(0)),
    )
    caption = (
        "Bars: share of documents whose choice differs from that in the study's own batches, scored in other batches, "
        "each request by itself, or prefilled and decoded step by step; then cached decoding against a forward of its "
        f"own, and the flips against {summary.baseline} on the documents of the other batches. Whiskers: 95% interval "
        "of each share by itself; where nothing changed there is a whisker alone."
    )
    return Figure(_NAME, _TITLE, caption, finish(spec, rows))


def _rows(found: DependenceSummary) -> list[FigureRow]:
    changes = (found.second_plan, found.batch1, found.cached, found.steps, found.against_baseline)
    rows: list[FigureRow] = []
    for way, change in zip(_WAYS, changes, strict=True):
        if change is None or change.percent.value is None:
            continue
        cell = estimate_cell(change.percent, format_percent)
        text = f"{cell.text} {cell.interval}, {change.changed} of {change.documents:,}"
        rows.append({"way": way, **change.percent.model_dump(exclude={"reason"}), "text": text})
    return rows


_FRONTIER_TITLE = "Accuracy against speed"
_CHART_HEIGHT = 300
_LARGEST_MARK = 700
"""area in square pixels of the precision with most memory; the others' are in proportion"""


def frontier_figure(summary: Summary) -> Figure | MissingFigure:
    """Accuracy against speed, each precision a mark as large as its memory; the line joins those that none beats.

    Speed: generated tokens/s at the largest batch, or at batch 1 where the largest was not measured.
    """
    scenario = next((name for name in ("max-batch", "batch1") if _known(summary, name)), None)
    if scenario is None:
        return MissingFigure("figure0", _FRONTIER_TITLE, "no two precisions have both an accuracy and a speed")
    rows = [_mark(rung, scenario) for rung in _known(summary, scenario)]
    front = _unbeaten(rows)
    for row in rows:
        row["front"] = row["rung"] in front
    where = "the largest batch" if scenario == "max-batch" else "batch 1"
    caption = (
        f"Right and up is better. Speed: generated tokens/s at {where}. Area of a mark: peak memory at batch 1, or the "
        "weights where it is unknown. Lines: 95% intervals of one precision by itself. Dashed: no other precision is "
        "both faster and more accurate."
    )
    return Figure("figure0", f"{_FRONTIER_TITLE}, {where}", caption, finish(_chart(summary, rows), rows))


def _known(summary: Summary, scenario: str) -> list[RungSummary]:
    """The precisions with both figures; none where only one has them, since there is nothing to weigh up."""
    found = [
        rung
        for rung in summary.rungs
        if rung.metric(scenario, "tokens_per_s").value is not None and rung.aggregate.score_percent.value is not None
    ]
    return found if len(found) > 1 else []


def _mark(rung: RungSummary, scenario: str) -> FigureRow:
    speed, score = rung.metric(scenario, "tokens_per_s"), rung.aggregate.score_percent
    memory = rung.metric("batch1", "peak_memory_bytes").value or rung.loaded_bytes or rung.stored_bytes
    speed_cell, score_cell = estimate_cell(speed, format_raw), estimate_cell(score, format_percent)
    return {
        "rung": rung.rung,
        "speed": speed.value,
        "speed_low": speed.low,
        "speed_high": speed.high,
        "score": score.value,
        "score_low": score.low,
        "score_high": score.high,
        "memory_mib": memory and memory / MIB,
        "speed_text": f"{speed_cell.text} {speed_cell.interval}".strip(),
        "score_text": f"{score_cell.text} {score_cell.interval}".strip(),
        "memory_text": format_mib(memory),
    }


def _unbeaten(rows: list[FigureRow]) -> set[str]:
    """The Pareto front of the observed values: no other row is at least as good in both, and better in one."""
    return {
        row["rung"]
        for row in rows
        if not any(
            other["speed"] >= row["speed"]
            and other["score"] >= row["score"]
            and (other["speed"], other["score"]) != (row["speed"], row["score"])
            for other in rows
        )
    }


def _chart(summary: Summary, rows: list[FigureRow]) -> dict[str, object]:
    base = alt.Chart(ROWS, width=PLOT_WIDTH, height=_CHART_HEIGHT)
    spread = [row[name] for row in rows for name in ("score", "score_low", "score_high") if row[name] is not None]
    room = 0.08 * (max(spread) - min(spread)) or 1.0
    domain = [max(0.0, min(spread) - room), min(100.0, max(spread) + room)]
    fastest = max(row["speed_high"] or row["speed"] for row in rows)
    x_title, y_title = "generated tokens/s", "accuracy (%), aggregate"  # of every layer: Vega-Lite joins what differs
    x = alt.X("speed:Q", title=x_title, scale=alt.Scale(domain=[0, 1.06 * fastest], nice=False))
    y = alt.Y("score:Q", title=y_title, scale=alt.Scale(domain=domain, nice=False, zero=False))
    names = [rung.rung for rung in summary.rungs if any(row["rung"] == rung.rung for row in rows)]
    colour = in_colours(alt.Color, "rung:N", colours(names), legend=False)
    largest = max((row["memory_mib"] or 0.0) for row in rows) or 1.0
    area = alt.Size("memory_mib:Q", legend=None, scale=alt.Scale(domain=[0, largest], range=[0, _LARGEST_MARK]))
    across = base.transform_filter("isValid(datum.speed_low)").mark_rule(color=INK, strokeWidth=1.2)
    upward = base.transform_filter("isValid(datum.score_low)").mark_rule(color=INK, strokeWidth=1.2)
    return layered(
        base.transform_filter("datum.front")
        .mark_line(color=INK, strokeWidth=1, strokeDash=[4, 4], opacity=0.6)
        .encode(x=x, y=y, order="speed:Q"),
        across.encode(x=alt.X("speed_low:Q", title=x_title), x2=alt.X2("speed_high:Q"), y=y),
        upward.encode(x=x, y=alt.Y("score_low:Q", title=y_title), y2=alt.Y2("score_high:Q")),
        base.mark_circle(opacity=0.85, stroke=INK, strokeWidth=1).encode(
            x=x,
            y=y,
            size=area,
            color=colour,
            tooltip=tooltips(
                rung="precision", score_text="accuracy (%)", speed_text="tokens/s", memory_text="memory (MiB)"
            ),
        ),
        base.mark_text(dx=18, dy=-14, align="left", fontSize=12, color=INK, fontWeight=600).encode(
            x=x, y=y, text=alt.Text("rung:N")
        ),
    )
