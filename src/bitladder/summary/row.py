"""One row of the accuracy table over all rungs, which rows the aggregate counts, and how far each rung is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from bitladder.records import AccuracyOutcome, AccuracyTask, TaskGroup
from bitladder.records.base import Unknown, known
from bitladder.results.stages import Staging
from bitladder.stats.aggregate import weight_at, weight_reason
from bitladder.stats.interval import CONFIDENCE
from bitladder.stats.verdict import Judged, RowSoFar, is_hopeless, judge_looks, look_confidence
from bitladder.summary import scores
from bitladder.summary.questions import QuestionPool, make_pots, primary_metric
from bitladder.summary.scores import RowComparison, Score
from bitladder.summary.table import AggregateSummary, Stopping, TaskSummary

TaskAnswers = AccuracyOutcome | Unknown
"""what a rung answered in one lm-eval task, or why there is nothing"""

QuestionPools = tuple[QuestionPool, ...]


@dataclass(frozen=True)
class Row:
    """One row over all rungs: `leaves` is rung -> lm-eval task -> what came of it."""

    group: TaskGroup
    baseline: str
    leaves: Mapping[str, Mapping[str, TaskAnswers]]
    staged: Mapping[str, AccuracyTask] = field(default_factory=dict)
    """of its tasks those that are asked in stages, so that the baseline may have answered more than a rung"""
    _scores: dict[tuple[int, float], Score] = field(default_factory=dict, repr=False, compare=False)
    """by the identity of pools that this row keeps, and confidence: most rungs have one baseline"""

    def outcomes(self, rung: str) -> dict[str, AccuracyOutcome] | Unknown:
        """The outcomes of the row's tasks that were asked on one rung, or why one is missing."""
        found: dict[str, AccuracyOutcome] = {}
        for task in self.group.tasks:
            leaf = self.leaves[rung][task]
            if isinstance(leaf, AccuracyOutcome):
                found[task] = leaf
            elif leaf.kind != "not_asked":
                return leaf if self.group.tasks == (self.group.name,) else leaf.of(task)
        return found or Unknown(kind="not_asked")

    @cached_property
    def _known(self) -> list[AccuracyOutcome]:
        return [
            leaf
            for leaves in self.leaves.values()
            for task in self.group.tasks
            if isinstance(leaf := leaves[task], AccuracyOutcome)
        ]

    @cached_property
    def is_share(self) -> bool:
        return scores.is_share(self._known)

    @cached_property
    def metric(self) -> str:
        return " / ".join(dict.fromkeys(primary_metric(outcome.metrics).title for outcome in self._known))

    @cached_property
    def pools(self) -> dict[str, QuestionPools | Unknown]:
        """Of a row in per cent: each rung's questions and scores, or why there are none."""
        return {self.baseline: Unknown("it is not in the study")} | {
            rung: outcomes if isinstance(outcomes := self.outcomes(rung), Unknown) else self._make_pots(outcomes)
            for rung in self.leaves
        }

    def _make_pots(self, outcomes: Mapping[str, AccuracyOutcome]) -> QuestionPools:
        tasks = tuple(task for task in self.group.tasks if task in outcomes)
        return make_pots(self.group.model_copy(update={"tasks": tasks}), outcomes)

    @cached_property
    def baselines(self) -> dict[str, QuestionPools | Unknown]:
        """What each rung is held against: the baseline's questions and scores, as far as the rung was asked them."""
        whole = self.pools[self.baseline]
        if not self.staged or isinstance(whole, Unknown):
            return dict.fromkeys(self.leaves, whole)
        outcomes = self.outcomes(self.baseline)
        assert not isinstance(outcomes, Unknown)  # it has pools
        found: dict[str, QuestionPools | Unknown] = {}
        for rung in self.leaves:
            own = self.outcomes(rung)
            found[rung] = own if isinstance(own, Unknown) else self._make_pots(_as_far_as(outcomes, own, self.staged))
        return found

    @property
    def planned_questions(self) -> int | None:
        """All that the row may ask; None where it isn't asked in stages."""
        numbers = [task.order.stops[-1] for name in self.group.tasks if (task := self.staged.get(name)) and task.order]
        if len(numbers) < len(self.group.tasks):
            return None
        return sum(numbers) if self.group.pooling == "documents" else max(numbers)

    @cached_property
    def weights(self) -> dict[str, float | None]:
        """In each rung's aggregate: by the better of its score and the baseline's; the baseline's by the best.

        None where neither has answers in per cent.
        """
        best = {rung: self._best(rung) for rung in self.leaves}
        return {rung: None if one is None else weight_at(self._above_chance[one]) for rung, one in best.items()}

    @cached_property
    def _above_chance(self) -> dict[str, float]:
        if not self.is_share:
            return {}
        return {
            rung: scores.above_chance(pools) for rung, pools in self.pools.items() if not isinstance(pools, Unknown)
        }

    def _best(self, rung: str) -> str | None:
        """Whose score a rung's weight is read from."""
        compared = self.leaves if rung == self.baseline else (self.baseline, rung)
        known = [one for one in compared if one in self._above_chance]
        return max(known, key=self._above_chance.__getitem__, default=None)

    @cached_property
    def without_signal(self) -> dict[str, Unknown | None]:
        """Why nothing is compared, by rung, whatever the baseline answers."""
        return {rung: self._without_signal(rung) for rung in self.leaves}

    def _without_signal(self, rung: str) -> Unknown | None:
        if not self.is_share:
            return Unknown("scored in a unit of its own: in no aggregate and no comparison")
        if self.weights[rung] == 0:
            best = self.pools[self._best(rung) or rung]
            assert not isinstance(best, Unknown)  # a weight is read from it
            return Unknown(weight_reason(scores.row_score(best).value, known(self.chance)))
        return None

    def counts(self, rung: str) -> bool:
        """Whether the row belongs to a rung's aggregate.

        One of which nothing is known does: leaving it out would quietly change the question.
        """
        return self.group.in_aggregate and self.is_share and self.weights[rung] != 0

    @cached_property
    def asked(self) -> QuestionPools:
        """Any rung's pools, for what they have in common; none where no rung has answers in per cent."""
        return (
            next((pools for pools in self.pools.values() if not isinstance(pools, Unknown)), ())
            if self.is_share
            else ()
        )

    @cached_property
    def chance(self) -> float | Unknown | None:
        """What guessing scores, as a fraction of 1; None for generated answers."""
        return scores.chance_of(self.asked) if self.asked else None

    def score(self, rung: str, confidence: float = CONFIDENCE) -> Score:
        """Raises KeyError where there is none: ask `pools` first."""
        return self._score(self.pools[rung], rung, confidence)

    def baseline_score(self, rung: str, confidence: float = CONFIDENCE) -> Score:
        """The baseline's on what the rung was asked. Raises KeyError where there is none."""
        return self._score(self.baselines[rung], rung, confidence)

    def _score(self, pools: QuestionPools | Unknown, rung: str, confidence: float) -> Score:
        if isinstance(pools, Unknown):
            raise KeyError(f"{self.group.name} on {rung}: {pools.reason}")
        key = id(pools), confidence
        if key not in self._scores:
            self._scores[key] = scores.row_score(pools, confidence)
        return self._scores[key]

    @cached_property
    def compared(self) -> dict[str, RowComparison | Unknown]:
        """Each rung's difference to the baseline, or why there is none."""
        return {rung: self._compare(rung) for rung in self.leaves}

    def _compare(self, rung: str) -> RowComparison | Unknown:
        if (no_signal := self.without_signal[rung]) is not None:
            return no_signal
        if isinstance(whole := self.pools[self.baseline], Unknown):
            return whole.of(f"{self.baseline} has no result to compare with")
        pools, baseline = self.pools[rung], self.baselines[rung]
        if isinstance(pools, Unknown):
            return pools
        assert not isinstance(baseline, Unknown)  # it has a result, and the rung was asked
        return scores.find_unpaired(pools, baseline) or scores.compare(pools, baseline)


def _as_far_as(
    baseline: Mapping[str, AccuracyOutcome], rung: Mapping[str, AccuracyOutcome], staged: Mapping[str, AccuracyTask]
) -> dict[str, AccuracyOutcome]:
    """The baseline's outcomes with the documents that a rung has too: they come in one order for both."""
    return {
        task: outcome.model_copy(update={"documents": outcome.documents[: len(rung[task].documents)]})
        if task in staged
        else outcome
        for task, outcome in baseline.items()
        if task in rung
    }


class JudgedRung(Protocol):
    """What is said of a rung's accuracy."""

    @property
    def aggregate(self) -> AggregateSummary: ...

    @property
    def tasks(self) -> tuple[TaskSummary, ...]: ...


def primary_tasks(rung: JudgedRung) -> dict[str, TaskSummary]:
    """By name, each task by the metric that counts: its further ones come behind it."""
    found: dict[str, TaskSummary] = {}
    for task in rung.tasks:
        found.setdefault(task.name, task)
    return found


class CountedTask(NamedTuple):
    """A task that the aggregate is the mean of."""

    title: str
    weights: tuple[float, ...]
    """lowest first, each once; empty where none is known"""


def counted_tasks(rungs: Sequence[JudgedRung]) -> list[CountedTask]:
    """The tasks that the aggregates of these rungs are the mean of, with the weights that they have in them."""
    names = dict.fromkeys(name for rung in rungs for name in rung.aggregate.tasks)
    found: dict[str, list[TaskSummary]] = {name: [] for name in names}
    for rung in rungs:
        own = primary_tasks(rung)
        for name in names & own.keys():
            found[name].append(own[name])
    return [
        CountedTask(tasks[0].title, tuple(sorted({task.weight for task in tasks if task.weight is not None})))
        for tasks in found.values()
        if tasks
    ]


def weighted_titles(tasks: Iterable[CountedTask]) -> str:
    """What the aggregate is the mean of; a weight is named where it isn't 1, as a range where rungs differ in it."""
    return ", ".join(f"{task.title}{_weight_text(task.weights)}" for task in tasks)


def _weight_text(weights: tuple[float, ...]) -> str:
    ends = list(dict.fromkeys(f"{weight:.2f}" for weight in weights[:1] + weights[-1:]))
    return "" if not ends or ends == ["1.00"] else f" (weight {' to '.join(ends)})"


def left_out(rungs: Sequence[JudgedRung]) -> list[TaskSummary]:
    """The tasks that would count but for their scores."""
    counted = {name for rung in rungs for name in rung.aggregate.tasks}
    found = {task.name: task for rung in rungs for task in rung.tasks if task.weight == 0 and task.name not in counted}
    return list(found.values())


def weights_text(rungs: Sequence[JudgedRung]) -> str:
    """What a difference of the aggregate is of, where not all tasks count wholly; empty where they do."""
    counted, without = counted_tasks(rungs), left_out(rungs)
    if not counted or (not without and all(not _weight_text(task.weights) for task in counted)):
        return ""
    parts = [f"mean of {weighted_titles(counted)}"]
    parts += [f"left out {task.title}: {task.no_signal_reason}" for task in without]
    return "; ".join(parts)


def counted_losses(rung: JudgedRung) -> list[TaskSummary]:
    """Of the tasks in the aggregate, by the metric that counts there."""
    return [task for task in primary_tasks(rung).values() if task.name in rung.aggregate.tasks and _is_loss(task)]


def other_losses(rung: JudgedRung) -> list[TaskSummary]:
    """By a further metric of a task, or of a task in no aggregate: they fail nothing."""
    counted = [task for task in primary_tasks(rung).values() if task.name in rung.aggregate.tasks]
    return [task for task in rung.tasks if task not in counted and _is_loss(task)]


def losses_text(rung: JudgedRung) -> list[tuple[str, TaskSummary]]:
    """Where a rung loses more, each with how that is called; not what the aggregate itself is of."""
    counted = counted_losses(rung) if len(rung.aggregate.tasks) > 1 else []
    return [(task.title, task) for task in counted] + [
        (f"{task.title} by {task.metric} (in no aggregate)", task) for task in other_losses(rung)
    ]


def _is_loss(task: TaskSummary) -> bool:
    return task.verdict == "beyond the margin"


@dataclass(frozen=True)
class Assessed:
    judged: Judged | None
    """None where its answers give no interval"""
    stopping: Stopping


def assess(
    rows: Mapping[str, Sequence[Row]],
    compared: Mapping[str, RowComparison],
    answered: Mapping[str, int],
    staging: Staging,
    margin: float,
) -> dict[str, Assessed]:
    """The verdict on each rung whose aggregate is compared with the baseline, and how far it was asked.

    ``rows``: that the aggregate is of, by rung. ``answered``: stages by rung.
    """
    known = {rung: one.comparison for rung, one in compared.items() if not isinstance(one.comparison, Unknown)}
    judged = judge_looks(known, answered, staging.stages, staging.rungs, margin)
    return {rung: _assessed(rung, rows[rung], judged.get(rung), answered[rung], staging, margin) for rung in compared}


def _assessed(
    rung: str, rows: Sequence[Row], judged: Judged | None, answered: int, staging: Staging, margin: float
) -> Assessed:
    at_end = answered == staging.stages
    decided = judged is not None and judged.verdict != "undecided"
    reason = None
    if decided:
        state = "end" if at_end else "early"
    elif at_end:
        state = "undecided"
    elif _is_hopeless(rows, rung, margin, look_confidence(staging.stages, staging.stages)):
        state, reason = "hopeless", Unknown("the questions that exist can't decide it")
    else:
        state, reason = "open", Unknown("the study is still asking it; run it again to go on")
    if judged is not None and reason is not None:
        judged = replace(judged, to_decide=reason)
    documents = staging.documents[answered - 1] if answered else 0
    stopping = {"state": state, "documents": documents, "of": staging.documents[-1], "stages": answered}
    return Assessed(judged, Stopping.model_validate(stopping))


def _is_hopeless(rows: Sequence[Row], rung: str, margin: float, confidence: float) -> bool:
    """False where the rows don't show it."""
    asked: list[RowSoFar] = []
    for row in rows:
        one, pools, questions = row.compared[rung], row.pools[rung], row.planned_questions
        if isinstance(one, Unknown) or isinstance(pools, Unknown):
            return False
        if isinstance(one.comparison, Unknown) or questions is None:
            return False
        growth = questions / max(len(pool.questions) for pool in pools)
        asked.append(RowSoFar(one.comparison, growth, row.weights[rung] or 0.0))
    return is_hopeless(asked, margin, confidence)
