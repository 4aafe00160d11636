"""An estimate between its confidence limits: of a proportion, of a mean, of a ratio of two sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator
from scipy import special

from bitladder.records.base import Unknown

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


LEAST_SERIAL = 8
"""samples that a serial correlation can be seen in"""
MOST_CORRELATED = 0.8


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    confidence: float = CONFIDENCE,
    *,
    serial: bool = False,
) -> Interval | Unknown:
    """Interval of sum(numerators) / sum(denominators), both positive sums over independent samples.

    ``serial``: samples stand in the order of time, and each may resemble the one before; see `relative_error`.

    Delta method on the logarithm (Cochran 1977, Sampling Techniques, ch. 6) with Student's t, so that the limits are
    positive. None for fewer than two samples, nor for samples that all have the same ratio. Raises ValueError for
    sums that are not positive.
    """
    spread = relative_error(numerators, denominators, serial=serial)
    if isinstance(spread, Unknown):
        return spread
    value = math.fsum(numerators) / math.fsum(denominators)
    return _around(value, spread, len(numerators) - 1, confidence)


def relative_error(
    numerators: Sequence[float], denominators: Sequence[float], *, serial: bool = False
) -> float | Unknown:
    """Standard error of sum(numerators) / sum(denominators) as a share of it, or why there is none.

    ``serial`` widens it for samples that resemble the one before, by the factor of a first-order autoregressive
    series, sqrt((1 + r) / (1 - r)) for a correlation of r > 0 (Bartlett 1946).
    """
    total, weight = math.fsum(numerators), math.fsum(denominators)
    if total <= 0 or weight <= 0:
        raise ValueError(f"needs positive sums, got {total} and {weight}")
    n = len(numerators)
    if n < 2:
        return Unknown(f"an interval needs at least 2 samples, there is {n}")
    ratio = total / weight
    squares = math.fsum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    error = math.sqrt(n / (n - 1) * squares) / total
    if serial:
        correlation = min(serial_correlation(numerators, denominators), MOST_CORRELATED)
        error *= math.sqrt((1 + correlation) / (1 - correlation))
    # Sums of floats leave a residue of about 1e-16 where samples are equal; equal samples show no spread.
    return error if error > 1e-12 else Unknown(f"all {n} samples are equal, so they show no spread")


def serial_correlation(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """`seen_correlation` less its bias of about -(1 + 4 r) / n (Kendall 1954), from 0 to 1."""
    found = seen_correlation(numerators, denominators)
    return min(found + (1 + 4 * found) / len(numerators), 1.0) if found > 0 else 0.0


def seen_correlation(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Correlation of each sample's departure from the ratio with that of the one before.

    0 for fewer than LEAST_SERIAL samples, in which noise alone looks like anything.
    """
    if len(numerators) < LEAST_SERIAL:
        return 0.0
    ratio = math.fsum(numerators) / math.fsum(denominators)
    residuals = [a - ratio * b for a, b in zip(numerators, denominators, strict=True)]
    squares = math.fsum(value**2 for value in residuals)
    if squares == 0:
        return 0.0
    return math.fsum(one * other for one, other in pairwise(residuals)) / squares


def quotient_interval(
    value: float, errors: tuple[float, float], degrees: tuple[int, int], confidence: float = CONFIDENCE
) -> Interval:
    """Interval of the quotient of two independent estimates with these relative errors and degrees of freedom.

    Their logarithms differ; degrees of freedom after Welch (1947) and Satterthwaite (1946).
    """
    variances = [error**2 for error in errors]
    pooled = sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    return _around(value, math.sqrt(sum(variances)), pooled, confidence)


def paired_ratio_interval(score: Interval, baseline: Interval, difference: Interval) -> Interval | Unknown:
    """Interval of score / baseline from those of both and of their difference, which knows how they are paired.

    Variance estimates recovered from the limits, for a ratio (Donner and Zou 2012, Stat Methods Med Res 21:347-359);
    the covariance is what the difference's limits leave of the two scores' own. Therefore it holds 1 exactly where the
    difference's interval holds 0, but for a covariance that no correlation up to 1 gives, which is cut. None where the
    baseline's limits are as far apart as 0 is from it.
    """
    low = _ratio_limit(score, baseline, difference, upper=False)
    high = _ratio_limit(score, baseline, difference, upper=True)
    if low is None or high is None:
        return Unknown("the baseline's own interval is as wide as its score")
    return Interval(low=low, value=score.value / baseline.value, high=high, confidence=difference.confidence)


def _ratio_limit(score: Interval, baseline: Interval, difference: Interval, *, upper: bool) -> float | None:
    """A root of (v - L b)^2 = (v - v')^2 + L^2 (b - b')^2 - 2 L covariance, v' and b' the limits that count here."""
    v, b = score.value, baseline.value
    to_v = (score.high - v) if upper else (v - score.low)
    to_b = (b - baseline.low) if upper else (baseline.high - b)
    to_d = (difference.high - difference.value) if upper else (difference.value - difference.low)
    covariance = min((to_v**2 + to_b**2 - to_d**2) / 2, to_v * to_b)
    leading = b**2 - to_b**2
    if leading <= 0:
        return None
    middle = v * b - covariance
    # at a correlation of 1 the root's square is 0 but for rounding
    root = math.sqrt(max(0.0, middle**2 - leading * (v**2 - to_v**2)))
    return max((middle + root) / leading, v / b) if upper else min((middle - root) / leading, v / b)


def _around(value: float, relative: float, degrees: float, confidence: float) -> Interval:
    factor = math.exp(float(special.stdtrit(degrees, (1 + confidence) / 2)) * relative)
    return Interval(low=value / factor, value=value, high=value * factor, confidence=confidence)
