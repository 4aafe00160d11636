"""What speaks against a rung under limits of memory and accuracy: compares stored limits of intervals with them."""

import math
from dataclasses import dataclass
from typing import Literal

from bitladder.results import not_measured_as
from bitladder.stats.verdict import Verdict, verdict_of
from bitladder.summary.goals import MEMORY_TIE
from bitladder.summary.table import Estimate, RungSummary, Summary, describe_end
from bitladder.units import format_bytes, format_count, format_percent, format_points, points_text, two_digits

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
        return (Objection("missing", describe_end(rung.status, rung.reason), undecided=rung.status == "missing"),)
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
