"""Which rung is the best for a goal, and which others can't be told from it: ranks stored figures, computes nothing."""

import math
from collections.abc import Sequence

from bitladder.recommendation import Pick, Standing
from bitladder.summary.goals import CRITERIA, Criterion
from bitladder.summary.metrics import METRICS
from bitladder.summary.table import Estimate, RungSummary, Summary
from bitladder.units import counted, format_points


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
