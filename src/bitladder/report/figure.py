"""A figure: one Altair specification that becomes SVG, PNG and an interactive chart, with the look all six share."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import altair as alt
import vl_convert

from bitladder.methods import RUNGS
from bitladder.summary.table import Summary
from bitladder.text.words import printable

PLOT_WIDTH = 760
"""pixels inside the axes of a full-width panel; with its axis it fits a page of 900"""
CHARACTER_PX = 6.4
"""width of an average character of an axis label"""
_TITLE_CHARACTERS = 32
"""of a panel's title, a line at least"""
_LINE_PX = 15
PNG_PIXELS_PER_INCH = 144
INK = "#1f2933"
HALO = "#ffffff"
"""rim of whiskers on dark bars; the page recolours it, and INK and GRID, for a dark background"""
GRID = "#d8dde3"
FONT = "Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"

# Okabe and Ito's colours (2008), told apart with every common colour blindness; black became grey for dark pages.
_LADDER_COLOURS = ("#7f7f7f", "#0072b2", "#56b4e9", "#e69f00", "#f0e442", "#d55e00", "#009e73", "#cc79a7")
# For rungs outside the ladder: Tol's muted scheme (2021).
_OTHER_COLOURS = ("#882255", "#44aa99", "#999933", "#332288", "#ddcc77", "#aa4499")

FigureRow = dict[str, Any]
Channel = TypeVar("Channel", alt.Color, alt.Stroke)
ROWS = alt.NamedData("rows")
"""the data of every chart, put in by `finish`: Altair would copy and check them once a layer"""
Spec = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """``spec`` is Vega-Lite; ``caption`` says what the marks mean."""

    name: str
    title: str
    caption: str
    spec: Spec

    @functools.cached_property
    def svg(self) -> str:
        return str(vl_convert.vegalite_to_svg(self.spec))

    @functools.cached_property
    def png(self) -> bytes:
        return bytes(vl_convert.svg_to_png(self.svg, ppi=PNG_PIXELS_PER_INCH))


@dataclass(frozen=True)
class MissingFigure:
    """A figure without data, and why."""

    name: str
    title: str
    reason: str


def colours(rungs: Sequence[str]) -> dict[str, str]:
    """One colour a rung; a ladder's rung has the same one in every figure and report."""
    known = dict(zip(RUNGS, _LADDER_COLOURS, strict=False))
    others = [rung for rung in rungs if rung not in known]
    known |= {rung: _OTHER_COLOURS[index % len(_OTHER_COLOURS)] for index, rung in enumerate(others)}
    return {rung: known[rung] for rung in rungs}


def in_colours(channel: type[Channel], field: str, colour_of: Mapping[str, str], *, legend: bool = True) -> Channel:
    """Fill or stroke in the colour of each value; the legend, where there is one, is on top."""
    names = alt.Legend(title=None, orient="top", direction="horizontal", columns=len(colour_of), symbolType="square")
    scale = alt.Scale(domain=list(colour_of), range=list(colour_of.values()))
    return channel(field, sort=None, scale=scale, legend=names if legend else None)


def label_axis(labels: Mapping[str, str], orient: Literal["bottom", "top"] = "bottom") -> alt.Axis:
    """A band axis without ticks that prints each value's label, of several lines where it has line breaks."""
    lines = {printable(value): printable(label).split("\n") for value, label in labels.items()}
    # Vega hangs a top axis' further lines down into the plot.
    below_px = _LINE_PX * (max(map(len, lines.values())) - 1) if orient == "top" else 0
    return alt.Axis(
        orient=orient,
        labelAngle=0,
        labelExpr=f"{json.dumps(lines)}[datum.value]",
        labelLineHeight=_LINE_PX,
        labelPadding=8 + below_px,
        ticks=False,
        domain=False,
    )


def whiskers(base: alt.Chart, right_px: float = 0, **channels: Any) -> list[alt.Chart]:
    """The interval of each row that has ``low`` and ``high``, as a dark line with a light rim, right of its x."""
    known = base.transform_filter("isValid(datum.low)").encode(
        y=alt.Y("low:Q", title=None), y2=alt.Y2("high:Q"), **channels
    )
    return [
        known.mark_rule(color=HALO, strokeWidth=2.8, opacity=0.6, xOffset=right_px),
        known.mark_rule(color=INK, strokeWidth=1.2, xOffset=right_px),
    ]


def panel(name: str, width: int, height: int, title: str) -> alt.Chart:
    """The start of a chart that shows the figure's rows whose ``panel`` is that name."""
    lines = wrap_label(title, max(_TITLE_CHARACTERS, int(width / CHARACTER_PX)), lines=4).split("\n")
    chart = alt.Chart(ROWS, width=width, height=height, title=lines if len(lines) > 1 else title)
    return chart.transform_filter(f"datum.panel === {json.dumps(printable(name))}")


def layered(*layers: alt.Chart) -> Spec:
    """The charts over each other, as Vega-Lite."""
    # Checking against the schema takes longer than drawing; tests count what is drawn.
    return _composed("layer", [layer.to_dict(validate=False) for layer in layers], ("width", "height"))


def joined(
    how: Literal["concat", "vconcat"], panels: Sequence[Spec], independent: Sequence[str], **layout: Any
) -> Spec:
    """The panels beside or under each other, each with its own ``independent`` scales."""
    return {
        **_composed(how, panels),
        "resolve": {"scale": dict.fromkeys(independent, "independent")},
        **layout,
    }


def _composed(how: str, parts: Sequence[Spec], shared: Sequence[str] = ()) -> Spec:
    """What Altair composes too, but with copies of every part, for which it takes several times as long."""
    top = ("$schema", "config", "data", *shared)
    below = [{name: value for name, value in part.items() if name not in top} for part in parts]
    return {**{name: parts[0][name] for name in top}, how: below}


def finish(spec: Spec, rows: Sequence[FigureRow]) -> Spec:
    """The chart of these rows in the common look. A control in it would end the process: vl-convert panics."""
    text = {"labelColor": INK, "titleColor": INK, "labelFont": FONT, "titleFont": FONT}
    spec = _printable({**spec, "datasets": {ROWS.name: list(rows)}})
    spec["background"] = "white"
    spec["padding"] = 10
    spec["config"] = {
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **text,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "gridColor": GRID,
            "domainColor": GRID,
            "tickColor": GRID,
            "labelLimit": 260,
        },
        "legend": {**text, "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 200},
        "title": {
            "color": INK,
            "font": FONT,
            "fontSize": 13,
            "fontWeight": 600,
            "anchor": "start",
            "frame": "group",
            "offset": 8,
        },
        "text": {"font": FONT, "fontSize": 12},
        "concat": {"spacing": 24},
    }
    return spec


def _printable(value: Any) -> Any:
    """A specification with every text in it `printable`."""
    if isinstance(value, Mapping):
        return {key: _printable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(one) for one in value]
    return printable(value) if isinstance(value, str) else value


def rung_axis(rungs: Sequence[str], step_px: float, *, inner: float, outer: float) -> alt.X:
    """A band a rung, in their order, with labels that fit ``step_px``; padding in shares of a band."""
    labels = {rung: wrap_label(rung, max(5, int(step_px / CHARACTER_PX))) for rung in rungs}
    return band_axis("rung:N", labels, paddingInner=inner, paddingOuter=outer)


def band_axis(
    field: str, labels: Mapping[str, str], orient: Literal["bottom", "top"] = "bottom", **padding: Any
) -> alt.X:
    """A band for each of the labelled values, in their order."""
    scale = alt.Scale(domain=list(labels), **padding)
    return alt.X(field, title=None, sort=None, scale=scale, axis=label_axis(labels, orient))


def tooltips(**titles: str) -> list[alt.Tooltip]:
    """Of each field of a row, under its title."""
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def rungs_of(summary: Summary, rows: Sequence[FigureRow]) -> list[str]:
    """Those that there are rows of, in the study's order."""
    return [rung.rung for rung in summary.rungs if any(row["rung"] == rung.rung for row in rows)]


def wrap_label(text: str, width: int, lines: int = 3) -> str:
    """Break a label at spaces, hyphens and underscores into lines of ``width`` characters; cut after ``lines``."""
    wrapped = [""]
    for word in re.findall(r"[^\s_/-]+[\s_/-]*|[\s_/-]+", text):
        for start in range(0, len(word), width):
            part = word[start : start + width]
            if len(wrapped[-1]) + len(part.rstrip()) > width and wrapped[-1]:
                wrapped.append("")
            wrapped[-1] += part
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1].rstrip()[: width - 1] + "…"]
    return "\n".join(line.rstrip() for line in wrapped)


def chunks(count: int, largest: int) -> list[range]:
    """``count`` places in as few rows of nearly equal length as ``largest`` allows."""
    rows = -(-count // largest)
    return [range(row * count // rows, (row + 1) * count // rows) for row in range(rows)]
