"""What a comparison shows: where the interval of a difference lies against the margin.

A study that stops asking early looks at the answers a few times: a group-sequential test. A precision that changed no
more answers than change by themselves is told apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from bitladder.records.base import Unknown
from bitladder.stats.aggregate import combine
from bitladder.stats.interval import CONFIDENCE, Interval
from bitladder.stats.paired import Comparison, paired_difference
from bitladder.stats.power import ONE_SIDED_ALPHA, questions_to_decide

EXCESS_POINTS = 1.0
"""of the answers beyond what flips by itself, below which a precision is called indistinguishable"""


class FlipsJudged(NamedTuple):
    """Flips held against what flips by itself."""

    p_value: float
    value: float
    """excess over the larger floor, a share of the documents"""
    excess: Interval | Unknown
    verdict: FlipsVerdict


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
    document, in one order: of the rung against the baseline, and of either against its second pass. Above the floor:
    both are exceeded (an intersection-union test: each at the whole level). Indistinguishable takes evidence too: the
    interval of the excess over the larger floor lies below `EXCESS_POINTS`; that nothing is shown is none.
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


Verdict = Literal["within the margin", "lower but within", "beyond the margin", "undecided", "no signal"]
FlipsVerdict = Literal["indistinguishable", "above the floor", "not settled"]
"""of answers that differ from the baseline's, beside what changes by itself, see `flips`"""
ACCEPTABLE: tuple[Verdict, ...] = ("within the margin", "lower but within")


def verdict_of(low: float, high: float, margin: float) -> Verdict:
    """By where an interval lies against -margin, all in one unit; an interval that touches -margin is undecided."""
    if low > -margin:
        return "lower but within" if high < 0 else "within the margin"
    return "beyond the margin" if high < -margin else "undecided"


class Levels(NamedTuple):
    """Of which two-sided confidence's interval a limit is drawn, on either side."""

    low: float = CONFIDENCE
    high: float = CONFIDENCE


@dataclass(frozen=True)
class Judged:
    """One rung's difference between the limits that it is judged by, in fractions of 1."""

    low: float
    value: float
    high: float
    levels: Levels
    verdict: Verdict
    to_decide: int | Unknown | None
    """how many more questions would; None: not worked out"""


class Beside(NamedTuple):
    """Further rungs of which the side's hypothesis is not rejected, on either side: they share the error."""

    low: int = 0
    high: int = 0


def judge(
    comparisons: Mapping[str, Comparison],
    margin: float,
    *,
    count_more: bool = True,
    confidence: float = CONFIDENCE,
    beside: Beside = Beside(),
) -> dict[str, Judged]:
    """The verdict on each rung that is compared with the baseline, all of them together; see the module.

    `count_more`: whether to work out how many more questions would decide an open one. `confidence`: what both sides
    leave, where a part of the error was spent before. `beside` stay open to the end.
    """
    low = _levels(comparisons, lambda interval: interval.low > -margin, confidence, beside.low)
    high = _levels(comparisons, lambda interval: interval.high < -margin, confidence, beside.high)
    return {rung: _judged(one, Levels(low[rung], high[rung]), margin, count_more) for rung, one in comparisons.items()}


def _levels(
    comparisons: Mapping[str, Comparison], clears: Callable[[Interval], bool], all_together: float, beside: int
) -> dict[str, float]:
    """The confidence that each rung's limit was judged at, by Holm's procedure."""
    levels: dict[str, float] = {}
    still_open = set(comparisons)
    while still_open:
        confidence = shared_confidence(len(still_open) + beside, all_together)
        levels.update(dict.fromkeys(still_open, confidence))
        cleared = {rung for rung in still_open if clears(comparisons[rung].interval(confidence))}
        if not cleared:
            break
        still_open -= cleared
    return levels


def shared_confidence(rungs: int, all_together: float = CONFIDENCE) -> float:
    """Two-sided confidence of each of so many intervals that hold all together, with 95% by default (Bonferroni)."""
    return 1 - (1 - all_together) / rungs


def _judged(comparison: Comparison, levels: Levels, margin: float, count_more: bool) -> Judged:
    lower, upper = comparison.interval(levels.low), comparison.interval(levels.high)
    verdict = verdict_of(lower.low, upper.high, margin)
    if verdict == "undecided" and count_more:
        confidence = levels.low if lower.value > -margin else levels.high
        more: int | Unknown | None = questions_to_decide(comparison, margin, confidence)
    else:
        more = None if verdict == "undecided" else 0
    return Judged(lower.low, lower.value, upper.high, levels, verdict, more)


def all_acceptable(verdicts: Iterable[Verdict | None]) -> bool:
    """Whether a drop beyond the margin is ruled out for all."""
    return all(verdict in ACCEPTABLE for verdict in verdicts)


EARLY_ALPHA = 0.01
"""of each side's 0.025, spent on all looks before the last"""
HOPE_CONFIDENCE = 0.997
"""A rung is asked on unless not even the ends of an interval of this confidence, for what the remaining documents show,
would decide it."""


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


class RowSoFar(NamedTuple):
    """What one row of an aggregate shows so far."""

    comparison: Comparison
    growth: float
    """all its questions over those that were asked"""
    weight: float


def is_hopeless(rows: Sequence[RowSoFar], margin: float, confidence: float) -> bool:
    """Whether the documents that are left could hardly decide a rung: not in a last test of this confidence by itself,
    with the same share of changed answers, and a difference as far either way as `HOPE_CONFIDENCE` lets the rest be."""
    weights = [row.weight for row in rows]
    last = combine([row.comparison.interval(confidence, row.growth) for row in rows], weights)
    reachable = combine([_reachable(row.comparison, 1 / row.growth) for row in rows], weights)
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
