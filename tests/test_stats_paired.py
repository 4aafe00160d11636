"""Paired differences, against published examples and against the definition of the score interval."""

from __future__ import annotations

import math
from itertools import product

import pytest
from pydantic import ValidationError
from scipy import special, stats

from bitladder.records.base import Unknown
from bitladder.stats.paired import (
    PairedCounts,
    PairedMean,
    paired_difference,
    tango_interval,
)
from textbook import midp_mcnemar, tango_statistic

Z_95 = float(special.ndtri(0.975))

# (gained, lost, n, confidence, low, high, decimals printed)
PUBLISHED = {
    # The first five are quoted from the tests of R's ratesci, which checks itself against these papers.
    # Sleeping difficulties (Karacan et al. 1976).
    "Tango 1998, table VII": (9, 3, 32, 0.95, -0.027, 0.390, 3),
    # Cross-over trial of soft contact lens disinfection, where only one of 44 answers changed.
    "Tango 1998, table V": (0, 1, 44, 0.90, -0.096, 0.037, 3),
    # Airway reactivity before and after stem cell transplantation (Bentur et al. 2009).
    "Fagerland, Lydersen, Laake 2014, Stat Med 33:2850": (1, 7, 21, 0.95, -0.517, -0.026, 3),
    "Tang, Li, Tang 2010, Stat Methods Med Res 21:361": (3, 1, 14, 0.95, -0.1670, 0.4327, 4),
    "Chang et al. 2024, J Appl Stat 51:139": (25, 2, 102, 0.95, 0.139, 0.321, 3),
    # The book's own package, R's contingencytables 3.0.0: Cavo et al. 2012, and tables with nothing but changes.
    "Fagerland, Lydersen, Laake 2017, chapter 8, Cavo": (6, 16, 161, 0.95, -0.1240, -0.0054, 4),
    "contingencytables, all gained": (3, 0, 3, 0.95, -0.1230, 1.0, 4),
    "contingencytables, all lost": (0, 3, 3, 0.95, -1.0, 0.1230, 4),
    # PropCIs::scoreci.mp(25, 28, 618, 0.90), whose difference is second - first, as a user of it recorded.
    "R's PropCIs": (28, 25, 618, 0.90, -0.0148, 0.0247, 4),
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_tango_matches_published_interval(source: str) -> None:
    gained, lost, n, confidence, low, high, decimals = PUBLISHED[source]
    interval = tango_interval(gained, lost, n, confidence)
    assert (round(interval.low, decimals), round(interval.high, decimals)) == (low, high)
    assert interval.value == pytest.approx((gained - lost) / n)


def test_tango_statistic_matches_published_value() -> None:
    """Tango 1998, contact lenses: Z = 1.709 for the hypothesis that the new method is 0.1 worse."""
    assert tango_statistic(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)


def test_tango_statistic_is_mcnemars_at_no_difference() -> None:
    assert tango_statistic(9, 3, 32, 0.0) == pytest.approx((9 - 3) / math.sqrt(9 + 3))
    assert tango_statistic(0, 0, 50, 0.0) == 0.0


GRID = product((0, 1, 2, 7, 30), (0, 1, 5, 29), (1, 3, 40, 1172))
COUNTS = [(gained, lost, n) for gained, lost, n in GRID if gained + lost <= n]


@pytest.mark.parametrize(("gained", "lost", "n"), COUNTS)
def test_tango_limits_solve_the_score_equation(gained: int, lost: int, n: int) -> None:
    interval = tango_interval(gained, lost, n)
    assert -1 <= interval.low < interval.high <= 1
    if interval.low > -1:
        assert tango_statistic(gained, lost, n, interval.low) == pytest.approx(Z_95, abs=1e-6)
    if interval.high < 1:
        assert tango_statistic(gained, lost, n, interval.high) == pytest.approx(-Z_95, abs=1e-6)


@pytest.mark.parametrize(("gained", "lost", "n"), COUNTS)
def test_swapping_the_rungs_mirrors_the_interval(gained: int, lost: int, n: int) -> None:
    one, other = tango_interval(gained, lost, n), tango_interval(lost, gained, n)
    assert (one.low, one.value, one.high) == (-other.high, -other.value, -other.low)


@pytest.mark.parametrize("n", [1, 100, 1172])
def test_interval_has_a_width_where_no_answer_changed(n: int) -> None:
    interval = tango_interval(0, 0, n)
    assert (interval.low, interval.value) == (-interval.high, 0.0)
    assert interval.high == pytest.approx(Z_95**2 / (n + Z_95**2))


def test_arc_challenge_at_five_percent_changed_is_known_to_about_1_3_points() -> None:
    interval = tango_interval(29, 30, 1172)
    assert (interval.high - interval.low) / 2 == pytest.approx(0.013, abs=0.0005)


def test_fractional_counts_lie_between_whole_ones() -> None:
    lows = [tango_interval(gained, 8, 400).low for gained in (3, 3.5, 4)]
    assert lows == sorted(lows)
    assert lows[0] < lows[1] < lows[2]


@pytest.mark.parametrize(("gained", "lost", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(gained: int, lost: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {gained} \\+ {lost} of {n}"):
        tango_interval(gained, lost, n)
    with pytest.raises(ValidationError):
        PairedCounts(gained=gained, lost=lost, n=n)


def test_midp_mcnemar_matches_published_values() -> None:
    """Cavo et al. in R's contingencytables; Bentur et al. by equation 2 of Fagerland et al. 2013's supplement."""
    assert midp_mcnemar(6, 16) == pytest.approx(0.034690, abs=5e-7)
    assert midp_mcnemar(1, 7) == pytest.approx(2 * 9 / 256 - 8 / 256)


def test_midp_mcnemar_of_equal_and_of_no_changes() -> None:
    assert midp_mcnemar(3, 3) == pytest.approx(1 - 20 / 64 / 2)
    assert midp_mcnemar(0, 0) == 1.0
    with pytest.raises(ValueError, match="negative"):
        midp_mcnemar(-1, 2)


def test_midp_mcnemar_does_not_care_which_rung_is_first() -> None:
    assert midp_mcnemar(4, 11) == midp_mcnemar(11, 4)


def test_paired_mean_is_the_t_interval_of_the_differences() -> None:
    differences = [0.1, -0.2, 0.0, 0.3, -0.4, 0.05]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    mean = paired_difference(differences)
    assert isinstance(mean, PairedMean)
    interval = mean.interval()
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert isinstance(paired_difference([0.25, 0.25]), Unknown)


def test_counts_are_taken_wherever_differences_are_whole() -> None:
    """Of scores on a scale too: none that is equal on both sides makes Tango's interval a t interval."""
    assert paired_difference([1.0, 0.0, -1.0, 0.0]) == PairedCounts(gained=1, lost=1, n=4)
    assert isinstance(paired_difference([1.0, 0.0, -1.0, 0.5]), PairedMean)


@pytest.mark.parametrize("n", [60, 300, 2000])
def test_equal_scores_are_known_no_better_than_the_rule_of_three_says(n: int) -> None:
    """n equal differences leave up to 1 - 0.025^(1/n) of the others unequal (Clopper and Pearson), none by over 1."""
    found = paired_difference([0.0] * n)
    assert isinstance(found, PairedCounts)
    bound = 1 - 0.025 ** (1 / n)
    assert bound <= found.interval().high <= 1.1 * bound


def test_growth_keeps_the_difference_and_narrows_the_interval() -> None:
    mean = paired_difference([0.1, -0.2, 0.0, 0.3, -0.4, 0.05])
    assert isinstance(mean, PairedMean)
    for comparison in (PairedCounts(gained=3, lost=9, n=400), mean):
        now, later = comparison.interval(), comparison.interval(growth=4.0)
        assert later.value == pytest.approx(now.value)
        assert later.high - later.low < 0.6 * (now.high - now.low)
    assert PairedCounts(gained=3, lost=9, n=400).interval(growth=4.0) == tango_interval(12, 36, 1600)
