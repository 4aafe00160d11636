"""lm-eval's task objects, by name, each built once a process, with lm-eval quiet and seeded."""

import itertools
import logging
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from bitladder.errors import UnknownNameError, UserError
from bitladder.files import expand_user
from bitladder.machine.host import uncollected
from bitladder.machine.libraries import patch_for_good, patched
from bitladder.records import TaskSources
from bitladder.tasks.documents import cluster_field, cluster_labels, document_hash, has_field, task_hash
from bitladder.tasks.expansion import LeafTask, Member, expand, functions_of, named_errors, require_trusted
from bitladder.tasks.mirror import PLACEHOLDER_ROWS, DatasetReader
from bitladder.text.words import one_line

_TEMPLATES = 1000
"""kept at most"""
_LIBRARIES = ("lm_eval", "transformers", "datasets", "bitsandbytes", "huggingface_hub")


@contextmanager
def as_we_run_it(seed: int, *, torch_too: bool = False) -> Iterator[None]:
    """`quiet`, `templates_kept`, `uncollected` and `seeded`."""
    with quiet(), templates_kept(), uncollected(), seeded(seed, torch_too=torch_too):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no messages below errors from lm-eval and its libraries; what matters is recorded."""
    import tqdm.std  # type: ignore[import-untyped]

    start = tqdm.std.tqdm.__init__

    def hidden(bar: Any, *arguments: Any, **options: Any) -> None:
        start(bar, *arguments, **{**options, "disable": True})

    levels = {logger: logger.level for logger in map(logging.getLogger, _LIBRARIES)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with patched("tqdm.std:tqdm.__init__", hidden):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def templates_kept() -> Iterator[None]:
    """lm-eval parses and compiles a task's templates anew for every document, which takes longer than scoring it does
    on a GPU: in the block each is compiled once.
    """
    from lm_eval.utils import env

    with patched("lm_eval.utils:env.from_string", lru_cache(_TEMPLATES)(env.from_string)):
        yield


def sandbox_templates() -> None:
    """From now on, in this process, lm-eval renders templates in Jinja's sandbox: one in a user's YAML reaches nothing
    of Python's insides. All templates that lm-eval comes with render there as they do without.
    """
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    plain = lm_eval.utils.env
    if isinstance(plain, SandboxedEnvironment):
        return
    sandboxed = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandboxed.filters.update(plain.filters)
    patch_for_good("lm_eval.utils:env", sandboxed)


@contextmanager
def seeded(seed: int, *, torch_too: bool = False) -> Iterator[None]:
    """Global random generators start at ``seed`` in the block and go on after it as if it hadn't been.

    Some tasks shuffle their choices with Python's or NumPy's while they read their documents; sampled generation draws
    from torch's.
    """
    import numpy

    states = random.getstate(), numpy.random.get_state()
    random.seed(seed)
    numpy.random.seed(seed)
    try:
        with _seeded_torch(seed) if torch_too else nullcontext():
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


@contextmanager
def _seeded_torch(seed: int) -> Iterator[None]:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
# What lm-eval takes out of a YAML before it makes a task of it.
_STRUCTURAL_KEYS = {"tag", "group", "task_list", "class"}


@lru_cache(maxsize=4)
def task_library(sources: TaskSources) -> "TaskLibrary":
    """The library of a study; the same one for the same sources, so that rungs share the built tasks."""
    return TaskLibrary(sources)


class TaskLibrary:
    """Tasks as the settings ask for them. Building one reads its data; nothing is built before it is asked for.

    Unless the sources trust them, UserError is raised for tasks of the user's own that run Python, before any of it is
    imported.
    """

    def __init__(self, sources: TaskSources) -> None:
        mirror = expand_user(sources.datasets) if sources.datasets else None
        self._sources = sources
        self._reader = DatasetReader(mirror, trusted=sources.trust_remote_code)
        self._tasks: dict[str, Any] = {}
        self._hashes: dict[tuple[str, int | None], str] = {}
        self._clusters: dict[str, dict[str, str]] = {}
        self.requested: dict[str, tuple[Member, ...]] = {name: expand(name) for name in sources.requested}
        self._leaves = _unique_leaves(itertools.chain.from_iterable(self.requested.values()))
        require_trusted(self._leaves.values(), sources.trust_remote_code)

    def leaf(self, name: str) -> LeafTask:
        """A task of `requested`, where settings handed on by groups hold, or any other that exists."""
        if name not in self._leaves:
            found = expand(name)
            if len(found) != 1 or not isinstance(found[0], LeafTask):
                raise UserError(f"{name} is a group of tasks; expected the name of a single task")
            require_trusted([found[0]], self._sources.trust_remote_code)
            self._leaves[name] = found[0]
        return self._leaves[name]

    def members(self, name: str) -> tuple[Member, ...]:
        """What a name stands for."""
        return self.requested.get(name) or expand(name)

    def task(self, name: str) -> Any:
        """lm-eval's task object. Raises UserError where its data or its definition isn't right."""
        if name not in self._tasks:
            leaf = self.leaf(name)
            task = _build(leaf, self._reader, self._sources.seed)
            _set_fewshot(task, self._sources.num_fewshot)
            _require_fewshot(task, leaf, self._reader.mirror)
            with named_errors(leaf):
                _require_cluster_field(task, leaf)
            self._tasks[name] = task
        return self._tasks[name]

    def reading(self, name: str) -> AbstractContextManager[None]:
        """In the block, what a task of the user's own can't do with its documents is a UserError."""
        return named_errors(self.leaf(name))

    def documents(self, name: str, limit: int | None) -> Iterator[Any]:
        """The documents that are asked, in order."""
        return itertools.islice(self.task(name).eval_docs, limit)

    def document_hashes(self, name: str, limit: int | None) -> list[str]:
        """As lm-eval logs them, in order."""
        with self.reading(name):
            return [document_hash(doc) for doc in self.documents(name, limit)]

    def clusters(self, name: str, limit: int | None) -> dict[str, str]:
        """Document hash -> what it shares with those that resemble it, see `cluster_labels`; others are absent.

        Passages are looked for in the whole task: of few of its documents a fifth may well be about one.
        """
        if name not in self._clusters:
            with self.reading(name):
                docs = list(self.documents(name, None))
                labels = cluster_labels(name, docs, cluster_field(self.task(name).config.metadata))
                labelled = zip(self.document_hashes(name, None), labels, strict=True) if any(labels) else ()
                self._clusters[name] = {one: label for one, label in labelled if label}
        known = self._clusters[name]
        if not known or limit is None:
            return known
        return {one: known[one] for one in self.document_hashes(name, limit) if one in known}

    def count(self, name: str, limit: int | None) -> int:
        available = len(self.task(name).eval_docs)
        return available if limit is None else min(limit, available)

    def task_hash(self, name: str, limit: int | None) -> str:
        """See `fingerprint.task_hash`."""
        key = name, limit
        if key not in self._hashes:
            task = self.task(name)
            fewshot = _fewshot_pool(task) if task.config.num_fewshot else ()
            with self.reading(name):
                self._hashes[key] = task_hash(task, self.documents(name, limit), fewshot or ())
        return self._hashes[key]


def _unique_leaves(members: Iterator[Member]) -> dict[str, LeafTask]:
    leaves: dict[str, LeafTask] = {}
    for member in members:
        for leaf in member.leaves():
            if leaves.setdefault(leaf.name, leaf) != leaf:
                raise UserError(
                    f"task {leaf.name} is asked for twice with other settings (by a group and by another, or by name); "
                    "choose one, or use two studies"
                )
    return leaves


def _build(leaf: LeafTask, reader: DatasetReader, seed: int) -> Any:
    _require_definition(leaf)
    _require_metrics(leaf)
    import jinja2
    from lm_eval.tasks import TaskManager

    sandbox_templates()
    with tempfile.TemporaryDirectory() as scratch, reader.serving(leaf), as_we_run_it(seed), named_errors(leaf):
        file = _task_file(leaf, Path(scratch))
        try:
            (task,) = TaskManager(include_defaults=False).load([str(file)])["tasks"].values()
        except IndexError as error:
            if not str(error).endswith("size 0"):
                raise
            raise UserError(
                f"task {leaf.name}: no documents in the split that it asks; expected at least one"
            ) from None
        except ImportError as error:
            raise UserError(f"task {leaf.name}: lm-eval needs a package for it ({error}); install it") from None
        except jinja2.TemplateError as error:
            raise UserError(
                f"task {leaf.name}: a template in {leaf.file} fails on its first document: {one_line(str(error))}"
            ) from None
    return task


def _require_cluster_field(task: Any, leaf: LeafTask) -> None:
    """Raise UserError for a field of the task's metadata that no document has: questions would count as independent."""
    field = cluster_field(task.config.metadata)
    if field is not None and not has_field(task.eval_docs, field):
        first = next(iter(task.eval_docs))
        known = ", ".join(map(str, first)) if isinstance(first, Mapping) else type(first).__name__
        raise UserError(f"task {leaf.name}: metadata: cluster: no document has the field {field}; found {known}")


def _require_metrics(leaf: LeafTask) -> None:
    """Raise UnknownNameError for a metric that neither lm-eval nor `evaluate` has: lm-eval logs it, and fails without a
    name or after the last answer. A function that scores whole answers makes it look for none."""
    from lm_eval.api import metrics  # noqa: F401 - registers them
    from lm_eval.api.registry import get_metric, metric_registry

    listed = None if leaf.config.get("process_results") else leaf.config.get("metric_list")
    names = [metric["metric"] for metric in listed or () if metric.get("hf_evaluate") is not True]
    for name in names:
        if type(name) is str and name not in metric_registry and get_metric(name) is None:
            hint = f"expected a metric of lm-eval or of `evaluate` in {leaf.file or leaf.folder}"
            raise UnknownNameError(f"metric of task {leaf.name}:", name, metric_registry, hint)


def _task_file(leaf: LeafTask, scratch: Path) -> Path:
    """The YAML that lm-eval is to build from: the task's own, or one that includes it and sets what groups set."""
    if leaf.file is not None and not leaf.overrides:
        return leaf.file
    functions = [key for key, value in leaf.overrides.items() if functions_of(value)]
    if functions:
        raise UserError(
            f"task {leaf.name}: its group sets {functions[0]} to a function; set it in the task's own YAML instead"
        )
    included = {"include": str(leaf.file)} if leaf.file else {}
    path = scratch / "task.yaml"
    path.write_text(yaml.safe_dump({**leaf.overrides, **included, "task": leaf.name}), encoding="utf-8")
    return path


def _require_definition(leaf: LeafTask) -> None:
    """Raise UserError for what lm-eval would stumble over, or what bitladder does not run."""
    from lm_eval.config.task import TaskConfig

    config, where = leaf.config, leaf.file or leaf.folder
    if config.get("unsafe_code"):
        raise UserError(f"task {leaf.name} runs code that the model wrote, which bitladder doesn't; choose another")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(f"task {leaf.name} asks about images or sound; expected a task of text alone")
    if "class" in config:
        return
    known = TaskConfig.__dataclass_fields__.keys() | _STRUCTURAL_KEYS
    for key in config:
        if key not in known:
            raise UnknownNameError(f"key in {where}:", str(key), known)
    if not config.get("dataset_path") and not config.get("custom_dataset"):
        raise UserError(
            f"{where}: task {leaf.name} has no `dataset_path`; expected a Hub name, `json` with data_files, …"
        )
    if not config.get("test_split") and not config.get("validation_split"):
        raise UserError(f"{where}: task {leaf.name} has no `test_split` and no `validation_split`; name the one to ask")
    output_type = config.get("output_type", "generate_until")
    if output_type not in _OUTPUT_TYPES:
        raise UnknownNameError(f"output_type in {where}:", str(output_type), _OUTPUT_TYPES)


def _set_fewshot(task: Any, num_fewshot: int | None) -> None:
    """lm-eval's rule: a task that says 0 stays at 0, one that says nothing has 0 unless asked otherwise."""
    configured = task.get_config("num_fewshot")
    if num_fewshot is not None and configured != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif configured is None:
        task.set_config(key="num_fewshot", value=0)


def _fewshot_pool(task: Any) -> Sequence[Any] | None:
    return getattr(getattr(task, "sampler", None), "df", None)


def _require_fewshot(task: Any, leaf: LeafTask, mirror: Path | None) -> None:
    """Raise UserError where the split to draw examples from has too few rows, or only a mirror's placeholder."""
    shots = task.config.num_fewshot
    pool = _fewshot_pool(task)
    if not shots or pool is None:
        return
    rows = len(pool)
    drawn_from_asked = task.fewshot_cfg.split is not None and task.fewshot_cfg.split == task.config.test_split
    placeholder = mirror is not None and rows == PLACEHOLDER_ROWS
    if rows < shots + drawn_from_asked or placeholder:
        raise UserError(
            f"task {leaf.name}: {shots} few-shot examples wanted, the split they are drawn from has {rows} "
            f"row{'' if rows == 1 else 's'}{' (a placeholder)' if placeholder else ''}; "
            "lower --num-fewshot, or add the split to the mirror"
        )
