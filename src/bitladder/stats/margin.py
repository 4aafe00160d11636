"""How many points of the aggregate a rung may lose, where nobody says otherwise."""

from bitladder.records import StudyRecord

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
