"""Running text: WikiText-2's test split by article, or the prose that comes with bitladder."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bitladder.errors import UserError
from bitladder.machine.libraries import offline_without_network
from bitladder.package import BUILTIN

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_CONFIG = "wikitext-2-raw-v1"
WIKITEXT_SPLIT = "test"
_ARTICLE = re.compile(r" = (?!= )(.*) = \n")
"""an article's heading; those of its sections have more of the signs"""


@dataclass(frozen=True)
class Corpus:
    """Documents by name, in order; joined by ``separator`` they are the text."""

    documents: dict[str, str]
    origin: str
    separator: str = ""
    instead: str | None = None
    """why it stands in for another text"""

    @property
    def text(self) -> str:
        return self.separator.join(self.documents.values())


@lru_cache(maxsize=4)
def read_corpus(mirror: str | None, builtin: bool) -> Corpus:
    """WikiText-2's test split of ``mirror``, else from the Hub or its cache.

    The packaged prose stands in for a ``builtin`` model without a mirror, for a mirror without WikiText, and where the
    Hub is out of reach; ``origin`` says which it is. Raises UserError for a mirror that isn't there or lacks the split.
    """
    if mirror is None:
        return read_prose() if builtin else _from_hub()
    if not Path(mirror).is_dir():
        raise UserError(f"{mirror}: no such folder; expected a mirror of data sets in Hub layout")
    folder = Path(mirror) / WIKITEXT
    if not folder.is_dir():
        return read_prose(f"{mirror} has no {WIKITEXT}")
    if not list(folder.glob(f"**/*{WIKITEXT_SPLIT}*")):
        raise UserError(f"{folder}: no split {WIKITEXT_SPLIT!r} of {WIKITEXT_CONFIG}; add it, or leave out --datasets")
    return _read_wikitext(str(folder))


def read_prose(instead: str | None = None) -> Corpus:
    """The packaged prose; ``instead`` says why it stands in for another text."""
    sources = sorted(BUILTIN.glob("*prose*.jsonl"))
    lines = [line for source in sources for line in source.read_text(encoding="utf-8").splitlines()]
    documents = {row["id"]: row["text"] for row in map(json.loads, lines)}
    return Corpus(documents, f"built-in prose ({instead})" if instead else "built-in prose", "\n\n", instead)


def _from_hub() -> Corpus:
    try:
        with offline_without_network():
            return _read_wikitext(WIKITEXT)
    except ConnectionError:
        return read_prose(f"{WIKITEXT} is neither reachable nor cached")


def _read_wikitext(path: str) -> Corpus:
    import datasets

    datasets.disable_progress_bars()
    rows: Mapping[str, Sequence[str]] = datasets.load_dataset(path, WIKITEXT_CONFIG, split=WIKITEXT_SPLIT)
    return Corpus(_by_article(rows["text"]), f"{WIKITEXT} {WIKITEXT_CONFIG} {WIKITEXT_SPLIT}")


def _by_article(rows: Sequence[str]) -> dict[str, str]:
    """Rows joined to articles, each named by its place and heading; what stands before the first belongs to it."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for row, below in zip(rows, [*rows, ""][1:], strict=True):
        heading = _ARTICLE.fullmatch(row)
        if heading and not below:  # a formula may look like one, but no empty row follows it
            if "".join(found[-1][1]):
                found.append(("", []))
            found[-1] = (heading[1], found[-1][1])
        found[-1][1].append(row)
    return {f"{number} {title}".rstrip(): "".join(parts) for number, (title, parts) in enumerate(found, 1)}
