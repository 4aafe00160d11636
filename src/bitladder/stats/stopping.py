"""Verdicts of a study that stops asking a rung when its verdict falls.

Each side's 0.025 is spent in two parts. Bets (`betting`) on the aggregate may decide after any block of documents, with
0.005 over the planned rungs each. What they leave open when all documents are asked is judged by the usual intervals,
Holm's procedure at 0.020. So that no more than 0.025 a side is spent on all rungs together: a wrong verdict is a wrong
bet, of all rungs together 0.005 at most, or a wrong last test, and Holm's procedure at 0.020 counts every rung whose
hypothesis on that side no bet rejected, those that stopped on the other side too.

A rung that stopped is drawn between the limits that its bets leave: those hold at whatever time one looks, which an
interval for a fixed number of documents at a time that the answers chose does not. Which rows count, and how much, is
taken from the answers so far, and as given, as it is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bitladder.records import AccuracyTask, StudyRecord, order_key
from bitladder.stages import stage_count, staged_tasks
from bitladder.stats.aggregate import combine
from bitladder.stats.betting import EARLY_ALPHA, Draws, bet_interval, evenly
from bitladder.stats.interval import CONFIDENCE, Interval, NoInterval
from bitladder.stats.paired import Comparison
from bitladder.stats.pots import ask_the_same
from bitladder.stats.power import QuestionsToDecide, is_decided
from bitladder.stats.row import Row
from bitladder.stats.scores import RowComparison, paired_values
from bitladder.stats.summary import Stopping
from bitladder.stats.verdict import Beside, Judged, Levels, judge, verdict_of

LAST_CONFIDENCE = CONFIDENCE + 2 * EARLY_ALPHA
"""of the last test's intervals, where a single rung is left"""
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
    judged: Judged
    stopping: Stopping


def assess(
    rows: Sequence[Row],
    compared: Mapping[str, RowComparison],
    answered: Mapping[str, int],
    staging: Staging,
    margin: float,
    *,
    shares_documents: bool,
) -> dict[str, Assessed]:
    """The verdict on each rung whose aggregate over ``rows`` is compared with the baseline, and how far it was asked.

    ``answered``: stages by rung. Rows that share documents are bet on nowhere: their draws are not independent.
    """
    bets = {
        rung: bet_interval(
            [] if shares_documents else list(_draws(rows, rung, staging)),
            margin,
            EARLY_ALPHA / staging.rungs,
            one.value,
        )
        for rung, one in compared.items()
    }
    by_bets = {rung for rung, interval in bets.items() if is_decided(interval, margin)}
    left = {
        rung: one.comparison
        for rung, one in compared.items()
        if rung not in by_bets and answered[rung] == staging.stages and not isinstance(one.comparison, NoInterval)
    }
    others = compared.keys() - left.keys()
    beside = Beside(
        low=sum(bets[rung].low <= -margin for rung in others), high=sum(bets[rung].high >= -margin for rung in others)
    )
    last = judge(left, margin, confidence=LAST_CONFIDENCE, beside=beside)
    return {
        rung: _assessed(rung, rows, compared[rung], bets[rung], last.get(rung), answered[rung], staging, margin)
        for rung in compared
    }


def _assessed(
    rung: str,
    rows: Sequence[Row],
    compared: RowComparison,
    bets: Interval,
    last: Judged | None,
    answered: int,
    staging: Staging,
    margin: float,
) -> Assessed:
    def stopped(state: str) -> Stopping:
        documents = staging.documents[answered - 1] if answered else 0
        return Stopping.model_validate(
            {"state": state, "documents": documents, "of": staging.documents[-1], "stages": answered}
        )

    if last is not None:
        return Assessed(last, stopped("undecided" if last.verdict == "undecided" else "end"))
    verdict = verdict_of(bets.low, bets.high, margin)
    more: int | None = None
    reason = None
    if verdict != "undecided":
        state, more = "early", 0
    elif answered == staging.stages:
        state, reason = "undecided", "its answers give no interval"
    elif is_hopeless(rows, rung, margin):
        state, reason = "hopeless", "the questions that exist can't decide it"
    else:
        state, reason = "open", "the study is still asking it; run it again to go on"
    levels = Levels(bets.confidence, bets.confidence)
    to_decide = QuestionsToDecide(more=more, reason=reason)
    judged = Judged(bets.low, bets.value, bets.high, levels, verdict, to_decide, at_any_time=True)
    return Assessed(judged, stopped(state))


def _draws(rows: Sequence[Row], rung: str, staging: Staging) -> Iterator[Draws]:
    """What is bet on: in each stage as many blocks as the row with the fewest clusters has, each row's shared out."""
    units = [(weight, stages) for row in rows for weight, stages in _units(row, rung, staging)]
    blocks = [min(len(stages[stage]) for _, stages in units) for stage in range(staging.stages)]
    for weight, stages in units:
        values: list[float] = []
        starts: list[int] = []
        for stage, count in enumerate(blocks):
            if count:
                starts += (len(values) + evenly(len(stages[stage]), count)).tolist()
                values += stages[stage]
        yield Draws(np.asarray(values), np.asarray(starts, dtype=np.int64), weight)


def _units(row: Row, rung: str, staging: Staging) -> Iterator[tuple[float, list[list[float]]]]:
    """A row's differences by stage, in the order of their clusters, one a cluster, with their weight.

    Parts with the same questions are one, a question's mean; others share the row's weight.
    """
    pots, baseline, outcomes = row.pots[rung], row.baselines[rung], row.outcomes(rung)
    assert not isinstance(pots, str) and not isinstance(baseline, str) and not isinstance(outcomes, str)
    answers = [paired_values(pot, other, pot.values, other.values) for pot, other in zip(pots, baseline, strict=True)]
    places: list[tuple[int, str]] = []
    for task, outcome in outcomes.items():
        order = staging.tasks[task].order
        assert order is not None
        places += (
            (order.stage_of(place), order_key(order.seed, one.cluster or one.doc_hash))
            for place, one in enumerate(outcome.documents)
        )
    starts = np.cumsum([0, *(len(part) for part in answers)]).tolist()
    parts = [places[start : start + len(part)] for start, part in zip(starts, answers, strict=False)]
    together = len(pots) == 1 or ask_the_same(pots)
    pairs = list(zip(parts, answers, strict=True))
    for group in [pairs] if together else [[pair] for pair in pairs]:
        clusters: dict[tuple[int, str], list[float]] = {}
        for part, differences in group:
            for place, difference in zip(part, differences, strict=True):
                clusters.setdefault(place, []).append(difference)
        stages: list[list[float]] = [[] for _ in range(staging.stages)]
        for stage, key in sorted(clusters):
            found = clusters[stage, key]
            stages[stage].append(math.fsum(found) / len(found))
        yield (row.weight or 0.0) / (1 if together else len(pots)), stages


def is_hopeless(rows: Sequence[Row], rung: str, margin: float) -> bool:
    """Whether the documents that are left could hardly decide a rung: not in a last test by itself, with the same
    share of changed answers, and a difference as far either way as `HOPE_CONFIDENCE` lets the rest be."""
    now: list[Interval] = []
    best: list[Interval] = []
    for row in rows:
        one, questions = row.compared[rung], row.planned_questions
        pots = row.pots[rung]
        if isinstance(one, str) or isinstance(one.comparison, NoInterval) or questions is None or isinstance(pots, str):
            return False
        grown = questions / max(len(pot.questions) for pot in pots)
        now.append(one.comparison.interval(LAST_CONFIDENCE, grown))
        best.append(_reachable(one.comparison, 1 / grown))
    weights = [row.weight or 0.0 for row in rows]
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
