"""Published tests of paired answers, which the package's intervals are held against."""

import math

from scipy import stats

from bitladder.stats.paired import score_variance


def tango_statistic(gained: float, lost: float, n: float, difference: float) -> float:
    """Tango's score statistic for the hypothesis that the true difference is `difference`; about standard normal.

    McNemar's (gained - lost) / sqrt(gained + lost) at a difference of 0.
    """
    distance = gained - lost - n * difference
    if distance == 0:
        return 0.0
    variance = score_variance(gained, lost, n, difference)
    return distance / math.sqrt(n * variance) if variance > 0 else math.copysign(math.inf, distance)


def midp_mcnemar(gained: int, lost: int) -> float:
    """Two-sided mid-p McNemar test of no difference (Fagerland, Lydersen, Laake 2013, BMC Med Res Methodol 13:91).

    1 where no answer changed, which is no evidence at all. Raises ValueError for negative counts.
    """
    if min(gained, lost) < 0:
        raise ValueError(f"counts must not be negative, got {gained} and {lost}")
    changed = gained + lost
    if changed == 0:
        return 1.0
    here = float(stats.binom.pmf(gained, changed, 0.5))
    if gained == lost:
        return 1 - here / 2
    return 2 * float(stats.binom.cdf(min(gained, lost), changed, 0.5)) - here
