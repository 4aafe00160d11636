"""Whether a precision changed more answers than change by themselves."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from bitladder.stats.interval import Interval
from bitladder.stats.paired import paired_difference
from bitladder.stats.power import ONE_SIDED_ALPHA
from bitladder.stats.verdict import FlipsVerdict
from bitladder.unknown import Unknown

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
