"""Documents that resemble each other count for less: the robust error, its degrees, and what intervals make of them."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from bitladder.records.base import Unknown
from bitladder.stats.interval import Interval, wilson_interval
from bitladder.stats.paired import (
    Clustering,
    PairedCounts,
    PairedMean,
    cluster_spread,
    clustering_of,
    joined,
    paired_difference,
    tango_interval,
)
from bitladder.summary.scores import score_interval

UNEQUAL = [("a", 1.0), ("a", 0.0), ("a", 1.0), ("b", -1.0), ("b", 0.0), ("c", 0.0), ("d", 1.0), ("d", 1.0)]
CLUSTERS, VALUES = [name for name, _ in UNEQUAL], [value for _, value in UNEQUAL]


def counts_of(values: list[float], clusters: list[str] | None) -> PairedCounts:
    found = paired_difference(values, clusters)
    assert isinstance(found, PairedCounts)
    return found


def by_matrices(values: list[float], clusters: list[str]) -> tuple[float, float]:
    """CR2 and Satterthwaite for an intercept by their general definition (Bell and McCaffrey 2002)."""
    y, n = np.asarray(values), len(values)
    hat = np.full((n, n), 1 / n)
    rest = np.eye(n) - hat
    vectors = []
    for name in sorted(set(clusters)):
        members = np.array([one == name for one in clusters])
        block = np.eye(members.sum()) - hat[np.ix_(members, members)]
        eigenvalues, basis = np.linalg.eigh(block)
        root = basis @ np.diag(1 / np.sqrt(eigenvalues)) @ basis.T
        vectors.append(rest[:, members] @ root @ np.ones(members.sum()) / n)
    g = np.stack(vectors, axis=1)
    variance = float(np.sum((g.T @ y) ** 2))
    products = g.T @ g
    return math.sqrt(variance), float(np.trace(products) ** 2 / np.sum(products**2))


def test_closed_form_is_cr2_with_satterthwaites_degrees() -> None:
    found = cluster_spread(VALUES, CLUSTERS)
    assert not isinstance(found, Unknown)
    assert found == pytest.approx(by_matrices(VALUES, CLUSTERS))


def test_clusters_of_equal_size_are_as_many_values() -> None:
    means = [0.1, -0.2, 0.4, 0.0, 0.3]
    found = cluster_spread([mean for mean in means for _ in range(4)], [str(i) for i in range(5) for _ in range(4)])
    assert not isinstance(found, Unknown)
    assert found.degrees == pytest.approx(4)
    assert found.standard_error == pytest.approx(np.std(means, ddof=1) / math.sqrt(5))


def test_one_cluster_shows_nothing() -> None:
    assert isinstance(cluster_spread([1.0, 0.0], ["a", "a"]), Unknown)
    assert isinstance(clustering_of([1.0, 0.0], ["a", "a"]), Unknown)
    assert isinstance(paired_difference([1.0, 0.0], ["a", "a"]), Unknown)
    assert isinstance(score_interval([1.0, 0.0], ["a", "a"]), Unknown)


@pytest.mark.parametrize("clusters", [None, ["a", "b", "c"]])
def test_documents_that_resemble_no_other_are_as_they_were(clusters: list[str] | None) -> None:
    assert counts_of([1.0, 0.0, -1.0], clusters) == PairedCounts(gained=1, lost=1, n=3)


def test_whole_clusters_that_flip_count_once() -> None:
    """Ten templates of ten questions, of which two flip as wholes: as if two of ten questions had flipped."""
    values = [-1.0] * 20 + [0.0] * 80
    counts = counts_of(values, [str(index // 10) for index in range(100)])
    assert counts.design_effect == pytest.approx(10, rel=0.05)
    assert counts.degrees == pytest.approx(9)
    found, of_ten = counts.interval(), tango_interval(0, 2, 10, degrees=9)
    assert found.value == pytest.approx(-0.2)
    assert found.high - found.low == pytest.approx(of_ten.high - of_ten.low, rel=0.1)


def test_many_changes_give_the_robust_t_interval() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(20, 60, 300)
    shares = rng.beta(2, 6, 300)
    values = [-float(rng.random() < share) for size, share in zip(sizes, shares, strict=True) for _ in range(size)]
    clusters = [str(index) for index, size in enumerate(sizes) for _ in range(size)]
    spread = cluster_spread(values, clusters)
    assert not isinstance(spread, Unknown)
    half = float(stats.t.ppf(0.975, spread.degrees)) * spread.standard_error
    found = counts_of(values, clusters).interval()
    assert found.high - found.low == pytest.approx(2 * half, rel=0.02)


def test_no_change_still_has_a_width() -> None:
    counts = counts_of([0.0] * 40, [str(index // 4) for index in range(40)])
    assert counts.interval().low == pytest.approx(tango_interval(0, 0, 10, degrees=9).low), (
        "as wide as of ten documents"
    )
    assert counts.degrees == pytest.approx(9)


def test_a_design_effect_below_1_is_luck() -> None:
    spread_out = [-1.0, 0.0] * 40
    assert counts_of(spread_out, [str(index // 2) for index in range(80)]).design_effect == 1.0


def test_no_number_of_changes_makes_a_step() -> None:
    """300 passages of 10 questions, one question of each of the first so many gained or lost by turns."""
    names = [str(index // 10) for index in range(3000)]
    widths = []
    for changed in range(91):
        values = [0.0] * 3000
        for passage in range(changed):
            values[10 * passage] = 1.0 if passage % 2 else -1.0
        found = counts_of(values, names).interval()
        widths.append(found.high - found.low)
    steps = [later / before for before, later in pairwise(widths)]
    assert min(steps) > 0.97 and max(steps) < 1.03
    assert min(widths) > 0.9 * widths[0], "hardly narrower than without any change, and that for what was seen"


def test_scores_on_a_scale_take_the_robust_t_interval() -> None:
    values = [value + 0.01 * index for index, value in enumerate(VALUES * 10)]
    clusters = [f"{name} {number}" for number in range(10) for name in CLUSTERS]
    found, spread = paired_difference(values, clusters), cluster_spread(values, clusters)
    assert isinstance(found, PairedMean) and not isinstance(spread, Unknown)
    interval = found.interval()
    half = float(stats.t.ppf(0.975, spread.degrees)) * spread.standard_error
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.02)


def test_a_clustered_score_is_wilsons_on_the_effective_sample() -> None:
    values = [1.0] * 30 + [0.0] * 20
    found = score_interval(values, [str(index // 5) for index in range(50)])
    assert isinstance(found, Interval)
    effect = clustering_of(values, [str(index // 5) for index in range(50)])
    assert isinstance(effect, Clustering) and effect.design_effect > 4
    assert found == wilson_interval(30 / effect.design_effect, 50 / effect.design_effect, degrees=effect.degrees)


def test_values_belong_together_by_any_label_and_by_way_of_others() -> None:
    first, second, third, fourth, fifth = joined(["a", "b", "b", "c", "d"], ["x", "x", "y", "y", "z"])
    assert first == second == third == fourth != fifth


def test_duplicated_documents_do_not_narrow_the_interval() -> None:
    values = [-1.0] * 4 + [1.0] * 2 + [0.0] * 94
    once = counts_of(values, None).interval()
    twice = counts_of(values * 2, [str(index) for index in range(100)] * 2).interval()
    assert twice.value == once.value
    assert twice.low <= once.low and twice.high >= once.high
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.05)
