"""What a task is, as a hash: its resolved configuration and the documents it asks about.

The same in every process, on every machine and from every working directory: no paths, no addresses.
"""

import functools
import inspect
import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from bitladder.files import sha256_file
from bitladder.records import hash_json

# Where files lie, and what tables call the task: neither changes an answer.
_LEFT_OUT = {"dataset_path", "dataset_kwargs", "task_alias", "tag", "metadata"}


def task_hash(task: Any, documents: Iterable[Any], fewshot: Iterable[Any]) -> str:
    """SHA-256 (hex) over lm-eval's configuration of a built task, the documents asked and those of few-shot examples.

    A function counts by its name and the bytes of the file that defines it, so that its helpers count too.
    """
    from lm_eval.api.task import ConfigurableTask

    config = task.config.to_dict(keep_callable=True)
    return hash_json(
        {
            "config": _stable({key: value for key, value in config.items() if key not in _LEFT_OUT}),
            "dataset": _dataset_name(config.get("dataset_path")),
            "class": None if type(task) is ConfigurableTask else _stable(type(task)),
            "version": str(task.VERSION),
            "documents": _digest(documents),
            "fewshot": _digest(fewshot),
        }
    )


def _digest(documents: Iterable[Any]) -> str:
    from lm_eval.utils import handle_non_serializable

    digest = sha256()
    for document in documents:
        digest.update(json.dumps(document, default=handle_non_serializable).encode() + b"\n")
    return digest.hexdigest()


def _dataset_name(path: str | None) -> str | None:
    """A Hub name as it is; of a local folder its last part."""
    return Path(path).name if path and (Path(path).is_absolute() or path.startswith(".")) else path


def _stable(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _stable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_stable(part), sort_keys=True) for part in value)
    if isinstance(value, functools.partial):
        return [_stable(value.func), _stable(value.args), _stable(value.keywords)]
    named: Any = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    return [named.__qualname__, _source_hash(named)]


@functools.cache
def _source_hash(named: Any) -> str | None:
    """SHA-256 of the file that defines a function or class; None for what is built into Python."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(named))
    except TypeError:
        return None
    return sha256_file(Path(file)) if file and Path(file).is_file() else None


def document_hash(doc: Any) -> str:
    """As lm-eval logs it."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return str(hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)))
