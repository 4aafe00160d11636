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

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bitladder.stats.aggregate import combine
from bitladder.stats.interval import CONFIDENCE, Interval
from bitladder.stats.paired import Comparison
from bitladder.stats.verdict import Beside, Judged, judge

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


class Asked(NamedTuple):
    """What one row of an aggregate shows so far."""

    comparison: Comparison
    growth: float
    """all its questions over those that were asked"""
    weight: float


def is_hopeless(rows: Sequence[Asked], margin: float, confidence: float) -> bool:
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
