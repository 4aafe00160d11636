"""The metrics of a scenario, each a row: what it is, how a run gives it, how people read it and where they find it.

The report's Tables 3 and 4 and their figures are made from these rows, in this order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from bitladder.records import PerformanceOutcome
from bitladder.summary.performance import Run, energy_per_token, hook, latencies, rates, token_times, took
from bitladder.summary.table import Estimate
from bitladder.units import (
    MIB,
    format_bytes,
    format_mib,
    format_ms,
    format_percent,
    format_rate,
    format_s,
    format_seconds,
)
from bitladder.unknown import Unknown

Derive = Callable[[Run], dict[str, Estimate]]
Device = Literal["cpu", "gpu"]
Formatter = Callable[[float | None], str]
PerformanceTable = Literal["main", "run", "tokens", "latency", "memory", "power", "totals"]
"""see `report.performance_tables`; of a GPU alone: ``power``; of every scenario and machine together: ``totals``"""


@dataclass(frozen=True)
class Quantity:
    """How people read a value; in which unit it is stored says the metric's name."""

    unit: str
    """of a column"""
    column: Formatter
    """prints a stored value in that unit, without it"""
    text: Formatter
    """prints a stored value with its unit, except where the title must say it: rates, ratios and per cent"""
    unit_size: float | None = None
    """how much of the stored value makes one unit, where it is stored in another"""


@dataclass(frozen=True)
class Place:
    """A column of the report."""

    table: PerformanceTable
    title: str
    unit: str | None = None
    """None: the quantity's own"""
    on: Device | None = None
    """where it ran; None: on both"""
    scenario: Literal["batch1", "max-batch"] | None = None
    """None: of both"""
    drawn: bool = False
    """in the figures too"""


@dataclass(frozen=True)
class Metric:
    """One row; raises ValueError unless it is either shown or hidden."""

    name: str
    """its key in ``ScenarioSummary.metrics``"""
    title: str
    quantity: Quantity
    better: Literal["higher", "lower"] | None
    """None: a description, neither good nor bad"""
    derive: Derive | None
    """gives it, by its name, and others that share its steps; None: it is of two runs, see `speedup`"""
    shown: tuple[Place, ...]
    definition: str = ""
    """what the title leaves open"""
    hidden: str = ""
    """why no table shows it"""

    def __post_init__(self) -> None:
        if bool(self.shown) == bool(self.hidden):
            raise ValueError(f"{self.name}: name the tables that show it, or say why it is hidden")


RATE = Quantity("1/s", format_rate, format_rate)
SECONDS = Quantity("s", format_s, format_seconds)
LONG_SECONDS = Quantity("s", format_percent, format_seconds)
MILLISECONDS = Quantity("ms", format_ms, format_seconds, 1e-3)
MEBIBYTES = Quantity("MiB", format_mib, format_bytes, MIB)


def _latency(name: str, since: str, *more: Place) -> Metric:
    shown = (*more, Place("latency", since.capitalize()))
    return Metric(name, f"Request latency {since}", SECONDS, "lower", latencies, shown)


def _token_time(name: str, title: str, column: str, derive: Derive, definition: str = "") -> Metric:
    return Metric(name, title, MILLISECONDS, "lower", derive, (Place("tokens", column),), definition)


def _total(name: str, title: str, table: PerformanceTable, column: str) -> Metric:
    return Metric(name, title, LONG_SECONDS, "lower", rates, (Place(table, column),))


def _full_batches(name: str, what: str) -> Metric:
    place = Place("tokens", f"{what}, full batches only", scenario="max-batch")
    return Metric(name, f"{what}/s, full batches only", RATE, "higher", rates, (place,))


def _utilisation(name: str, device: Device, unit: str, definition: str = "") -> Metric:
    title = f"{device.upper()} utilisation"
    place = Place("main", title, on=device, drawn=True)
    return Metric(name, title, Quantity(unit, format_percent, format_percent), None, took, (place,), definition)


def _memory(name: str, title: str, *shown: Place) -> Metric:
    return Metric(name, title, MEBIBYTES, "lower", took, shown)


def _power(name: str, title: str, unit: str, derive: Derive = took, text: Formatter = format_percent) -> Metric:
    return Metric(name, title, Quantity(unit, text, text), "lower", derive, (Place("power", title),))


_THROUGHPUT = Place("main", "Throughput", "requests/s", drawn=True)
_INVERSE = Place("main", "Inverse throughput", "s/request")
_ROWS = (
    Metric(
        "requests_per_s", "Requests/s", RATE, "higher", rates, (_THROUGHPUT,), "from first submission to last token"
    ),
    Metric("speedup", "Speed-up", replace(RATE, unit="ratio"), "higher", None, (Place("main", "Speed-up"),)),
    _total("total_time_s", "Total time", "main", "Total"),
    _latency("latency_s", "from batch start, mean", Place("main", "Mean request latency", drawn=True)),
    _latency("latency_p50_s", "from batch start, p50"),
    _latency("latency_p95_s", "from batch start, p95"),
    _latency("latency_from_submission_s", "from submission, mean"),
    _latency("latency_from_submission_p50_s", "from submission, p50"),
    _latency("latency_from_submission_p95_s", "from submission, p95"),
    Metric("inverse_throughput_s", "Inverse throughput (the study's latency)", SECONDS, "lower", rates, (_INVERSE,)),
    Metric("tokens_per_s", "Generated tokens/s", RATE, "higher", rates, (Place("tokens", "Generated tokens"),)),
    _token_time("ttft_s", "Time to first token from submission", "First token", latencies),
    _token_time("queue_s", "Time to first token: queue", "of it queue", latencies, "until its batch starts"),
    _token_time("prefill_s", "Time to first token: prefill", "of it prefill", latencies, "from its batch's start"),
    _token_time("tpot_s", "Time per output token", "Per output token", token_times, "after a request's first"),
    _token_time("inter_token_s", "Inter-token gap, mean", "Gap, mean", token_times),
    _token_time("inter_token_p50_s", "Inter-token gap, p50", "Gap, p50", token_times),
    _token_time("inter_token_p95_s", "Inter-token gap, p95", "Gap, p95", token_times),
    _full_batches("requests_per_s_full_batches", "Requests"),
    _full_batches("tokens_per_s_full_batches", "Generated tokens"),
    _total("total_time_200_requests_s", "Total time of 200 requests (derived)", "totals", "200 requests, derived"),
    _total("total_time_2000_requests_s", "Total time of 2,000 requests (derived)", "totals", "2,000 requests, derived"),
    Metric("load_time_s", "Load time", SECONDS, "lower", took, (Place("run", "Load time"),)),
    _utilisation("cpu_percent", "cpu", "% of one core"),
    _utilisation("gpu_utilisation_percent", "gpu", "%", "share of the time with a kernel running"),
    _memory("loaded_bytes", "Weights in memory", Place("memory", "Weights in memory")),
    _memory(
        "study_vram_bytes",
        "Memory, average (device minus idle; CPU: resident)",
        Place("main", "Average VRAM less idle", on="gpu", drawn=True),
        Place("main", "Average resident memory", on="cpu", drawn=True),
        Place("memory", "Average, device less idle", on="gpu"),
        Place("memory", "Average, resident", on="cpu"),
    ),
    _memory(
        "peak_memory_bytes",
        "Memory, peak (device minus idle; CPU: resident)",
        Place("memory", "Peak, device less idle", on="gpu"),
        Place("memory", "Peak, resident", on="cpu"),
    ),
    _memory(
        "allocated_peak_bytes",
        "Memory allocated on the device, peak",
        Place("main", "Allocated peak", on="gpu"),
        Place("memory", "Allocated peak", on="gpu"),
    ),
    _memory("reserved_peak_bytes", "Memory reserved on the device, peak", Place("memory", "Reserved peak", on="gpu")),
    _memory(
        "process_peak_bytes",
        "Memory of the device that the process had, peak",
        Place("memory", "Process peak", on="gpu"),
    ),
    _memory(
        "resident_peak_bytes",
        "Resident memory of the process, peak",
        Place("main", "Resident peak", on="cpu"),
        Place("memory", "Resident peak of the process", on="gpu"),
    ),
    _power("gpu_power_w", "GPU power, average", "W"),
    _power("gpu_energy_j", "GPU energy, gross", "J"),
    _power("gpu_energy_above_idle_j", "GPU energy above idle", "J"),
    _power("energy_per_token_j", "GPU energy per generated token", "J", energy_per_token, format_rate),
    Metric("hook_s", "Cost of a step's time stamp", MILLISECONDS, "lower", hook, (Place("run", "Time stamp, a step"),)),
)
METRICS = {metric.name: metric for metric in _ROWS}


def derive_metrics(outcome: PerformanceOutcome, device: str) -> dict[str, Estimate]:
    """Every metric but the speed-up. `device`: where it ran, ``cpu`` or ``cuda:N``."""
    run = Run(outcome, device)
    if not run.requests:
        return dict.fromkeys(METRICS, Estimate.unknown(Unknown("no request ended well"))) | took(run)
    derivations = dict.fromkeys(metric.derive for metric in METRICS.values() if metric.derive)
    return {name: estimate for derive in derivations for name, estimate in derive(run).items()}
