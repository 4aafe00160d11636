"""Where an interval lies against the margin, and how several rungs share the error."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import optimize

from bitladder.records.base import Unknown
from bitladder.stats.interval import Interval
from bitladder.stats.paired import Comparison, PairedCounts
from bitladder.stats.verdict import Verdict, all_acceptable, judge, shared_confidence, verdict_of
from simulation import ChangeRates, wrong_verdict_share


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.9, 0.4, "within the margin"),
        (-0.9, 0.0, "within the margin"),
        (-0.9, -0.1, "lower but within"),
        (-1.0, -0.1, "undecided"),
        (-1.4, 0.3, "undecided"),
        (-1.4, -1.0, "undecided"),
        (-1.4, -1.1, "beyond the margin"),
    ],
)
def test_verdict_by_where_the_interval_lies(low: float, high: float, verdict: Verdict) -> None:
    assert verdict_of(low, high, 1.0) == verdict


def test_one_rung_has_the_usual_interval() -> None:
    counts = PairedCounts(gained=3, lost=9, n=400)
    found = judge({"nf4": counts}, 0.05)["nf4"]
    usual = counts.interval()
    assert (found.low, found.value, found.high) == (usual.low, usual.value, usual.high)
    assert (found.verdict, found.to_decide) == ("within the margin", 0)


def test_rungs_that_all_stay_open_are_drawn_at_bonferronis_level() -> None:
    counts = {name: PairedCounts(gained=10, lost=14, n=300) for name in "abcd"}
    for found in judge(counts, 0.02).values():
        assert found.levels == (shared_confidence(4), shared_confidence(4))
        assert found.verdict == "undecided" and found.to_decide


def test_a_later_step_decides_and_draws_at_its_own_level() -> None:
    """Of two rungs the clear one is drawn at 97.5%; the other, open there, is within at 95% and drawn so."""
    close = PairedCounts(gained=20, lost=26, n=1000)
    assert close.interval(shared_confidence(2)).low < -0.02 < close.interval().low
    found = judge({"clear": PairedCounts(gained=1, lost=1, n=1000), "close": close}, 0.02)
    assert [one.verdict for one in found.values()] == ["within the margin"] * 2
    assert found["clear"].levels.low == shared_confidence(2)
    assert found["close"].levels.low == shared_confidence(1)
    alone = judge({"far": PairedCounts(gained=0, lost=90, n=1000), "close": close}, 0.02)
    assert alone["close"].verdict == "undecided"  # the far one stays open on this side, so Bonferroni's level holds


def holm(comparisons: Mapping[str, Comparison], margin: float, alpha: float) -> set[str]:
    """Rungs within the margin by Holm's procedure as it is written: p-values in order, alpha over what is left."""

    def p_value(one: Comparison) -> float:
        def above(one_sided: float) -> float:
            return one.interval(1 - 2 * one_sided).low + margin

        return float(optimize.brentq(above, 1e-12, 0.4999)) if above(0.4999) > 0 else 0.5

    within: set[str] = set()
    ordered = sorted((p_value(one), rung) for rung, one in comparisons.items())
    for left, (p, rung) in zip(range(len(ordered), 0, -1), ordered, strict=True):
        if p >= alpha / left:
            break
        within.add(rung)
    return within


def test_verdicts_are_holms_and_no_drawn_limit_contradicts_them() -> None:
    rng = np.random.default_rng(0)
    later = 0
    for _ in range(60):
        counts = {
            str(rung): PairedCounts(gained=int(rng.integers(0, 25)), lost=int(rng.integers(0, 40)), n=900)
            for rung in range(4)
        }
        found = judge(counts, 0.02)
        for one in found.values():
            assert one.verdict == verdict_of(one.low, one.high, 0.02)
        within = {rung for rung, one in found.items() if one.low > -0.02}
        assert within == holm(counts, 0.02, 0.025)
        later += any(found[rung].levels.low < shared_confidence(4) for rung in within)
    assert later > 2


@pytest.mark.parametrize("lost", [0.02, 0.03])
def test_wrong_verdicts_are_as_rare_as_promised(lost: float) -> None:
    """All rungs on the margin: any verdict within is wrong, and any beyond."""
    rates = [ChangeRates(lost - 0.02, lost, 1500)] * 4
    assert wrong_verdict_share(rates, 0.02, draws=800, seed=1) <= 0.06


def test_rungs_truly_lower_or_on_the_margin_share_one_error() -> None:
    rates = [ChangeRates(0.01, 0.03, 1500)] * 2 + [ChangeRates(0.02, 0.02, 1500)] * 2
    assert wrong_verdict_share(rates, 0.02, draws=800, seed=2) <= 0.06


def test_only_rungs_shown_to_be_within_are_acceptable() -> None:
    assert all_acceptable(["within the margin", "lower but within"])
    for verdict in ("undecided", "beyond the margin", "no signal", None):
        assert not all_acceptable(["within the margin", verdict])


def test_touching_the_margin_says_that_no_number_decides() -> None:
    found = judge({"nf4": PairedCounts(gained=20, lost=40, n=400)}, 0.05)["nf4"]
    assert found.verdict == "undecided"
    assert isinstance(found.to_decide, Unknown) and "on the margin" in found.to_decide.reason
    assert isinstance(PairedCounts(gained=20, lost=40, n=400).interval(), Interval)
