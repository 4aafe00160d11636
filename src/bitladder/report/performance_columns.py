"""The columns of Tables 3 and 4: which figure of a scenario, in which unit, under which name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitladder.report.table import Cell, Column, Formatter, estimate_cell, number_cell, text_cell
from bitladder.stats.metrics import METRICS
from bitladder.stats.summary import Estimate, RungSummary, ScenarioSummary, describe_end
from bitladder.units import (
    MIB,
    format_count,
    format_mib,
    format_ms,
    format_percent,
    format_rate,
    format_ratio,
    format_s,
)


@dataclass(frozen=True)
class ScenarioColumn:
    """A column, and how a rung's scenario (None: not there) fills it."""

    column: Column
    cell: Callable[[RungSummary, ScenarioSummary | None], Cell]


@dataclass(frozen=True)
class MetricColumn:
    """A metric in the unit that its table prints it in."""

    metric: str
    title: str
    unit: str
    format: Formatter
    unit_size: float | None = None
    """how much of the stored value makes one unit, where it is stored in another"""

    @property
    def column(self) -> Column:
        return Column(self.title, self.unit, help=METRICS[self.metric].title)

    @property
    def plain_title(self) -> str:
        """The title within a sentence."""
        return self.title if self.title[:2].isupper() else self.title[0].lower() + self.title[1:]

    def cell(self, rung: RungSummary, measured: ScenarioSummary | None) -> Cell:
        return estimate_cell(self.estimate(rung, measured), self.format, unit_size=self.unit_size)

    def estimate(self, rung: RungSummary, measured: ScenarioSummary | None) -> Estimate:
        """The metric, or why there is none."""
        found = measured.metrics.get(self.metric) if measured else None
        return found or Estimate.unknown(absence(rung, measured) or "not derived")


AnyColumn = ScenarioColumn | MetricColumn


def absence(rung: RungSummary, measured: ScenarioSummary | None) -> str | None:
    """Why a scenario has no figures; None where it ended well."""
    if measured is None:
        return f"{rung.rung}: {rung.reason or 'not measured'}"
    return None if measured.status == "ok" else f"{rung.rung}: {measured.reason or describe_end(measured.status, None)}"


def _s(metric: str, title: str, unit: str = "s") -> MetricColumn:
    return MetricColumn(metric, title, unit, format_s)


def _ms(metric: str, title: str) -> MetricColumn:
    return MetricColumn(metric, title, "ms", format_ms, 1e-3)


def _mib(metric: str, title: str) -> MetricColumn:
    return MetricColumn(metric, title, "MiB", format_mib, MIB)


def _count(title: str, unit: str | None, field: Callable[[ScenarioSummary], int | None]) -> ScenarioColumn:
    def cell(rung: RungSummary, measured: ScenarioSummary | None) -> Cell:
        reason = absence(rung, measured)
        value = field(measured) if measured and not reason else None
        return number_cell(value, format_count, reason if value is None else None)

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


def study_metrics(on_gpu: bool) -> tuple[MetricColumn, ...]:
    """What the study's figures show of a scenario: throughput, latency, utilisation, memory."""
    if on_gpu:
        utilisation = MetricColumn("gpu_utilisation_percent", "GPU utilisation", "%", format_percent)
    else:
        utilisation = MetricColumn("cpu_percent", "CPU utilisation", "% of one core", format_percent)
    return (
        MetricColumn("requests_per_s", "Throughput", "requests/s", format_rate),
        _s("latency_s", "Mean request latency"),
        utilisation,
        _mib("study_vram_bytes", "Average VRAM less idle" if on_gpu else "Average resident memory"),
    )


def main_columns(on_gpu: bool) -> tuple[AnyColumn, ...]:
    """The study's own, with the speed-up beside what it is of, the number of requests beside their total time and
    the peak beside the average."""
    throughput, latency, utilisation, memory = study_metrics(on_gpu)
    return (
        throughput,
        MetricColumn("speedup", "Speed-up", "ratio", format_ratio),
        MetricColumn("total_time_s", "Total", "s", format_percent),
        _count("Requests", None, lambda measured: measured.requests),
        latency,
        _s("inverse_throughput_s", "Inverse throughput", "s/request"),
        utilisation,
        memory,
        _mib("allocated_peak_bytes", "Allocated peak") if on_gpu else _mib("resident_peak_bytes", "Resident peak"),
    )


RUN_COLUMNS: tuple[AnyColumn, ...] = (
    ScenarioColumn(Column("Status", numeric=False), _status_cell),
    _count("Batch size", "requests", lambda measured: measured.batch_size),
    _count("Requests", None, lambda measured: measured.requests),
    _count("Tokens in", "per request", lambda measured: measured.prompt_tokens),
    _count("Tokens out", "per request", lambda measured: measured.new_tokens),
    ScenarioColumn(Column("Stopped by", numeric=False), _stop_cell),
    _s("load_time_s", "Load time"),
    _ms("hook_s", "Time stamp, a step"),
)
TOKEN_COLUMNS: tuple[AnyColumn, ...] = (
    MetricColumn("tokens_per_s", "Generated tokens", "1/s", format_rate),
    _ms("ttft_s", "First token"),
    _ms("queue_s", "of it queue"),
    _ms("prefill_s", "of it prefill"),
    _ms("tpot_s", "Per output token"),
    _ms("inter_token_s", "Gap, mean"),
    _ms("inter_token_p50_s", "Gap, p50"),
    _ms("inter_token_p95_s", "Gap, p95"),
)
LATENCY_COLUMNS: tuple[AnyColumn, ...] = (
    _s("latency_s", "From batch start, mean"),
    _s("latency_p50_s", "From batch start, p50"),
    _s("latency_p95_s", "From batch start, p95"),
    _s("latency_from_submission_s", "From submission, mean"),
    _s("latency_from_submission_p50_s", "From submission, p50"),
    _s("latency_from_submission_p95_s", "From submission, p95"),
)
FULL_BATCH_COLUMNS: tuple[AnyColumn, ...] = (
    MetricColumn("requests_per_s_full_batches", "Requests, full batches only", "1/s", format_rate),
    MetricColumn("tokens_per_s_full_batches", "Generated tokens, full batches only", "1/s", format_rate),
)
ENERGY_COLUMNS: tuple[AnyColumn, ...] = (
    MetricColumn("gpu_power_w", "GPU power, average", "W", format_percent),
    MetricColumn("gpu_energy_j", "GPU energy, gross", "J", format_percent),
    MetricColumn("gpu_energy_above_idle_j", "GPU energy above idle", "J", format_percent),
    MetricColumn("energy_per_token_j", "GPU energy per generated token", "J", format_rate),
)
DERIVED_COLUMNS = (
    MetricColumn("total_time_200_requests_s", "200 requests, derived", "s", format_percent),
    MetricColumn("total_time_2000_requests_s", "2,000 requests, derived", "s", format_percent),
)


def memory_columns(on_gpu: bool) -> tuple[AnyColumn, ...]:
    host = _mib("resident_peak_bytes", "Resident peak of the process")
    if not on_gpu:
        return (
            _mib("loaded_bytes", "Weights in memory"),
            _mib("study_vram_bytes", "Average, resident"),
            _mib("peak_memory_bytes", "Peak, resident"),
        )
    return (
        _mib("loaded_bytes", "Weights in memory"),
        _mib("study_vram_bytes", "Average, device less idle"),
        _mib("peak_memory_bytes", "Peak, device less idle"),
        _mib("allocated_peak_bytes", "Allocated peak"),
        _mib("reserved_peak_bytes", "Reserved peak"),
        _mib("process_peak_bytes", "Process peak"),
        host,
    )
