"""A task's or group's YAML as data: with its includes, its functions by name, and nothing imported or run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bitladder.accuracy.registry import DEEPEST, MOST_BYTES, harness_tasks
from bitladder.builtin import FOLDER
from bitladder.errors import BrokenFileError

_MOST_VALUES = 1_000_000
"""values of a file, with those that an alias repeats: lm-eval and we copy them out"""

_TEXT, _MAP, _MAPS = "text", "keys with a value each", "a list of keys with a value each"
_SHAPES = {
    "task_alias": _TEXT,
    "group_alias": _TEXT,
    "dataset_path": _TEXT,
    "test_split": _TEXT,
    "validation_split": _TEXT,
    "training_split": _TEXT,
    "fewshot_split": _TEXT,
    "output_type": _TEXT,
    "dataset_kwargs": _MAP,
    "fewshot_config": _MAP,
    "generation_kwargs": _MAP,
    "metric_list": _MAPS,
    "filter_list": _MAPS,
}
"""of keys that are read here or that lm-eval takes as they are"""


class FunctionName(str):
    """The text of a ``!function`` value, and the file that has it."""

    file: Path


@dataclass(frozen=True)
class TaskYaml:
    """The keys of a file and of those it includes, and every function that lm-eval would import to read them.

    These are more than the keys hold: the value that another takes the place of is imported, too.
    """

    config: dict[str, Any]
    functions: tuple[FunctionName, ...]


def read_task_yaml(file: Path, including: tuple[Path, ...] = ()) -> TaskYaml:
    """Raises BrokenFileError for a file that isn't a task's YAML, for one that includes itself and for a missing one.

    ``including``: the files that led here. Files are found as lm-eval finds them: links are followed first.
    """
    file = file.resolve()
    if file in including:
        way = " -> ".join(map(str, (*including[including.index(file) :], file)))
        raise BrokenFileError(f"{file}: includes itself ({way}); leave one `include` out")
    if len(including) > DEEPEST:
        raise BrokenFileError(f"{including[0]}: more than {DEEPEST} files that include each other; make them fewer")
    config, found = _read(file, including[-1] if including else None)
    functions = list(found)
    includes = config.pop("include", None)
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes] if includes is not None else []:
        if not isinstance(include, str):
            raise BrokenFileError(f"{file}: include: found {include!r}, expected the name of a file")
        inner = read_task_yaml(file.parent / include, (*including, file))
        merged |= inner.config
        functions += inner.functions
    merged |= config
    _require_shapes(merged, file)
    return TaskYaml(merged, tuple(functions))


def is_own(file: Path | None) -> bool:
    """Whether it is the user's, and none of lm-eval's or bitladder's."""
    return file is None or not any(file.resolve().is_relative_to(root) for root in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    return harness_tasks().resolve(), FOLDER.resolve()


class _Loader(yaml.CSafeLoader):
    """Python's types of YAML's own plain ones; a tag that would make or import anything else is refused."""

    def __init__(self, data: bytes, file: Path) -> None:
        super().__init__(data)
        self.file = file
        self.functions: list[FunctionName] = []


def _function_name(loader: _Loader, node: yaml.ScalarNode) -> FunctionName:
    name = FunctionName(loader.construct_scalar(node))
    name.file = loader.file
    loader.functions.append(name)
    return name


_Loader.add_constructor("!function", _function_name)


def _read(file: Path, includer: Path | None) -> tuple[dict[str, Any], list[FunctionName]]:
    if not file.is_file():
        named = f"but {includer} includes it" if includer else "expected a task's YAML"
        raise BrokenFileError(f"{file}: {'no file' if file.exists() else 'no such file'}, {named}")
    if file.stat().st_size > MOST_BYTES:
        raise BrokenFileError(f"{file}: larger than {MOST_BYTES // 2**20} MiB, expected the keys of an lm-eval task")
    loader = _Loader(file.read_bytes(), file)
    try:
        config = loader.get_single_data()
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError) as error:
        # the latter four: what PyYAML's own constructors fail with at a date or number that is none
        raise BrokenFileError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    if not isinstance(config, dict):
        raise BrokenFileError(f"{file}: found {type(config).__name__}, expected the keys of an lm-eval task or group")
    if _count(config, {}, 0) > _MOST_VALUES:
        raise BrokenFileError(
            f"{file}: more than {_MOST_VALUES:,} values with those that aliases repeat, or nested beyond "
            f"{DEEPEST} levels; expected the keys of an lm-eval task"
        )
    for key in config:
        if type(key) is not str:
            raise BrokenFileError(f"{file}: the key {key!r}, expected those of an lm-eval task or group")
    return config, loader.functions


def _count(value: Any, known: dict[int, int], depth: int) -> int:
    """Values in it, each as often as it is referred to; too many where it holds itself or is nested too deep."""
    if not isinstance(value, list | dict | set):
        return 1
    if depth > DEEPEST:
        return _MOST_VALUES + 1
    if id(value) not in known:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(one, known, depth + 1) for one in inner)
    return known[id(value)]


def _require_shapes(config: Mapping[str, Any], file: Path) -> None:
    for key, value, shape in ((key, config[key], shape) for key, shape in _SHAPES.items() if key in config):
        fits = {
            _TEXT: isinstance(value, str),
            _MAP: isinstance(value, dict),
            _MAPS: isinstance(value, list) and all(isinstance(one, dict) for one in value),
        }
        if value is not None and not fits[shape]:
            raise BrokenFileError(f"{file}: {key}: found {str(value)[:60]!r}, expected {shape}")
    for entry in config.get("metric_list") or ():
        if "metric" not in entry:
            raise BrokenFileError(f"{file}: metric_list: found {str(entry)[:60]!r}, expected a `metric` in it")
