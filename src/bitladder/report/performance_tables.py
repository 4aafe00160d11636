"""Table 3, batch size 1, and Table 4, the largest batch: the study's columns, then what stands behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bitladder.records import Machine
from bitladder.report.performance_columns import AnyColumn, main_columns, metric_columns, run_columns
from bitladder.report.table import Cell, Table, text_cell, text_columns
from bitladder.summary.table import Summary

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
        header = (*text_columns("Precision"), *(column.column for column in columns))
        rows = tuple(
            (text_cell(rung.rung), *(column.cell(rung, rung.scenario(scenario)) for column in columns))
            for rung in summary.rungs
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
    return Table("totals-derived", "Total time for 200 and 2,000 requests, derived", columns, tuple(rows), notes)
