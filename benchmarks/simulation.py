"""Simulated experiments with a known truth: how often the intervals cover it, and when a verdict falls.

What the tests assert and benchmarks/interval_coverage.py prints. Every result is a function of its seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bitladder.records.base import Unknown
from bitladder.stats.aggregate import combine, weight_at
from bitladder.stats.interval import CONFIDENCE, Interval, quantile
from bitladder.stats.paired import PairedCounts, cluster_spread, paired_difference, tango_interval
from bitladder.stats.power import is_decided
from bitladder.stats.verdict import Verdict, judge

PairedInterval = Callable[[int, int, int], Interval]
"""(gained, lost, n) -> interval of (gained - lost) / n."""


class ChangeRates(NamedTuple):
    """A task of `n` questions with the true shares of them that a variant gains and loses."""

    gained: float
    lost: float
    n: int


def draw_changes(rates: ChangeRates, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(draws, 2) counts of gained and lost questions."""
    shares = [rates.gained, rates.lost, max(1 - rates.gained - rates.lost, 0.0)]
    return rng.multinomial(rates.n, shares, size=draws)[:, :2]


@cache
def _remembering(paired_interval: PairedInterval) -> PairedInterval:
    """`paired_interval` with a memory: the same few counts come up again and again."""
    return lru_cache(maxsize=None)(paired_interval)


def coverage(
    tasks: Sequence[ChangeRates], draws: int, seed: int, paired_interval: PairedInterval = tango_interval
) -> float:
    """Share of simulated runs whose interval, combined over `tasks` with equal weights, holds the true difference."""
    rng = np.random.default_rng(seed)
    interval_of = _remembering(paired_interval)
    truth = sum(task.gained - task.lost for task in tasks) / len(tasks)
    changes = np.hstack([draw_changes(task, draws, rng) for task in tasks])
    outcomes, times = np.unique(changes, axis=0, return_counts=True)
    covered = 0
    for outcome, count in zip(outcomes.tolist(), times.tolist(), strict=True):
        pairs = zip(outcome[::2], outcome[1::2], tasks, strict=True)
        covered += count * combine([interval_of(gained, lost, task.n) for gained, lost, task in pairs]).contains(truth)
    return covered / draws


def wald_interval(gained: int, lost: int, n: int) -> Interval:
    """The textbook interval, here to show what it misses: it has no width when no answer changed. Never reported."""
    value = (gained - lost) / n
    half = float(special.ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(max((gained + lost) / n - value**2, 0.0) / n)
    return Interval(low=value - half, value=value, high=value + half, confidence=CONFIDENCE)


def decided_share(
    observed: Sequence[PairedCounts], more: int, margin: float, draws: int, seed: int, redraw: bool = False
) -> float:
    """Share of simulated runs with `more` questions, over all tasks in proportion, that decide against -margin.

    The new questions change at the observed rates. The observed answers stay, unless `redraw` draws them anew as well.
    """
    rng = np.random.default_rng(seed)
    n_questions = sum(task.n for task in observed)
    totals = [task.n + round(more * task.n / n_questions) for task in observed]
    grown = []
    for task, total in zip(observed, totals, strict=True):
        rates = ChangeRates(task.gained / task.n, task.lost / task.n, total if redraw else total - task.n)
        grown.append(draw_changes(rates, draws, rng) + ([0, 0] if redraw else [task.gained, task.lost]))
    interval_of = _remembering(tango_interval)
    outcomes, times = np.unique(np.hstack(grown), axis=0, return_counts=True)
    decided = 0
    for outcome, count in zip(outcomes.tolist(), times.tolist(), strict=True):
        pairs = zip(outcome[::2], outcome[1::2], totals, strict=True)
        combined = combine([interval_of(gained, lost, total) for gained, lost, total in pairs])
        decided += count * is_decided(combined, margin)
    return decided / draws


def simulated_questions_to_decide(observed: Sequence[PairedCounts], margin: float, draws: int, seed: int) -> int:
    """Fewest more questions that decide at least half of the simulated continuations, found to 2%."""
    too_few, enough = 0, 16
    while decided_share(observed, enough, margin, draws, seed) < 0.5:
        too_few, enough = enough, enough * 2
    while enough - too_few > max(1, enough // 50):
        middle = (too_few + enough) // 2
        if decided_share(observed, middle, margin, draws, seed) < 0.5:
            too_few = middle
        else:
            enough = middle
    return enough


def within_share(rates: ChangeRates, margin: float, draws: int, seed: int) -> float:
    """Share of simulated runs of one task whose interval lies above -margin."""
    changes = draw_changes(rates, draws, np.random.default_rng(seed))
    outcomes, times = np.unique(changes, axis=0, return_counts=True)
    within = [tango_interval(gained, lost, rates.n).low > -margin for gained, lost in outcomes.tolist()]
    return float(np.average(within, weights=times))


def wrong_verdict_share(rungs: Sequence[ChangeRates], margin: float, draws: int, seed: int) -> float:
    """Share of simulated comparisons of several rungs, judged together, in which any verdict is wrong.

    The rungs are drawn independently of each other, which is no easier than that they share a baseline: Bonferroni's
    bound is nearly reached.
    """
    rng = np.random.default_rng(seed)
    changes = np.hstack([draw_changes(rates, draws, rng) for rates in rungs])
    wrong = 0
    for outcome in changes.tolist():
        pairs = zip(outcome[::2], outcome[1::2], rungs, strict=True)
        counts = {str(index): PairedCounts(gained=g, lost=b, n=one.n) for index, (g, b, one) in enumerate(pairs)}
        judged = judge(counts, margin, count_more=False)
        wrong += any(is_wrong(judged[str(index)].verdict, one, margin) for index, one in enumerate(rungs))
    return wrong / draws


def is_wrong(verdict: Verdict, rates: ChangeRates, margin: float) -> bool:
    truth = rates.gained - rates.lost
    on_margin = math.isclose(truth, -margin)
    if verdict == "beyond the margin":
        return truth > -margin or on_margin
    if verdict == "lower but within":
        return truth >= 0 or truth < -margin or on_margin
    return verdict == "within the margin" and (truth < -margin or on_margin)


class ClusteredTask(NamedTuple):
    """A task whose documents come in clusters of these sizes, each with shares of its own that it gains and loses.

    A cluster's shares are drawn from beta distributions of these means; `correlation` is that of two of its documents.
    """

    sizes: tuple[int, ...]
    gained: float
    lost: float
    correlation: float
    by: float = 1.0
    """how much of a right answer each changed document gains or loses"""


def draw_clusters(
    task: ClusteredTask, draws: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(draws, clusters) counts of gained and of lost documents."""
    sizes = np.asarray(task.sizes)

    def share(mean: float) -> NDArray[np.float64]:
        if mean == 0 or task.correlation == 0:
            return np.full((draws, len(sizes)), mean)
        concentration = (1 - task.correlation) / task.correlation
        return rng.beta(mean * concentration, (1 - mean) * concentration, size=(draws, len(sizes)))

    lost = rng.binomial(sizes, share(task.lost))
    return np.minimum(rng.binomial(sizes, share(task.gained)), sizes - lost), lost


class ClusteredCoverage(NamedTuple):
    """Share of simulated runs whose 95% interval holds the truth, by the way it was made."""

    effective_sample: float
    """ours: Tango's on the effective sample, with t"""
    robust_t: float
    """the mean +- t times the cluster-robust error"""
    wider: float
    """from the lower of both other ways' lower limits to the upper of their upper ones"""
    tango: float
    """as if every document were its own cluster"""


def clustered_coverage(task: ClusteredTask, draws: int, seed: int) -> ClusteredCoverage:
    gained, lost = draw_clusters(task, draws, np.random.default_rng(seed))
    clusters = [str(index) for index, size in enumerate(task.sizes) for _ in range(size)]
    truth = task.by * (task.gained - task.lost)
    covered = np.zeros(4)
    for up, down in zip(gained, lost, strict=True):
        rest = np.asarray(task.sizes) - up - down
        values = np.repeat(
            np.tile([task.by, -task.by, 0.0], len(task.sizes)), np.stack([up, down, rest], axis=1).ravel()
        ).tolist()
        compared = paired_difference(values, clusters)
        spread = cluster_spread(values, clusters)
        assert not isinstance(spread, Unknown)
        half = quantile(CONFIDENCE, spread.degrees) * spread.standard_error
        mean = float(np.mean(values))
        tango = _remembering(tango_interval)(int(up.sum()), int(down.sum()), len(values))
        low, high = min(tango.low, mean - half), max(tango.high, mean + half)
        covered += [
            isinstance(compared, Unknown) or compared.interval().contains(truth),
            abs(mean - truth) <= half,
            low <= truth <= high,
            tango.contains(truth),
        ]
    return ClusteredCoverage(*(covered / draws).tolist())


class WeighedTask(NamedTuple):
    """A task of `n` questions of which every rung answers the share `score` in truth, and changes `changed`."""

    n: int
    score: float
    chance: float
    changed: float


def weighed_difference_points(
    task: WeighedTask, draws: int, seed: int, *, others: int = 0, by_baseline: bool = False
) -> float:
    """Mean difference of a rung that is the baseline's equal, over the runs in which the task counts at all.

    `others`: tasks of full weight beside it, in which nothing differs. `by_baseline`: were the weight read from the
    baseline's score alone.
    """
    rng = np.random.default_rng(seed)
    baseline = rng.binomial(task.n, task.score, draws)
    lost = rng.binomial(baseline, task.changed / 2 / task.score)
    rung = baseline - lost + rng.binomial(task.n - baseline, task.changed / 2 / (1 - task.score))
    best = baseline if by_baseline else np.maximum(baseline, rung)
    weights = np.array([weight_at(count / task.n - task.chance) for count in range(task.n + 1)])[best]
    differences = weights * (rung - baseline) / task.n / np.maximum(weights + others, 1e-12)
    counts = (weights > 0) | (others > 0)
    return float(100 * differences[counts].mean())
