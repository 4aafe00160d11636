"""What a requested name or path stands for: leaf tasks, groups that pool them, and the Python that they would run."""

import difflib
import itertools
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bitladder.errors import BrokenFileError, UserError
from bitladder.files import expand_user
from bitladder.tasks.registry import (
    DEEPEST,
    Definition,
    FunctionName,
    Names,
    TaskYaml,
    find_definition,
    is_own,
    known_names,
    read_task_yaml,
    scan,
)
from bitladder.text.words import one_line

# What describes a group itself and is not handed on to its members; `task` and `include` are dealt with by name.
_GROUP_KEYS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}
_MOST_MEMBERS = 50_000
"""tasks and groups behind one name; lm-eval has 14,000"""
_DEFAULT_METRICS = {
    "loglikelihood": ("perplexity", "acc"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}


@dataclass(frozen=True)
class LeafTask:
    """One task: its YAML file, and what groups set otherwise."""

    name: str
    file: Path | None
    """None: written inside a group's own file"""
    folder: Path
    """what relative paths in it are relative to"""
    overrides: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """the YAML with includes and overrides, functions by name"""
    functions: tuple[FunctionName, ...] = ()
    """what lm-eval imports to read the YAML, and what groups set"""

    def leaves(self) -> Iterator["LeafTask"]:
        """Itself, as a group gives those in it."""
        yield self

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
    members: tuple["LeafTask | Group", ...]

    def leaves(self) -> Iterator[LeafTask]:
        for member in self.members:
            yield from member.leaves()

    @property
    def has_one_score(self) -> bool:
        """Whether lm-eval pools it, and its tasks share their metrics so that there is one score to pool."""
        return self.pooling is not None and len({leaf.metrics for leaf in self.leaves()}) == 1


Member = LeafTask | Group


def expand(requested: str) -> tuple[Member, ...]:
    """Tasks and groups behind a name of lm-eval's or bitladder's, or the path of a YAML file or folder.

    A folder stands for the groups in it and for the tasks that are in none of these. Raises UnknownNameError for a
    name or a group's member that doesn't exist, BrokenFileError for a file that isn't a task's YAML.
    """
    names = known_names()
    if requested not in names:
        path = expand_user(requested).absolute()
        if path.is_dir():
            return _expand_folder(path, names)
        if path.is_file():
            return _expand_file(path, names)
    return tuple(_expand_name(requested, {}, _Scope(names)))


@dataclass(frozen=True)
class _Scope:
    """The names that hold where one is expanded, the groups that led there, and how many members were seen so far."""

    names: Names
    groups: tuple[str, ...] = ()
    members: Iterator[int] = field(default_factory=itertools.count)
    known: dict[Path, TaskYaml] = field(default_factory=dict)
    """the files that were read: many groups may have one task"""

    def inside(self, group: str, file: Path) -> "_Scope":
        """The scope of a group's members. Raises BrokenFileError for a group of itself."""
        if group in self.groups:
            way = " -> ".join((*self.groups[self.groups.index(group) :], group))
            raise BrokenFileError(f"{file}: group {group} is a member of itself ({way}); leave one of these out")
        if len(self.groups) >= DEEPEST:
            raise BrokenFileError(f"{file}: more than {DEEPEST} groups inside each other; make them fewer")
        return replace(self, groups=(*self.groups, group))

    def read(self, file: Path) -> TaskYaml:
        if file not in self.known:
            self.known[file] = read_task_yaml(file)
        return self.known[file]

    def count(self, name: str) -> None:
        if next(self.members) >= _MOST_MEMBERS:
            outer = self.groups[0] if self.groups else name
            raise UserError(f"{outer}: more than {_MOST_MEMBERS:,} tasks and groups in it; name a part of them")


def _expand_folder(folder: Path, names: Names) -> tuple[Member, ...]:
    own = scan(folder)
    scope = _Scope({**names, **own})
    groups = [
        member for name, entry in own.items() if entry.kind == "group" for member in _expand_name(name, {}, scope)
    ]
    inner = {name for group in groups for name in _member_names(group)}
    tasks = [
        member
        for name, entry in own.items()
        if entry.kind == "task" and name not in inner
        for member in _expand_name(name, {}, scope)
    ]
    outer = [group for group in groups if isinstance(group, Group) and group.name not in inner]
    if not outer and not tasks:
        raise UserError(f"{folder}: no *.yaml in it defines an lm-eval task or group")
    return (*outer, *tasks)


def _expand_file(file: Path, names: Names) -> tuple[Member, ...]:
    config = read_task_yaml(file).config
    kind: Literal["task", "group"] = "group" if "group" in config and "class" not in config else "task"
    name = config.get(kind)
    if not isinstance(name, str):
        raise BrokenFileError(f"{file}: no `task` or `group` with a name in it; expected an lm-eval task's YAML")
    beside = scan(file.parent) if kind == "group" else {}
    return tuple(_expand_name(name, {}, _Scope({**names, **beside, name: Definition(kind, file)})))


def _member_names(group: Member) -> Iterator[str]:
    """The names of all that is inside a group."""
    if isinstance(group, Group):
        for member in group.members:
            yield member.name
            yield from _member_names(member)


def _expand_name(name: str, overrides: Mapping[str, Any], scope: _Scope) -> Iterator[Member]:
    scope.count(name)
    entry = find_definition(name, scope.names)
    if entry.kind == "tag":
        for task in entry.tasks:
            yield from _expand_name(task, overrides, scope)
        return
    assert entry.file is not None
    read = scope.read(entry.file)
    if entry.kind == "task":
        config, functions = {**read.config, **overrides}, (*read.functions, *functions_of(overrides))
        yield LeafTask(name, entry.file, entry.file.parent, dict(overrides), config, functions)
    else:
        yield _group(name, read.config, overrides, entry.file, scope)


def _group(name: str, config: Mapping[str, Any], overrides: Mapping[str, Any], file: Path, scope: _Scope) -> Group:
    scope = scope.inside(name, file)
    listed = config.get("task")
    if listed is not None and not isinstance(listed, str | list):
        raise BrokenFileError(f"{file}: group {name}: task: found {listed!r}, expected a list of names")
    handed_on = {**{key: value for key, value in config.items() if key not in _GROUP_KEYS}, **overrides}
    items = [listed] if isinstance(listed, str) else listed or ()
    members = [member for item in items for member in _member(item, name, handed_on, file, scope)]
    return Group(name, str(config.get("group_alias") or name), _pooling(config, file), tuple(members))


def _member(item: Any, group: str, overrides: Mapping[str, Any], file: Path, scope: _Scope) -> Iterator[Member]:
    if isinstance(item, str):
        yield from _expand_name(item, overrides, scope)
        return
    name = item.get("group") or item.get("task") if isinstance(item, dict) else None
    if not isinstance(name, str):
        raise BrokenFileError(f"{file}: group {group}: found the member {item!r}, expected a name, or keys with a name")
    if isinstance(item.get("task"), list):
        yield _group(name, item, overrides, file, scope)
        return
    own = {**overrides, **{key: value for key, value in item.items() if key not in _GROUP_KEYS}}
    include = own.pop("include", None)
    if name in scope.names:
        if include is not None:
            raise BrokenFileError(f"{file}: group {group}: {name} has a file of its own and can't include {include!r}")
        yield from _expand_name(name, own, scope)
    else:
        scope.count(name)
        included = scope.read(file.parent / str(include)) if include is not None else None
        config = {**(included.config if included else {}), **own}
        functions = (*(included.functions if included else ()), *functions_of(own))
        yield LeafTask(f"{group}::{name}", None, file.parent, config, config, functions)


def functions_of(value: Any) -> tuple[FunctionName, ...]:
    """The functions that a value holds, at any depth."""
    if isinstance(value, FunctionName):
        return (value,)
    inner = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return tuple(function for one in inner for function in functions_of(one))


def _pooling(config: Mapping[str, Any], file: Path) -> Literal["documents", "mean"] | None:
    metrics = config.get("aggregate_metric_list")
    if not metrics:
        return None
    first = metrics[0] if isinstance(metrics, list) else metrics
    if not isinstance(first, Mapping):
        raise BrokenFileError(f"{file}: aggregate_metric_list: found {first!r}, expected keys such as `metric`")
    return "documents" if first.get("weight_by_size", True) else "mean"


_PLAIN_OPTIONS = (
    "data_dir data_files field name revision split streaming trust_remote_code verification_mode keep_in_memory "
    "keep_linebreaks sample_by columns filters batch_size chunksize sep delimiter header names column_names index_col "
    "usecols engine quotechar quoting escapechar doublequote comment encoding encoding_errors skiprows skipfooter "
    "nrows na_values keep_default_na na_filter true_values false_values skipinitialspace skip_blank_lines thousands "
    "decimal lineterminator on_bad_lines newlines_in_values comment_prefix skip_docstart"
)
"""keys of ``dataset_kwargs`` that say what is read and how rows are told apart. Others say where copies of it go, or
hand ``datasets`` objects of Python's; ``trust_remote_code`` does nothing any more, lm-eval drops it."""
_PLAIN_READERS = frozenset({"arrow", "conll", "csv", "json", "parquet", "text", "webdataset", "xml"})
"""of those that ``datasets`` comes with; the one called pandas unpickles, others follow what their files name"""


def require_trusted(leaves: Iterable[LeafTask], trusted: bool) -> None:
    """Raise UserError, naming file and function, for tasks of the user's own that run Python, unless they may; and for
    those that ask for data in a way by which files may be written or code run.

    Templates are none of it, see `harness.sandbox_templates`; lm-eval's own tasks run what lm-eval comes with.
    """
    if trusted:
        return
    found = [(leaf, what) for leaf in leaves for what in (*_code_of(leaf), *_data_ways_of(leaf))]
    if found:
        leaf, what = found[0]
        others = len({one.name for one, _ in found} - {leaf.name})
        more = f", and so do{'' if others > 1 else 'es'} {others:,} more" if others else ""
        raise UserError(f"task {leaf.name}: it {what}{more}; read that, and give --trust-remote-code to let it run")


def _data_ways_of(leaf: LeafTask) -> Iterator[str]:
    where = leaf.file or leaf.folder
    if is_own(leaf.file) or not leaf.overrides.keys().isdisjoint({"dataset_kwargs", "metadata"}):
        for key in ("custom_dataset", "class"):
            function = leaf.config.get(key)
            if isinstance(function, FunctionName) and not is_own(function.file):
                yield f"gives lm-eval's {key} {function} arguments of its own, in {where}"
    if is_own(leaf.file) or "dataset_kwargs" in leaf.overrides:
        for option in leaf.config.get("dataset_kwargs") or {}:
            if option not in _PLAIN_OPTIONS.split():
                yield f"may write files by dataset_kwargs: {option!r} in {where}"
    if is_own(leaf.file) or "dataset_path" in leaf.overrides:
        from datasets import packaged_modules

        reader = leaf.config.get("dataset_path")
        if reader in packaged_modules._PACKAGED_DATASETS_MODULES and reader not in _PLAIN_READERS:
            yield f"may run Python by the dataset_path {reader!r} in {where}"


def _code_of(leaf: LeafTask) -> Iterator[str]:
    for function in leaf.functions:
        if is_own(function.file):
            yield f"runs Python of its own, !function {function} in {function.file}"
    # a function that scores whole answers makes lm-eval look for none by the metrics' names
    listed = None if leaf.config.get("process_results") else leaf.config.get("metric_list")
    if listed and (is_own(leaf.file) or "metric_list" in leaf.overrides):
        from lm_eval.api import metrics  # noqa: F401 - registers them
        from lm_eval.api.registry import metric_registry

        for metric in listed:
            # lm-eval takes any other name for a script, here or on the Hub, and runs it with `evaluate`
            name = metric["metric"]
            if isinstance(name, FunctionName):
                continue
            if metric.get("hf_evaluate") is True or not isinstance(name, str) or name not in metric_registry:
                nearest = difflib.get_close_matches(str(name), metric_registry, n=1)
                meant = f" (lm-eval has {nearest[0]!r})" if nearest else ""
                where = leaf.file or leaf.folder
                yield f"runs Python of its own, the metric {name!r} of `evaluate`, which is a script{meant}, in {where}"


@contextmanager
def named_errors(leaf: LeafTask) -> Iterator[None]:
    """Inside the block, what goes wrong with a task of the user's own is a UserError that names its file.

    lm-eval checks no definition, templates fail at single documents, and functions are the user's.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if not is_own(leaf.file):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if Path(frame.filename).is_relative_to(leaf.folder)), None)
        where = f" at line {place.lineno} of {place.filename}" if place else ""
        text = one_line(" ".join(str(error).split())[:300])
        raise UserError(
            f"task {leaf.name}: lm-eval fails at what {leaf.file or leaf.folder} says ({type(error).__name__}: {text}"
            f"{where}); put it right"
        ) from error
