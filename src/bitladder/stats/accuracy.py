"""The accuracy side of a summary: every row of every rung, and the aggregate over the rows with signal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bitladder.records import AccuracyOutcome, TaskGroup
from bitladder.stats import scores
from bitladder.stats.aggregate import aggregate, combine
from bitladder.stats.interval import Interval, NoInterval
from bitladder.stats.paired import Comparison
from bitladder.stats.power import QuestionsToDecide, questions_to_decide
from bitladder.stats.ratio import paired_ratio_interval
from bitladder.stats.scores import Pot, RowComparison, Score
from bitladder.stats.summary import AggregateSummary, Estimate, TaskSummary

Leaf = AccuracyOutcome | str
"""what a rung answered in one lm-eval task, or why there is nothing"""

_NO_NORM = Estimate.unknown("the task has no length-normalised accuracy")


@dataclass(frozen=True)
class Row:
    """One row over all rungs: `leaves` is rung -> lm-eval task -> what came of it."""

    group: TaskGroup
    baseline: str
    leaves: Mapping[str, Mapping[str, Leaf]]

    def outcomes(self, rung: str) -> dict[str, AccuracyOutcome] | str:
        """The outcomes of the row's tasks on one rung, or why one is missing."""
        found: dict[str, AccuracyOutcome] = {}
        for task in self.group.tasks:
            leaf = self.leaves[rung][task]
            if isinstance(leaf, str):
                return leaf if self.group.tasks == (self.group.name,) else f"{task}: {leaf}"
            found[task] = leaf
        return found

    @cached_property
    def _known(self) -> list[AccuracyOutcome]:
        return [
            leaf
            for leaves in self.leaves.values()
            for task in self.group.tasks
            if not isinstance(leaf := leaves[task], str)
        ]

    @cached_property
    def is_share(self) -> bool:
        return scores.is_share(self._known)

    @cached_property
    def metric(self) -> str:
        return " / ".join(dict.fromkeys(scores.primary_metric(outcome.metrics).name for outcome in self._known))

    @cached_property
    def pots(self) -> dict[str, tuple[Pot, ...] | str]:
        """Of a row in per cent: each rung's questions and scores, or why there are none."""
        found = {rung: self.outcomes(rung) for rung in self.leaves}
        return {self.baseline: "it is not in the study"} | {
            rung: outcomes if isinstance(outcomes, str) else scores.make_pots(self.group, outcomes)
            for rung, outcomes in found.items()
        }

    @cached_property
    def no_signal_reason(self) -> str | None:
        if not self.is_share:
            return "scored in a unit of its own: in no aggregate and no comparison"
        baseline = self.pots[self.baseline]
        if isinstance(baseline, str):
            return f"{self.baseline} has no result to compare with: {baseline}"
        return scores.no_signal_reason(baseline)

    @property
    def counts(self) -> bool:
        """Whether the row belongs to the aggregate.

        One that only lacks the baseline's result does: leaving it out would quietly change the question.
        """
        if not (self.group.in_aggregate and self.is_share):
            return False
        return self.no_signal_reason is None or isinstance(self.pots[self.baseline], str)

    @cached_property
    def chance(self) -> float | None:
        """As a fraction of 1; None for generated answers."""
        if not self.is_share:
            return None
        pots = next((pots for pots in self.pots.values() if not isinstance(pots, str)), None)
        return scores.chance_of(pots) if pots else None

    def score(self, rung: str) -> Score:
        """Raises KeyError where there is none: ask `pots` first."""
        pots = self.pots[rung]
        if isinstance(pots, str):
            raise KeyError(f"{self.group.name} on {rung}: {pots}")
        return scores.row_score(pots)

    def compare(self, rung: str) -> RowComparison | str:
        """Difference to the baseline, or why there is none."""
        if self.no_signal_reason is not None:
            return self.no_signal_reason
        pots, baseline = self.pots[rung], self.pots[self.baseline]
        if isinstance(pots, str):
            return pots
        assert not isinstance(baseline, str)  # it would have no signal
        return scores.unpaired_reason(pots, baseline) or scores.compare(pots, baseline)


def summarize_task(row: Row, rung: str) -> TaskSummary:
    """One row on one rung."""
    compared = row.compare(rung)
    score, norm, questions = _scores(row, rung)
    difference, relative, recovery = _against_baseline(row, rung, compared)
    return TaskSummary(
        name=row.group.name,
        title=row.group.title,
        metric=row.metric,
        unit="percent" if row.is_share else "raw",
        questions=questions,
        score=score,
        score_norm=norm,
        chance_percent=None if row.chance is None else 100 * row.chance,
        signal=row.no_signal_reason is None,
        no_signal_reason=row.no_signal_reason,
        in_aggregate=row.counts,
        gained=None if isinstance(compared, str) else compared.gained,
        lost=None if isinstance(compared, str) else compared.lost,
        difference_points=difference,
        relative_drop_percent=relative,
        recovery_percent=recovery,
    )


def _scores(row: Row, rung: str) -> tuple[Estimate, Estimate, int]:
    """Score, length-normalised score, and number of questions."""
    outcomes = row.outcomes(rung)
    if isinstance(outcomes, str):
        return Estimate.unknown(outcomes), Estimate.unknown(outcomes), 0
    if not row.is_share:
        documents = sum(len(outcome.documents) for outcome in outcomes.values())
        return scores.raw_score(list(outcomes.values())), _NO_NORM, documents
    pots = scores.make_pots(row.group, outcomes)
    norm = scores.row_norm_score(pots)
    questions = max(len(pot.questions) for pot in pots)
    return scores.row_score(pots).percent(), _NO_NORM if norm is None else norm.percent(), questions


def _against_baseline(row: Row, rung: str, compared: RowComparison | str) -> tuple[Estimate, Estimate, Estimate]:
    """Difference in points, relative drop in per cent, recovery above chance in per cent."""
    if isinstance(compared, str):
        unknown = Estimate.unknown(compared)
        return unknown, unknown, unknown
    if rung == row.baseline:
        return _known(0.0), _known(0.0), _known(100.0)
    score, baseline = row.score(rung), row.score(row.baseline)
    return (
        compared.difference.percent(),
        _relative_drop(score, baseline, compared.difference),
        _recovery(score, baseline, compared.difference, row.chance or 0.0),
    )


def _known(value: float) -> Estimate:
    """The baseline against itself is no estimate."""
    return Estimate(value=value, low=value, high=value)


def _relative_drop(score: Score, baseline: Score, difference: Score) -> Estimate:
    """(score - baseline) / baseline in per cent; unknown where the baseline scores 0 and has nothing to lose."""
    if not baseline.value:
        return Estimate.unknown("the baseline scores 0")
    ratio = _ratio(score, baseline, difference, 0.0)
    return Score(ratio.value - 1, _shift(ratio.interval, -1)).percent()


def _recovery(score: Score, baseline: Score, difference: Score, chance: float) -> Estimate:
    return _ratio(score, baseline, difference, chance).percent()


def _ratio(score: Score, baseline: Score, difference: Score, chance: float) -> Score:
    """Of what both score above chance."""
    value = (score.value - chance) / (baseline.value - chance)
    intervals: list[Interval] = []
    for part in (_shift(score.interval, -chance), _shift(baseline.interval, -chance), difference.interval):
        if isinstance(part, NoInterval):
            return Score(value, part)
        intervals.append(part)
    return Score(value, paired_ratio_interval(*intervals))


def _shift(interval: Interval | NoInterval, by: float) -> Interval | NoInterval:
    if isinstance(interval, NoInterval):
        return interval
    return Interval(
        low=interval.low + by, value=interval.value + by, high=interval.high + by, confidence=interval.confidence
    )


def summarize_aggregate(rows: Sequence[Row], rung: str, baseline: str, margin_points: float) -> AggregateSummary:
    """Mean over the rows with signal, the same rows for every rung; unknown where a rung or the baseline lacks one."""
    counted = [row for row in rows if row.counts]
    names = tuple(row.group.name for row in counted)
    reason = _no_aggregate_reason(rows, counted, rung, baseline)
    if reason is not None:
        return _unknown_aggregate(names, Estimate.unknown(reason), reason)
    score = _mean([row.score(rung) for row in counted])
    if rung == baseline:
        return AggregateSummary(
            tasks=names,
            score_percent=score.percent(),
            difference_points=_known(0.0),
            relative_drop_percent=_known(0.0),
            recovery_percent=_known(100.0),
            more_questions=0,
            more_questions_reason=None,
        )
    compared: list[RowComparison] = []
    for row in counted:
        comparison = row.compare(rung)
        if isinstance(comparison, str):
            return _unknown_aggregate(names, score.percent(), f"{row.group.title}: {comparison}")
        compared.append(comparison)
    baseline_score = _mean([row.score(baseline) for row in counted])
    chance = sum(row.chance or 0.0 for row in counted) / len(counted)
    difference, more = _difference(compared, margin_points)
    return AggregateSummary(
        tasks=names,
        score_percent=score.percent(),
        difference_points=difference.percent(),
        relative_drop_percent=_relative_drop(score, baseline_score, difference),
        recovery_percent=_recovery(score, baseline_score, difference, chance),
        more_questions=more.more,
        more_questions_reason=more.reason,
    )


def _no_aggregate_reason(rows: Sequence[Row], counted: Sequence[Row], rung: str, baseline: str) -> str | None:
    if not rows:
        return "accuracy was not measured"
    if not counted:
        return "no task has signal"
    for row in counted:
        for who in (baseline, rung):
            pots = row.pots[who]
            if isinstance(pots, str):
                return f"{who} has no {row.group.title}: {pots}"
    return None


def _unknown_aggregate(names: tuple[str, ...], score: Estimate, reason: str) -> AggregateSummary:
    unknown = Estimate.unknown(reason)
    return AggregateSummary(
        tasks=names,
        score_percent=score,
        difference_points=unknown,
        relative_drop_percent=unknown,
        recovery_percent=unknown,
        more_questions=None,
        more_questions_reason=reason,
    )


def _mean(parts: Sequence[Score]) -> Score:
    """Mean of scores on different questions."""
    intervals = [part.interval for part in parts if isinstance(part.interval, Interval)]
    missing = next((part.interval for part in parts if isinstance(part.interval, NoInterval)), None)
    return Score(sum(part.value for part in parts) / len(parts), missing or combine(intervals))


def _difference(compared: Sequence[RowComparison], margin_points: float) -> tuple[Score, QuestionsToDecide]:
    """Mean difference, and how many more questions would decide it."""
    value = sum(part.value for part in compared) / len(compared)
    comparisons: list[Comparison] = []
    for part in compared:
        if isinstance(part.comparison, NoInterval):
            return Score(value, part.comparison), QuestionsToDecide(more=None, reason=part.comparison.reason)
        comparisons.append(part.comparison)
    return Score(value, aggregate(comparisons)), questions_to_decide(comparisons, margin_points / 100)
