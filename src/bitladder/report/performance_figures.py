"""Figures 3 and 5, the study's four metrics by precision, and Figures 4 and 6, the same as a heat map."""

from __future__ import annotations

import altair as alt

from bitladder.report.figure import (
    HALO,
    INK,
    PLOT_WIDTH,
    ROWS,
    Figure,
    FigureRow,
    MissingFigure,
    Spec,
    band_axis,
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
from bitladder.report.performance_tables import SCENARIOS, MetricColumn, drawn_columns
from bitladder.summary.table import Summary
from bitladder.units import format_raw

_NUMBERS = {"batch1": (3, 4), "max-batch": (5, 6)}
_PANEL_GAP = 74
_GAP = 0.25
"""between two bars, of a step"""
_WHISKER_AT, _NUMBER_AT = 0.42, 0.12
"""of a bar's width right and left of its middle"""
_WORST, _BEST = (0xEF, 0xF5, 0xFB), (0x08, 0x45, 0x94)
ABOUT_EQUAL = 0.02
"""of the largest value: what a measurement stops at, so no difference between precisions"""
WHISKER_ROOM = 2.0
"""times the highest bar: an interval from few batches may reach further, and would leave bars too low to compare"""
CUT = "↑"
_UNCOLOURED = "#c9ced6"
_DARK_TEXT, _LIGHT_TEXT = "#101418", "#fdfdfd"


def performance_figures(summary: Summary, scenario: str, on_gpu: bool) -> list[Figure | MissingFigure]:
    """The bars and the heat map of one scenario."""
    bars, heat = _NUMBERS[scenario]
    where = SCENARIOS[scenario][1]
    bar_title = f"Figure {bars}. Performance by precision: {where}"
    heat_title = f"Figure {heat}. Normalised performance, precision by metric: {where}"
    metrics = drawn_columns(scenario, on_gpu)
    rows = [row for metric in metrics for row in _rows(summary, scenario, metric)]
    known = [row for row in rows if row["value"] is not None]
    if not known:
        reason = f"no precision has figures for the {where}"
        return [MissingFigure(f"figure{bars}", bar_title, reason), MissingFigure(f"figure{heat}", heat_title, reason)]
    drawn = _cut_whiskers(known)
    caption = _bar_caption(summary, scenario, metrics, known)
    if drawn != known:
        caption += f" {CUT}: one beyond {WHISKER_ROOM:g} times the highest bar is cut there; the table has its end."
    figure = Figure(f"figure{bars}", bar_title, caption, _bars(summary, metrics, drawn))
    if len({row["rung"] for row in known}) < 2:
        return [figure, MissingFigure(f"figure{heat}", heat_title, "comparing needs figures of two precisions")]
    return [figure, Figure(f"figure{heat}", heat_title, _heat_caption(metrics), _heat_map(metrics, rows))]


def _rows(summary: Summary, scenario: str, metric: MetricColumn) -> list[FigureRow]:
    """One row a rung, its value in the metric's printed unit."""
    rows: list[FigureRow] = []
    for rung in summary.rungs:
        estimate = metric.estimate(rung, rung.scenario(scenario))
        cell = metric.cell(rung, rung.scenario(scenario))
        row = {"metric": metric.name, "rung": rung.rung, "value": cell.value, "low": cell.low, "high": cell.high}
        row |= {"text": cell.text, "cut": ""}
        row["tooltip"] = f"{cell.text} {cell.interval}".strip() if estimate.value is not None else estimate.reason
        rows.append(row)
    return rows


def _cut_whiskers(rows: list[FigureRow]) -> list[FigureRow]:
    highest: dict[str, float] = {}
    for row in rows:
        highest[row["metric"]] = max(highest.get(row["metric"], 0.0), WHISKER_ROOM * row["value"])
    return [
        {**row, "high": highest[row["metric"]], "cut": CUT}
        if row["high"] is not None and row["high"] > highest[row["metric"]]
        else row
        for row in rows
    ]


def _bar_caption(summary: Summary, scenario: str, metrics: tuple[MetricColumn, ...], known: list[FigureRow]) -> str:
    requests = sorted(
        {measured.requests for rung in summary.rungs if (measured := rung.scenario(scenario)) and measured.requests}
    )
    n = " to ".join(f"{count:,}" for count in dict.fromkeys((requests[0], requests[-1])))
    caption = f"n = {n} requests a precision. Whiskers: 95% interval, where the metric has one."
    unknown = [metric.title for metric in metrics if metric.name not in {row["metric"] for row in known}]
    unmeasured = [rung.rung for rung in summary.rungs if rung.rung not in rungs_of(summary, known)]
    missing = "; ".join(", ".join(names) for names in (unknown, unmeasured) if names)
    return f"{caption} Not known, so left out: {missing}." if missing else caption


def _heat_caption(metrics: tuple[MetricColumn, ...]) -> str:
    directions = {"higher": "more", "lower": "less"}
    judged = [(metric, better) for metric in metrics if (better := metric.metric.better) is not None]
    wanted = ", ".join(f"{directions[better]} {metric.plain_title}" for metric, better in judged)
    neutral = ", ".join(metric.plain_title for metric in metrics if metric.metric.better is None)
    return (
        "Darker is better: each metric is scaled from its worst precision to its best; the number is the real value. "
        f"Better is {wanted}. Grey: neither better nor worse ({neutral}), not known, or for all precisions within "
        f"{ABOUT_EQUAL:.0%} or in intervals that share a value. This is no correlation of metrics."
    )


def _bars(summary: Summary, metrics: tuple[MetricColumn, ...], rows: list[FigureRow]) -> Spec:
    rungs = rungs_of(summary, rows)
    tops = [row["value"] if row["high"] is None else row["high"] for row in rows]
    rows = [
        {**row, "panel": row["metric"], "short": format_raw(row["value"]) + row["cut"], "top": top}
        for row, top in zip(rows, tops, strict=True)
    ]
    panels = [
        _bar_panel(metric, rungs, max(row["top"] for row in rows if row["metric"] == metric.name))
        for metric in metrics
        if any(row["metric"] == metric.name for row in rows)
    ]
    # Flush bounds keep the panels' axes in line, whatever the length of their labels.
    spacing = {"row": 62, "column": _PANEL_GAP}
    return finish(joined("concat", panels, ("x", "y"), columns=2, bounds="flush", spacing=spacing), rows)


def _bar_panel(metric: MetricColumn, rungs: list[str], top: float) -> Spec:
    width = (PLOT_WIDTH - _PANEL_GAP) // 2
    base = panel(metric.name, width, 170, metric.column.header)
    step_px = width / len(rungs)
    x = rung_axis(rungs, step_px, inner=_GAP, outer=0.12)
    bar_px = step_px * (1 - _GAP)
    # Room above the highest bar for its number.
    domain = [0, top * 1.12 or 1]
    y = alt.Y("value:Q", title=metric.unit, scale=alt.Scale(domain=domain, nice=False), axis=alt.Axis(tickCount=5))
    bars = base.mark_bar().encode(
        x=x,
        y=y,
        color=in_colours(alt.Color, "rung:N", colours(rungs), legend=False),
        tooltip=tooltips(rung="precision", tooltip=metric.column.header),
    )
    return layered(
        bars,
        # Beside each other at the bar's top: a number at the end of a whisker reads as the height of that.
        *whiskers(base, right_px=_WHISKER_AT * bar_px, x=x),
        base.mark_text(dx=-_NUMBER_AT * bar_px, dy=-7, fontSize=11, color=INK).encode(
            x=x, y=alt.Y("value:Q", title=None), text=alt.Text("short:N")
        ),
        base.mark_rule(color=INK, strokeWidth=1).encode(y=alt.YDatum(0)),
    )


def _heat_map(metrics: tuple[MetricColumn, ...], rows: list[FigureRow]) -> Spec:
    rungs = list(dict.fromkeys(row["rung"] for row in rows))
    labels = {metric.name: wrap_label(metric.column.header, 24) for metric in metrics}
    values = []
    for metric in metrics:
        part = [row for row in rows if row["metric"] == metric.name]
        values_known = [None if _alike(part) else row["value"] for row in part]
        better = metric.metric.better
        places = [None] * len(part) if better is None else normalised(values_known, better)
        for row, goodness in zip(part, places, strict=True):
            fill, ink = _shade(goodness)
            values.append({**row, "title": metric.column.header, "fill": fill, "ink": ink})
    longest = max(len(rung) for rung in rungs)
    base = alt.Chart(
        ROWS,
        width=(PLOT_WIDTH - min(longest * 7, 200)) // len(metrics) * len(metrics),
        height=44 * len(rungs),
    ).encode(
        x=band_axis("metric:N", labels, "top", padding=0),
        y=alt.Y(
            "rung:N",
            title=None,
            sort=None,
            scale=alt.Scale(domain=rungs, padding=0),
            axis=alt.Axis(ticks=False, domain=False, labelPadding=8),
        ),
        tooltip=tooltips(rung="precision", title="metric", tooltip="value"),
    )
    cells = base.mark_rect(stroke=HALO, strokeWidth=2).encode(fill=alt.Fill("fill:N", scale=None))
    numbers = base.mark_text(fontSize=13).encode(text=alt.Text("text:N"), color=alt.Color("ink:N", scale=None))
    return finish(layered(cells, numbers), values)


def _alike(rows: list[FigureRow]) -> bool:
    """Whether all that is known of a metric are intervals that share a value."""
    known = [row for row in rows if row["value"] is not None]
    if any(row["low"] is None or row["high"] is None for row in known):
        return False
    return bool(known) and max(row["low"] for row in known) <= min(row["high"] for row in known)


def normalised(values: list[float | None], better: str) -> list[float | None]:
    """Each value's place between the worst (0) and the best (1); None where unknown, or where all are about equal."""
    known = [value for value in values if value is not None]
    if not known or max(known) - min(known) <= ABOUT_EQUAL * max(map(abs, known)):
        return [None] * len(values)
    worst, best = (min(known), max(known)) if better == "higher" else (max(known), min(known))
    return [None if value is None else (value - worst) / (best - worst) for value in values]


def _shade(goodness: float | None) -> tuple[str, str]:
    """Fill and text colour of a cell, with the better contrast of the two."""
    if goodness is None:
        return _UNCOLOURED, _DARK_TEXT
    channels = [round(worst + (best - worst) * goodness) for worst, best in zip(_WORST, _BEST, strict=True)]
    luminance = sum(
        weight * _linear(channel / 255) for weight, channel in zip((0.2126, 0.7152, 0.0722), channels, strict=True)
    )
    # WCAG 2 contrast ratios of white and of black text on that fill.
    light, dark = 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05
    return "#" + "".join(f"{channel:02x}" for channel in channels), _LIGHT_TEXT if light > dark else _DARK_TEXT


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)
