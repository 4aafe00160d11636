"""From a study's raw records to the one table that deciding and reporting read."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from bitladder.methods import ready_title
from bitladder.records import (
    AccuracyOutcome,
    AccuracyTask,
    Divergence,
    DivergenceOutcome,
    Item,
    MeasurementRecord,
    PerformanceOutcome,
    Rescoring,
    RescoringOutcome,
    Scenario,
    StudyRecord,
)
from bitladder.records.base import Unknown, reason_of
from bitladder.results import Results, RungOutcomes, read_outcomes
from bitladder.results.machines import find_place, to_decide
from bitladder.stats.verdict import shared_confidence
from bitladder.summary import scores
from bitladder.summary.accuracy import summarize_tasks
from bitladder.summary.agreement import Scored, read_scored, summarize_dependence, summarize_divergence
from bitladder.summary.coverage import read_coverage
from bitladder.summary.metrics import default_margin_points, derive_metrics, study_margin_points
from bitladder.summary.performance import Timeline, notes_on, speedup
from bitladder.summary.row import Row
from bitladder.summary.table import (
    AggregateSummary,
    Estimate,
    RungSummary,
    ScenarioSummary,
    Summary,
    TaskSummary,
    stored_status,
)
from bitladder.units import counted

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
    ends = read_outcomes(results)
    margin = study_margin_points(study) if margin_points is None else margin_points
    if margin <= 0:
        raise ValueError(f"the margin must be more than 0 points, got {margin}")
    answered = read_coverage(results, ends)
    rows = answered.rows
    found = [summarize_tasks(row, margin) for row in rows]
    aggregates = answered.aggregates(margin)
    runs = _runs(ends)
    scored = _scored(ends)
    summaries = tuple(
        _rung_summary(
            end, study.baseline, tuple(row[rung] for row in found), aggregates[rung], runs, answered.unasked[rung]
        ).model_copy(update=_dependence(study, scored, rung))
        for rung, end in ends.items()
    )
    unplanned = sum(one.is_missing and not one.is_planned for end in ends.values() for one in end.measurements)
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
    end: RungOutcomes,
    baseline: str,
    tasks: tuple[TaskSummary, ...],
    aggregate: AggregateSummary,
    runs: "Mapping[str, Mapping[str, _ScenarioRun]]",
    unasked: Collection[str],
) -> RungSummary:
    """``unasked``: tasks that are asked in stages, with documents that the rung is still to be asked."""
    record = end.record
    status, reason = stored_status(end.unmade)
    audit = record.audit if record else None
    scenarios = tuple(_scenario_summary(end.rung, baseline, own) for own in runs.values())
    missing = [one for one in end.measurements if (one.name in unasked if _is_staged(one.item) else one.is_missing)]
    return RungSummary(
        rung=end.rung,
        title=ready_title(end.rung, audit),
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
        failures=_failures(end),
        missing=tuple(one.name for one in missing),
        missing_tasks=tuple(one.name for one in missing if isinstance(one.item, AccuracyTask)),
        scoring={task: one.scoring for task, one in end.answers.items() if isinstance(one, AccuracyOutcome)},
        **_divergence(end),
    )


def _is_staged(item: Item) -> bool:
    return isinstance(item, AccuracyTask) and item.order is not None


def _divergence(end: RungOutcomes) -> dict[str, Any]:
    """The fields of a rung that are about it."""
    for one in end.measurements:
        if isinstance(one.outcome, DivergenceOutcome):
            return {"divergence": summarize_divergence(one.outcome)}
        if isinstance(one.item, Divergence):
            return {"no_divergence_reason": reason_of(one.outcome)}
    return {}


def _scored(ends: Mapping[str, RungOutcomes]) -> dict[str, Scored]:
    """Of each rung the answers that were scored again; empty where none were to be."""
    planned = (one.item for end in ends.values() for one in end.measurements)
    if not any(isinstance(item, Rescoring) for item in planned):
        return {}
    return {rung: read_scored(end.records) for rung, end in ends.items()}


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


def _loaded_bytes(end: RungOutcomes, scenarios: tuple[ScenarioSummary, ...]) -> int | None:
    """As audited, else as seen in a performance measurement."""
    if end.record and end.record.audit and end.record.audit.loaded_bytes is not None:
        return end.record.audit.loaded_bytes
    seen = [scenario.metrics["loaded_bytes"].value for scenario in scenarios if scenario.metrics]
    return next((int(value) for value in seen if value is not None), None)


def _failures(end: RungOutcomes) -> tuple[str, ...]:
    if end.unmade is not None:
        return (end.unmade.of(end.rung).reason,) if end.unmade.bad_status else ()
    return tuple(
        one.outcome.of(f"{end.rung}, {one.name}").reason
        for one in end.measurements
        if isinstance(one.outcome, Unknown) and one.outcome.bad_status
    )


class _ScenarioRun(NamedTuple):
    """One rung's of a scenario."""

    item: Scenario
    record: MeasurementRecord | None
    line: Timeline | Unknown


def _runs(ends: Mapping[str, RungOutcomes]) -> dict[str, dict[str, _ScenarioRun]]:
    """Of each scenario by rung: every rung is held against all others."""
    found: dict[str, dict[str, _ScenarioRun]] = {}
    for rung, end in ends.items():
        for one in end.measurements:
            if isinstance(one.item, Scenario):
                assert isinstance(one.outcome, PerformanceOutcome | Unknown)  # an item's kind is its outcome's
                line = one.outcome if isinstance(one.outcome, Unknown) else Timeline(one.outcome)
                found.setdefault(one.name, {})[rung] = _ScenarioRun(one.item, one.record, line)
    return found


def _scenario_summary(rung: str, baseline: str, runs: Mapping[str, _ScenarioRun]) -> ScenarioSummary:
    item, record, line = runs[rung]
    if isinstance(line, Unknown):
        status, reason = stored_status(line)
        return ScenarioSummary(
            scenario=item.scenario,
            status=status,
            reason=reason,
            machine=record.machine if record else None,
            prompt_tokens=item.prompt_tokens,
            new_tokens=item.new_tokens,
        )
    assert record is not None  # whose the line is
    outcome = line.outcome
    metrics = derive_metrics(outcome, item.device)
    others = {name: run.line for name, run in runs.items() if name != rung and not isinstance(run.line, Unknown)}
    ratios = {name: speedup(line, theirs) for name, theirs in others.items()}
    confidence = shared_confidence(max(len(others), 1))
    metrics["speedup"] = ratios.get(baseline) or _no_speedup(rung, baseline, runs)
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
        ratios_together={name: speedup(line, theirs, confidence) for name, theirs in others.items()},
        notes=notes_on(outcome, item.planned_requests(outcome.batch_size), item.batch_size_cap)
        + _other_host(record, runs[baseline].record if baseline in runs else None, baseline),
    )


def _other_host(record: MeasurementRecord, other: MeasurementRecord | None, baseline: str) -> tuple[str, ...]:
    """Machines of one kind count as one, and differ all the same."""
    if other is None:
        return ()
    one, theirs = ({gpu.serial for gpu in each.machine.gpus} for each in (record, other))
    if None in one | theirs or one == theirs:
        return ()
    return (f"measured on another machine of the same kind than {baseline}, for which no interval allows",)


def _no_speedup(rung: str, baseline: str, runs: Mapping[str, _ScenarioRun]) -> Estimate:
    """Why there is none against the baseline on the same machine, the only one in these results."""
    if baseline not in runs:
        return Estimate.unknown(Unknown("the baseline is not in the study"))
    if rung == baseline:
        return Estimate(value=1.0, reason="the baseline against itself")
    line = runs[baseline].line
    assert isinstance(line, Unknown)  # else there is a speed-up
    return Estimate.unknown(line.of(f"{baseline} has no {runs[baseline].item.scenario}"))


def _notes(results: Results, rows: list[Row]) -> tuple[str, ...]:
    of_all = _remarks(results) + _batch_dependence(results) + _about_suite(results)
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
    return tuple(notes + of_all)


def notes_about(results: Results, rung: str) -> tuple[str, ...]:
    """Of `Summary.notes` what is true of one rung: a page on it alone has nothing of the others."""
    rows = read_coverage(results, read_outcomes(results)).rows
    own = tuple(record for record in results.records if record.rung == rung)
    return _notes(replace(results, records=own, rungs={rung: results.rungs[rung]}), rows)


def _same_contents(ends: Mapping[str, RungOutcomes]) -> tuple[str, ...]:
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
