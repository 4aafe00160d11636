"""Which answers another precision changed."""

from collections.abc import Iterator
from typing import Literal

from bitladder.records import AccuracyOutcome, DocumentOutcome, Record, TaskDocuments
from bitladder.summary.pots import choice_probabilities, likeliest, primary_metric

Kind = Literal["lost", "gained", "changed"]
"""a lower score than the baseline's, a higher one, or as good a score by another choice"""


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
    return tuple(
        Flip(
            task=task,
            doc_hash=before.doc_hash,
            kind=kind,
            prompt=(question := questions[before.doc_hash, before.prompt_hash]).prompt,
            choices=question.choices,
            target=question.target,
            baseline=_answer(before, metric),
            rung=_answer(after, metric),
        )
        for before, after in paired_documents(baseline, rung)
        if (kind := _kind(before, after, metric)) is not None
    )


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
