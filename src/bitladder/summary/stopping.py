"""How far a study asks each rung that stops asking when its verdict falls: `stats.looks` of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bitladder.stages import Staging
from bitladder.stats.looks import Asked, is_hopeless, judge_looks, look_confidence
from bitladder.stats.verdict import Judged
from bitladder.summary.row import Row
from bitladder.summary.scores import RowComparison
from bitladder.summary.table import Stopping
from bitladder.unknown import Unknown


@dataclass(frozen=True)
class Assessed:
    judged: Judged | None
    """None where its answers give no interval"""
    stopping: Stopping


def assess(
    rows: Mapping[str, Sequence[Row]],
    compared: Mapping[str, RowComparison],
    answered: Mapping[str, int],
    staging: Staging,
    margin: float,
) -> dict[str, Assessed]:
    """The verdict on each rung whose aggregate is compared with the baseline, and how far it was asked.

    ``rows``: that the aggregate is of, by rung. ``answered``: stages by rung.
    """
    known = {rung: one.comparison for rung, one in compared.items() if not isinstance(one.comparison, Unknown)}
    judged = judge_looks(known, answered, staging.stages, staging.rungs, margin)
    return {rung: _assessed(rung, rows[rung], judged.get(rung), answered[rung], staging, margin) for rung in compared}


def _assessed(
    rung: str, rows: Sequence[Row], judged: Judged | None, answered: int, staging: Staging, margin: float
) -> Assessed:
    at_end = answered == staging.stages
    decided = judged is not None and judged.verdict != "undecided"
    reason = None
    if decided:
        state = "end" if at_end else "early"
    elif at_end:
        state = "undecided"
    elif _is_hopeless(rows, rung, margin, look_confidence(staging.stages, staging.stages)):
        state, reason = "hopeless", Unknown("the questions that exist can't decide it")
    else:
        state, reason = "open", Unknown("the study is still asking it; run it again to go on")
    if judged is not None and reason is not None:
        judged = replace(judged, to_decide=reason)
    documents = staging.documents[answered - 1] if answered else 0
    stopping = {"state": state, "documents": documents, "of": staging.documents[-1], "stages": answered}
    return Assessed(judged, Stopping.model_validate(stopping))


def _is_hopeless(rows: Sequence[Row], rung: str, margin: float, confidence: float) -> bool:
    """False where the rows don't show it."""
    asked: list[Asked] = []
    for row in rows:
        one, pots, questions = row.compared[rung], row.pots[rung], row.planned_questions
        if isinstance(one, Unknown) or isinstance(pots, Unknown):
            return False
        if isinstance(one.comparison, Unknown) or questions is None:
            return False
        growth = questions / max(len(pot.questions) for pot in pots)
        asked.append(Asked(one.comparison, growth, row.weights[rung] or 0.0))
    return is_hopeless(asked, margin, confidence)
