"""The plan of a study, with what it is expected to take."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bitladder.records import AccuracyTask, Settings
from bitladder.store import Store
from bitladder.study.estimate import estimate_study
from bitladder.study.prepare import prepare
from bitladder.units import UNKNOWN, format_bytes, format_seconds


def print_plan(settings: Settings, out: Path, json_output: bool) -> None:
    """Resolve, calibrate, plan and estimate; nothing is quantized, measured or written to ``out``."""
    from bitladder.models.source import resolve_model

    prepared = prepare(settings, Store(out))
    study = prepared.study
    estimates = estimate_study(study, resolve_model(settings.model, settings.revision).directory, prepared.added)
    if json_output:
        plan = {"study": study.model_dump(mode="json"), "estimates": [asdict(estimate) for estimate in estimates]}
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
