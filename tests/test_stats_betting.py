"""Stopping early is wrong no more often than it may be, and leaves most comparisons with fewer documents."""

import numpy as np
import pytest
from numpy.typing import NDArray

from bitladder.stats.betting import EARLY_ALPHA, Side, decided_after


def draw(gained: float, lost: float, documents: int, draws: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).choice([1.0, -1.0, 0.0], (draws, documents), p=[gained, lost, 1 - gained - lost])


@pytest.mark.parametrize("side", ["within", "beyond"])
@pytest.mark.parametrize(("gained", "lost"), [(0.0, 0.02), (0.015, 0.035), (0.04, 0.06)])
def test_on_the_margin_no_more_than_alpha_stop_at_any_document(side: Side, gained: float, lost: float) -> None:
    for alpha, most in ((EARLY_ALPHA, 0.008), (0.05, 0.06)):
        stopped = decided_after(draw(gained, lost, 1500, 4000, seed=1), 0.02, side, alpha) <= 1500
        assert stopped.mean() <= most


def test_a_rung_that_changes_little_is_decided_by_half_of_hellaswags_documents() -> None:
    stopped = decided_after(draw(0.01, 0.01, 10_042, 100, seed=2), 0.02, "within", EARLY_ALPHA)
    assert np.median(stopped) <= 10_042 / 2


def test_a_rung_far_beyond_is_decided_soon_and_never_the_other_way() -> None:
    answers = draw(0.01, 0.15, 1172, 200, seed=3)
    assert np.median(decided_after(answers, 0.02, "beyond", EARLY_ALPHA)) < 400
    assert (decided_after(answers, 0.02, "within", EARLY_ALPHA) > 1172).all()
