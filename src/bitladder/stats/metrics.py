"""The performance figures: one table of name, title, unit, how to print it, and which way is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bitladder.units import format_bytes, format_percent, format_rate, format_seconds

Formatter = Callable[[float | None], str]


@dataclass(frozen=True)
class Metric:
    """One derived figure of a scenario; `name` is its key in ``ScenarioSummary.metrics``."""

    name: str
    title: str
    unit: str
    """of the stored value"""
    format: Formatter
    """prints a value with its unit, except where `title` and `unit` must say it: rates, ratios and per cent"""
    better: Literal["higher", "lower"] | None
    """None: a description, neither good nor bad"""
    derived: bool = False
    """extrapolated from the rate, not run"""


def _seconds(name: str, title: str, derived: bool = False) -> Metric:
    return Metric(name, title, "s", format_seconds, "lower", derived)


def _bytes(name: str, title: str) -> Metric:
    return Metric(name, title, "bytes", format_bytes, "lower")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("requests_per_s", "Requests/s", "1/s", format_rate, "higher"),
        Metric("requests_per_s_full_batches", "Requests/s, full batches only", "1/s", format_rate, "higher"),
        Metric("tokens_per_s", "Generated tokens/s", "1/s", format_rate, "higher"),
        Metric("tokens_per_s_full_batches", "Generated tokens/s, full batches only", "1/s", format_rate, "higher"),
        Metric("speedup", "Speed-up", "ratio", format_rate, "higher"),
        _seconds("total_time_s", "Total time"),
        _seconds("total_time_200_requests_s", "Total time of 200 requests (derived)", derived=True),
        _seconds("total_time_2000_requests_s", "Total time of 2,000 requests (derived)", derived=True),
        _seconds("inverse_throughput_s", "Inverse throughput (the study's latency)"),
        _seconds("latency_s", "Request latency from batch start, mean"),
        _seconds("latency_p50_s", "Request latency from batch start, p50"),
        _seconds("latency_p95_s", "Request latency from batch start, p95"),
        _seconds("latency_from_submission_s", "Request latency from submission, mean"),
        _seconds("latency_from_submission_p50_s", "Request latency from submission, p50"),
        _seconds("latency_from_submission_p95_s", "Request latency from submission, p95"),
        _seconds("ttft_s", "Time to first token from submission"),
        _seconds("queue_s", "Time to first token: queue"),
        _seconds("prefill_s", "Time to first token: prefill"),
        _seconds("tpot_s", "Time per output token"),
        _seconds("inter_token_s", "Inter-token gap, mean"),
        _seconds("inter_token_p50_s", "Inter-token gap, p50"),
        _seconds("inter_token_p95_s", "Inter-token gap, p95"),
        _seconds("load_time_s", "Load time"),
        _seconds("hook_s", "Cost of a step's time stamp"),
        Metric("cpu_percent", "CPU utilisation", "% of one core", format_percent, None),
        Metric("gpu_utilisation_percent", "GPU utilisation", "%", format_percent, None),
        _bytes("study_vram_bytes", "Memory, average (device minus idle; CPU: resident)"),
        _bytes("peak_memory_bytes", "Memory, peak (device minus idle; CPU: resident)"),
        _bytes("resident_peak_bytes", "Resident memory of the process, peak"),
        _bytes("allocated_peak_bytes", "Memory allocated on the device, peak"),
        _bytes("process_peak_bytes", "Memory of the device that the process had, peak"),
        _bytes("reserved_peak_bytes", "Memory reserved on the device, peak"),
        _bytes("loaded_bytes", "Weights in memory"),
        Metric("gpu_power_w", "GPU power, average", "W", format_rate, "lower"),
        Metric("gpu_energy_j", "GPU energy, gross", "J", format_rate, "lower"),
        Metric("gpu_energy_above_idle_j", "GPU energy above idle", "J", format_rate, "lower"),
        Metric("energy_per_token_j", "GPU energy per generated token", "J", format_rate, "lower"),
    )
}
