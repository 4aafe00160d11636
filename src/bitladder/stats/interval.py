"""An estimate between its confidence limits; the intervals of one proportion and of one mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator
from scipy import special

from bitladder.unknown import Unknown

CONFIDENCE = 0.95
"""Two-sided confidence of every interval that does not ask for another."""


class Interval(BaseModel):
    """An estimate with two-sided confidence limits, all in the unit of the estimate."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    value: float
    high: float
    confidence: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"limits must enclose the estimate, got {self.low} <= {self.value} <= {self.high}")
        return self

    def contains(self, value: float) -> bool:
        """Whether `value` lies between the limits, the limits included."""
        return self.low <= value <= self.high


def quantile(confidence: float, degrees: float | None = None) -> float:
    """Two-sided quantile of Student's t, or of the normal distribution where `degrees` is None."""
    upper = (1 + confidence) / 2
    return float(special.ndtri(upper) if degrees is None else special.stdtrit(degrees, upper))


def wilson_interval(
    successes: float, n: float, confidence: float = CONFIDENCE, degrees: float | None = None
) -> Interval:
    """Wilson's score interval for one proportion (Wilson 1927, JASA 22:209-212).

    Clustered documents enter as the counts of their effective sample with the `degrees` of freedom of its size, so
    counts may be fractional (Korn and Graubard 1998, Survey Methodology 24:193-201). Raises ValueError unless
    0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n * (1 + 1e-9):
        raise ValueError(f"needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = quantile(confidence, degrees)
    share = min(successes / n, 1.0)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))
    return Interval(low=low, value=share, high=high, confidence=confidence)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | Unknown:
    """Student's t interval for the mean of independent values, in their unit.

    None is given for fewer than two values, nor for equal ones, whose spread of 0 would claim certainty.
    """
    summary = spread(values)
    if isinstance(summary, Unknown):
        return summary
    mean, sd = summary
    return t_interval(mean, sd, len(values), confidence)


def spread(values: Sequence[float]) -> tuple[float, float] | Unknown:
    """Mean and sample standard deviation of `values`, or why they give no t interval."""
    if len(values) < 2:
        return Unknown(f"an interval needs at least 2 values, there are {len(values)}")
    if min(values) == max(values):
        return Unknown(f"all {len(values)} values are equal, so they show no spread")
    return float(np.mean(values)), float(np.std(values, ddof=1))


def t_interval(
    mean: float, sd: float, n: float, confidence: float = CONFIDENCE, degrees: float | None = None
) -> Interval:
    """Student's t interval from a mean and a sample standard deviation; `n` may be fractional (extrapolated).

    `degrees` of freedom are n - 1 by default.
    """
    half = quantile(confidence, n - 1 if degrees is None else degrees) * sd / math.sqrt(n)
    return Interval(low=mean - half, value=mean, high=mean + half, confidence=confidence)
