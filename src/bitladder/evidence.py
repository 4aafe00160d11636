"""Whether a study's answers settle anything, and what they rest on: said in words of the stored figures."""

from collections.abc import Mapping, Sequence
from typing import Literal

from bitladder.objections import Objection, describe_difference
from bitladder.recommendation import Pick
from bitladder.stats.summary import RungSummary, Summary
from bitladder.stats.weights import tasks_beyond, weights_text
from bitladder.units import counted, format_count, points_text, two_digits


def unsettled(
    summary: Summary,
    objections: Mapping[str, Sequence[Objection]],
    within: Sequence[RungSummary],
    margin_points: float | None,
) -> str | None:
    """Why the answers recommend no rung over another; None where they settle at least one, either way.

    A study that can't tell whether any other rung is worse has found nothing: that the baseline alone is left is no
    reason to deploy it, only to stay with it.
    """
    baseline = summary.rung(summary.baseline)
    others = [rung for rung in summary.rungs if rung.rung != summary.baseline and rung.same_as is None]
    if margin_points is None or baseline is None or not others or any(rung is not baseline for rung in within):
        return None
    kinds = [_kind(objections[rung.rung]) for rung in others]
    if "settled" in kinds or "open" not in kinds:
        return None
    against = objections[summary.baseline]
    if any(one.cause != "memory" for one in against):
        return None
    why = _why(summary, others, margin_points)
    if against:
        return f"{why}, and {summary.baseline} is out: {'; '.join(one.reason for one in against)}"
    return f"{why}; until then stay with {summary.baseline}"


def _kind(objections: Sequence[Objection]) -> Literal["open", "settled", "failed"]:
    """Whether more answers may admit a rung."""
    if any(one.cause == "memory" or (one.cause == "drop" and not one.undecided) for one in objections):
        return "settled"
    return "failed" if any(one.cause == "missing" and not one.undecided for one in objections) else "open"


def _why(summary: Summary, others: Sequence[RungSummary], margin_points: float) -> str:
    margin = points_text(margin_points)
    asked = max((_questions(rung) for rung in others), default=0)
    compared = [rung.aggregate for rung in others if rung.aggregate.difference_points.low is not None]
    if compared:
        more = [one.more_questions for one in compared if margin_points == summary.margin_points and one.more_questions]
        enough = f" (about {format_count(two_digits(asked + max(more)))} would)" if more else ""
        return f"{counted(asked, 'question')} cannot settle a drop of {margin}{enough}"
    if all(one.verdict == "no signal" for one in (rung.aggregate for rung in others)):
        return f"no task can tell precisions apart: {_no_signal(others)}; take tasks that the model can do"
    reasons = dict.fromkeys(rung.aggregate.difference_points.reason for rung in others)
    return f"no drop is known: {'; '.join(filter(None, reasons))}"


def _questions(rung: RungSummary) -> int:
    return sum(task.questions for task in rung.tasks if task.name in rung.aggregate.tasks)


def _no_signal(others: Sequence[RungSummary]) -> str:
    found = {task.title: task.no_signal_reason for rung in others for task in rung.tasks if task.no_signal_reason}
    return "; ".join(f"{title}: {reason}" for title, reason in found.items())


def rests_on(summary: Summary, picks: Sequence[Pick]) -> str:
    """Behind a sentence: the tasks that count in part or not at all, and those that a picked rung loses more on."""
    weights = weights_text(summary.rungs)
    text = f"; drops are of the {weights}" if weights else ""
    picked = [rung for rung in summary.rungs if any(pick.rung == rung.rung for pick in picks)]
    beyond = [
        f"{rung.rung} by itself loses more on {task.title}, {describe_difference(task.difference_points)}"
        for rung in picked
        for task in tasks_beyond(rung)
    ]
    return "; ".join([text, *beyond]) if beyond else text
