"""What a comparison shows: where the interval of a difference lies against the margin.

Several rungs are judged at once, so that the more there are the likelier one looks good by chance. Each side of the
interval has 0.025 for all of them together, spent by Holm's procedure (1979, Scand J Stat 6:65-70): every rung's limit
is first taken at Bonferroni's level, 0.025 over the number of rungs; those whose limit clears -margin are decided and
leave, and the rest are taken again at 0.025 over *their* number, until none clears.

**What is drawn is the limit by which a rung was judged**: Bonferroni's over the rungs that were still open at its step.
So picture and verdict cannot contradict each other, as Holm's verdicts beside limits at Bonferroni's level over all
rungs would where only a later step decides: a limit that clears does so at the level it is drawn at, and those of the
rungs that stay open do not. Drawn limits are Bonferroni's over all rungs unless a later step had to decide.

The chance of any wrong *within the margin* is at most 0.025 (Holm, on the hypotheses d <= -m, whatever the dependence).
The upper limits are spent on d >= -m. That covers *lower but within* too: say t rungs have d >= -m in truth. Until one
of these is called beyond, at least t are open, so all their limits are at a level of at most 0.025 / t; a rung with
d >= 0 is among them and is called beyond only where it is called lower; so all errors lie in t events of at most
0.025 / t each. The two sides together make 0.05, of which one rung by itself has the usual 95% interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bitladder.stats.interval import CONFIDENCE, Interval
from bitladder.stats.paired import Comparison
from bitladder.stats.power import questions_to_decide
from bitladder.unknown import Unknown

Verdict = Literal["within the margin", "lower but within", "beyond the margin", "undecided", "no signal"]
FlipsVerdict = Literal["indistinguishable", "above the floor", "not settled"]
"""of answers that differ from the baseline's, beside what changes by itself, see `flips`"""
ACCEPTABLE: tuple[Verdict, ...] = ("within the margin", "lower but within")


def verdict_of(low: float, high: float, margin: float) -> Verdict:
    """By where an interval lies against -margin, all in one unit; an interval that touches -margin is undecided."""
    if low > -margin:
        return "lower but within" if high < 0 else "within the margin"
    return "beyond the margin" if high < -margin else "undecided"


class Levels(NamedTuple):
    """Of which two-sided confidence's interval a limit is drawn, on either side."""

    low: float = CONFIDENCE
    high: float = CONFIDENCE


@dataclass(frozen=True)
class Judged:
    """One rung's difference between the limits that it is judged by, in fractions of 1."""

    low: float
    value: float
    high: float
    levels: Levels
    verdict: Verdict
    to_decide: int | Unknown | None
    """how many more questions would; None: not worked out"""


class Beside(NamedTuple):
    """Further rungs of which the side's hypothesis is not rejected, on either side: they share the error."""

    low: int = 0
    high: int = 0


def judge(
    comparisons: Mapping[str, Comparison],
    margin: float,
    *,
    count_more: bool = True,
    confidence: float = CONFIDENCE,
    beside: Beside = Beside(),
) -> dict[str, Judged]:
    """The verdict on each rung that is compared with the baseline, all of them together; see the module.

    `count_more`: whether to work out how many more questions would decide an open one. `confidence`: what both sides
    leave, where a part of the error was spent before. `beside` stay open to the end.
    """
    low = _levels(comparisons, lambda interval: interval.low > -margin, confidence, beside.low)
    high = _levels(comparisons, lambda interval: interval.high < -margin, confidence, beside.high)
    return {rung: _judged(one, Levels(low[rung], high[rung]), margin, count_more) for rung, one in comparisons.items()}


def _levels(
    comparisons: Mapping[str, Comparison], clears: Callable[[Interval], bool], all_together: float, beside: int
) -> dict[str, float]:
    """The confidence that each rung's limit was judged at, by Holm's procedure."""
    levels: dict[str, float] = {}
    still_open = set(comparisons)
    while still_open:
        confidence = shared_confidence(len(still_open) + beside, all_together)
        levels.update(dict.fromkeys(still_open, confidence))
        cleared = {rung for rung in still_open if clears(comparisons[rung].interval(confidence))}
        if not cleared:
            break
        still_open -= cleared
    return levels


def shared_confidence(rungs: int, all_together: float = CONFIDENCE) -> float:
    """Two-sided confidence of each of so many intervals that hold all together, with 95% by default (Bonferroni)."""
    return 1 - (1 - all_together) / rungs


def _judged(comparison: Comparison, levels: Levels, margin: float, count_more: bool) -> Judged:
    lower, upper = comparison.interval(levels.low), comparison.interval(levels.high)
    verdict = verdict_of(lower.low, upper.high, margin)
    if verdict == "undecided" and count_more:
        confidence = levels.low if lower.value > -margin else levels.high
        more: int | Unknown | None = questions_to_decide(comparison, margin, confidence)
    else:
        more = None if verdict == "undecided" else 0
    return Judged(lower.low, lower.value, upper.high, levels, verdict, more)


def all_acceptable(verdicts: Iterable[Verdict | None]) -> bool:
    """Whether a drop beyond the margin is ruled out for all."""
    return all(verdict in ACCEPTABLE for verdict in verdicts)
