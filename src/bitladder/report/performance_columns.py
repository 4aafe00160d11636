"""The columns of Tables 3 and 4: the rows of `metrics.METRICS`, and what else is told of a scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitladder.report.table import Cell, Column, estimate_cell, number_cell, text_cell
from bitladder.summary.metrics import METRICS, Metric, PerformanceTable, Place
from bitladder.summary.table import Estimate, RungSummary, ScenarioSummary, describe_end
from bitladder.units import format_count
from bitladder.unknown import Unknown


@dataclass(frozen=True)
class ScenarioColumn:
    """A column, and how a rung's scenario (None: not there) fills it."""

    column: Column
    cell: Callable[[RungSummary, ScenarioSummary | None], Cell]


@dataclass(frozen=True)
class MetricColumn:
    """A metric at one of its places."""

    metric: Metric
    place: Place

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def title(self) -> str:
        return self.place.title

    @property
    def unit(self) -> str:
        return self.place.unit or self.metric.quantity.unit

    @property
    def column(self) -> Column:
        explained = ": ".join(filter(None, (self.metric.title, self.metric.definition)))
        return Column(self.title, self.unit, help=explained)

    @property
    def plain_title(self) -> str:
        """The title within a sentence."""
        return self.title if self.title[:2].isupper() else self.title[0].lower() + self.title[1:]

    def cell(self, rung: RungSummary, measured: ScenarioSummary | None) -> Cell:
        quantity = self.metric.quantity
        return estimate_cell(self.estimate(rung, measured), quantity.column, unit_size=quantity.unit_size)

    def estimate(self, rung: RungSummary, measured: ScenarioSummary | None) -> Estimate:
        """The metric, or why there is none."""
        reason = absence(rung, measured)
        if reason is not None:
            return Estimate.unknown(Unknown(reason))
        assert measured is not None  # else there is a reason
        return measured.metric(self.name)


AnyColumn = ScenarioColumn | MetricColumn


def absence(rung: RungSummary, measured: ScenarioSummary | None) -> str | None:
    """Why a scenario has no figures; None where it ended well."""
    if measured is None:
        return f"{rung.rung}: {rung.reason or 'not measured'}"
    return None if measured.status == "ok" else f"{rung.rung}: {measured.reason or describe_end(measured.status, None)}"


def _count(title: str, unit: str | None, field: Callable[[ScenarioSummary], int | None]) -> ScenarioColumn:
    def cell(rung: RungSummary, measured: ScenarioSummary | None) -> Cell:
        reason = absence(rung, measured)
        return number_cell(field(measured) if measured and not reason else None, format_count, reason)

    return ScenarioColumn(Column(title, unit, interval=False), cell)


def _status_cell(rung: RungSummary, measured: ScenarioSummary | None) -> Cell:
    reason = absence(rung, measured)
    return text_cell(
        describe_end(measured.status, None) if measured else None,
        mark="bad" if measured and measured.status not in ("ok", "missing") else "plain",
        reason=reason,
    )


def _stop_cell(rung: RungSummary, measured: ScenarioSummary | None) -> Cell:
    stopped_by = measured.stopped_by if measured else None
    return text_cell(
        stopped_by.replace("_", " ") if stopped_by else None,
        reason=absence(rung, measured) if stopped_by is None else None,
    )


def metric_columns(
    table: PerformanceTable, scenario: str | None = None, on_gpu: bool | None = None
) -> tuple[MetricColumn, ...]:
    """Those of one table, in the order of the metrics; of a table of all scenarios and machines both are None."""
    device = None if on_gpu is None else "gpu" if on_gpu else "cpu"
    return tuple(
        MetricColumn(metric, place)
        for metric in METRICS.values()
        for place in metric.shown
        if place.table == table and place.on in (None, device) and place.scenario in (None, scenario)
    )


def drawn_columns(scenario: str, on_gpu: bool) -> tuple[MetricColumn, ...]:
    """What the study's figures show of a scenario: throughput, latency, utilisation, memory."""
    return tuple(column for column in metric_columns("main", scenario, on_gpu) if column.place.drawn)


def main_columns(scenario: str, on_gpu: bool) -> tuple[AnyColumn, ...]:
    """The number of requests stands beside their total time."""
    requests = _count("Requests", None, lambda measured: measured.requests)
    columns: list[AnyColumn] = []
    for column in metric_columns("main", scenario, on_gpu):
        columns += [column, requests] if column.name == "total_time_s" else [column]
    return tuple(columns)


def run_columns(scenario: str, on_gpu: bool) -> tuple[AnyColumn, ...]:
    return (
        ScenarioColumn(Column("Status", numeric=False), _status_cell),
        _count("Batch size", "requests", lambda measured: measured.batch_size),
        _count("Requests", None, lambda measured: measured.requests),
        _count("Tokens in", "per request", lambda measured: measured.prompt_tokens),
        _count("Tokens out", "per request", lambda measured: measured.new_tokens),
        ScenarioColumn(Column("Stopped by", numeric=False), _stop_cell),
        *metric_columns("run", scenario, on_gpu),
    )
