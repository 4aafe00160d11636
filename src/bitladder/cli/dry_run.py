"""The plan of a study, with what it is expected to take."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bitladder.records import AccuracyTask, Settings, StudyRecord
from bitladder.stats.power import POWER, Resolution, resolutions
from bitladder.stats.summarize import default_margin_points
from bitladder.store import Store
from bitladder.study.estimate import estimate_study
from bitladder.study.prepare import prepare
from bitladder.units import UNKNOWN, format_bytes, format_count, format_seconds, points_text


def print_plan(settings: Settings, out: Path, json_output: bool) -> None:
    """Resolve, calibrate, plan and estimate; nothing is quantized, measured or written to ``out``."""
    from bitladder.models.source import resolve_model

    prepared = prepare(settings, Store(out))
    study = prepared.study
    estimates = estimate_study(study, resolve_model(settings.model, settings.revision).directory, prepared.added)
    margin_points = default_margin_points(study.suite)
    resolved = _resolutions(study, margin_points)
    if json_output:
        plan = {
            "study": study.model_dump(mode="json"),
            "estimates": [asdict(estimate) for estimate in estimates],
            "margin_points": margin_points,
            "resolutions": [one.model_dump(mode="json") for one in resolved],
        }
        print(json.dumps(plan, indent=2))
        return
    console = Console(highlight=False)
    names = [item.task if isinstance(item, AccuracyTask) else item.scenario for item in study.items]
    console.print(f"{len(study.rungs)} rungs x {len(names)} measurements on {study.calibration.device}:")
    console.print(f"  {', '.join(names)}", markup=False)
    table = Table("rung", "disk", "memory", "quantize", "accuracy", "performance", box=None)
    for estimate in estimates:
        table.add_row(
            estimate.rung,
            format_bytes(estimate.disk_bytes),
            UNKNOWN if estimate.memory_bytes is None else format_bytes(estimate.memory_bytes),
            *(
                UNKNOWN if seconds is None else format_seconds(seconds)
                for seconds in (estimate.quantize_s, estimate.accuracy_s, estimate.performance_s)
            ),
        )
    console.print(table)
    disk = format_bytes(sum(estimate.disk_bytes for estimate in estimates))
    unknown = [estimate.rung for estimate in estimates if estimate.total_s is None]
    time = format_seconds(sum(estimate.total_s or 0.0 for estimate in estimates))
    without = f", without {', '.join(unknown)}, whose formats were not timed" if unknown else ""
    console.print(f"in all about {disk} of disk and {time}{without}; times are within about a factor of two")
    if resolved:
        _print_resolutions(console, resolved, len(study.rungs) - 1, margin_points)


def _resolutions(study: StudyRecord, margin_points: float) -> tuple[Resolution, ...]:
    """None where accuracy is not planned, or nothing is held against the baseline."""
    from bitladder.accuracy.library import task_library

    items = {item.task: item for item in study.items if isinstance(item, AccuracyTask)}
    groups = [group for group in study.groups if group.in_aggregate and items.keys() >= set(group.tasks)]
    if not groups or len(study.rungs) < 2:
        return ()
    library = task_library(study.settings)
    counts = {name: library.count(name, item.limit) for name, item in items.items()}
    documents = [
        (sum if group.pooling == "documents" else min)(counts[task] for task in group.tasks) for group in groups
    ]
    return resolutions(documents, len(study.rungs) - 1, margin_points / 100)


def _print_resolutions(console: Console, resolved: tuple[Resolution, ...], rungs: int, margin_points: float) -> None:
    console.print(
        f"what accuracy can show of rungs equal to the baseline, {rungs} judged together, with {POWER:.0%} power:"
    )
    table = Table(
        "answers changed", "margin", f"documents for {points_text(margin_points)}", "by the textbook", box=None
    )
    for one in resolved:
        table.add_row(
            f"{one.changed_share:.0%}",
            f"{100 * one.resolvable_margin:.2f} points",
            format_count(one.documents),
            format_count(one.documents_many_changes),
        )
    console.print(table)
    console.print(
        "documents: of one task, with the variance that a difference on the margin has; the textbook's formula leaves "
        "it out and promises power that there is not. Documents that resemble each other (of one template) resolve less"
    )
