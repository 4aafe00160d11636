"""Which answers another precision changed, and whether more did than change by themselves."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from bitladder.records import AccuracyOutcome, DocumentOutcome, Record, TaskDocuments
from bitladder.stats.interval import Interval
from bitladder.stats.paired import paired_difference
from bitladder.stats.pots import choice_probabilities, likeliest, primary_metric
from bitladder.stats.power import ONE_SIDED_ALPHA
from bitladder.stats.verdict import FlipsVerdict
from bitladder.unknown import Unknown

Kind = Literal["lost", "gained", "changed"]
"""a lower score than the baseline's, a higher one, or as good a score by another choice"""


EXCESS_POINTS = 1.0
"""of the answers beyond what flips by itself, below which a precision is called indistinguishable"""


class FlipsJudged(NamedTuple):
    """Flips held against what flips by itself."""

    p_value: float
    value: float
    """excess over the larger floor, a share of the documents"""
    excess: Interval | Unknown
    verdict: FlipsVerdict


class Answer(Record):
    """What one model answered to one question."""

    score: float
    """by the task's primary metric, 1 is right"""
    choice: int | None
    """the likeliest of the choices; None where nothing is chosen"""
    probabilities: tuple[float, ...] | None
    """of the choices as if there were no others: the softmax of their log-likelihoods; of a single one its own"""
    text: str | None
    """what was generated"""


class Flip(Record):
    """A question whose answer differs from the baseline's."""

    task: str
    doc_hash: str
    kind: Kind
    prompt: str
    choices: tuple[str, ...] | None
    target: str
    """the right choice, or the target as lm-eval has it"""
    baseline: Answer
    rung: Answer


def find_flips(
    task: str, baseline: AccuracyOutcome, rung: AccuracyOutcome, documents: TaskDocuments
) -> tuple[Flip, ...]:
    """The flips of a task, in its order; both outcomes and the documents are of the same questions.

    None of a text that is scored as a whole: nothing is answered, and every figure differs.
    """
    if baseline.output_type == "loglikelihood_rolling":
        return ()
    questions = {(one.doc_hash, one.prompt_hash): one for one in documents.documents}
    metric = primary_metric(baseline.metrics).key
    flips = []
    for before, after in paired_documents(baseline, rung):
        kind = _kind(before, after, metric)
        if kind is not None:
            question = questions[before.doc_hash, before.prompt_hash]
            flips.append(
                Flip(
                    task=task,
                    doc_hash=before.doc_hash,
                    kind=kind,
                    prompt=question.prompt,
                    choices=question.choices,
                    target=question.target,
                    baseline=_answer(before, metric),
                    rung=_answer(after, metric),
                )
            )
    return tuple(flips)


def flip_indicators(baseline: AccuracyOutcome, rung: AccuracyOutcome) -> list[bool]:
    """Whether each answer differs from the baseline's, in the baseline's order."""
    metric = primary_metric(baseline.metrics).key
    return [_kind(before, after, metric) is not None for before, after in paired_documents(baseline, rung)]


def paired_documents(
    baseline: AccuracyOutcome, rung: AccuracyOutcome
) -> Iterator[tuple[DocumentOutcome, DocumentOutcome]]:
    """The two answers to each question, paired by document and prompt. Raises KeyError for an unpaired one."""
    found: dict[tuple[str, str], list[DocumentOutcome]] = {}
    for document in reversed(rung.documents):
        found.setdefault((document.doc_hash, document.prompt_hash), []).append(document)
    for document in baseline.documents:
        yield document, found[document.doc_hash, document.prompt_hash].pop()


def _kind(before: DocumentOutcome, after: DocumentOutcome, metric: str) -> Kind | None:
    one, other = _score(before, metric), _score(after, metric)
    if one != other:
        return "lost" if other < one else "gained"
    return "changed" if _choice(before) != _choice(after) else None


def _answer(document: DocumentOutcome, metric: str) -> Answer:
    return Answer(
        score=_score(document, metric),
        choice=_choice(document),
        probabilities=choice_probabilities(document.loglikelihoods) if document.loglikelihoods else None,
        text=document.text,
    )


def _score(document: DocumentOutcome, metric: str) -> float:
    value = document.metrics[metric]
    return value[0] if isinstance(value, tuple) else value


def _choice(document: DocumentOutcome) -> int | None:
    answers = document.loglikelihoods
    return likeliest(answers) if answers and len(answers) > 1 else None


def above_floor(flips: Sequence[bool], floor: Sequence[bool], clusters: Sequence[Hashable] | None = None) -> float:
    """One-sided mid-p of more flips than on the floor, on the same documents in the same order.

    Two counts side by side would forget that the documents are the same: what flips by itself is mostly what flips
    anyway. Without a difference each cluster's surplus of flips, a document's where ``clusters`` is None, is as likely
    as its opposite; the sum of all has that distribution exactly, which for single documents is mid-p McNemar's. 1
    where the two never differ, which is no evidence. Raises ValueError for unequal lengths.
    """
    surplus: Counter[Hashable] = Counter()
    for flip, own, cluster in zip(flips, floor, range(len(flips)) if clusters is None else clusters, strict=True):
        surplus[cluster] += flip - own
    sizes = Counter(abs(one) for one in surplus.values() if one)
    if not sizes:
        return 1.0
    most = sum(sizes.elements())
    chances = np.ones(1)  # of each sum from -most on
    for size, count in sizes.items():
        part = np.zeros(2 * size * count + 1)  # of those of one size, whose sum is binomial in steps of twice it
        part[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, part)
    found = most + sum(surplus.values())
    return float(chances[found + 1 :].sum() + chances[found] / 2)


def judge_flips(
    flips: Sequence[bool],
    own_floor: Sequence[bool],
    baseline_floor: Sequence[bool],
    clusters: Sequence[str] | None = None,
) -> FlipsJudged:
    """Whether a rung's flips are what flips by itself.

    A floor is what changes between two passes of one rung over the same documents in other batches. All three are by
    document, in one order: with the records of a second pass, `flip_indicators` of the rung against the baseline and of
    either against its second pass. Above the floor: both are exceeded (an intersection-union test: each at the whole
    level). Indistinguishable takes evidence too: the interval of the excess over the larger floor lies below
    `EXCESS_POINTS`; that nothing is shown is none.
    """
    p_value = floors_p_value(flips, own_floor, baseline_floor, clusters)
    floor = max(own_floor, baseline_floor, key=sum)
    found = paired_difference([float(flip) - one for flip, one in zip(flips, floor, strict=True)], clusters)
    excess = found if isinstance(found, Unknown) else found.interval()
    if p_value <= ONE_SIDED_ALPHA:
        verdict: FlipsVerdict = "above the floor"
    elif isinstance(excess, Interval) and 100 * excess.high < EXCESS_POINTS:
        verdict = "indistinguishable"
    else:
        verdict = "not settled"
    return FlipsJudged(p_value, (sum(flips) - sum(floor)) / len(flips), excess, verdict)


def floors_p_value(
    flips: Sequence[bool],
    own_floor: Sequence[bool],
    baseline_floor: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
) -> float:
    """One-sided, of no more flips than on a floor: the larger of both floors'."""
    return max(above_floor(flips, own_floor, clusters), above_floor(flips, baseline_floor, clusters))
