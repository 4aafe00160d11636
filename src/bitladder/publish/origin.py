"""What a card's header says of the source: the model on the Hub that it is, and its licence."""

from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, constants, errors

from bitladder.home import expand_user
from bitladder.models.builtin import find_builtin
from bitladder.models.source import source_hash
from bitladder.printable import one_line
from bitladder.records import Source

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
