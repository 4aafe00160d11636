"""The sentence of a recommendation: what to deploy, or what leaves nothing to deploy."""

from collections.abc import Mapping, Sequence

from bitladder.decide.evidence import PEAK, Objection, describe_peak, peak_memory, rests_on
from bitladder.decide.recommendation import Limits, Pick, Recommendation, count_rungs, describe_rank
from bitladder.records import Finding
from bitladder.summary.metrics import CRITERIA, MEMORY_TIE, Goal, criteria_of
from bitladder.summary.table import Estimate, RungSummary, Summary
from bitladder.text.words import list_words
from bitladder.units import format_bytes, points_text


def headline(summary: Summary, recommendation: Recommendation) -> str:
    """What a person can say aloud: what to deploy, and where another rung is the better choice.

    The recommendation's own ``sentence`` has the figures and their limits.
    """
    unfinished = "Unfinished so far. " if summary.unfinished else ""
    if not recommendation.picks:
        return unfinished + _no_pick(summary, recommendation)
    limits = recommendation.limits
    goals: dict[str, list[Goal]] = {}
    for pick in recommendation.picks:
        goals.setdefault(pick.rung, []).append(pick.goal)
    planned = {pick.goal for pick in recommendation.picks}
    speeds = {rung: [goal for goal in own if goal != "memory"] for rung, own in goals.items()}
    fast = [rung for rung, own in speeds.items() if own]
    if not fast or limits.optimize:
        (rung,) = goals
        own = f" for {limits.optimize}" if limits.optimize else ""
        return f"{unfinished}Deploy {rung}{own}{_against_baseline(summary, rung)}."
    parts = [f"{rung}{f' for {list_words(speeds[rung])}' if len(fast) > 1 else ''}" for rung in fast]
    text = f"Deploy {' and '.join(parts)}"
    open_goals = [goal for goal in ("latency", "throughput") if goal not in planned and _was_run(summary, goal)]
    if open_goals and summary.baseline not in fast:
        text += f" for {list_words(speeds[fast[0]])}, and stay with {summary.baseline} for {list_words(open_goals)}"
    elif len(fast) == 1:
        text += _against_baseline(summary, fast[0])
    undecided = [verdict.rung for verdict in recommendation.verdicts if verdict.outcome == "undecided"]
    small = next((rung for rung, own in goals.items() if "memory" in own), None)
    if small is not None and small not in fast:
        text += f". Short of memory? {small}{_against_baseline(summary, small)}"
    if undecided:
        text += f". Undecided: {list_words(undecided)}"
    return f"{unfinished}{text}."


def _was_run(summary: Summary, goal: Goal) -> bool:
    scenario = CRITERIA[goal].scenario
    return any(scenario and rung.scenario(scenario) for rung in summary.rungs)


def _no_pick(summary: Summary, recommendation: Recommendation) -> str:
    outcomes = {verdict.rung: verdict.outcome for verdict in recommendation.verdicts}
    undecided = [rung for rung, outcome in outcomes.items() if outcome == "undecided"]
    if outcomes.get(summary.baseline) in ("within", "picked"):
        guessing = [verdict.rung for verdict in recommendation.verdicts if verdict.accuracy == "no signal"]
        guesses = f" {list_words(guessing)}: no task is answered better than by guessing." if guessing else ""
        if undecided:
            few = f"too few questions were asked to clear {list_words(undecided)}"
            return f"Stay with {summary.baseline} for now: {few}.{guesses}"
        if guesses:
            return f"Stay with {summary.baseline} for now.{guesses}"
        return f"Stay with {summary.baseline} for now: nothing else could be compared with it."
    if undecided or "unmeasured" in outcomes.values():
        return "No precision can be recommended yet: some measurements are missing."
    if all(rung.failures for rung in summary.rungs):
        return "No precision can be recommended: measurements of each failed."
    return "No precision can be recommended: none meets the limits."


def _against_baseline(summary: Summary, rung: str) -> str:
    """Size, accuracy and speed beside the baseline's; empty for the baseline itself, and where it was not measured."""
    own, baseline = summary.rung(rung), summary.rung(summary.baseline)
    if own is None or baseline is None or own is baseline:
        return ""
    parts = [*_size(own, baseline), *_loss(summary, own), *_speed(own, summary.baseline)]
    return f": {', '.join(parts)}" if parts else ""


def _size(own: RungSummary, baseline: RungSummary) -> list[str]:
    ours, theirs = own.stored_bytes, baseline.stored_bytes
    if ours is None or theirs is None or abs(ours - theirs) <= MEMORY_TIE * theirs:
        return []
    (number, unit), (other, other_unit) = (format_bytes(size).split() for size in (ours, theirs))
    shown = [f"{float(one):.0f}" if float(one) >= 10 else one for one in (number, other)]
    return [f"{shown[0]}{'' if unit == other_unit else f' {unit}'} instead of {shown[1]} {other_unit} of weights"]


def _loss(summary: Summary, own: RungSummary) -> list[str]:
    difference = own.aggregate.difference_points
    if not summary.has_accuracy or difference.low is None or difference.high is None or difference.value is None:
        return []
    if difference.high < 0:
        return [f"a loss of {points_text(round(-difference.value, 1))}"]
    return ["no measurable loss"]


def _speed(own: RungSummary, baseline: str) -> list[str]:
    scenario = next((one for name in ("batch1", "max-batch") if (one := own.scenario(name))), None)
    ratio = scenario.ratios.get(baseline) if scenario else None
    if ratio is None or ratio.value is None:
        return []
    if not ratio.excludes(1):
        return ["about as fast"]
    if 0.45 <= ratio.value <= 0.55:
        return ["half as fast"]
    return [f"{ratio.value:.1f} times as fast" if ratio.value > 1 else f"{1 - ratio.value:.0%} slower"]


def _bounds(summary: Summary, limits: Limits) -> str:
    bounds = []
    if limits.max_drop_points is not None:
        of_score = "" if limits.min_recovery_percent is None else f" ({limits.min_recovery_percent:g}% of its score)"
        bounds.append(f"{points_text(limits.max_drop_points)} of {summary.baseline}{of_score}")
    if limits.max_memory_bytes is not None:
        bounds.append(f"{describe_peak(Estimate(value=limits.max_memory_bytes))} ({MEMORY_TIE:.0%} to spare)")
    return " and ".join(bounds)


def compose_sentence(
    summary: Summary,
    limits: Limits,
    picks: Sequence[Pick],
    within: Sequence[RungSummary],
    still_open: Sequence[str],
    waits: Mapping[Goal, Sequence[RungSummary]],
) -> str:
    """``still_open``: the rungs that too few questions were asked of; ``waits``: of a goal for which the baseline is
    only kept, those that are better at it."""
    bounds = _bounds(summary, limits)
    alone = _alone(summary, within, bounds)
    ends = _requests(summary, picks) + _peaks(limits, picks, within)
    ends = _waits(summary, waits) + ends + (f"; {list_words(still_open)} undecided" if still_open else "")
    ends += _unmeasured(summary, picks) + rests_on(summary, picks)
    criteria = criteria_of(summary)
    if len(picks) == 1:
        pick, criterion = picks[0], criteria[picks[0].goal]
        rank = alone or describe_rank(criterion, len(within), pick.standing, f" within {bounds}" if bounds else "")
        figure = criterion.describe(pick.figure, summary.rung(pick.rung))
        return f"Deploy {pick.rung} for {pick.goal}: {figure}, {rank}{_as_good(pick)}{ends}."
    by_rung: dict[str, list[Pick]] = {}
    for pick in picks:
        by_rung.setdefault(pick.rung, []).append(pick)
    lead = f"Of {count_rungs(len(within))} within {bounds}, deploy" if bounds and len(within) > 1 else "Deploy"
    only = f", {alone}," if alone else ""
    goals = {
        pick.goal: f"{pick.goal} ({criteria[pick.goal].describe(pick.figure, summary.rung(pick.rung))}{_as_good(pick)})"
        for pick in picks
    }
    parts = (f"{rung}{only} for {list_words([goals[pick.goal] for pick in own])}" for rung, own in by_rung.items())
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
    return f"; requests of {list_words(list(found))}" if found else ""


def _alone(summary: Summary, within: Sequence[RungSummary], bounds: str) -> str:
    """How the one rung within the limits stands; empty where it isn't the one, or nothing limits."""
    if not bounds or len(within) != 1:
        return ""
    which = "since no other rung is" if within[0].rung == summary.baseline else "the only rung"
    return f"{which} shown to be within {bounds}"


def _waits(summary: Summary, waits: Mapping[Goal, Sequence[RungSummary]]) -> str:
    """The goals for which nothing is settled, beside those for which a rung is picked."""
    parts = []
    for goal, rungs in waits.items():
        names = list_words([rung.rung for rung in rungs])
        are = "is" if len(rungs) == 1 else "are"
        better = criteria_of(summary)[goal].better
        parts.append(
            f"; for {goal} stay with {summary.baseline} until more questions decide on {names}, which {are} {better}"
        )
    return "".join(parts)


def _unmeasured(summary: Summary, picks: Sequence[Pick]) -> str:
    """What the figures are not of, which might change the decision; and where they are from, of several machines."""
    text = "" if summary.has_accuracy else "; accuracy was not measured"
    if summary.measured_on:
        return f"{text}; measured: {summary.measured_on}"
    if (found := emulated(summary, picks)) and summary.rung("fp32") is None:
        types = list_words(list(dict.fromkeys(finding.data["type"] for _, finding in found)))
        text += f"; fp32 was not measured and may be faster, since this machine emulates {types}"
    return text


def _as_good(pick: Pick) -> str:
    """The rungs that a reader could as well deploy for this goal."""
    criterion = CRITERIA[pick.goal]
    differing = criterion.worse if pick.standing == "best" else f"{criterion.better} or {criterion.worse}"
    return f"; {list_words(pick.alike)} not distinguishably {differing}" if pick.alike else ""


def _peaks(limits: Limits, picks: Sequence[Pick], within: Sequence[RungSummary]) -> str:
    """Where memory is limited, the limited figure of what is picked for something else."""
    if limits.max_memory_bytes is None:
        return ""
    picked = {pick.rung for pick in picks if pick.goal != "memory"}
    peaks = [f"{format_bytes(peak_memory(rung).value)} ({rung.rung})" for rung in within if rung.rung in picked]
    return f"; {PEAK}: {list_words(peaks)}" if peaks else ""


def emulated(summary: Summary, picks: Sequence[Pick]) -> list[tuple[str, Finding]]:
    """The rungs that are picked for their speed and computed in a 16-bit type that the machine lacks."""
    fast = [pick.rung for pick in picks if CRITERIA[pick.goal].sampled]
    audits = [(name, rung.audit) for name in dict.fromkeys(fast) if (rung := summary.rung(name)) and rung.audit]
    return [
        (name, finding)
        for name, audit in audits
        for finding in audit.findings
        if finding.check == "hardware" and finding.data.get("native") is False and finding.data["type"] != "I8"
    ]


def find_blame(
    summary: Summary,
    limits: Limits,
    objections: dict[str, tuple[Objection, ...]],
    within: Sequence[RungSummary],
    wanted: Sequence[Goal],
) -> str:
    """The single limit that, lifted, would admit most rungs; or that lifting one would admit none."""
    if within:
        names = ", ".join(rung.rung for rung in within)
        return f"{list_words(list(wanted))} is known of none of the rungs within the limits ({names})."
    admitted = {
        cause: [name for name, found in objections.items() if {objection.cause for objection in found} == {cause}]
        for cause in ("memory", "drop")
    }
    flags = {
        "memory": f"--max-memory {format_bytes(limits.max_memory_bytes)}",
        "drop": _drop_flag(limits),
    }
    most = max(len(names) for names in admitted.values())
    if most:
        blamed = (
            f"{flags[cause]} is to blame, without it {list_words(names)} would do"
            for cause, names in admitted.items()
            if len(names) == most
        )
        return f"{'; '.join(blamed)}."
    if all({"missing", "unscored"} & {objection.cause for objection in found} for found in objections.values()):
        if summary.has_accuracy and summary.rung(summary.baseline) is None:
            return (
                f"no drop is known without {summary.baseline}; run the study with {summary.baseline} among its rungs."
            )
        if all(objection.undecided for found in objections.values() for objection in found):
            return "no rung has all that the limits need yet; run the study again to go on."
        return "every rung failed or lacks a measurement that the limits need; run the study again."
    return f"lifting one limit would admit none; {flags['memory']} and {flags['drop']} are both in the way."


def _drop_flag(limits: Limits) -> str:
    """As it was given."""
    if limits.min_recovery_percent is not None:
        return f"--min-recovery {limits.min_recovery_percent:g}%"
    return "" if limits.max_drop_points is None else f"--max-drop {limits.max_drop_points:g}pt"
