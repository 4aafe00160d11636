"""Verdicts of a study that stops asking a rung when its verdict falls: a group-sequential test with few looks.

Each side's 0.025 is spent over the looks, one after each stage: `EARLY_ALPHA` over those before the last, in equal
parts, and the rest at the last. At each look the rungs that were asked so far and no further are judged by the usual
intervals and Holm's procedure (`verdict`) at what that look may spend. The other planned rungs stay in the count,
unless an earlier look rejected their hypothesis on that side. Then no more than 0.025 a side is spent on all rungs and
looks together. Say t of the hypotheses on a side are true. Until the first of these is rejected all t are counted, so
each look rejects it at no more than its own part over t: in all t times the sum of the parts over t. Nothing is
assumed of how looks depend on each other, nor of what share of the information each has. That costs some power against
the boundaries of Pocock or O'Brien and Fleming (Jennison and Turnbull 2000, Group Sequential Methods, chapters 2 and
9), which need both.

The limits that a rung stopped at are drawn: repeated confidence intervals (Jennison and Turnbull 1989, JRSS-B
51:305-361), which hold at all looks together, whatever made the asking stop. Which rows count, and how much, is taken
from the answers so far, and as given, as it is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bitladder.records import AccuracyTask, StudyRecord
from bitladder.stages import stage_count, staged_tasks
from bitladder.stats.aggregate import combine
from bitladder.stats.interval import CONFIDENCE, Interval
from bitladder.stats.paired import Comparison
from bitladder.stats.row import Row
from bitladder.stats.scores import RowComparison
from bitladder.stats.summary import Stopping
from bitladder.stats.verdict import Beside, Judged, judge
from bitladder.unknown import Unknown

EARLY_ALPHA = 0.01
"""of each side's 0.025, spent on all looks before the last"""
HOPE_CONFIDENCE = 0.997
"""A rung is asked on unless not even the ends of an interval of this confidence, for what the remaining documents show,
would decide it."""


@dataclass(frozen=True)
class Staging:
    """What a plan asks in stages, and how many rungs share the error."""

    tasks: Mapping[str, AccuracyTask]
    rungs: int
    """held against the baseline, whatever became of them"""

    @classmethod
    def of(cls, study: StudyRecord) -> Staging | None:
        """None where every document is asked. A merged study's tasks may have fewer stages: their last are empty."""
        tasks = staged_tasks(study)
        stages = stage_count(tasks)
        padded = {task.task: _padded(task, stages) for task in tasks}
        return cls(padded, max(len(study.rungs) - 1, 1)) if tasks else None

    @cached_property
    def stages(self) -> int:
        return stage_count(tuple(self.tasks.values()))

    @cached_property
    def documents(self) -> tuple[int, ...]:
        """Asked by the end of each stage, of all tasks."""
        orders = [task.order for task in self.tasks.values() if task.order]
        return tuple(sum(order.stops[stage] for order in orders) for stage in range(self.stages))


def _padded(task: AccuracyTask, stages: int) -> AccuracyTask:
    assert task.order is not None
    stops = task.order.stops
    padded = (*stops, *stops[-1:] * (stages - len(stops)))
    return task.model_copy(update={"order": task.order.model_copy(update={"stops": padded})})


@dataclass(frozen=True)
class Assessed:
    judged: Judged | None
    """None where its answers give no interval"""
    stopping: Stopping


def look_confidence(look: int, looks: int) -> float:
    """Two-sided confidence that all intervals of one look, counted from 1, have together."""
    if looks == 1:
        return CONFIDENCE
    return 1 - 2 * EARLY_ALPHA / (looks - 1) if look < looks else CONFIDENCE + 2 * EARLY_ALPHA


def judge_looks(
    compared: Mapping[str, Comparison], answered: Mapping[str, int], looks: int, rungs: int, margin: float
) -> dict[str, Judged]:
    """The verdict on each rung at the last look that it was asked until, see the module.

    ``answered``: looks by rung, at least 1. ``rungs``: all that are planned, those of which nothing is known too.
    """
    found: dict[str, Judged] = {}
    for look in range(1, looks + 1):
        here = {rung: one for rung, one in compared.items() if answered[rung] == look}
        others = rungs - len(here)
        beside = Beside(
            low=others - sum(one.low > -margin for one in found.values()),
            high=others - sum(one.high < -margin for one in found.values()),
        )
        found |= judge(here, margin, count_more=look == looks, confidence=look_confidence(look, looks), beside=beside)
    return found


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
    elif is_hopeless(rows, rung, margin, look_confidence(staging.stages, staging.stages)):
        state, reason = "hopeless", Unknown("the questions that exist can't decide it")
    else:
        state, reason = "open", Unknown("the study is still asking it; run it again to go on")
    if judged is not None and reason is not None:
        judged = replace(judged, to_decide=reason)
    documents = staging.documents[answered - 1] if answered else 0
    stopping = {"state": state, "documents": documents, "of": staging.documents[-1], "stages": answered}
    return Assessed(judged, Stopping.model_validate(stopping))


def is_hopeless(rows: Sequence[Row], rung: str, margin: float, confidence: float) -> bool:
    """Whether the documents that are left could hardly decide a rung: not in a last test of this confidence by itself,
    with the same share of changed answers, and a difference as far either way as `HOPE_CONFIDENCE` lets the rest be."""
    now: list[Interval] = []
    best: list[Interval] = []
    for row in rows:
        one, questions = row.compared[rung], row.planned_questions
        pots = row.pots[rung]
        if (
            isinstance(one, Unknown)
            or isinstance(one.comparison, Unknown)
            or questions is None
            or isinstance(pots, Unknown)
        ):
            return False
        grown = questions / max(len(pot.questions) for pot in pots)
        now.append(one.comparison.interval(confidence, grown))
        best.append(_reachable(one.comparison, 1 / grown))
    weights = [row.weights[rung] or 0.0 for row in rows]
    last, reachable = combine(now, weights), combine(best, weights)
    highest_low = reachable.high - (last.value - last.low)
    lowest_high = reachable.low + (last.high - last.value)
    return highest_low <= -margin and lowest_high >= -margin


def _reachable(comparison: Comparison, share: float) -> Interval:
    """Where the difference over all documents may come to lie, of which so large a share was asked.

    The rest's mean differs from that so far with variance v / n + v / (N - n), of which 1 - share of it enters: in all
    as if an interval for n documents were narrower by sqrt(1 - share).
    """
    interval = comparison.interval(HOPE_CONFIDENCE)
    rest = math.sqrt(max(1 - share, 0.0))
    return Interval(
        low=interval.value - rest * (interval.value - interval.low),
        value=interval.value,
        high=interval.value + rest * (interval.high - interval.value),
        confidence=HOPE_CONFIDENCE,
    )
