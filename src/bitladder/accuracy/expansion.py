"""What a requested name or path stands for: leaf tasks, and the groups that pool them. Reads YAML; builds no task.

Follows lm-eval's ``TaskFactory``: a group hands its settings on to its members, a member's own win, a tag is shorthand
for the tasks that carry it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from bitladder.accuracy.registry import Definition, Names, find_definition, known_names, scan
from bitladder.errors import BrokenFileError, UserError
from bitladder.home import expand_user

# What describes a group itself and is not handed on to its members; `task` and `include` are dealt with by name.
_GROUP_KEYS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}
_DEFAULT_METRICS = {
    "loglikelihood": ("perplexity", "acc"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}


@dataclass(frozen=True)
class Leaf:
    """One task: its YAML file, and what groups set otherwise."""

    name: str
    file: Path | None
    """None: written inside a group's own file"""
    folder: Path
    """what relative paths in it are relative to"""
    overrides: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """the YAML with includes and overrides, functions by name"""

    @property
    def title(self) -> str:
        return str(self.config.get("task_alias") or self.name)

    @property
    def metrics(self) -> frozenset[str]:
        listed = self.config.get("metric_list")
        if listed is None:
            return frozenset(_DEFAULT_METRICS.get(self.config.get("output_type", "generate_until"), ()))
        return frozenset(str(metric.get("metric")) for metric in listed)


@dataclass(frozen=True)
class Group:
    """A group as lm-eval pools it: ``documents`` weighs its tasks by size, ``mean`` equally, None not at all."""

    name: str
    title: str
    pooling: Literal["documents", "mean"] | None
    members: tuple["Leaf | Group", ...]

    def leaves(self) -> Iterator[Leaf]:
        for member in self.members:
            if isinstance(member, Leaf):
                yield member
            else:
                yield from member.leaves()

    @property
    def has_one_score(self) -> bool:
        """Whether lm-eval pools it, and its tasks share their metrics so that there is one score to pool."""
        return self.pooling is not None and len({leaf.metrics for leaf in self.leaves()}) == 1


Member = Leaf | Group


def expand(requested: str) -> tuple[Member, ...]:
    """Tasks and groups behind a name of lm-eval's or bitladder's, or the path of a YAML file or folder.

    A folder stands for the groups in it and for the tasks that are in none of these. Raises UnknownNameError for a
    name or a group's member that doesn't exist, BrokenFileError for a file that isn't a task's YAML.
    """
    names = known_names()
    if requested in names:
        return tuple(_expand_name(requested, {}, names))
    path = expand_user(requested).absolute()
    if path.is_dir():
        return _expand_folder(path, names)
    if path.is_file():
        return _expand_file(path, names)
    find_definition(requested, names)
    raise AssertionError("unreachable: an unknown name raises")


def read_config(file: Path) -> dict[str, Any]:
    """A task's or group's YAML with its includes; ``!function`` values as their text. Raises BrokenFileError."""
    try:
        config = yaml.load(file.read_bytes(), _TextLoader)
    except FileNotFoundError:
        raise BrokenFileError(f"{file}: no such file, but a task's YAML includes it") from None
    except yaml.YAMLError as error:
        raise BrokenFileError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise BrokenFileError(f"{file}: found {type(config).__name__}, expected the keys of an lm-eval task or group")
    includes = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        merged.update(read_config(file.parent / include))
    return {**merged, **config}


class FunctionName(str):
    """The text of a ``!function`` value."""


class _TextLoader(yaml.CSafeLoader):
    pass


def _function_name(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> FunctionName:
    return FunctionName(loader.construct_scalar(node))


_TextLoader.add_constructor("!function", _function_name)


def _expand_folder(folder: Path, names: Names) -> tuple[Member, ...]:
    own = scan(folder)
    everything = {**names, **own}
    groups = [
        member for name, entry in own.items() if entry.kind == "group" for member in _expand_name(name, {}, everything)
    ]
    inner = {name for group in groups for name in _member_names(group)}
    tasks = [
        member
        for name, entry in own.items()
        if entry.kind == "task" and name not in inner
        for member in _expand_name(name, {}, everything)
    ]
    outer = [group for group in groups if isinstance(group, Group) and group.name not in inner]
    if not outer and not tasks:
        raise UserError(f"{folder}: no *.yaml in it defines an lm-eval task or group")
    return (*outer, *tasks)


def _expand_file(file: Path, names: Names) -> tuple[Member, ...]:
    config = read_config(file)
    kind: Literal["task", "group"] = "group" if "group" in config and "class" not in config else "task"
    name = config.get(kind)
    if not isinstance(name, str):
        raise BrokenFileError(f"{file}: no `task` or `group` with a name in it; expected an lm-eval task's YAML")
    everything = {**names, **scan(file.parent), name: Definition(kind, file)}
    return tuple(_expand_name(name, {}, everything))


def _member_names(group: Member) -> Iterator[str]:
    """The names of all that is inside a group."""
    if isinstance(group, Group):
        for member in group.members:
            yield member.name
            yield from _member_names(member)


def _expand_name(name: str, overrides: Mapping[str, Any], names: Names) -> Iterator[Member]:
    entry = find_definition(name, names)
    if entry.kind == "tag":
        for task in entry.tasks:
            yield from _expand_name(task, overrides, names)
        return
    assert entry.file is not None
    config = read_config(entry.file)
    if entry.kind == "task":
        yield Leaf(name, entry.file, entry.file.parent, dict(overrides), {**config, **overrides})
    else:
        yield _group(name, config, overrides, entry.file, names)


def _group(name: str, config: Mapping[str, Any], overrides: Mapping[str, Any], file: Path, names: Names) -> Group:
    handed_on = {**{key: value for key, value in config.items() if key not in _GROUP_KEYS}, **overrides}
    members = [member for item in config.get("task") or () for member in _member(item, name, handed_on, file, names)]
    return Group(name, str(config.get("group_alias") or name), _pooling(config), tuple(members))


def _member(item: Any, group: str, overrides: Mapping[str, Any], file: Path, names: Names) -> Iterator[Member]:
    if isinstance(item, str):
        yield from _expand_name(item, overrides, names)
        return
    name = item.get("group") or item.get("task") if isinstance(item, dict) else None
    if not isinstance(name, str):
        raise BrokenFileError(f"{file}: group {group}: found the member {item!r}, expected a name, or keys with a name")
    if isinstance(item.get("task"), list):
        yield _group(name, item, overrides, file, names)
        return
    own = {**overrides, **{key: value for key, value in item.items() if key not in _GROUP_KEYS}}
    if name in names:
        yield from _expand_name(name, own, names)
    else:
        included = read_config(file.parent / own.pop("include")) if "include" in own else {}
        config = {**included, **own}
        yield Leaf(f"{group}::{name}", None, file.parent, config, config)


def _pooling(config: Mapping[str, Any]) -> Literal["documents", "mean"] | None:
    metrics = config.get("aggregate_metric_list")
    if not metrics:
        return None
    first = metrics[0] if isinstance(metrics, list) else metrics
    return "documents" if first.get("weight_by_size", True) else "mean"
