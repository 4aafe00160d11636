"""Settings from flags or one study.yaml: the same names, flags win."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitladder import defaults
from bitladder.accuracy.suites import find_suite
from bitladder.devices import cards_of
from bitladder.errors import UnknownNameError, UserError
from bitladder.perf.engines.table import find_engine
from bitladder.records import Settings
from bitladder.rungs import RUNGS, find_rung
from bitladder.study.combinations import require_use
from bitladder.study.settings_file import read_settings_file
from bitladder.units import format_left
from bitladder.wording import describe_mismatch

_LISTS = tuple(name for name, field in Settings.model_fields.items() if get_origin(field.annotation) is tuple)
_LIMITS = "task=number pairs such as gsm8k_cot=2,arc_easy=50"
_REQUESTS = "a number, or scenario=number pairs such as batch1=20,max-batch=400"

Where = Callable[[str], str]
"""how a message names a setting: the flag that gave it, or the file and its key"""


class Command(BaseModel):
    """What ``bitladder study`` is to do with its settings: its other flags, which study.yaml may hold too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(
        default=Path(defaults.OUT), description="Folder of the results. An interrupted study goes on there."
    )
    dry_run: bool = Field(default=False, description="Print the plan with expected disk, peak memory and time.")
    yes: bool = Field(
        default=False,
        description=f"Go on where a CPU is expected to take over {format_left(defaults.ASKED_FROM_S)}.",
    )
    json_output: bool = Field(default=False, alias="json", description="Print results as JSON.")


_OF_COMMAND = tuple(field.alias or name for name, field in Command.model_fields.items())


def load_command(config: Path | None, flags: Mapping[str, Any]) -> tuple[Command, Settings]:
    """What is about the command itself, and the settings: of a YAML file, overridden by the flags that were given
    (those not None).

    Lists may be one string with commas, and pairs one with ``=``. Raises UserError for a missing file, an unknown key
    (with the nearest), an ill-typed value, an empty list, an unknown rung or suite, or what can be no device.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    kept = read_settings_file(config) if config else {}
    origin = str(config) if config else "settings"
    where = _naming(origin, given)
    values = {**kept, **given}
    try:
        command = Command.model_validate({name: values.pop(name) for name in _OF_COMMAND if name in values})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where(str(first['loc'][0]))}: {describe_mismatch(first)}") from None
    for place, named in ((origin, kept), ("--suite, --tasks", given)):
        if named.get("suite") and named.get("tasks"):
            raise UserError(f"{place}: found a suite and tasks; expected one of both, since tasks take a suite's place")
    for key in values:
        if key not in Settings.model_fields:
            known = [name.replace("_", "-") for name in (*Settings.model_fields, *_OF_COMMAND)]
            raise UnknownNameError(f"key in {origin}:", key.replace("_", "-"), known)
    for named in (kept, given):  # what a file has for another run a flag may leave without use
        require_use(named, values, where)
    return command, _settings(values, where)


def _naming(origin: str, given: Mapping[str, Any]) -> Where:
    def where(key: str) -> str:
        top, _, part = key.partition(".")
        flag = f"--{top.replace('_', '-')}"
        named = part and not part.isdecimal()
        in_file = ".".join(filter(None, (top.replace("_", "-"), part)))
        return (f"{flag} {part}" if named else flag) if top in given else f"{origin}: {in_file}"

    return where


def _settings(values: dict[str, Any], where: Where) -> Settings:
    if "model" not in values:
        raise UserError("no model; expected a Hub id, a directory or builtin:smollm2-135m")
    try:
        settings = Settings.model_validate(_read(values, where))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if key.startswith("add.") and key.endswith(".[key]"):
            raise UserError(
                f"{where('add')}: found the name {first['input']!r}; expected letters, digits, `.`, `_` and `-`, "
                "the first a letter or digit"
            ) from None
        raise UserError(f"{where(key)}: {describe_mismatch(first)}") from None
    _require_known(settings, where)
    return settings


def _read(values: dict[str, Any], where: Where) -> dict[str, Any]:
    """The same with lists and pairs that were one text taken apart."""
    for key in _LISTS:
        if isinstance(values.get(key), str):
            values[key] = tuple(name.strip() for name in values[key].split(",") if name.strip())
        if key in values and not values[key]:
            raise UserError(
                f"{where(key)}: found none, expected one name or several with commas between; or leave it out"
            )
        if isinstance(values.get(key), list | tuple) and any(not str(name).strip(" '\"") for name in values[key]):
            raise UserError(f"{where(key)}: found an empty name, expected one name or several with commas between")
    if isinstance(values.get("add"), str | list):
        values["add"] = _added([values["add"]] if isinstance(values["add"], str) else values["add"], where("add"))
    if isinstance(values.get("limits"), str):
        values["limits"] = _numbers(where("limits"), values["limits"], _LIMITS)
    if isinstance(values.get("requests"), str) and "=" in values["requests"]:
        values["requests"] = _numbers(where("requests"), values["requests"], _REQUESTS)
    if isinstance(values.get("datasets"), str | Path):
        values["datasets"] = str(Path(values["datasets"]).absolute())
    if isinstance(values.get("memory_limit"), int | float):
        values["memory_limit"] = str(values["memory_limit"])  # a file's number has no unit either
    return values


def _added(pairs: list[Any], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, source = (part.strip() for part in str(pair).partition("="))
        if not name or not source:
            raise UserError(f"{where}: found {pair!r}, expected NAME=REPO_OR_DIR such as fp8=my-org/my-model-FP8")
        if name in found:
            raise UserError(f"{where}: {name!r} stands more than once; give each checkpoint a name of its own")
        found[name] = source
    return found


def _numbers(where: str, text: str, expected: str) -> dict[str, str]:
    parts = [part.partition("=") for part in text.split(",")]
    pairs = [(name.strip(), value.strip()) for name, _, value in parts]
    if not all(name and value and "=" not in value for name, value in pairs):
        raise UserError(f"{where}: found {text!r}, expected {expected}")
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: found {repeated[0]!r} more than once, expected {expected}; give it one number")
    return dict(pairs)


def _require_known(settings: Settings, where: Where) -> None:
    for rung in settings.rungs:
        find_rung(rung)
    find_engine(settings.engine)
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
    taken = [name for name in settings.add if name in RUNGS]
    if taken:
        raise UserError(f"{where('add')}: {taken[0]!r} is a rung of the ladder; give the checkpoint another name")
    repeated = {rung for rung in settings.rungs if settings.rungs.count(rung) > 1}
    if repeated:
        raise UserError(f"{where('rungs')}: {', '.join(sorted(repeated))} stands more than once; name each rung once")
