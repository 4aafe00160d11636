"""Which rung to deploy: compares the stored low, value and high of a summary with the user's limits.

Nothing is computed here. A limit is held against the unfavourable end of an interval, so a rung whose drop is undecided
is never picked.
"""

import math
from collections.abc import Mapping, Sequence

from bitladder.errors import UserError
from bitladder.evidence import rests_on, unsettled
from bitladder.objections import (
    PEAK,
    Objection,
    accuracy_verdict,
    after_questions,
    describe_difference,
    describe_peak,
    objections_to,
    peak_memory,
)
from bitladder.recommendation import Limits, Pick, Recommendation, RungVerdict, Standing
from bitladder.records import Finding
from bitladder.stats.goals import CRITERIA, Criterion, Goal, criteria_of
from bitladder.stats.metrics import METRICS
from bitladder.stats.summary import Estimate, RungSummary, Summary
from bitladder.stats.weights import counted_tasks, weighted_titles
from bitladder.tradeoffs import longer_answers, run_memory
from bitladder.units import counted, format_bytes, format_points, points_text


def recommend(summary: Summary, limits: Limits | None = None) -> Recommendation:
    """Pick the best rung within the limits for the goal, or for each goal where none is named.

    Raises UserError for a limit or a goal that the study did not plan to measure.
    """
    limits = limits or Limits()
    _require_measured(summary, limits)
    if summary.has_accuracy and limits.max_drop_points is None:
        limits = limits.model_copy(update={"max_drop_points": summary.margin_points})
    objections = {
        rung.rung: objections_to(summary, rung, limits.max_memory_bytes, limits.max_drop_points)
        for rung in summary.rungs
    }
    within = [rung for rung in summary.rungs if not objections[rung.rung]]
    criteria = criteria_of(summary)
    wanted = [limits.optimize] if limits.optimize else [goal for goal in CRITERIA if _is_planned(summary, goal)]
    blame = unsettled(summary, objections, within, limits.max_drop_points)
    picks = () if blame else tuple(pick for goal in wanted if (pick := _pick(summary, within, criteria[goal])))
    if blame:
        sentence = f"Nothing is settled: {blame}."
    elif picks:
        sentence = _sentence(summary, limits, picks, within, objections)
    else:
        blame = _blame(summary, limits, objections, within, wanted)
        sentence = f"No rung is left: {blame}"
    return Recommendation(
        sentence=". ".join(filter(None, (summary.unfinished, sentence))),
        limits=limits,
        picks=picks,
        reasons=_reasons(summary, limits, picks, within),
        verdicts=tuple(
            _verdict(rung, objections[rung.rung], picks, [criteria[goal] for goal in wanted]).model_copy(
                update={"accuracy": accuracy_verdict(summary, rung, limits.max_drop_points)}
            )
            for rung in summary.rungs
        ),
        blame=blame,
    )


def _is_planned(summary: Summary, goal: Goal) -> bool:
    scenario = criteria_of(summary)[goal].scenario
    return scenario is None or any(rung.scenario(scenario) is not None for rung in summary.rungs)


def _require_measured(summary: Summary, limits: Limits) -> None:
    if limits.max_drop_points is not None and not summary.has_accuracy:
        raise UserError(
            "--max-drop needs accuracy, which this study does not measure; run it without --only performance"
        )
    if limits.max_memory_bytes is not None and not _is_planned(summary, "latency"):
        raise UserError("--max-memory needs the scenario batch1, which this study does not measure; run it with batch1")
    if limits.optimize is not None and not _is_planned(summary, limits.optimize):
        scenario = criteria_of(summary)[limits.optimize].scenario
        raise UserError(
            f"--optimize {limits.optimize} needs the scenario {scenario}, which this study does not measure; "
            f"run it with {scenario}"
        )


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


def _pick(summary: Summary, within: Sequence[RungSummary], criterion: Criterion) -> Pick | None:
    ranked = _ranked(summary, within, criterion)
    if not ranked:
        return None
    place = _chosen(summary, ranked, criterion)
    best, figure = ranked[place]
    alike: list[str] = []
    standing: Standing = "best" if place == 0 else "baseline" if best.rung == summary.baseline else "surely better"
    rank = _rank(criterion, len(ranked), standing, " within the limits")
    reasons = [f"{best.rung}: {criterion.describe(figure, best)}, {rank}"]
    for rung, estimate in ranked:
        if rung is best:
            continue
        if estimate.value == figure.value:
            reasons.append(f"{rung.rung} is exactly equal in {criterion.goal}; {_tie_reason(summary, best, rung)}")
        elif _alike(criterion, best, rung):
            alike.append(rung.rung)
            way = _way(criterion, estimate, figure)
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


def _way(criterion: Criterion, estimate: Estimate, other: Estimate) -> str:
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
    ahead = _way(criterion, criterion.of(other), criterion.of(best)) == criterion.better
    ratios = (scenario.ratios_together if ahead else scenario.ratios) if scenario else {}
    ratio = ratios.get(other.rung)
    if ratio is None or ratio.low is None or ratio.high is None:
        return True
    return ratio.low <= 1 <= ratio.high


def _together(criterion: Criterion, best: RungSummary, other: RungSummary) -> str:
    """Why two are not told apart whose own interval tells them apart, which tables show."""
    scenario = best.scenario(criterion.scenario) if criterion.scenario and criterion.sampled else None
    own = scenario.ratios.get(other.rung) if scenario else None
    if own is None or own.low is None or own.high is None or own.low <= 1 <= own.high:
        return ""
    return "; by itself their ratio's interval excludes 1, but a pick rests on those of all rungs together"


def _rank(criterion: Criterion, rungs: int, standing: Standing, within: str) -> str:
    if standing == "baseline":
        return f"none of {_count(rungs)}{within} distinguishably {criterion.better}"
    if standing == "surely better":
        return f"the first of {_count(rungs)}{within} that is distinguishably {criterion.better} than the baseline"
    if rungs == 1:
        return f"the only rung shown to be{within}" if within else "the only rung"
    return f"{criterion.best} of {_count(rungs)}{within}"


def _count(rungs: int) -> str:
    return f"the {counted(rungs, 'rung')}"


def _verdict(
    rung: RungSummary,
    objections: Sequence[Objection],
    picks: Sequence[Pick],
    wanted: Sequence[Criterion],
) -> RungVerdict:
    if objections:
        reasons = tuple(objection.reason for objection in objections)
        if not all(objection.undecided for objection in objections):
            return RungVerdict(rung=rung.rung, outcome="out", goals=(), reasons=reasons)
        judged = all(objection.cause == "drop" for objection in objections)
        return RungVerdict(rung=rung.rung, outcome="undecided" if judged else "unmeasured", goals=(), reasons=reasons)
    goals = tuple(pick.goal for pick in picks if pick.rung == rung.rung)
    best = {pick.goal: pick for pick in picks}
    reasons = _all_against(wanted, rung, best)
    if goals:
        return RungVerdict(rung=rung.rung, outcome="picked", goals=goals, reasons=reasons)
    if any(criterion.of(rung).value is not None for criterion in wanted):
        return RungVerdict(rung=rung.rung, outcome="within", goals=(), reasons=reasons)
    return RungVerdict(rung=rung.rung, outcome="unmeasured" if rung.missing else "out", goals=(), reasons=reasons)


def _all_against(wanted: Sequence[Criterion], rung: RungSummary, best: Mapping[Goal, Pick]) -> tuple[str, ...]:
    """How a rung within the limits does in each goal; those that are unknown for one reason in one line."""
    known: list[str] = []
    unknown: dict[str | None, list[str]] = {}
    for criterion in wanted:
        estimate = criterion.of(rung)
        if estimate.value is None:
            unknown.setdefault(estimate.reason, []).append(criterion.goal)
        else:
            known.append(_against(criterion, estimate, rung, best.get(criterion.goal)))
    lines = (
        f"{_list(goals)} {'is' if len(goals) == 1 else 'are'} unknown: {reason}" for reason, goals in unknown.items()
    )
    return (*known, *lines)


def _against(criterion: Criterion, estimate: Estimate, rung: RungSummary, best: Pick | None) -> str:
    """How a rung within the limits does in one goal, and against the best."""
    text = f"{criterion.goal}: {criterion.describe(estimate, rung)}"
    if best is None or best.rung == rung.rung:
        return text
    if estimate.value == best.figure.value:
        return f"{text}, equal to {best.rung}"
    if rung.rung not in best.alike:
        return f"{text}, {criterion.worse} than {best.rung}"
    return f"{text}, not distinguishably {_way(criterion, estimate, best.figure)} than {best.rung}"


def _bounds(summary: Summary, limits: Limits) -> str:
    bounds = []
    if limits.max_drop_points is not None:
        bounds.append(f"{points_text(limits.max_drop_points)} of {summary.baseline}")
    if limits.max_memory_bytes is not None:
        bounds.append(describe_peak(Estimate(value=limits.max_memory_bytes)))
    return " and ".join(bounds)


def _sentence(
    summary: Summary,
    limits: Limits,
    picks: Sequence[Pick],
    within: Sequence[RungSummary],
    objections: Mapping[str, Sequence[Objection]],
) -> str:
    bounds = _bounds(summary, limits)
    alone = _alone(summary, within, bounds)
    ends = _requests(summary, picks) + _peaks(limits, picks, within) + _open(objections) + _unmeasured(summary, picks)
    ends += rests_on(summary, picks)
    if len(picks) == 1:
        pick, criterion = picks[0], criteria_of(summary)[picks[0].goal]
        rank = alone or _rank(criterion, len(within), pick.standing, f" within {bounds}" if bounds else "")
        figure = criterion.describe(pick.figure, summary.rung(pick.rung))
        return f"Deploy {pick.rung} for {pick.goal}: {figure}, {rank}{_as_good(pick)}{ends}."
    by_rung: dict[str, list[Pick]] = {}
    for pick in picks:
        by_rung.setdefault(pick.rung, []).append(pick)
    lead = f"Of {_count(len(within))} within {bounds}, deploy" if bounds and len(within) > 1 else "Deploy"
    only = f", {alone}," if alone else ""
    parts, criteria = [], criteria_of(summary)
    for rung, own in by_rung.items():
        goals = [
            f"{pick.goal} ({criteria[pick.goal].describe(pick.figure, summary.rung(rung))}{_as_good(pick)})"
            for pick in own
        ]
        parts.append(f"{rung}{only} for {_list(goals)}")
    return f"{lead} {'; '.join(parts)}{ends}."


def _requests(summary: Summary, picks: Sequence[Pick]) -> str:
    """Which requests the speeds are of: with others another rung may be the fastest."""
    scenarios = [
        scenario
        for pick in picks
        if (name := criteria_of(summary)[pick.goal].scenario)
        and (rung := summary.rung(pick.rung))
        and (scenario := rung.scenario(name))
    ]
    found = dict.fromkeys(f"{one.prompt_tokens:,} prompt and {one.new_tokens:,} new tokens" for one in scenarios)
    return f"; requests of {_list(list(found))}" if found else ""


def _alone(summary: Summary, within: Sequence[RungSummary], bounds: str) -> str:
    """How the one rung within the limits stands; empty where it isn't the one, or nothing limits."""
    if not bounds or len(within) != 1:
        return ""
    if within[0].rung == summary.baseline:
        return f"since no other rung is shown to be within {bounds}"
    return f"the only rung shown to be within {bounds}"


def _open(objections: Mapping[str, Sequence[Objection]]) -> str:
    """The rungs of which more questions may tell."""
    found = [
        rung
        for rung, own in objections.items()
        if own and all(objection.undecided and objection.cause == "drop" for objection in own)
    ]
    return f"; {_list(found)} undecided" if found else ""


def _unmeasured(summary: Summary, picks: Sequence[Pick]) -> str:
    """What the figures are not of, which might change the decision; and where they are from, of several machines."""
    text = "" if summary.has_accuracy else "; accuracy was not measured"
    if summary.measured_on:
        return f"{text}; measured: {summary.measured_on}"
    if (emulated := _emulated(summary, picks)) and summary.rung("fp32") is None:
        types = _list(list(dict.fromkeys(finding.data["type"] for _, finding in emulated)))
        text += f"; fp32 was not measured and may be faster, since this machine emulates {types}"
    return text


def _as_good(pick: Pick) -> str:
    """The rungs that a reader could as well deploy for this goal."""
    criterion = CRITERIA[pick.goal]
    differing = criterion.worse if pick.standing == "best" else f"{criterion.better} or {criterion.worse}"
    return f"; {_list(pick.alike)} not distinguishably {differing}" if pick.alike else ""


def _peaks(limits: Limits, picks: Sequence[Pick], within: Sequence[RungSummary]) -> str:
    """Where memory is limited, the limited figure of what is picked for something else."""
    if limits.max_memory_bytes is None:
        return ""
    picked = {pick.rung for pick in picks if pick.goal != "memory"}
    peaks = [f"{format_bytes(peak_memory(rung).value)} ({rung.rung})" for rung in within if rung.rung in picked]
    return f"; {PEAK}: {_list(peaks)}" if peaks else ""


def _list(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _reasons(summary: Summary, limits: Limits, picks: Sequence[Pick], within: Sequence[RungSummary]) -> tuple[str, ...]:
    reasons = [reason for pick in picks for reason in pick.reasons]
    rungs = {rung.rung: rung for rung in within}
    for name in dict.fromkeys(pick.rung for pick in picks):
        rung = rungs[name]
        if limits.max_drop_points is not None and name != summary.baseline:
            difference = describe_difference(rung.aggregate.difference_points)
            margin = points_text(limits.max_drop_points)
            verdict = accuracy_verdict(summary, rung, limits.max_drop_points)
            after = after_questions(summary, rungs[name], limits.max_drop_points)
            ruled_out = f"rules out a drop of {margin}{after}"
            reasons.append(f"{name}: {verdict}, {difference} against {summary.baseline} {ruled_out}")
        if limits.max_memory_bytes is not None:
            reasons.append(f"{name}: {describe_peak(peak_memory(rung))}")
    reasons += [text for pick in picks if pick.goal == "memory" and (text := run_memory(summary, rungs[pick.rung]))]
    reasons += [text for pick in picks if pick.goal == "latency" for text in longer_answers(rungs[pick.rung], within)]
    reasons += [f"{name}: {finding.message}" for name, finding in _emulated(summary, picks)]
    if summary.measured_on:
        reasons.append(f"measured: {summary.measured_on}")
        reasons += _drops_of(summary)
    if not summary.has_accuracy:
        reasons.append("accuracy was not measured, so no drop is limited")
    reasons += [
        f"{goal} was not measured; run the study with the scenario {criterion.scenario}"
        for goal, criterion in criteria_of(summary).items()
        if limits.optimize is None and not _is_planned(summary, goal)
    ]
    return tuple(reasons)


def _emulated(summary: Summary, picks: Sequence[Pick]) -> list[tuple[str, Finding]]:
    """The rungs that are picked for their speed and computed in a 16-bit type that the machine lacks."""
    fast = [pick.rung for pick in picks if CRITERIA[pick.goal].sampled]
    audits = [(name, rung.audit) for name in dict.fromkeys(fast) if (rung := summary.rung(name)) and rung.audit]
    return [
        (name, finding)
        for name, audit in audits
        for finding in audit.findings
        if finding.check == "hardware" and finding.data.get("native") is False and finding.data["type"] != "I8"
    ]


def _drops_of(summary: Summary) -> list[str]:
    """Of several machines: what the drops are of, which no table of one machine need show."""
    tasks = weighted_titles(counted_tasks(summary.rungs))
    return [f"drops: of the mean of {tasks}"] if tasks else []


def _blame(
    summary: Summary,
    limits: Limits,
    objections: dict[str, tuple[Objection, ...]],
    within: Sequence[RungSummary],
    wanted: Sequence[Goal],
) -> str:
    """The single limit that, lifted, would admit most rungs; or that lifting one would admit none."""
    if within:
        names = ", ".join(rung.rung for rung in within)
        return f"{_list(list(wanted))} is known of none of the rungs within the limits ({names})."
    admitted = {
        cause: [name for name, found in objections.items() if {objection.cause for objection in found} == {cause}]
        for cause in ("memory", "drop")
    }
    flags = {
        "memory": f"--max-memory {format_bytes(limits.max_memory_bytes)}",
        "drop": f"--max-drop {limits.max_drop_points:g}pt" if limits.max_drop_points is not None else "",
    }
    most = max(len(names) for names in admitted.values())
    if most:
        blamed = [cause for cause, names in admitted.items() if len(names) == most]
        return (
            "; ".join(f"{flags[cause]} is to blame, without it {_list(admitted[cause])} would do" for cause in blamed)
            + "."
        )
    if all({"missing", "unscored"} & {objection.cause for objection in found} for found in objections.values()):
        if summary.has_accuracy and summary.rung(summary.baseline) is None:
            return (
                f"no drop is known without {summary.baseline}; run the study with {summary.baseline} among its rungs."
            )
        if all(objection.undecided for found in objections.values() for objection in found):
            return "no rung has all that the limits need yet; run the study again to go on."
        return "every rung failed or lacks a measurement that the limits need; run the study again."
    return f"lifting one limit would admit none; {flags['memory']} and {flags['drop']} are both in the way."
