"""The difference over several tasks: a weighted mean of their paired differences, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from bitladder.stats.interval import CONFIDENCE, Interval
from bitladder.stats.paired import Comparison, PairedCounts, PairedMean


def aggregate(
    comparisons: Sequence[Comparison],
    weights: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
    growth: float = 1.0,
) -> Interval:
    """Interval of the mean difference over tasks with questions of their own; see `combine`.

    `growth` is the factor by which every task's questions are multiplied, for extrapolation.
    """
    return combine([comparison.interval(confidence, growth) for comparison in comparisons], weights)


def combine(intervals: Sequence[Interval], weights: Sequence[float] | None = None) -> Interval:
    """Weighted mean of independent estimates; their variances, recovered from their limits, are summed.

    low = d - sqrt(sum w_t^2 (d_t - low_t)^2), high likewise: the method of variance estimates recovery (Zou and Donner
    2008, Statistics in Medicine 27:1693-1702). `weights` are divided by their sum and equal by default. Raises
    ValueError for no intervals, unequal confidences, or weights that are negative or too few.
    """
    shares = _shares(intervals, weights)
    value = math.fsum(share * part.value for share, part in zip(shares, intervals, strict=True))
    below = math.hypot(*(share * (part.value - part.low) for share, part in zip(shares, intervals, strict=True)))
    above = math.hypot(*(share * (part.high - part.value) for share, part in zip(shares, intervals, strict=True)))
    return Interval(low=value - below, value=value, high=value + above, confidence=intervals[0].confidence)


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


class SameQuestions(BaseModel):
    """One task in several parts that ask the same questions; a `Comparison` of their mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[PairedCounts | PairedMean, ...] = Field(min_length=1)

    @property
    def n_questions(self) -> int:
        return max(part.n for part in self.parts)

    def interval(self, confidence: float = CONFIDENCE, growth: float = 1.0) -> Interval:
        return combine_dependent([part.interval(confidence, growth) for part in self.parts])


class MeanOfTasks(BaseModel):
    """The mean over tasks with questions of their own; a `Comparison` of them all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[PairedCounts | PairedMean | SameQuestions, ...] = Field(min_length=1)

    @property
    def n_questions(self) -> int:
        return sum(part.n_questions for part in self.parts)

    def interval(self, confidence: float = CONFIDENCE, growth: float = 1.0) -> Interval:
        return aggregate(self.parts, confidence=confidence, growth=growth)
