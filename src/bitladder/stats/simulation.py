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

from bitladder.stats.aggregate import combine
from bitladder.stats.interval import CONFIDENCE, Interval
from bitladder.stats.paired import PairedCounts, tango_interval
from bitladder.stats.power import is_decided

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
    decided = 0
    for outcome in np.hstack(grown).tolist():
        pairs = zip(outcome[::2], outcome[1::2], totals, strict=True)
        decided += is_decided(combine([interval_of(gained, lost, total) for gained, lost, total in pairs]), margin)
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
