"""What every rung of a study was asked and answered so far, and who is to be asked more."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from bitladder.records import AccuracyOutcome, AccuracyTask, StudyRecord
from bitladder.records.base import Unknown
from bitladder.results import Results, RungOutcomes, read_outcomes, same_contents
from bitladder.results.stages import Staging, stages_done, take_stages
from bitladder.summary.accuracy import summarize_aggregates
from bitladder.summary.metrics import study_margin_points
from bitladder.summary.row import Row, TaskAnswers
from bitladder.summary.table import AggregateSummary

Leaves = Mapping[str, Mapping[str, TaskAnswers]]
"""rung -> lm-eval task -> what came of it"""


@dataclass(frozen=True)
class Coverage:
    """Of tasks that are asked in stages only whole stages count, none that the baseline lacks."""

    study: StudyRecord
    leaves: Leaves
    staging: Staging | None
    stages: Mapping[str, int]
    """that each rung answered; of one that a task failed on, as far as the others go"""
    going: Mapping[str, bool]
    """whether a rung can be asked more: it has a checkpoint, and no stage ended badly"""

    @cached_property
    def rows(self) -> list[Row]:
        if not any(isinstance(item, AccuracyTask) for item in self.study.items):
            return []
        staged = self.staging.tasks if self.staging else {}
        return [Row(group, self.study.baseline, self.leaves, staged) for group in self.study.groups]

    @cached_property
    def _own(self) -> dict[str, AggregateSummary]:
        return self._aggregates(study_margin_points(self.study))

    def _aggregates(self, margin_points: float) -> dict[str, AggregateSummary]:
        study = self.study
        return summarize_aggregates(self.rows, study.rungs, study.baseline, margin_points, self.staging, self.stages)

    def aggregates(self, margin_points: float) -> dict[str, AggregateSummary]:
        """By rung, judged together against the margin, which need not be the one that asking stops by."""
        if self.staging is None:
            return self._aggregates(margin_points)
        found = self._own if margin_points == study_margin_points(self.study) else self._aggregates(margin_points)
        return {rung: one if rung in self.to_ask else not_asked_on(one) for rung, one in found.items()}

    @cached_property
    def to_ask(self) -> frozenset[str]:
        """The rungs with a stage to come, whose verdict isn't known; and the baseline, where they need more of it."""
        staging, baseline = self.staging, self.study.baseline
        if staging is None or not self.going.get(baseline, False):
            return frozenset()
        found = {
            rung
            for rung in self.study.rungs
            if rung != baseline
            and self.going[rung]
            and self.stages[rung] < staging.stages
            # without any comparison so far, such as without a row that has a signal, all that there is may be needed
            and ((stopping := self._own[rung].stopping) is None or stopping.state == "open")
        }
        if any(self.stages[rung] >= self.stages[baseline] for rung in found):
            found.add(baseline)
        return frozenset(found)

    @cached_property
    def unasked(self) -> dict[str, frozenset[str]]:
        """Of each rung the tasks in stages with documents that it is still to be asked."""
        if self.staging is None:
            return {rung: frozenset() for rung in self.study.rungs}
        found = {}
        for rung in self.study.rungs:
            orders = {name: task.order for name, task in self.staging.tasks.items() if task.order}
            left = {name for name, order in orders.items() if (0, *order.stops)[self.stages[rung]] < order.stops[-1]}
            not_made = any(isinstance(leaf, Unknown) and leaf.kind == "not_made" for leaf in self.leaves[rung].values())
            found[rung] = frozenset(left if rung in self.to_ask or not_made else ())
        return found


def not_asked_on(aggregate: AggregateSummary) -> AggregateSummary:
    """Of a rung that nobody goes on to ask, though it is undecided against this margin or baseline."""
    stopping = aggregate.stopping
    if stopping is None or stopping.state != "open":
        return aggregate
    return aggregate.model_copy(
        update={
            "stopping": stopping.model_copy(update={"state": "stopped"}),
            "more_questions_reason": "asking stopped before, at another verdict; give the study this --max-drop",
        }
    )


def read_coverage(results: Results, ends: Mapping[str, RungOutcomes], stages: int | None = None) -> Coverage:
    """What the rungs of a study answered, in no more than so many stages."""
    study = results.study
    staging = Staging.of(study)
    leaves = {rung: end.answers for rung, end in ends.items()}
    if staging is None:
        return Coverage(study, leaves, None, {}, {})
    whole, done = whole_stages(leaves, staging, study.baseline, stages)
    if results.parts:  # nothing is measured there
        return Coverage(study, whole, staging, done, {})
    going = {
        rung: end.unmade is None and not any(_is_end(leaves[rung][name]) for name in staging.tasks)
        for rung, end in ends.items()
    }
    return Coverage(study, whole, staging, done, going)


def whole_stages(
    leaves: Leaves, staging: Staging, baseline: str, most: int | None = None
) -> tuple[Leaves, dict[str, int]]:
    """What was answered in whole stages, at most so many, and none that the baseline lacks; and how many by rung."""
    done = {rung: _stages(own, staging) for rung, own in leaves.items()}
    most = min(done.get(baseline, 0), staging.stages if most is None else most)
    done = {rung: min(own, most) for rung, own in done.items()}
    cut = {
        rung: {task: _cut(leaf, staging.tasks.get(task), done[rung]) for task, leaf in own.items()}
        for rung, own in leaves.items()
    }
    return cut, done


def _stages(leaves: Mapping[str, TaskAnswers], staging: Staging) -> int:
    found = staging.stages
    for name, task in staging.tasks.items():
        leaf = leaves[name]
        if isinstance(leaf, AccuracyOutcome):
            found = min(found, stages_done(task, leaf))
        elif leaf.kind == "not_measured" and task.order is not None:
            found = min(found, sum(stop == 0 for stop in task.order.stops))
    return found if any(isinstance(leaf, AccuracyOutcome) for leaf in leaves.values()) else 0


def _is_end(leaf: TaskAnswers) -> bool:
    """Whether nothing more will be answered: of one that is not measured yet, more will."""
    return isinstance(leaf, Unknown) and leaf.kind not in ("not_measured", "not_asked")


def _cut(leaf: TaskAnswers, task: AccuracyTask | None, stages: int) -> TaskAnswers:
    if task is None or task.order is None or _is_end(leaf):
        return leaf
    if stages == 0:
        return Unknown(kind="not_measured")
    if not isinstance(leaf, AccuracyOutcome) or task.order.stops[stages - 1] == 0:
        return Unknown(kind="not_asked")
    return take_stages(task, leaf, stages)


def rungs_to_ask(results: Results, stage: int) -> frozenset[str]:
    """Whom a stage asks, the baseline among them: a pure function of the records of the stages before."""
    study = results.study
    if stage == 0:
        return frozenset(study.rungs) - same_contents(study, results.rungs).keys()
    asked = read_coverage(results, read_outcomes(results), stage).to_ask
    return asked | {study.baseline} if asked else asked
