"""How far choices depend on the batch they are scored in, from a study's answers and those scored again.

A rung's choices that change between two plans are its noise floor: flips against the baseline that are not above the
rung's own floor and the baseline's, on the same documents, show no difference.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitladder.records import AccuracyOutcome, AccuracyTask, MeasurementRecord, Rescoring, RescoringOutcome, Way
from bitladder.stats.floors import judge_flips
from bitladder.summary.pots import likeliest
from bitladder.summary.scores import Score, score_interval
from bitladder.summary.table import ChoiceChange, DependenceSummary

Question = tuple[str, str, str]
"""task, document hash, prompt hash"""
Scores = Mapping[Question, tuple[float, ...]]
"""log-likelihoods of the choices"""


@dataclass(frozen=True)
class Scored:
    """One rung's log-likelihoods: the study's own, and those of each way, with the documents' clusters."""

    own: Scores
    again: Mapping[Way, Scores]
    clusters: Mapping[Question, str]
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
    own: dict[Question, tuple[float, ...]] = {}
    clusters: dict[Question, str] = {}
    again: dict[Way, dict[Question, tuple[float, ...]]] = {}
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

    def compare(one: Scores, other: Scores, among: Scores | None = None) -> _Compared | None:
        shared = [q for q in (among or one) if q[0] in wanted and q in one and q in other]
        return _Compared(one, other, shared, rung.clusters) if shared else None

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


def _change(compared: "_Compared | None") -> ChoiceChange | None:
    return None if compared is None else compared.summary()


class _Compared:
    """Two scorings of the same documents."""

    def __init__(
        self, one: Scores, other: Scores, questions: Sequence[Question], clusters: Mapping[Question, str]
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
