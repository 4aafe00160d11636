"""Table 3, batch size 1, and Table 4, the largest batch: the rows of `metrics.METRICS` as columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bitladder.records import Machine
from bitladder.records.base import Unknown
from bitladder.report.table import Cell, Column, Table, estimate_cell, number_cell, text_cell, text_columns
from bitladder.summary.metrics import METRICS, Metric, PerformanceTable, ReportColumn
from bitladder.summary.table import Estimate, RungSummary, ScenarioSummary, Summary, describe_status
from bitladder.units import format_count


@dataclass(frozen=True)
class ScenarioColumn:
    """A column, and how a rung's scenario (None: not there) fills it."""

    column: Column
    cell: Callable[[RungSummary, ScenarioSummary | None], Cell]


@dataclass(frozen=True)
class MetricColumn:
    """A metric at one of its places."""

    metric: Metric
    place: ReportColumn

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
    if measured.status == "ok":
        return None
    return f"{rung.rung}: {measured.reason or describe_status(measured.status, None)}"


def _count(title: str, unit: str | None, field: Callable[[ScenarioSummary], int | None]) -> ScenarioColumn:
    def cell(rung: RungSummary, measured: ScenarioSummary | None) -> Cell:
        reason = absence(rung, measured)
        return number_cell(field(measured) if measured and not reason else None, format_count, reason)

    return ScenarioColumn(Column(title, unit, interval=False), cell)


def _status_cell(rung: RungSummary, measured: ScenarioSummary | None) -> Cell:
    reason = absence(rung, measured)
    return text_cell(
        describe_status(measured.status, None) if measured else None,
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


SCENARIOS: dict[str, tuple[int, str]] = {"batch1": (3, "batch size 1"), "max-batch": (4, "largest batch")}
"""scenario -> its table's number and name"""


def scenario_machine(summary: Summary, scenario: str) -> Machine | None:
    """The machine that measured a scenario; None where nothing of it was measured. A summary has no two."""
    measured = (rung.scenario(scenario) for rung in summary.rungs)
    return next((found.machine for found in measured if found and found.machine), None)


def performance_tables(summary: Summary, scenario: str, on_gpu: bool) -> list[Table]:
    """The tables of one scenario; none where nothing of it was measured."""
    if scenario_machine(summary, scenario) is None:
        return []
    number, where = SCENARIOS[scenario]

    def table(letter: str, title: str, columns: Sequence[AnyColumn], *notes: str) -> Table:
        cells = [[column.cell(rung, rung.scenario(scenario)) for rung in summary.rungs] for column in columns]
        told = [index for index, own in enumerate(cells) if any(cell.value != 0 for cell in own)]  # a 0 for all is none
        header = (*text_columns("Precision"), *(columns[index].column for index in told))
        rows = tuple(
            (text_cell(rung.rung), *(cells[index][place] for index in told)) for place, rung in enumerate(summary.rungs)
        )
        title = f"Table {number}{letter}. {title}: {where}"
        return Table(f"table{number}{letter}", title, header, rows, notes, secondary=letter > "b")

    columns_of = partial(metric_columns, scenario=scenario, on_gpu=on_gpu)
    tables = [
        table("", "Performance", main_columns(scenario, on_gpu), *_main_notes(scenario, on_gpu)),
        table("b", "What was run", run_columns(scenario, on_gpu), *_run_notes(summary, scenario)),
        table(
            "c",
            "Token times",
            columns_of("tokens"),
            "Per output token: (end to end - first token) / (new tokens - 1). Gap: between two tokens of one request.",
        ),
        table("d", "Request latency", columns_of("latency")),
        table("e", "Memory", columns_of("memory")),
    ]
    return [*tables, table("f", "Power", columns_of("power"))] if on_gpu else tables


def _main_notes(scenario: str, on_gpu: bool) -> list[str]:
    notes = [
        "Brackets: 95% interval, of the batches of one run: another hour or machine may differ by more. Speed-up: "
        "requests/s divided by the baseline's."
    ]
    if on_gpu:
        notes.append("VRAM: average of device memory less idle, as the study sampled it. Allocated: by PyTorch.")
    else:
        notes.append("Memory: resident size of the process, libraries included. CPU utilisation: 100 is one busy core.")
    if scenario == "max-batch":
        notes.append(
            "Inverse throughput is what the study calls latency at the largest batch; no request is that fast."
        )
    return notes


def _run_notes(summary: Summary, scenario: str) -> list[str]:
    """What the summary says of each run; one line for what is true of several rungs."""
    rungs_of: dict[str, list[str]] = {}
    for rung in summary.rungs:
        measured = rung.scenario(scenario)
        for note in measured.notes if measured else ():
            rungs_of.setdefault(note, []).append(rung.rung)
    return [f"{', '.join(rungs)}: {note}" for note, rungs in rungs_of.items()]


def derived_table(summary: Summary) -> Table | None:
    """Totals for the study's 200 and 2,000 requests; None where there is no rate to derive them from."""
    totals = metric_columns("totals")
    rows: list[tuple[Cell, ...]] = []
    for scenario, (_, name) in SCENARIOS.items():
        machine = scenario_machine(summary, scenario)
        if machine is None:
            continue
        hardware = ", ".join([*(gpu.title for gpu in machine.gpus), machine.cpu_model])
        for rung in summary.rungs:
            cells = [column.cell(rung, rung.scenario(scenario)) for column in totals]
            if any(cell.value is not None for cell in cells):
                rows.append((text_cell(name), text_cell(hardware), text_cell(rung.rung), *cells))
    if not rows:
        return None
    columns = (*text_columns("Scenario", "Machine", "Precision"), *(column.column for column in totals))
    notes = ("Requests divided by the measured requests/s. Not run: the measured totals are in Tables 3 and 4.",)
    return Table(
        "totals-derived", "Total time for 200 and 2,000 requests, derived", columns, tuple(rows), notes, secondary=True
    )
