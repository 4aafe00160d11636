"""Questions that are pooled, with one rung's answers to them: what a row of a table is made of.

A row is a group of lm-eval tasks. Its questions lie in *pools*: one pool for all of them (MMLU, or a single task), or
one a task where the tasks put the same questions in different words (GSM8K strict and chain-of-thought). A pool's score
is its mean over questions, a row's the mean over its pools.

Documents that resemble each other are clusters: HellaSwag's by source, one that is asked more than once, and the
answers to one question in several pools. The tasks of one pool (MMLU's subjects) and the templates of the built-in
suite are strata, a fixed list that is asked whole: pooling them as if they were drawn together takes in what lies
between them too, so the interval is at most a little too wide.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bitladder.records import PASSAGE, AccuracyOutcome, MetricInfo, TaskGroup
from bitladder.records.base import Unknown, all_known
from bitladder.stats.paired import joined

Question = tuple[str, str, str, int]
"""task, document hash, prompt hash, and how often both came before in the task"""

_NO_CHANCE = Unknown("its score is no count of right choices, and the log does not say which choices are true")


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


def choice_probabilities(loglikelihoods: Sequence[float]) -> tuple[float, ...]:
    """Of choices as if there were no others, the softmax of their log-likelihoods; of a single one its own."""
    if len(loglikelihoods) == 1:
        return (math.exp(loglikelihoods[0]),)
    most = max(loglikelihoods)
    weights = [math.exp(one - most) for one in loglikelihoods]
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def likeliest(loglikelihoods: Sequence[float]) -> int:
    """Which choice is made: the first of the largest, as lm-eval's argmax."""
    return loglikelihoods.index(max(loglikelihoods))


@dataclass(frozen=True)
class QuestionPool:
    """Questions that are pooled, with one rung's scores between 0 and 1."""

    title: str
    questions: tuple[Question, ...]
    values: tuple[float, ...]
    norm_values: tuple[float, ...] | None
    """acc_norm by question, where every task of the pool has it"""
    chance: float | Unknown | None
    """what guessing scores; None where the answers are not given to choose from"""
    clusters: tuple[str, ...] | None = None
    """by question; None where no two resemble each other"""
    passages: tuple[str | None, ...] = ()
    """by question, what text it is about that others are about too"""
    choices: tuple[int, ...] | None = None
    """of ``acc`` the likeliest of each question's answers; None where another metric chooses, or nothing is chosen"""
    right: tuple[float, ...] | None = None
    """probability of each question's right choice; None where one has none that is known"""

    @property
    def score(self) -> float:
        return sum(self.values) / len(self.values)

    @cached_property
    def documents(self) -> frozenset[str]:
        """Hashes of what was asked about, and the passages that several tasks may quote."""
        return frozenset(doc_hash for _, doc_hash, _, _ in self.questions).union(filter(None, self.passages))


def make_pots(group: TaskGroup, outcomes: Mapping[str, AccuracyOutcome]) -> tuple[QuestionPool, ...]:
    """The pools of a row, from the outcome of each of its tasks. Raises KeyError where one is missing."""
    if group.pooling == "documents":
        return (_pot(group.title, {task: outcomes[task] for task in group.tasks}),)
    return tuple(_pot(task, {task: outcomes[task]}) for task in group.tasks)


def _pot(title: str, outcomes: Mapping[str, AccuracyOutcome]) -> QuestionPool:
    questions: list[Question] = []
    values: list[float] = []
    norm_values: list[float] = []
    chances: list[float | Unknown] = []
    sources: list[str] = []
    passages: list[str | None] = []
    choices: list[int] = []
    right: list[float] = []
    for task, outcome in outcomes.items():
        primary = primary_metric(outcome.metrics)
        own = metric_values(outcome, primary)
        seen: defaultdict[tuple[str, str], int] = defaultdict(int)
        for document in outcome.documents:
            hashes = (document.doc_hash, document.prompt_hash)
            questions.append((task, *hashes, seen[hashes]))
            seen[hashes] += 1
            passage = document.cluster if document.cluster and document.cluster.startswith(PASSAGE) else None
            passages.append(passage)
            source = f"{task} {document.cluster}" if document.cluster else document.doc_hash
            sources.append(passage or source)
            answers = document.loglikelihoods
            if answers and outcome.output_type == "multiple_choice":
                if primary.name == "acc":
                    choices.append(likeliest(answers))
                if document.target is not None:
                    right.append(choice_probabilities(answers)[document.target])
        chances += _chances(outcome, binary=is_binary(own))
        values += own
        norm = next((metric for metric in outcome.metrics if metric.name == "acc_norm"), None)
        norm_values += metric_values(outcome, norm) if norm else []
    return QuestionPool(
        title=title,
        questions=tuple(questions),
        values=tuple(values),
        norm_values=tuple(norm_values) if len(norm_values) == len(values) else None,
        chance=mean_chance(chances, len(values)),
        clusters=_clusters([doc_hash for _, doc_hash, _, _ in questions], sources),
        passages=tuple(passages),
        choices=tuple(choices) if len(choices) == len(values) else None,
        right=tuple(right) if len(right) == len(values) else None,
    )


def metric_values(outcome: AccuracyOutcome, metric: MetricInfo) -> list[float]:
    """By document, without those that are terms of a weighted mean."""
    values = [document.metrics[metric.key] for document in outcome.documents]
    return [value for value in values if not isinstance(value, tuple)]


def is_binary(values: Sequence[float]) -> bool:
    return {0.0, 1.0}.issuperset(values)


def _chances(outcome: AccuracyOutcome, *, binary: bool) -> list[float | Unknown]:
    """What guessing scores in each document, or why that isn't known; nothing where nothing is chosen.

    One of the choices is right. Where the score is the probability of all true choices instead (TruthfulQA's mc2),
    equal probabilities score the share of them that is true.
    """
    if outcome.output_type != "multiple_choice" or not all(document.loglikelihoods for document in outcome.documents):
        return []
    if binary:
        return [1 / len(document.loglikelihoods or ()) for document in outcome.documents]
    return [_NO_CHANCE if one.true_share is None else one.true_share for one in outcome.documents]


def mean_chance(chances: Sequence[float | Unknown], of: int) -> float | Unknown | None:
    """What guessing scores on average in so many; None where some have nothing to choose from."""
    known = all_known(chances)
    if isinstance(known, Unknown):
        return known
    return sum(known) / len(known) if len(known) == of else None


def _clusters(doc_hashes: list[str], sources: list[str]) -> tuple[str, ...] | None:
    if doc_hashes == sources and len(set(doc_hashes)) == len(doc_hashes):
        return None
    clusters = joined(doc_hashes, sources)
    return None if len(set(clusters)) == len(clusters) else tuple(clusters)


def ask_the_same(pools: Sequence[QuestionPool]) -> bool:
    """Whether all pools have the same documents, in whatever words and order."""
    first, *others = (sorted(doc_hash for _, doc_hash, _, _ in pool.questions) for pool in pools)
    return all(documents == first for documents in others)


def clusters_over(pools: Sequence[QuestionPool]) -> tuple[str, ...] | None:
    """The cluster of each answer of pools that `ask_the_same`: of several, at least the question."""
    if len(pools) == 1:
        return pools[0].clusters
    doc_hashes, sources = [], []
    for number, pool in enumerate(pools):
        hashes = [doc_hash for _, doc_hash, _, _ in pool.questions]
        doc_hashes += hashes
        sources += [f"{number} {cluster}" for cluster in pool.clusters or hashes]
    return _clusters(doc_hashes, sources)


def most_correlated(pools: Sequence[QuestionPool], others: Sequence[QuestionPool]) -> float:
    """Upper bound on the correlation of two rows' means: that of the documents they share.

    A mean is that of the answers to shared documents, and to those of their clusters, and of the rest, which is
    independent of the other row. With a and b the shares of either row's answers that are shared, variances in
    proportion, no correlation of the shared parts makes the means' more than sqrt(a b) (Cauchy and Schwarz).
    1 where a row's documents are the other's, however often each repeats them, and 0 where none is.
    """
    ours, theirs = _documents(pools), _documents(others)
    if ours.isdisjoint(theirs):
        return 0.0
    return math.sqrt(_share(pools, theirs) * _share(others, ours))


def _documents(pools: Sequence[QuestionPool]) -> frozenset[str]:
    return pools[0].documents.union(*(pool.documents for pool in pools[1:]))


def _share(pools: Sequence[QuestionPool], documents: frozenset[str]) -> float:
    """Share of the answers that are to these documents or to others of their clusters; the largest of any pool."""
    shares = []
    for pool in pools:
        hashes = [doc_hash for _, doc_hash, _, _ in pool.questions]
        clusters = pool.clusters or hashes
        shared = {
            cluster
            for cluster, doc_hash, passage in zip(clusters, hashes, pool.passages, strict=True)
            if doc_hash in documents or passage in documents
        }
        shares.append(sum(cluster in shared for cluster in clusters) / len(clusters))
    return max(shares)
