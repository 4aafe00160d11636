"""How far choices depend on the batch they are scored in, and how far next-token distributions lie apart."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from bitladder.records import (
    AccuracyOutcome,
    AccuracyTask,
    DivergenceOutcome,
    MeasurementRecord,
    Rescoring,
    RescoringOutcome,
    Way,
)
from bitladder.records.base import Unknown
from bitladder.stats.interval import CONFIDENCE, quantile, ratio_interval
from bitladder.stats.paired import clustering_of
from bitladder.stats.verdict import judge_flips
from bitladder.summary.questions import likeliest
from bitladder.summary.scores import Score, score_interval
from bitladder.summary.table import ChoiceChange, DependenceSummary, DivergenceSummary, Estimate

AskedQuestion = tuple[str, str, str]
"""task, document hash, prompt hash"""
ChoiceScoresByQuestion = Mapping[AskedQuestion, tuple[float, ...]]
"""log-likelihoods of the choices"""


@dataclass(frozen=True)
class Scored:
    """One rung's log-likelihoods: the study's own, and those of each way, with the documents' clusters."""

    own: ChoiceScoresByQuestion
    again: Mapping[Way, ChoiceScoresByQuestion]
    clusters: Mapping[AskedQuestion, str]
    products: Mapping[str, tuple[str, ...]]


def read_scored(records: Sequence[MeasurementRecord]) -> Scored:
    """Of one rung, and of the tasks that are scored again.

    A second plan that is the first, since all documents fit one batch, says nothing and is left out. Of a document that
    is asked twice the last answer counts.
    """
    first = {
        batch
        for record in records
        if isinstance(record.outcome, AccuracyOutcome)
        for plan in record.outcome.plans
        for batch in plan.compositions or (plan.digest,)
    }
    own: dict[AskedQuestion, tuple[float, ...]] = {}
    clusters: dict[AskedQuestion, str] = {}
    again: dict[Way, dict[AskedQuestion, tuple[float, ...]]] = {}
    products: dict[str, tuple[str, ...]] = {}
    for record in records:
        item, outcome = record.item, record.outcome
        if isinstance(item, AccuracyTask) and isinstance(outcome, AccuracyOutcome):
            if outcome.output_type != "multiple_choice":
                continue
            for document in outcome.documents:
                question = item.task, document.doc_hash, document.prompt_hash
                own[question] = document.loglikelihoods or ()
                clusters[question] = f"{item.task} {document.cluster or document.doc_hash}"
        elif isinstance(item, Rescoring) and isinstance(outcome, RescoringOutcome):
            if outcome.plan is not None and first.issuperset(outcome.plan.compositions or (outcome.plan.digest,)):
                continue
            found = {(item.task.task, one.doc_hash, one.prompt_hash): one.loglikelihoods for one in outcome.documents}
            again.setdefault(item.way, {}).update(found)
            products.setdefault(item.way, outcome.products)
    return Scored(own, again, clusters, products)


def summarize_dependence(title: str, rung: Scored, baseline: Scored | None, tasks: Iterable[str]) -> DependenceSummary:
    """On the documents of these tasks. ``baseline`` is None where the rung is the baseline, or the study has none."""
    wanted = set(tasks)

    def compare(
        one: ChoiceScoresByQuestion, other: ChoiceScoresByQuestion, among: ChoiceScoresByQuestion | None = None
    ) -> _ScoringPair | None:
        shared = [q for q in (among or one) if q[0] in wanted and q in one and q in other]
        return _ScoringPair(one, other, shared, rung.clusters) if shared else None

    second, single, cached = (rung.again.get(way, {}) for way in ("second plan", "batch 1", "cached decoding"))
    # a rung that was decided early wasn't asked them all
    second = {question: scores for question, scores in second.items() if question in rung.own}
    floor = compare(second, rung.own)
    flips = compare(rung.own, baseline.own, second) if baseline and second else None
    their_floor = compare(baseline.again.get("second plan", {}), baseline.own, second) if flips and baseline else None
    judged = None
    if floor and flips and their_floor and floor.questions == flips.questions == their_floor.questions:
        flags = flips.changed, floor.changed, their_floor.changed
        judged = judge_flips(*flags, flips.clusters)
    return DependenceSummary(
        title=title,
        second_plan=_change(floor),
        batch1=_change(compare(single, rung.own)),
        cached=_change(compare(cached, rung.own)),
        steps=_change(compare(cached, single)),
        against_baseline=_change(flips),
        p_value=judged.p_value if judged else None,
        excess_points=Score(judged.value, judged.excess).percent() if judged else None,
        flips=judged.verdict if judged else None,
    )


def _change(compared: "_ScoringPair | None") -> ChoiceChange | None:
    return None if compared is None else compared.summary()


class _ScoringPair:
    """Two scorings of the same documents."""

    def __init__(
        self,
        one: ChoiceScoresByQuestion,
        other: ChoiceScoresByQuestion,
        questions: Sequence[AskedQuestion],
        clusters: Mapping[AskedQuestion, str],
    ) -> None:
        self.questions = questions
        self.changed = [likeliest(one[question]) != likeliest(other[question]) for question in questions]
        self.clusters = [clusters.get(question, " ".join(question)) for question in questions]
        self._largest = max(
            abs(value - before)
            for question in questions
            for value, before in zip(one[question], other[question], strict=True)
        )

    def summary(self) -> ChoiceChange:
        changed = [float(one) for one in self.changed]
        share = Score(sum(changed) / len(changed), score_interval(changed, self.clusters))
        return ChoiceChange(
            documents=len(changed), changed=sum(self.changed), percent=share.percent(), largest_nats=self._largest
        )


TAIL = 0.99
"""the share of tokens that diverge by at most `DivergenceSummary.kl_tail`"""


def summarize_divergence(outcome: DivergenceOutcome) -> DivergenceSummary:
    """The figures of one rung; of the baseline itself they say how exactly its logits were made anew."""
    windows = outcome.windows
    kl = [value for window in windows for value in window.kl]
    documents = [window.document for window in windows for _ in window.kl]
    agrees = [float(value) for window in windows for value in window.agrees]
    losses = [-value for window in windows for value in window.loglikelihoods]
    before = [-value for window in windows for value in window.baseline_loglikelihoods]
    return DivergenceSummary(
        origin=outcome.origin,
        documents=len(set(documents)),
        tokens=len(kl),
        kl_mean=_mean(outcome),
        kl_tail=_tail(kl, documents),
        kl_max=Estimate(value=max(kl), reason="the largest of a sample has no interval"),
        agreement_percent=Score(sum(agrees) / len(agrees), score_interval(agrees, documents)).percent(),
        perplexity=math.exp(math.fsum(losses) / len(losses)),
        perplexity_ratio=_ratio([ours - theirs for ours, theirs in zip(losses, before, strict=True)], documents),
    )


def _mean(outcome: DivergenceOutcome) -> Estimate:
    """Between positive limits, by document; a mean of 0 has none."""
    sums: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for window in outcome.windows:
        sums[window.document] = sums.get(window.document, 0.0) + math.fsum(window.kl)
        tokens[window.document] = tokens.get(window.document, 0.0) + len(window.kl)
    total = math.fsum(sums.values())
    if total == 0:
        return Estimate(value=0.0, reason="no token diverges at all")
    return Estimate.of(total / math.fsum(tokens.values()), ratio_interval(tuple(sums.values()), tuple(tokens.values())))


def _tail(kl: Sequence[float], documents: Sequence[str]) -> Estimate:
    """A quantile between the quantiles at the limits of its share (Woodruff 1952, JASA 47:635-646).

    The share's limits are Clopper and Pearson's on the effective sample (Korn and Graubard 1998, Survey Methodology
    24:193-201): so near to 1 Wilson's are too short where documents differ.
    """
    value = float(np.quantile(kl, TAIL))
    # one token in a hundred lies above, so few documents hold one, and are not all alike for that
    clustering = clustering_of([float(one <= value) for one in kl], documents, unseen=0)
    if isinstance(clustering, Unknown):
        return Estimate(value=value, reason=clustering.reason)
    effect, degrees = clustering or (1.0, len(kl) - 1)
    size = len(kl) / effect * (quantile(CONFIDENCE) / quantile(CONFIDENCE, degrees)) ** 2
    below = TAIL * size
    tail = (1 - CONFIDENCE) / 2
    lower = float(special.betaincinv(below, size - below + 1, tail))
    upper = float(special.betaincinv(below + 1, size - below, 1 - tail))
    if (1 - upper) * len(kl) < 1:
        return Estimate(value=value, reason=f"{len(kl):,} tokens are too few for an interval of this quantile")
    low, high = (float(np.quantile(kl, limit)) for limit in (lower, upper))
    return Estimate(value=value, low=low, high=high)


def _ratio(differences: Sequence[float], documents: Sequence[str]) -> Estimate:
    """The exponential of a mean difference of losses, and of its limits."""
    value = math.exp(math.fsum(differences) / len(differences))
    if min(differences) == max(differences):
        return Estimate(value=value, reason="all tokens differ by the same, so they show no spread")
    interval = score_interval(differences, documents)
    if isinstance(interval, Unknown):
        return Estimate(value=value, reason=interval.reason)
    return Estimate(value=value, low=math.exp(interval.low), high=math.exp(interval.high))
