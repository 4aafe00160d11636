"""The interval of a ratio: of two scores on the same questions, and of a rate whose samples resemble each other."""

import numpy as np
import pytest

from bitladder.records.base import Unknown
from bitladder.stats.interval import (
    Interval,
    paired_ratio_interval,
    ratio_interval,
    serial_correlation,
    wilson_interval,
)
from bitladder.stats.paired import tango_interval


def ratio(both: int, gained: int, lost: int, n: int, chance: float = 0.0) -> Interval | Unknown:
    def above_chance(right: int) -> Interval:
        found = wilson_interval(right, n)
        low, value, high = (limit - chance for limit in (found.low, found.value, found.high))
        return Interval(low=low, value=value, high=high, confidence=0.95)

    return paired_ratio_interval(
        above_chance(both + gained), above_chance(both + lost), tango_interval(gained, lost, n)
    )


@pytest.mark.parametrize("shares", [(0.7, 0.03, 0.05, 0.22), (0.4, 0.0, 0.01, 0.59), (0.9, 0.01, 0.02, 0.07)])
@pytest.mark.parametrize("chance", [0.0, 0.25])
def test_holds_the_true_ratio_as_often_as_it_says(shares: tuple[float, ...], chance: float) -> None:
    true = (shares[0] + shares[1] - chance) / (shares[0] + shares[2] - chance)
    draws = np.random.default_rng(1).multinomial(400, shares, size=600)
    found = [ratio(both, gained, lost, 400, chance) for both, gained, lost, _ in draws.tolist()]
    held = [isinstance(interval, Interval) and interval.contains(true) for interval in found]
    assert 0.93 <= np.mean(held) <= 0.975


def test_is_fiellers_where_limits_are_symmetric() -> None:
    """Same limits as Fieller's theorem, with its variances and covariance."""
    z, v, b, sd_v, sd_b, correlation = 1.959964, 0.66, 0.72, 0.02, 0.019, 0.8
    sd_d = np.sqrt(sd_v**2 + sd_b**2 - 2 * correlation * sd_v * sd_b)
    found = paired_ratio_interval(
        *(
            Interval(low=value - z * sd, value=value, high=value + z * sd, confidence=0.95)
            for value, sd in ((v, sd_v), (b, sd_b), (v - b, sd_d))
        )
    )
    g = (z * sd_b / b) ** 2
    covariance = correlation * sd_v * sd_b
    centre = v / b - g * covariance / sd_b**2
    half = (
        z / b * np.sqrt(sd_v**2 - 2 * v / b * covariance + (v / b) ** 2 * sd_b**2 - g * sd_v**2 * (1 - correlation**2))
    )
    assert isinstance(found, Interval)
    assert (found.low, found.high) == pytest.approx(((centre - half) / (1 - g), (centre + half) / (1 - g)))


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (2, 9), (3, 14), (12, 12), (20, 3), (0, 12)])
def test_holds_1_where_the_difference_holds_0(gained: int, lost: int) -> None:
    found = ratio(260, gained, lost, 400)
    assert isinstance(found, Interval)
    assert found.contains(1.0) == tango_interval(gained, lost, 400).contains(0.0)


def test_equal_answers_give_a_narrow_interval() -> None:
    found = ratio(300, 0, 0, 400)
    assert isinstance(found, Interval)
    assert found.value == 1
    assert 0.98 < found.low < 1 < found.high < 1.02


def test_baseline_near_chance_has_no_interval() -> None:
    assert ratio(26, 2, 0, 100, chance=0.25) == Unknown("the baseline's own interval is as wide as its score")


def series(correlation: float, n: int, draws: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Batch times around 1 s that keep this share of the departure of the one before, (draws, n)."""
    random = np.random.default_rng(1)
    times = np.empty((draws, n))
    times[:, 0] = random.normal(0, 1, draws)
    for index in range(1, n):
        times[:, index] = correlation * times[:, index - 1] + np.sqrt(1 - correlation**2) * random.normal(0, 1, draws)
    return 1 + 0.05 * times


def coverage_of(correlation: float, *, serial: bool) -> float:
    found = [ratio_interval([1.0] * 10, row, serial=serial) for row in series(correlation, 10, 2000).tolist()]
    return float(np.mean([isinstance(interval, Interval) and interval.contains(1.0) for interval in found]))


def test_batches_that_resemble_each_other_widen_the_interval() -> None:
    assert coverage_of(0.6, serial=False) < 0.75
    assert coverage_of(0.6, serial=True) > 0.83
    assert 0.94 < coverage_of(0.0, serial=True) < 0.985


def test_serial_correlation_of_a_drift_and_of_few_batches() -> None:
    ones = [1.0] * 8
    assert serial_correlation(ones, [0.9, 0.9, 0.9, 0.9, 1.3, 1.3, 1.3, 1.3]) > 0.8
    assert serial_correlation(ones, [0.9, 0.9, 0.9, 0.9, 1.3, 1.3, 1.3, 1.3]) == 1, "no more than a correlation can be"
    assert serial_correlation(ones, [1.0, 2.0] * 4) == 0
    assert serial_correlation(ones, ones) == 0
    assert serial_correlation(ones[:4], [1.0, 1.0, 2.0, 2.0]) == 0
