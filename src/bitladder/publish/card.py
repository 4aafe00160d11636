"""The model card: a header that the Hub reads, and what is known of the checkpoint, with where it is known from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitladder.checkpoint.declared import describe_scheme
from bitladder.markdown import markdown_environment
from bitladder.package import __version__
from bitladder.publish.measured import CardTable, Measured, measured_tables
from bitladder.publish.origin import Origin
from bitladder.records import Audit, Finding, Manifest, Scheme, Source
from bitladder.rungs import made_title, method_of
from bitladder.units import format_bytes

_OF_THE_AUDITING_MACHINE = ("hardware", "load")
"""checks whose findings say nothing of the checkpoint"""


def to_card(repository: str, manifest: Manifest, audit: Audit, origin: Origin, measured: Measured | None) -> str:
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


def _notes(manifest: Manifest, measured: Measured | None) -> tuple[str, ...]:
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
