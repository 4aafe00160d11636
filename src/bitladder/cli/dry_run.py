"""The plan of a study, with what it is expected to take."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from bitladder.cli.progress import TerminalProgress, libraries_on_stderr
from bitladder.cli.terminal import Terminal
from bitladder.executors.table import open_executor
from bitladder.machine.cards import could_have_cards
from bitladder.machine.host import BUSY_SHARE, busy_share
from bitladder.methods.method import describe_kept
from bitladder.perf.memory import OVERHEAD, measure_overhead, resident_bytes, unknown_overhead
from bitladder.records import Settings, StudyRecord
from bitladder.records.study import ASKED_FROM_S
from bitladder.results import device_title, item_name, not_measured_as
from bitladder.results.stages import Staging, measured_items
from bitladder.results.store import Store
from bitladder.stats.power import POWER, Resolution
from bitladder.study.estimate import RungEstimate, estimate_study
from bitladder.study.messages import busy_warning
from bitladder.study.plan import Kept, Missing, plan_resolutions
from bitladder.study.prepare import prepare
from bitladder.study.time_left import TimeLeft, advise
from bitladder.summary.metrics import study_margin_points
from bitladder.units import counted, format_bytes, format_count, format_seconds, points_text


def print_plan(settings: Settings, out: Path, json_output: bool) -> None:
    """Resolve, calibrate, plan and estimate; nothing is quantized, measured or written to ``out``."""
    from bitladder.study.run import require_study_folder

    require_study_folder(out)
    with (
        libraries_on_stderr(),
        TerminalProgress() as progress,
        tempfile.TemporaryDirectory(prefix="bitladder-plan-") as scratch,
        open_executor(
            OVERHEAD,
            Path(scratch) / "log",
            with_gpu=could_have_cards(),
            trust_remote_code=settings.trust_remote_code,
        ) as executor,
    ):
        busy = busy_share()
        if busy > BUSY_SHARE:
            progress.warn(busy_warning(busy))
        # only then does a worker start: its imports beside the timing of layers made those up to 20 times too slow
        prepared = prepare(settings, Store(out), progress, outline=Path(scratch))
        study = prepared.study
        progress.preparing("estimating disk, memory and time")
        wanted, device = prepared.wanted, study.calibration.device
        overhead_bytes = measure_overhead(executor, device, (study.baseline, *wanted.rungs), wanted.engine.name)
        estimates = estimate_study(prepared, overhead_bytes)
        margin_points = study_margin_points(study)
        missing = Missing(study, Kept(Store(out), study))
        same = missing.same
        resolved = plan_resolutions(study, wanted.tasks.sources, len(same))
        missing.bind_baseline()
        # what the study itself will say to what is left of it, where it will ask whether it is meant
        left = TimeLeft(missing.study, estimates, missing.by_rung)
        advice = advise(missing.study, wanted.tasks.sources, left, ASKED_FROM_S)
    if json_output:
        plan = {
            "study": study.model_dump(mode="json"),
            "overhead_bytes": overhead_bytes,
            "estimates": [asdict(estimate) for estimate in estimates],
            "margin_points": margin_points,
            "resolutions": [one.model_dump(mode="json") for one in resolved],
        }
        print(json.dumps(plan, indent=2))
    else:
        show_plan(study, estimates, overhead_bytes, resolved, recorded=missing.recorded, same=same)
        if advice is not None:
            print(f"without --yes the study won't begin: {advice}{_counted_as(study, estimates, same)}")


def show_plan(
    study: StudyRecord,
    estimates: Sequence[RungEstimate],
    overhead_bytes: Mapping[str, int],
    resolved: tuple[Resolution, ...] = (),
    *,
    recorded: int = 0,
    same: Mapping[str, str] | None = None,
) -> None:
    """The plan on stdout. ``recorded``: measurements of it that are done; ``same``: rungs that are known to have the
    content of another, which none of the rest counts."""
    same = same or {}
    measured = len(study.rungs) - len(same)
    estimates = [estimate for estimate in estimates if estimate.rung not in same]
    console = Terminal()
    names = [item_name(item) for item in study.items]
    staging = Staging.of(study)
    rungs, measurements = counted(measured, "rung"), counted(len(names), "measurement")
    console.print(f"{rungs} x {measurements} on {device_title(study.calibration)}:")
    console.print(f"  {', '.join(names)}", soft_wrap=True)
    for name, other in same.items():
        console.print(f"  {name}: {not_measured_as(other)}", soft_wrap=True)
    if staging:
        documents = ", ".join(format_count(number) for number in staging.documents)
        margin = points_text(study_margin_points(study))
        console.print(
            f"  in {counted(staging.stages, 'stage')}, by the end of which a rung is asked {documents} questions; it "
            f"is asked on until a drop of {margin} is shown or ruled out, so the times are the most",
            soft_wrap=True,
        )
    console.print(_table(estimates))
    for line in _kept_lines(estimates):
        console.print(line, soft_wrap=True)
    console.print(f"peak memory: {_peak_text(study.calibration.device, overhead_bytes)}", soft_wrap=True)
    if study_peak := _study_peak_text(study.calibration.device, estimates):
        console.print(study_peak, soft_wrap=True)
    disk = format_bytes(sum(estimate.disk_bytes for estimate in estimates))
    unknown = [estimate.rung for estimate in estimates if estimate.total_s is None]
    capped = any(estimate.at_most for estimate in estimates)
    time = _at_most(capped, sum(estimate.total_s or 0.0 for estimate in estimates))
    without = f", without {', '.join(unknown)}, whose formats were not timed" if unknown else ""
    limit = "; at most: a scenario is expected to end at --time-limit-s" if capped else ""
    console.print(
        f"in all about {disk} of disk and {time}{without}; times are within about a factor of two{limit}",
        soft_wrap=True,
    )
    if recorded:
        planned = measured * sum(len(measured_items(item)) for item in study.items)
        most = "at most " if staging else ""
        console.print(
            f"of these {recorded:,} of {most}{planned:,} measurements are done: the study goes on with the others"
        )
    if resolved:
        _print_resolutions(console, resolved, measured - 1, study_margin_points(study))


def _table(estimates: Sequence[RungEstimate]) -> Table:
    table = Table("rung", "disk", "peak memory", "quantize", "accuracy", "performance", box=None)
    for estimate in estimates:
        table.add_row(
            estimate.rung,
            format_bytes(estimate.disk_bytes),
            format_bytes(estimate.peak_memory_bytes),
            format_seconds(estimate.quantize_s),
            _planned(estimate.accuracy_s),
            _at_most(estimate.at_most, estimate.performance_s),
        )
    return table


def _kept_lines(estimates: Sequence[RungEstimate]) -> Iterator[str]:
    """What quantizing leaves as it is, of rungs together that leave the same."""
    rungs: dict[str, list[str]] = {}
    for estimate in estimates:
        if estimate.kept_bytes:
            share = sum(estimate.kept_bytes.values()) / estimate.disk_bytes
            rungs.setdefault(describe_kept(estimate.kept_bytes), []).append(f"{estimate.rung} ({share:.0%})")
    for kept, names in rungs.items():
        yield f"stays in 16 bits: {kept}; of {', '.join(names)}"


def _peak_text(device: str, overhead_bytes: Mapping[str, int]) -> str:
    """What the column of peak memory holds, or why it holds nothing."""
    if not overhead_bytes:
        return f"n/a, since what the libraries take isn't known: {unknown_overhead(device)}"
    kind = "the process's resident size" if device == "cpu" else "of the device, less its idle use"
    shares = ", ".join(f"{format_bytes(size)} ({method})" for method, size in overhead_bytes.items())
    return f"{kind} at batch 1, what --max-memory limits; without any model {shares}, as measured; within about a tenth"


def _study_peak_text(device: str, estimates: Sequence[RungEstimate]) -> str:
    """Its fullest moment. On a CPU this process, which goes on beside the workers, counts too."""
    phases = [(size, what, one.rung) for one in estimates for what, size in one.phase_bytes.items()]
    if not phases:
        return ""
    size, what, rung = max(phases)
    own = resident_bytes() if device == "cpu" else 0
    beside = f", {format_bytes(own)} of it beside the one that works" if own else ""
    where = "of main memory, all its processes together" if device == "cpu" else "of the device"
    return (
        f"the study itself takes up to about {format_bytes(size + own)} {where} ({what} of {rung}{beside}); from a "
        "rough model of its phases"
    )


def _counted_as(study: StudyRecord, estimates: Sequence[RungEstimate], same: Mapping[str, str]) -> str:
    """Why the advice's time is more than the plan's, which leaves out what wasn't timed."""
    untimed = [one.rung for one in estimates if one.total_s is None and one.rung not in same]
    return f"; {', '.join(untimed)}, not timed, counts there as {study.baseline} does" if untimed else ""


def _print_resolutions(console: Terminal, resolved: tuple[Resolution, ...], rungs: int, margin_points: float) -> None:
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
        "it out and promises power that there is not. Documents that resemble each other (of one source) resolve less"
    )


def _at_most(capped: bool, seconds: float | None) -> str:
    known = capped and seconds
    return f"{'at most ' if known else ''}{_planned(seconds)}"


def _planned(seconds: float | None) -> str:
    """The time of what a rung is to be measured in; nothing of it may be planned."""
    return "none" if seconds == 0 else format_seconds(seconds)
