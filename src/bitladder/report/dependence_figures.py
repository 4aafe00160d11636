"""Figure 7, the share of choices that depend on the batch, by precision and way of scoring."""

from __future__ import annotations

import altair as alt

from bitladder.report.figure import (
    INK,
    PLOT_WIDTH,
    Figure,
    MissingFigure,
    Row,
    finish,
    in_colours,
    layered,
    panel,
    rung_axis,
    tooltips,
    whiskers,
)
from bitladder.report.table import estimate_cell
from bitladder.summary.table import DependenceSummary, Summary
from bitladder.units import format_percent

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


def _rows(found: DependenceSummary) -> list[Row]:
    changes = (found.second_plan, found.batch1, found.cached, found.steps, found.against_baseline)
    rows: list[Row] = []
    for way, change in zip(_WAYS, changes, strict=True):
        if change is None or change.percent.value is None:
            continue
        cell = estimate_cell(change.percent, format_percent)
        text = f"{cell.text} {cell.interval}, {change.changed} of {change.documents:,}"
        rows.append({"way": way, **change.percent.model_dump(exclude={"reason"}), "text": text})
    return rows
