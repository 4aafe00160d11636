"""The one table that deciding and reporting read: every number with low, value and high, or the reason why not.

``summarize`` fills it from raw records; ``decide`` only compares its numbers with limits, and ``report`` only
formats them.
"""

from typing import Literal, Self

from pydantic import Field

from bitladder.records import Audit, Machine, Record, Scoring, Source, Status
from bitladder.records.base import Unknown
from bitladder.stats.interval import Interval
from bitladder.stats.verdict import FlipsVerdict, Verdict

OutcomeStatus = Status | Literal["missing"]
"""how a checkpoint or a measurement ended; ``missing``: the study has not come to it, another machine
did it, or it is measured as another rung's, which has the same content"""


def stored_status(found: Unknown | None) -> tuple[OutcomeStatus, str | None]:
    """How something ended, with why it did not end well, as they stand in a summary; None: it ended well."""
    if found is None:
        return "ok", None
    return (found.bad_status, found.detail or None) if found.bad_status else ("missing", found.reason)


def describe_status(status: OutcomeStatus, reason: str | None) -> str:
    """For people; of what is merely missing the reason alone."""
    if status == "missing":
        return reason or "not measured"
    return status if status == "ok" else Unknown(reason or "", status).reason


class Estimate(Record):
    """A number with its 95% interval. ``value`` None has a reason; an interval may be missing with a reason too."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @classmethod
    def unknown(cls, why: Unknown) -> Self:
        return cls(value=None, reason=why.reason)

    def excludes(self, value: float) -> bool:
        """Whether there is an interval, and the value is outside."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    @classmethod
    def of(cls, value: float, interval: Interval | Unknown, scale: float = 1) -> Self:
        """Value and limits times ``scale``, or the value alone where the data give no interval."""
        if isinstance(interval, Unknown):
            return cls(value=scale * value, reason=interval.reason)
        return cls(value=scale * value, low=scale * interval.low, high=scale * interval.high)


class TaskSummary(Record):
    """One task or group of tasks, on one rung."""

    name: str
    title: str
    metric: str
    """lm-eval's name; empty where no rung has a result"""
    unit: Literal["percent", "raw"]
    """``percent`` for shares of right answers; ``raw`` for anything else, such as bits per byte"""
    questions: int
    """answered on this rung; the same questions in several parts count once"""
    planned_questions: int | None = Field(default=None, exclude_if=lambda value: value is None)
    """all that may be asked; None where it isn't asked in stages"""
    score: Estimate
    """its reason says why there is none, such as a measurement that failed"""
    score_norm: Estimate
    """length-normalised accuracy, where the task has it"""
    chance_percent: float | None
    """what guessing scores, mean over the questions of 1 / choices; None where nothing is given to choose from, and for
    ``chance_reason``"""
    chance_reason: str | None = None
    """why it is not known though there are choices"""
    signal: bool
    """False: no score is far enough above chance, or it has a unit of its own, so nothing is compared"""
    no_signal_reason: str | None
    weight: float | None
    """in the aggregate, from 0 to 1, see `weights.weight_at`; None where the plan has it in none, and where no rung has
    a score in per cent"""
    gained: int | None
    """answers right here and wrong on the baseline"""
    lost: int | None
    """answers wrong here and right on the baseline"""
    baseline_percent: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """the baseline's score on what this rung was asked, where it is asked in stages"""
    changed: int | None
    """questions with another choice than on the baseline, right or wrong; None where nothing is chosen"""
    difference_points: Estimate
    """score minus the baseline's, paired by question, between the limits that its verdict is judged by"""
    relative_drop_percent: Estimate
    """(score - baseline) / baseline, the study's Table 2: negative is a loss"""
    recovery_percent: Estimate
    """score / baseline"""
    recovery_above_chance_percent: Estimate
    """(score - chance) / (baseline - chance); generated answers have a chance of 0"""
    right_probability_points: Estimate
    """mean change of the right choice's probability among the choices, paired by question; all rungs' intervals hold
    together with 95%. It moves before a choice flips"""
    verdict: Verdict | None
    """secondary: judged for all rungs together, but for each task by itself; None where nothing is compared"""
    more_questions: int | None
    more_questions_reason: str | None

    @property
    def title_with_unit(self) -> str:
        """The title; where the score is no share of right answers, with its metric, unless the title has it."""
        metric = self.metric.replace("_", " ")
        return self.title if self.unit == "percent" or metric in self.title else f"{self.title} ({metric})"


class Stopping(Record):
    """How far one rung was asked, where asking stops when decided."""

    state: Literal["early", "end", "hopeless", "undecided", "open", "stopped"]
    """decided before the last stage; decided at the last; not asked on, since the documents that are left could hardly
    decide it; undecided after all documents; still to be asked; decided, but against another margin or baseline than
    this"""
    documents: int
    """that the rung was asked of the tasks in stages; a question in two tasks counts twice"""
    of: int
    stages: int
    """that the rung was asked"""

    @property
    def text(self) -> str:
        """What follows the verdict, for people."""
        all_asked = self.documents == self.of
        so_far = f"all {self.of:,} questions" if all_asked else f"{self.documents:,} of {self.of:,} questions"
        if self.state in ("early", "end"):
            return f"decided after {so_far}"
        if self.state == "hopeless":
            return f"cannot be decided with the questions that exist, stopped after {so_far}"
        ends = {"undecided": "", "stopped": ", where asking stopped"}
        return f"after {so_far}{ends.get(self.state, ' so far')}"


class AggregateSummary(Record):
    """Mean over the tasks by their weights, which are of the rung and the baseline alone."""

    tasks: tuple[str, ...]
    """those with a weight, or of which nothing is known"""
    score_percent: Estimate
    gained: int | None
    lost: int | None
    changed: int | None
    difference_points: Estimate
    relative_drop_percent: Estimate
    recovery_percent: Estimate
    """mean score over the baseline's"""
    recovery_above_chance_percent: Estimate
    """the same of what both score above chance"""
    verdict: Verdict | None
    """the one that counts, against the margin in force; None for the baseline, and where nothing is compared"""
    more_questions: int | None
    """about how many more would decide against the margin in force; 0: it is decided"""
    more_questions_reason: str | None
    stopping: Stopping | None = Field(default=None, exclude_if=lambda value: value is None)
    """None where every document is asked, and for the baseline"""


class ScenarioSummary(Record):
    """One scenario on one rung; ``metrics`` has the rows of ``METRICS``."""

    scenario: str
    status: OutcomeStatus
    reason: str | None
    machine: Machine | None
    batch_size: int | None = None
    requests: int = 0
    prompt_tokens: int
    new_tokens: int
    stopped_by: str | None = None
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """empty unless ``status`` is ok"""
    ratios: dict[str, Estimate] = Field(default_factory=dict)
    """requests/s over those of each other rung that was measured here, by its name"""
    ratios_together: dict[str, Estimate] = Field(default_factory=dict)
    """the same with intervals that hold with 95% all together"""
    notes: tuple[str, ...] = ()
    """what the reader has to know: fewer than 10 requests, stopped by the time limit, a short last batch"""

    def metric(self, name: str) -> Estimate:
        if self.status == "ok":
            return self.metrics[name]
        return Estimate.unknown(Unknown(describe_status(self.status, self.reason)))


class DivergenceSummary(Record):
    """A rung's next-token distributions against the baseline's. In no verdict: it flags damage and rules none out."""

    origin: str
    """which text"""
    documents: int
    tokens: int
    kl_mean: Estimate
    """Kullback-Leibler divergence from the baseline, nats a token"""
    kl_tail: Estimate
    """that 99% of the tokens do not exceed"""
    kl_max: Estimate
    agreement_percent: Estimate
    """tokens at which both have the same most likely one"""
    perplexity: float
    perplexity_ratio: Estimate
    """the rung's over the baseline's, paired by token"""


class ChoiceChange(Record):
    """How many documents' choices differ between two ways of scoring them."""

    documents: int
    changed: int
    percent: Estimate
    largest_nats: float
    """of the differences between log-likelihoods"""


class DependenceSummary(Record):
    """How far one rung's choices depend on what they are scored with, on one task or on all; None: not measured."""

    title: str
    second_plan: ChoiceChange | None
    """in other batches against the study's own"""
    batch1: ChoiceChange | None
    """in a forward of its own against the study's batches"""
    cached: ChoiceChange | None
    """prefilled and decoded against the study's batches"""
    steps: ChoiceChange | None
    """prefilled and decoded against a forward of its own"""
    against_baseline: ChoiceChange | None
    """the rung's choices against the baseline's, on the documents of the second plan"""
    p_value: float | None
    """one-sided, of no more flips against the baseline than on the rung's own floor and on the baseline's"""
    excess_points: Estimate | None
    """of those flips over the larger floor, on the same documents"""
    flips: FlipsVerdict | None
    """None for the baseline, and where a floor is unknown"""


class RungSummary(Record):
    rung: str
    title: str
    status: OutcomeStatus
    """the checkpoint's own; a measurement's is in its scenario or task"""
    reason: str | None
    content_hash: str | None
    same_as: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """the rung with the same content, whose measurements are not told a second time as this one's"""
    stored_bytes: int | None
    loaded_bytes: int | None
    audit: Audit | None
    tasks: tuple[TaskSummary, ...]
    aggregate: AggregateSummary
    scenarios: tuple[ScenarioSummary, ...]
    failures: tuple[str, ...]
    """measurements that did not end well, one line each"""
    missing: tuple[str, ...] = ()
    """all measurements that the study has not come to, or that no part of a merged one plans"""
    missing_tasks: tuple[str, ...] = ()
    """those of them that answer questions for the first time"""
    divergence: DivergenceSummary | None = None
    no_divergence_reason: str | None = None
    """why there is none, where it is planned"""
    dependence: DependenceSummary | None = None
    """of the choices of all tasks on the batch"""
    dependence_by_task: tuple[DependenceSummary, ...] = ()
    products: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """way of scoring -> the matrix products that it ran, as far as they were looked at"""
    scoring: dict[str, Scoring | None] = Field(default_factory=dict)
    """task that was answered -> by what; None: not recorded"""

    def scenario(self, name: str) -> ScenarioSummary | None:
        return next((scenario for scenario in self.scenarios if scenario.scenario == name), None)

    def metric(self, scenario: str, name: str) -> Estimate:
        found = self.scenario(scenario)
        return found.metric(name) if found else Estimate.unknown(Unknown(f"{scenario} was not measured"))


class Summary(Record):
    """Everything derived from one study's records."""

    source: Source
    suite: str
    baseline: str
    default_margin_points: float
    """the suite's"""
    margin_points: float
    """in force: how many points of the aggregate a rung may lose"""
    all_questions_asked: bool = False
    """whether no task was limited, so that its data set has no more"""
    planned_measurements: int = 0
    missing_measurements: int = 0
    """planned ones that the study has not come to"""
    rungs: tuple[RungSummary, ...]
    notes: tuple[str, ...]
    """facts every report shows first, such as a source that was already quantized"""
    measured_on: str | None = None
    """which machines these figures are of, where the study has others too"""

    @property
    def unfinished(self) -> str:
        """What stands before anything that may change when the study goes on; empty where all is measured."""
        if not self.missing_measurements:
            return ""
        done = self.planned_measurements - self.missing_measurements
        return f"Unfinished, {done} of {self.planned_measurements} measurements so far"

    @property
    def has_accuracy(self) -> bool:
        """Whether the study plans accuracy, measured or not."""
        return any(rung.tasks for rung in self.rungs)

    @property
    def has_scores(self) -> bool:
        """Whether any task has been answered."""
        return any(rung.scoring for rung in self.rungs)

    @property
    def has_divergence(self) -> bool:
        """Whether the study plans divergence, measured or not."""
        return any(rung.divergence or rung.no_divergence_reason for rung in self.rungs)

    @property
    def baseline_score(self) -> Estimate:
        """Its aggregate."""
        found = self.rung(self.baseline)
        return found.aggregate.score_percent if found else Estimate.unknown(Unknown("it is not in the study"))

    def rung(self, name: str) -> RungSummary | None:
        return next((rung for rung in self.rungs if rung.rung == name), None)
