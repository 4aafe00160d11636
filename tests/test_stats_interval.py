"""Intervals of one proportion and of one mean."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from scipy import stats

from bitladder.records.base import Unknown
from bitladder.stats.interval import Interval, mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
)
def test_wilson_matches_newcombe_1998(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3; as in the tests of R's ratesci."""
    interval = wilson_interval(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    assert interval.value == successes / n


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson_interval(successes, n)


def test_mean_interval_is_students_t() -> None:
    values = [1.2, 1.9, 1.4, 2.2, 1.1]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = mean_interval(values, confidence=0.9)
    assert isinstance(interval, Interval)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.value == pytest.approx(1.56)


@pytest.mark.parametrize(
    ("values", "reason"), [([], "there are 0"), ([1.0], "there are 1"), ([0.5] * 9, "all 9 values")]
)
def test_no_interval_from_values_without_spread(values: list[float], reason: str) -> None:
    found = mean_interval(values)
    assert isinstance(found, Unknown)
    assert reason in found.reason


def test_interval_holds_its_limits_and_nothing_outside() -> None:
    interval = Interval(low=-1.0, value=0.0, high=2.0, confidence=0.95)
    assert [interval.contains(value) for value in (-1.1, -1.0, 0.0, 2.0, 2.1)] == [False, True, True, True, False]


@pytest.mark.parametrize(("low", "value", "high"), [(0.1, 0.0, 0.2), (0.0, 0.3, 0.2), (0.0, float("nan"), 0.2)])
def test_interval_refuses_limits_that_do_not_enclose(low: float, value: float, high: float) -> None:
    with pytest.raises(ValidationError):
        Interval(low=low, value=value, high=high, confidence=0.95)
