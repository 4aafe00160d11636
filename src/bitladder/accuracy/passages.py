"""Which documents of a task resemble each other, so that they aren't as many independent questions.

Questions about one passage (BoolQ, MMLU's history, reading comprehension) or from one source (HellaSwag) rise and fall
together. A task's metadata may name the field that tells them apart, and so may a user; else what is looked for is text
that documents share: 200 equal characters anywhere in a field, which only quotation makes. What more than a fifth of a
task shares is its template, not a passage.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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
_TEXTS_AT_ONCE = 2000
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def cluster_labels(name: str, docs: Sequence[Any], field: str | None = None) -> list[str | None]:
    """For each document of the task what it shares with those that resemble it; None where it is like no other.

    ``field``: of the documents, whose value is the label.
    """
    field = field or next((own for start, own in KNOWN_FIELDS.items() if name.startswith(start)), None)
    if field is not None and any(isinstance(doc, Mapping) and doc.get(field) is not None for doc in docs):
        return [str(doc[field]) if isinstance(doc, Mapping) and doc.get(field) is not None else None for doc in docs]
    return _shared_passages(docs)


def cluster_field(metadata: Any) -> str | None:
    """The field that a task's metadata names as ``cluster``."""
    field = metadata.get("cluster") if isinstance(metadata, Mapping) else None
    return field if isinstance(field, str) else None


def _shared_passages(docs: Sequence[Any]) -> list[str | None]:
    """Documents belong together that share a passage, or do so by way of others."""
    prints, owners = _fingerprints(docs)
    if not len(prints):
        return [None] * len(docs)
    order = np.lexsort((owners, prints))
    prints, owners = prints[order], owners[order]
    first = np.append(True, (prints[1:] != prints[:-1]) | (owners[1:] != owners[:-1]))
    prints, owners = prints[first], owners[first]  # each document once a fingerprint
    _, passages, sizes = np.unique(prints, return_inverse=True, return_counts=True)
    shared = (sizes >= 2) & (sizes <= max(TEMPLATE_SHARE * len(docs), 2))
    kept = shared[passages]
    prints, owners, passages = prints[kept], owners[kept], passages[kept]
    size = len(docs) + len(sizes)
    graph = coo_array((np.ones(len(owners), dtype=bool), (owners, len(docs) + passages)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    label = np.full(component.max() + 1, 2**64 - 1, dtype=np.uint64)
    np.minimum.at(label, component[owners], prints)
    sharing = set(owners.tolist())
    return [f"passage {label[component[number]]:016x}" if number in sharing else None for number in range(len(docs))]


def _fingerprints(docs: Sequence[Any]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of parts of the documents' texts, and of which document each is.

    Of every stretch of 200 characters at least one of its parts of 150 is taken, the same wherever it stands: the
    smallest hash of each 51 that follow each other (Schleimer, Wilkerson and Aiken 2003, Winnowing).
    """
    found = [(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))]
    texts: list[str] = []
    owners: list[int] = []
    for number, doc in enumerate(docs):
        for text in _texts(doc):
            texts.append(text)
            owners.append(number)
        if len(texts) >= _TEXTS_AT_ONCE:
            found.append(_winnow(texts, np.asarray(owners)))
            texts, owners = [], []
    if texts:
        found.append(_winnow(texts, np.asarray(owners)))
    prints, of = zip(*found, strict=True)
    return np.concatenate(prints), np.concatenate(of)


def _texts(value: Any) -> Iterator[str]:
    """The long texts of a document, in whatever field."""
    if isinstance(value, str):
        if len(value) >= SHARED_CHARACTERS:
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _winnow(texts: Sequence[str], owners: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Of texts laid end to end; what reaches over an end is none's.

    Unsigned numbers wrap, as the hash wants: the sum of letter * base^place over a part, over base^(its place).
    """
    letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    text = np.repeat(np.arange(len(texts)), [len(one) for one in texts])
    count = len(letters) - _GRAM + 1
    sums = np.append(np.uint64(0), np.cumsum(letters * _powers(_BASE, len(letters)), dtype=np.uint64))
    parts = (sums[_GRAM:] - sums[:-_GRAM]) * _powers(pow(_BASE, -1, 2**64), count)
    parts ^= parts >> np.uint64(29)
    parts *= _MIX
    parts ^= parts >> np.uint64(32)
    smallest = np.lib.stride_tricks.sliding_window_view(parts, _WINDOW).min(axis=1)
    whole = text[: len(smallest)] == text[SHARED_CHARACTERS - 1 :]
    smallest, of = smallest[whole], owners[text[: len(whole)][whole]]
    new = np.append(True, (smallest[1:] != smallest[:-1]) | (of[1:] != of[:-1]))
    return smallest[new], of[new]


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0 to base^(count - 1), modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
