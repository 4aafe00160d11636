"""Settings from flags or one study.yaml: the same names, flags win, and none that does nothing beside another."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.machine.cards import cards_of
from bitladder.methods import RUNGS, find_rung
from bitladder.perf.engines import find_engine
from bitladder.records import Settings
from bitladder.records.study import ASKED_FROM_S, OUT
from bitladder.tasks.tasks import find_suite
from bitladder.text.words import describe_mismatch
from bitladder.units import format_left


def read_settings_file(path: Path) -> dict[str, Any]:
    """Keys are flags without their dashes in front, and as Python writes them: ``prompt-tokens`` is ``prompt_tokens``,
    and ``no-divergence: true`` is ``divergence: false``.

    Raises UserError for what is no text file and for a key that stands twice, BrokenFileError for what is no YAML of
    keys and values.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {found}; expected a study.yaml")
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, _UniqueKeys)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; expected a study.yaml") from None
    except yaml.YAMLError as error:
        raise BrokenFileError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else "a single value"
        raise BrokenFileError(f"{path}: found {found}, expected keys and values such as `limit: 100`")
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name.startswith("no_") and isinstance(value, bool):
            name, value = name.removeprefix("no_"), not value
        if name in named:
            raise UserError(f"{path}: {name} stands twice, once as {key}; keep one of them")
        named[name] = value
    return named


class _UniqueKeys(yaml.SafeLoader):
    """Of a key that stands twice YAML's own loader takes the last, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise UserError(f"{self.name}: {name} stands in line {seen[name]} and in line {line}; keep one of them")
            seen[name] = line
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"  # YAML's own loader takes `yes` for true
        return super().construct_mapping(node, deep)


_ASKING = (
    *("suite", "tasks", "limit", "limits", "num_fewshot", "batch_size", "backend", "token_budget", "chat_template"),
    *("max_drop", "divergence", "divergence_windows", "until_decided", "batch_dependence"),
)
_RUNNING = (
    *("scenarios", "requests", "prompt_tokens", "new_tokens", "max_batch_cap", "half_width_target", "time_limit_s"),
    "memory_limit",
)


@dataclass(frozen=True)
class _Idle:
    """``settings`` do nothing where ``other`` has such a value."""

    settings: tuple[str, ...]
    other: str
    is_such: Callable[[Any], bool]
    why: str


_IDLE = (
    _Idle(_ASKING, "only", lambda value: value == "performance", "--only performance, which asks no questions"),
    _Idle(_RUNNING, "only", lambda value: value == "accuracy", "--only accuracy, which runs no scenario"),
    _Idle(("divergence_windows",), "divergence", lambda value: value is False, "--no-divergence"),
    _Idle(
        ("max_batch_cap",),
        "scenarios",
        lambda value: "max-batch" not in value,
        "--scenarios without max-batch, which alone is searched for",
    ),
    _Idle(
        ("batch_size",),
        "backend",
        lambda value: value == "bitladder",
        "the backend bitladder, which packs by --token-budget; --backend hf takes it",
    ),
    _Idle(("token_budget",), "backend", lambda value: value == "hf", "--backend hf, which takes --batch-size"),
)


def require_use(named: Mapping[str, Any], values: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """Raise UserError for a setting of ``named`` (the flags, or the file) that does nothing beside another of them, or
    beside that one's default. ``values``: all that are in force."""
    for idle in _IDLE:
        default = None if idle.other in values else Settings.model_fields[idle.other].default
        beside = named.get(idle.other, default)
        if beside is None or not idle.is_such(beside):
            continue
        for name in idle.settings:
            value = named.get(name)
            if value is not None and value is not False:  # what is switched off asks for nothing; 0 is a number
                raise UserError(f"{where(name)}: found {idle.why}; leave out one of the two")


_LISTS = tuple(name for name, field in Settings.model_fields.items() if get_origin(field.annotation) is tuple)
_LIMITS = "task=number pairs such as gsm8k_cot=2,arc_easy=50"
_REQUESTS = "a number, or scenario=number pairs such as batch1=20,max-batch=400"

Where = Callable[[str], str]
"""how a message names a setting: the flag that gave it, or the file and its key"""


class Command(BaseModel):
    """What ``bitladder study`` is to do with its settings: its other flags, which study.yaml may hold too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(default=Path(OUT), description="Folder of the results. An interrupted study goes on there.")
    dry_run: bool = Field(default=False, description="Print the plan with expected disk, peak memory and time.")
    yes: bool = Field(
        default=False,
        description=f"Go on where a CPU is expected to take over {format_left(ASKED_FROM_S)}.",
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
