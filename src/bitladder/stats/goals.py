"""What can be made best: which figure each goal compares, and how people call it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bitladder.stats.summary import Estimate, RungSummary
from bitladder.units import format_bytes, format_raw, format_seconds

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

    def of(self, rung: RungSummary) -> Estimate:
        if self.scenario is None:
            known = rung.loaded_bytes is not None
            return Estimate(value=rung.loaded_bytes) if known else Estimate.unknown("its weights were not loaded")
        scenario = rung.scenario(self.scenario)
        return scenario.metric(self.metric) if scenario else Estimate.unknown(f"{self.scenario} was not measured")

    def describe(self, estimate: Estimate) -> str:
        limits = ""
        if estimate.low is not None and estimate.high is not None:
            limits = f" [{self.format(estimate.low)}, {self.format(estimate.high)}]"
        return f"{self.format(estimate.value)}{limits} {self.figure}"


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
            figure="of weights in memory",
            scenario=None,
            metric="loaded_bytes",
            best="the smallest",
            better="smaller",
            worse="larger",
            format=format_bytes,
        ),
    )
}
