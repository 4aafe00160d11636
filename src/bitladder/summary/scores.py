"""What one rung scored, and how far from the baseline: one row of Tables 1 and 2, made of `pools`."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bitladder.records import AccuracyOutcome
from bitladder.records.base import Unknown, all_known, known
from bitladder.stats.aggregate import SameQuestions, combine_dependent
from bitladder.stats.interval import (
    CONFIDENCE,
    Interval,
    mean_interval,
    ratio_interval,
    spread,
    t_interval,
    wilson_interval,
)
from bitladder.stats.paired import Comparison, PairedCounts, PairedMean, clustering_of, paired_difference
from bitladder.summary.questions import (
    QuestionPool,
    ask_the_same,
    clusters_over,
    is_binary,
    mean_chance,
    metric_values,
    primary_metric,
)
from bitladder.summary.table import Estimate


def is_share(outcomes: Iterable[AccuracyOutcome]) -> bool:
    """Whether the primary metric is a mean of values between 0 and 1 that is better when higher: a score in per cent.

    Asked of all rungs' outcomes of one row together, so that a row has one unit.
    """
    for outcome in outcomes:
        metric = primary_metric(outcome.metrics)
        if not metric.higher_is_better or metric.aggregation != "mean":
            return False
        key = metric.key
        for document in outcome.documents:
            value = document.metrics[key]
            if isinstance(value, tuple) or not 0 <= value <= 1:
                return False
    return True


class Score(NamedTuple):
    """A score or a difference in fractions of 1, with its interval or the reason for none."""

    value: float
    interval: Interval | Unknown

    def percent(self) -> Estimate:
        """The same in per cent or points."""
        return Estimate.of(self.value, self.interval, scale=100)


def row_score(pools: Sequence[QuestionPool], confidence: float = CONFIDENCE) -> Score:
    """Wilson's interval, or Student's t where answers are not just right or wrong."""
    return _mean_of_pots(pools, [pool.values for pool in pools], confidence)


def row_norm_score(pools: Sequence[QuestionPool]) -> Score | None:
    """Length-normalised accuracy; None where a task lacks it."""
    values = [pool.norm_values for pool in pools if pool.norm_values is not None]
    return _mean_of_pots(pools, values, CONFIDENCE) if len(values) == len(pools) else None


def _mean_of_pots(pools: Sequence[QuestionPool], values: Sequence[Sequence[float]], confidence: float) -> Score:
    """Over all pools together where they ask the same questions, else as if they rose and fell together."""
    value = sum(sum(part) / len(part) for part in values) / len(values)
    if len(pools) == 1 or ask_the_same(pools):
        return Score(value, score_interval([one for part in values for one in part], clusters_over(pools), confidence))
    intervals = all_known(
        score_interval(part, pool.clusters, confidence) for part, pool in zip(values, pools, strict=True)
    )
    return Score(value, intervals if isinstance(intervals, Unknown) else combine_dependent(intervals))


def score_interval(
    values: Sequence[float], clusters: Sequence[str] | None = None, confidence: float = CONFIDENCE
) -> Interval | Unknown:
    """Interval of a mean score: Wilson's for right and wrong answers, Student's t for any others.

    None for a single cluster, see `cluster_spread`, and for equal scores of another kind. Of clustered documents both
    are those of the effective sample, see `PairedCounts`.
    """
    clustering = clustering_of(values, clusters)
    if isinstance(clustering, Unknown):
        return clustering
    effect, degrees = clustering or (1.0, None)
    if is_binary(values):
        return wilson_interval(sum(values) / effect, len(values) / effect, confidence, degrees)
    summary = spread(values)
    if isinstance(summary, Unknown):
        return summary
    mean, sd = summary
    return t_interval(mean, sd * math.sqrt(effect), len(values), confidence, degrees)


def chance_of(pools: Sequence[QuestionPool]) -> float | Unknown | None:
    return mean_chance([pool.chance for pool in pools if pool.chance is not None], len(pools))


def above_chance(pools: Sequence[QuestionPool]) -> float:
    """Score less what guessing scores, as a fraction of 1. A chance that isn't known is taken as 0."""
    return row_score(pools).value - (known(chance_of(pools)) or 0.0)


class Change(NamedTuple):
    """A mean difference to the baseline in fractions of 1, with what gives its interval."""

    value: float
    comparison: Comparison | Unknown


@dataclass(frozen=True)
class RowComparison:
    """A row's score minus the baseline's on the same questions, in fractions of 1."""

    value: float
    comparison: Comparison | Unknown
    gained: int | None
    """right here and wrong on the baseline, over all pools; None where some change by less than that"""
    lost: int | None
    changed: int | None
    """questions with another choice than on the baseline, right or wrong; None where nothing is chosen"""
    right: Change | None = None
    """of the right choice's probability; None where some question has none that is known"""


def find_unpaired(pools: Sequence[QuestionPool], baseline: Sequence[QuestionPool]) -> Unknown | None:
    """Why two rungs' answers cannot be paired: a document or a prompt that only one of them has."""
    for pool, other in zip(pools, baseline, strict=True):
        if pool.questions == other.questions:  # in one order, as they mostly are
            continue
        missing = len(set(other.questions) - set(pool.questions))
        added = len(set(pool.questions) - set(other.questions))
        if missing or added:
            return Unknown(
                f"{pool.title}: the questions differ by document or prompt: "
                f"{missing:,} of {len(other.questions):,} are the baseline's alone, {added:,} are this rung's alone"
            )
    return None


def compare(pools: Sequence[QuestionPool], baseline: Sequence[QuestionPool]) -> RowComparison:
    """Difference to the baseline, paired by document and prompt. The pools have the same questions, in any order.

    Interval: Tango's where answers turn from wrong to right or back, paired Student's t for others; several pools with
    the same questions are compared by question, others as if they rose and fell together. Raises KeyError for unpaired
    questions.
    """
    pairs = list(zip(pools, baseline, strict=True))
    differences = [paired_values(pool, other, pool.values, other.values) for pool, other in pairs]
    binary = {-1.0, 0.0, 1.0}.issuperset(one for part in differences for one in part)
    choices = [
        paired_values(pool, other, pool.choices, other.choices) if pool.choices and other.choices else None
        for pool, other in pairs
    ]
    right = [paired_values(pool, other, pool.right, other.right) for pool, other in pairs if pool.right and other.right]
    value, comparison = _change(pools, differences)
    return RowComparison(
        value=value,
        comparison=comparison,
        gained=sum(part.count(1.0) for part in differences) if binary else None,
        lost=sum(part.count(-1.0) for part in differences) if binary else None,
        changed=None if None in choices else sum(bool(one) for part in choices for one in part or ()),
        right=_change(pools, right) if len(right) == len(pools) else None,
    )


def _change(pools: Sequence[QuestionPool], differences: Sequence[Sequence[float]]) -> Change:
    """From each pool's differences."""
    value = sum(sum(part) / len(part) for part in differences) / len(pools)
    if len(pools) == 1 or ask_the_same(pools):
        everything = [one for part in differences for one in part]
        return Change(value, paired_difference(everything, clusters_over(pools), len(pools)))
    parts: list[PairedCounts | PairedMean] | Unknown = all_known(
        paired_difference(part, pool.clusters) for part, pool in zip(differences, pools, strict=True)
    )
    return Change(value, parts if isinstance(parts, Unknown) else SameQuestions(parts=tuple(parts)))


def paired_values(
    pool: QuestionPool, other: QuestionPool, values: Sequence[float], before: Sequence[float]
) -> list[float]:
    """By question, this pool's values less the other's, in the order of this one's questions."""
    if pool.questions == other.questions:
        return [value - first for value, first in zip(values, before, strict=True)]
    known = dict(zip(other.questions, before, strict=True))
    return [value - known[question] for question, value in zip(pool.questions, values, strict=True)]


def raw_score(outcomes: Sequence[AccuracyOutcome]) -> Estimate:
    """Score in the metric's own unit, as lm-eval aggregates it, from the documents of one or more tasks.

    A pair (log-likelihood, weight) is a term of -sum / sum of weights: divided by ln 2 for ``bits_per_byte``, its
    exponential for ``weighted_perplexity``. Documents are taken as independent. Other aggregations than these, ``mean``
    and ``perplexity`` are lm-eval's own figure, without an interval.
    """
    metric = primary_metric(outcomes[0].metrics)
    values = [document.metrics[metric.key] for outcome in outcomes for document in outcome.documents]
    pairs = [value for value in values if isinstance(value, tuple)]
    numbers = [value for value in values if not isinstance(value, tuple)]
    if pairs and metric.aggregation in ("bits_per_byte", "weighted_perplexity"):
        losses = [-loglikelihood for loglikelihood, _ in pairs]
        weights = [weight for _, weight in pairs]
        transform = _bits if metric.aggregation == "bits_per_byte" else math.exp
        return _transformed(sum(losses) / sum(weights), ratio_interval(losses, weights), transform)
    if numbers and metric.aggregation == "mean":
        return _transformed(sum(numbers) / len(numbers), mean_interval(numbers), float)
    if numbers and metric.aggregation == "perplexity":
        losses = [-loglikelihood for loglikelihood in numbers]
        return _transformed(sum(losses) / len(losses), mean_interval(losses), math.exp)
    if len(outcomes) == 1 and metric.key in outcomes[0].harness_results:
        reason = f"no interval: {metric.aggregation} is no mean over documents"
        return Estimate(value=outcomes[0].harness_results[metric.key], reason=reason)
    return Estimate.unknown(Unknown(f"{metric.name} of several tasks cannot be pooled by {metric.aggregation}"))


def _bits(nats: float) -> float:
    return nats / math.log(2)


def _transformed(value: float, interval: Interval | Unknown, transform: Callable[[float], float]) -> Estimate:
    if isinstance(interval, Unknown):
        return Estimate(value=transform(value), reason=interval.reason)
    return Estimate(value=transform(interval.value), low=transform(interval.low), high=transform(interval.high))


def disagreements(outcome: AccuracyOutcome) -> list[str]:
    """Where the mean of the stored answers is not lm-eval's own figure, which would be a bug of ours."""
    found = []
    for metric in outcome.metrics:
        values = metric_values(outcome, metric)
        theirs = outcome.harness_results.get(metric.key)
        if metric.aggregation != "mean" or theirs is None or len(values) < len(outcome.documents):
            continue
        ours = sum(values) / len(values)
        if abs(ours - theirs) > 1e-6:
            found.append(f"lm-eval says {metric.name} {theirs:.6f}, the stored answers give {ours:.6f}.")
    return found
