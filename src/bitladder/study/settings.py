"""Settings from flags or one study.yaml: the same names, flags win."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.records import Settings
from bitladder.rungs import RUNGS, find_rung


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings of a YAML file, overridden by the flags that were given (those not None).

    Raises UserError for a missing file, an unknown key (with the nearest), an ill-typed value or an unknown rung.
    """
    values = {**(_read_yaml(config) if config else {}), **{k: v for k, v in flags.items() if v is not None}}
    origin = str(config) if config else "settings"
    for key in values:
        if key not in Settings.model_fields:
            raise UnknownNameError(f"key in {origin}:", str(key), Settings.model_fields)
    if "model" not in values:
        raise UserError("no model; expected a Hub id, a directory or builtin:smollm2-135m")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if key.startswith("add.") and key.endswith(".[key]"):
            raise UserError(
                f"{origin}: add: found the name {first['input']!r}; expected letters, digits, `.`, `_` and `-`, "
                "the first a letter or digit"
            ) from None
        raise UserError(f"{origin}: {key}: found {first['input']!r}; {first['msg'].lower()}") from None
    for rung in settings.rungs:
        find_rung(rung)
    repeated = {rung for rung in settings.rungs if settings.rungs.count(rung) > 1}
    taken = [name for name in settings.add if name in RUNGS]
    if taken:
        raise UserError(f"{origin}: add: {taken[0]!r} is a rung of the ladder; give the checkpoint another name")
    if repeated:
        raise UserError(f"{origin}: rungs: {', '.join(sorted(repeated))} stands more than once; name each rung once")
    return settings


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a study.yaml")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise BrokenFileError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BrokenFileError(f"{path}: found {type(values).__name__}, expected keys and values such as `limit: 100`")
    return values
