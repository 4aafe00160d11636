"""The published study of LLaMA 3.2 1B, cell by cell beside what a study of ours measured of the same model.

Its numbers and where they are from stand in ``published.json``. Its "BF16" row takes 4,880 MiB, which are FP32 weights
and 166 MiB, so it stands beside our ``fp32``; its "INT4" is what ``load_in_4bit=True`` gives, our ``fp4``.
"""

import functools
from importlib.resources import files
from typing import Literal

from bitladder.records import AccuracyTask, PerformanceOutcome, Record, Scenario
from bitladder.records.base import Unknown
from bitladder.results import Results
from bitladder.summary.performance import Timeline, speedup
from bitladder.summary.table import Estimate, Summary

CONTROL = "fp32"
"""what the published speed-ups are against, by memory"""

Likeness = Literal["released", "shape", "other"]
"""``released``: the published study's model by its name on the Hub. ``shape``: its architecture and number of weights,
which a local copy has and a fine-tuned one too. ``other``: neither."""


class PublishedTask(Record):
    """A row of the published Table 1; scores by the study's own names of its precisions."""

    task: str
    """name of our row"""
    title: str
    pooling: Literal["documents", "mean"]
    """how its parts make one score, as in `records.TaskGroup`"""
    score_percent: dict[str, float]


class PublishedScenario(Record):
    """The published Table 3 or 4. ``vram_mib`` is called MB there."""

    scenario: str
    requests_per_s: dict[str, float]
    speedup: dict[str, float]
    vram_mib: dict[str, float]


class PublishedStudy(Record):
    """What was published, of which model."""

    title: str
    hub_id: str
    architecture: str
    parameters: int
    citation: str
    accuracy_gpu: str
    performance_gpu: str
    rungs: dict[str, str]
    """name of a precision in the study -> the rung that it is"""
    tasks: tuple[PublishedTask, ...]
    scenarios: tuple[PublishedScenario, ...]


class ScoreCell(Record):
    """One published score beside ours."""

    task: str
    title: str
    precision: str
    """the published study's name"""
    rung: str
    published_percent: float
    score: Estimate
    questions: int
    inside: bool | None
    """whether the published score lies in our 95% interval; None where we have none"""


class SpeedCell(Record):
    """One published speed-up and its memory beside ours."""

    scenario: str
    precision: str
    rung: str
    published_speedup: float
    speedup_to_fp32: Estimate
    """over `CONTROL`, as the published one is"""
    speedup: Estimate
    """over our baseline"""
    published_vram_mib: float
    vram_bytes: Estimate


class PublishedComparison(Record):
    """The published study beside what one machine of ours measured."""

    study: PublishedStudy
    model: str
    likeness: Likeness
    machine: str | None
    """its name; None where the study has no other"""
    scores: tuple[ScoreCell, ...]
    speeds: tuple[SpeedCell, ...]
    notes: tuple[str, ...]


@functools.cache
def published_study() -> PublishedStudy:
    """The packaged numbers."""
    return PublishedStudy.model_validate_json(files("bitladder.summary").joinpath("published.json").read_bytes())


def likeness_of(results: Results) -> Likeness:
    """How much of the published study's model this study's has.

    A Hub model goes by its name, a mirror's too if its shape is the same; everything else by its checkpoints.
    """
    study, source = published_study(), results.study.source
    manifests = [rung.manifest for rung in results.rungs.values() if rung.manifest]
    shaped = any(
        (manifest.architecture, manifest.parameters) == (study.architecture, study.parameters) for manifest in manifests
    )
    name, wanted = source.model.lower(), study.hub_id.lower()
    if source.kind == "hub" and (name == wanted or (shaped and name.rpartition("/")[2] == wanted.rpartition("/")[2])):
        return "released"
    return "shape" if shaped else "other"


def compare_with_published(
    results: Results, summary: Summary, *, machine: str | None = None, any_model: bool = False
) -> PublishedComparison | None:
    """Every published cell that one machine's ``summary`` of ``results`` has a place for.

    None where the model is another one, unless ``any_model``, and where nothing published was planned. Random weights
    have speed and no accuracy; nor is accuracy compared for a Hub model of the same shape under another name.
    """
    study, likeness, source = published_study(), likeness_of(results), results.study.source
    if likeness == "other" and not any_model:
        return None
    answers = not source.speed_only and (any_model or likeness == "released" or source.kind == "directory")
    scores = tuple(_scores(study, results, summary)) if answers else ()
    speeds = tuple(_speeds(study, results, summary))
    if not scores and not speeds:
        return None
    return PublishedComparison(
        study=study,
        model=source.model,
        likeness=likeness,
        machine=machine,
        scores=scores,
        speeds=speeds,
        notes=tuple(_notes(study, results, likeness, answers)),
    )


def _scores(study: PublishedStudy, results: Results, summary: Summary) -> list[ScoreCell]:
    cells = []
    for row in study.tasks:
        group = next((group for group in results.study.groups if group.name == row.task), None)
        if group is None or group.pooling != row.pooling:
            continue
        for precision, rung in study.rungs.items():
            found = summary.rung(rung)
            task = next((task for task in found.tasks if task.name == row.task), None) if found else None
            score = task.score if task else _absent(rung)
            published = row.score_percent[precision]
            known = score.low is not None and score.high is not None
            cells.append(
                ScoreCell(
                    task=row.task,
                    title=row.title,
                    precision=precision,
                    rung=rung,
                    published_percent=published,
                    score=score,
                    questions=task.questions if task else 0,
                    inside=(score.low or 0.0) <= published <= (score.high or 0.0) if known else None,
                )
            )
    return cells


def _speeds(study: PublishedStudy, results: Results, summary: Summary) -> list[SpeedCell]:
    planned = {item.scenario: item for item in results.study.items if isinstance(item, Scenario)}
    cells = []
    for table in study.scenarios:
        if table.scenario not in planned:
            continue
        on_gpu = planned[table.scenario].device != "cpu"
        for precision, rung in study.rungs.items():
            found = summary.rung(rung)
            measured = found.scenario(table.scenario) if found else None
            absent = _absent(rung)
            vram = measured.metric("study_vram_bytes") if measured else absent
            cells.append(
                SpeedCell(
                    scenario=table.scenario,
                    precision=precision,
                    rung=rung,
                    published_speedup=table.speedup[precision],
                    speedup_to_fp32=_to_control(results, table.scenario, rung) if measured else absent,
                    speedup=measured.metric("speedup") if measured else absent,
                    published_vram_mib=table.vram_mib[precision],
                    vram_bytes=vram if on_gpu else Estimate.unknown(Unknown("measured on a CPU, which has no VRAM")),
                )
            )
    return cells


def _absent(rung: str) -> Estimate:
    return Estimate.unknown(Unknown(f"{rung} is not among this study's precisions"))


def _to_control(results: Results, scenario: str, rung: str) -> Estimate:
    if CONTROL not in results.study.settings.rungs:
        return _absent(CONTROL)
    ours, control = (_outcome(results, scenario, name) for name in (rung, CONTROL))
    if ours is None or control is None:
        return Estimate.unknown(Unknown(f"{CONTROL if control is None else rung} has no {scenario}"))
    if rung == CONTROL:
        return Estimate(value=1.0, reason="against itself")
    return speedup(Timeline(ours), Timeline(control))


def _outcome(results: Results, scenario: str, rung: str) -> PerformanceOutcome | None:
    for record in results.of(rung):
        if isinstance(record.item, Scenario) and record.item.scenario == scenario and record.status == "ok":
            return record.outcome if isinstance(record.outcome, PerformanceOutcome) else None
    return None


def _notes(study: PublishedStudy, results: Results, likeness: Likeness, answers: bool) -> list[str]:
    source = results.study.source
    notes = []
    if likeness == "other":
        notes.append(
            f"The published numbers are {study.title}'s, and this is {source.model}: they stand beside its figures "
            "because it was asked for, and agree or differ by chance."
        )
    elif source.speed_only:
        notes.append(f"Random weights in the shape of {study.title}: speed and memory are compared, accuracy is not.")
    elif likeness == "shape":
        known = f"Known by architecture and number of weights ({study.parameters:,}), which fine-tuned ones share"
        notes.append(
            f"{known}: the published scores are of the released weights."
            if answers
            else f"{known}: under this name they are not {study.hub_id}'s, so accuracy is not compared."
        )
    if answers and any(isinstance(item, AccuracyTask) for item in results.study.items):
        groups = {group.name: group.pooling for group in results.study.groups}
        left_out = [row.title for row in study.tasks if groups.get(row.task) != row.pooling]
        if left_out:
            notes.append(f"Not measured here as it was published: {', '.join(left_out)}.")
    return notes
