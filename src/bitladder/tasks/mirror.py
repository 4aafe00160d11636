"""Where a task's documents come from: a mirror in Hub layout, files beside the task's YAML, or the Hub and its cache.

lm-eval calls ``datasets.load_dataset`` through its module while a task is built; in that time it goes through here.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from bitladder.errors import UserError, describe_machine_error
from bitladder.machine.libraries import offline_without_network, patched
from bitladder.records import hash_json
from bitladder.tasks.expansion import LeafTask
from bitladder.tasks.registry import walk
from bitladder.text.words import one_line

PLACEHOLDER_ROWS = 1
"""rows of a split that a mirror has only because tasks need it to exist"""
_PLACES = frozenset({"file", "local", "http", "https", "hf"})
_ARCHIVES = frozenset({"zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd"})
_SHOWN_CHARACTERS = 200


class DatasetReader:
    """Reads tasks' data sets, for one process: what a data set's card says is read once."""

    def __init__(self, mirror: Path | None, *, trusted: bool) -> None:
        """``mirror``: a folder that holds ``organisation/name`` folders. Raises UserError where there is none.

        ``trusted``: whether files may be fetched in every way that ``fsspec`` knows, some of which write copies.
        """
        if mirror is not None and not mirror.is_dir():
            raise UserError(f"--datasets {mirror}: no such folder; expected a mirror with organisation/name folders")
        self.mirror = mirror.absolute() if mirror else None
        self._trusted = trusted
        self._modules: dict[str, Any] = {}

    @contextmanager
    def serving(self, leaf: LeafTask) -> Iterator[None]:
        """While the block runs, ``datasets.load_dataset`` reads for this task, and raises UserError where it can't."""
        import datasets
        import datasets.load
        from datasets.utils.file_utils import is_relative_path, xjoin

        make_module = datasets.load.dataset_module_factory
        resolve = datasets.data_files.resolve_pattern
        require_bounded = cache(_require_bounded)

        def bounded(pattern: str, base_path: str, *arguments: Any, **options: Any) -> Any:
            """Of files that a task names, that a data set's card does, or that `datasets` looks for in a folder."""
            full = xjoin(base_path, pattern) if is_relative_path(pattern) else pattern
            if not self._trusted:
                _require_plain(leaf, full)
            for part in full.split("::"):  # a pattern in an archive names that after colons
                local = part.removeprefix("file://").removeprefix("local://")
                if "://" not in local:
                    try:
                        require_bounded(local)
                    except UserError as error:
                        raise UserError(f"task {leaf.name}: {error}") from None
            return resolve(pattern, base_path, *arguments, **options)

        def module(path: str, **options: Any) -> Any:
            """Finding a data set's files takes 0.14 s, the same for each of its configurations; MMLU has 57."""
            key = repr((path, sorted(options.items(), key=str)))
            if key not in self._modules:
                found = make_module(path, **options)
                if Path(path).is_dir():
                    found = dataclasses.replace(found, hash=_state_hash(Path(path), found.hash))
                self._modules[key] = found
            found = self._modules[key]
            return dataclasses.replace(found, builder_kwargs=dict(found.builder_kwargs))

        token = _SERVED.set((self, leaf))
        try:
            with (
                patched("datasets:load_dataset", _load_dataset),
                patched("datasets.load:dataset_module_factory", module),
                patched("datasets.data_files:resolve_pattern", bounded),
            ):
                yield
        finally:
            _SERVED.reset(token)

    def load(self, leaf: LeafTask, path: str, name: str | None, options: dict[str, Any]) -> Any:
        """What ``load_dataset`` gives for a task: splits, or one of them where ``options`` name it."""
        import datasets.load

        place, options = self._locate(leaf, path, options)
        is_remote = place == path and "data_files" not in options
        with _named_errors(leaf, place, is_remote), offline_without_network() if is_remote else nullcontext():
            splits = datasets.load.load_dataset(place, name, **options)
        if isinstance(splits, Mapping):
            _require_splits(leaf, place, splits)
        return splits

    def _locate(self, leaf: LeafTask, path: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Local files relative to the YAML, else the mirror's folder, else the Hub's name as it is."""
        if options.get("data_files") is not None and "/" not in path:
            return path, {**options, "data_files": _beside(leaf, options["data_files"])}
        local = leaf.folder / path
        if local.is_dir():
            return str(local), options
        if self.mirror is None:
            return path, options
        folder = self.mirror / path
        if not folder.is_dir():
            raise UserError(
                f"task {leaf.name}: the mirror has no folder {folder}; add data set {path} to it, "
                "or leave --datasets out to read the Hub"
            )
        return str(folder), options


_SERVED: ContextVar[tuple[DatasetReader, LeafTask] | None] = ContextVar("_SERVED", default=None)


def _load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
    """Stands in for ``datasets.load_dataset``; a task's own Python module may have imported it and keep it for good."""
    import datasets.load

    served = _SERVED.get()
    if served is None:
        return datasets.load.load_dataset(path, name, **options)
    reader, leaf = served
    return reader.load(leaf, path, name, options)


def _beside(leaf: LeafTask, files: Any) -> Any:
    """``data_files`` with relative paths taken from the YAML's folder; lm-eval alone takes them from the cwd."""
    if isinstance(files, Mapping):
        return {split: _beside(leaf, part) for split, part in files.items()}
    if isinstance(files, list | tuple):
        return [_beside(leaf, part) for part in files]
    if not isinstance(files, str):
        raise UserError(f"task {leaf.name}: data_files: found {files!r}, expected names of files")
    inside, colons, files = files.rpartition("::")  # what is taken out of an archive, and that
    if "://" in files:
        return inside + colons + files
    path = leaf.folder / files
    if not any(char in files for char in "*?[") and not path.is_file():
        raise UserError(f"task {leaf.name}: no file {path}; expected the data that its YAML names")
    return f"{inside}{colons}{path}"


def _require_plain(leaf: LeafTask, pattern: str) -> None:
    """Raise UserError for data that isn't read where it lies: ``fsspec`` has ways that write copies where they like."""
    *outer, place = pattern.split("::")
    found = [(way.partition("://")[0], _ARCHIVES) for way in outer]
    if "://" in place:
        found.append((place.partition("://")[0], _PLACES))
    for way, known in found:
        if way not in known:
            raise UserError(
                f"task {leaf.name}: the data {one_line(pattern)[:_SHOWN_CHARACTERS]} would be read by "
                f"{one_line(way)[:_SHOWN_CHARACTERS]!r}, expected {', '.join(sorted(known))}; "
                "take plain files, or give --trust-remote-code"
            )


def _require_bounded(pattern: str) -> None:
    """Raise UserError for a pattern or folder that `datasets`, which follows links, would look through without end, and
    for one that takes in what is no file, such as a pipe.
    """
    parts = Path(pattern).parts
    first = next((place for place, part in enumerate(parts) if any(char in part for char in "*?[")), len(parts))
    depth = None if any("**" in part for part in parts) else max(0, len(parts) - first - 1)
    for directory, _, files in walk(Path(*parts[:first]), depth=depth, links=True):
        for path in (os.path.join(directory, name) for name in files):  # noqa: PTH118 - speed
            if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - what can't be read is none
                raise UserError(f"{path}: neither a file nor a folder, among the data {pattern}; take it away")


def _state_hash(folder: Path, card_hash: str) -> str:
    """What the prepared copy of a local data set is kept under. ``datasets`` takes the card's hash alone, and would go
    on serving the old rows after a file changed.
    """
    found = (Path(directory, name) for directory, _, names in walk(folder) for name in names)
    files = sorted(path for path in found if path.is_file())
    states = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hash_json([card_hash, states])


def needed_splits(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits that lm-eval opens for a task: the one it asks about, and the one of its few-shot examples.

    The latter must exist even where no example is drawn.
    """
    asked = config.get("test_split") or config.get("validation_split")
    fewshot = config.get("fewshot_config") or {}
    drawn = fewshot.get("split") or config.get("fewshot_split")
    if drawn is None and fewshot.get("samples") is None:
        drawn = config.get("training_split") or config.get("validation_split")
    return tuple(dict.fromkeys(split for split in (asked, drawn) if split))


def _require_splits(leaf: LeafTask, place: str, splits: Mapping[str, Any]) -> None:
    for split in needed_splits(leaf.config):
        if split.partition("[")[0] not in splits:
            raise UserError(
                f"task {leaf.name}: {place} has no split {split!r}, it has {', '.join(map(repr, splits))}; add it"
            )


@contextmanager
def _named_errors(leaf: LeafTask, place: str, is_remote: bool) -> Iterator[None]:
    """What ``load_dataset`` raises for data that can't be had, as a UserError."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever library its files want reads a data set, and fails in its own way
        _raise_machine_error(error)
        if "scripts are no longer supported" in str(error):
            raise UserError(
                f"task {leaf.name}: its data set {place} is a Python script, which `datasets` doesn't run any more; "
                "choose another task"
            ) from None
        plain = isinstance(error, DatasetsError | OSError | ValueError)
        reason = str(error) if plain else f"{type(error).__name__}: {error}"
        cause: BaseException | None = error
        while isinstance(cause, DatasetsError) and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
            reason = f"{reason}: {cause}"
        remedy = "connect to the Hub once, or give a mirror with --datasets DIR" if is_remote else "put it right"
        raise UserError(
            f"task {leaf.name}: its data set {place} can't be read ({_one_line(reason)}); {remedy}"
        ) from error


def _raise_machine_error(error: BaseException | None) -> None:
    """What a full or a broken disk under the cache of `datasets` says, which is no fault of the data's."""
    while error is not None:
        if isinstance(error, OSError) and describe_machine_error(error):
            raise error from None
        error = error.__cause__


def _one_line(text: str) -> str:
    # `offline_without_network` set that, which nobody else did
    return " ".join(text.split()).replace(" (OfflineModeIsEnabled)", ", nor is it in the cache")[:300]
