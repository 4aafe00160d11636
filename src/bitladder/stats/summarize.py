"""From a study's raw records to the one table that deciding and reporting read."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, TypeGuard

from bitladder.records import (
    AccuracyOutcome,
    AccuracyTask,
    Divergence,
    DivergenceOutcome,
    Item,
    MeasurementRecord,
    Rescoring,
    RescoringOutcome,
    Scenario,
    Scoring,
    StudyRecord,
)
from bitladder.results import Results, item_name
from bitladder.rungs import ready_title
from bitladder.stats import scores
from bitladder.stats.accuracy import summarize_tasks
from bitladder.stats.answered import read_answered
from bitladder.stats.dependence import Scored, read_scored, summarize_dependence
from bitladder.stats.divergence import summarize_divergence
from bitladder.stats.ends import Ends
from bitladder.stats.machines import find_place, to_decide
from bitladder.stats.margin import default_margin_points, study_margin_points
from bitladder.stats.metrics import derive_metrics
from bitladder.stats.performance import notes_on, speedup
from bitladder.stats.row import Row
from bitladder.stats.summary import (
    AggregateSummary,
    Estimate,
    RungSummary,
    ScenarioSummary,
    Summary,
    TaskSummary,
    stored_end,
)
from bitladder.stats.verdict import shared_confidence
from bitladder.units import counted
from bitladder.unknown import Unknown, reason_of

_BUILTIN_TASK = "bitladder_"
"""how the names of the built-in suite's tasks begin"""


def summarize(results: Results, margin_points: float | None = None, machine: str | None = None) -> Summary:
    """Derive every figure of a study, with its interval or the reason for none.

    `margin_points`: how many points of the aggregate a rung may lose; the study's own where None. It enters the
    verdicts, with the limits that they are judged by, and how many more questions would decide. `machine`: part of the
    name of the one whose performance counts, needed where several measured it. Raises ValueError for a margin that is
    not positive, UserError where a machine must be chosen.
    """
    if results.measured_on is None:
        results = to_decide(results, find_place(results, machine))
    study = results.study
    margin = study_margin_points(study) if margin_points is None else margin_points
    if margin <= 0:
        raise ValueError(f"the margin must be more than 0 points, got {margin}")
    ends = {rung: Ends(results, rung) for rung in study.rungs}
    answered = read_answered(results, ends)
    rows = answered.rows
    found = [summarize_tasks(row, margin) for row in rows]
    aggregates = answered.aggregates(margin)
    unasked = answered.unasked
    scored = _scored(results)
    summaries = tuple(
        _rung_summary(
            results, ends, rung, tuple(row[rung] for row in found), aggregates[rung], unasked[rung]
        ).model_copy(update=_dependence(study, scored, rung))
        for rung in ends
    )
    unplanned = sum(end.is_unplanned(item) for end in ends.values() for item in study.items)
    told_apart = sum(end.same_as is None for end in ends.values())
    return Summary(
        source=study.source,
        suite=study.suite,
        baseline=study.baseline,
        default_margin_points=default_margin_points(study.suite),
        margin_points=margin,
        all_questions_asked=_all_asked(study),
        planned_measurements=told_apart * len(study.items) - unplanned,
        missing_measurements=sum(len(rung.missing) for rung in summaries) - unplanned,
        rungs=summaries,
        notes=_notes(results, rows) + _same_contents(ends),
        measured_on=results.measured_on,
    )


def _rung_summary(
    results: Results,
    ends: dict[str, Ends],
    rung: str,
    tasks: tuple[TaskSummary, ...],
    aggregate: AggregateSummary,
    unasked: Collection[str],
) -> RungSummary:
    """``unasked``: tasks that are asked in stages, with documents that the rung is still to be asked."""
    study, end = results.study, ends[rung]
    record = end.record
    status, reason = stored_end(end.unmade)
    audit = record.audit if record else None
    scenarios = tuple(
        _scenario_summary(end, ends, study.baseline, item) for item in study.items if isinstance(item, Scenario)
    )
    missing = [item for item in study.items if (item.task in unasked if _is_staged(item) else end.is_missing(item))]
    return RungSummary(
        rung=rung,
        title=ready_title(rung, audit),
        status=status,
        reason=reason,
        content_hash=record.content_hash if record else None,
        same_as=end.same_as,
        stored_bytes=audit.stored_bytes if audit else None,
        loaded_bytes=_loaded_bytes(end, scenarios),
        audit=audit,
        tasks=tasks,
        aggregate=aggregate,
        scenarios=scenarios,
        failures=_failures(end, study.items),
        missing=tuple(item_name(item) for item in missing),
        missing_tasks=tuple(item.task for item in missing if isinstance(item, AccuracyTask)),
        scoring=_scoring(end, study.items),
        **_divergence(end, study.items),
    )


def _scoring(end: Ends, items: tuple[Item, ...]) -> dict[str, Scoring | None]:
    tasks = [item.task for item in items if isinstance(item, AccuracyTask)]
    answered = ((task, end.leaf(task)) for task in tasks)
    return {task: leaf.scoring for task, leaf in answered if isinstance(leaf, AccuracyOutcome)}


def _is_staged(item: Item) -> TypeGuard[AccuracyTask]:
    return isinstance(item, AccuracyTask) and item.order is not None


def _divergence(end: Ends, items: tuple[Item, ...]) -> dict[str, Any]:
    """The fields of a rung that are about it."""
    item = next((item for item in items if isinstance(item, Divergence)), None)
    if item is None:
        return {}
    found = end.outcome(item)
    if isinstance(found, DivergenceOutcome):
        return {"divergence": summarize_divergence(found)}
    return {"no_divergence_reason": reason_of(found)}


def _scored(results: Results) -> dict[str, Scored]:
    """Of each rung the answers that were scored again; empty where none were to be."""
    if not any(isinstance(item, Rescoring) for item in results.study.items):
        return {}
    return {rung: read_scored(results, rung) for rung in results.study.rungs}


def _dependence(study: StudyRecord, scored: dict[str, Scored], rung: str) -> dict[str, Any]:
    """The fields of a rung that are about it: of each row whose tasks are scored again, and of all in the aggregate."""
    if not scored:
        return {}
    tasks = {item.task.task for item in study.items if isinstance(item, Rescoring)}
    groups = [group for group in study.groups if tasks.issuperset(group.tasks)]
    baseline = None if rung == study.baseline else scored.get(study.baseline)
    return {
        "dependence": summarize_dependence("All", scored[rung], baseline, tasks),
        "dependence_by_task": tuple(
            summarize_dependence(group.title, scored[rung], baseline, group.tasks) for group in groups
        ),
        "products": dict(scored[rung].products),
    }


def _loaded_bytes(end: Ends, scenarios: tuple[ScenarioSummary, ...]) -> int | None:
    """As audited, else as seen in a performance measurement."""
    if end.record and end.record.audit and end.record.audit.loaded_bytes is not None:
        return end.record.audit.loaded_bytes
    seen = [scenario.metrics["loaded_bytes"].value for scenario in scenarios if scenario.metrics]
    return next((int(value) for value in seen if value is not None), None)


def _failures(end: Ends, items: tuple[Item, ...]) -> tuple[str, ...]:
    if end.unmade is not None:
        return (end.unmade.of(end.rung).reason,) if end.unmade.bad_end else ()
    measured = ((item, end.outcome(item)) for item in items)
    return tuple(
        found.of(f"{end.rung}, {item_name(item)}").reason
        for item, found in measured
        if isinstance(found, Unknown) and found.bad_end
    )


def _scenario_summary(end: Ends, ends: dict[str, Ends], baseline: str, item: Scenario) -> ScenarioSummary:
    record, line = end.recorded(item), end.timeline(item)
    if isinstance(line, Unknown):
        status, reason = stored_end(line)
        return ScenarioSummary(
            scenario=item.scenario,
            status=status,
            reason=reason,
            machine=record.machine if record else None,
            batch_size=None,
            requests=0,
            prompt_tokens=item.prompt_tokens,
            new_tokens=item.new_tokens,
            stopped_by=None,
            metrics={},
            notes=(),
        )
    assert record is not None  # whose the line is
    outcome = line.outcome
    metrics = derive_metrics(outcome, item.device)
    others = {name: other.timeline(item) for name, other in ends.items() if name != end.rung}
    measured = {name: theirs for name, theirs in others.items() if not isinstance(theirs, Unknown)}
    ratios = {name: speedup(line, theirs) for name, theirs in measured.items()}
    confidence = shared_confidence(max(len(measured), 1))
    metrics["speedup"] = ratios.get(baseline) or _no_speedup(end, ends.get(baseline), item)
    return ScenarioSummary(
        scenario=item.scenario,
        status="ok",
        reason=None,
        machine=record.machine,
        batch_size=outcome.batch_size,
        requests=sum(request.status == "ok" for request in outcome.requests),
        prompt_tokens=item.prompt_tokens,
        new_tokens=item.new_tokens,
        stopped_by=outcome.stopped_by,
        metrics=metrics,
        ratios=ratios,
        ratios_together={name: speedup(line, theirs, confidence) for name, theirs in measured.items()},
        notes=notes_on(outcome, item.planned_requests(outcome.batch_size), item.batch_size_cap)
        + _other_host(record, ends[baseline].recorded(item) if baseline in ends else None, baseline),
    )


def _other_host(record: MeasurementRecord, other: MeasurementRecord | None, baseline: str) -> tuple[str, ...]:
    """Machines of one kind count as one, and differ all the same."""
    if other is None:
        return ()
    one, theirs = ({gpu.serial for gpu in each.machine.gpus} for each in (record, other))
    if None in one | theirs or one == theirs:
        return ()
    return (f"measured on another machine of the same kind than {baseline}, for which no interval allows",)


def _no_speedup(end: Ends, baseline: Ends | None, item: Scenario) -> Estimate:
    """Why there is none against the baseline on the same machine, the only one in these results."""
    if baseline is None:
        return Estimate.unknown(Unknown("the baseline is not in the study"))
    if end.rung == baseline.rung:
        return Estimate(value=1.0, reason="the baseline against itself")
    why = baseline.timeline(item)
    assert isinstance(why, Unknown)  # else there is a speed-up
    return Estimate.unknown(why.of(f"{baseline.rung} has no {item.scenario}"))


def _notes(results: Results, rows: list[Row]) -> tuple[str, ...]:
    notes = [results.study.source.note] if results.study.source.note else []
    for row in rows:
        if row.group.in_aggregate and not any(map(row.counts, row.leaves)):
            reason = row.without_signal.get(row.baseline) or next(iter(row.without_signal.values()))
            notes.append(f"{row.group.title} is in no aggregate: {reason_of(reason)}.")
    for record in results.records:
        if isinstance(record.outcome, AccuracyOutcome) and isinstance(record.item, AccuracyTask):
            about = f"{record.rung}, {record.item.task}"
            notes += [f"{about}: {text}" for text in scores.disagreements(record.outcome)]
            if record.outcome.truncated_documents:
                count = counted(record.outcome.truncated_documents, "prompt")
                notes.append(f"{about}: {count} longer than the model's context: the beginning was cut off.")
    return tuple(notes + _remarks(results) + _batch_dependence(results) + _about_suite(results))


def notes_about(results: Results, rung: str) -> tuple[str, ...]:
    """Of `Summary.notes` what is true of one rung: a page on it alone has nothing of the others."""
    rows = read_answered(results, {name: Ends(results, name) for name in results.study.rungs}).rows
    own = tuple(record for record in results.records if record.rung == rung)
    return _notes(replace(results, records=own, rungs={rung: results.rungs[rung]}), rows)


def _same_contents(ends: dict[str, Ends]) -> tuple[str, ...]:
    return tuple(
        f"{end.rung} has the same content as {end.same_as}: it is not measured, and all that is measured of "
        f"{end.same_as}, answers and times, is true of it."
        for end in ends.values()
        if end.same_as is not None
    )


def _all_asked(study: StudyRecord) -> bool:
    """Of the tasks that the aggregate may rest on."""
    in_aggregate = {task for group in study.groups if group.in_aggregate for task in group.tasks}
    tasks = [item for item in study.items if isinstance(item, AccuracyTask) and item.task in in_aggregate]
    return bool(tasks) and all(task.limit is None for task in tasks)


def _remarks(results: Results) -> list[str]:
    """What was said of how it was scored, once a remark with the rungs and kinds that it is true of."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for record in results.records:
        if isinstance(record.outcome, AccuracyOutcome | DivergenceOutcome | RescoringOutcome):
            for remark in record.outcome.remarks:
                kinds, rungs = found.setdefault(remark, ({}, {}))
                kinds[record.outcome.kind] = rungs[record.rung] = None
    return [
        f"{' and '.join(sorted(kinds)).capitalize()} of {', '.join(rungs)}: {remark}."
        for remark, (kinds, rungs) in found.items()
    ]


def _batch_dependence(results: Results) -> list[str]:
    """Of rungs whose outlier columns are those of all rows of a batch (Dettmers and others 2022, LLM.int8)."""
    scored = {record.rung for record in results.records if isinstance(record.outcome, AccuracyOutcome)}
    names = [
        rung
        for rung, record in results.rungs.items()
        if rung in scored and record.audit and record.audit.found and record.audit.found.int8_threshold
    ]
    if not names:
        return []
    return [
        f"Accuracy of {', '.join(names)}: LLM.int8 takes for outliers the columns where any row of a batch has one, so "
        "an answer depends on what else is in its batch. A large batch, as here, has more columns computed in 16 bits "
        "than a single request: at batch 1 the score can be lower."
    ]


def _about_suite(results: Results) -> list[str]:
    """What an interval over the questions of a fixed list of templates doesn't cover."""
    if not any(task.startswith(_BUILTIN_TASK) for group in results.study.groups for task in group.tasks):
        return []
    return [
        "The built-in questions are variations on 82 templates, chosen, like the worked examples before them, by what "
        "the BF16 model answers well, which favours it. Intervals are over questions of these templates, as MMLU's are "
        "over questions of its subjects: other templates may lose more or less. For a decision of consequence take "
        "--suite paper or your own --tasks."
    ]
