"""The model card: a header that the Hub reads, where the model is from, and what a study measured of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, constants, errors

from bitladder.checkpoint.scheme import describe_scheme
from bitladder.errors import UserError
from bitladder.files import expand_user
from bitladder.methods import made_title, method_of
from bitladder.models.builtin import find_builtin
from bitladder.models.source import source_hash
from bitladder.package import __version__
from bitladder.records import AccuracyTask, Audit, Finding, Machine, Manifest, Scheme, Source
from bitladder.records.base import Unknown
from bitladder.results.store import load_results
from bitladder.summary.metrics import METRICS
from bitladder.summary.row import counted_tasks, weighted_titles
from bitladder.summary.summarize import notes_about, summarize
from bitladder.summary.table import Estimate, RungSummary, ScenarioSummary, Summary, TaskSummary, describe_status
from bitladder.text.words import markdown_environment, one_line
from bitladder.units import UNKNOWN, format_bytes, format_count, format_percent, format_points, format_raw, points_text

_LICENSE_KEYS = ("license", "license_name", "license_link")
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Origin:
    """``license`` has the keys of a model card's header; where it is empty, ``license_unknown`` says why."""

    base_model: str | None
    """id on the Hub; None for a local directory"""
    license: dict[str, str] = field(default_factory=dict)
    license_unknown: str | None = None


def find_origin(source: Source) -> Origin:
    """Asks the Hub for a Hub model's licence, and reads a directory's README.md where its files are still the same."""
    if source.origin is not None:
        return find_origin(source.origin)
    if source.kind == "builtin":
        builtin = find_builtin(source.model)
        return _with_license(builtin.hub_id, {"license": builtin.license}, "the built-in model has none")
    if source.kind == "directory":
        return _origin_of_directory(source)
    return _origin_on_hub(source)


def _origin_of_directory(source: Source) -> Origin:
    directory = expand_user(source.model)
    readme = directory / "README.md"
    if not readme.is_file():
        return Origin(None, {}, "the source is a local directory without README.md")
    if source_hash(directory) != source.content_hash:
        return Origin(None, {}, "the source's directory has changed since")
    try:
        card = ModelCard(readme.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data
    except (ValueError, yaml.YAMLError):
        return Origin(None, {}, "the header of the source's README.md can't be read")
    return _with_license(None, card.to_dict(), "the source's README.md names none")  # type: ignore[no-untyped-call]


def _origin_on_hub(source: Source) -> Origin:
    try:
        card = HfApi().model_info(source.model, revision=source.revision, timeout=_TIMEOUT_S).card_data
    except (errors.HTTPError, errors.OfflineModeIsEnabled):  # type: ignore[attr-defined]  # httpx's, as its client has it
        return Origin(source.model, {}, "the Hub could not be asked for the source's")
    fields = card.to_dict() if card else {}  # type: ignore[no-untyped-call]
    link = fields.get("license_link")
    if isinstance(link, str) and "://" not in link:  # a file of the source's repository
        fields["license_link"] = f"{constants.ENDPOINT}/{source.model}/blob/{source.revision or 'main'}/{link}"
    return _with_license(source.model, fields, "the source's card names none")


def _with_license(base_model: str | None, fields: dict[str, Any], why_not: str) -> Origin:
    license_fields = {key: one_line(fields[key]) for key in _LICENSE_KEYS if isinstance(fields.get(key), str)}
    return Origin(base_model, license_fields) if "license" in license_fields else Origin(base_model, {}, why_not)


SCENARIOS = {"batch1": "Batch size 1", "max-batch": "Largest batch"}
_METRICS = ("requests_per_s", "tokens_per_s", "latency_s", "ttft_s", "peak_memory_bytes", "speedup")


@dataclass(frozen=True)
class CardTable:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MeasuredRung:
    """A study's summary, seen from one of its rungs."""

    summary: Summary
    rung: RungSummary
    notes: tuple[str, ...]
    """of the summary's those that are about this rung"""
    harness: str | None
    """version of lm-evaluation-harness that asked; None where nothing was asked"""

    @property
    def baseline(self) -> RungSummary | None:
        """What it is compared with; None where it is the baseline itself, or the study has none."""
        return None if self.rung.rung == self.summary.baseline else self.summary.rung(self.summary.baseline)


def find_measured(study: Path, manifest: Manifest) -> MeasuredRung:
    """The study's results for the checkpoint of this manifest, known by its content hash and not by its name.

    Raises UserError where the folder holds no study or the study measured another checkpoint.
    """
    results = load_results(study)
    summary = summarize(results)
    same = [rung for rung in summary.rungs if rung.content_hash == manifest.content_hash]
    if not same:
        known = ", ".join(f"{rung.rung} {(rung.content_hash or UNKNOWN)[:12]}" for rung in summary.rungs)
        raise UserError(
            f"{study}: its results are for {known}, and this is {manifest.rung} {manifest.content_hash[:12]}; "
            "give the study that measured this checkpoint, or leave --results out"
        )
    rung = next((rung for rung in same if rung.rung == manifest.rung), same[0])
    versions = {item.harness_version for item in results.study.items if isinstance(item, AccuracyTask)}
    return MeasuredRung(summary, rung, notes_about(results, rung.rung), ", ".join(sorted(versions)) or None)


def measured_tables(measured: MeasuredRung) -> list[CardTable]:
    tables = [_accuracy_table(measured)] if measured.rung.tasks else []
    return tables + [
        _scenario_table(measured, scenario, title)
        for scenario, title in SCENARIOS.items()
        if measured.rung.scenario(scenario)
    ]


def _accuracy_table(measured: MeasuredRung) -> CardTable:
    rung, baseline = measured.rung, measured.baseline
    header = ["Task", "Questions", rung.rung]
    notes = [
        f"Suite {measured.summary.suite}, asked by lm-evaluation-harness {measured.harness}. Brackets: 95% interval.",
    ]
    if baseline:
        header += [baseline.rung, "Difference (points)"]
        notes.append(
            f"Difference: to {baseline.rung}, paired by question, with an interval that holds with 95% for all "
            "precisions of the study together; where it holds 0, none is shown to exist."
        )
    stopping = rung.aggregate.stopping
    if baseline and rung.aggregate.verdict:
        margin = points_text(measured.summary.margin_points)
        judged = f"against a drop of {margin} {rung.rung} is {rung.aggregate.verdict}"
        if stopping:
            text = stopping.text if stopping.state not in ("early", "end") else f"it was {stopping.text}"
            same = f"{baseline.rung}'s scores by task are on the same questions"
            notes.append(f"Asked until decided: {judged}; {text}. {same}.")
        else:
            notes.append(f"Verdict: {judged}.")
    rows = [_task_row(task, baseline) for task in rung.tasks]
    if rung.aggregate.tasks:
        row = [f"Mean of {weighted_titles(counted_tasks([rung]))}", ""]
        row.append(_estimate(rung.aggregate.score_percent, _percent))
        if baseline:
            row.append(_estimate(baseline.aggregate.score_percent, _percent))
            row.append(_estimate(rung.aggregate.difference_points, format_points))
        rows.append(tuple(row))
    return CardTable("Accuracy", tuple(header), tuple(rows), tuple(notes))


def _task_row(task: TaskSummary, baseline: RungSummary | None) -> tuple[str, ...]:
    format_score = _percent if task.unit == "percent" else format_raw
    name = task.title_with_unit
    no_signal = "no signal" if baseline else f"no signal: {task.no_signal_reason}"  # the difference says why
    row = [
        name if task.signal or task.unit == "raw" else f"{name} ({no_signal})",
        format_count(task.questions or None),
        _estimate(task.score, format_score),
    ]
    if baseline:
        compared = next((other for other in baseline.tasks if other.name == task.name), None)
        score = compared.score if compared else Estimate.unknown(Unknown(baseline.reason or "not measured"))
        if task.baseline_percent is not None:  # on what this rung was asked
            score = Estimate(value=task.baseline_percent)
        row += [_estimate(score, format_score), _estimate(task.difference_points, format_points)]
    return tuple(row)


def _scenario_table(measured: MeasuredRung, scenario: str, title: str) -> CardTable:
    """With the baseline beside it; what did not end well has a line that says why, and no column of figures."""
    title = f"Performance: {title[0].lower()}{title[1:]}"
    own = measured.rung.scenario(scenario)
    assert own is not None
    if own.status != "ok":
        why = f"{measured.rung.rung}: {describe_status(own.status, own.reason)}."
        return CardTable(title, (), (), (why,))
    columns, notes = [(measured.rung, own)], []
    if measured.baseline:
        compared = measured.baseline.scenario(scenario)
        if compared is None or not _same_hardware(own, compared):
            notes.append(f"{measured.baseline.rung} was not measured on this machine.")
        elif compared.status != "ok":
            notes.append(f"{measured.baseline.rung}: {describe_status(compared.status, compared.reason)}.")
        else:
            columns.append((measured.baseline, compared))
    scenarios = [found for _, found in columns]
    rows = [
        _counts("Batch size", scenarios, lambda found: found.batch_size),
        _counts("Requests", scenarios, lambda found: found.requests),
        _counts("Tokens in", scenarios, lambda found: found.prompt_tokens),
        _counts("Tokens out", scenarios, lambda found: found.new_tokens),
    ]
    for name in _METRICS:
        metric = METRICS[name]
        rows.append((metric.title, *(_estimate(found.metric(name), metric.quantity.text) for found in scenarios)))
    if own.machine:
        notes.insert(0, f"Measured on {', '.join([*(gpu.title for gpu in own.machine.gpus), own.machine.cpu_model])}.")
    notes += own.notes
    return CardTable(
        title,
        ("", *(rung.rung for rung, _ in columns)),
        tuple(rows),
        tuple(notes),
    )


def _counts(
    title: str, scenarios: Sequence[ScenarioSummary], field: Callable[[ScenarioSummary], int | None]
) -> tuple[str, ...]:
    return (title, *(format_count(field(found)) for found in scenarios))


def _same_hardware(left: ScenarioSummary, right: ScenarioSummary) -> bool:
    if left.machine is None or right.machine is None:
        return False
    return _hardware(left.machine) == _hardware(right.machine)


def _hardware(machine: Machine) -> tuple[object, ...]:
    return machine.cpu_model, machine.versions, [gpu.model_dump(exclude={"serial", "unknown"}) for gpu in machine.gpus]


def _percent(value: float | None) -> str:
    return f"{format_percent(value)}%"


def _estimate(estimate: Estimate, format_value: Callable[[float | None], str]) -> str:
    if estimate.value is None:
        return f"{UNKNOWN} ({estimate.reason})"
    if estimate.low is None or estimate.high is None:
        return format_value(estimate.value)
    return f"{format_value(estimate.value)} [{format_value(estimate.low)}, {format_value(estimate.high)}]"


_OF_THE_AUDITING_MACHINE = ("hardware", "load")
"""checks whose findings say nothing of the checkpoint"""


def to_card(repository: str, manifest: Manifest, audit: Audit, origin: Origin, measured: MeasuredRung | None) -> str:
    """README.md of a model repository. The same input gives the same text; text from outside is escaped."""
    environment = markdown_environment("bitladder.publish")
    tables = [_checkpoint_table(manifest, audit), *(measured_tables(measured) if measured else [])]
    return environment.get_template("card.md.jinja").render(
        header=_header(manifest, origin),
        name=source_name(manifest),
        title=made_title(manifest),
        repository=repository,
        notes=_notes(manifest, measured),
        packages=_packages(manifest.scheme),
        tables=tables,
        findings=_findings(audit),
        provenance=CardTable("Where it comes from", ("", ""), tuple(_provenance_rows(manifest, origin)), ()),
    )


def source_name(manifest: Manifest) -> str:
    """What readers call the source, where that is a checkpoint of bitladder's what it was made from."""
    return without_path(manifest.source.origin or manifest.source).model


def without_path(source: Source) -> Source:
    """A local source goes by its directory's name: where it lay on this machine is nobody's business."""
    model = Path(source.model).name if source.kind == "directory" else source.model
    return source.model_copy(update={"model": model, "origin": source.origin and without_path(source.origin)})


def _header(manifest: Manifest, origin: Origin) -> str:
    from huggingface_hub import ModelCardData

    fields: dict[str, Any] = {
        **origin.license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bitladder", manifest.rung, *method_of(manifest.scheme).hub_tags],
    }
    if origin.base_model:
        fields |= {"base_model": origin.base_model, "base_model_relation": "quantized"}
    return ModelCardData(**fields).to_yaml()


def _notes(manifest: Manifest, measured: MeasuredRung | None) -> tuple[str, ...]:
    unfinished = measured.summary.unfinished if measured else ""
    notes = [f"{unfinished}: the study's figures below may change, and others are to come."] if unfinished else []
    notes += [manifest.source.note] if manifest.source.note else []
    return tuple(dict.fromkeys([*notes, *(measured.notes if measured else ())]))


def _packages(scheme: Scheme) -> str:
    return " ".join(("transformers", "accelerate", *method_of(scheme).packages))


def _checkpoint_table(manifest: Manifest, audit: Audit) -> CardTable:
    weights = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in manifest.bytes_by_dtype.items())
    rows = (
        ("Architecture", manifest.architecture),
        ("Parameters", f"{manifest.parameters:,}"),
        ("Precision", describe_scheme(manifest.scheme)),
        ("Weights on disk", f"{format_bytes(audit.stored_bytes)}: {weights}"),
        (
            "Weights in memory",
            "not loaded in the audit" if audit.loaded_bytes is None else format_bytes(audit.loaded_bytes),
        ),
    )
    return CardTable("What it is", ("", manifest.rung), rows, ())


def _findings(audit: Audit) -> list[Finding]:
    found = [finding for finding in audit.findings if finding.check not in _OF_THE_AUDITING_MACHINE]
    return sorted(found, key=lambda finding: finding.severity != "warning")


def _provenance_rows(manifest: Manifest, origin: Origin) -> Iterator[tuple[str, str]]:
    source = manifest.source.origin or manifest.source
    yield "Source", f"{source_name(manifest)} ({source.kind})"
    if origin.base_model and origin.base_model != source.model:
        yield "Released as", origin.base_model
    if source.revision:
        yield "Revision", source.revision
    yield "Hash of the source's files", source.content_hash
    yield (
        "Licence",
        origin.license.get("license_name", origin.license["license"])
        if origin.license
        else f"not known: {origin.license_unknown}",
    )
    yield "Quantized on", manifest.quantizing_device
    yield "Recipe hash", manifest.recipe_hash
    yield "Content hash of the tensors", manifest.content_hash
    yield "Made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield "Published with", f"bitladder {__version__}"
