"""The metrics of a scenario, each a row; what can be made best; and the margin where nobody gives one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from bitladder.errors import UserError
from bitladder.records import PerformanceOutcome, StudyRecord
from bitladder.records.base import Unknown
from bitladder.summary.performance import TimedRun, energy_per_token, hook, latencies, rates, token_times, took
from bitladder.summary.table import Estimate, RungSummary, Summary
from bitladder.units import (
    MIB,
    format_bytes,
    format_mib,
    format_ms,
    format_percent,
    format_rate,
    format_raw,
    format_s,
    format_seconds,
)

Derive = Callable[[TimedRun], dict[str, Estimate]]
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
class ReportColumn:
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
    shown: tuple[ReportColumn, ...]
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


def _latency(name: str, since: str, *more: ReportColumn) -> Metric:
    shown = (*more, ReportColumn("latency", since.capitalize()))
    return Metric(name, f"Request latency {since}", SECONDS, "lower", latencies, shown)


def _token_time(name: str, title: str, column: str, derive: Derive, definition: str = "") -> Metric:
    return Metric(name, title, MILLISECONDS, "lower", derive, (ReportColumn("tokens", column),), definition)


def _total(name: str, title: str, table: PerformanceTable, column: str) -> Metric:
    return Metric(name, title, LONG_SECONDS, "lower", rates, (ReportColumn(table, column),))


def _full_batches(name: str, what: str) -> Metric:
    place = ReportColumn("tokens", f"{what}, full batches only", scenario="max-batch")
    return Metric(name, f"{what}/s, full batches only", RATE, "higher", rates, (place,))


def _utilisation(name: str, device: Device, unit: str, definition: str = "") -> Metric:
    title = f"{device.upper()} utilisation"
    place = ReportColumn("main", title, on=device, drawn=True)
    return Metric(name, title, Quantity(unit, format_percent, format_percent), None, took, (place,), definition)


def _memory(name: str, title: str, *shown: ReportColumn) -> Metric:
    return Metric(name, title, MEBIBYTES, "lower", took, shown)


def _power(name: str, title: str, unit: str, derive: Derive = took, text: Formatter = format_percent) -> Metric:
    return Metric(name, title, Quantity(unit, text, text), "lower", derive, (ReportColumn("power", title),))


_THROUGHPUT = ReportColumn("main", "Throughput", "requests/s", drawn=True)
_INVERSE = ReportColumn("main", "Inverse throughput", "s/request")
_ROWS = (
    Metric(
        "requests_per_s", "Requests/s", RATE, "higher", rates, (_THROUGHPUT,), "from first submission to last token"
    ),
    Metric("speedup", "Speed-up", replace(RATE, unit="ratio"), "higher", None, (ReportColumn("main", "Speed-up"),)),
    _total("total_time_s", "Total time", "main", "Total"),
    _latency("latency_s", "from batch start, mean", ReportColumn("main", "Mean request latency", drawn=True)),
    _latency("latency_p50_s", "from batch start, p50"),
    _latency("latency_p95_s", "from batch start, p95"),
    _latency("latency_from_submission_s", "from submission, mean"),
    _latency("latency_from_submission_p50_s", "from submission, p50"),
    _latency("latency_from_submission_p95_s", "from submission, p95"),
    Metric("inverse_throughput_s", "Inverse throughput (the study's latency)", SECONDS, "lower", rates, (_INVERSE,)),
    Metric("tokens_per_s", "Generated tokens/s", RATE, "higher", rates, (ReportColumn("tokens", "Generated tokens"),)),
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
    Metric("load_time_s", "Load time", SECONDS, "lower", took, (ReportColumn("run", "Load time"),)),
    _utilisation("cpu_percent", "cpu", "% of one core"),
    _utilisation("gpu_utilisation_percent", "gpu", "%", "share of the time with a kernel running"),
    _memory("loaded_bytes", "Weights in memory", ReportColumn("memory", "Weights in memory")),
    _memory(
        "study_vram_bytes",
        "Memory, average (device minus idle; CPU: resident)",
        ReportColumn("main", "Average VRAM less idle", on="gpu", drawn=True),
        ReportColumn("main", "Average resident memory", on="cpu", drawn=True),
        ReportColumn("memory", "Average, device less idle", on="gpu"),
        ReportColumn("memory", "Average, resident", on="cpu"),
    ),
    _memory(
        "peak_memory_bytes",
        "Memory, peak (device minus idle; CPU: resident)",
        ReportColumn("memory", "Peak, device less idle", on="gpu"),
        ReportColumn("memory", "Peak, resident", on="cpu"),
    ),
    _memory(
        "allocated_peak_bytes",
        "Memory allocated on the device, peak",
        ReportColumn("main", "Allocated peak", on="gpu"),
        ReportColumn("memory", "Allocated peak", on="gpu"),
    ),
    _memory(
        "reserved_peak_bytes", "Memory reserved on the device, peak", ReportColumn("memory", "Reserved peak", on="gpu")
    ),
    _memory(
        "process_peak_bytes",
        "Memory of the device that the process had, peak",
        ReportColumn("memory", "Process peak", on="gpu"),
    ),
    _memory(
        "resident_peak_bytes",
        "Resident memory of the process, peak",
        ReportColumn("main", "Resident peak", on="cpu"),
        ReportColumn("memory", "Resident peak of the process", on="gpu"),
    ),
    _power("gpu_power_w", "GPU power, average", "W"),
    _power("gpu_energy_j", "GPU energy, gross", "J"),
    _power("gpu_energy_above_idle_j", "GPU energy above idle", "J"),
    _power("energy_per_token_j", "GPU energy per generated token", "J", energy_per_token, format_rate),
    Metric(
        "hook_s",
        "Cost of a step's time stamp",
        MILLISECONDS,
        "lower",
        hook,
        (ReportColumn("run", "Time stamp, a step"),),
    ),
)
METRICS = {metric.name: metric for metric in _ROWS}


def derive_metrics(outcome: PerformanceOutcome, device: str) -> dict[str, Estimate]:
    """Every metric but the speed-up. `device`: where it ran, ``cpu`` or ``cuda:N``."""
    run = TimedRun(outcome, device)
    if not run.requests:
        return dict.fromkeys(METRICS, Estimate.unknown(Unknown("no request ended well"))) | took(run)
    derivations = dict.fromkeys(metric.derive for metric in METRICS.values() if metric.derive)
    return {name: estimate for derive in derivations for name, estimate in derive(run).items()}


MARGIN_POINTS = {"paper": 1.0, "builtin": 5.0}
"""--max-drop by suite: what its questions can resolve"""
OTHER_MARGIN_POINTS = 1.0


def default_margin_points(suite: str | None) -> float:
    """The suite's; None: answers of no study."""
    return MARGIN_POINTS.get(suite or "", OTHER_MARGIN_POINTS)


def study_margin_points(study: StudyRecord) -> float:
    """What a study's verdicts are held against, and its stopping: its own ``max_drop``, else the suite's."""
    own = study.settings.max_drop
    return default_margin_points(study.suite) if own is None else own


class Recovery(NamedTuple):
    """A margin by what has to be kept of the baseline's own aggregate, whatever that is found to be."""

    min_percent: float


def recovery_margin_points(min_recovery_percent: float, baseline: str, score_percent: Estimate) -> float:
    """What a rung may lose that has to keep such a share of the baseline's aggregate, as it was observed.

    In whole hundredths of a point, rounded down. Raises UserError where the baseline has no aggregate, or nothing may
    be lost at all, which no number of questions shows.
    """
    if score_percent.value is None:
        raise UserError(f"--min-recovery is of {baseline}'s aggregate, which is not known: {score_percent.reason}")
    hundredths = round((100 - min_recovery_percent) * score_percent.value, 6)  # a float of 99.9 isn't quite that
    points = math.floor(hundredths) / 100
    if points <= 0:
        raise UserError(
            f"--min-recovery: found {min_recovery_percent:g}%, which leaves nothing to lose; expected less, such as 99%"
        )
    return points


MEMORY_TIE = 0.01
"""share of memory within which two rungs need the same: one run's peak differs from the next one's by that much"""

Goal = Literal["latency", "throughput", "memory"]


@dataclass(frozen=True)
class Criterion:
    """What a goal compares, and how people call it."""

    goal: Goal
    figure: str
    scenario: str | None
    """None: the weights in memory, of the checkpoint itself"""
    metric: str
    best: str
    better: str
    worse: str
    format: Callable[[float | None], str]
    sampled: bool = True
    """or one figure a rung, which no interval is of: equal within `SAME_SHARE`"""

    def of(self, rung: RungSummary) -> Estimate:
        if self.scenario is None:
            if rung.loaded_bytes is None:
                return Estimate.unknown(Unknown("its weights were not loaded"))
            return Estimate(value=rung.loaded_bytes)
        return rung.metric(self.scenario, self.metric)

    def alike(self, one: Estimate, other: Estimate) -> bool:
        """Of figures that aren't sampled: whether they are as good as equal."""
        assert one.value is not None and other.value is not None
        return abs(one.value - other.value) <= MEMORY_TIE * max(one.value, other.value)

    def describe(self, estimate: Estimate, rung: RungSummary | None = None) -> str:
        """``rung``: whose it is, of whose peak memory the weights are told too."""
        limits = ""
        if estimate.low is not None and estimate.high is not None:
            limits = f" [{self.format(estimate.low)}, {self.format(estimate.high)}]"
        weights = ""
        if self.metric == "peak_memory_bytes" and rung is not None and rung.loaded_bytes is not None:
            weights = f", {format_bytes(rung.loaded_bytes)} of it weights"
        return f"{self.format(estimate.value)}{limits} {self.figure}{weights}"


CRITERIA: dict[Goal, Criterion] = {
    criterion.goal: criterion
    for criterion in (
        Criterion(
            goal="latency",
            figure="a request at batch 1",
            scenario="batch1",
            metric="latency_s",
            best="the fastest",
            better="faster",
            worse="slower",
            format=format_seconds,
        ),
        Criterion(
            goal="throughput",
            figure="generated tokens/s at the largest batch",
            scenario="max-batch",
            metric="tokens_per_s",
            best="the most",
            better="faster",
            worse="slower",
            format=format_raw,
        ),
        Criterion(
            goal="memory",
            figure="of peak memory at batch 1",
            scenario="batch1",
            metric="peak_memory_bytes",
            best="the smallest",
            better="smaller",
            worse="larger",
            format=format_bytes,
            sampled=False,
        ),
    )
}
_WEIGHTS = replace(CRITERIA["memory"], figure="of weights in memory", scenario=None, metric="loaded_bytes")


def criteria_of(summary: Summary) -> Mapping[Goal, Criterion]:
    """Of a study that plans no run at batch 1 the weights alone stand for memory."""
    planned = any(rung.scenario("batch1") is not None for rung in summary.rungs)
    return CRITERIA if planned else {**CRITERIA, "memory": _WEIGHTS}
