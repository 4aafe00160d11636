"""Settings from flags or one study.yaml: the same names, flags win."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitladder.accuracy.suites import find_suite
from bitladder.devices import cards_of
from bitladder.errors import UnknownNameError, UserError
from bitladder.records import Settings
from bitladder.rungs import RUNGS, find_rung
from bitladder.study.settings_file import read_settings_file
from bitladder.wording import describe_mismatch

_LISTS = ("rungs", "tasks", "scenarios")


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings of a YAML file, overridden by the flags that were given (those not None).

    Lists may be one string with commas. Raises UserError for a missing file, an unknown key (with the nearest), an
    ill-typed value, an empty list, an unknown rung or suite, or what can be no device.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    kept = read_settings_file(config) if config else {}
    values = {**kept, **given}
    origin = str(config) if config else "settings"
    for place, named in ((origin, kept), ("--suite, --tasks", given)):
        if named.get("suite") and named.get("tasks"):
            raise UserError(f"{place}: found a suite and tasks; expected one of both, since tasks take a suite's place")

    def where(key: str) -> str:
        top, _, part = key.partition(".")
        flag = f"--{top.replace('_', '-')}"
        named = part and not part.isdecimal()
        return (f"{flag} {part}" if named else flag) if top in given else f"{origin}: {key}"

    for key in values:
        if key not in Settings.model_fields:
            raise UnknownNameError(f"key in {origin}:", str(key), Settings.model_fields)
    if "model" not in values:
        raise UserError("no model; expected a Hub id, a directory or builtin:smollm2-135m")
    for key in _LISTS:
        if isinstance(values.get(key), str):
            values[key] = tuple(name.strip() for name in values[key].split(",") if name.strip())
        if key in values and not values[key]:
            raise UserError(
                f"{where(key)}: found none, expected one name or several with commas between; or leave it out"
            )
    if isinstance(values.get("memory_limit"), int | float):
        values["memory_limit"] = str(values["memory_limit"])  # a file's number has no unit either
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if key.startswith("add.") and key.endswith(".[key]"):
            raise UserError(
                f"{where('add')}: found the name {first['input']!r}; expected letters, digits, `.`, `_` and `-`, "
                "the first a letter or digit"
            ) from None
        raise UserError(f"{where(key)}: {describe_mismatch(first)}") from None
    for rung in settings.rungs:
        find_rung(rung)
    if settings.suite is not None:
        find_suite(settings.suite)
    if settings.device != "auto":
        try:
            cards_of(settings.device)
        except UserError:
            raise UserError(
                f"{where('device')}: found {settings.device!r}, expected auto, cpu, cuda or cuda:N for one card, or "
                "cuda:N,M for several, each once"
            ) from None
    repeated = {rung for rung in settings.rungs if settings.rungs.count(rung) > 1}
    taken = [name for name in settings.add if name in RUNGS]
    if taken:
        raise UserError(f"{where('add')}: {taken[0]!r} is a rung of the ladder; give the checkpoint another name")
    if repeated:
        raise UserError(f"{where('rungs')}: {', '.join(sorted(repeated))} stands more than once; name each rung once")
    return settings
