"""Table 3, batch size 1, and Table 4, the largest batch: the study's columns, then what stands behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitladder.records import Machine, hash_json
from bitladder.report.performance_columns import (
    DERIVED_COLUMNS,
    ENERGY_COLUMNS,
    FULL_BATCH_COLUMNS,
    LATENCY_COLUMNS,
    RUN_COLUMNS,
    TOKEN_COLUMNS,
    AnyColumn,
    main_columns,
    memory_columns,
)
from bitladder.report.table import Cell, Column, Table, text_cell
from bitladder.stats.summary import RungSummary, Summary

SCENARIOS: dict[str, tuple[int, str]] = {"batch1": (3, "batch size 1"), "max-batch": (4, "largest batch")}
"""scenario -> its table's number and name"""


@dataclass(frozen=True)
class MachineGroup:
    """The rungs that one scenario was measured on by one machine; a table never mixes machines."""

    scenario: str
    machine: Machine
    rungs: tuple[RungSummary, ...]

    @property
    def title(self) -> str:
        return ", ".join([*(gpu.name for gpu in self.machine.gpus), self.machine.cpu_model])


def machine_key(machine: Machine) -> str:
    """Hardware, driver and versions, never serial numbers."""
    gpus = [gpu.model_dump(exclude={"serial"}) for gpu in machine.gpus]
    return hash_json([gpus, machine.cpu_model, machine.versions])


def machine_groups(summary: Summary, scenario: str) -> list[MachineGroup]:
    """The scenario's rungs by machine; those that no machine measured stand with the first."""
    machines: dict[str, Machine] = {}
    keys: dict[str, str | None] = {}
    for rung in summary.rungs:
        measured = rung.scenario(scenario)
        machine = measured.machine if measured else None
        keys[rung.rung] = machine_key(machine) if machine else None
        if machine:
            machines.setdefault(machine_key(machine), machine)
    first = next(iter(machines), None)
    return [
        MachineGroup(scenario, machine, tuple(rung for rung in summary.rungs if (keys[rung.rung] or first) == key))
        for key, machine in machines.items()
    ]


def performance_tables(summary: Summary, scenario: str, on_gpu: bool) -> list[Table]:
    """The tables of one scenario; none where nothing of it was measured."""
    groups = machine_groups(summary, scenario)
    tables: list[Table] = []
    for index, group in enumerate(groups):
        where = SCENARIOS[scenario][1] + (f", on {group.title}" if len(groups) > 1 else "")
        tables += _group_tables(group, where, "" if index == 0 else f"-machine{index + 1}", on_gpu)
    return tables


def _group_tables(group: MachineGroup, where: str, suffix: str, on_gpu: bool) -> list[Table]:
    number = SCENARIOS[group.scenario][0]

    def table(letter: str, title: str, columns: Sequence[AnyColumn], *notes: str) -> Table:
        header = (Column("Precision", numeric=False), *(column.column for column in columns))
        rows = tuple(
            (text_cell(rung.rung), *(column.cell(rung, rung.scenario(group.scenario)) for column in columns))
            for rung in group.rungs
        )
        title = f"Table {number}{letter}. {title}: {where}"
        return Table(f"table{number}{letter}{suffix}", title, header, rows, notes, secondary=letter > "b")

    full_batches = FULL_BATCH_COLUMNS if group.scenario == "max-batch" else ()
    tables = [
        table("", "Performance", main_columns(on_gpu), *_main_notes(group.scenario, on_gpu)),
        table("b", "What was run", RUN_COLUMNS, *_run_notes(group)),
        table(
            "c",
            "Token times",
            (*TOKEN_COLUMNS, *full_batches),
            "Per output token: (end to end - first token) / (new tokens - 1). Gap: between two tokens of one request.",
        ),
        table("d", "Request latency", LATENCY_COLUMNS),
        table("e", "Memory", memory_columns(on_gpu)),
    ]
    return [*tables, table("f", "Power", ENERGY_COLUMNS)] if on_gpu else tables


def _main_notes(scenario: str, on_gpu: bool) -> list[str]:
    notes = ["Brackets: 95% interval. Speed-up: requests/s divided by the baseline's."]
    if on_gpu:
        notes.append("VRAM: average of device memory less idle, as the study sampled it. Allocated: by PyTorch.")
    else:
        notes.append("Memory: resident size of the process. CPU utilisation: 100 is one busy core.")
    if scenario == "max-batch":
        notes.append(
            "Inverse throughput is what the study calls latency at the largest batch; no request is that fast."
        )
    return notes


def _run_notes(group: MachineGroup) -> list[str]:
    """What the summary says of each run; one line for what is true of several rungs."""
    rungs_of: dict[str, list[str]] = {}
    for rung in group.rungs:
        measured = rung.scenario(group.scenario)
        for note in measured.notes if measured else ():
            rungs_of.setdefault(note, []).append(rung.rung)
    return [f"{', '.join(rungs)}: {note}" for note, rungs in rungs_of.items()]


def derived_table(summary: Summary) -> Table | None:
    """Totals for the study's 200 and 2,000 requests; None where there is no rate to derive them from."""
    rows: list[tuple[Cell, ...]] = []
    for scenario, (_, name) in SCENARIOS.items():
        for group in machine_groups(summary, scenario):
            for rung in group.rungs:
                cells = [column.cell(rung, rung.scenario(scenario)) for column in DERIVED_COLUMNS]
                if any(cell.value is not None for cell in cells):
                    rows.append((text_cell(name), text_cell(group.title), text_cell(rung.rung), *cells))
    if not rows:
        return None
    labels = (Column(title, numeric=False) for title in ("Scenario", "Machine", "Precision"))
    columns = (*labels, *(column.column for column in DERIVED_COLUMNS))
    notes = ("Requests divided by the measured requests/s. Not run: the measured totals are in Tables 3 and 4.",)
    return Table("totals-derived", "Total time for 200 and 2,000 requests, derived", columns, tuple(rows), notes)
