"""What one rung scored, and how far from the baseline: one row of Tables 1 and 2.

A row is a group of lm-eval tasks. Its questions lie in *pots*: one pot for all of them (MMLU, or a single task), or one
a task where the tasks put the same questions in different words (GSM8K strict and chain-of-thought). A pot's score is
its mean over questions, a row's the mean over its pots.

Documents that resemble each other are clusters: HellaSwag's by source, and the answers to one question in several pots.
The tasks of one pot (MMLU's subjects) and the templates of the built-in suite are strata, a fixed list that is asked
whole: pooling them as if they were drawn together takes in what lies between them too, so the interval is at most a
little too wide.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bitladder.records import AccuracyOutcome, MetricInfo, TaskGroup
from bitladder.stats.aggregate import SameQuestions, combine_dependent
from bitladder.stats.clusters import clustering_of
from bitladder.stats.interval import (
    CONFIDENCE,
    Interval,
    NoInterval,
    mean_interval,
    spread,
    t_interval,
    wilson_interval,
)
from bitladder.stats.paired import Comparison, PairedCounts, PairedMean, paired_counts, paired_mean
from bitladder.stats.ratio import ratio_interval
from bitladder.stats.summary import Estimate

FEWEST_RIGHT = 20
"""right answers without which a baseline that generates text shows no signal"""

Question = tuple[str, str, str, int]
"""task, document hash, prompt hash, and how often both came before in the task"""


def primary_metric(metrics: Sequence[MetricInfo]) -> MetricInfo:
    """The metric that is a task's score: ``acc``, else ``exact_match``, else the first that is better when higher.

    Of several filters ``strict-match``, else the first listed. A task with none of these is scored by its bits per
    byte, else its first metric. Raises ValueError for no metrics.
    """
    if not metrics:
        raise ValueError("a task without metrics has no score")
    for name in ("acc", "exact_match"):
        named = [metric for metric in metrics if metric.name == name]
        if named:
            return next((metric for metric in named if metric.filter == "strict-match"), named[0])
    better_when_higher = next((metric for metric in metrics if metric.higher_is_better), None)
    bits = next((metric for metric in metrics if metric.name == "bits_per_byte"), None)
    return better_when_higher or bits or metrics[0]


def norm_metric(metrics: Sequence[MetricInfo]) -> MetricInfo | None:
    """Length-normalised accuracy, shown beside ``acc``."""
    return next((metric for metric in metrics if metric.name == "acc_norm"), None)


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


def choice_probabilities(loglikelihoods: Sequence[float]) -> tuple[float, ...]:
    """Of choices as if there were no others, the softmax of their log-likelihoods; of a single one its own."""
    if len(loglikelihoods) == 1:
        return (math.exp(loglikelihoods[0]),)
    weights = [math.exp(one - max(loglikelihoods)) for one in loglikelihoods]
    return tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True)
class Pot:
    """Questions that are pooled, with one rung's scores between 0 and 1."""

    title: str
    questions: tuple[Question, ...]
    values: tuple[float, ...]
    norm_values: tuple[float, ...] | None
    """acc_norm by question, where every task of the pot has it"""
    chance: float | None
    """mean over the questions of 1 / choices; None where the answers are not given to choose from"""
    clusters: tuple[str, ...] | None = None
    """by question; None where no two resemble each other"""
    choices: tuple[int, ...] | None = None
    """of ``acc`` the likeliest of each question's answers; None where another metric chooses, or nothing is chosen"""
    right: tuple[float, ...] | None = None
    """probability of each question's right choice; None where one has none that is known"""

    @property
    def score(self) -> float:
        return sum(self.values) / len(self.values)


def make_pots(group: TaskGroup, outcomes: Mapping[str, AccuracyOutcome]) -> tuple[Pot, ...]:
    """The pots of a row, from the outcome of each of its tasks. Raises KeyError where one is missing."""
    if group.pooling == "documents":
        return (_pot(group.title, {task: outcomes[task] for task in group.tasks}),)
    return tuple(_pot(task, {task: outcomes[task]}) for task in group.tasks)


def _pot(title: str, outcomes: Mapping[str, AccuracyOutcome]) -> Pot:
    questions: list[Question] = []
    values: list[float] = []
    norm_values: list[float] = []
    chances: list[float] = []
    clusters: list[str] = []
    choices: list[int] = []
    right: list[float] = []
    clustered = any(document.cluster for outcome in outcomes.values() for document in outcome.documents)
    for task, outcome in outcomes.items():
        primary = primary_metric(outcome.metrics)
        seen: Counter[tuple[str, str]] = Counter()
        for document in outcome.documents:
            hashes = (document.doc_hash, document.prompt_hash)
            questions.append((task, *hashes, seen[hashes]))
            seen[hashes] += 1
            if clustered:
                clusters.append(f"{task} {document.cluster or document.doc_hash}")
            answers = document.loglikelihoods
            if answers and outcome.output_type == "multiple_choice":
                chances.append(1 / len(answers))
                if primary.name == "acc":
                    choices.append(answers.index(max(answers)))
                if document.target is not None:
                    right.append(choice_probabilities(answers)[document.target])
        values += _values(outcome, primary)
        norm = norm_metric(outcome.metrics)
        norm_values += _values(outcome, norm) if norm else []
    return Pot(
        title=title,
        questions=tuple(questions),
        values=tuple(values),
        norm_values=tuple(norm_values) if len(norm_values) == len(values) else None,
        chance=sum(chances) / len(chances) if len(chances) == len(values) else None,
        clusters=tuple(clusters) if clustered else None,
        choices=tuple(choices) if len(choices) == len(values) else None,
        right=tuple(right) if len(right) == len(values) else None,
    )


def _values(outcome: AccuracyOutcome, metric: MetricInfo) -> list[float]:
    key = metric.key
    values = [document.metrics[key] for document in outcome.documents]
    return [value for value in values if not isinstance(value, tuple)]


class Score(NamedTuple):
    """A score or a difference in fractions of 1, with its interval or the reason for none."""

    value: float
    interval: Interval | NoInterval

    def percent(self) -> Estimate:
        """The same in per cent or points."""
        if isinstance(self.interval, NoInterval):
            return Estimate(value=100 * self.value, reason=self.interval.reason)
        return Estimate(value=100 * self.value, low=100 * self.interval.low, high=100 * self.interval.high)


def row_score(pots: Sequence[Pot], confidence: float = CONFIDENCE) -> Score:
    """Wilson's interval, or Student's t where answers are not just right or wrong."""
    return _mean_of_pots(pots, [pot.values for pot in pots], confidence)


def row_norm_score(pots: Sequence[Pot]) -> Score | None:
    """Length-normalised accuracy; None where a task lacks it."""
    values = [pot.norm_values for pot in pots if pot.norm_values is not None]
    return _mean_of_pots(pots, values, CONFIDENCE) if len(values) == len(pots) else None


def _mean_of_pots(pots: Sequence[Pot], values: Sequence[Sequence[float]], confidence: float) -> Score:
    """Over all pots together where they ask the same questions, else as if they rose and fell together."""
    value = sum(sum(part) / len(part) for part in values) / len(values)
    if len(pots) == 1 or ask_the_same(pots):
        return Score(value, score_interval([one for part in values for one in part], _clusters(pots), confidence))
    intervals = [score_interval(part, pot.clusters, confidence) for part, pot in zip(values, pots, strict=True)]
    known = [interval for interval in intervals if isinstance(interval, Interval)]
    missing = next((interval for interval in intervals if isinstance(interval, NoInterval)), None)
    return Score(value, missing or combine_dependent(known))


def score_interval(
    values: Sequence[float], clusters: Sequence[str] | None = None, confidence: float = CONFIDENCE
) -> Interval | NoInterval:
    """Interval of a mean score: Wilson's for right and wrong answers, Student's t for any others.

    Of clustered documents both are those of the effective sample, see `PairedCounts`.
    """
    clustering = clustering_of(values, clusters)
    effect, degrees = clustering or (1.0, None)
    if is_binary(values):
        return wilson_interval(sum(values) / effect, len(values) / effect, confidence, degrees)
    summary = spread(values)
    if isinstance(summary, NoInterval):
        return summary
    mean, sd = summary
    return t_interval(mean, sd * math.sqrt(effect), len(values), confidence, degrees)


def ask_the_same(pots: Sequence[Pot]) -> bool:
    """Whether all pots have the same documents, in whatever words and order."""
    first, *others = (sorted(doc_hash for _, doc_hash, _, _ in pot.questions) for pot in pots)
    return all(documents == first for documents in others)


def _clusters(pots: Sequence[Pot]) -> list[str] | tuple[str, ...] | None:
    """The cluster of each answer of pots that `ask_the_same`: of several, the question."""
    if len(pots) == 1:
        return pots[0].clusters
    return [doc_hash for pot in pots for _, doc_hash, _, _ in pot.questions]


def chance_of(pots: Sequence[Pot]) -> float | None:
    chances = [pot.chance for pot in pots if pot.chance is not None]
    return sum(chances) / len(chances) if len(chances) == len(pots) else None


def no_signal_reason(baseline: Sequence[Pot]) -> str | None:
    """Why nothing can be compared on these questions; None where the baseline does better than guessing in every pot.

    Its interval is not above chance; or, where there are no choices to guess from, fewer than 20 answers are right.
    """
    for pot in baseline:
        where = f"{pot.title}: " if len(baseline) > 1 else ""
        if pot.chance is None:
            right = sum(value > 0 for value in pot.values)
            if right < FEWEST_RIGHT:
                return f"{where}the baseline has {right} right, fewer than {FEWEST_RIGHT}"
            continue
        interval = score_interval(pot.values, pot.clusters)
        if isinstance(interval, NoInterval):
            return f"{where}no interval to hold against chance: {interval.reason}"
        if interval.low <= pot.chance:
            return (
                f"{where}the baseline's {100 * interval.value:.1f}% [{100 * interval.low:.1f}, "
                f"{100 * interval.high:.1f}] is not above chance, {100 * pot.chance:.1f}%"
            )
    return None


class Change(NamedTuple):
    """A mean difference to the baseline in fractions of 1, with what gives its interval."""

    value: float
    comparison: Comparison | NoInterval


@dataclass(frozen=True)
class RowComparison:
    """A row's score minus the baseline's on the same questions, in fractions of 1."""

    value: float
    comparison: Comparison | NoInterval
    gained: int | None
    """right here and wrong on the baseline, over all pots; None where answers are not just right or wrong"""
    lost: int | None
    changed: int | None
    """questions with another choice than on the baseline, right or wrong; None where nothing is chosen"""
    right: Change | None = None
    """of the right choice's probability; None where some question has none that is known"""


def unpaired_reason(pots: Sequence[Pot], baseline: Sequence[Pot]) -> str | None:
    """Why two rungs' answers cannot be paired: a document or a prompt that only one of them has."""
    for pot, other in zip(pots, baseline, strict=True):
        missing = len(set(other.questions) - set(pot.questions))
        added = len(set(pot.questions) - set(other.questions))
        if missing or added:
            return (
                f"{pot.title}: the questions differ by document or prompt: "
                f"{missing} of {len(other.questions)} are the baseline's alone, {added} are this rung's alone"
            )
    return None


def compare(pots: Sequence[Pot], baseline: Sequence[Pot]) -> RowComparison:
    """Difference to the baseline, paired by document and prompt. The pots have the same questions, in any order.

    Interval: Tango's for right and wrong answers, paired Student's t for others; several pots with the same questions
    are compared by question, others as if they rose and fell together. Raises KeyError for unpaired questions.
    """
    binary = all(is_binary(pot.values) for pot in (*pots, *baseline))
    pairs = list(zip(pots, baseline, strict=True))
    differences = [_paired(pot, other, pot.values, other.values) for pot, other in pairs]
    choices = [
        _paired(pot, other, pot.choices, other.choices) if pot.choices and other.choices else None
        for pot, other in pairs
    ]
    right = [_paired(pot, other, pot.right, other.right) for pot, other in pairs if pot.right and other.right]
    value, comparison = _change(pots, differences, binary)
    return RowComparison(
        value=value,
        comparison=comparison,
        gained=sum(part.count(1.0) for part in differences) if binary else None,
        lost=sum(part.count(-1.0) for part in differences) if binary else None,
        changed=None if None in choices else sum(bool(one) for part in choices for one in part or ()),
        right=_change(pots, right, False) if len(right) == len(pots) else None,
    )


def _change(pots: Sequence[Pot], differences: Sequence[Sequence[float]], binary: bool) -> Change:
    """From each pot's differences."""
    value = sum(sum(part) / len(part) for part in differences) / len(pots)
    if len(pots) == 1 or ask_the_same(pots):
        everything = [one for part in differences for one in part]
        return Change(value, _comparison(everything, binary, _clusters(pots), len(pots)))
    parts = [_comparison(part, binary, pot.clusters) for part, pot in zip(differences, pots, strict=True)]
    return Change(value, _same_questions(parts))


def _paired(pot: Pot, other: Pot, values: Sequence[float], before: Sequence[float]) -> list[float]:
    """This pot's values less the other's, in the order of this one's questions."""
    known = dict(zip(other.questions, before, strict=True))
    return [value - known[question] for question, value in zip(pot.questions, values, strict=True)]


def _comparison(
    differences: Sequence[float], binary: bool, clusters: Sequence[str] | None, answers_a_question: int = 1
) -> PairedCounts | PairedMean | NoInterval:
    make = paired_counts if binary else paired_mean
    return make(differences, clusters, answers_a_question)


def _same_questions(parts: Sequence[PairedCounts | PairedMean | NoInterval]) -> SameQuestions | NoInterval:
    missing = next((part for part in parts if isinstance(part, NoInterval)), None)
    return missing or SameQuestions(parts=tuple(part for part in parts if not isinstance(part, NoInterval)))


def is_binary(values: Sequence[float]) -> bool:
    return {0.0, 1.0}.issuperset(values)


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
    return Estimate.unknown(f"{metric.name} of several tasks cannot be pooled by {metric.aggregation}")


def _bits(nats: float) -> float:
    return nats / math.log(2)


def _transformed(value: float, interval: Interval | NoInterval, transform: Callable[[float], float]) -> Estimate:
    if isinstance(interval, NoInterval):
        return Estimate(value=transform(value), reason=interval.reason)
    return Estimate(value=transform(interval.value), low=transform(interval.low), high=transform(interval.high))


def disagreements(outcome: AccuracyOutcome) -> list[str]:
    """Where the mean of the stored answers is not lm-eval's own figure, which would be a bug of ours."""
    found = []
    for metric in outcome.metrics:
        values = _values(outcome, metric)
        theirs = outcome.harness_results.get(metric.key)
        if metric.aggregation != "mean" or theirs is None or len(values) < len(outcome.documents):
            continue
        ours = sum(values) / len(values)
        if abs(ours - theirs) > 1e-6:
            found.append(f"lm-eval says {metric.name} {theirs:.6f}, the stored answers give {ours:.6f}.")
    return found
