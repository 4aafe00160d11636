"""Where lm-eval's tasks, groups and tags are defined: an index by name from the text of YAML files. Imports nothing."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.files import ABANDONED_S, cache_directory, remove_unfinished, write_atomically
from bitladder.package import BUILTIN
from bitladder.records import Record

MOST_ENTRIES = 100_000
"""files and folders that are looked at; lm-eval's own tasks are 16,000"""
_SYSTEM = tuple(map(Path, ("/proc", "/sys", "/dev")))
"""whose files are made while they are read"""
_MEMORY = Path("/dev/shm")
"""where people put files of their own"""


def walk(folder: Path, *, depth: int | None = None, links: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk``. Raises UserError for a folder with too many entries, and for one of the system.

    ``depth``: levels below the folder, itself being 0. ``links``: go into folders that are links.
    """
    seen, start = 0, str(folder).rstrip(os.sep).count(os.sep)
    for directory, folders, files in os.walk(folder, followlinks=links):
        place = Path(directory).resolve()
        if any(place.is_relative_to(root) for root in _SYSTEM) and not place.is_relative_to(_MEMORY):
            raise UserError(f"{folder}: takes in {place}, of the system; name a folder that holds what is wanted")
        inside = [Path(directory, name) for name in folders] if links else ()
        if any(path.is_symlink() and path.resolve() in (place, *place.parents) for path in inside):
            raise UserError(f"{directory}: a link in it leads to a folder that it lies in; take the link away")
        seen += len(folders) + len(files)
        if seen > MOST_ENTRIES:
            raise UserError(
                f"{folder}: more than {MOST_ENTRIES:,} files and folders in it; name one that holds what is wanted and "
                "little else"
            )
        yield directory, folders, files
        if depth is not None and directory.rstrip(os.sep).count(os.sep) - start >= depth:
            folders.clear()


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
    return harness_tasks().resolve(), BUILTIN.resolve()


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


_SKIPPED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}
# A key at the start of a line, its value, and the lines that go on with it.
_KEY = re.compile(
    r"""^["']?(task|group|tag|include|class)["']?[ \t]*:[ \t]*(.*(?:\n[ \t]*-.*|\n[ \t]+\S.*)*)""", re.MULTILINE
)
MOST_BYTES = 16 * 2**20
"""of a task's YAML; the largest of lm-eval's has 62 thousand"""
DEEPEST = 50
"""files that include each other, groups or values inside each other"""
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Definition:
    """What a name stands for. A tag has no file; its tasks carry it."""

    kind: Literal["task", "group", "tag"]
    file: Path | None
    tasks: tuple[str, ...] = ()
    """of a tag: the tasks that carry it, sorted"""


Names = Mapping[str, Definition]


class _Index(Record):
    """What is kept of a scan: how many files there were, and kind, file and tasks by name."""

    files: int
    names: dict[str, tuple[Literal["task", "group", "tag"], str | None, tuple[str, ...]]]


def find_definition(name: str, names: Names) -> Definition:
    """The definition of that name. Raises UnknownNameError with the nearest of all names."""
    if name not in names:
        raise UnknownNameError("task", name, names, "or the path of a YAML file or folder")
    return names[name]


@cache
def harness_version() -> str:
    return metadata.version("lm-eval")


@cache
def known_names() -> Names:
    """The names of lm-eval and of bitladder's own tasks; the latter win."""
    return {**_harness_names(), **scan(BUILTIN)}


def scan(folder: Path) -> dict[str, Definition]:
    """The names that a folder's YAML files define, by lm-eval's rules: the first file in order of path wins."""
    names: dict[str, Definition] = {}
    tagged: dict[str, set[str]] = {}
    known: dict[Path, dict[str, Any]] = {}
    for file in yaml_files(folder):
        keys = _fields(file, known)
        kind: Literal["task", "group"] = "group" if "group" in keys and "class" not in keys else "task"
        name = keys.get(kind)
        if not isinstance(name, str) or name in names or name in tagged:
            continue
        names[name] = Definition(kind, file)
        if kind == "task":
            for tag in _as_list(keys.get("tag")):
                tagged.setdefault(str(tag), set()).add(name)
    for tag, tasks in tagged.items():
        names.setdefault(tag, Definition("tag", None, tuple(sorted(tasks))))
    return names


def yaml_files(folder: Path) -> list[Path]:
    """Its ``*.yaml`` files at any depth, in lm-eval's order. Raises UserError where there is too much to look at."""
    found = []
    for directory, folders, files in walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        found += [os.path.join(directory, name) for name in files if name.endswith(".yaml")]  # noqa: PTH118 - speed
    return [Path(path) for path in sorted(found)]


def _harness_names() -> dict[str, Definition]:
    root = harness_tasks()
    path = cache_directory() / f"lm-eval-{harness_version()}-names.json"
    names = _read_names(path, root)
    if names is None:
        names = scan(root)
        rows = {
            name: (entry.kind, str(entry.file.relative_to(root)) if entry.file else None, entry.tasks)
            for name, entry in names.items()
        }
        remove_unfinished(path.parent, idle_s=ABANDONED_S)
        write_atomically(path, _Index(files=_count_files(root), names=rows).model_dump_json())
    return names


def harness_tasks() -> Path:
    """The folder of lm-eval's task definitions."""
    spec = util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def _read_names(path: Path, root: Path) -> dict[str, Definition] | None:
    """The index of an earlier scan; None where there is none, or one of an installation that has other files."""
    try:
        stored = _Index.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # a cache is made again
        return None
    if stored.files != _count_files(root):
        return None
    return {
        name: Definition(kind, root / file if file else None, tasks)
        for name, (kind, file, tasks) in stored.names.items()
    }


def _count_files(root: Path) -> int:
    """Files in the folder's subfolders, one level deep: a task set added to an editable installation changes it."""
    return sum(len(os.listdir(entry)) for entry in os.scandir(root) if entry.is_dir())  # noqa: PTH208 - speed


def _fields(file: Path, known: dict[Path, dict[str, Any]], including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The five keys of a YAML file, those of included files among them; ``known``: of files that were read.

    None of a file that includes itself, is missing or is no task's: it is told where it is asked for.
    """
    if file in including or len(including) > DEEPEST or not file.is_file() or file.stat().st_size > MOST_BYTES:
        return {}
    if file not in known:
        text = file.read_text(encoding="utf-8", errors="replace")
        own = {key: _value(value) for key, value in _KEY.findall(text)}
        merged: dict[str, Any] = {}
        for included in _as_list(own.pop("include", None)):
            merged |= _fields(Path(os.path.normpath(file.parent / str(included))), known, (*including, file))
        known[file] = {**merged, **own}
    return known[file]


def _value(text: str) -> Any:
    """A key's value: plain names at once, anything else through YAML; a group's list of tasks is left as text."""
    plain = text.partition(" #")[0].strip().strip("\"'")
    if _PLAIN.fullmatch(plain):
        return plain
    try:
        return yaml.load(text, yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, AttributeError, TypeError):  # the latter: dates and numbers that are none
        return None


def _as_list(value: Any) -> Iterable[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
