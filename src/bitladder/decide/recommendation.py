"""What a recommendation is made of: limits, picks, ranks of the rungs, and what a pick costs elsewhere."""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from bitladder.records import Record
from bitladder.stats.verdict import Verdict
from bitladder.summary.metrics import CRITERIA, METRICS, Criterion, Goal
from bitladder.summary.table import Estimate, RungSummary, Summary
from bitladder.units import counted, format_bytes, format_points


class Limits(Record):
    """What the user can't exceed, and what to make best within that."""

    max_memory_bytes: int | None = Field(default=None, gt=0)
    """peak of batch1: device minus idle, on a CPU resident"""
    max_drop_points: float | None = Field(default=None, gt=0)
    """points of the aggregate below the baseline; None: the summary's margin"""
    min_recovery_percent: float | None = Field(default=None, gt=0)
    """of the baseline's own aggregate, which ``max_drop_points`` then stands for"""
    optimize: Goal | None = None
    """None: each goal by itself"""


Standing = Literal["best", "baseline", "surely better"]


class Pick(Record):
    """The rung to deploy for one goal: the best, or the baseline where none is distinguishably better."""

    goal: Goal
    rung: str
    figure: Estimate
    standing: Standing = "best"
    """best: no rung within the limits has a better figure; baseline: it stays, since none is distinguishably better;
    surely better: than the baseline, as those with better figures are not"""
    alike: tuple[str, ...] = ()
    """rungs within the limits that can't be told apart from it in this goal"""
    reasons: tuple[str, ...]


class RungVerdict(Record):
    """What became of one rung and why: picked for these goals, within the limits but not the best, undecided, not yet
    measured so far that it could be judged, or out.

    Undecided: nothing speaks against it but that more questions may decide either way.
    """

    rung: str
    outcome: Literal["picked", "within", "undecided", "unmeasured", "out"]
    goals: tuple[Goal, ...]
    reasons: tuple[str, ...]
    accuracy: Verdict | None = None
    """on the aggregate against the margin in force; None for the baseline, and where nothing is compared"""


class Recommendation(Record):
    """The answer. Without picks, `blame` says why: nothing is settled, or which limit leaves no rung."""

    sentence: str
    limits: Limits
    """with the margin that was in force, None where accuracy was not measured"""
    picks: tuple[Pick, ...]
    reasons: tuple[str, ...]
    verdicts: tuple[RungVerdict, ...]
    blame: str | None


def run_memory(summary: Summary, rung: RungSummary) -> str | None:
    """What fewer bytes of weights leave of the memory of a run, where both were measured."""
    baseline = summary.rung(summary.baseline)
    if baseline is None or baseline is rung:
        return None
    found = []
    for name, place in (("batch1", "batch 1"), ("max-batch", "the largest batch")):
        ours, theirs = (one.scenario(name) for one in (rung, baseline))
        peaks = [one.metric("peak_memory_bytes").value for one in (ours, theirs) if one]
        if len(peaks) == 2 and None not in peaks:
            found.append(f"{format_bytes(peaks[0])} at {place} ({summary.baseline} {format_bytes(peaks[1])})")
    return f"{rung.rung}: peak memory of a run {', '.join(found)}" if found else None


def longer_answers(best: RungSummary, within: Sequence[RungSummary]) -> list[str]:
    """The rungs that are later with the first token than the one of the shortest latency, and sooner with each other:
    with more new tokens they may be faster. Only where the intervals of the time a token don't meet."""
    ours = [best.metric("batch1", name) for name in ("ttft_s", "tpot_s")]
    found = []
    for rung in within:
        first, token = theirs = [rung.metric("batch1", name) for name in ("ttft_s", "tpot_s")]
        if _is_less(ours[0], first) and _is_less(token, ours[1]):
            firsts, tokens = (
                f"{METRICS[name].quantity.text(one.value)} against {METRICS[name].quantity.text(other.value)}"
                for name, one, other in zip(("ttft_s", "tpot_s"), theirs, ours, strict=True)
            )
            found.append(
                f"{rung.rung} may be faster than {best.rung} for longer answers: {tokens} a token after the first, "
                f"which takes {firsts}"
            )
    return found


def _is_less(one: Estimate, other: Estimate) -> bool:
    """Beyond both intervals."""
    return one.high is not None and other.low is not None and one.high < other.low


def _ranked(
    summary: Summary, within: Sequence[RungSummary], criterion: Criterion
) -> list[tuple[RungSummary, Estimate]]:
    """Best first. Equal values: the higher aggregate, then the shorter latency, then the order of the study."""

    def key(entry: tuple[RungSummary, Estimate]) -> tuple[float, float, float]:
        rung, estimate = entry
        assert estimate.value is not None
        gain, latency_s = rung.aggregate.difference_points.value, CRITERIA["latency"].of(rung).value
        lower_first = estimate.value if METRICS[criterion.metric].better == "lower" else -estimate.value
        return lower_first, -gain if gain is not None else math.inf, math.inf if latency_s is None else latency_s

    known = [(rung, estimate) for rung in within if (estimate := criterion.of(rung)).value is not None]
    return sorted(known, key=key)


def make_pick(summary: Summary, within: Sequence[RungSummary], criterion: Criterion) -> Pick | None:
    ranked = _ranked(summary, within, criterion)
    if not ranked:
        return None
    place = _chosen(summary, ranked, criterion)
    best, figure = ranked[place]
    alike: list[str] = []
    standing: Standing = "best" if place == 0 else "baseline" if best.rung == summary.baseline else "surely better"
    rank = describe_rank(criterion, len(ranked), standing, " within the limits")
    reasons = [f"{best.rung}: {criterion.describe(figure, best)}, {rank}"]
    for rung, estimate in ranked:
        if rung is best:
            continue
        if estimate.value == figure.value:
            reasons.append(f"{rung.rung} is exactly equal in {criterion.goal}; {_tie_reason(summary, best, rung)}")
        elif _alike(criterion, best, rung):
            alike.append(rung.rung)
            way = way_of(criterion, estimate, figure)
            figure_text = criterion.describe(estimate, rung)
            reasons.append(f"{rung.rung} is not distinguishably {way}: {figure_text}{_together(criterion, best, rung)}")
    others = [rung for rung, _ in ranked if rung is not best and rung.rung in (*alike, summary.baseline)]
    reasons += _cautions(criterion, [best, *others])
    return Pick(
        goal=criterion.goal,
        rung=best.rung,
        figure=figure,
        standing=standing,
        alike=tuple(alike),
        reasons=tuple(reasons),
    )


def _chosen(summary: Summary, ranked: Sequence[tuple[RungSummary, Estimate]], criterion: Criterion) -> int:
    """The place of the first rung that is distinguishably better than the baseline, or of the baseline where none is:
    noise alone is no reason to leave it. The first of all where the baseline isn't among them."""
    place = next((place for place, (rung, _) in enumerate(ranked) if rung.rung == summary.baseline), 0)
    baseline, figure = ranked[place]
    for better, (rung, estimate) in enumerate(ranked[:place]):
        if estimate.value == figure.value or _alike(criterion, baseline, rung):
            continue
        unclear = all(_alike(criterion, rung, other) for other, _ in ranked[:better])
        return better if unclear else 0
    return place


def way_of(criterion: Criterion, estimate: Estimate, other: Estimate) -> str:
    """How a figure looks beside another that is not equal: faster, say, or slower."""
    assert estimate.value is not None and other.value is not None
    lower = estimate.value < other.value
    return criterion.better if lower == (METRICS[criterion.metric].better == "lower") else criterion.worse


def _cautions(criterion: Criterion, rungs: Sequence[RungSummary]) -> list[str]:
    """What has to be known of the measurements that the pick rests on."""
    if criterion.scenario is None or not criterion.sampled:
        return []
    scenarios = [(rung.rung, scenario) for rung in rungs if (scenario := rung.scenario(criterion.scenario))]
    return [f"{name}, {scenario.scenario}: {note}" for name, scenario in scenarios for note in scenario.notes]


def _tie_reason(summary: Summary, best: RungSummary, other: RungSummary) -> str:
    ours, theirs = best.aggregate.difference_points.value, other.aggregate.difference_points.value
    if ours is not None and theirs is not None and ours > theirs:
        return f"{best.rung} scores higher ({format_points(ours)} against {format_points(theirs)} points)"
    latency = CRITERIA["latency"]
    one, two = latency.of(best), latency.of(other)
    if ours == theirs and one.value is not None and two.value is None:
        return f"only of {best.rung} the latency is known"
    if ours == theirs and one.value is not None and two.value is not None and one.value < two.value:
        surely = "not distinguishably " if _alike(latency, best, other) else ""
        return f"{best.rung} is {surely}{latency.better} ({latency.describe(one)} against {latency.describe(two)})"
    return f"{best.rung} {'is the baseline' if best.rung == summary.baseline else 'comes first on the ladder'}"


def _alike(criterion: Criterion, best: RungSummary, other: RungSummary) -> bool:
    """Whether two rungs can't be told apart: the interval of their ratio holds 1, or there is none; in memory, a
    hundredth. Two intervals of their own may meet where that of the ratio excludes 1.

    Of several rungs one is soon ahead by chance, so that for one that is ahead of ``best`` all intervals hold together.
    """
    if criterion.scenario is None or not criterion.sampled:
        return criterion.alike(criterion.of(best), criterion.of(other))
    scenario = best.scenario(criterion.scenario)
    ahead = way_of(criterion, criterion.of(other), criterion.of(best)) == criterion.better
    ratios = (scenario.ratios_together if ahead else scenario.ratios) if scenario else {}
    return not (other.rung in ratios and ratios[other.rung].excludes(1))


def is_ahead(criterion: Criterion, rung: RungSummary, other: RungSummary) -> bool:
    """Whether both figures are known, and the rung's is distinguishably better."""
    ours, theirs = criterion.of(rung), criterion.of(other)
    if ours.value is None or theirs.value is None or ours.value == theirs.value:
        return False
    return way_of(criterion, ours, theirs) == criterion.better and not _alike(criterion, other, rung)


def _together(criterion: Criterion, best: RungSummary, other: RungSummary) -> str:
    """Why two are not told apart whose own interval tells them apart, which tables show."""
    scenario = best.scenario(criterion.scenario) if criterion.scenario and criterion.sampled else None
    if scenario is None or other.rung not in scenario.ratios or not scenario.ratios[other.rung].excludes(1):
        return ""
    return "; by itself their ratio's interval excludes 1, but a pick rests on those of all rungs together"


def describe_rank(criterion: Criterion, rungs: int, standing: Standing, within: str) -> str:
    if standing == "baseline":
        return f"none of {count_rungs(rungs)}{within} distinguishably {criterion.better}"
    if standing == "surely better":
        return f"the first of {count_rungs(rungs)}{within} that is distinguishably {criterion.better} than the baseline"
    if rungs == 1:
        return f"the only rung shown to be{within}" if within else "the only rung"
    return f"{criterion.best} of {count_rungs(rungs)}{within}"


def count_rungs(rungs: int) -> str:
    return f"the {counted(rungs, 'rung')}"
