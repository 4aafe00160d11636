"""The difference over several tasks: a weighted mean of their paired differences, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from bitladder.stats.interval import CONFIDENCE, Interval
from bitladder.stats.paired import PairedCounts, PairedMean

NO_WEIGHT_POINTS, FULL_WEIGHT_POINTS = 5.0, 10.0
"""above chance, from which on a task counts, and from which on wholly"""


def weight_at(above_chance: float) -> float:
    """Of a task in the aggregate, from 0 to 1, by how far above chance the better of two scores is, a fraction."""
    return min(max((100 * above_chance - NO_WEIGHT_POINTS) / (FULL_WEIGHT_POINTS - NO_WEIGHT_POINTS), 0.0), 1.0)


def weight_reason(best: float, chance: float | None) -> str:
    """Why a task has no weight: the better score, and what guessing scores, as fractions of 1."""
    less = f"the better score, {100 * best:.1f}%, is less than {NO_WEIGHT_POINTS:.0f}"
    return f"{less}%" if chance is None else f"{less} points above chance, {100 * chance:.1f}%"


def combine(
    intervals: Sequence[Interval],
    weights: Sequence[float] | None = None,
    correlations: Sequence[Sequence[float]] | None = None,
) -> Interval:
    """Weighted mean of estimates; their variances, recovered from their limits, are summed, and their covariances.

    low = d - sqrt(sum w_s w_t r_st (d_s - low_s) (d_t - low_t)), high likewise: the method of variance estimates
    recovery (Zou and Donner 2008, Statistics in Medicine 27:1693-1702; with correlations Zou 2007, Psychological
    Methods 12:399-413). `correlations` r are the estimates', independent by default; of 1 they are
    `combine_dependent`. `weights` are divided by their sum and equal by default. Raises ValueError for no intervals,
    unequal confidences, or weights that are negative or too few.
    """
    shares = _shares(intervals, weights)
    value = math.fsum(share * part.value for share, part in zip(shares, intervals, strict=True))
    below = [share * (part.value - part.low) for share, part in zip(shares, intervals, strict=True)]
    above = [share * (part.high - part.value) for share, part in zip(shares, intervals, strict=True)]
    return Interval(
        low=value - _length(below, correlations),
        value=value,
        high=value + _length(above, correlations),
        confidence=intervals[0].confidence,
    )


def _length(parts: Sequence[float], correlations: Sequence[Sequence[float]] | None) -> float:
    """Of a sum of errors of these sizes."""
    if correlations is None:
        return math.hypot(*parts)
    return math.sqrt(
        math.fsum(
            one * other * correlation
            for one, row in zip(parts, correlations, strict=True)
            for other, correlation in zip(parts, row, strict=True)
        )
    )


def combine_dependent(intervals: Sequence[Interval], weights: Sequence[float] | None = None) -> Interval:
    """Weighted mean of estimates from the *same* questions, such as GSM8K's strict and chain-of-thought parts.

    How much the parts vary together is not known, so their limits are averaged, as if they did so perfectly: no other
    dependence gives a wider interval. Weights and errors as in `combine`.
    """
    shares = _shares(intervals, weights)
    low, value, high = (
        math.fsum(share * limit for share, limit in zip(shares, limits, strict=True))
        for limits in zip(*((part.low, part.value, part.high) for part in intervals), strict=True)
    )
    return Interval(low=low, value=value, high=high, confidence=intervals[0].confidence)


def _shares(intervals: Sequence[Interval], weights: Sequence[float] | None) -> list[float]:
    if not intervals:
        raise ValueError("there is no interval to combine")
    if len({part.confidence for part in intervals}) > 1:
        raise ValueError(f"confidences differ: {sorted({part.confidence for part in intervals})}")
    weights = [1.0] * len(intervals) if weights is None else weights
    if len(weights) != len(intervals) or min(weights) < 0 or sum(weights) == 0:
        raise ValueError(f"needs {len(intervals)} weights of at least 0 and not all 0, got {list(weights)}")
    return [weight / sum(weights) for weight in weights]


def equivalent_documents(tasks: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Documents of a single task that tell as much as the mean over tasks of so many: (sum w)^2 / sum(w^2 / n).

    Where the same share of answers changes in each. Raises ValueError for no tasks.
    """
    if not tasks:
        raise ValueError("needs at least 1 task")
    weights = [1.0] * len(tasks) if weights is None else weights
    spread = math.fsum(weight**2 / documents for weight, documents in zip(weights, tasks, strict=True))
    return math.fsum(weights) ** 2 / spread


class SameQuestions(BaseModel):
    """One task in several parts that ask the same questions; a `Comparison` of their mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[PairedCounts | PairedMean, ...] = Field(min_length=1)

    @property
    def n_questions(self) -> int:
        return max(part.n for part in self.parts)

    @property
    def equivalent_questions(self) -> float:
        return min(part.equivalent_questions for part in self.parts)

    def interval(self, confidence: float = CONFIDENCE, growth: float = 1.0) -> Interval:
        return combine_dependent([part.interval(confidence, growth) for part in self.parts])


class MeanOfTasks(BaseModel):
    """The weighted mean over tasks; a `Comparison` of them all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[PairedCounts | PairedMean | SameQuestions, ...] = Field(min_length=1)
    weights: tuple[float, ...] | None = None
    """of the parts; None: equal ones"""
    correlations: tuple[tuple[float, ...], ...] | None = None
    """of the parts; None: each has questions of its own"""

    @property
    def n_questions(self) -> int:
        return sum(part.n_questions for part in self.parts)

    @property
    def equivalent_questions(self) -> float:
        return equivalent_documents([part.equivalent_questions for part in self.parts], self.weights)

    def interval(self, confidence: float = CONFIDENCE, growth: float = 1.0) -> Interval:
        """See `combine`; every task's questions are multiplied by `growth`."""
        return combine([part.interval(confidence, growth) for part in self.parts], self.weights, self.correlations)
