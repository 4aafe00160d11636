"""How many questions a verdict takes: before a run, and when a run has left it open.

A difference is judged against a margin: it lies *within* when even its lower limit is above -margin, *beyond* when even
its upper limit is below. Anything else is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict
from scipy import optimize, special

from bitladder.records.base import Unknown
from bitladder.stats.aggregate import equivalent_documents
from bitladder.stats.interval import CONFIDENCE, Interval
from bitladder.stats.paired import Comparison, score_variance

POWER = 0.8
ONE_SIDED_ALPHA = (1 - CONFIDENCE) / 2
CHANGED_SHARES = (0.01, 0.02, 0.05, 0.1)
"""of the answers, that 16-bit types, INT8 and 4-bit types change or so"""
_MAX_GROWTH = 2.0**40


def is_decided(difference: Interval, margin: float) -> bool:
    """Whether the interval lies wholly on one side of -margin."""
    return difference.low > -margin or difference.high < -margin


def questions_as_observed(comparison: Comparison, margin: float, confidence: float = CONFIDENCE) -> int | Unknown:
    """About how many more questions, over all tasks in proportion, would decide a difference against -margin.

    Assumes that the difference and the share of changed answers stay as observed; at that number the odds of a verdict
    are then about even. 0 where it is decided already. No number where the difference lies on the margin itself.
    """

    def clearance(growth: float) -> float:
        """Distance of the nearer limit from -margin, positive once decided."""
        grown = comparison.interval(confidence, growth)
        return grown.low + margin if grown.value > -margin else -margin - grown.high

    if is_decided(comparison.interval(confidence), margin):
        return 0
    growth = _first_positive(clearance)
    if growth is None:
        return Unknown("the observed difference lies on the margin, so no number of questions would decide")
    return math.ceil((growth - 1) * comparison.n_questions)


def questions_to_decide(comparison: Comparison, margin: float, confidence: float = CONFIDENCE) -> int | Unknown:
    """About how many more questions to ask for a verdict: `questions_as_observed`, and where the difference may be 0 no
    fewer than a plan would ask.

    Such a difference is luck in part, and few questions would do only while the luck lasts. So as many are told as find
    a rung equal to the baseline within the margin with probability `POWER`, if it changes as many answers as were
    observed, and at least the smallest of `CHANGED_SHARES`.
    """
    found = questions_as_observed(comparison, margin, confidence)
    if isinstance(found, Unknown) or found == 0 or not comparison.interval(confidence).contains(0.0):
        return found
    alpha = (1 - confidence) / 2
    ratio = 1 + _z(POWER) / _z(1 - alpha)

    def clearance(growth: float) -> float:
        """Of a rung equal to the baseline: the margin less what its lower limit has to clear."""
        grown = comparison.interval(confidence, growth)
        return margin - ratio * (grown.high - grown.low) / 2  # of as many gained as lost

    fewest = documents_for_power(margin, CHANGED_SHARES[0], one_sided_alpha=alpha) / comparison.equivalent_questions
    growth = max(_first_positive(clearance) or 1.0, fewest)
    return max(found, math.ceil((growth - 1) * comparison.n_questions))


def _first_positive(clearance: Callable[[float], float]) -> float | None:
    """From which growth on it is positive; None where no growth does."""
    if clearance(1.0) > 0:
        return 1.0
    enough = 2.0
    while clearance(enough) <= 0:
        enough *= 2
        if enough > _MAX_GROWTH:
            return None
    return float(optimize.brentq(clearance, 1.0, enough))


def documents_for_power(
    margin: float, changed_share: float, power: float = POWER, one_sided_alpha: float = ONE_SIDED_ALPHA
) -> int:
    """Documents after which a rung equal to the baseline is found within the margin with probability `power`.

    (z_alpha sqrt(v) + z_power sqrt(changed_share))^2 / margin^2, where v is the variance that Tango's statistic has at
    -margin (Liu et al. 2002, Statistics in Medicine 21:231-245). Raises ValueError unless 0 < margin < 1.
    """
    return math.ceil(_documents(margin, changed_share, power, one_sided_alpha))


def documents_for_power_many_changes(
    margin: float, changed_share: float, power: float = POWER, one_sided_alpha: float = ONE_SIDED_ALPHA
) -> int:
    """The textbook's (z_alpha + z_power)^2 changed_share / margin^2, to the nearest document.

    It puts changed_share for v in `documents_for_power`, which is close where changed_share is some times the margin or
    more; below that it promises power that no interval has. Raises ValueError unless 0 < margin < 1.
    """
    _check_margin(margin)
    return round((_z(1 - one_sided_alpha) + _z(power)) ** 2 * changed_share / margin**2)


def resolvable_margin(
    documents: float, changed_share: float, power: float = POWER, one_sided_alpha: float = ONE_SIDED_ALPHA
) -> float:
    """Smallest margin within which `documents` can place an equal rung with probability `power`.

    The inverse of `documents_for_power`. Raises ValueError for no documents.
    """
    if documents < 1:
        raise ValueError(f"needs at least 1 document, got {documents}")

    def surplus(margin: float) -> float:
        return documents - _documents(margin, changed_share, power, one_sided_alpha)

    return float(optimize.brentq(surplus, 1e-9, 1 - 1e-9))


class Resolution(BaseModel):
    """What a plan can show of rungs equal to the baseline, if they change this share of the answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    changed_share: float
    resolvable_margin: float
    """smallest margin that each rung is found within, with probability `POWER`"""
    documents: int
    """of a single task, for the wanted margin"""
    documents_many_changes: int
    """the textbook's number, see `documents_for_power_many_changes`"""


def resolutions(
    tasks: Sequence[int], rungs: int, margin: float, changed_shares: Sequence[float] = CHANGED_SHARES
) -> tuple[Resolution, ...]:
    """For an aggregate over tasks of so many documents, and rungs that are judged together.

    Documents are taken as unlike each other: clusters of them resolve less. Bonferroni's share of the error over the
    rungs is what Holm's procedure spends at first, so a little more is resolved. Raises ValueError for no tasks.
    """
    alpha = ONE_SIDED_ALPHA / rungs
    equivalent = equivalent_documents(tasks)
    return tuple(
        Resolution(
            changed_share=share,
            resolvable_margin=resolvable_margin(equivalent, share, one_sided_alpha=alpha),
            documents=documents_for_power(margin, share, one_sided_alpha=alpha),
            documents_many_changes=documents_for_power_many_changes(margin, share, one_sided_alpha=alpha),
        )
        for share in changed_shares
    )


def _documents(margin: float, changed_share: float, power: float, one_sided_alpha: float) -> float:
    _check_margin(margin)
    at_margin = score_variance(changed_share / 2, changed_share / 2, 1.0, -margin)
    spread = _z(1 - one_sided_alpha) * math.sqrt(at_margin) + _z(power) * math.sqrt(changed_share)
    return (spread / margin) ** 2


def _check_margin(margin: float) -> None:
    if not 0 < margin < 1:
        raise ValueError(f"the margin must be a fraction between 0 and 1, got {margin}")


def _z(probability: float) -> float:
    return float(special.ndtri(probability))
