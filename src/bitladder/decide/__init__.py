"""Which rung to deploy: compares the stored low, value and high of a summary with the user's limits.

Nothing is computed here. A limit is held against the unfavourable end of an interval, so a rung whose drop is undecided
is never picked.
"""

from collections.abc import Mapping, Sequence

from bitladder.decide.evidence import (
    Objection,
    accuracy_verdict,
    after_questions,
    describe_difference,
    describe_peak,
    describe_recovery,
    objections_to,
    open_rungs,
    peak_memory,
    unsettled,
    why_open,
)
from bitladder.decide.recommendation import (
    Limits,
    Pick,
    Recommendation,
    RungVerdict,
    is_ahead,
    longer_answers,
    make_pick,
    run_memory,
    way_of,
)
from bitladder.decide.sentence import compose_sentence, emulated, find_blame
from bitladder.errors import UserError
from bitladder.summary.metrics import CRITERIA, Criterion, Goal, criteria_of, recovery_margin_points
from bitladder.summary.row import counted_tasks, weighted_titles
from bitladder.summary.table import Estimate, RungSummary, Summary
from bitladder.text.words import list_words
from bitladder.units import points_text


def recommend(summary: Summary, limits: Limits | None = None) -> Recommendation:
    """Pick the best rung within the limits for the goal, or for each goal where none is named.

    Raises UserError for a limit or a goal that the study did not plan to measure.
    """
    limits = limits or Limits()
    _require_measured(summary, limits)
    if limits.min_recovery_percent is not None and limits.max_drop_points is None:
        points = recovery_margin_points(limits.min_recovery_percent, summary.baseline, summary.baseline_score)
        limits = limits.model_copy(update={"max_drop_points": points})
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
    made = () if blame else tuple(pick for goal in wanted if (pick := make_pick(summary, within, criteria[goal])))
    still_open = open_rungs(summary, objections)
    waits = {pick.goal: ahead for pick in made if (ahead := _open_ahead(summary, pick, criteria, still_open))}
    picks = tuple(pick for pick in made if pick.goal not in waits)
    if waits and not picks and limits.max_drop_points is not None:
        ahead = [rung for rung in still_open if any(rung in rungs for rungs in waits.values())]
        why = why_open(summary, ahead, summary.rungs, limits.max_drop_points)
        blame = f"{why}; until then stay with {summary.baseline}"
    if blame:
        sentence = f"Nothing is settled: {blame}."
    elif picks:
        sentence = compose_sentence(summary, limits, picks, within, [rung.rung for rung in still_open], waits)
    else:
        blame = find_blame(summary, limits, objections, within, wanted)
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


def _open_ahead(
    summary: Summary, pick: Pick, criteria: Mapping[Goal, Criterion], still_open: Sequence[RungSummary]
) -> list[RungSummary]:
    """Where the baseline is picked: the undecided rungs that are better than it, which more questions may admit."""
    baseline = summary.rung(pick.rung)
    if baseline is None or pick.rung != summary.baseline:
        return []
    return [rung for rung in still_open if is_ahead(criteria[pick.goal], rung, baseline)]


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
        f"{list_words(own)} {'is' if len(own) == 1 else 'are'} unknown: {reason}" for reason, own in unknown.items()
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
    return f"{text}, not distinguishably {way_of(criterion, estimate, best.figure)} than {best.rung}"


def _reasons(summary: Summary, limits: Limits, picks: Sequence[Pick], within: Sequence[RungSummary]) -> tuple[str, ...]:
    reasons = [reason for pick in picks for reason in pick.reasons]
    rungs = {rung.rung: rung for rung in within}
    for name in dict.fromkeys(pick.rung for pick in picks):
        rung = rungs[name]
        if limits.max_drop_points is not None and name != summary.baseline:
            difference = describe_difference(rung.aggregate.difference_points)
            verdict = accuracy_verdict(summary, rung, limits.max_drop_points)
            after = after_questions(summary, rung, limits.max_drop_points)
            ruled_out = f"rules out a drop of {points_text(limits.max_drop_points)}{after}"
            if limits.min_recovery_percent is not None:
                ruled_out += f"; {describe_recovery(rung.aggregate.recovery_percent)} of its score is kept"
            reasons.append(f"{name}: {verdict}, {difference} against {summary.baseline} {ruled_out}")
        if limits.max_memory_bytes is not None:
            reasons.append(f"{name}: {describe_peak(peak_memory(rung))}")
    reasons += [text for pick in picks if pick.goal == "memory" and (text := run_memory(summary, rungs[pick.rung]))]
    reasons += [text for pick in picks if pick.goal == "latency" for text in longer_answers(rungs[pick.rung], within)]
    reasons += [f"{name}: {finding.message}" for name, finding in emulated(summary, picks)]
    if summary.measured_on:
        reasons.append(f"measured: {summary.measured_on}")
        if tasks := weighted_titles(counted_tasks(summary.rungs)):  # which no table of one machine need show
            reasons.append(f"drops: of the mean of {tasks}")
    if not summary.has_accuracy:
        reasons.append("accuracy was not measured, so no drop is limited")
    reasons += [
        f"{goal} was not measured; run the study with the scenario {criterion.scenario}"
        for goal, criterion in criteria_of(summary).items()
        if limits.optimize is None and not _is_planned(summary, goal)
    ]
    return tuple(reasons)
