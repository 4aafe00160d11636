"""What every rung of a study was asked and answered so far, and who is to be asked more."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from bitladder.records import AccuracyOutcome, AccuracyTask, StudyRecord
from bitladder.results import Results
from bitladder.stages import stages_done, take_stages
from bitladder.stats.accuracy import summarize_aggregates
from bitladder.stats.ends import NOT_MADE, NOT_MEASURED, Ends
from bitladder.stats.row import Leaf, Row
from bitladder.stats.stopping import Staging
from bitladder.stats.summary import AggregateSummary

Leaves = Mapping[str, Mapping[str, Leaf]]
"""rung -> lm-eval task -> what came of it"""


@dataclass(frozen=True)
class Answered:
    """Of tasks that are asked in stages only whole stages count, none that the baseline lacks."""

    study: StudyRecord
    leaves: Leaves
    staging: Staging | None
    stages: Mapping[str, int]
    """that each rung answered; of one that a task failed on, as far as the others go"""
    ended: Mapping[str, bool]
    """whether a rung has a checkpoint, and no stage ended badly"""

    @cached_property
    def rows(self) -> list[Row]:
        staged = self.staging.tasks if self.staging else {}
        return [Row(group, self.study.baseline, self.leaves, staged) for group in self.study.groups if self._has_tasks]

    @property
    def _has_tasks(self) -> bool:
        return any(isinstance(item, AccuracyTask) for item in self.study.items)

    def aggregates(self, margin_points: float) -> dict[str, AggregateSummary]:
        """By rung, judged together against the margin."""
        study = self.study
        return summarize_aggregates(self.rows, study.rungs, study.baseline, margin_points, self.staging, self.stages)

    def to_ask(self, aggregates: Mapping[str, AggregateSummary]) -> frozenset[str]:
        """The rungs with a stage to come, whose verdict isn't known; and the baseline, where they need more of it."""
        staging, baseline = self.staging, self.study.baseline
        if staging is None or not self.ended.get(baseline, False):
            return frozenset()
        found = {
            rung
            for rung in self.study.rungs
            if rung != baseline
            and self.ended[rung]
            and self.stages[rung] < staging.stages
            # without any comparison so far, such as without a row that has a signal, all that there is may be needed
            and ((stopping := aggregates[rung].stopping) is None or stopping.state == "open")
        }
        if any(self.stages[rung] >= self.stages[baseline] for rung in found):
            found.add(baseline)
        return frozenset(found)

    def unasked(self, aggregates: Mapping[str, AggregateSummary]) -> dict[str, frozenset[str]]:
        """Of each rung the tasks in stages with documents that it is still to be asked."""
        if self.staging is None:
            return {rung: frozenset() for rung in self.study.rungs}
        asked = self.to_ask(aggregates)
        found = {}
        for rung in self.study.rungs:
            orders = {name: task.order for name, task in self.staging.tasks.items() if task.order}
            left = {name for name, order in orders.items() if (0, *order.stops)[self.stages[rung]] < order.stops[-1]}
            not_made = NOT_MADE in self.leaves[rung].values()
            found[rung] = frozenset(left if rung in asked or not_made else ())
        return found


def read_answered(results: Results, ends: Mapping[str, Ends] | None = None, stages: int | None = None) -> Answered:
    """What the records of a study say, of no more than so many stages."""
    study = results.study
    ends = ends or {rung: Ends(results, rung) for rung in study.rungs}
    tasks = [item.task for item in study.items if isinstance(item, AccuracyTask)]
    leaves = {rung: {task: end.leaf(task) for task in tasks} for rung, end in ends.items()}
    staging = Staging.of(study)
    if staging is None:
        return Answered(study, leaves, None, {}, {})
    most = staging.stages if stages is None else min(stages, staging.stages)
    done = {rung: min(_stages(own, staging), most) for rung, own in leaves.items()}
    of_baseline = done.get(study.baseline, 0)
    done = {rung: min(own, of_baseline) for rung, own in done.items()}
    return Answered(
        study,
        {
            rung: {task: _cut(leaf, staging.tasks.get(task), done[rung]) for task, leaf in own.items()}
            for rung, own in leaves.items()
        },
        staging,
        done,
        {rung: end.status == "ok" and not _failed(leaves[rung], staging) for rung, end in ends.items()},
    )


def _stages(leaves: Mapping[str, Leaf], staging: Staging) -> int:
    found = staging.stages
    for name, task in staging.tasks.items():
        leaf = leaves[name]
        if isinstance(leaf, AccuracyOutcome):
            found = min(found, stages_done(task, leaf))
        elif leaf == NOT_MEASURED and task.order is not None:
            found = min(found, sum(stop == 0 for stop in task.order.stops))
    return found if any(isinstance(leaf, AccuracyOutcome) for leaf in leaves.values()) else 0


def _failed(leaves: Mapping[str, Leaf], staging: Staging) -> bool:
    return any(isinstance(leaves[name], str) and leaves[name] != NOT_MEASURED for name in staging.tasks)


def _cut(leaf: Leaf, task: AccuracyTask | None, stages: int) -> Leaf:
    if task is None or task.order is None or (isinstance(leaf, str) and leaf != NOT_MEASURED):
        return leaf
    if stages == 0:
        return NOT_MEASURED
    if not isinstance(leaf, AccuracyOutcome) or task.order.stops[stages - 1] == 0:
        return None
    return take_stages(task, leaf, stages)


def rungs_to_ask(results: Results, margin_points: float, stage: int) -> frozenset[str]:
    """Whom a stage asks, the baseline among them: a pure function of the records of the stages before."""
    if stage == 0:
        return frozenset(results.study.rungs)
    answered = read_answered(results, stages=stage)
    found = answered.to_ask(answered.aggregates(margin_points))
    return found | {results.study.baseline} if found else found
