"""Whether a study's answers settle anything, and what speaks against a rung under limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bitladder.decide.recommendation import Pick
from bitladder.results import not_measured_as
from bitladder.stats.verdict import Verdict, verdict_of
from bitladder.summary.metrics import MEMORY_TIE
from bitladder.summary.row import left_out, losses_text, weights_text
from bitladder.summary.table import Estimate, RungSummary, Summary, describe_status
from bitladder.text.words import list_words
from bitladder.units import counted, format_bytes, format_count, format_percent, format_points, points_text, two_digits

Cause = Literal["missing", "unscored", "memory", "drop"]


@dataclass(frozen=True)
class Objection:
    """Why a rung is out. ``missing`` and ``unscored`` are no limits: relaxing none would admit the rung."""

    cause: Cause
    """unscored: how much it drops isn't known"""
    reason: str
    undecided: bool = False


def objections_to(
    summary: Summary, rung: RungSummary, max_memory_bytes: int | None, max_drop_points: float | None
) -> tuple[Objection, ...]:
    """All that keeps the rung from being picked."""
    if rung.status != "ok":
        return (Objection("missing", describe_status(rung.status, rung.reason), undecided=rung.status == "missing"),)
    if rung.same_as is not None:
        return (Objection("missing", not_measured_as(rung.same_as), undecided=True),)
    if rung.audit is not None and not rung.audit.passed:
        findings = "; ".join(finding.message for finding in rung.audit.errors)
        return (Objection("missing", f"failed its audit: {findings}"),)
    found = [_memory_objection(rung, max_memory_bytes), _drop_objection(summary, rung, max_drop_points)]
    return tuple(objection for objection in found if objection is not None)


def _memory_objection(rung: RungSummary, max_memory_bytes: int | None) -> Objection | None:
    """Each rung's own peak has to leave room for the next run's, which may be higher by `MEMORY_TIE`."""
    if max_memory_bytes is None:
        return None
    peak = peak_memory(rung)
    if peak.value is None:
        return Objection("missing", f"its {PEAK} is unknown: {peak.reason}", undecided="batch1" in rung.missing)
    if peak.value * (1 + MEMORY_TIE) <= max_memory_bytes:
        return None
    more = "" if peak.value > max_memory_bytes else f" and the {MEMORY_TIE:.0%} by which runs differ"
    return Objection("memory", f"{describe_peak(peak)}{more}, more than {format_bytes(max_memory_bytes)}")


PEAK = "peak memory at batch 1"
"""how people call what ``--max-memory`` limits, which is more than the weights"""


def describe_peak(peak: Estimate) -> str:
    return f"{format_bytes(peak.value)} of {PEAK}"


def peak_memory(rung: RungSummary) -> Estimate:
    return rung.metric("batch1", "peak_memory_bytes")


def _drop_objection(summary: Summary, rung: RungSummary, margin: float | None) -> Objection | None:
    if margin is None:
        return None
    if rung.rung == summary.baseline:
        if not rung.missing_tasks:
            return None
        return Objection("missing", "nothing can be held against it before its questions are asked", undecided=True)
    difference = rung.aggregate.difference_points
    if difference.value is None:
        to_come = any(one.missing_tasks for one in (rung, summary.rung(summary.baseline)) if one)
        return Objection("unscored", f"its drop is unknown: {difference.reason}", undecided=to_come)
    if difference.low is None or difference.high is None:
        text = f"{format_points(difference.value)} points without an interval: {difference.reason}"
        return Objection("unscored", text)
    verdict = verdict_of(difference.low, difference.high, margin)
    if verdict == "beyond the margin":
        text = f"{describe_difference(difference)}: a drop of more than {points_text(margin)}"
        return Objection("drop", text + after_questions(summary, rung, margin))
    if verdict != "undecided":
        return None
    text = f"{describe_difference(difference)}, so a drop of {points_text(margin)} is neither shown nor ruled out"
    ruled_out = points_text(math.floor(1 - 10 * difference.low) / 10)  # the next tenth beyond it
    more = _more_questions(summary, rung, margin)
    return Objection("drop", f"{text}, one of {ruled_out} is ruled out; {more}", undecided=True)


def after_questions(summary: Summary, rung: RungSummary, margin: float) -> str:
    """After how many questions the verdict fell, where asking stops then."""
    stopping = rung.aggregate.stopping
    if stopping is None or margin != summary.margin_points or stopping.state not in ("early", "end"):
        return ""
    return f", {stopping.text}"


def accuracy_verdict(summary: Summary, rung: RungSummary, margin: float | None) -> Verdict | None:
    difference = rung.aggregate.difference_points
    if margin is None or rung.rung == summary.baseline or difference.low is None or difference.high is None:
        return rung.aggregate.verdict
    return verdict_of(difference.low, difference.high, margin)


def describe_difference(difference: Estimate) -> str:
    """A difference in points with its interval, for people."""
    low, high = format_points(difference.low), format_points(difference.high)
    return f"{format_points(difference.value)} points [{low}, {high}]"


def describe_recovery(recovery: Estimate) -> str:
    """A share of the baseline's score with its interval, for people."""
    return f"{format_percent(recovery.value)}% [{format_percent(recovery.low)}, {format_percent(recovery.high)}]"


def _more_questions(summary: Summary, rung: RungSummary, margin: float) -> str:
    if margin != summary.margin_points:
        return "how many more questions would decide was summarized for another margin"
    more = rung.aggregate.more_questions
    if more is None:
        return rung.aggregate.more_questions_reason or "no number of questions would decide"
    asked = ", and all of this suite were asked: take another with more" if summary.all_questions_asked else ""
    return f"about {format_count(two_digits(more))} more questions would decide{asked}"


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
