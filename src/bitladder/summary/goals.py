"""What can be made best: which figure each goal compares, and how people call it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from bitladder.summary.table import Estimate, RungSummary, Summary
from bitladder.units import format_bytes, format_raw, format_seconds
from bitladder.unknown import Unknown

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
