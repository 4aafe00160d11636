"""The accuracy side of a summary: every row of every rung, and the aggregate over the rows that have a weight."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bitladder.records.base import Unknown, all_known, known, reason_of
from bitladder.results.stages import Staging
from bitladder.stats.aggregate import MeanOfTasks, combine
from bitladder.stats.interval import CONFIDENCE, Interval, paired_ratio_interval
from bitladder.stats.paired import Comparison
from bitladder.stats.verdict import Judged, judge, shared_confidence
from bitladder.summary import scores
from bitladder.summary.questions import most_correlated
from bitladder.summary.row import Row, assess
from bitladder.summary.scores import RowComparison, Score
from bitladder.summary.table import AggregateSummary, Estimate, Stopping, TaskSummary

Correlations = tuple[tuple[float, ...], ...]
"""of rows with each other, one line a row"""

ScoreAt = Callable[[float], Score]
"""confidence -> a score with its interval"""

_NO_NORM = Estimate.unknown(Unknown("the task has no length-normalised accuracy"))


def summarize_tasks(row: Row, margin_points: float) -> dict[str, TaskSummary]:
    """One row on each rung, all judged together against the margin."""
    judged = _judge_all(row.compared, row.baseline, margin_points)
    confidence = shared_confidence(max(len(judged), 1))
    return {rung: _summarize_task(row, rung, judged.get(rung), confidence) for rung in row.leaves}


def _judge_all(
    compared: Mapping[str, RowComparison | Unknown], baseline: str, margin_points: float
) -> dict[str, Judged]:
    """Of the rungs that have an interval; the baseline is no rung to be judged."""
    return judge(
        {
            rung: one.comparison
            for rung, one in compared.items()
            if rung != baseline and not isinstance(one, Unknown) and not isinstance(one.comparison, Unknown)
        },
        margin_points / 100,
    )


def _summarize_task(row: Row, rung: str, judged: Judged | None, confidence: float) -> TaskSummary:
    compared = row.compared[rung]
    score, norm, questions = _scores(row, rung)
    against = _against(
        compared,
        judged,
        lambda confidence: row.score(rung, confidence),
        lambda confidence: row.baseline_score(rung, confidence),
        lambda: row.chance or 0.0,
        is_baseline=rung == row.baseline,
    )
    chance, no_signal = known(row.chance), row.without_signal[rung]
    to_decide = judged.to_decide if judged else None
    return TaskSummary(
        name=row.group.name,
        title=row.group.title,
        metric=row.metric,
        unit="percent" if row.is_share else "raw",
        questions=questions,
        planned_questions=row.planned_questions,
        score=score,
        score_norm=norm,
        chance_percent=None if chance is None else 100 * chance,
        chance_reason=reason_of(row.chance),
        signal=no_signal is None,
        no_signal_reason=reason_of(no_signal),
        weight=row.weights[rung] if row.group.in_aggregate else None,
        gained=None if isinstance(compared, Unknown) else compared.gained,
        lost=None if isinstance(compared, Unknown) else compared.lost,
        baseline_percent=_baseline_percent(row, rung),
        changed=None if isinstance(compared, Unknown) else compared.changed,
        difference_points=against.difference,
        relative_drop_percent=against.relative_drop,
        recovery_percent=against.recovery,
        recovery_above_chance_percent=against.recovery_above_chance,
        right_probability_points=_right_change(row, rung, confidence),
        verdict="no signal" if row.is_share and no_signal else judged.verdict if judged else None,
        more_questions=known(to_decide),
        more_questions_reason=reason_of(to_decide),
    )


def _right_change(row: Row, rung: str, confidence: float) -> Estimate:
    compared = row.compared[rung]
    if isinstance(compared, Unknown):
        return Estimate.unknown(compared)
    if compared.right is None:
        return Estimate.unknown(Unknown("not every question has choices of which one is known to be right"))
    if rung == row.baseline:
        return _known(0.0)
    value, comparison = compared.right
    return Score(value, comparison if isinstance(comparison, Unknown) else comparison.interval(confidence)).percent()


def _scores(row: Row, rung: str) -> tuple[Estimate, Estimate, int]:
    """Score, length-normalised score, and number of questions."""
    outcomes = row.outcomes(rung)
    if isinstance(outcomes, Unknown):
        return Estimate.unknown(outcomes), Estimate.unknown(outcomes), 0
    if not row.is_share:
        documents = sum(len(outcome.documents) for outcome in outcomes.values())
        return scores.raw_score(list(outcomes.values())), _NO_NORM, documents
    pools = row.pools[rung]
    assert not isinstance(pools, Unknown)  # the outcomes are there
    norm = scores.row_norm_score(pools)
    questions = max(len(pool.questions) for pool in pools)
    return scores.row_score(pools).percent(), _NO_NORM if norm is None else norm.percent(), questions


def _baseline_percent(row: Row, rung: str) -> float | None:
    if row.planned_questions is None or not row.is_share or isinstance(row.baselines[rung], Unknown):
        return None
    return 100 * row.baseline_score(rung).value


@dataclass(frozen=True)
class Against:
    """What is said of a rung in comparison, in points and per cent."""

    difference: Estimate
    relative_drop: Estimate
    recovery: Estimate
    recovery_above_chance: Estimate


def _against(
    compared: RowComparison | Unknown,
    judged: Judged | None,
    score: ScoreAt,
    baseline: ScoreAt,
    chance_of: Callable[[], float | Unknown],
    *,
    is_baseline: bool,
) -> Against:
    """All between limits of the same confidence, those that the rung is judged by.

    `chance_of` gives what guessing scores, and is asked only of what is compared.
    """
    if isinstance(compared, Unknown):
        return Against(*[Estimate.unknown(compared)] * 4)
    if is_baseline:
        return _SELF
    value, comparison = compared.value, compared.comparison
    if judged is None or isinstance(comparison, Unknown):
        difference = Estimate(value=100 * value, reason=_unjudged(comparison).reason)
    else:
        difference = Estimate(value=100 * judged.value, low=100 * judged.low, high=100 * judged.high)

    def ratio(above: float, less: float) -> Estimate:
        """Of what both score above `above`, in per cent, `less` so many."""
        under = baseline(CONFIDENCE).value - above
        if not under:
            return Estimate.unknown(Unknown("the baseline scores 0"))
        found = 100 * value / under + 100 - less
        if judged is None or isinstance(comparison, Unknown):
            return Estimate(value=found, reason=difference.reason)
        limits = all_known(
            _ratio_interval(score(level), baseline(level), comparison.interval(level), above) for level in judged.levels
        )
        if isinstance(limits, Unknown):
            return Estimate(value=found, reason=limits.reason)
        return Estimate(value=found, low=100 * limits[0].low - less, high=100 * limits[1].high - less)

    chance = chance_of()
    above = Estimate.unknown(chance) if isinstance(chance, Unknown) else ratio(chance, less=0.0)
    return Against(difference, ratio(0.0, less=100.0), ratio(0.0, less=0.0), above)


def _unjudged(compared: RowComparison | Comparison | Unknown) -> Unknown:
    """Why there is no verdict."""
    one = compared.comparison if isinstance(compared, RowComparison) else compared
    return one if isinstance(one, Unknown) else Unknown("not judged")


def _known(value: float) -> Estimate:
    """The baseline against itself is no estimate."""
    return Estimate(value=value, low=value, high=value)


_SELF = Against(_known(0.0), _known(0.0), _known(100.0), _known(100.0))


def _ratio_interval(score: Score, baseline: Score, difference: Interval, above: float) -> Interval | Unknown:
    both = all_known((score.interval, baseline.interval))
    if isinstance(both, Unknown):
        return both
    over, under = (
        Interval(low=one.low - above, value=one.value - above, high=one.high - above, confidence=one.confidence)
        for one in both
    )
    return paired_ratio_interval(over, under, difference)


@dataclass(frozen=True)
class _Counted:
    """The rows with a weight in one rung's aggregate."""

    rung: str
    rows: Sequence[Row]
    left_out: Sequence[Row]
    correlations: Correlations | None
    """None where they share no documents"""

    @classmethod
    def of(cls, rung: str, rows: Sequence[Row], correlations: Correlations) -> "_Counted":
        """``correlations``: of all rows."""
        places = [place for place, row in enumerate(rows) if row.counts(rung)]
        own = tuple(tuple(correlations[place][other] for other in places) for place in places)
        left_out = [row for row in rows if not row.counts(rung)]
        shares_documents = any(sum(line) > 1 for line in own)
        return cls(rung, [rows[place] for place in places], left_out, own if shares_documents else None)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(row.weights[self.rung] or 0.0 for row in self.rows)

    @cached_property
    def missing(self) -> Unknown | None:
        """Why there is no mean over the rows."""
        if not self.rows:
            return Unknown("no task has signal" if self.left_out else "accuracy was not measured")
        for row in self.rows:
            for who in (row.baseline, self.rung):
                pools = row.pools[who]
                if isinstance(pools, Unknown):
                    return pools.of(f"{who} has no {row.group.title}")
        return None

    @property
    def score_percent(self) -> Estimate:
        return self.score().percent() if self.missing is None else Estimate.unknown(self.missing)

    def score(self, confidence: float = CONFIDENCE) -> Score:
        return self._mean([row.score(self.rung, confidence) for row in self.rows])

    def baseline_score(self, confidence: float = CONFIDENCE) -> Score:
        return self._mean([row.baseline_score(self.rung, confidence) for row in self.rows])

    def _mean(self, parts: Sequence[Score]) -> Score:
        intervals = all_known(part.interval for part in parts)
        value = self.mean([part.value for part in parts])
        if isinstance(intervals, Unknown):
            return Score(value, intervals)
        return Score(value, combine(intervals, self.weights, self.correlations))

    def mean(self, values: Sequence[float]) -> float:
        """Weighted."""
        total = math.fsum(self.weights)
        return math.fsum(weight / total * value for weight, value in zip(self.weights, values, strict=True))

    @property
    def chance(self) -> float | Unknown:
        """Mean of what guessing scores, 0 where answers are generated."""
        unknown = next((row.chance for row in self.rows if isinstance(row.chance, Unknown)), None)
        return unknown or self.mean([known(row.chance) or 0.0 for row in self.rows])

    def compare(self) -> RowComparison | Unknown:
        """The mean difference, or why there is none."""
        if self.missing is not None:
            return self.missing
        titled = ((row.compared[self.rung], row.group.title) for row in self.rows)
        found = all_known(one.of(title) if isinstance(one, Unknown) else one for one, title in titled)
        if isinstance(found, Unknown):
            return found
        parts = all_known(one.comparison for one in found)
        return RowComparison(
            value=self.mean([one.value for one in found]),
            comparison=parts
            if isinstance(parts, Unknown)
            else MeanOfTasks(parts=tuple(parts), weights=self.weights, correlations=self.correlations),  # type: ignore[arg-type]  # a row's are no means of tasks
            gained=_total([one.gained for one in found]),
            lost=_total([one.lost for one in found]),
            changed=_total([one.changed for one in found]),
        )


def aggregate_score(rows: Sequence[Row], rung: str) -> Estimate:
    """In per cent, over all that the rung was asked."""
    return _Counted.of(rung, rows, _correlations(rows)).score_percent


def summarize_aggregates(
    rows: Sequence[Row],
    rungs: Sequence[str],
    baseline: str,
    margin_points: float,
    staging: Staging | None = None,
    answered: Mapping[str, int] | None = None,
) -> dict[str, AggregateSummary]:
    """Weighted mean over the rows, whose weights are of each rung and the baseline alone; unknown where one of the two
    lacks a row that counts.

    The rungs are judged together against the margin. ``staging``: where documents are asked until that is decided;
    ``answered`` then has the stages that each rung was asked.
    """
    correlations = _correlations(rows)
    counted = {rung: _Counted.of(rung, rows, correlations) for rung in rungs}
    compared = {rung: one.compare() for rung, one in counted.items()}
    if staging is None:
        judged, stopping = _judge_all(compared, baseline, margin_points), {}
    else:
        found = {rung: one for rung, one in compared.items() if rung != baseline and not isinstance(one, Unknown)}
        counting = {rung: counted[rung].rows for rung in found}
        assessed = assess(counting, found, answered or {}, staging, margin_points / 100)
        judged = {rung: one.judged for rung, one in assessed.items() if one.judged is not None}
        stopping = {rung: one.stopping for rung, one in assessed.items()}
    return {
        rung: _summarize_aggregate(one, baseline, compared[rung], judged.get(rung), stopping.get(rung))
        for rung, one in counted.items()
    }


def _correlations(rows: Sequence[Row]) -> Correlations:
    """At most so much the rows' means are correlated by documents that they share; 0 where one is in no aggregate."""

    def correlation(row: Row, other: Row) -> float:
        if row is other:
            return 1.0
        both = row.group.in_aggregate and other.group.in_aggregate and row.asked and other.asked
        return most_correlated(row.asked, other.asked) if both else 0.0

    return tuple(tuple(correlation(row, other) for other in rows) for row in rows)


def _total(counts: Sequence[int | None]) -> int | None:
    found = [count for count in counts if count is not None]
    return sum(found) if len(found) == len(counts) else None


def _summarize_aggregate(
    counted: _Counted,
    baseline: str,
    compared: RowComparison | Unknown,
    judged: Judged | None,
    stopping: Stopping | None,
) -> AggregateSummary:
    counts = known(compared)
    is_baseline = bool(counted.rows) and counted.rung == baseline
    against = _against(
        compared, judged, counted.score, counted.baseline_score, lambda: counted.chance, is_baseline=is_baseline
    )
    if is_baseline and counts:
        to_decide: int | Unknown | None = 0
    else:
        to_decide = judged.to_decide if judged else _unjudged(compared)
    return AggregateSummary(
        tasks=tuple(row.group.name for row in counted.rows),
        score_percent=counted.score_percent,
        gained=counts.gained if counts else None,
        lost=counts.lost if counts else None,
        changed=counts.changed if counts else None,
        difference_points=against.difference,
        relative_drop_percent=against.relative_drop,
        recovery_percent=against.recovery,
        recovery_above_chance_percent=against.recovery_above_chance,
        verdict="no signal" if counted.left_out and not counted.rows else judged.verdict if judged else None,
        more_questions=known(to_decide),
        more_questions_reason=reason_of(to_decide),
        stopping=stopping,
    )
