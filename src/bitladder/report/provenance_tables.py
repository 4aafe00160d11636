"""Where the figures come from: checkpoints, audit findings, settings, machine, versions."""

from __future__ import annotations

import json
from typing import Any

from bitladder.methods import method_of
from bitladder.records import (
    AccuracyTask,
    Audit,
    Gpu,
    Machine,
    ProductKernel,
    Scenario,
    Scoring,
    StudyRecord,
    join_scorings,
)
from bitladder.report.table import Cell, Column, Mark, Table, number_cell, text_cell, text_columns
from bitladder.results import device_title
from bitladder.results.store import Results
from bitladder.summary.table import RungSummary, Summary
from bitladder.units import MIB, counted, format_bytes, format_mib

_SEVERITY_MARKS: dict[str, Mark] = {"error": "bad", "warning": "warning", "info": "plain"}
_UNPACKED = {"INT8": "I8", "FP8": "F8_E4M3"}
"""how a file calls other libraries' types where each weight has a place of its own"""


def checkpoint_table(summary: Summary) -> Table:
    columns = (
        *text_columns("Precision", "What it is", "Stored", "Computed in", "The rest"),
        Column("Weights on disk", "MiB", interval=False),
        Column("Weights in memory", "MiB", interval=False),
        *text_columns("Audit", "Content hash"),
    )
    rows = tuple(_checkpoint_row(rung) for rung in summary.rungs)
    notes = (
        "The rest: embedding, norms and head, which are never quantized. Weights in memory: after one forward. "
        "Content hash: of the tensors alone, whatever else is in the files whose hash the settings name.",
    )
    return Table("checkpoints", "Checkpoints", columns, rows, notes)


def _checkpoint_row(rung: RungSummary) -> tuple[Cell, ...]:
    missing = "not loaded" if rung.audit else "not audited"
    why = f"{rung.rung}: {missing if rung.status == 'ok' else rung.reason or rung.status}"
    return (
        text_cell(rung.rung),
        text_cell(rung.title),
        *(_scheme_cells(rung.audit) if rung.audit else (text_cell(None, reason=why) for _ in range(3))),
        number_cell(rung.stored_bytes, format_mib, why, unit_size=MIB),
        number_cell(rung.loaded_bytes, format_mib, why, unit_size=MIB),
        _audit_cell(rung, why),
        text_cell(rung.content_hash[:12] if rung.content_hash else None, reason=None if rung.content_hash else why),
    )


def _scheme_cells(audit: Audit) -> tuple[Cell, ...]:
    scheme = audit.found or audit.declared
    packed = method_of(audit.declared).foreign and _UNPACKED.get(audit.declared.stored_type) != scheme.stored_type
    stored = f"{audit.declared.stored_type} in {scheme.stored_type}" if packed else scheme.stored_type
    stored += ", double quantization" if scheme.double_quantization else ""
    if scheme.int8_threshold is not None:
        stored += f", threshold {scheme.int8_threshold:g}"
    here = audit.computed_here
    computed = scheme.compute_type if here in (None, scheme.compute_type) else f"{scheme.compute_type}, here {here}"
    computed += f", inputs {scheme.activation_type}" if scheme.activation_type else ""
    return text_cell(stored), text_cell(computed), text_cell(scheme.rest_type)


def _audit_cell(rung: RungSummary, why: str) -> Cell:
    if rung.audit is None:
        return text_cell(None, reason=why)
    if not rung.audit.passed:
        return text_cell("failed", mark="bad", reason=f"{rung.rung}: {rung.reason}" if rung.reason else None)
    warnings = sum(finding.severity == "warning" for finding in rung.audit.findings)
    return text_cell(f"passed, {counted(warnings, 'warning')}" if warnings else "passed", mark="good")


def findings_tables(summary: Summary) -> list[Table]:
    """Errors and warnings, then the facts; a finding that several precisions share is one row."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for rung in summary.rungs:
        for finding in rung.audit.findings if rung.audit else ():
            found.setdefault((finding.severity, finding.check, finding.message), []).append(rung.rung)
    tables = [
        _findings_table("findings", "Findings: errors and warnings", found, ("error", "warning"), secondary=False),
        _findings_table("findings-facts", "Findings: facts", found, ("info",), secondary=True),
    ]
    return [table for table in tables if table.rows]


def _findings_table(
    name: str, title: str, found: dict[tuple[str, str, str], list[str]], severities: tuple[str, ...], *, secondary: bool
) -> Table:
    columns = text_columns("Severity", "Check", "Finding", "Precisions")
    chosen = sorted(
        ((key, rungs) for key, rungs in found.items() if key[0] in severities),
        key=lambda entry: severities.index(entry[0][0]),
    )
    rows = tuple(
        (
            text_cell(severity, mark=_SEVERITY_MARKS[severity]),
            text_cell(check.replace("_", " ")),
            text_cell(message),
            text_cell(", ".join(rungs)),
        )
        for (severity, check, message), rungs in chosen
    )
    return Table(name, title, columns, rows, secondary=secondary)


def scoring_table(summary: Summary) -> Table:
    """By what each precision was scored; tasks of the same kernels are one row."""
    titles = "Precision", "Tasks", "Attention", "Besides", "Rows of a forward", "Products of quantized layers"
    rows = []
    for rung in summary.rungs:
        alike: dict[tuple[Any, ...], list[Scoring | None]] = {}
        for scoring in rung.scoring.values():
            alike.setdefault(_scoring_key(scoring), []).append(scoring)
        rows += [_scoring_row(rung.rung, same) for same in alike.values()]
    notes: tuple[str, ...] = ()
    if any(one and one.kernels for rung in summary.rungs for one in rung.scoring.values()):
        notes = (
            "Products: how many, and of how many rows (tokens of a forward), by bitsandbytes' own rule for these rows. "
            "A deployment at batch 1 decodes with one row.",
        )
    title = "By what answers were scored"
    return Table("scoring", title, text_columns(*titles), tuple(rows), notes, secondary=True)


def _scoring_key(scoring: Scoring | None) -> tuple[Any, ...]:
    if scoring is None:
        return ()
    names = None if scoring.kernels is None else tuple(one.kernel for one in scoring.kernels)
    return scoring.attention, _besides(scoring), names, scoring.no_kernels_reason


def _scoring_row(rung: str, same: list[Scoring | None]) -> tuple[Cell, ...]:
    scoring = join_scorings(same)
    tasks = text_cell(counted(len(same), "task"))
    if scoring is None:
        unknown = text_cell(None, reason="measured before it was recorded")
        return text_cell(rung), tasks, unknown, unknown, unknown, unknown
    kernels = None
    if scoring.kernels is not None:
        kernels = "; ".join(map(_describe_kernel, scoring.kernels)) or "none quantized"
    all_known = "the journal of a study that was killed had all answers"
    return (
        text_cell(rung),
        tasks,
        text_cell("; ".join(scoring.attention) or None, reason=None if scoring.attention else all_known),
        text_cell(_besides(scoring) or "nothing"),
        text_cell(_describe_rows(scoring.least_rows, scoring.most_rows)),
        text_cell(
            kernels, reason=None if scoring.no_kernels_reason is None else f"{rung}: {scoring.no_kernels_reason}"
        ),
    )


def _besides(scoring: Scoring) -> str:
    said = {
        "beginnings shared": scoring.shared,
        "log-probabilities by our kernel": scoring.row_kernel,
        "norms, MLPs and rotary embeddings compiled": scoring.compiled,
        "16-bit products in FP32": scoring.widened,
    }
    found = [text for text, so in said.items() if so]
    if scoring.side_by_side is not None:
        found.append(f"up to {counted(scoring.side_by_side, 'text')} generated side by side")
    return ", ".join(found)


def _describe_kernel(one: ProductKernel) -> str:
    return f"{one.products:,} {one.kernel}, {_describe_rows(one.least_rows, one.most_rows)} rows"


def _describe_rows(least: int | None, most: int | None) -> str | None:
    if least is None or most is None:
        return None
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def settings_table(study: StudyRecord) -> Table:
    """The effective settings; those that were left open stand as what they became."""
    source = study.source
    values: dict[str, Any] = {
        **study.settings.model_dump(mode="json"),
        "add": [f"{name}: {added.title}" for name, added in study.added.items()],
        "suite": study.suite,
        "revision": source.revision,
        "device": device_title(study.calibration),
        "threads": study.calibration.threads,
        "max_batch_cap": study.calibration.max_batch_cap,
        "requests": [f"{item.scenario} {item.requests}" for item in study.items if isinstance(item, Scenario)],
        "baseline": study.baseline,
        **_engine(study),
        "source_files_hash": source.content_hash,
    }
    return _pairs("settings", "Effective settings", {name: _plain(value) for name, value in values.items()})


def _engine(study: StudyRecord) -> dict[str, list[str]]:
    """With its settings; nothing where none was asked for."""
    if study.settings.engine is None:
        return {}
    found = next((item.engine_settings for item in study.items if isinstance(item, AccuracyTask | Scenario)), ())
    return {"engine": [study.settings.engine, *(f"{name} {value}" for name, value in found)]}


def _plain(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def machines(results: Results) -> list[Machine]:
    """Every machine that measured, serial numbers aside; the calibrated one where nothing is measured yet."""
    found = {record.machine.identity: record.machine for record in results.records}
    return list(found.values()) or [results.study.calibration.machine]


def machine_table(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for machine in machines(results):
        gpus = "; ".join(map(_gpu_text, machine.gpus))
        texts = (
            f"{machine.cpu_model}, {machine.cpu_count} logical cores",
            format_bytes(machine.total_memory_bytes),
            gpus or (f"unknown ({machine.gpus_unknown})" if machine.gpus_unknown else "none"),
            machine.platform,
        )
        rows.append(tuple(text_cell(text) for text in texts))
    return Table("machine", "Machine", text_columns("CPU", "Memory", "GPU", "Platform"), tuple(rows))


def _gpu_text(gpu: Gpu) -> str:
    """A card, and why something isn't known of it."""
    memory = "memory unknown" if gpu.total_memory_bytes is None else format_bytes(gpu.total_memory_bytes)
    shown = ("name", "total_memory_bytes", "compute_capability", "driver")
    reasons = "; ".join(dict.fromkeys(gpu.unknown[field] for field in shown if field in gpu.unknown))
    return (
        f"{gpu.title}, {memory}, compute capability {gpu.compute_capability or 'unknown'}, "
        f"driver {gpu.driver or 'unknown'}"
    ) + (f" ({reasons})" if reasons else "")


def version_table(results: Results) -> Table:
    """Library versions; several where machines differ."""
    versions: dict[str, list[str]] = {}
    for machine in machines(results):
        for name, version in machine.versions.items():
            versions.setdefault(name, []).append(version)
    return _pairs(
        "versions", "Versions", {name: ", ".join(dict.fromkeys(found)) for name, found in sorted(versions.items())}
    )


def _pairs(name: str, title: str, values: dict[str, str]) -> Table:
    rows = tuple((text_cell(key), text_cell(value)) for key, value in values.items())
    return Table(name, title, text_columns("Name", "Value"), rows, secondary=True)
