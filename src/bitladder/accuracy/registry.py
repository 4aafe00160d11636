"""Where lm-eval's tasks, groups and tags are defined: an index by name, from a scan of the YAML files' text.

lm-eval's own index parses all 14,000 of them, 14 to 18 s a process. The scan reads five keys of each and is kept in the
cache by lm-eval's version. No task is built and no data is read here.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from bitladder.accuracy.walk import walk
from bitladder.builtin import FOLDER
from bitladder.errors import UnknownNameError
from bitladder.files import ABANDONED_S, remove_unfinished, write_atomically
from bitladder.home import cache_directory
from bitladder.records import Record

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
    return {**_harness_names(), **scan(FOLDER)}


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
