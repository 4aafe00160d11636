"""Stopping early is wrong no more often than it may be, and leaves most comparisons with fewer documents."""

import numpy as np
import pytest
from numpy.typing import NDArray

from bitladder.stats.betting import EARLY_ALPHA, Side, decided_after, each_alone
from bitladder.stats.paired import tango_interval
from bitladder.stats.power import ONE_SIDED_ALPHA


def draw(gained: float, lost: float, documents: int, draws: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).choice([1.0, -1.0, 0.0], (draws, documents), p=[gained, lost, 1 - gained - lost])


@pytest.mark.parametrize("side", ["within", "beyond"])
@pytest.mark.parametrize(("gained", "lost"), [(0.0, 0.02), (0.015, 0.035), (0.04, 0.06)])
def test_on_the_margin_no_more_than_alpha_stop_at_any_document(side: Side, gained: float, lost: float) -> None:
    for alpha, most in ((EARLY_ALPHA, 0.008), (0.05, 0.06)):
        stopped = decided_after(each_alone(draw(gained, lost, 1500, 4000, seed=1)), 0.02, side, alpha) <= 1500
        assert stopped.mean() <= most


def test_a_rung_that_changes_little_is_decided_by_half_of_hellaswags_documents() -> None:
    stopped = decided_after(each_alone(draw(0.01, 0.01, 10_042, 100, seed=2)), 0.02, "within", EARLY_ALPHA)
    assert np.median(stopped) <= 10_042 / 2


def test_a_rung_far_beyond_is_decided_soon_and_never_the_other_way() -> None:
    answers = draw(0.01, 0.15, 1172, 200, seed=3)
    assert np.median(decided_after(each_alone(answers), 0.02, "beyond", EARLY_ALPHA)) < 400
    assert (decided_after(each_alone(answers), 0.02, "within", EARLY_ALPHA) > 1172).all()


def share_decided(answers: NDArray[np.float64], early_alpha: float) -> float:
    """By bets looked at after every document, and by Tango's interval at the end with the rest of 0.025."""
    documents = answers.shape[-1]
    early = (
        np.minimum(*(decided_after(each_alone(answers), 0.02, side, early_alpha) for side in ("within", "beyond")))
        <= documents
    )
    decided = early.copy()
    for index in np.flatnonzero(~early):
        gained, lost = int((answers[index] > 0).sum()), int((answers[index] < 0).sum())
        interval = tango_interval(gained, lost, documents, 1 - 2 * (ONE_SIDED_ALPHA - early_alpha))
        decided[index] = interval.low > -0.02 or interval.high < -0.02
    return float(decided.mean())


def test_peeking_keeps_wrong_verdicts_rare_and_costs_few_right_ones() -> None:
    assert share_decided(draw(0.04, 0.06, 1172, 1500, seed=4), EARLY_ALPHA) <= 0.055  # 5% and two errors' luck
    equal = draw(0.025, 0.025, 1172, 1500, seed=5)
    assert share_decided(equal, EARLY_ALPHA) >= share_decided(equal, 1e-12) - 0.04
