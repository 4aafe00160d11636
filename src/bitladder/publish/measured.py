"""What a study measured of the checkpoint that is published, as tables for its card."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitladder.errors import UserError
from bitladder.records import AccuracyTask, Machine, Manifest
from bitladder.store import load_results
from bitladder.summary.counted_tasks import counted_tasks, weighted_titles
from bitladder.summary.metrics import METRICS
from bitladder.summary.summarize import notes_about, summarize
from bitladder.summary.table import Estimate, RungSummary, ScenarioSummary, Summary, TaskSummary, describe_end
from bitladder.units import UNKNOWN, format_count, format_percent, format_points, format_raw, points_text
from bitladder.unknown import Unknown

SCENARIOS = {"batch1": "Batch size 1", "max-batch": "Largest batch"}
_METRICS = ("requests_per_s", "tokens_per_s", "latency_s", "ttft_s", "peak_memory_bytes", "speedup")


@dataclass(frozen=True)
class CardTable:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A study's summary, seen from one of its rungs."""

    summary: Summary
    rung: RungSummary
    notes: tuple[str, ...]
    """of the summary's those that are about this rung"""
    harness: str | None
    """version of lm-evaluation-harness that asked; None where nothing was asked"""

    @property
    def baseline(self) -> RungSummary | None:
        """What it is compared with; None where it is the baseline itself, or the study has none."""
        return None if self.rung.rung == self.summary.baseline else self.summary.rung(self.summary.baseline)


def find_measured(study: Path, manifest: Manifest) -> Measured:
    """The study's results for the checkpoint of this manifest, known by its content hash and not by its name.

    Raises UserError where the folder holds no study or the study measured another checkpoint.
    """
    results = load_results(study)
    summary = summarize(results)
    same = [rung for rung in summary.rungs if rung.content_hash == manifest.content_hash]
    if not same:
        known = ", ".join(f"{rung.rung} {(rung.content_hash or UNKNOWN)[:12]}" for rung in summary.rungs)
        raise UserError(
            f"{study}: its results are for {known}, and this is {manifest.rung} {manifest.content_hash[:12]}; "
            "give the study that measured this checkpoint, or leave --results out"
        )
    rung = next((rung for rung in same if rung.rung == manifest.rung), same[0])
    versions = {item.harness_version for item in results.study.items if isinstance(item, AccuracyTask)}
    return Measured(summary, rung, notes_about(results, rung.rung), ", ".join(sorted(versions)) or None)


def measured_tables(measured: Measured) -> list[CardTable]:
    tables = [_accuracy_table(measured)] if measured.rung.tasks else []
    return tables + [
        _scenario_table(measured, scenario, title)
        for scenario, title in SCENARIOS.items()
        if measured.rung.scenario(scenario)
    ]


def _accuracy_table(measured: Measured) -> CardTable:
    rung, baseline = measured.rung, measured.baseline
    header = ["Task", "Questions", rung.rung]
    notes = [
        f"Suite {measured.summary.suite}, asked by lm-evaluation-harness {measured.harness}. Brackets: 95% interval.",
    ]
    if baseline:
        header += [baseline.rung, "Difference (points)"]
        notes.append(
            f"Difference: to {baseline.rung}, paired by question, with an interval that holds with 95% for all "
            "precisions of the study together; where it holds 0, none is shown to exist."
        )
    stopping = rung.aggregate.stopping
    if baseline and rung.aggregate.verdict:
        margin = points_text(measured.summary.margin_points)
        judged = f"against a drop of {margin} {rung.rung} is {rung.aggregate.verdict}"
        if stopping:
            text = stopping.text if stopping.state not in ("early", "end") else f"it was {stopping.text}"
            same = f"{baseline.rung}'s scores by task are on the same questions"
            notes.append(f"Asked until decided: {judged}; {text}. {same}.")
        else:
            notes.append(f"Verdict: {judged}.")
    rows = [_task_row(task, baseline) for task in rung.tasks]
    if rung.aggregate.tasks:
        row = [f"Mean of {weighted_titles(counted_tasks([rung]))}", ""]
        row.append(_estimate(rung.aggregate.score_percent, _percent))
        if baseline:
            row.append(_estimate(baseline.aggregate.score_percent, _percent))
            row.append(_estimate(rung.aggregate.difference_points, format_points))
        rows.append(tuple(row))
    return CardTable("Accuracy", tuple(header), tuple(rows), tuple(notes))


def _task_row(task: TaskSummary, baseline: RungSummary | None) -> tuple[str, ...]:
    format_score = _percent if task.unit == "percent" else format_raw
    name = task.title_with_unit
    no_signal = "no signal" if baseline else f"no signal: {task.no_signal_reason}"  # the difference says why
    row = [
        name if task.signal or task.unit == "raw" else f"{name} ({no_signal})",
        format_count(task.questions or None),
        _estimate(task.score, format_score),
    ]
    if baseline:
        compared = next((other for other in baseline.tasks if other.name == task.name), None)
        score = compared.score if compared else Estimate.unknown(Unknown(baseline.reason or "not measured"))
        if task.baseline_percent is not None:  # on what this rung was asked
            score = Estimate(value=task.baseline_percent)
        row += [_estimate(score, format_score), _estimate(task.difference_points, format_points)]
    return tuple(row)


def _scenario_table(measured: Measured, scenario: str, title: str) -> CardTable:
    """With the baseline beside it; what did not end well has a line that says why, and no column of figures."""
    title = f"Performance: {title[0].lower()}{title[1:]}"
    own = measured.rung.scenario(scenario)
    assert own is not None
    if own.status != "ok":
        return CardTable(title, (), (), (f"{measured.rung.rung}: {describe_end(own.status, own.reason)}.",))
    columns, notes = [(measured.rung, own)], []
    if measured.baseline:
        compared = measured.baseline.scenario(scenario)
        if compared is None or not _same_hardware(own, compared):
            notes.append(f"{measured.baseline.rung} was not measured on this machine.")
        elif compared.status != "ok":
            notes.append(f"{measured.baseline.rung}: {describe_end(compared.status, compared.reason)}.")
        else:
            columns.append((measured.baseline, compared))
    scenarios = [found for _, found in columns]
    rows = [
        _counts("Batch size", scenarios, lambda found: found.batch_size),
        _counts("Requests", scenarios, lambda found: found.requests),
        _counts("Tokens in", scenarios, lambda found: found.prompt_tokens),
        _counts("Tokens out", scenarios, lambda found: found.new_tokens),
    ]
    for name in _METRICS:
        metric = METRICS[name]
        rows.append((metric.title, *(_estimate(found.metric(name), metric.quantity.text) for found in scenarios)))
    if own.machine:
        notes.insert(0, f"Measured on {', '.join([*(gpu.title for gpu in own.machine.gpus), own.machine.cpu_model])}.")
    notes += own.notes
    return CardTable(
        title,
        ("", *(rung.rung for rung, _ in columns)),
        tuple(rows),
        tuple(notes),
    )


def _counts(
    title: str, scenarios: Sequence[ScenarioSummary], field: Callable[[ScenarioSummary], int | None]
) -> tuple[str, ...]:
    return (title, *(format_count(field(found)) for found in scenarios))


def _same_hardware(left: ScenarioSummary, right: ScenarioSummary) -> bool:
    if left.machine is None or right.machine is None:
        return False
    return _hardware(left.machine) == _hardware(right.machine)


def _hardware(machine: Machine) -> tuple[object, ...]:
    return machine.cpu_model, machine.versions, [gpu.model_dump(exclude={"serial", "unknown"}) for gpu in machine.gpus]


def _percent(value: float | None) -> str:
    return f"{format_percent(value)}%"


def _estimate(estimate: Estimate, format_value: Callable[[float | None], str]) -> str:
    if estimate.value is None:
        return f"{UNKNOWN} ({estimate.reason})"
    if estimate.low is None or estimate.high is None:
        return format_value(estimate.value)
    return f"{format_value(estimate.value)} [{format_value(estimate.low)}, {format_value(estimate.high)}]"
