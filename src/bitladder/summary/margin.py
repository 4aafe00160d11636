"""How many points of the aggregate a rung may lose: where nobody says so, and for a recovery."""

import math
from typing import NamedTuple

from bitladder.errors import UserError
from bitladder.records import StudyRecord
from bitladder.summary.table import Estimate

MARGIN_POINTS = {"paper": 1.0, "builtin": 5.0}
"""--max-drop by suite: what its questions can resolve"""
OTHER_MARGIN_POINTS = 1.0


def default_margin_points(suite: str | None) -> float:
    """The suite's; None: answers of no study."""
    return MARGIN_POINTS.get(suite or "", OTHER_MARGIN_POINTS)


def study_margin_points(study: StudyRecord) -> float:
    """What a study's verdicts are held against, and its stopping: its own ``max_drop``, else the suite's."""
    own = study.settings.max_drop
    return default_margin_points(study.suite) if own is None else own


class Recovery(NamedTuple):
    """A margin by what has to be kept of the baseline's own aggregate, whatever that is found to be."""

    min_percent: float


def recovery_margin_points(min_recovery_percent: float, baseline: str, score_percent: Estimate) -> float:
    """What a rung may lose that has to keep such a share of the baseline's aggregate, as it was observed.

    In whole hundredths of a point, rounded down. Raises UserError where the baseline has no aggregate, or nothing may
    be lost at all, which no number of questions shows.
    """
    if score_percent.value is None:
        raise UserError(f"--min-recovery is of {baseline}'s aggregate, which is not known: {score_percent.reason}")
    hundredths = round((100 - min_recovery_percent) * score_percent.value, 6)  # a float of 99.9 isn't quite that
    points = math.floor(hundredths) / 100
    if points <= 0:
        raise UserError(
            f"--min-recovery: found {min_recovery_percent:g}%, which leaves nothing to lose; expected less, such as 99%"
        )
    return points
