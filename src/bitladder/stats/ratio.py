"""The ratio of two sums over independent samples (a rate, a time per token, bits per byte), and of two rates."""

import math
from collections.abc import Sequence

from scipy import special

from bitladder.stats.interval import CONFIDENCE, Interval, NoInterval


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = CONFIDENCE
) -> Interval | NoInterval:
    """Interval of sum(numerators) / sum(denominators), both positive sums over independent samples.

    Delta method on the logarithm (Cochran 1977, Sampling Techniques, ch. 6) with Student's t, so that the limits are
    positive. None for fewer than two samples, nor for samples that all have the same ratio. Raises ValueError for
    sums that are not positive.
    """
    spread = relative_error(numerators, denominators)
    if isinstance(spread, NoInterval):
        return spread
    value = math.fsum(numerators) / math.fsum(denominators)
    return _around(value, spread, len(numerators) - 1, confidence)


def relative_error(numerators: Sequence[float], denominators: Sequence[float]) -> float | NoInterval:
    """Standard error of sum(numerators) / sum(denominators) as a share of it, or why there is none."""
    total, weight = math.fsum(numerators), math.fsum(denominators)
    if total <= 0 or weight <= 0:
        raise ValueError(f"needs positive sums, got {total} and {weight}")
    n = len(numerators)
    if n < 2:
        return NoInterval(reason=f"an interval needs at least 2 samples, there is {n}")
    ratio = total / weight
    squares = math.fsum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    error = math.sqrt(n / (n - 1) * squares) / total
    # Sums of floats leave a residue of about 1e-16 where samples are equal; equal samples show no spread.
    return error if error > 1e-12 else NoInterval(reason=f"all {n} samples are equal, so they show no spread")


def quotient_interval(
    value: float, errors: tuple[float, float], degrees: tuple[int, int], confidence: float = CONFIDENCE
) -> Interval:
    """Interval of the quotient of two independent estimates with these relative errors and degrees of freedom.

    Their logarithms differ; degrees of freedom after Welch (1947) and Satterthwaite (1946).
    """
    variances = [error**2 for error in errors]
    pooled = sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    return _around(value, math.sqrt(sum(variances)), pooled, confidence)


def _around(value: float, relative: float, degrees: float, confidence: float) -> Interval:
    factor = math.exp(float(special.stdtrit(degrees, (1 + confidence) / 2)) * relative)
    return Interval(low=value / factor, value=value, high=value * factor, confidence=confidence)
