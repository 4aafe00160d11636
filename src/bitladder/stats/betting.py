"""Bets against a margin: evidence that may be looked at after every document, and stopped at when it is enough.

Documents are independent draws of the questions a task could ask, in an order that no answer influenced. The target
is the difference over such questions, as of the intervals elsewhere, so that a task having finitely many documents
changes nothing. Documents of one cluster are one draw: bet on their mean.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

EARLY_ALPHA = 0.005
"""of each side's 0.025, spent on stopping early; the test at the end has the rest"""
_MOST_STAKED = 0.9
"""of what would lose everything on the worst difference"""

Side = Literal["within", "beyond"]


def capital(differences: NDArray[np.float64], margin: float, side: Side) -> NDArray[np.float64]:
    """What a gambler who began with 1 has after each of the differences (variant - baseline, from -1 to 1).

    ``within`` bets against a true difference of at most -margin, ``beyond`` against one of at least that: there the
    capital is a nonnegative supermartingale, which ever reaches 1 / alpha with probability alpha at most (Ville). The
    stakes are the approximate growth-rate-adaptive ones of Waudby-Smith and Ramdas 2024, JRSS-B 86:1-27, section B.3,
    from the differences before. `differences`, and what is returned: (..., n).
    """
    gains = differences + margin if side == "within" else -differences - margin
    worst = 1 - margin if side == "within" else 1 + margin
    before = np.arange(1, gains.shape[-1] + 1)  # with a prior draw of mean 0 and variance 1, the widest
    mean = _sums_before(gains) / before
    square = (1 + _sums_before(gains**2)) / before
    variance = np.maximum(square - mean**2, 1 / before)
    stakes = np.clip(mean / (variance + mean**2), 0, _MOST_STAKED / worst)
    found: NDArray[np.float64] = np.exp(np.cumsum(np.log1p(stakes * gains), axis=-1))
    return found


def decided_after(differences: NDArray[np.float64], margin: float, side: Side, alpha: float) -> NDArray[np.int64]:
    """Documents, (...,), after which the capital first is 1 / alpha; one more than there are where it never is."""
    enough = capital(differences, margin, side) >= 1 / alpha
    found: NDArray[np.int64] = np.where(enough.any(axis=-1), enough.argmax(axis=-1), differences.shape[-1]) + 1
    return found


def _sums_before(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cumsum(values, axis=-1) - values
