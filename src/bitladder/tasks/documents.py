"""What a task is, as a hash of its configuration and documents; and which of its documents resemble each other.

Documents that share a passage are not as many independent questions.
"""

import functools
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bitladder.files import sha256_file
from bitladder.records import PASSAGE, hash_json

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


Text = tuple[str, int]
"""and the number of its document"""

KNOWN_FIELDS = {"hellaswag": "source_id"}
"""beginning of a task's name -> the field of its documents that is shared by those which resemble each other

Not the templates of the built-in suite: all of a fixed list are asked, so that they are strata, as MMLU's subjects are.
"""
SHARED_CHARACTERS = 200
TEMPLATE_SHARE = 0.2
_GRAM = 150
_WINDOW = SHARED_CHARACTERS - _GRAM + 1
_BASE = 0x9E3779B97F4A7C15
"""odd, so that it has an inverse modulo 2^64"""
_CHARACTERS_AT_ONCE = 2_000_000
"""of which each takes about 60 bytes while they are hashed"""
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def cluster_labels(
    name: str, docs: Sequence[Any], field: str | None = None, whole: int | None = None
) -> list[str | None]:
    """For each document of the task what it shares with those that resemble it; None where it is like no other.

    ``field``: of the documents, whose value is the label. ``whole``: documents of the task, of which these are a part.
    """
    field = field or next((own for start, own in KNOWN_FIELDS.items() if name.startswith(start)), None)
    if field is not None and has_field(docs, field):
        return [str(doc[field]) if isinstance(doc, Mapping) and doc.get(field) is not None else None for doc in docs]
    return _shared_passages(docs, max(whole or 0, len(docs)))


def has_field(docs: Iterable[Any], field: str) -> bool:
    return any(isinstance(doc, Mapping) and doc.get(field) is not None for doc in docs)


def cluster_field(metadata: Any) -> str | None:
    """The field that a task's metadata names as ``cluster``."""
    field = metadata.get("cluster") if isinstance(metadata, Mapping) else None
    return None if field is None else str(field)


def _shared_passages(docs: Sequence[Any], whole: int) -> list[str | None]:
    """Documents belong together that share a passage, or do so by way of others."""
    texts = [(text, number) for number, doc in enumerate(docs) for text in _texts(doc)]
    most = max(TEMPLATE_SHARE * whole, 2)
    prints, owners = _fingerprints(texts)
    known, sizes = np.unique(prints, return_counts=True)
    if (template := known[sizes > most]).size:
        # Beside it, not with it: a template and the next letter are equal in some documents, and no passage.
        prints, owners = _fingerprints(
            [(piece, number) for batch in _batches(texts) for piece, number in _without(template, batch)]
        )
    _, passages, sizes = np.unique(prints, return_inverse=True, return_counts=True)
    kept = ((sizes >= 2) & (sizes <= most))[passages]
    prints, owners, passages = prints[kept], owners[kept], passages[kept]
    if not len(prints):
        return [None] * len(docs)
    size = len(docs) + len(sizes)
    graph = coo_array((np.ones(len(owners), dtype=bool), (owners, len(docs) + passages)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    label = np.full(component.max() + 1, 2**64 - 1, dtype=np.uint64)
    np.minimum.at(label, component[owners], prints)
    sharing = set(owners.tolist())
    return [f"{PASSAGE}{label[component[number]]:016x}" if number in sharing else None for number in range(len(docs))]


def _fingerprints(texts: Sequence[Text]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Each document's fingerprints, once each, and of which document they are."""
    found = [(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)), *map(_winnow, _batches(texts))]
    prints, owners = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((owners, prints))
    prints, owners = prints[order], owners[order]
    first = np.ones(len(prints), dtype=bool)
    first[1:] = (prints[1:] != prints[:-1]) | (owners[1:] != owners[:-1])
    return prints[first], owners[first]


def _batches(texts: Sequence[Text]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text[0])
        if characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _texts(value: Any) -> Iterator[str]:
    """The long texts of a document, in whatever field."""
    if isinstance(value, str):
        if len(value) >= SHARED_CHARACTERS:
            yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)


def _winnow(texts: Sequence[Text]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of parts of texts, and of which document each is.

    Of every stretch of 200 characters at least one of its parts of 150 is taken, the same wherever it stands: the
    smallest hash of each 51 that follow each other (Schleimer, Wilkerson and Aiken 2003, Winnowing).
    """
    parts, text = _parts(texts)
    smallest = np.lib.stride_tricks.sliding_window_view(parts, _WINDOW).min(axis=1)
    whole = text[: len(smallest)] == text[SHARED_CHARACTERS - 1 :]
    owners = np.asarray([number for _, number in texts])
    smallest, of = smallest[whole], owners[text[: len(whole)][whole]]
    new = np.append(True, (smallest[1:] != smallest[:-1]) | (of[1:] != of[:-1]))
    return smallest[new], of[new]


def _without(prints: NDArray[np.uint64], texts: Sequence[Text]) -> Iterator[Text]:
    """What is left of texts, as far as it is long, where parts with these sorted hashes are cut out."""
    parts, text = _parts(texts)
    found = prints[np.searchsorted(prints, parts).clip(max=len(prints) - 1)] == parts
    starts = np.flatnonzero(found & (text[: len(parts)] == text[_GRAM - 1 :]))
    ends = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(ends, starts, 1)
    np.add.at(ends, starts + _GRAM, -1)
    covered = np.cumsum(ends[:-1]) > 0
    begin = 0
    for one, number in texts:
        edges = np.flatnonzero(np.diff(np.concatenate([[True], covered[begin : begin + len(one)], [True]])))
        yield from (
            (one[start:stop], number)
            for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
            if stop - start >= SHARED_CHARACTERS
        )
        begin += len(one)


def _parts(texts: Sequence[Text]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hash of every part of texts laid end to end, and of which text each letter is; what reaches over an end is
    none's.

    Unsigned numbers wrap, as the hash wants: the sum of letter * base^place over a part, over base^(its place).
    """
    letters = np.frombuffer("".join(one for one, _ in texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    text = np.repeat(np.arange(len(texts)), [len(one) for one, _ in texts])
    count = len(letters) - _GRAM + 1
    weighed = letters.astype(np.uint64) * _powers(_BASE, len(letters))
    sums = np.append(np.uint64(0), np.cumsum(weighed, dtype=np.uint64))
    parts = (sums[_GRAM:] - sums[:-_GRAM]) * _powers(pow(_BASE, -1, 2**64), count)
    parts ^= parts >> np.uint64(29)
    parts *= _MIX
    parts ^= parts >> np.uint64(32)
    return parts, text


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0 to base^(count - 1), modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
