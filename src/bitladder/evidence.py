"""Whether a study's answers settle anything, and what they rest on: said in words of the stored figures."""

from collections.abc import Mapping, Sequence
from typing import Literal

from bitladder.objections import Objection, describe_difference
from bitladder.recommendation import Pick
from bitladder.summary.counted_tasks import left_out, losses_text, weights_text
from bitladder.summary.table import RungSummary, Summary
from bitladder.units import counted, format_count, points_text, two_digits
from bitladder.wording import list_words


def unsettled(
    summary: Summary,
    objections: Mapping[str, Sequence[Objection]],
    within: Sequence[RungSummary],
    margin_points: float | None,
) -> str | None:
    """Why the answers recommend no rung over another; None where they settle at least one, either way.

    That the baseline alone is left is no reason to deploy it, only to stay with it, while one of the others that the
    limits of memory leave may turn out to be as good. One that is shown to lose more, is out by its memory or failed
    settles nothing of the rest.
    """
    baseline = summary.rung(summary.baseline)
    if baseline is None or any(rung is not baseline for rung in within):
        return None
    others = [rung for rung in summary.rungs if rung is not baseline and rung.same_as is None]
    left = [rung for rung in others if all(one.cause != "memory" for one in objections[rung.rung])]
    standings = {rung.rung: _standing(objections[rung.rung]) for rung in left}
    against = objections[summary.baseline]
    if "open" in standings.values() and margin_points is not None:
        if any(one.undecided for one in against):  # it has to be measured first
            return None
        why = why_open(summary, [rung for rung in left if standings[rung.rung] == "open"], others, margin_points)
        lost = [name for name, standing in standings.items() if standing == "beyond"]
        if lost:
            why += f"; {list_words(lost)} {'loses' if len(lost) == 1 else 'lose'} more"
        if against:
            return f"{why}; and {summary.baseline} is out: {'; '.join(one.reason for one in against)}"
        return f"{why}; until then stay with {summary.baseline}"
    if against or not set(standings.values()) <= {"failed", "unknown"}:
        return None
    uncompared = _why_not_compared(summary, others, left, standings)
    return f"{uncompared}; until then stay with {summary.baseline}" if uncompared else None


def _standing(objections: Sequence[Objection]) -> Literal["open", "beyond", "failed", "unknown"]:
    """Whether more answers may admit a rung; unknown: its drop, for good."""
    if any(one.cause == "drop" and not one.undecided for one in objections):
        return "beyond"
    if any(one.cause == "missing" and not one.undecided for one in objections):
        return "failed"
    return "open" if all(one.undecided for one in objections) else "unknown"


def open_rungs(summary: Summary, objections: Mapping[str, Sequence[Objection]]) -> list[RungSummary]:
    """The rungs that nothing speaks against but that too few questions were asked."""
    return [
        rung
        for rung in summary.rungs
        if (own := objections[rung.rung]) and all(one.undecided and one.cause == "drop" for one in own)
    ]


def why_open(
    summary: Summary, still_open: Sequence[RungSummary], others: Sequence[RungSummary], margin_points: float
) -> str:
    """What the questions can't settle of some of the others, and how many would."""
    margin = points_text(margin_points)
    compared = [rung for rung in still_open if rung.aggregate.difference_points.low is not None]
    if not compared:
        return _no_drop(still_open)
    asked = max(map(_questions, compared))
    whose = "" if len(compared) == len(others) else f" for {list_words([rung.rung for rung in compared])}"
    enough = _enough(compared, asked) if margin_points == summary.margin_points else ""
    return f"{counted(asked, 'question')} cannot settle a drop of {margin}{whose}{enough}"


def _enough(rungs: Sequence[RungSummary], asked: int) -> str:
    """How many questions would settle all of them, and of which none would."""
    more = [rung.aggregate.more_questions for rung in rungs if rung.aggregate.more_questions]
    parts = [f"about {format_count(two_digits(asked + max(more)))} would"] if more else []
    never: dict[str, list[str]] = {}
    for rung in rungs:
        if rung.aggregate.more_questions is None and rung.aggregate.more_questions_reason:
            never.setdefault(rung.aggregate.more_questions_reason, []).append(rung.rung)
    parts += [f"of {list_words(names)} {reason}" for reason, names in never.items()]
    return f" ({'; '.join(parts)})" if parts else ""


def _why_not_compared(
    summary: Summary,
    others: Sequence[RungSummary],
    left: Sequence[RungSummary],
    standings: Mapping[str, str],
) -> str | None:
    """Why nothing can be held against the baseline; None where a limit or a copy leaves it alone."""
    if not others:
        copied = len(summary.rungs) > 1
        return None if copied else f"nothing was compared with {summary.baseline}, the only rung of the study"
    if not left:
        return None
    unknown = [rung for rung in left if standings[rung.rung] == "unknown"]
    if not unknown:
        names = list_words([rung.rung for rung in left])
        return f"nothing was compared with {summary.baseline}: {names} could not be made or measured"
    if all(rung.aggregate.verdict == "no signal" for rung in unknown):
        return _no_signal(unknown)
    return _no_drop(unknown)


def _no_drop(rungs: Sequence[RungSummary]) -> str:
    reasons = dict.fromkeys(rung.aggregate.difference_points.reason for rung in rungs)
    return f"no drop is known: {'; '.join(filter(None, reasons))}"


def _questions(rung: RungSummary) -> int:
    return sum(task.questions for task in rung.tasks if task.name in rung.aggregate.tasks)


def _no_signal(rungs: Sequence[RungSummary]) -> str:
    """Tasks that might count are too hard; there may be none, only such as are scored in a unit of their own."""
    hard = [f"{task.title}: {task.no_signal_reason}" for task in left_out(rungs)]
    if hard:
        return f"no task can tell precisions apart: {'; '.join(hard)}; take tasks that the model can do"
    return "no task is scored by right and wrong answers; take such tasks"


def rests_on(summary: Summary, picks: Sequence[Pick]) -> str:
    """Behind a sentence: the tasks that count in part or not at all, and those that a picked rung loses more on."""
    weights = weights_text(summary.rungs)
    text = f"; drops are of the {weights}" if weights else ""
    beyond = [
        f"{rung.rung} by itself loses more on {what}, {describe_difference(task.difference_points)}"
        for rung in summary.rungs
        if any(pick.rung == rung.rung for pick in picks)
        for what, task in losses_text(rung)
    ]
    return "; ".join([text, *beyond]) if beyond else text
