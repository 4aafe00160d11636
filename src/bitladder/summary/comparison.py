"""Rungs held against a baseline by their answers alone, and which answers another precision changed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from bitladder.records import (
    AccuracyOutcome,
    AccuracyTask,
    DocumentOutcome,
    MetricInfo,
    Record,
    TaskDocuments,
    TaskGroup,
)
from bitladder.results.stages import Staging
from bitladder.summary import scores
from bitladder.summary.accuracy import aggregate_score, summarize_aggregates, summarize_tasks
from bitladder.summary.coverage import Leaves, not_asked_on, whole_stages
from bitladder.summary.metrics import Recovery, recovery_margin_points
from bitladder.summary.questions import choice_probabilities, likeliest, primary_metric
from bitladder.summary.row import Row, TaskAnswers
from bitladder.summary.table import AggregateSummary, Summary, TaskSummary

FlipKind = Literal["lost", "gained", "changed"]
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
    kind: FlipKind
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


def _kind(before: DocumentOutcome, after: DocumentOutcome, metric: str) -> FlipKind | None:
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


class ComparedRung(Record):
    rung: str
    aggregate: AggregateSummary
    """primary: it has the verdict"""
    tasks: tuple[TaskSummary, ...]
    """secondary: each by itself"""


class Compared(Record):
    """The baseline and all that is held against it, with verdicts."""

    baseline: str
    margin_points: float
    """how many points of the aggregate a rung may lose"""
    min_recovery_percent: float | None = None
    """of the baseline's aggregate, where the margin was given so"""
    rungs: tuple[ComparedRung, ...]
    notes: tuple[str, ...] = ()

    def aggregate(self, name: str) -> AggregateSummary:
        return next(rung.aggregate for rung in self.rungs if rung.rung == name)

    @property
    def others(self) -> tuple[ComparedRung, ...]:
        return tuple(rung for rung in self.rungs if rung.rung != self.baseline)


def compared_rungs(summary: Summary) -> Compared:
    """The verdicts of a study."""
    rungs = tuple(ComparedRung(rung=rung.rung, aggregate=rung.aggregate, tasks=rung.tasks) for rung in summary.rungs)
    return Compared(baseline=summary.baseline, margin_points=summary.margin_points, rungs=rungs)


def compare_answers(
    groups: Sequence[TaskGroup],
    answers: Leaves,
    baseline: str,
    margin: float | Recovery,
    staging: Staging | None = None,
) -> Compared:
    """Verdicts from answers by rung and leaf task; every task of `groups` has to be there for each rung.

    Beside each group's primary metric, which alone enters the aggregate, its others are rows of their own.
    ``margin``: in points. Raises UserError for a recovery of a baseline without an aggregate.
    ``staging``: of rungs of one study that were asked until each was decided, and are compared on what both answered.
    """
    stages: dict[str, int] = {}
    if staging is not None:
        answers, stages = whole_stages(answers, staging, baseline)
    staged = staging.tasks if staging else {}
    rows = [
        row
        for group in groups
        for row in (Row(group, baseline, answers, staged), *_other_rows(group, answers, baseline, staged))
    ]
    least_percent = None
    if isinstance(margin, Recovery):
        least_percent = margin.min_percent
        margin = recovery_margin_points(least_percent, baseline, aggregate_score(rows, baseline))
    tasks = [summarize_tasks(row, margin) for row in rows]
    found = summarize_aggregates(rows, tuple(answers), baseline, margin, staging, stages)
    aggregates = {rung: not_asked_on(one) for rung, one in found.items()}
    return Compared(
        baseline=baseline,
        margin_points=margin,
        min_recovery_percent=least_percent,
        rungs=tuple(
            ComparedRung(rung=rung, aggregate=aggregates[rung], tasks=tuple(row[rung] for row in tasks))
            for rung in answers
        ),
        notes=_notes(rows, answers),
    )


def _other_rows(group: TaskGroup, answers: Leaves, baseline: str, staged: Mapping[str, AccuracyTask]) -> list[Row]:
    """A row for each further metric that every task of the group has."""
    infos = [leaf.metrics for task in group.tasks if isinstance(leaf := answers[baseline][task], AccuracyOutcome)]
    if not infos:
        return []
    primary = [primary_metric(metrics).key for metrics in infos]
    rows = []
    for metric in infos[0]:
        if metric.key not in primary and all(metric in metrics for metrics in infos):
            only = {
                rung: {task: _only(outcomes[task], metric) for task in group.tasks}
                for rung, outcomes in answers.items()
            }
            rows.append(Row(group.model_copy(update={"in_aggregate": False}), baseline, only, staged))
    return rows


def _only(leaf: TaskAnswers, metric: MetricInfo) -> TaskAnswers:
    return leaf.model_copy(update={"metrics": (metric,)}) if isinstance(leaf, AccuracyOutcome) else leaf


def _notes(rows: Sequence[Row], answers: Leaves) -> tuple[str, ...]:
    notes: list[str] = []
    rolling = [row.group.title for row in rows if _is_perplexity(row, answers)]
    if rolling:
        notes.append(f"{' and '.join(dict.fromkeys(rolling))}: perplexities, which are shown and are in no verdict.")
    for rung, outcomes in answers.items():
        for task, outcome in outcomes.items():
            if not isinstance(outcome, AccuracyOutcome):
                continue
            notes += [f"{rung}, {task}: {text}" for text in scores.disagreements(outcome)]
    return tuple(notes)


def _is_perplexity(row: Row, answers: Leaves) -> bool:
    outcomes = (answers[row.baseline].get(task) for task in row.group.tasks)
    return any(isinstance(one, AccuracyOutcome) and one.output_type == "loglikelihood_rolling" for one in outcomes)
