"""The one table that deciding and reporting read: every number with low, value and high, or the reason why not.

``stats.summarize`` fills it from raw records; ``decide`` only compares its numbers with limits, and ``report`` only
formats them.
"""

from typing import Literal

from bitladder.records import Audit, Machine, Record, Source, Status

CONFIDENCE = 0.95


class Estimate(Record):
    """A number with its 95% interval. ``value`` None has a reason; an interval may be missing with a reason too."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @classmethod
    def unknown(cls, reason: str) -> "Estimate":
        return cls(value=None, reason=reason)


class TaskSummary(Record):
    """One task or group of tasks, on one rung."""

    name: str
    title: str
    metric: str
    unit: Literal["percent", "raw"]
    """``percent`` for shares of right answers; ``raw`` for anything else, such as bits per byte"""
    questions: int
    score: Estimate
    score_norm: Estimate
    """length-normalised accuracy, where the task has it"""
    chance_percent: float | None
    signal: bool
    """False: the baseline's interval holds chance (or too few right), so nothing is compared"""
    no_signal_reason: str | None
    in_aggregate: bool
    gained: int | None
    """questions right here and wrong on the baseline"""
    lost: int | None
    difference_points: Estimate
    """score minus the baseline's, paired by question"""
    relative_drop_percent: Estimate
    """(score - baseline) / baseline, the study's Table 2: negative is a loss"""
    recovery_percent: Estimate
    """(score - chance) / (baseline - chance)"""


class AggregateSummary(Record):
    """Mean over the tasks with signal, the same for all rungs."""

    tasks: tuple[str, ...]
    score_percent: Estimate
    difference_points: Estimate
    relative_drop_percent: Estimate
    recovery_percent: Estimate


class ScenarioSummary(Record):
    """One scenario on one rung; ``metrics`` has the names of ``stats.metrics.METRICS``."""

    scenario: str
    status: Status
    reason: str | None
    machine: Machine | None
    batch_size: int | None
    requests: int
    prompt_tokens: int
    new_tokens: int
    stopped_by: str | None
    metrics: dict[str, Estimate]
    notes: tuple[str, ...]
    """what the reader has to know: fewer than 10 requests, stopped by the time limit, a short last batch"""


class RungSummary(Record):
    rung: str
    title: str
    status: Status
    """the checkpoint's own; a measurement's is in its scenario or task"""
    reason: str | None
    content_hash: str | None
    stored_bytes: int | None
    loaded_bytes: int | None
    audit: Audit | None
    tasks: tuple[TaskSummary, ...]
    aggregate: AggregateSummary
    scenarios: tuple[ScenarioSummary, ...]
    failures: tuple[str, ...]
    """measurements that did not end well, one line each"""

    def scenario(self, name: str) -> ScenarioSummary | None:
        return next((scenario for scenario in self.scenarios if scenario.scenario == name), None)


class Summary(Record):
    """Everything derived from one study's records."""

    source: Source
    suite: str
    baseline: str
    default_margin_points: float
    rungs: tuple[RungSummary, ...]
    notes: tuple[str, ...]
    """facts every report shows first, such as a source that was already quantized"""

    def rung(self, name: str) -> RungSummary | None:
        return next((rung for rung in self.rungs if rung.rung == name), None)
